"""Grid: an ablation study as YAML, and the cells it unfolds into."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gradscope.ablation.axes import Axis, axes_of, is_scalar, label
from gradscope.ablation.document import Document, KeyPath, merged, read, shown
from gradscope.ablation.points import Point, points_of
from gradscope.ablation.settings import (
    AUTO,
    EPOCH_METRICS,
    SECTIONS,
    CellConfig,
    GridConfig,
    ResourcesConfig,
    StopConfig,
)
from gradscope.ablation.validation import Origin, validated, written
from gradscope.errors import GradscopeError, nearest
from gradscope.factory import load_factory
from gradscope.models.config import ModelConfig, resolve, spec_of


@dataclass(frozen=True)
class Cell:
    """One point of the matrix with one seed."""

    id: str
    """Readable slug plus a hash of the resolved configuration: ``depth32-lr1e-3-s0-1a2b3c4d``."""
    factors: dict[str, Any]
    """Name of each factor of the matrix -> this cell's value, in the order of the grid."""
    config: CellConfig


@dataclass(frozen=True)
class Grid:
    """A study: one base configuration and the factors that vary.

    Example:
        >>> grid = Grid.load("ablations/hw5.yaml")
        >>> len(grid.cells())
        32
    """

    name: str
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    source: dict[str, Any]
    """The grid as it was written, with what the command line replaced; JSON types."""
    _cells: tuple[Cell, ...] = field(repr=False)
    objectives: dict[str, str] = field(default_factory=dict)
    """Logged metric -> ``min`` or ``max``: what the effects are computed of."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Of each cell."""
    stop: StopConfig | None = None
    """Which cells are ended early; None: none."""

    @property
    def factors(self) -> dict[str, tuple[Any, ...]]:
        """Name of each factor -> its values, in the order of the grid."""
        found: dict[str, tuple[Any, ...]] = {}
        for axis in self.axes:
            extra = [c.factors[axis.name] for c in self._cells]
            found[axis.name] = tuple(dict.fromkeys((*axis.labels, *extra)))
        return found

    def cells(self) -> tuple[Cell, ...]:
        """Every point of the matrix with every seed, in the order of the grid."""
        return self._cells

    @property
    def has_open_precision(self) -> bool:
        """Whether the precision of a cell is still to be measured."""
        return any(cell.config.train.precision == AUTO for cell in self._cells)

    def settled(self, precision: str, resources: ResourcesConfig) -> Grid:
        """The grid as if it had said what it left to be measured; its ids are those of such a grid.

        Args:
            precision: of the cells that leave it open.
            resources: in the place of its own.
        """
        cells = tuple(_with_precision(cell, precision) for cell in self._cells)
        return replace(self, _cells=cells, resources=resources)

    @classmethod
    def load(
        cls, path: str | Path, overrides: Sequence[str] = (), *, imported: bool = True
    ) -> Grid:
        """Read and check a grid, to the last argument of the last model.

        Args:
            path: the YAML file.
            overrides: ``key.path=value`` of the command line.
            imported: look at the factories of models and at the training function too, which
                imports them, and torch with them; False: check all that can be checked without.

        Raises:
            ConfigError: anything in it is wrong; the message names the line and the mend.
        """
        document = read(Path(path), overrides)
        config = validated(GridConfig, document.data, (), document)
        if config.model is None and not config.train.get("function"):
            raise document.error(
                ("model",), "key 'model' is missing; add it, or a train.function that needs none"
            )
        axes = axes_of(config, document, None)
        base = {s: getattr(config, s) for s in SECTIONS}
        cells: dict[str, Cell] = {}
        origins: dict[str, Origin] = {}
        points = points_of(config, axes, document)
        for seed in _distinct(config.seeds, document):
            for point in points:
                cell, origin = _cell(base, axes, point, seed, document)
                cells.setdefault(cell.id, cell)
                origins.setdefault(cell.id, origin)
        if not cells:
            raise document.error(("exclude",), "every cell of the matrix is excluded")
        _check_objectives(config, tuple(cells.values()), document)
        _check_auto(axes, cells, origins, document)
        if imported:
            _check_imports(config, tuple(cells.values()), origins, document)
        source = json.loads(json.dumps(document.data, default=str))
        found = tuple(cells.values())
        return cls(
            config.name,
            axes,
            tuple(config.seeds),
            source,
            found,
            dict(config.objectives),
            config.resources,
            config.stop,
        )


def _with_precision(cell: Cell, precision: str) -> Cell:
    if cell.config.train.precision != AUTO:
        return cell
    train = cell.config.train.model_copy(update={"precision": precision})
    config = cell.config.model_copy(update={"train": train})
    return Cell(_identity(cell.factors, config), cell.factors, config)


def _distinct(seeds: Sequence[int], document: Document) -> Sequence[int]:
    for i, seed in enumerate(seeds):
        if seed in seeds[:i]:
            raise document.error(("seeds", i), f"seeds: {seed} stands twice; remove one")
    return seeds


def _cell(
    base: dict[str, Any],
    axes: tuple[Axis, ...],
    point: Point,
    seed: int,
    document: Document,
) -> tuple[Cell, Origin]:
    settings: dict[str, Any] = {**base, "seed": seed}
    origin: Origin = {}
    for axis in sorted(axes, key=lambda axis: len(axis.path)):  # what is inside a section, after it
        if axis.name in point:
            value, origin[axis.path] = point[axis.name]
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k != "label"}
            settings = merged(settings, axis.path, value)
    config = _config(settings, origin, document)
    factors = {
        axis.name: label(point[axis.name][0]) if axis.name in point else _at(config, axis.path)
        for axis in axes
    }
    return Cell(_identity(factors, config), factors, config), origin


def _config(settings: dict[str, Any], origin: Origin, document: Document) -> CellConfig:
    train = validated(SECTIONS["train"], settings["train"], ("train",), document, origin)
    sections = {"train": train}
    for name, kind in SECTIONS.items():
        if settings[name] is not None or not (train.function or name == "train"):
            given = settings[name] if settings[name] is not None else {}
            sections[name] = validated(kind, given, (name,), document, origin)
    if "model" in sections:
        try:
            spec_of(sections["model"].name)
        except GradscopeError as error:
            raise document.error(written(("model", "name"), origin), str(error)) from error
    seed = validated(CellConfig, {**sections, "seed": settings["seed"]}, ("seeds",), document).seed
    return CellConfig(**sections, seed=seed)


def _check_objectives(config: GridConfig, cells: Sequence[Cell], document: Document) -> None:
    if all(cell.config.train.function for cell in cells):
        return  # only the functions know what they log
    for name in config.objectives:
        if name not in EPOCH_METRICS:
            raise document.error(
                ("objectives", name),
                f"objectives: the built-in loop logs no '{name}'; {nearest(name, EPOCH_METRICS)}",
            )


def _check_auto(
    axes: Sequence[Axis],
    cells: dict[str, Cell],
    origins: dict[str, Origin],
    document: Document,
) -> None:
    """What is to be measured is one thing for the whole study, and no value to compare."""
    for axis in axes:
        if axis.path == ("train", "precision"):
            for name, cell in cells.items():
                if cell.factors[axis.name] == AUTO:
                    place = written(axis.path, origins[name])
                    told = "axis 'precision': auto is no value to compare; write fp32 or bf16"
                    raise document.error(place, told)


def _check_imports(
    config: GridConfig, cells: Sequence[Cell], origins: dict[str, Origin], document: Document
) -> None:
    """What only the factories and functions themselves can tell; those without torch come first."""
    named = {name: place for place, name in _models(config).items()}
    for cell in cells:
        model, function = cell.config.model, cell.config.train.function
        if model is not None:
            named.setdefault(model.name, written(("model", "name"), origins[cell.id]))
        if function and function not in named:
            place = written(("train", "function"), origins[cell.id])
            named[function] = place
            _asked(load_factory, function, place, document)
    models = {c.config.model.name for c in cells if c.config.model is not None}
    for name in models:
        _asked(resolve, name, named[name], document)
    if not models:
        axes_of(config, document, ())
        return
    from gradscope.models.registry import check_args, valid_args

    arguments: set[str] = set()
    for name in models | set(_models(config).values()):
        arguments |= _asked(valid_args, name, named[name], document)
    axes_of(config, document, arguments)
    for cell in {_text(c.config.model): c for c in reversed(cells)}.values():
        if cell.config.model is not None:
            try:
                check_args(cell.config.model)
            except GradscopeError as error:
                place = written(_refused(cell.config.model), origins[cell.id])
                raise document.error(place, str(error)) from error


def _asked(question: Any, name: str, place: KeyPath, document: Document) -> Any:
    try:
        return question(name)
    except GradscopeError as error:
        raise document.error(place, str(error)) from error


def _text(model: ModelConfig | None) -> str:
    return "" if model is None else model.model_dump_json()


def _models(config: GridConfig) -> dict[KeyPath, str]:
    """Where the grid names a model -> its name; what is no text is told of by the validation."""
    named: dict[KeyPath, Any] = {("model", "name"): (config.model or {}).get("name")}
    for i, value in enumerate(config.matrix.get("model", ())):
        named["matrix", "model", i, "name"] = value.get("name") if isinstance(value, dict) else None
    for i, value in enumerate(config.matrix.get("model.name", ())):
        named["matrix", "model.name", i] = value
    return {place: name for place, name in named.items() if isinstance(name, str)}


def _refused(model: ModelConfig) -> KeyPath:
    """Which setting of a model `check_args` refuses: one of its arguments, else its name."""
    from gradscope.models.registry import check_args

    for args in ({}, *({name: value} for name, value in model.args.items())):
        try:
            check_args(ModelConfig(name=model.name, args=args))
        except GradscopeError:
            return ("model", "args", *args) if args else ("model", "name")
    return ("model", "args")


def _at(config: CellConfig, path: tuple[str, ...]) -> Any:
    value: Any = config.model_dump(mode="json")
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if is_scalar(value) else label(value)


def _identity(factors: dict[str, Any], config: CellConfig) -> str:
    """A slug to read and a hash of every setting to tell apart; the same on every machine."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
    parts = [_slug(name, value) for name, value in factors.items()] + [f"s{config.seed}"]
    return f"{'-'.join(filter(None, parts))[:96]}-{digest}"


def _slug(name: str, value: Any) -> str:
    if isinstance(value, bool):
        text = name if value else f"no-{name}"
    elif isinstance(value, str):
        text = value.rpartition(":")[2]
    else:
        text = f"{name.rpartition('.')[2]}{shown(value)}"
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", text)[:40].strip("_")
