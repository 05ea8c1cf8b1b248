"""measure(): the profile of a network, from one pass for each seed."""

from __future__ import annotations

import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gradscope.errors import ConfigError
from gradscope.nested import describe, tensors_in
from gradscope.probing.isolation import preserved
from gradscope.probing.probe import probe
from gradscope.seeding import seeded
from gradscope.testing.profile import MEASURES, OUTSIDE, Layer, Profile
from gradscope.trace.table import TIME, RecordedTensor, Trace
from gradscope.trace.vocabulary import Kind, place_of

NOISE = 8
"""Relative size of the noise that stands for rounding, in units of the dtype's epsilon."""

DECADES = 18.0
"""Norms beyond 1e-18 and 1e18 are zero and not finite: in float32 their squares are."""


def measure(
    model: nn.Module | Callable[[], nn.Module],
    inputs: Any,
    targets: Any = None,
    *,
    seeds: int = 3,
    loss: Callable[..., Any] | None = None,
    shaken: bool = False,
) -> Profile:
    """Measure the profile of a network.

    Args:
        model: a factory, called once per seed, or one model, which allows a single seed.
        inputs: as for `gradscope.probe`; a function is called once per seed.
        targets: as for `gradscope.probe`; a function is called once per seed.
        seeds: how many initialisations to measure.
        loss: as for `gradscope.probe`.
        shaken: with noise of the size of rounding in every weight and input.

    Returns:
        The profile; the generators of Python, NumPy and torch come back as they were.

    Raises:
        ConfigError: `seeds` is below one.
        ModelError: the model does not run on the inputs.
    """
    if seeds < 1:
        raise ConfigError(f"seeds={seeds}: a gradient profile needs at least one")
    count = 1 if isinstance(model, nn.Module) else seeds
    passes = []
    for seed in range(count):
        with drawn_from(seed):
            built = model if isinstance(model, nn.Module) else model()
            given = inputs() if callable(inputs) else inputs
            wanted = targets() if callable(targets) else targets
        network = getattr(built, "_orig_mod", built)
        given = _shake(given, seed) if shaken else given
        with _shaken(network, seed) if shaken else nullcontext():
            drawn = _weights(network)
            trace = probe(network, given, wanted, loss=loss, seed=seed, predict=False)
        outside = dict(zip(OUTSIDE, (given, wanted), strict=True))
        passes.append(_numbers(trace, drawn, outside))
    return Profile(
        layers=_layers(network, outside, passes),
        seeds=count,
        width_std=predicted_std(trace),
        frozen=trace.structure.frozen,
        without_gradient=_without_gradient(network, trace),
        shared=trace.structure.shared,
        torch=str(torch.__version__),
    )


def predicted_std(trace: Trace) -> float:
    """Spread of log10 gradient norms between initialisations that the widths predict.

    ln of the squared norm varies by b = 5 * sum(1 / n) over the layers (Hanin & Rolnick,
    1801.03744), n being the fan-in.

    Args:
        trace: with the gradients of the weights.

    Returns:
        sqrt(b) / (2 ln 10), in decades.
    """
    fan_ins = [
        math.prod(tensor.shape[1:])
        for tensor in trace.tensors
        if tensor.kind == "weight" and len(tensor.shape) > 1 and tensor.order >= 0
    ]
    return math.sqrt(5 * sum(1 / n for n in fan_ins if n)) / (2 * math.log(10))


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy (if loaded) and torch; all come back as they were."""
    with seeded(seed):
        random.seed(seed)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(seed)
        yield


@contextmanager
def _shaken(model: nn.Module, seed: int) -> Iterator[None]:
    """Add noise to every weight for a while."""
    with preserved(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(_shake(parameter, seed))
        yield


def _shake(given: Any, seed: int) -> Any:
    """The same with noise in every floating tensor; drawn on the CPU, so everywhere the same."""
    generator = torch.Generator().manual_seed(seed)

    def shake(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
        return tensor.detach() * (1 + NOISE * torch.finfo(tensor.dtype).eps * noise)

    return tree_map_only(Tensor, shake, given)


Row = dict[str, float]
"""Measure -> number of one layer for one seed."""


_OF_OUTPUTS: tuple[tuple[str, Kind, str], ...] = (
    ("output", "activation", "rms"),
    ("flow", "activation_grad", "norm"),
    ("dead", "activation", "dead_fraction"),
)


def _numbers(trace: Trace, drawn: Mapping[str, Row], outside: Mapping[str, Any]) -> dict[str, Row]:
    """Name of a layer -> its numbers, in execution order."""
    rows: dict[str, Row] = defaultdict(dict)
    for name, value in outside.items():
        if tensors := [tensor for tensor in tensors_in(value) if tensor.numel()]:
            rows[name] = _drawn(tensors)
    for measured, kind, statistic in _OF_OUTPUTS:
        for tensor, value in _outputs(trace, kind, statistic):
            rows[tensor.name][measured] = value if measured == "dead" else _decades(value)
    gradients = {
        tensor.name: _decades(norm)
        for tensor, norm in _seen(trace, "weight", "norm")
        if tensor.name not in trace.structure.cancelled  # rounding: their true gradient is zero
    }
    for module, row in drawn.items():
        rows[module] |= row
    for module, names in _by_module(gradients).items():
        rows[module]["gradient"] = _joint(gradients[name] for name in names)
        if math.isfinite(rows[module]["weight"]):
            rows[module]["update"] = rows[module]["gradient"] - rows[module]["weight"]
    return dict(rows)


def _seen(trace: Trace, kind: Kind, statistic: str) -> Iterator[tuple[RecordedTensor, float]]:
    column = place_of(statistic)
    order = sorted(range(len(trace.tensors)), key=lambda i: trace.tensors[i].order)
    for i in order:
        if trace.tensors[i].kind == kind and trace.present[0, i]:
            yield trace.tensors[i], trace.values[0, i, column].item()


def _outputs(trace: Trace, kind: Kind, statistic: str) -> Iterator[tuple[RecordedTensor, float]]:
    """One statistic of the outputs of the first and of the last call of each module."""
    last = {t.module: t.call for t in trace.tensors if t.output != TIME and t.kind == kind}
    for tensor, value in _seen(trace, kind, statistic):
        measured = statistic != "dead_fraction" or not math.isnan(value)
        if measured and tensor.output != TIME and tensor.call in (0, last[tensor.module]):
            yield tensor, value


def _layers(
    model: nn.Module, outside: Mapping[str, Any], passes: list[dict[str, Row]]
) -> dict[str, Layer]:
    modules = {name or "(root)": module for name, module in model.named_modules()}
    layers = {}
    for name in dict.fromkeys(name for rows in passes for name in rows):
        rows = [found.get(name, {}) for found in passes]
        measures = [measure for measure in MEASURES if any(measure in row for row in rows)]
        numbers = {m: tuple(row.get(m, math.nan) for row in rows) for m in measures}
        if name in outside:
            layers[name] = Layer("", describe(outside[name]), numbers)
            continue
        module = modules.get(name)
        own = module.named_parameters(recurse=False) if module is not None else ()
        shapes = ", ".join(f"{key} {'x'.join(map(str, p.shape)) or 'scalar'}" for key, p in own)
        layers[name] = Layer(type(module).__name__ if module is not None else "", shapes, numbers)
    return layers


def _without_gradient(model: nn.Module, trace: Trace) -> tuple[str, ...]:
    reached = {tensor.name for tensor, _ in _seen(trace, "weight", "norm")}
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return tuple(name for name in names if name not in reached)


def _weights(model: nn.Module) -> dict[str, Row]:
    """Module -> the numbers of its own parameters; a shared one counts where it is first."""
    parameters = dict(model.named_parameters())
    modules = _by_module(parameters).items()
    return {
        module: _drawn([parameters[name].detach() for name in names]) for module, names in modules
    }


def _by_module(parameters: Iterable[str]) -> dict[str, list[str]]:
    modules: dict[str, list[str]] = defaultdict(list)
    for name in parameters:
        modules[name.rpartition(".")[0] or "(root)"].append(name)
    return modules


def _drawn(tensors: list[Tensor]) -> Row:
    """The numbers of what was drawn."""
    norms = [float(torch.linalg.vector_norm(tensor.double())) for tensor in tensors]
    largest = max(range(len(tensors)), key=lambda i: tensors[i].numel())
    size, norm = math.sqrt(tensors[largest].numel()), norms[largest]
    ratio = float(tensors[largest].double().abs().sum()) / (size * norm) if norm else 0.0
    return {"weight": _decades(math.hypot(*norms)), "draw": _decades(ratio)}


def _joint(logs: Iterable[float]) -> float:
    """log10 of the norm of several tensors together."""
    return _decades(math.sqrt(math.fsum(10 ** (2 * log) for log in logs)))


def _decades(value: float) -> float:
    if not value < 10**DECADES:
        return math.nan
    return math.log10(value) if value > 10**-DECADES else -math.inf
