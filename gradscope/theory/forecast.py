"""What mean-field theory predicts for a network: the backward factor per block.

The prediction needs a forward pass only. It walks the autograd graph of the outputs backwards and
carries the *squared norm* of the gradient by the rules of `operators`, adding where branches meet.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from gradscope.nested import tensors_in
from gradscope.theory.flux import Flux, Operation
from gradscope.theory.meanfield import finite_width
from gradscope.theory.operators.table import read_operation
from gradscope.trace.structure import Block
from gradscope.trace.table import Prediction

_LISTED = 3


class _Place(NamedTuple):
    """A tensor in the graph: what made it, and which of its outputs it is."""

    node: Any
    output: int


@dataclass(frozen=True, slots=True)
class _Passed:
    """What was met on the way back, in the order of computation."""

    sequence: int
    operation: Operation


class Forecast:
    """Notes module outputs in a forward pass, then predicts the gradient with respect to each.

    A context manager around the forward pass; call `read` before the graph is freed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._leaves = {n for n, m in model.named_modules() if not any(True for _ in m.children())}
        self._calls: Counter[str] = Counter()
        self._places: dict[tuple[str, int], _Place] = {}
        self._log_square: dict[tuple[str, int], float] = {}
        self._sequence: dict[tuple[str, int], int] = {}
        self._passed: list[_Passed] = []
        self._hook: RemovableHandle | None = None

    def __enter__(self) -> Self:
        self._hook = register_module_forward_hook(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._places.clear()

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        del args
        name = self._names.get(id(module))
        if name is None:
            return
        key = (name, self._calls[name])
        self._calls[name] += 1
        tensors = tensors_in(output)
        if tensors and tensors[0].grad_fn is not None:
            self._places[key] = _Place(tensors[0].grad_fn, tensors[0].output_nr)

    def read(self, outputs: Any) -> None:
        """Walk the graph back from the outputs; every element weighs the same.

        Args:
            outputs: what the model returned, or the loss.
        """
        arrived = _walk_back(outputs, self._passed)
        for key, place in self._places.items():
            state = arrived.get((place.node, place.output))
            self._log_square[key] = -math.inf if state is None else state.log_square
            self._sequence[key] = place.node._sequence_nr()  # noqa: SLF001 - the order of computation, no public name
        self._passed.sort(key=lambda p: p.sequence)
        self._places.clear()

    def predictions(self, blocks: Sequence[Block] | None = None) -> tuple[Prediction, ...]:
        """One prediction per block; see `predict`."""
        if blocks is None:
            keys = [key for key in self._log_square if key[0] in self._leaves]
            blocks = [
                Block(name + (f"[{call}]" if call else ""), "", (name,), name, call, is_cut=True)
                for name, call in keys
            ]
        # As gradient_flow() does: along the trunk, or where there is none, block by block.
        trunk = 2 * sum(block.is_cut for block in blocks) >= len(blocks)
        found = []
        before: dict[bool, tuple[str, int]] = {}
        for block in blocks:
            key = (block.output, block.call)
            on_trunk = trunk and block.is_cut
            found.append(self._prediction(block.name, key, before.get(on_trunk)))
            if self._log_square.get(key, -math.inf) > -math.inf:
                before[False] = key
                if on_trunk:
                    before[True] = key
        return tuple(found)

    def _prediction(
        self, name: str, key: tuple[str, int], before: tuple[str, int] | None
    ) -> Prediction:
        here = self._log_square.get(key)
        if here is None or here == -math.inf:
            return Prediction(name, math.nan, reason="no gradient reaches its output")
        if before is None:
            return Prediction(name, math.nan, reason="first block: nothing before it to compare")
        between = self._between(self._sequence[before], self._sequence[key])
        reasons = Counter(o.reason for o in between if o.reason)
        if reasons:
            return Prediction(name, math.nan, reason="; ".join(list(reasons)[:_LISTED]))
        spread = finite_width(o.width for o in between if o.width < math.inf)
        chi = math.exp((self._log_square[before] - here) / 2.0)
        labels = Counter(o.label for o in between if o.label)
        listed = ", ".join(f"{count} {label}" for label, count in labels.items())
        return Prediction(name, chi, math.sqrt(spread.variance) / 2.0, f"mean field: {listed}")

    def _between(self, start: int, end: int) -> list[Operation]:
        return [p.operation for p in self._passed if start < p.sequence <= end]


def _walk_back(outputs: Any, passed: list[_Passed]) -> dict[tuple[Any, int], Flux]:
    """Carry the squared gradient norm from the outputs to every tensor before them.

    A node was created after all nodes that it reads from, so the newest one first is a
    topological order.
    """
    arrived: dict[tuple[Any, int], Flux] = {}
    queue: list[tuple[int, int, Any]] = []
    queued: set[Any] = set()

    def send(place: tuple[Any, int], flux: Flux) -> None:
        arrived[place] = arrived.get(place, Flux()) + flux
        if place[0] not in queued:
            queued.add(place[0])
            heapq.heappush(queue, (-place[0]._sequence_nr(), len(queued), place[0]))  # noqa: SLF001 - see read()

    for tensor in tensors_in(outputs):
        if tensor.grad_fn is not None and tensor.numel():
            send((tensor.grad_fn, tensor.output_nr), Flux(math.log(tensor.numel())))
    while queue:
        node = heapq.heappop(queue)[2]
        operation = read_operation(node)
        passed.append(_Passed(node._sequence_nr(), operation))  # noqa: SLF001 - see read()
        outputs_of = range(len(node._input_metadata))  # noqa: SLF001 - no public name
        total = sum((arrived.get((node, i), Flux()) for i in outputs_of), Flux())
        for i, source in enumerate(node.next_functions):
            if source[0] is None or hasattr(source[0], "variable"):
                continue
            flux = operation.back(i, total)
            if flux.log_square > -math.inf:
                send(source, flux)
    return arrived
