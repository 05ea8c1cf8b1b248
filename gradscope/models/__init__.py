"""Networks that grids can name."""

from gradscope.models.hw5net import HW5Net, Net3, SkipBlock
from gradscope.models.init import InitConfig, initialise
from gradscope.models.registry import ModelConfig, build, check_args, resolve, valid_args

__all__ = [
    "HW5Net",
    "InitConfig",
    "ModelConfig",
    "Net3",
    "SkipBlock",
    "build",
    "check_args",
    "initialise",
    "resolve",
    "valid_args",
]
