"""How much gradient a tensor carries, and what one operation makes of it going backwards.

What is carried is the expected squared norm, with its spread over channels and over positions kept
as two separate maps: borders of padded convolutions, and channels that a normalisation divides by
different variances, are where an even spread would mislead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Mix = Callable[[Tensor], Tensor]
"""From the share of each channel, or position, of the output to that of the input; linear. What
its sum loses or gains is a factor on the squared norm."""


@dataclass(frozen=True, slots=True)
class Flux:
    """The squared norm of the gradient with respect to a tensor."""

    log_square: float = -math.inf
    """ln of the squared norm; -inf: no gradient."""
    channels: Tensor | None = None
    """Share per channel (dimension 1), float32, mean 1; None: even."""
    positions: Tensor | None = None
    """Share per position (dimensions 2 on), float32, mean 1; None: even."""

    def __add__(self, other: Flux) -> Flux:
        """Gradients of several paths are independent: their squared norms add."""
        if -math.inf in (self.log_square, other.log_square):
            return self if other.log_square == -math.inf else other
        top = max(self.log_square, other.log_square)
        own = math.exp(self.log_square - top)
        new = math.exp(other.log_square - top)
        return Flux(
            top + math.log(own + new),
            _mean(self.channels, other.channels, own, new),
            _mean(self.positions, other.positions, own, new),
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """What one node of the autograd graph does to the gradient."""

    factors: tuple[float, ...]
    """One per input: |gradient of the input|^2 / |gradient of the output|^2, spread evenly."""
    label: str = ""
    """Kind of operation, for people; empty for one that only moves elements about."""
    width: float = math.inf
    """Units over which random weights average: spread at finite width."""
    keeps_positions: bool = False
    """Input and output have the same positions."""
    keeps_channels: bool = False
    """Input and output have the same channels."""
    sizes: tuple[int, ...] = ()
    """Positions of the output, where `spread` is given."""
    spread: Mix | None = None
    """For convolutions, over positions."""
    mixes: tuple[Mix, ...] = ()
    """One per input, over channels; then they stand in place of the factor, where the share per
    channel is known or `mixes_evenly` is false."""
    mixes_evenly: bool = True
    """An even share per channel leaves an even one behind."""
    channels: int = 0
    """Channels of the output, where `mixes` are given."""
    reason: str = ""
    """Why no result applies; the factors are then a guess of 1."""

    def back(self, index: int, flux: Flux) -> Flux:
        """The gradient of one input, from that of the output."""
        if self.factors[index] == 0.0:
            return Flux()
        channels = flux.channels if self.keeps_channels else None
        log = math.log(self.factors[index])
        if self.mixes and (flux.channels is not None or not self.mixes_evenly):
            log, channels = _mixed(self.mixes[index], flux.channels, (self.channels,))
        positions = flux.positions if self.keeps_positions else None
        if self.spread is not None:
            lost, positions = _mixed(self.spread, flux.positions, self.sizes)
            log += lost
        return Flux(flux.log_square + log, channels, positions) if log > -math.inf else Flux()


def _mixed(mix: Mix, share: Tensor | None, size: tuple[int, ...]) -> tuple[float, Tensor | None]:
    """The log of the factor that a mix is for this share, and the share behind it."""
    if share is None or share.shape != size:
        share = torch.ones(size, dtype=torch.float32, device="cpu")
    behind = mix(share)
    factor = float(behind.sum() / share.sum())
    if not factor > 0.0:
        return -math.inf, None
    return math.log(factor), behind / behind.mean()


def _mean(a: Tensor | None, b: Tensor | None, own: float, new: float) -> Tensor | None:
    """Mean of two shares by weight; even where one is and the other is of no use."""
    if a is None and b is None:
        return None
    if a is not None and b is not None and a.shape != b.shape:
        return None
    first: Tensor | float = 1.0 if a is None else a
    second: Tensor | float = 1.0 if b is None else b
    return torch.as_tensor((own * first + new * second) / (own + new), device="cpu")
