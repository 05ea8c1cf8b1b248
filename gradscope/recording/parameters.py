"""ParameterReader: what the recorder reads of parameters in one step: gradients, norms, updates."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradscope.recording import reductions
from gradscope.recording.buffer import UNSEEN, StatisticsBuffer
from gradscope.recording.carried import Carried
from gradscope.recording.meters import Meters, by_device
from gradscope.recording.optimizers import stepped_by
from gradscope.recording.sharding import ShardExchange, is_sharded
from gradscope.trace.table import RecordedTensor

_is_trained = operator.attrgetter("requires_grad")


class ParameterReader:
    """Gradients, norms and updates of all parameters."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any],
        buffer: StatisticsBuffer,
        meters: Meters,
    ) -> None:
        self._model = model
        self._buffer = buffer
        self._meters = meters
        self._optimizers = optimizers
        self._shards = ShardExchange(buffer, meters)
        self._holders: list[dict[str, Any]] = []
        """Where the modules keep their parameters and modules."""
        self._held: tuple[list[str], list[Any]] = ([], [])
        """What stood there, by name: tells whether the network is another one."""
        self._names: list[str] = []
        self._parameters: list[Tensor] = []
        self._columns: list[int] = []
        """Of each parameter; 0 until it has a gradient or is known to get one."""
        self._versions: dict[int, int] = {}
        """Version of each when it was first seen, by identity."""
        self._carried = Carried(buffer)
        self._written_unseen = False
        """Whether somebody was found to write gradients where torch does not count it."""
        self.before_backward = self._carried.before_backward
        self.begin()
        self._look()

    def begin(self) -> None:
        """Forget the last step."""
        self._carried.begin()
        self._marks = bytearray()
        """Of the gradients that were measured; see `Meters.gradients`."""
        self._consumed: list[int] = []
        """Those whose gradient is about to be consumed, as it was measured last."""
        self._remembered: list[int] = []
        self._looked = False
        left = next((p.grad for p in self._parameters if p.grad is not None), None)
        self._left = None if left is None else (weakref.ref(left), _version(left))
        """A gradient that the last step left, and its version."""

    def after_backward(self, scale: Tensor | None, stepped: Sequence[Any] = ()) -> None:
        """Take all statistics before anyone clips, and before an optimizer that may not step.

        Args:
            scale: factor that the gradients carry from loss scaling, 0-d, or None.
            stepped: optimizers that consumed their gradients in this step already, so that what
                this pass gave their parameters is not theirs.
        """
        self._marks = bytearray()  # a new pass, though it may leave no mark on a gradient
        done = set[int]().union(*(stepped_by(each) for each in stepped))
        if done:
            waiting = [each for each in self._optimizers if each not in stepped]
            done = done.difference(*(stepped_by(each) for each in waiting))
        self._take(done, scale, unclipped=True)

    def measure(self, optimizer: Any, scale: Tensor | None = None) -> None:
        """Take the statistics of what has changed since the backward pass: nothing, unless clipped.

        Args:
            optimizer: leave out the parameters that only other optimizers step; None: all.
            scale: factor that the gradients still carry from loss scaling, 0-d, or None.
        """
        others = self._of_others(optimizer)
        if self._written_unseen:
            self._marks = bytearray()
        self._consumed = taken = self._take(others, scale, unclipped=False)
        if self._marks and scale is None and not self._written_unseen:  # with one all are taken
            self._written_unseen = bool(self._marks[0]) or (
                self._carried.twice and self._take_again(others)
            )
        if len(taken) < len(self._parameters) or not all(map(_is_trained, self._parameters)):
            self._leave_out_what_nobody_consumes(optimizer)
        if optimizer is not None and self._carried.thorough:
            self._carried.consumed(stepped_by(optimizer))

    def _leave_out_what_nobody_consumes(self, optimizer: Any) -> None:
        """Of gradients that were taken away after the pass, or stayed when theirs was frozen.

        One that is gone is left out, as the optimizer leaves its parameter out. Where all are, a
        zero_grad() stands between backward and the step, and they are recorded as the zeros that
        they have become; where no optimizer is known, they were consumed by hand before, as the
        pass left them.
        """
        gone = [i for i, p in enumerate(self._parameters) if p.grad is None]
        by_any = set[int]().union(*(stepped_by(each) for each in self._optimizers))
        mine = None if optimizer is None else stepped_by(optimizer)
        gone = [i for i in gone if mine is None or id(self._parameters[i]) in mine]
        seen = [i for i, column in enumerate(self._columns) if column and self._was_seen(column)]
        left = [i for i in seen if mine is None or id(self._parameters[i]) in mine]
        if left and set(left) <= set(gone):
            if optimizer is not None:
                self._put_zeros(left)
        else:
            for i in gone:
                self._buffer.numel[self._columns[i]] = UNSEEN
        for i, parameter in enumerate(self._parameters):
            if not parameter.requires_grad and id(parameter) not in by_any:
                self._buffer.numel[self._columns[i]] = UNSEEN

    def _was_seen(self, column: int) -> bool:
        return self._buffer.numel[column] != UNSEEN

    def _put_zeros(self, indices: list[int]) -> None:
        for device, mine in by_device(self._parameters, indices):
            columns, _ = self._of(mine)
            for name, value in (("norm", 0.0), ("abs_max", 0.0), ("zero", 1.0)):
                values = self._buffer.constant(device, [value] * len(columns))
                self._buffer.put(device, name, columns, values)

    def remember_weights(self) -> None:
        """Before the step, after `measure`: norms of the weights, and samples to compare with."""
        self._remembered = self._consumed
        for device, mine in by_device(self._parameters, self._remembered):
            columns, weights = self._of(mine)
            self._meters.of(device).weights(columns, weights)

    def measure_update(self, optimizer: Any) -> None:
        """After the step: how far it moved each parameter, from the sample taken before it."""
        stepped = stepped_by(optimizer)
        moved = [i for i in self._remembered if id(self._parameters[i]) in stepped]
        for device, mine in by_device(self._parameters, moved):
            columns, weights = self._of(mine)
            self._meters.of(device).updates(columns, weights, thorough=self._carried.thorough)

    def end(self) -> Iterator[str]:
        """Combine what the ranks of a sharded model measured; what they cannot, a line each."""
        self._carried.end()
        return self._shards.end()

    def leave(self) -> None:
        """Tell the other ranks of a sharded model not to wait for this one."""
        self._shards.leave()

    def ever(self) -> set[str]:
        """Names of the parameters that got a gradient in some recorded step."""
        return {
            tensor.name
            for column, tensor in enumerate(self._buffer.columns, 1)
            if tensor.kind == "weight" and column in self._buffer.ever
        }

    def moved(self) -> set[str]:
        """Names of the parameters that somebody changed in place since they were first seen."""
        pairs = zip(self._names, self._parameters, strict=True)
        return {name for name, p in pairs if _version(p) != self._versions[id(p)]}

    def with_gradient(self) -> list[Tensor]:
        """The parameters that have a gradient now."""
        return [p for p in self._parameters if p.grad is not None]

    def stand_still(self) -> bool:
        """Whether the gradients are those that the last step left: there was no backward pass."""
        if self._left is None:
            return False
        left, version = self._left[0](), self._left[1]
        return (
            left is not None
            and _version(left) == version
            and any(p.grad is left for p in self._parameters)
        )

    def trained(self) -> bool:
        """Whether somebody trains: there are gradients, or weights that moved."""
        self._look()
        return any(
            p.grad is not None or _version(p) != self._versions[id(p)] for p in self._parameters
        )

    def _look(self) -> None:
        """Find the parameters anew where modules or parameters were added, replaced or removed."""
        self._looked = True
        if self._is_as_before():
            return
        modules = list(self._model.modules())
        both = [each for module in modules for each in (module._parameters, module._modules)]
        self._holders = [
            each for each in both if isinstance(each, dict)
        ]  # of TorchScript it is not
        self._held = self._names_of_held(), self._all_held()
        columns = dict(zip(self._names, self._columns, strict=True))
        before = dict(zip(self._names, self._parameters, strict=True))
        found: dict[str, Tensor] = dict(self._model.named_parameters())
        for name in found.keys() & before.keys():
            if found[name] is not before[name] and self._is_consumed(before[name], found[name]):
                found[name] = before[name]
        self._names, self._parameters = list(found), list(found.values())
        self._columns = [
            columns.get(n) or (self._new_column(n, p) if p.requires_grad and not is_lazy(p) else 0)
            for n, p in found.items()
        ]
        self._versions = {id(p): self._versions.get(id(p), _version(p)) for p in self._parameters}
        self._marks = bytearray()
        self._remembered = []
        self._carried.cover(self._parameters, self._columns)
        self._shards.cover(
            {
                column: p
                for column, p in zip(self._columns, self._parameters, strict=True)
                if column and is_sharded(p)
            }
        )

    def _is_as_before(self) -> bool:
        """Whether the modules hold what they held; no walk by name, as it is asked at each step."""
        names, things = self._held
        now = self._all_held()
        return (
            len(now) == len(things) > 0
            and all(map(operator.is_, now, things))
            and self._names_of_held() == names
        )

    def _names_of_held(self) -> list[str]:
        return list(chain.from_iterable(self._holders))

    def _all_held(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._holders)))

    def _is_consumed(self, before: Tensor, now: Tensor) -> bool:
        """Whether the gradient goes to a parameter that the module does not show for the moment.

        FSDP2 puts the gathered parameter in the place of the sharded one while it is in use.
        """
        if now.grad is not None or before.grad is None:
            return False
        return not self._optimizers or any(id(before) in stepped_by(o) for o in self._optimizers)

    def _new_column(self, name: str, parameter: Tensor) -> int:
        module, _, last = name.rpartition(".")
        shape, dtype = tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")
        return self._buffer.column(
            RecordedTensor("weight", module, last, -1, shape=shape, dtype=dtype)
        )

    def _of(self, indices: list[int]) -> tuple[list[int], list[Tensor]]:
        """Columns and parameters."""
        for i in indices:
            if not self._columns[i]:
                self._columns[i] = self._new_column(self._names[i], self._parameters[i])
        return [self._columns[i] for i in indices], [self._parameters[i] for i in indices]

    def _of_others(self, optimizer: Any) -> set[int]:
        """The parameters that only other optimizers step, by identity."""
        others: set[int] = set()
        if optimizer is not None and len(self._optimizers) > 1:
            mine = stepped_by(optimizer)
            for each in self._optimizers:
                others |= stepped_by(each) - mine
        return others

    def _take(self, others: set[int], scale: Tensor | None, *, unclipped: bool) -> list[int]:
        """Take the gradients that were not measured yet; which there are.

        Args:
            others: identities of parameters to leave out.
            scale: factor that the gradients still carry from loss scaling, 0-d, or None.
            unclipped: whether nobody clipped yet.
        """
        if not self._looked:
            self._look()
        gradients = {
            i: grad
            for i, p in enumerate(self._parameters)
            if (grad := p.grad) is not None and not (others and id(p) in others)
        }
        taken = left = list(gradients)
        if scale is None and not self._buffer.histograms:
            columns = [self._columns[i] for i in taken]
            given = list(gradients.values())
            found = self._meters.gradients(columns, given, self._marks, unclipped=unclipped)
            left = [taken[i] for i in found]
        for device, mine in by_device(self._parameters, left):
            self._take_on(device, mine, scale, unclipped=unclipped)
        return taken

    def _take_again(self, others: set[int]) -> bool:
        """Take gradients whatever their marks say; whether that changed any.

        A write through `.data`, numpy or an extension is seen only near the largest element. Who
        does it once does it at every step: from then on no mark counts.
        """
        cpu = torch.device("cpu")
        columns = [self._columns[i] for i in self._consumed if self._parameters[i].is_cpu]
        if not columns:
            return False
        before = self._buffer.get(cpu, "norm", columns).nan_to_num()
        self._marks = bytearray()
        self._take(others, None, unclipped=False)
        now = self._buffer.get(cpu, "norm", columns).nan_to_num()
        return not torch.equal(before, now)

    def _take_on(
        self, device: torch.device, indices: list[int], scale: Tensor | None, *, unclipped: bool
    ) -> None:
        columns, parameters = self._of(indices)
        tensors = [p.grad for p in parameters if p.grad is not None]
        self._meters.of(device).parameter_gradients(columns, tensors, unclipped=unclipped)
        scaled = ("norm", "abs_max", "unclipped") if unclipped else ("norm", "abs_max")
        for name in scaled if scale is not None else ():
            found = self._buffer.get(device, name, columns)
            self._buffer.put(device, name, columns, _unscaled(found, scale))
        for column, parameter, grad in zip(columns, parameters, tensors, strict=True):
            if grad.is_sparse:
                self._count_what_is_not_stored(column, grad)
            elif is_sharded(grad):
                self._shards.note(column, parameter, grad, scale, unclipped=unclipped)
            if self._buffer.histograms:
                counts = reductions.log2_histogram(reductions.sample(grad))
                self._buffer.put_histogram(column, counts)

    def _count_what_is_not_stored(self, column: int, grad: Tensor) -> None:
        """What a sparse gradient does not store is zero."""
        stored = reductions.elements(grad).numel() / max(grad.numel(), 1)
        share = self._buffer.cell(grad.device, column, "zero")
        if stored:
            share.sub_(1).mul_(stored).add_(1)
        else:
            share.fill_(1.0)


def _version(parameter: Tensor) -> int:
    return 0 if is_lazy(parameter) or parameter.is_inference() else parameter._version


def _unscaled(values: Tensor, scale: Tensor | None) -> Tensor:
    return values if scale is None else values / scale.to(values.device, non_blocking=True)
