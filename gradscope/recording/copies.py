"""Copy: numbers on their way from a device to the host, which need not wait for them."""

from __future__ import annotations

import torch
from torch import Tensor


class Copy:
    """A tensor as it is when the copy is asked for; what is written to it later does not matter."""

    def __init__(self, tensor: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            shape, dtype = tensor.shape, tensor.dtype
            self._host = torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's stub
            self._done.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.to("cpu", copy=True)

    def has_arrived(self) -> bool:
        """Whether `read` has nothing to wait for."""
        return self._done is None or bool(self._done.query())  # type: ignore[no-untyped-call]  # torch's stub

    def read(self) -> Tensor:
        """The numbers on the host; waits for them."""
        if self._done is not None:
            self._done.synchronize()
        return self._host
