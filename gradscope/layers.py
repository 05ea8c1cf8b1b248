"""Which of torch's layer classes are bounded, rectifying, weighted, normalising, gated, containers.

The one place that says so: the model holds classes, a trace their names, and both ask here.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase as _BatchOrInstanceNorm
from torch.nn.modules.conv import _ConvNd

BOUNDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
    nn.Hardtanh: (-1.0, 1.0),
    nn.ReLU6: (0.0, 6.0),
    nn.Hardsigmoid: (0.0, 1.0),
}
"""Range of the activations that can saturate on both sides."""

RECTIFIERS = (nn.ReLU, nn.ReLU6)
"""Activations that are exactly zero on one side, so that a unit can die."""

SATURATING = tuple(kind for kind in BOUNDS if kind not in RECTIFIERS)
"""Activations that flatten on both sides."""

RECTIFYING = (
    *RECTIFIERS,
    nn.LeakyReLU,
    nn.PReLU,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.Hardswish,
    nn.Mish,
)
"""Activations that pass large positive values on as they are."""

SMOOTH = (nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softsign)
"""Activations with a derivative everywhere."""

WEIGHTED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
"""Layers that multiply their input by a weight and can be drawn anew."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that hold others and compute nothing."""


def names(kinds: Iterable[type[nn.Module]]) -> frozenset[str]:
    """Class names as a trace holds them."""
    return frozenset(kind.__name__ for kind in kinds)


def is_norm(type_name: str) -> bool:
    """Whether a class name is that of a normalisation, torch's own or a user's."""
    return "norm" in type_name.lower()


def is_gated(type_name: str) -> bool:
    """Whether a class name is that of a gated recurrent layer, torch's own or a user's."""
    return any(name in type_name.upper() for name in ("LSTM", "GRU"))


def is_normalisation(module: nn.Module) -> bool:
    """Whether a module normalises its input, by torch's own class tree."""
    return isinstance(module, (_BatchOrInstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))


def normalises_input(module: nn.Module) -> bool:
    """Whether a normalisation uses the statistics of the input at hand, not running ones."""
    return is_normalisation(module) and (module.training or not has_running_statistics(module))


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a normalisation uses running statistics where it is in evaluation mode."""
    return isinstance(module, _BatchOrInstanceNorm) and module.running_mean is not None


def subtracts_bias(norm: nn.Module) -> bool:
    """A per-channel constant is removed only by a mean that is taken over one channel alone."""
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels
    return isinstance(norm, _BatchOrInstanceNorm)


def has_channels(layer: nn.Module) -> bool:
    """Whether the output has one element, or one plane, for each row of the weight."""
    return isinstance(layer, _ConvNd | nn.Linear | nn.Bilinear)
