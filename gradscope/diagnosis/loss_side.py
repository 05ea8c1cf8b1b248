"""The side of the loss: its value, what made the output, what chance gives."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case
from gradscope.trace.vocabulary import PASSIVE

RANGE = {
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Hardtanh": (-1.0, 1.0),
    "Relu": (0.0, math.inf),
    "Softplus": (0.0, math.inf),
    "Exp": (0.0, math.inf),
}
"""What operations that can make an output are able to give."""

CROSS_ENTROPY = ("LogSoftmax", "NllLoss"), ("LogSoftmax", "NllLoss2D")


def operations(case: Case) -> tuple[str, ...]:
    """What made the output of the network and what the loss did with it, as ``LogSoftmax``.

    Empty where the loss was not seen, or was computed from several outputs: then what follows what
    is not known.
    """
    side = case.structure.loss
    if side is None or side.outputs != 1:
        return ()
    return tuple(n.partition("Backward")[0] for n in side.operations if n not in PASSIVE)


def output_module(case: Case) -> str:
    """The module that made the output of the network; empty where that is the network itself."""
    return case.modules[""].output if "" in case.modules else ""


def output_name(case: Case) -> str:
    """The same, as it is told."""
    return output_module(case) or "(root)"


def chance(case: Case) -> float:
    """The loss of a prediction that is the same for all examples; NaN where it is not known."""
    side = case.structure.loss
    if side is None:
        return math.nan
    if math.isfinite(side.constant):
        return side.constant
    shape = output_shape(case)
    if operations(case)[-2:] == CROSS_ENTROPY[0] and len(shape) > 1:
        return math.log(shape[-1])
    if operations(case)[-2:] == CROSS_ENTROPY[1] and len(shape) > 2:
        return math.log(shape[1])
    return math.nan


def output_shape(case: Case) -> tuple[int, ...]:
    """Shape of the output of the network; empty where unknown."""
    name = output_module(case)
    shapes = [t.shape for _, t in case.columns("activation") if t.module == name]
    return shapes[-1] if shapes else ()


def logit_sizes(case: Case) -> Tensor:
    """The rms of the output at the recorded steps, where a softmax or sigmoid is taken of it.

    Of a network that ends in log_softmax they are those of the logarithms, which are as large.
    Shape (<= steps,); empty where it does not, or where that is not known.
    """
    read = {"LogSoftmax", "BinaryCrossEntropyWithLogits"} & {*operations(case)[:2]}
    name = output_module(case)
    columns = [i for i, tensor in case.columns("activation") if tensor.module == name]
    return case.values("rms", columns[0]) if read and columns else torch.empty(0)


def losses(case: Case) -> list[float]:
    """The finite values of the loss over the recorded steps."""
    return [s.loss for s in case.trace.steps if s.loss is not None and math.isfinite(s.loss)]


def hardly_learned(case: Case) -> bool:
    """Whether the loss is known to have stayed near that of a constant prediction."""
    known, level = losses(case), chance(case)
    third = len(known) // 3
    return (
        len(known) >= limits.MIN_LOSSES
        and level > 0
        and statistics.median(known[-third:]) > limits.HARDLY_LEARNED * level
    )
