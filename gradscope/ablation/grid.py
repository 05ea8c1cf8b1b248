"""Grid: an ablation study as YAML, and the cells it unfolds into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from gradscope.data import DataConfig
from gradscope.models import ModelConfig


class Config(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainConfig(Config):
    """How one cell is trained."""

    epochs: PositiveInt = 1
    batch_size: PositiveInt = 32
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    clip_norm: float | None = Field(None, gt=0)
    eval_batch_size: PositiveInt = 256


class RecordConfig(Config):
    """What the recorder keeps of one cell."""

    every: PositiveInt = 1
    activations: bool = True


class CellConfig(Config):
    """The whole resolved configuration of one cell; its hash is the cell's identity."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig = TrainConfig()
    record: RecordConfig = RecordConfig()
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Cell:
    """One point of the matrix with one seed."""

    id: str
    """Readable slug plus a hash of the resolved configuration: ``depth32-lr1e-3-s0-1a2b3c4d``."""
    factors: dict[str, Any]
    """Name of each factor of the matrix -> this cell's value, in the order of the grid."""
    config: CellConfig
