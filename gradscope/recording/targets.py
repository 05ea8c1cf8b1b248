"""What a loss compared the outputs with, worked out from the outputs and the gradient at them.

The gradient of the usual losses at the output tells the target: of a squared error it is the
difference times a constant, of a cross entropy the probabilities less the target. The value of the
loss settles the constant, and where it does not fit, nothing is claimed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.recording import reductions
from gradscope.trace.structure import Summary
from gradscope.trace.vocabulary import PASSIVE

SQUARED = (
    ("MseLossBackward0",),
    ("SubBackward0", "PowBackward0", "MeanBackward0"),
    ("SubBackward0", "PowBackward0", "SumBackward0"),
    ("RsubBackward1", "PowBackward0", "MeanBackward0"),
)
CROSS_ENTROPY = (("LogSoftmaxBackward0", "NllLossBackward0"),)
LOGISTIC = (("BinaryCrossEntropyWithLogitsBackward0",),)
BINARY = (("BinaryCrossEntropyBackward0",),)
ABSOLUTE = (
    ("SubBackward0", "AbsBackward0", "MeanBackward0"),
    ("SubBackward0", "AbsBackward0", "SumBackward0"),
    ("RsubBackward1", "AbsBackward0", "MeanBackward0"),
    ("SmoothL1LossBackward0",),
    ("HuberLossBackward0",),
)

COMPLETE, SAMPLED = 0.02, 0.3
"""By how much the loss of the rows at hand may differ from the loss, where they are all of them,
and where they are a sample."""

BOUND = 0.01
"""By how much the largest gradient of an absolute error may differ from its bound: half precision
rounds by 0.004."""


@dataclass(slots=True)
class Rows:
    """Some examples of an output, whole, and the gradient at them; on their device, no history."""

    shape: tuple[int, ...]
    stride: int
    values: Tensor
    gradient: Tensor | None = None

    @classmethod
    def of(cls, output: Tensor) -> Rows | None:
        """Take rows along the last dimension of an output; None where they are too long."""
        output = reductions.local(output)
        if output.is_complex() or not output.numel() or not output.dim():
            return None
        matrix = output.reshape(-1, 1 if output.dim() == 1 else output.shape[-1])
        if matrix.shape[1] > reductions.SAMPLE_LIMIT:
            return None
        stride = reductions.stride_for(
            matrix.shape[0], max(1, reductions.SAMPLE_LIMIT // matrix.shape[1])
        )
        return cls(tuple(output.shape), stride, matrix[::stride].clone())

    def take_gradient(self, grad: Tensor) -> None:
        """Take the same rows of the gradient."""
        grad = reductions.local(grad)
        if tuple(grad.shape) == self.shape:
            matrix = grad.reshape(-1, self.values.shape[1])
            self.gradient = matrix[:: self.stride].clone()

    def numbers(self, scale: float) -> tuple[Tensor, Tensor] | None:
        """Values and gradient in float64 on the host, without a factor; None if not all finite."""
        if self.gradient is None:
            return None
        value, grad = self.values.double().cpu(), self.gradient.double().cpu() / scale
        return (value, grad) if value.isfinite().all() and grad.isfinite().all() else None


def compared(
    operations: tuple[str, ...], rows: Rows, loss: float, scale: float
) -> tuple[tuple[Summary, ...], float]:
    """Targets in a few numbers, and the loss of the best constant prediction.

    Args:
        operations: nodes from the output to the loss, that which made the output among them.
        rows: of the output and its gradient.
        loss: its value.
        scale: factor on the gradient from loss scaling.

    Returns:
        One summary, or none where the loss is none of those known here; and the loss that the mean
        of the targets, or the frequencies of the classes, would have as prediction: NaN where
        unknown.
    """
    unknown: tuple[tuple[Summary, ...], float] = (), math.nan
    numbers = rows.numbers(scale)
    if numbers is None or not math.isfinite(loss):
        return unknown
    value, grad = numbers
    numel = math.prod(rows.shape)
    tolerance = COMPLETE if rows.stride == 1 else SAMPLED
    if _ends_in(operations, CROSS_ENTROPY):
        return (), _class_frequencies(grad)
    for patterns, invert, price in (
        (SQUARED, _of_square, _square),
        (LOGISTIC, _of_logits, _logistic),
        (BINARY, _of_probabilities, _binary),
    ):
        if not _ends_in(operations, patterns):
            continue
        for times, whole in ((numel, 1), (1, numel)):  # reduced by the mean, by the sum
            target = invert(value, grad * times)
            if abs(price(value, target).mean().item() * whole - loss) <= tolerance * abs(loss):
                constant = price(_constant(target, price), target).mean().item() * whole
                return (_summary(target, rows.shape),), constant
    return unknown


def sides(
    operations: tuple[str, ...], rows: Rows, loss: float, scale: float
) -> tuple[float, float, float] | None:
    """On which side of the outputs the targets of an absolute error lie, and how far at least.

    Its gradient tells the side alone, its value the mean distance. A smooth or Huber loss is no
    larger than the distance where its gradient has the bound of an absolute error.

    Args:
        operations: nodes from the output to the loss, that which made the output among them.
        rows: of the output and its gradient.
        loss: its value.
        scale: factor on the gradient from loss scaling.

    Returns:
        Shares of the outputs with a target above and below them; the most that the mean of the
        targets can be where those above count as negative. None where the loss is another one.
    """
    numbers = rows.numbers(scale)
    if numbers is None or not math.isfinite(loss) or not _ends_in(operations, ABSOLUTE):
        return None
    value, grad = numbers
    largest, numel = grad.abs().max().item(), math.prod(rows.shape)
    for times, whole in ((numel, 1), (1, numel)):  # reduced by the mean, by the sum
        if abs(largest * times - 1) <= BOUND:
            share = 1 - (COMPLETE if rows.stride == 1 else SAMPLED)
            signed = (grad.sign() * value).mean().item() - share * loss / whole
            return (grad < 0).double().mean().item(), (grad > 0).double().mean().item(), signed
    return None


def _ends_in(operations: tuple[str, ...], patterns: tuple[tuple[str, ...], ...]) -> bool:
    """Whether a loss of some kind stands last, but for what only moves elements about."""
    told = tuple(name for name in operations if name not in PASSIVE)
    return any(told[-len(pattern) :] == pattern for pattern in patterns)


def _square(value: Tensor, target: Tensor) -> Tensor:
    return (value - target).square()


def _of_square(value: Tensor, grad: Tensor) -> Tensor:
    return value - grad / 2


def _logistic(value: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(value, target, reduction="none")


def _of_logits(value: Tensor, grad: Tensor) -> Tensor:
    return value.sigmoid() - grad


def _binary(value: Tensor, target: Tensor) -> Tensor:
    logs = [x.clamp(min=1e-300).log().clamp(min=-100) for x in (value, 1 - value)]
    return -(target * logs[0] + (1 - target) * logs[1])


def _of_probabilities(value: Tensor, grad: Tensor) -> Tensor:
    return value - grad * value * (1 - value)


def _constant(target: Tensor, price: object) -> Tensor:
    """The best prediction that is the same for all examples."""
    mean = target.mean(0, keepdim=True)
    if price is _logistic:
        mean = mean.clamp(1e-6, 1 - 1e-6).logit()
    return mean.expand_as(target)


def _class_frequencies(grad: Tensor) -> float:
    """Entropy of the classes: in each row only the gradient at the class itself is negative.

    With the correction of Miller and Madow (1955) for few examples, at most that of even classes.
    """
    classes = grad.shape[1]
    hit = grad[(grad < 0).any(1)]  # an ignored target has no gradient
    if len(hit) < 2 or not bool(((hit < 0).sum(1) == 1).all()):
        return math.nan
    share = torch.bincount(hit.argmin(1), minlength=classes) / len(hit)
    entropy = float(torch.special.entr(share).sum())
    return min(entropy + (int((share > 0).sum()) - 1) / (2 * len(hit)), math.log(classes))


def _summary(target: Tensor, shape: tuple[int, ...]) -> Summary:
    return Summary(
        "target",
        shape,
        "",
        target.mean().item(),
        target.std(correction=0).item(),
        target.min().item(),
        target.max().item(),
    )
