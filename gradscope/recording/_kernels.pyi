from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from gradscope.recording.buffer import Area

Sample: TypeAlias = tuple[int, int, int, int, int, int]

class Reader:
    def __init__(
        self, area: Area, column: int, wanted: int, convert: Callable[[Tensor], None], /
    ) -> None: ...
    def __call__(self, tensor: Tensor, /) -> None: ...

class ForwardHook:
    active: bool
    def __init__(
        self,
        modules: Mapping[int, Any],
        usual: Sequence[tuple[Callable[[], object], object]],
        hooks: type[dict[Any, Any]],
        key: object,
        otherwise: Callable[[nn.Module, tuple[Any, ...], Any], None],
        /,
    ) -> None: ...
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any, /) -> None: ...

def configure(tensor: type, parameter: type, exchange: object, width: int, /) -> None: ...
def measure(area: Area, columns: list[int], tensors: list[Tensor], wanted: int, /) -> list[int]: ...
def measure_gradients(
    area: Area,
    columns: list[int],
    parameters: list[Tensor],
    others: set[int],
    marks: bytearray,
    wanted: int,
    /,
) -> list[int]: ...
def remember(
    area: Area,
    columns: list[int],
    tensors: list[Tensor],
    samples: list[Sample],
    place: int,
    unchanged: int,
    /,
) -> list[int]: ...
def change(
    area: Area,
    columns: list[int],
    tensors: list[Tensor],
    samples: list[Sample],
    place: int,
    unchanged: int,
    /,
) -> list[int]: ...
def dead_units(
    area: Area,
    column: int,
    place: int,
    dim: int,
    active: bytearray,
    convert: Callable[[Tensor], None],
    tensor: Tensor,
    /,
) -> None: ...
