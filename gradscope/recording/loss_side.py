"""LossReader: the value that a backward pass began with, and what lies between it and the network.

Nothing is attached to the loss. When the gradient reaches an output of the network, the call of
`backward` that made it still stands in a Python frame, and that holds the loss: its value, and its
graph, though not what the nodes had saved, as they have run. What the loss compared the outputs
with is worked out from the outputs and the gradient at them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from gradscope.recording import reductions
from gradscope.recording.buffer import META, StatisticsBuffer
from gradscope.recording.nodes import ancestors, name_of
from gradscope.recording.targets import Rows, compared, sides
from gradscope.trace.structure import LossSide
from gradscope.trace.table import RecordedStep
from gradscope.trace.vocabulary import PASSIVE

MOST_OPERATIONS = 200
"""Nodes between the outputs and the loss that are named; of more, the first and last hundred."""

_STARTS: tuple[tuple[CodeType, str], ...] = (
    (torch.autograd.backward.__code__, "tensors"),
    (torch.autograd.grad.__code__, "outputs"),
)
"""Where a backward pass begins, and the local variable that holds what it began with."""


@dataclass(slots=True)
class _First:
    """What is known of the loss of the first step in which it was seen."""

    step: int
    operations: tuple[str, ...]
    outputs: int
    stretched: bool
    rows: Rows | None


class LossReader:
    """The value of the loss at each recorded step, its operations and targets at the first."""

    def __init__(self, buffer: StatisticsBuffer) -> None:
        self._buffer = buffer
        self._first: _First | None = None
        self._rows: Rows | None = None
        self._step = 0
        self._seen = False

    def begin(self, step: int) -> None:
        """Forget the last step."""
        self._step = step
        self._seen = False
        self._rows = None

    def outputs(self, roots: Sequence[Tensor]) -> None:
        """Keep a sample of what the network returned, until the gradient at it comes."""
        if self._first is None and len(roots) == 1:
            self._rows = Rows.of(roots[0])

    def gradient(
        self, grad: Tensor, roots: Sequence[Any], calls: Callable[[], Iterable[Any]]
    ) -> None:
        """Look for the loss; called with the first gradient at an output of a backward pass.

        Args:
            grad: the gradient at that output.
            roots: autograd nodes of what the network returned.
            calls: gives the nodes of all outputs of modules.
        """
        if self._seen:
            return
        loss = _running()
        if loss is None:
            return
        self._seen = True
        value = reductions.local(loss).reshape(())
        self._buffer.cell(value.device, META, "abs_max").copy_(value)
        self._buffer.numel[META] = 1
        if self._first is None:
            rows, self._rows = self._rows, None
            if rows is not None:
                rows.take_gradient(grad)
            order, ends = _between(loss.grad_fn, roots, calls)
            operations, outputs = _operations(order, ends)
            self._first = _First(self._step, operations, outputs, _stretches(order, ends), rows)

    def side(self, steps: Iterable[RecordedStep], *, scaled: bool) -> LossSide | None:
        """What was learned, for the trace; waits for the device.

        Args:
            steps: what was recorded, with the values of the loss.
            scaled: whether a GradScaler multiplied the loss.
        """
        first = self._first
        if first is None:
            return None
        operations = first.operations
        if scaled and operations and operations[-1] == "MulBackward0":
            operations = operations[:-1]
        side = LossSide(operations, outputs=first.outputs, stretched=first.stretched)
        step = next((s for s in steps if s.step == first.step), None)
        if step is None or step.loss is None or first.rows is None:
            return side
        targets, constant = compared(operations, first.rows, step.loss, step.loss_scale)
        around = sides(operations, first.rows, step.loss, step.loss_scale)
        return dataclasses.replace(side, targets=targets, constant=constant, sides=around)


def _running() -> Tensor | None:
    """The one number that the running backward pass began with; None where that is not known.

    On a CPU a hook runs in the thread that called backward, on a GPU in another one.
    """
    found = _outermost(sys._getframe())
    if found is None:
        starts = [_outermost(frame) for frame in sys._current_frames().values()]
        running = [start for start in starts if start is not None]
        found = running[0] if len(running) == 1 else None
    if found is None:
        return None
    frame, name = found
    began = frame.f_locals.get(name)
    tensors = (began,) if isinstance(began, Tensor) else tuple(began or ())
    if len(tensors) != 1 or not isinstance(tensors[0], Tensor) or tensors[0].numel() != 1:
        return None
    if name == "outputs" and frame.f_locals.get("create_graph"):  # a penalty on a gradient
        return None
    return tensors[0] if tensors[0].grad_fn is not None else None


def _outermost(frame: FrameType | None) -> tuple[FrameType, str] | None:
    """The outermost call that began a backward pass; those inside it are of checkpoints."""
    found = None
    while frame is not None:
        for code, name in _STARTS:
            if frame.f_code is code:
                found = frame, name
        frame = frame.f_back
    return found


def _between(
    loss: Any, roots: Sequence[Any], calls: Callable[[], Iterable[Any]]
) -> tuple[list[Any], set[Any]]:
    """Nodes from the outputs of the network to the loss, and which of them made the outputs."""
    ends = {node for node in roots if node is not None and node is not loss}
    if not ends:  # the network computes its loss itself
        ends = {node for node in calls() if node is not None and node is not loss}
    order, reaching = [], set()
    for node, inputs in ancestors(loss, ends):
        if node in ends or any(each in reaching for each in inputs):
            reaching.add(node)
            order.append(node)
    return order, ends


def _operations(order: Sequence[Any], ends: set[Any]) -> tuple[tuple[str, ...], int]:
    """Names of the nodes from the outputs to the loss, and how many outputs those are."""
    read = [node for node in order if node in ends]
    made = [name for node in read for name in _maker(node)]
    names = (*made, *(name_of(node) for node in order if node not in ends))
    half = MOST_OPERATIONS // 2
    if len(names) > MOST_OPERATIONS:
        names = (*names[:half], *names[-half:])
    return names, len(read)


def _stretches(order: Sequence[Any], ends: set[Any]) -> bool:
    """Whether one number for each of n examples met n others: (n,) or (n, 1) became (n, n).

    Where both sides come from the outputs, pairs of examples are meant.
    """
    inside, found = set(order), False
    for node in order:
        inputs = [(n, i) for n, i in node.next_functions if n in inside]
        if node in ends or not name_of(node).startswith(("Expand", "Sub", "Rsub")):
            continue
        shape = tuple(node._input_metadata[0].shape)
        if len(inputs) > 1 and shape[:1] == shape[1:]:
            return False
        given = [tuple(n._input_metadata[i].shape) for n, i in inputs]
        n = shape[0] if shape else 0
        found |= n > 1 and shape == (n, n) and given in ([(n,)], [(n, 1)])
    return found


def _maker(node: Any) -> list[str]:
    """The operation that made an output, and what moved its elements about since."""
    names: list[str] = []
    while node is not None and not hasattr(node, "variable"):
        names.append(name_of(node))
        if names[-1] not in PASSIVE or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return names[::-1]
