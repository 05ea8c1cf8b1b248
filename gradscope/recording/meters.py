"""Meters: how the statistics of each device's tensors are taken and written into the buffer."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.recording import kernels
from gradscope.recording.buffer import StatisticsBuffer
from gradscope.recording.device_meter import DeviceMeter
from gradscope.recording.host_meter import HostMeter
from gradscope.recording.kernels import ALL, UNCLIPPED

_is_cpu = operator.attrgetter("is_cpu")


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
        gradients: list[Tensor],
        marks: bytearray,
        *,
        unclipped: bool,
    ) -> list[int]:
        """Take the plain gradients in main memory, but for those already measured.

        Args:
            columns: of each, 0 where it has none yet.
            gradients: on any device.
            marks: what tells the gradients that were measured; brought up to date. Empty: none.
            unclipped: whether nobody clipped yet.

        Returns:
            Indices of the gradients that are left to `parameter_gradients`.
        """
        if kernels.compiled is None or not any(gradient.is_cpu for gradient in gradients):
            return list(range(len(gradients)))
        area = self._buffer.area(torch.device("cpu"), max(columns))
        wanted = UNCLIPPED if unclipped else ALL
        return kernels.compiled.measure(area, columns, gradients, wanted, marks)

    def end(self) -> None:
        """Finish what was left to the end of the step."""
        for meter in self._meters.values():
            meter.end()


def by_device(
    parameters: Sequence[Tensor], indices: Sequence[int]
) -> list[tuple[torch.device, list[int]]]:
    """Indices of parameters, device by device."""
    if all(map(_is_cpu, [parameters[i] for i in indices])):  # without a device object for each
        return [(torch.device("cpu"), list(indices))] if indices else []
    groups: dict[torch.device, list[int]] = {}
    for i in indices:
        groups.setdefault(parameters[i].device, []).append(i)
    return list(groups.items())
