"""The published rules of other tools, from their documentation, with its default thresholds.

- SageMaker Debugger, "List of Debugger built-in rules": VanishingGradient (mean |g| of a gradient
  below 1e-7), ExplodingTensor (NaN or Inf), DeadRelu (more than 50 % of a layer's units active in
  less than 1 % of the cases), SaturatedActivation (the same of inputs beyond +-9.5 of a tanh, or
  beyond -23 and 17 of a sigmoid), LossNotDecreasing (less than 0.1 % over ten steps),
  WeightUpdateRatio (above 10 or below 1e-8), AllZero (a tensor of zeros),
  PoorWeightInitialization (variances of activation inputs apart by more than 10, or the range of a
  gradient from 5 to 95 % narrower than 0.001, in the first ten steps).
- AUTOTRAINER (Zhang et al., ICSE 2021): vanishing (first/last layer's gradient below 1e-3 and the
  first below 1e-4), exploding (first/last above 70, or NaN or Inf), dying ReLU (70 % or more of a
  layer's gradients are zero). Its rules on accuracy need a validation set and are left out.

A rule tells where it fired. `CAUSES` says which findings it can mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass
class Step:
    """What the rules look at, of one training step; names in the order of the network."""

    mean_grad: dict[str, float] = field(default_factory=dict)
    """Parameter -> mean |g|."""
    zero_grad: dict[str, float] = field(default_factory=dict)
    """Parameter -> share of its gradient that is zero."""
    narrow: dict[str, float] = field(default_factory=dict)
    """Parameter -> range of its gradient from 5 to 95 %, in the first ten steps."""
    update: dict[str, float] = field(default_factory=dict)
    """Parameter -> norm of its change / norm of itself."""
    matrices: list[str] = field(default_factory=list)
    """Parameters with a gradient and more than one dimension."""
    broken: list[str] = field(default_factory=list)
    """Tensors with NaN or Inf."""
    zeros: list[str] = field(default_factory=list)
    """Tensors of zeros."""
    inactive: dict[str, float] = field(default_factory=dict)
    """ReLU -> share of its units that are active in less than 1 % of the cases."""
    saturated: dict[str, float] = field(default_factory=dict)
    """Tanh or sigmoid -> share of its units whose inputs lie beyond its ends in all but 1 %."""
    variance: dict[str, float] = field(default_factory=dict)
    """Activation -> variance of its input."""
    loss: float = math.nan


class Observer:
    """Takes down what the rules need while a network trains, by hooks of its own."""

    def __init__(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self.steps: list[Step] = []
        self._model = model
        self._now = Step()
        self._before: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._optimizers = list(optimizers)

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            if isinstance(module, nn.ReLU | nn.Tanh | nn.Sigmoid):

                def keep(m: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
                    self._activation(name, m, args[0].detach(), out.detach())

                self._hooks.append(module.register_forward_hook(keep))
        first, last = self._optimizers[0], self._optimizers[-1]
        self._hooks.append(first.register_step_pre_hook(lambda *_: self._gradients()))
        self._hooks.append(last.register_step_post_hook(lambda *_: self._updates()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def losses(self, values: dict[int, float]) -> None:
        """The loss of each step, by its number."""
        for i, step in enumerate(self.steps):
            step.loss = values.get(i, math.nan)

    def _activation(self, name: str, module: nn.Module, given: Tensor, out: Tensor) -> None:
        step = self._now
        step.variance[name] = given.float().var().item() if given.numel() > 1 else 0.0
        if not bool(torch.isfinite(out).all()):
            step.broken.append(name)
        if out.dim() < 2:
            return
        if isinstance(module, nn.ReLU):
            step.inactive[name] = (_per_unit(out > 0) < 0.01).float().mean().item()
        else:
            low, high = (-9.4999, 9.4999) if isinstance(module, nn.Tanh) else (-23.0, 16.99999)
            step.saturated[name] = (
                (_per_unit((given > low) & (given < high)) < 0.01).float().mean().item()
            )

    def _gradients(self) -> None:
        step = self._now
        for name, parameter in self._model.named_parameters():
            self._before[name] = parameter.detach().clone()
            grad = parameter.grad
            if grad is None or grad.is_sparse or not grad.numel():
                continue
            grad = grad.float()
            step.mean_grad[name] = grad.abs().mean().item()
            step.zero_grad[name] = (grad == 0).float().mean().item()
            if step.zero_grad[name] == 1:
                step.zeros.append(name)
            if not math.isfinite(step.mean_grad[name]):
                step.broken.append(name)
            elif len(self.steps) < 10:
                some = grad.flatten()[:: max(1, grad.numel() // 2**16)]
                ends = torch.quantile(some, torch.tensor([0.05, 0.95]))
                step.narrow[name] = (ends[1] - ends[0]).item()
            if grad.dim() > 1:
                step.matrices.append(name)
            if grad.dim() > 1 and not bool(parameter.detach().any()):
                step.zeros.append(name)

    def _updates(self) -> None:
        for name, parameter in self._model.named_parameters():
            if name in self._now.mean_grad and name in self._before:
                before = self._before[name].float()
                change = (parameter.detach().float() - before).norm()
                self._now.update[name] = (change / (before.norm() + 1e-9)).item()
        self.steps.append(self._now)
        self._now, self._before = Step(), {}


def _per_unit(hits: Tensor) -> Tensor:
    """Share of hits for each channel or feature."""
    return hits.transpose(0, 1).flatten(1).float().mean(1)


Rule = Callable[[list[Step]], Iterator[str]]
"""Where it fired: names of tensors and modules."""


def vanishing_gradient(steps: list[Step]) -> Iterator[str]:
    """SageMaker: the mean magnitude of a gradient is below 1e-7."""
    for step in steps:
        yield from (name for name, mean in step.mean_grad.items() if mean < 1e-7)


def exploding_tensor(steps: list[Step]) -> Iterator[str]:
    """SageMaker: NaN or Inf anywhere."""
    for step in steps:
        yield from step.broken


def dead_relu(steps: list[Step]) -> Iterator[str]:
    """SageMaker: more than half of a layer's units are hardly ever active."""
    for step in steps:
        yield from (name for name, share in step.inactive.items() if share > 0.5)


def saturated_activation(steps: list[Step]) -> Iterator[str]:
    """SageMaker: more than half of a layer's units are hardly ever between the bounds."""
    for step in steps:
        yield from (name for name, share in step.saturated.items() if share > 0.5)


def loss_not_decreasing(steps: list[Step]) -> Iterator[str]:
    """SageMaker: over ten steps the loss falls by less than 0.1 %."""
    for i in range(10, len(steps), 10):
        before, now = steps[i - 10].loss, steps[i].loss
        if now > before - 0.001 * abs(before):
            yield "loss"


def weight_update_ratio(steps: list[Step]) -> Iterator[str]:
    """SageMaker: update/weight above 10 or below 1e-8; needs an optimizer that moves."""
    for step in steps if len(steps) > 1 else []:
        yield from (name for name, ratio in step.update.items() if not 1e-8 <= ratio <= 10)


def all_zero(steps: list[Step]) -> Iterator[str]:
    """SageMaker: all elements of a tensor are zero."""
    for step in steps:
        yield from step.zeros


def poor_initialization(steps: list[Step]) -> Iterator[str]:
    """SageMaker: activation inputs of unlike variance, or a narrow gradient, in the first steps."""
    for step in steps[:10]:
        if step.variance and max(step.variance.values()) > 10 * min(step.variance.values()):
            yield max(step.variance, key=lambda name: step.variance[name])
        yield from (name for name, width in step.narrow.items() if width < 0.001)


def autotrainer_vanishing(steps: list[Step]) -> Iterator[str]:
    """AUTOTRAINER: first/last < 1e-3 and first < 1e-4."""
    for step in steps:
        name, first, last = _ends(step)
        if first < 1e-4 and first < 1e-3 * last:
            yield name


def autotrainer_exploding(steps: list[Step]) -> Iterator[str]:
    """AUTOTRAINER: first/last > 70, or a gradient that is not finite."""
    for step in steps:
        yield from (name for name in step.broken if name in step.mean_grad)
        name, first, last = _ends(step)
        if first > 70 * last:
            yield name


def autotrainer_dying(steps: list[Step]) -> Iterator[str]:
    """AUTOTRAINER: 70 % or more of the gradients of a layer are zero."""
    for step in steps:
        yield from (name for name, share in step.zero_grad.items() if share >= 0.7)


def _ends(step: Step) -> tuple[str, float, float]:
    names = step.matrices or list(step.mean_grad)
    if not names:
        return "", math.nan, math.nan
    return names[0], step.mean_grad[names[0]], step.mean_grad[names[-1]]


SAGEMAKER: dict[str, Rule] = {
    "VanishingGradient": vanishing_gradient,
    "ExplodingTensor": exploding_tensor,
    "DeadRelu": dead_relu,
    "SaturatedActivation": saturated_activation,
    "LossNotDecreasing": loss_not_decreasing,
    "WeightUpdateRatio": weight_update_ratio,
    "AllZero": all_zero,
    "PoorWeightInitialization": poor_initialization,
}
AUTOTRAINER: dict[str, Rule] = {
    "vanishing": autotrainer_vanishing,
    "exploding": autotrainer_exploding,
    "dying ReLU": autotrainer_dying,
}

_DEAD = {"dead", "dead-units", "zero-gradient", "zero-initialised", "constant-output"}
_EXPLODING = {"exploding", "exploding-forward", "exploding-backward"}

CAUSES: dict[str, set[str]] = {
    "VanishingGradient": {"vanishing", "underflow", "zero-gradient", "zero-initialised"},
    "ExplodingTensor": {"non-finite", "non-finite-loss", *_EXPLODING},
    "DeadRelu": _DEAD,
    "SaturatedActivation": {"saturation"},
    "LossNotDecreasing": {"not-learning"},
    "WeightUpdateRatio": {
        "updates-too-large", "updates-too-small", "updates-lost", "updates-fade", "not-moving",
        "learning-rate-zero", "not-in-optimizer", "clipped",
    },
    "AllZero": {*_DEAD, "zeroed-before-step"},
    "PoorWeightInitialization": {"units-alike", "odd-layer", "vanishing", *_EXPLODING},
    "vanishing": {"vanishing"},
    "exploding": {"non-finite", "updates-too-large", *_EXPLODING},
    "dying ReLU": _DEAD,
}  # fmt: skip
"""Rule -> findings and verdicts that it can mean, taken generously."""
