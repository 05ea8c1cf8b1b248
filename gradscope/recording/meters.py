"""Meters: how the statistics of each device's tensors are taken and written into the buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.recording import kernels
from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.device_meter import DeviceMeter
from gradscope.recording.host_meter import (
    HostMeter,
)
from gradscope.recording.kernels import (
    ALL,
    UNCLIPPED,
)


class Meters:
    """The meter of each device, made when it is first asked for."""

    def __init__(self, buffer: StatisticsBuffer) -> None:
        self._buffer = buffer
        self._meters: dict[torch.device, HostMeter | DeviceMeter] = {}

    def of(self, device: torch.device) -> HostMeter | DeviceMeter:
        """The meter of a device."""
        meter = self._meters.get(device)
        if meter is None:
            kind = (
                HostMeter if device.type == "cpu" and kernels.compiled is not None else DeviceMeter
            )
            meter = self._meters[device] = kind(device, self._buffer)
        return meter

    def gradients(
        self,
        columns: list[int],
        parameters: list[Tensor],
        others: set[int],
        marks: bytearray,
        *,
        unclipped: bool,
    ) -> list[int]:
        """Take the plain gradients in main memory, but for those already measured.

        Args:
            columns: column of each parameter, 0 where it has none yet.
            parameters: of any device.
            others: identities of parameters to leave out.
            marks: what tells the gradients that were measured; brought up to date. Empty: none.
            unclipped: whether nobody clipped yet.

        Returns:
            Indices of the gradients that are left to `parameter_gradients`.
        """
        mine = with_gradient(parameters, others)
        if kernels.compiled is None or not any(parameter.is_cpu for parameter in parameters):
            return mine
        places = [columns[i] for i in mine]
        gradients = [parameters[i].grad for i in mine]
        area = self._buffer.area(torch.device("cpu"), max(places, default=0))
        wanted = UNCLIPPED if unclipped else ALL
        return [mine[i] for i in kernels.compiled.measure(area, places, gradients, wanted, marks)]

    def end(self) -> None:
        """Finish what was left to the end of the step."""
        for meter in self._meters.values():
            meter.end()


def with_gradient(parameters: Sequence[Tensor], others: set[int]) -> list[int]:
    """Indices of the parameters that have a gradient, but for those of some identities."""
    return [i for i, p in enumerate(parameters) if p.grad is not None and id(p) not in others]


def by_device(
    parameters: Sequence[Tensor], indices: Sequence[int]
) -> list[tuple[torch.device, list[int]]]:
    """Indices of parameters, device by device."""
    groups: dict[torch.device, list[int]] = {}
    for i in indices:
        groups.setdefault(parameters[i].device, []).append(i)
    return list(groups.items())
