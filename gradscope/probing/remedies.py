"""try_remedies(): which change to a network mends its gradient, by trying each on a copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from gradscope.diagnosis.flow import gradient_flow, loop_flows
from gradscope.diagnosis.judge import diagnose
from gradscope.diagnosis.verdict import Verdict
from gradscope.errors import ModelError
from gradscope.layers import RECTIFIERS, SATURATING
from gradscope.probing.isolation import call_model, preserved
from gradscope.probing.loss import Loss
from gradscope.probing.probe import probe
from gradscope.probing.surgery import (
    NotApplicable,
    add_skips,
    critical,
    initialise,
    kaiming,
    normalise,
    orthogonal,
    orthogonal_recurrence,
    scale_residuals,
    swap_activations,
    unit_variance,
    xavier,
)
from gradscope.seeding import seeded
from gradscope.trace.table import Trace

NEAR = 0.5
"""Decades over the whole depth, a factor of three, below which chi is as good as 1: less than what
separates one draw of the weights of a network from the next."""

DECADE = 1.0
"""The same where the interval of the slope contains chi = 1, so that no trend is seen."""


@dataclass(frozen=True)
class Outcome:
    """What the gradient flow is after one change."""

    name: str
    """Short name of the change; ``as it is`` for the network itself."""
    change: str
    """What to do, one sentence."""
    slope: float
    """Decades of log10 chi per block, going backwards; 0 is chi = 1. NaN: not measured."""
    slope_low: float
    slope_high: float
    """Ends of its 95 % interval."""
    accumulated: float
    """Decades that the gradient norm changes over the depth; > 0 grows towards the input."""
    forward: float
    """Decades that the activation rms changes over the depth; > 0 grows towards the output."""
    verdict: Verdict | None = None
    """What `diagnose` says of the changed network; None where it was not tried."""
    reason: str = ""
    """Why the change does not apply to this network; empty where it was tried."""

    @property
    def was_tried(self) -> bool:
        """Whether the network was probed with this change."""
        return not self.reason

    @property
    def chi(self) -> float:
        """Factor on the gradient norm per block, going backwards."""
        return math.pow(10.0, self.slope)

    @property
    def distance(self) -> float:
        """Decades from chi = 1 over the depth; inf where no gradient came through."""
        return abs(self.accumulated) if math.isfinite(self.accumulated) else math.inf

    @property
    def is_settled(self) -> bool:
        """Whether chi is 1 as far as can be told, and nothing else is sick."""
        well = self.verdict in (Verdict.HEALTHY, Verdict.INCONCLUSIVE)
        no_trend = self.slope_low <= 0.0 <= self.slope_high
        return well and self.distance < (DECADE if no_trend else NEAR)


@dataclass(frozen=True)
class Remedies:
    """All changes, the best first."""

    baseline: Outcome
    ranked: tuple[Outcome, ...]
    """Those that were tried, by how near to chi = 1 the gradient stays over the depth. Settled
    ones, whose difference from 1 is within the measurement, come first: of them the smallest
    change."""
    not_applicable: tuple[Outcome, ...]

    @property
    def best(self) -> Outcome | None:
        """The first of the ranked, if the network needs one and it is nearer to chi = 1."""
        if self.baseline.is_settled or not self.ranked:
            return None
        first = self.ranked[0]
        return first if first.is_settled or first.distance < self.baseline.distance else None


@dataclass(frozen=True)
class _Patient:
    """What the changes need to know of the network."""

    trace: Trace
    skippable: tuple[str, ...]
    """Blocks without a skip whose output has the shape of their input."""
    residual: tuple[str, ...]
    """Blocks with a skip whose output has the shape of their input."""
    run: Callable[[nn.Module], Any]


@dataclass(frozen=True)
class _Remedy:
    """One change, in the order of how much of the network it touches."""

    name: str
    change: str
    apply: Callable[[nn.Module, _Patient], None]


def try_remedies(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Loss | None = None,
    steps: int = 1,
    seed: int = 0,
) -> Remedies:
    """Probe copies of a network with each remedy that fits it, and rank what comes out.

    Args:
        model: any module; it is copied, never changed.
        inputs: as for `probe`.
        targets: as for `probe`.
        loss: as for `probe`.
        steps: as for `probe`.
        seed: as for `probe`, and of new weights.

    Returns:
        The network as it is, the remedies tried, best first, and those that do not fit, with why.

    Raises:
        ModelError: the model cannot be copied, or does not run on the inputs.
    """
    model = getattr(model, "_orig_mod", model)
    measure = partial(
        probe, inputs=inputs, targets=targets, loss=loss, steps=steps, seed=seed, predict=False
    )
    trace = measure(model)
    patient = _examine(model, inputs, trace)
    baseline = _outcome(_AS_IT_IS, trace)
    tried, unfit = [], []
    for remedy in _REMEDIES:
        changed = _copy(model)
        try:
            with seeded(seed):
                remedy.apply(changed, patient)
            tried.append(_outcome(remedy, measure(changed)))
        except NotApplicable as reason:
            unfit.append(_unfit(remedy, str(reason)))
        except ModelError as error:
            unfit.append(_unfit(remedy, f"the changed network does not run: {error}"))
    order = {remedy.name: i for i, remedy in enumerate(_REMEDIES)}
    tried.sort(key=lambda o: (0.0 if o.is_settled else max(o.distance, 1e-6), order[o.name]))
    return Remedies(baseline, tuple(tried), tuple(unfit))


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{type(model).__name__} cannot be copied, so no remedy can be tried: {reason}; "
            "drop tensors with a history and open files from its attributes"
        ) from error


def _outcome(remedy: _Remedy, trace: Trace) -> Outcome:
    """The flow that strays furthest from chi = 1, over depth or over time steps."""
    flows = [gradient_flow(trace), *loop_flows(trace).values()]
    flow = max(flows, key=lambda f: abs(f.accumulated) if math.isfinite(f.slope) else -1.0)
    accumulated = flow.accumulated
    if trace.first_nonfinite() is not None or not flow.blocks:
        accumulated = math.nan
    return Outcome(
        remedy.name,
        remedy.change,
        flow.slope,
        flow.slope_low,
        flow.slope_high,
        accumulated,
        flow.forward_total,
        diagnose(trace).verdict,
    )


def _unfit(remedy: _Remedy, reason: str) -> Outcome:
    nan = math.nan
    return Outcome(remedy.name, remedy.change, nan, nan, nan, nan, nan, reason=reason)


def _examine(model: nn.Module, inputs: Any, trace: Trace) -> _Patient:
    """Find the blocks that keep the shape of their input, and which of them have a skip."""
    names = [b.name for b in trace.structure.blocks if b.call == 0 and b.name]
    modules = dict(model.named_modules())
    skippable: list[str] = []
    residual: list[str] = []

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        del module
        given = args[0] if args else None
        if not isinstance(given, Tensor) or not isinstance(output, Tensor):
            return
        if given.shape != output.shape or given.grad_fn is None or output.grad_fn is None:
            return
        found = residual if _has_skip(output.grad_fn, given.grad_fn) else skippable
        if name not in found:
            found.append(name)

    handles = [
        modules[name].register_forward_hook(partial(look, name))
        for name in names
        if name in modules
    ]
    try:
        with preserved(model, 0):
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()

    def run(changed: nn.Module) -> Any:
        return call_model(changed, inputs)

    return _Patient(trace, tuple(skippable), tuple(residual), run)


_MIXING = ("Convolution", "Addmm", "Mm", "Bmm", "ScaledDotProduct", "MkldnnRnn", "CudnnRnn")
"""Autograd nodes behind which a tensor is no longer its input plus something."""


def _has_skip(output: Any, given: Any) -> bool:
    """Whether a path leads from the output of a block to its input past all weights."""
    stack, seen = [output], set()
    while stack:
        node = stack.pop()
        if node is given:
            return True
        if node is None or node in seen or node.name().startswith(_MIXING):
            continue
        seen.add(node)
        stack.extend(source for source, _ in node.next_functions)
    return False


def _init(draw: Callable[[nn.Module, Tensor], Any]) -> Callable[[nn.Module, _Patient], None]:
    return lambda model, patient: initialise(model, patient.trace, draw)


def _critical(model: nn.Module, patient: _Patient) -> None:
    initialise(model, patient.trace, critical(model))


def _lsuv(model: nn.Module, patient: _Patient) -> None:
    unit_variance(model, patient.trace, patient.run)


def _swap(
    old: tuple[type[nn.Module], ...], new: Callable[[], nn.Module]
) -> Callable[[nn.Module, _Patient], None]:
    def apply(model: nn.Module, patient: _Patient) -> None:
        swap_activations(model, old, new)
        initialise(model, patient.trace, kaiming)

    return apply


def _norm(over: str) -> Callable[[nn.Module, _Patient], None]:
    return lambda model, patient: normalise(model, patient.trace, over=over)


def _skips(model: nn.Module, patient: _Patient) -> None:
    add_skips(model, patient.skippable)


def _norm_and_skips(over: str) -> Callable[[nn.Module, _Patient], None]:
    def apply(model: nn.Module, patient: _Patient) -> None:
        normalise(model, patient.trace, over=over)
        add_skips(model, patient.skippable)

    return apply


def _scaled_skips(model: nn.Module, patient: _Patient) -> None:
    initialise(model, patient.trace, kaiming)
    add_skips(model, patient.skippable, scale=max(len(patient.skippable), 1) ** -0.5)


_AS_IT_IS = _Remedy("as it is", "change nothing", lambda _model, _patient: None)

_REMEDIES = (
    _Remedy(
        "Kaiming initialisation",
        "draw all weights with Var w = 2 / fan_in, biases zero: nn.init.kaiming_normal_",
        _init(kaiming),
    ),
    _Remedy(
        "Xavier initialisation",
        "draw all weights with Var w = 2 / (fan_in + fan_out), biases zero: nn.init.xavier_normal_",
        _init(xavier),
    ),
    _Remedy(
        "critical initialisation",
        "draw all weights with the variance at which chi_1 of the activation is 1",
        _critical,
    ),
    _Remedy(
        "orthogonal initialisation",
        "draw all weights orthogonal with gain sqrt(2): nn.init.orthogonal_",
        _init(orthogonal(math.sqrt(2.0))),
    ),
    _Remedy(
        "orthogonal recurrence",
        "draw the hidden-to-hidden weights orthogonal: nn.init.orthogonal_",
        lambda model, patient: orthogonal_recurrence(model, patient.trace),
    ),
    _Remedy(
        "unit-variance initialisation",
        "scale orthogonal weights until every layer's output has variance 1 on a batch (LSUV)",
        _lsuv,
    ),
    _Remedy(
        "ReLU for saturating activations",
        "replace sigmoid, tanh and the like by nn.ReLU, with Kaiming initialisation",
        _swap(SATURATING, nn.ReLU),
    ),
    _Remedy(
        "leaky ReLU",
        "replace nn.ReLU by nn.LeakyReLU(0.1), with Kaiming initialisation",
        _swap(RECTIFIERS, partial(nn.LeakyReLU, 0.1)),
    ),
    _Remedy(
        "batch norm",
        "put a batch norm behind each convolution and linear layer but the last",
        _norm("batch"),
    ),
    _Remedy(
        "layer norm",
        "put a layer norm behind each linear layer, a group norm behind each convolution",
        _norm("layer"),
    ),
    _Remedy("skips", "add the input of each block to its output where the shapes fit", _skips),
    _Remedy(
        "scaled residual branches",
        "scale the branch of each residual block by 1 / sqrt(number of blocks)",
        lambda model, patient: scale_residuals(model, patient.residual),
    ),
    _Remedy(
        "Kaiming initialisation + scaled skips",
        "x + f(x) / sqrt(number of blocks) for each block where the shapes fit, weights by Kaiming",
        _scaled_skips,
    ),
    _Remedy(
        "batch norm + skips",
        "batch norm behind each layer, and the input of each block added to its output",
        _norm_and_skips("batch"),
    ),
    _Remedy(
        "layer norm + skips",
        "layer norm behind each layer, and the input of each block added to its output",
        _norm_and_skips("layer"),
    ),
)
"""From the smallest change to the largest: of equally good ones the smaller is better."""
