"""The settings of a grid and of its cells, as pydantic models; read without torch."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gradscope.data.config import DataConfig
from gradscope.models.config import ModelConfig


class Config(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


_Beta = Annotated[float, Field(ge=0, lt=1)]

AUTO: Final = "auto"
"""In the place of a setting: to be measured."""

_OWN = ("function", "args")
"""Settings of a training function of one's own; all others are of the built-in loop."""


class TrainConfig(Config):
    """How one cell is trained: by the built-in loop, or by a function of the user's own."""

    function: str = Field("", pattern=r"^(|[^:\s]+:[^:\s]+)$")
    """``package.module:train``, called with a `gradscope.Run`; empty: the built-in loop, which all
    settings but this and ``args`` are of."""
    args: dict[str, Any] = Field(default_factory=dict)
    """What the function finds in ``run.config.train.args``."""
    epochs: PositiveInt = 1
    """Passes over the training images."""
    batch_size: PositiveInt = 32
    """Images of a step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Of `torch.optim`."""
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Learning rate, the same at every step."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.99)
    """Of Adam and AdamW."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """As the optimizer means it: with AdamW apart from the gradient, else added to it."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """``bf16``: forward and loss under autocast, weights in float32. ``auto``: the faster of the
    two on the machine at hand, measured before the first cell; none is trained or stored with it.
    """
    channels_last: bool = True
    """Whether images and weights lie with the channels last, which is faster on most machines."""
    clip_norm: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Gradients of a larger norm, over all parameters, are scaled down to it; None: never."""
    eval_batch_size: PositiveInt = 256
    """Images at a time where nothing is learned; the numbers do not depend on it."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> TrainConfig:
        others = sorted(self.model_fields_set - set(_OWN))
        if self.function and others:
            raise ValueError(
                f"{others[0]} is a setting of the built-in loop; with train.function write it "
                f"under train.args"
            )
        if self.args and not self.function:
            raise ValueError("args are for a function of one's own; name it: train.function")
        return self

    @model_serializer(mode="wrap")
    def _of_its_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only what is in force, so that ids stay as they were before there were functions."""
        dumped = handler(self)
        return {name: v for name, v in dumped.items() if (name in _OWN) == bool(self.function)}


class RecordConfig(Config):
    """What the recorder keeps of one cell."""

    every: PositiveInt = 1
    """Record every so many steps."""
    activations: bool = True
    """Record outputs of modules and the gradients at them too."""


class CellConfig(Config):
    """The whole resolved configuration of one cell; its hash is the cell's identity."""

    model: ModelConfig | None = None
    """None only where a function of one's own trains, which may do without; as ``data``."""
    data: DataConfig | None = None
    train: TrainConfig = TrainConfig()
    record: RecordConfig = RecordConfig()
    seed: int = Field(0, ge=0, lt=2**63)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        return {name: value for name, value in dumped.items() if value is not None}


def _count_or_auto(value: Any) -> Any:
    """Checked here, since of a union of types pydantic names the part that fits least."""
    if value in (None, AUTO) or (isinstance(value, int) and value > 0):
        return value
    raise ValueError("give a whole number from 1, or auto")


class ResourcesConfig(Config):
    """What one cell needs of a machine; see `gradscope.engines.Resources`."""

    cpus: Annotated[int | Literal["auto"] | None, BeforeValidator(_count_or_auto)] = None
    """Processors, and so threads; None: an equal share of all. ``auto``: the share with which all
    cells together are fastest on the machine at hand."""
    gpus: float | None = Field(None, ge=0, allow_inf_nan=False)
    """GPUs; a fraction shares one. None: one where there are any, or an equal share of all."""
    memory_gb: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Memory of the machine, in 10^9 bytes; None: no matter."""
    time_min: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Minutes after which a scheduler may end a cell; one machine alone does not ask."""


Doom = Literal["vanishing", "exploding", "dead", "non-finite", "stalled", "disconnected"]


class StopConfig(Config):
    """Which cells are ended early, as beyond hope."""

    verdicts: tuple[Doom, ...] = Field(min_length=1)
    """Of the diagnosis of what was recorded until then."""
    after: float = Field(0.1, gt=0, lt=1)
    """Share of its steps after which a cell is judged, once."""
    audit: float = Field(0.2, ge=0, le=1)
    """Share of the doomed cells that run to their end all the same, to see what stopping costs."""


class GridConfig(Config):
    """The keys of a grid file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the study: names the folder of the results and the report."""
    description: str = ""
    """What is asked; the report opens with it."""
    model: dict[str, Any] | None = None
    """The network; may be left out where a function of one's own trains, as ``data``."""
    data: dict[str, Any] | None = None
    """The images."""
    train: dict[str, Any] = Field(default_factory=dict)
    """How a cell is trained."""
    record: dict[str, Any] = Field(default_factory=dict)
    """What is recorded of it."""
    seeds: list[int] = Field([0], min_length=1)
    """Each variant is trained with each of them."""
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    """Name of a setting, or its dotted path, -> the values that it takes; every combination is
    trained."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Combinations that are left out: all that agree with one of these."""
    include: list[dict[str, Any]] = Field(default_factory=list)
    """Further points: a value for some of the axes, the others as in the base."""
    objectives: dict[str, Literal["min", "max"]] = Field(default_factory=dict)
    """Which logged metrics the effects are computed of, and which way is better."""
    resources: ResourcesConfig = ResourcesConfig()
    """What a cell needs of a machine."""
    stop: StopConfig | None = None
    """Which cells are ended early; None: every cell runs to its end."""


EPOCH_METRICS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "fit_loss",
    "fit_accuracy",
)
"""What the built-in loop logs at the end of an epoch; these may be objectives."""

SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "record": RecordConfig,
}
"""Parts of a cell's configuration that a matrix may vary."""
