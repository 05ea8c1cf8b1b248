"""ThroughTime: the flow of the gradient through the steps of time of fused recurrent layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.eligible import MAX_CALLS
from gradscope.recording.gradient_hooks import GradientHooks
from gradscope.recording.guard import Guard
from gradscope.trace.table import TIME, RecordedTensor

_FUSED = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
"""What is known to leave its input alone."""


class ThroughTime:
    """Reads the gradient at the input of a fused recurrent layer, one step of time at a time."""

    def __init__(
        self, buffer: StatisticsBuffer, guard: Guard, hooks: GradientHooks, gradients: set[int]
    ) -> None:
        self._buffer = buffer
        self._guard = guard
        self._hooks = hooks
        self._gradients = gradients

    def lend(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Inputs for a fused recurrent layer that take a gradient, so that time can be seen.

        The tensor handed on is a new one on the same memory: no number changes, and the caller's
        own tensor stays without a gradient. The output must need one anyway.
        """
        trained = any(p.requires_grad for p in module.parameters())
        if not trained or not args or type(module).forward not in _FUSED:
            return args
        sequence = args[0]
        fit = isinstance(sequence, Tensor) and sequence.is_floating_point()
        if not fit or sequence.requires_grad or not torch.is_grad_enabled():
            return args
        return (sequence.detach().requires_grad_(), *args[1:])

    def take(self, name: str, module: nn.RNNBase, args: tuple[Any, ...], position: int) -> None:
        """The flow through time of a fused recurrent layer shows at its input, step by step."""
        sequence = args[0] if args else None
        if not isinstance(sequence, Tensor) or not sequence.requires_grad or sequence.dim() != 3:
            return
        time = 1 if module.batch_first else 0
        length = sequence.shape[time]
        stride = -(-length // MAX_CALLS)
        shape = tuple(n for d, n in enumerate(sequence.shape) if d != time)
        columns = [
            self._buffer.column(
                RecordedTensor("activation_grad", name, "", position, t, TIME, shape)
            )
            for t in range(0, length, stride)
        ]
        self._gradients.update(columns)

        def measure(grad: Tensor) -> None:
            others = [d for d in range(3) if d != time]
            norms = torch.linalg.vector_norm(grad.detach(), dim=others, dtype=torch.float32)
            self._buffer.put(grad.device, "norm", columns, norms[::stride])
            for column in columns:
                self._buffer.numel[column] = grad.numel() // length

        self._hooks.at(sequence, self._guard.wrap(f"at the gradient in time of '{name}'", measure))
