"""Statistics of local shards become those of whole tensors, as long as all ranks take part."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradscope.recording.agreement import Agreement
from gradscope.recording.buffer import UNSEEN, StatisticsBuffer
from gradscope.recording.meters import Meters

OF_GRADIENT = ("norm", "unclipped", "carried")
OF_WEIGHT = ("weight_norm", "update")
NORMS = (*OF_GRADIENT, *OF_WEIGHT)
NAMES = (*NORMS, "abs_max", "zero", "nonfinite", "unchanged")


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is one of several pieces, a DTensor."""
    return type(tensor) is not Tensor and hasattr(tensor, "device_mesh")


class ShardExchange:
    """Combines what the ranks of each device mesh measured: one all-gather per mesh dimension.

    No rank begins it before all ranks of the mesh are known to take part; where they do not, the
    sharded tensors of that mesh are left out from then on, and nobody waits for anybody again.
    """

    def __init__(self, buffer: StatisticsBuffer, meters: Meters) -> None:
        self._buffer = buffer
        self._meters = meters
        self._parameters: dict[int, Any] = {}
        """Sharded parameter of a column."""
        self._gradients: dict[int, Any] = {}
        """Those that this step has."""
        self._partial: dict[bool, dict[int, Tensor]] = {True: {}, False: {}}
        """Whether before clipping -> column -> this rank's summand of a gradient."""
        self._marks: dict[int, tuple[int, int]] = {}
        self._agreements: dict[Any, Agreement] = {}

    def cover(self, parameters: dict[int, Any]) -> None:
        """Have these parameters by column; on all ranks the same, whoever has a gradient."""
        self._parameters = parameters

    def note(
        self, column: int, parameter: Any, grad: Any, scale: Tensor | None, *, unclipped: bool
    ) -> None:
        """Learn of the gradient of a sharded parameter, of which this rank measured its piece.

        Args:
            column: of the parameter.
            parameter: to which the gradient belongs.
            grad: a DTensor.
            scale: factor that it carries from loss scaling, 0-d, or None.
            unclipped: whether nobody clipped yet.
        """
        self._parameters.setdefault(column, parameter)
        self._gradients[column] = grad
        mark = (id(grad), grad._version)
        if not any(p.is_partial() for p in grad.placements):
            return
        if unclipped or self._marks.get(column) != mark:
            mine = grad.to_local().detach()
            mine = mine.clone() if scale is None else mine / scale.to(mine.device)
            self._partial[unclipped][column] = mine
        if unclipped:
            self._marks[column] = mark
            self._partial[False].pop(column, None)

    def end(self) -> Iterator[str]:
        """Combine; what cannot be recorded from here on, a line each."""
        meshes: dict[Any, list[int]] = {}
        for column in sorted(self._parameters):
            mesh = self._parameters[column].device_mesh
            if mesh.size() > 1:
                meshes.setdefault(mesh, []).append(column)
        for mesh, columns in meshes.items():
            agreement = self._agreements.get(mesh)
            if agreement is None:
                agreement = self._agreements[mesh] = Agreement(mesh.mesh.flatten().tolist())
            known = agreement.failure
            self._combine_if_all_do(agreement, mesh, columns)
            if agreement.failure and not known:
                yield (
                    f"{agreement.failure}; the gradients of {len(columns)} sharded parameters are "
                    "not recorded from here on; watch and close on all ranks at the same step"
                )
        self._gradients.clear()
        self._marks.clear()
        for taken in self._partial.values():
            taken.clear()

    def leave(self) -> None:
        """Tell the other ranks not to wait for this one."""
        for agreement in self._agreements.values():
            agreement.leave("this rank closed its scope")

    def _combine_if_all_do(self, agreement: Agreement, mesh: Any, columns: list[int]) -> None:
        if agreement.reached(self._plan(columns)):
            try:
                self._combine(mesh, columns)
            except RuntimeError as error:  # a rank was lost meanwhile
                agreement.leave(f"the exchange failed: {error}".splitlines()[0])
        if agreement.failure:  # what was measured is that of a piece
            for column in columns:
                self._buffer.numel[column] = UNSEEN

    def _plan(self, columns: list[int]) -> str:
        """What is to be exchanged; the same on all ranks, or they would wait for each other."""
        names = [self._buffer.columns[column - 1].name for column in columns]
        partial = [
            (unclipped, names[columns.index(column)], tuple(mine.shape), str(mine.dtype))
            for unclipped, taken in self._partial.items()
            for column, mine in sorted(taken.items())
            if column in columns
        ]
        plan = f"{self._buffer.interval} {names} {partial}"
        return f"{zlib.crc32(plan.encode()):08x}"

    def _combine(self, mesh: Any, columns: list[int]) -> None:
        for unclipped, taken in self._partial.items():
            mine = {column: taken[column] for column in columns if column in taken}
            if mine:
                self._sum(mesh, mine, unclipped=unclipped)
        device = self._parameters[columns[0]].to_local().device
        table = torch.stack([self._buffer.get(device, name, columns) for name in NAMES])
        gradients = [self._gradients.get(column) for column in columns]
        sizes = [0.0 if g is None else float(g.to_local().numel()) for g in gradients]
        for names, of in (
            (OF_GRADIENT, gradients),
            (OF_WEIGHT, [self._parameters[column] for column in columns]),
        ):
            copies = self._buffer.constant(device, [_copies(tensor) ** 0.5 for tensor in of])
            rows = slice(NAMES.index(names[0]), NAMES.index(names[-1]) + 1)
            table[rows] /= copies  # the squares of every copy are added
        table = torch.cat([table, self._buffer.constant(device, sizes).unsqueeze(0)])
        table = table.to(mesh.device_type)
        for dim in range(mesh.ndim):
            if mesh.size(dim) > 1:
                table = _gathered(table, mesh.get_group(dim))
        for name, values in zip(NAMES, table.to(device), strict=False):
            self._buffer.put(device, name, columns, values)

    def _sum(self, mesh: Any, mine: dict[int, Tensor], *, unclipped: bool) -> None:
        """Add the summands of all ranks and measure the sums: the gradients that are consumed."""
        from torch import distributed as dist

        for dim in range(mesh.ndim):
            by_operation: dict[str, list[int]] = {}
            for column in mine:
                placement = self._gradients[column].placements[dim]
                if placement.is_partial():
                    by_operation.setdefault(placement.reduce_op, []).append(column)
            for name, columns in sorted(by_operation.items()):
                flat = torch.cat([mine[column].reshape(-1) for column in columns])
                operation = getattr(dist.ReduceOp, "SUM" if name == "avg" else name.upper())
                dist.all_reduce(flat, operation, group=mesh.get_group(dim))
                if name == "avg":
                    flat /= mesh.size(dim)
                sizes = [mine[column].numel() for column in columns]
                parts = torch.split(flat, sizes)
                for column, part in zip(columns, parts, strict=True):
                    mine[column] = part.view_as(mine[column])
        whole = {column: self._buffer.numel[column] for column in mine}
        meter = self._meters.of(next(iter(mine.values())).device)
        meter.parameter_gradients(list(mine), list(mine.values()), unclipped=unclipped)
        for column, numel in whole.items():
            self._buffer.numel[column] = numel


def _copies(tensor: Any) -> int:
    """How many ranks hold each element of a DTensor."""
    if not is_sharded(tensor):
        return 1
    shape = tensor.device_mesh.shape
    alike = (p.is_replicate() or p.is_partial() for p in tensor.placements)
    return math.prod(n for n, same in zip(shape, alike, strict=True) if same)


def _gathered(mine: Tensor, group: Any) -> Tensor:
    """Statistics of what the ranks of a group hold together.

    Norms add as squares, extremes as extremes, shares weighted by the size of the piece.

    Args:
        mine: float32, of shape (len(NAMES) + 1, tensors): rows as in `NAMES`, then sizes.
        group: of processes.
    """
    from torch import distributed as dist

    world = dist.get_world_size(group)
    everyone = mine.new_empty((world, *mine.shape))
    dist.all_gather_into_tensor(everyone.view(-1, mine.shape[1]), mine.contiguous(), group=group)
    size = everyone[:, -1]
    rows = []
    for i, name in enumerate(NAMES):
        values = torch.where(size > 0, everyone[:, i], 0.0)  # an empty piece has no statistics
        if name in NORMS:
            rows.append(torch.linalg.vector_norm(values, dim=0, dtype=torch.float64).float())
        elif name == "abs_max":
            rows.append(values.amax(0))
        else:
            rows.append((values * size).sum(0) / size.sum(0))
    return torch.stack([*rows, size.sum(0)])
