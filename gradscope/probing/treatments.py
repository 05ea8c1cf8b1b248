"""Every change that is tried on a sick network, from the smallest to the largest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from gradscope.layers import RECTIFIERS, SATURATING
from gradscope.probing.patient import Patient
from gradscope.probing.surgery import (
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


@dataclass(frozen=True)
class Remedy:
    """One change, in the order of how much of the network it touches."""

    name: str
    change: str
    apply: Callable[[nn.Module, Patient], None]


def _init(draw: Callable[[nn.Module, Tensor], Any]) -> Callable[[nn.Module, Patient], None]:
    return lambda model, patient: initialise(model, patient.trace, draw)


def _critical(model: nn.Module, patient: Patient) -> None:
    initialise(model, patient.trace, critical(model))


def _lsuv(model: nn.Module, patient: Patient) -> None:
    unit_variance(model, patient.trace, patient.run)


def _swap(
    old: tuple[type[nn.Module], ...], new: Callable[[], nn.Module]
) -> Callable[[nn.Module, Patient], None]:
    def apply(model: nn.Module, patient: Patient) -> None:
        swap_activations(model, old, new)
        initialise(model, patient.trace, kaiming)

    return apply


def _norm(over: str) -> Callable[[nn.Module, Patient], None]:
    return lambda model, patient: normalise(model, patient.trace, over=over)


def _skips(model: nn.Module, patient: Patient) -> None:
    add_skips(model, patient.skippable)


def _norm_and_skips(over: str) -> Callable[[nn.Module, Patient], None]:
    def apply(model: nn.Module, patient: Patient) -> None:
        normalise(model, patient.trace, over=over)
        add_skips(model, patient.skippable)

    return apply


def _scaled_skips(model: nn.Module, patient: Patient) -> None:
    initialise(model, patient.trace, kaiming)
    add_skips(model, patient.skippable, scale=max(len(patient.skippable), 1) ** -0.5)


AS_IT_IS = Remedy("as it is", "change nothing", lambda _model, _patient: None)


REMEDIES = (
    Remedy(
        "Kaiming initialisation",
        "draw all weights with Var w = 2 / fan_in, biases zero: nn.init.kaiming_normal_",
        _init(kaiming),
    ),
    Remedy(
        "Xavier initialisation",
        "draw all weights with Var w = 2 / (fan_in + fan_out), biases zero: nn.init.xavier_normal_",
        _init(xavier),
    ),
    Remedy(
        "critical initialisation",
        "draw all weights with the variance at which chi_1 of the activation is 1",
        _critical,
    ),
    Remedy(
        "orthogonal initialisation",
        "draw all weights orthogonal with gain sqrt(2): nn.init.orthogonal_",
        _init(orthogonal(math.sqrt(2.0))),
    ),
    Remedy(
        "orthogonal recurrence",
        "draw the hidden-to-hidden weights orthogonal: nn.init.orthogonal_",
        lambda model, patient: orthogonal_recurrence(model, patient.trace),
    ),
    Remedy(
        "unit-variance initialisation",
        "scale orthogonal weights until every layer's output has variance 1 on a batch (LSUV)",
        _lsuv,
    ),
    Remedy(
        "ReLU for saturating activations",
        "replace sigmoid, tanh and the like by nn.ReLU, with Kaiming initialisation",
        _swap(SATURATING, nn.ReLU),
    ),
    Remedy(
        "leaky ReLU",
        "replace nn.ReLU by nn.LeakyReLU(0.1), with Kaiming initialisation",
        _swap(RECTIFIERS, partial(nn.LeakyReLU, 0.1)),
    ),
    Remedy(
        "batch norm",
        "put a batch norm behind each convolution and linear layer but the last",
        _norm("batch"),
    ),
    Remedy(
        "layer norm",
        "put a layer norm behind each linear layer, a group norm behind each convolution",
        _norm("layer"),
    ),
    Remedy("skips", "add the input of each block to its output where the shapes fit", _skips),
    Remedy(
        "scaled residual branches",
        "scale the branch of each residual block by 1 / sqrt(number of blocks)",
        lambda model, patient: scale_residuals(model, patient.residual),
    ),
    Remedy(
        "Kaiming initialisation + scaled skips",
        "x + f(x) / sqrt(number of blocks) for each block where the shapes fit, weights by Kaiming",
        _scaled_skips,
    ),
    Remedy(
        "batch norm + skips",
        "batch norm behind each layer, and the input of each block added to its output",
        _norm_and_skips("batch"),
    ),
    Remedy(
        "layer norm + skips",
        "layer norm behind each layer, and the input of each block added to its output",
        _norm_and_skips("layer"),
    ),
)
"""From the smallest change to the largest: of equally good ones the smaller is better."""
