from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, dtype

Sample: TypeAlias = tuple[int, int, int, int, int, int]

def configure(tensor: type, parameter: type, codes: dict[dtype, int], /) -> None: ...
def measure(tensors: list[Tensor], offsets: list[int], base: int, wanted: int, /) -> list[int]: ...
def measure_output(
    base: int, offset: int, wanted: int, convert: Callable[[Tensor], None], tensor: Tensor, /
) -> None: ...
def measure_gradient(
    seen: bytearray,
    column: int,
    base: int,
    offset: int,
    wanted: int,
    convert: Callable[[Tensor], None],
    gradient: Tensor,
    /,
) -> None: ...
def remember(
    tensors: list[Tensor],
    samples: list[Sample],
    offsets: list[int],
    base: int,
    /,
) -> list[int]: ...
def change(
    tensors: list[Tensor],
    samples: list[Sample],
    offsets: list[int],
    base: int,
    /,
) -> list[int]: ...
def dead_units(
    base: int,
    offset: int,
    dim: int,
    active: bytearray,
    convert: Callable[[Tensor], None],
    tensor: Tensor,
    /,
) -> None: ...
