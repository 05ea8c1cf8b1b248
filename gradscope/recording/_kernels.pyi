from collections.abc import Callable, Sequence

from torch import Tensor

from gradscope.recording.buffer import Area

def configure(tensor: type, parameter: type, exchange: object, calls: int, /) -> None: ...
def measure(
    area: Area,
    columns: list[int],
    tensors: Sequence[Tensor | None],
    wanted: int,
    marks: bytearray = ...,
    /,
) -> list[int]: ...
def measure_one(
    area: Area,
    column: int,
    wanted: int,
    convert: Callable[[Tensor], None],
    tensor: Tensor,
    /,
) -> None: ...
def remember(
    area: Area,
    columns: list[int],
    tensors: list[Tensor],
    samples: list[bytearray],
    place: int,
    /,
) -> list[int]: ...
def change(
    area: Area,
    columns: list[int],
    tensors: list[Tensor],
    samples: list[bytearray],
    place: int,
    /,
) -> list[int]: ...
def dead_units(
    area: Area,
    column: int,
    place: int,
    dim: int,
    window: int,
    active: bytearray,
    convert: Callable[[Tensor], None],
    tensor: Tensor,
    /,
) -> None: ...
