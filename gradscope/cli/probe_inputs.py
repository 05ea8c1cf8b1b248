"""Networks and inputs for the probe command, from names, shapes, files and grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.ablation.grid import Cell
from gradscope.cli.arguments import argument, check_inputs, shape_of
from gradscope.errors import ConfigError, nearest, one_line
from gradscope.models import ModelConfig, build
from gradscope.models.config import InitConfig


def build_models(
    specs: Sequence[str],
    args: Sequence[str] = (),
    n_classes: int | None = None,
    seed: int = 0,
    *,
    draws: int = 1,
    init: str | None = None,
    cell: Cell | None = None,
) -> dict[str, Iterator[nn.Module]]:
    """Build every network once, so that a wrong name fails before any is run.

    Args:
        specs: built-in names or ``package.module:factory``; none where a cell is given.
        args: ``name=value`` for all factories; values are YAML.
        n_classes: for factories that take it.
        seed: of the first draw of the weights; the others count up from it.
        draws: how many networks of each name there are to be, each with its own weights.
        init: how the weights are drawn, as grids name it.
        cell: of a grid, whose network is built in place of one that is named.

    Returns:
        Name -> its draws, of which all but the first are built when it is their turn.

    Raises:
        ConfigError: an argument is not ``name=value``, or there is no such initialisation.
        ModelError: a network cannot be found or built.
    """
    parsed = dict(argument(text) for text in args)
    if cell is not None and (specs or parsed):
        raise ConfigError("--cell names the network with its arguments; leave SPEC and --args out")
    if cell is None and not specs:
        raise ConfigError(
            "give the network as package.module:factory or a built-in, or a cell of a grid by "
            "--grid FILE.yaml --cell ID"
        )
    if cell is not None and cell.config.model is None:
        raise ConfigError(f"--cell {cell.id}: its training function builds the network itself")
    configs = {cell.id: cell.config.model} if cell and cell.config.model else {}
    configs |= {spec: ModelConfig(name=spec, args=parsed) for spec in specs}
    if init is not None:
        chosen = _init(init)
        configs = {name: c.model_copy(update={"init": chosen}) for name, c in configs.items()}
    first = {name: build(c, n_classes=n_classes, seed=seed) for name, c in configs.items()}

    def drawn(name: str) -> Iterator[nn.Module]:
        yield first.pop(name)
        for other in range(seed + 1, seed + draws):
            yield build(configs[name], n_classes=n_classes, seed=other)

    return {name: drawn(name) for name in configs}


def _init(name: str) -> InitConfig:
    from pydantic import ValidationError

    try:
        return InitConfig.model_validate(name)
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"--init {name}: {reason}") from error


def chosen_cell(grid: Path | None, wanted: str) -> Cell:
    """The cell of a grid with an id, or whose id alone begins so.

    Raises:
        ConfigError: no grid was given, or none or several of its cells are meant.
    """
    from gradscope.ablation.grid import Grid

    if grid is None:
        raise ConfigError(f"--cell {wanted}: of which grid? add --grid FILE.yaml")
    loaded = Grid.load(grid)
    cells = {cell.id: cell for cell in loaded.cells()}
    for precision in ("fp32", "bf16"):  # stored under it, where the grid says auto
        for cell in loaded.settled(precision, loaded.resources).cells():
            if cell.id == wanted:
                return cell
    found = [name for name in cells if name == wanted] or [n for n in cells if n.startswith(wanted)]
    if len(found) == 1:
        return cells[found[0]]
    if found:
        raise ConfigError(f"--cell {wanted}: {len(found)} cells begin so, {found[0]} for example")
    raise ConfigError(f"{grid}: no cell '{wanted}'; {nearest(wanted, cells)}")


def gather(
    shapes: Sequence[str],
    batch: int,
    *,
    tokens: int | None = None,
    file: Path | None = None,
    grid: Path | None = None,
    seed: int = 0,
    cell: Cell | None = None,
) -> tuple[Any, Tensor | None, int | None]:
    """Inputs from the one place that was named, with targets and number of classes if known.

    Raises:
        ConfigError: none or several of shapes, file and grid were given, or one cannot be read.
    """
    check_inputs(shapes, batch, file, grid)
    if file is not None:
        return load_inputs(file), None, None
    if grid is not None:
        return grid_inputs(grid, batch, seed, cell)
    return random_inputs(shapes, batch, tokens, seed), None, None


def grid_inputs(
    path: Path, batch: int, seed: int = 0, cell: Cell | None = None
) -> tuple[Tensor, Tensor, int]:
    """A random batch of the images that a grid trains on, with labels, as the trainer sees them.

    Returns:
        float32 images in [-1, 1], int64 labels, number of classes.
    """
    from gradscope.ablation.grid import Grid
    from gradscope.data import load

    config = (cell or Grid.load(path).cells()[0]).config.data
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
            drawn.append(torch.randn(shape, generator=generator, device="cpu"))
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
        reason = one_line(error, 120)
        raise ConfigError(
            f"--input-file {path}: cannot be read as tensors alone ({reason}); "
            "write it with torch.save(tensor, ...) or numpy.save()"
        ) from error
    if not isinstance(found, Tensor | Mapping | list | tuple):
        raise ConfigError(_mixed(path, type(found).__name__))
    return _checked(path, tuple(found) if isinstance(found, list) else found, "")


def _checked(path: Path, found: Any, place: str) -> Any:
    """The same tensors in the same nesting, doubles and halves as float32.

    Raises:
        ConfigError: something in it is no tensor.
    """
    if isinstance(found, Tensor):
        return found.float() if found.dtype in (torch.float64, torch.float16) else found
    if isinstance(found, Mapping):
        return {k: _checked(path, v, f"{place}.{k}".strip(".")) for k, v in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(_checked(path, v, f"{place}[{i}]") for i, v in enumerate(found))
    raise ConfigError(_mixed(path, f"{type(found).__name__} at {place}"))


def _mixed(path: Path, what: str) -> str:
    return (
        f"--input-file {path}: holds more than tensors ({what}); give a tensor, or a tuple or dict "
        "of tensors, nested as the network takes them"
    )


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        import numpy as np

        return torch.from_numpy(np.load(path, allow_pickle=False))
    return torch.load(path, map_location="cpu", weights_only=True)
