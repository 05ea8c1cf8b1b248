"""The recorded table, its vocabulary and the structure of the network: what later stages read."""

from gradscope.trace.file import SCHEMA_VERSION
from gradscope.trace.structure import (
    Block,
    LossSide,
    ModuleInfo,
    ParameterGroup,
    Softmax,
    Structure,
    Summary,
)
from gradscope.trace.table import (
    TIME,
    NonFinite,
    Prediction,
    RecordedStep,
    RecordedTensor,
    Trace,
)
from gradscope.trace.vocabulary import HISTOGRAM_RANGE, KINDS, STATISTICS, Kind

__all__ = [
    "HISTOGRAM_RANGE",
    "KINDS",
    "SCHEMA_VERSION",
    "STATISTICS",
    "TIME",
    "Block",
    "Kind",
    "LossSide",
    "ModuleInfo",
    "NonFinite",
    "ParameterGroup",
    "Prediction",
    "RecordedStep",
    "RecordedTensor",
    "Softmax",
    "Structure",
    "Summary",
    "Trace",
]
