"""The settings of a grid and of its cells, as pydantic models; read without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
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
    batch_size: PositiveInt = 32
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    betas: tuple[_Beta, _Beta] = (0.9, 0.99)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    clip_norm: float | None = Field(None, gt=0, allow_inf_nan=False)
    eval_batch_size: PositiveInt = 256

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
    activations: bool = True


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


class ResourcesConfig(Config):
    """What one cell needs of a machine; see `gradscope.engines.Resources`."""

    cpus: PositiveInt | None = None
    gpus: float | None = Field(None, ge=0, allow_inf_nan=False)
    memory_gb: float | None = Field(None, gt=0, allow_inf_nan=False)
    time_min: float | None = Field(None, gt=0, allow_inf_nan=False)


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
    description: str = ""
    model: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    record: dict[str, Any] = Field(default_factory=dict)
    seeds: list[int] = Field([0], min_length=1)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    include: list[dict[str, Any]] = Field(default_factory=list)
    objectives: dict[str, Literal["min", "max"]] = Field(default_factory=dict)
    """Which logged metrics the effects are computed of, and which way is better."""
    resources: ResourcesConfig = ResourcesConfig()
    stop: StopConfig | None = None
    """None: every cell runs to its end."""


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
