"""The registry that grids name models from."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn


class ModelConfig(BaseModel):
    """Which network, with which arguments and initialisation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """A built-in (``hw5net``), ``torchvision.models:resnet18``, or ``package.module:factory``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    init: str = "default"
    """Initialisation by name, see models/init.py."""


def build(config: ModelConfig, n_classes: int | None = None, seed: int = 0) -> nn.Module:
    """Build the model that a configuration names."""
    raise NotImplementedError
