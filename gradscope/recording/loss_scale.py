"""What the recorder needs to know of a GradScaler."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscope.recording.buffer import META, StatisticsBuffer


class LossScale:
    """What the recorder needs to know of a GradScaler, without making the host wait for it."""

    def __init__(self, scaler: torch.amp.GradScaler | None, buffer: StatisticsBuffer) -> None:
        self.active = scaler is not None and scaler.is_enabled()
        self._scaler = scaler
        self._buffer = buffer
        self._version: int | None = None

    def begin(self) -> None:
        """Forget the last step."""
        self._version = None

    def scale(self) -> Tensor | None:
        """The loss scale, 0-d on its device; None without a scaler or before its first use."""
        return getattr(self._scaler, "_scale", None) if self.active else None

    def remember(self) -> None:
        """Note the loss scale of this backward pass, and that it was not updated since."""
        scale = self.scale()
        if scale is not None:
            self._buffer.cell(scale.device, META, "norm").copy_(scale)
            self._version = scale._version  # tells an update without synchronising

    def updated(self) -> bool:
        """Whether `scaler.update()` ran since the backward pass."""
        scale = self.scale()
        if scale is None or self._version is None:
            return False
        return scale._version != self._version

    def left_to(self, optimizer: Optimizer) -> Tensor | None:
        """The scale that a fused optimizer divides by itself; notes whether it will skip."""
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):
            self._buffer.cell(found_inf.device, META, "zero").copy_(found_inf)
        if not isinstance(scale, Tensor):
            return None
        self._buffer.cell(scale.device, META, "norm").copy_(scale)
        return scale
