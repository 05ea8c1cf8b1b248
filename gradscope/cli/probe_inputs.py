"""Networks and inputs for the probe command, from names, shapes, files and grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.cli.arguments import argument, check_inputs, shape_of
from gradscope.errors import ConfigError
from gradscope.models import ModelConfig, build


def build_models(
    specs: Sequence[str], args: Sequence[str] = (), n_classes: int | None = None, seed: int = 0
) -> dict[str, nn.Module]:
    """Build every network, so that a wrong name fails before any is run.

    Args:
        specs: built-in names or ``package.module:factory``.
        args: ``name=value`` for all factories; values are YAML.
        n_classes: for factories that take it.
        seed: of the initialisation.

    Raises:
        ConfigError: an argument is not ``name=value``.
        ModelError: a network cannot be found or built.
    """
    parsed = dict(argument(text) for text in args)
    return {
        spec: build(ModelConfig(name=spec, args=parsed), n_classes=n_classes, seed=seed)
        for spec in specs
    }


def gather(
    shapes: Sequence[str],
    batch: int,
    *,
    tokens: int | None = None,
    file: Path | None = None,
    grid: Path | None = None,
    seed: int = 0,
) -> tuple[Any, Tensor | None, int | None]:
    """Inputs from the one place that was named, with targets and number of classes if known.

    Raises:
        ConfigError: none or several of shapes, file and grid were given, or one cannot be read.
    """
    check_inputs(shapes, batch, file, grid)
    if file is not None:
        return load_inputs(file), None, None
    if grid is not None:
        return grid_inputs(grid, batch, seed)
    return random_inputs(shapes, batch, tokens, seed), None, None


def grid_inputs(path: Path, batch: int, seed: int = 0) -> tuple[Tensor, Tensor, int]:
    """A random batch of the images that a grid trains on, with labels, as the trainer sees them.

    Returns:
        float32 images in [-1, 1], int64 labels, number of classes.
    """
    from gradscope.ablation.grid import Grid
    from gradscope.data import load

    config = Grid.load(path).cells()[0].config.data
    if config is None:
        raise ConfigError(f"--grid {path}: names no images; give the inputs by --input")
    splits = load(config)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(splits.train), generator=generator)[:batch]
    images, labels = splits.train.batch(chosen)
    return images.float().div_(127.5).sub_(1.0), labels.long(), len(splits.classes)


def random_inputs(
    shapes: Sequence[str], batch: int, tokens: int | None = None, seed: int = 0
) -> Tensor | tuple[Tensor, ...]:
    """Standard normal inputs, or integers below `tokens`.

    Args:
        shapes: of one sample each, ``3,64,64``; several for several positional arguments.
        batch: samples.
        tokens: size of the vocabulary, for models that take integers.
        seed: of the values.

    Raises:
        ConfigError: a shape is not a list of positive integers.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for text in shapes:
        shape = shape_of(text, batch)
        if tokens is None:
            drawn.append(torch.randn(shape, generator=generator))
        else:
            drawn.append(torch.randint(tokens, shape, generator=generator))
    return drawn[0] if len(drawn) == 1 else tuple(drawn)


def load_inputs(path: Path) -> Any:
    """Inputs with their batch dimension from a ``.pt`` or ``.npy`` file; no code in it is run.

    Raises:
        ConfigError: the file holds more than tensors, or cannot be read.
    """
    try:
        found = _read(path)
    except Exception as error:  # whatever a broken file makes the readers raise
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"--input-file {path}: cannot be read as tensors alone ({reason}); "
            "write it with torch.save(tensor, ...) or numpy.save()"
        ) from error
    if isinstance(found, list):
        found = tuple(found)
    values = found.values() if isinstance(found, Mapping) else found
    if not isinstance(found, Tensor) and not all(isinstance(v, Tensor) for v in values):
        raise ConfigError(
            f"--input-file {path}: holds {type(found).__name__} of more than tensors; "
            "give a tensor, a tuple of tensors or a dict of tensors"
        )
    if isinstance(found, Tensor) and found.dtype in (torch.float64, torch.float16):
        found = found.float()
    return found


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        import numpy as np

        return torch.from_numpy(np.load(path, allow_pickle=False))
    return torch.load(path, map_location="cpu", weights_only=True)
