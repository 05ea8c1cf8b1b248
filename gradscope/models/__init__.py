"""Networks that grids can name."""

from gradscope.models.registry import ModelConfig, build

__all__ = ["ModelConfig", "build"]
