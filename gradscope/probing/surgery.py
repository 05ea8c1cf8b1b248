"""Changes to a network that leave its inputs and outputs as they are: what remedies are made of.

Every function changes the module it is given, in place, and raises `NotApplicable` with the reason
where there is nothing to change. Give them a deep copy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradscope.layers import SMOOTH, WEIGHTED, is_normalisation
from gradscope.theory.meanfield import critical_weight_variance
from gradscope.trace.table import Trace


class NotApplicable(Exception):  # noqa: N818 - a fact about the network, not an error
    """A remedy does not fit this network; the message says why."""


class Residual(nn.Module):
    """x + scale * f(x), or for a module that adds its input already, x + scale * (f(x) - x)."""

    def __init__(self, inner: nn.Module, scale: float, *, has_skip: bool) -> None:
        super().__init__()
        self.inner = inner
        self.scale = scale
        self.has_skip = has_skip

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped module on the same arguments."""
        y = self.inner(x, *args, **kwargs)
        return x + self.scale * (y - x) if self.has_skip else x + self.scale * y


def weighted_layers(model: nn.Module, trace: Trace) -> dict[str, nn.Module]:
    """Convolutions and linear layers that ran, by name, in execution order."""
    modules = dict(model.named_modules())
    ran = (info.name for info in trace.structure.modules if info.calls)
    return {name: modules[name] for name in ran if isinstance(modules.get(name), WEIGHTED)}


def initialise(model: nn.Module, trace: Trace, draw: Callable[[nn.Module, Tensor], Any]) -> None:
    """Draw the weights of all convolutions and linear layers anew; biases become zero."""
    layers = weighted_layers(model, trace)
    if not layers:
        raise NotApplicable("no convolution or linear layer ran")
    if len(layers.keys() - _normalised(model, trace)) <= 1 < len(layers):
        raise NotApplicable("a normalisation behind every layer cancels the scale of its weights")
    with torch.no_grad():
        for layer in layers.values():
            draw(layer, _weight(layer))
            if isinstance(layer.bias, Tensor):
                layer.bias.zero_()


def kaiming(layer: nn.Module, weight: Tensor) -> None:
    """Var w = 2 / fan_in (1502.01852)."""
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    mode: Literal["fan_in", "fan_out"] = "fan_out" if transposed else "fan_in"
    nn.init.kaiming_normal_(weight, mode=mode, nonlinearity="relu")


def xavier(layer: nn.Module, weight: Tensor) -> None:
    """Var w = 2 / (fan_in + fan_out) (Glorot & Bengio 2010)."""
    del layer
    nn.init.xavier_normal_(weight)


def orthogonal(gain: float) -> Callable[[nn.Module, Tensor], None]:
    """Orthogonal weights (1312.6120) times a gain."""

    def draw(layer: nn.Module, weight: Tensor) -> None:
        del layer
        nn.init.orthogonal_(weight, gain)

    return draw


def critical(model: nn.Module) -> Callable[[nn.Module, Tensor], None]:
    """Var w = sw^2 / fan_in with the sw^2 at which chi_1 of the network's activation is 1."""
    found = {type(m): m for m in model.modules() if isinstance(m, SMOOTH)}
    if len(found) != 1:
        raise NotApplicable(
            "no smooth activation module" if not found else "several kinds of activation modules"
        )
    variance = critical_weight_variance(next(iter(found.values())))
    if not variance < 100.0:
        raise NotApplicable("its activation has no edge of chaos at a usable weight variance")

    def draw(layer: nn.Module, weight: Tensor) -> None:
        del layer
        nn.init.normal_(weight, std=math.sqrt(variance / weight[0].numel()))

    return draw


def unit_variance(model: nn.Module, trace: Trace, run: Callable[[nn.Module], Any]) -> None:
    """Scale orthogonal weights until each layer's output has variance 1 (1511.06422).

    One forward pass: each layer is rescaled in its own forward hook, before the next one runs.
    """
    initialise(model, trace, orthogonal(1.0))
    seen: set[str] = set()
    handles = []

    def rescale(name: str) -> Callable[..., Tensor | None]:
        def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            del args
            if name in seen:
                return None
            seen.add(name)
            std = float(output.detach().float().std())
            if not 0.0 < std < math.inf:
                return None
            with torch.no_grad():
                _weight(layer).div_(std)
            return output / std

        return hook

    try:
        for name, layer in weighted_layers(model, trace).items():
            handles.append(layer.register_forward_hook(rescale(name)))
        with torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()


def orthogonal_recurrence(model: nn.Module, trace: Trace) -> None:
    """Orthogonal hidden-to-hidden weights of recurrent layers, gate by gate (1504.00941)."""
    del trace
    found = False
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.RNNBase | nn.RNNCellBase):
                for name, weight in module.named_parameters(recurse=False):
                    if name.startswith("weight_hh"):
                        found = True
                        for gate in torch.split(weight, weight.shape[1]):
                            nn.init.orthogonal_(gate)
    if not found:
        raise NotApplicable("no recurrent layer")


def normalise(model: nn.Module, trace: Trace, *, over: str) -> None:
    """Put a normalisation behind each convolution and linear layer that has none, but the last.

    Args:
        model: is changed.
        trace: a probe of it: shapes, and what is normalised already.
        over: ``batch`` or ``layer``.
    """
    shapes = _output_shapes(trace)
    layers = weighted_layers(model, trace)
    last = next(reversed(layers), None)
    normalised = _normalised(model, trace)
    done = 0
    for name, layer in layers.items():
        if name == last or name in normalised:
            continue
        shape = shapes.get(name, ())
        norm = _batch_norm(layer, shape) if over == "batch" else _layer_norm(layer, shape)
        if norm is not None:
            norm.to(_weight(layer).device, _weight(layer).dtype)
            _replace(model, name, nn.Sequential(layer, norm))
            done += 1
    if not done:
        raise NotApplicable(
            "every layer but the last has a normalisation behind it"
            if len(layers) > 1
            else "fewer than two convolutions or linear layers ran"
        )


def _batch_norm(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module | None:
    if isinstance(layer, nn.Linear):
        return nn.BatchNorm1d(shape[1]) if len(shape) == 2 else None
    kinds = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    return kinds[len(shape)](shape[1]) if len(shape) in kinds else None


def _layer_norm(layer: nn.Module, shape: tuple[int, ...]) -> nn.Module | None:
    if isinstance(layer, nn.Linear):
        return nn.LayerNorm(shape[-1]) if shape else None
    return nn.GroupNorm(1, shape[1]) if len(shape) > 2 else None


def add_skips(model: nn.Module, skips: Iterable[str], scale: float = 1.0) -> None:
    """Wrap modules as x + scale * f(x)."""
    names = list(skips)
    if not names:
        raise NotApplicable("no block without a skip keeps the shape of its input")
    for name in names:
        _replace(model, name, Residual(model.get_submodule(name), scale, has_skip=False))


def scale_residuals(model: nn.Module, residuals: Iterable[str]) -> None:
    """Scale the branch of each residual block by 1 / sqrt(number of blocks) (1901.09321)."""
    names = list(residuals)
    if len(names) < 2:
        raise NotApplicable("fewer than two residual blocks keep the shape of their input")
    for name in names:
        inner = model.get_submodule(name)
        _replace(model, name, Residual(inner, len(names) ** -0.5, has_skip=True))


def swap_activations(
    model: nn.Module, old: tuple[type[nn.Module], ...], new: Callable[[], nn.Module]
) -> None:
    """Replace activation modules of some types; activations called as functions stay."""
    names = [name for name, module in model.named_modules() if type(module) in old and name]
    if not names:
        listed = ", ".join(kind.__name__ for kind in old)
        raise NotApplicable(f"no activation module of type {listed}")
    for name in names:
        _replace(model, name, new())


def _normalised(model: nn.Module, trace: Trace) -> set[str]:
    """Modules after which a normalisation is the next to run."""
    modules = dict(model.named_modules())
    ran = [info.name for info in trace.structure.modules if info.calls and info.name in modules]
    leaves = [name for name in ran if not any(True for _ in modules[name].children())]
    pairs = itertools.pairwise(leaves)
    return {before for before, after in pairs if is_normalisation(modules[after])}


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise NotApplicable("a layer computes its weight from other parameters")
    return weight


def _output_shapes(trace: Trace) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in trace.tensors:
        if tensor.kind == "activation" and tensor.output == 0:
            shapes.setdefault(tensor.module, tensor.shape)
    return shapes


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
