"""Grid: an ablation study as YAML, and the cells it unfolds into."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from gradscope.ablation.document import Document, KeyPath, merged, read, shown
from gradscope.data import DataConfig
from gradscope.errors import GradscopeError, nearest
from gradscope.models import ModelConfig, check_args, valid_args


class Config(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


_Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Config):
    """How one cell is trained."""

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
    seed: int = Field(0, ge=0, lt=2**63)


class GridConfig(Config):
    """The keys of a grid file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    model: dict[str, Any]
    data: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    record: dict[str, Any] = Field(default_factory=dict)
    seeds: list[int] = Field([0], min_length=1)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    include: list[dict[str, Any]] = Field(default_factory=list)


_Point = dict[str, tuple[Any, KeyPath]]
"""Name of an axis -> its value at one point, and where that was written."""

_Origin = dict[tuple[str, ...], KeyPath]
"""Setting -> where in the document the matrix or an inclusion gave it."""

SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "record": RecordConfig,
}


@dataclass(frozen=True)
class Cell:
    """One point of the matrix with one seed."""

    id: str
    """Readable slug plus a hash of the resolved configuration: ``depth32-lr1e-3-s0-1a2b3c4d``."""
    factors: dict[str, Any]
    """Name of each factor of the matrix -> this cell's value, in the order of the grid."""
    config: CellConfig


@dataclass(frozen=True)
class Axis:
    """One factor of the matrix."""

    key: str
    """As it is written in the grid."""
    name: str
    """As it is shown: the last part of the path where that is unambiguous."""
    path: tuple[str, ...]
    """Which setting it varies: ``("train", "lr")``."""
    values: tuple[Any, ...]
    labels: tuple[Any, ...]
    """What stands for each value in tables: scalars themselves, a label or name for sections."""

    def meant(self, value: Any) -> Any:
        """The section that a label stands for; any other value itself."""
        sections = zip(self.labels, self.values, strict=True)
        return next((s for label, s in sections if isinstance(s, dict) and label == value), value)


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

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Grid:
        """Read and check a grid, to the last argument of the last model.

        Args:
            path: the YAML file.
            overrides: ``key.path=value`` of the command line.

        Raises:
            ConfigError: anything in it is wrong; the message names the line and the mend.
        """
        document = read(Path(path), overrides)
        config = _validated(GridConfig, document.data, (), document)
        axes = _axes(config, document)
        base = {s: getattr(config, s) for s in SECTIONS}
        cells: dict[str, Cell] = {}
        points = _points(config, axes, document)
        for seed in _distinct(config.seeds, document):
            for point in points:
                cell = _cell(base, axes, point, seed, document)
                cells.setdefault(cell.id, cell)
        if not cells:
            raise document.error(("exclude",), "every cell of the matrix is excluded")
        source = json.loads(json.dumps(document.data, default=str))
        return cls(config.name, axes, tuple(config.seeds), source, tuple(cells.values()))


def _validated(
    kind: type[BaseModel],
    data: Any,
    path: KeyPath,
    document: Document,
    origin: _Origin | None = None,
) -> Any:
    """Validate settings; the first error becomes one line that names the place and the mend.

    Args:
        kind: the pydantic model.
        data: what was written.
        path: where the settings belong, for the name of the key in the message.
        document: knows the lines.
        origin: which of the settings were written elsewhere: in the matrix.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        location = tuple(p for p in first["loc"] if isinstance(p, str | int))
        key = ".".join(str(p) for p in (*path, *location))
        place = _written((*path, *location), origin or {})
        if first["type"] == "extra_forbidden":
            valid = nearest(str(location[-1]), _fields(kind, location[:-1]))
            raise document.error(place, f"unknown key '{key}'; {valid}") from error
        if first["type"] == "missing":
            raise document.error(place, f"key '{key}' is missing; add it") from error
        message = first["msg"].removeprefix("Value error, ")
        message = re.sub(r" or instance of \w+", "", message).replace("dictionary", "mapping")
        given = f", got {shown(first['input'])!r}" if _scalar(first["input"]) else ""
        raise document.error(place, f"{key}: {message[:1].lower()}{message[1:]}{given}") from error


def _written(path: KeyPath, origin: _Origin) -> KeyPath:
    """Where a setting was written: in the innermost axis that reaches it, else at its own place."""
    for length in range(len(path), 0, -1):
        place = origin.get(tuple(map(str, path[:length])))
        if place is not None:
            return (*place, *path[length:])
    return path


def _distinct(seeds: Sequence[int], document: Document) -> Sequence[int]:
    for i, seed in enumerate(seeds):
        if seed in seeds[:i]:
            raise document.error(("seeds", i), f"seeds: {seed} stands twice; remove one")
    return seeds


def _fields(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for name in path:
        info = kind.model_fields.get(str(name))
        inner = info.annotation if info else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return list(kind.model_fields)


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _axes(config: GridConfig, document: Document) -> tuple[Axis, ...]:
    axes: list[Axis] = []
    known = _settings(config, document) if config.matrix else []
    for key, values in config.matrix.items():
        path = _resolve(key, known, document)
        if not values:
            raise document.error(("matrix", key), f"axis '{key}' has no values; give at least one")
        for other in axes:
            if other.path == path:
                raise document.error(
                    ("matrix", key),
                    f"axis '{key}' varies {'.'.join(path)}, as '{other.key}' does; remove one",
                )
        labels = tuple(_label(value) for value in values)
        if len(set(map(repr, labels))) < len(labels):
            raise document.error(
                ("matrix", key), f"axis '{key}' names a value twice; remove one, or label them"
            )
        axes.append(Axis(key, path[-1], path, tuple(values), labels))
    names = [axis.name for axis in axes]
    return tuple(
        axis if names.count(axis.name) == 1 else Axis(**{**vars(axis), "name": ".".join(axis.path)})
        for axis in axes
    )


def _label(value: Any) -> Any:
    """What stands for a value in tables."""
    if _scalar(value):
        return value
    if isinstance(value, dict) and _scalar(
        value.get("label", value.get("name", value.get("source")))
    ):
        named = value.get("label", value.get("name", value.get("source")))
        if named is not None:
            return named
    return json.dumps(value, default=str)


def _resolve(key: str, known: list[tuple[str, ...]], document: Document) -> tuple[str, ...]:
    """The setting that an axis varies: a dotted path, or the only setting of that last name."""
    place = ("matrix", key)
    path = tuple(key.split("."))
    if path in known or (path[0] in SECTIONS and _is_open(path)):
        return path
    if key in ("seed", "seeds"):
        raise document.error(place, "seeds are no axis; list them under the key 'seeds'")
    found = [p for p in known if p[-1] == key]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(".".join(p) for p in found)
        raise document.error(place, f"axis '{key}' is ambiguous; write one of: {choices}")
    names = [".".join(p) for p in known] if "." in key else [p[-1] for p in known if len(p) > 1]
    raise document.error(place, f"unknown axis '{key}'; {nearest(key, names)}")


def _settings(config: GridConfig, document: Document) -> list[tuple[str, ...]]:
    """Every setting that an axis may vary, the arguments of the grid's models included."""
    paths: list[tuple[str, ...]] = [(section,) for section in SECTIONS]
    for section, kind in SECTIONS.items():
        paths += [(section, name) for name in kind.model_fields if name != "args"]
    arguments = set(config.model.get("args") or {})
    for place, name in _models(config).items():
        try:
            arguments |= valid_args(name)
        except GradscopeError as error:
            raise document.error(place, str(error)) from error
    paths += [("model", "args", name) for name in sorted(arguments)]
    paths += [("data", "args", name) for name in sorted(config.data.get("args") or {})]
    return paths


def _models(config: GridConfig) -> dict[KeyPath, str]:
    """Where the grid names a model -> its name; what is no text is told of by the validation."""
    named: dict[KeyPath, Any] = {("model", "name"): config.model.get("name")}
    for i, value in enumerate(config.matrix.get("model", ())):
        named["matrix", "model", i, "name"] = value.get("name") if isinstance(value, dict) else None
    for i, value in enumerate(config.matrix.get("model.name", ())):
        named["matrix", "model.name", i] = value
    return {place: name for place, name in named.items() if isinstance(name, str)}


def _is_open(path: tuple[str, ...]) -> bool:
    """Paths below free-form settings, which only the factory itself can check."""
    return len(path) > 2 and path[:2] in (("model", "args"), ("data", "args"), ("model", "init"))


def _points(config: GridConfig, axes: tuple[Axis, ...], document: Document) -> list[_Point]:
    """The value of each axis at every point that is not excluded, then the included ones."""
    by_name = {n: axis for axis in axes for n in (axis.key, axis.name, ".".join(axis.path))}

    def known(entry: dict[str, Any], place: KeyPath) -> dict[str, Any]:
        for name in entry:
            if name not in by_name:
                valid = nearest(name, [a.key for a in axes])
                raise document.error((*place, name), f"unknown axis '{name}'; {valid}")
        return {by_name[name].name: value for name, value in entry.items()}

    excluded = [known(e, ("exclude", i)) for i, e in enumerate(config.exclude)]
    used = [False] * len(excluded)
    points: list[_Point] = []
    for choice in itertools.product(*(range(len(a.values)) for a in axes)):
        labels = {a.name: a.labels[i] for a, i in zip(axes, choice, strict=True)}
        hits = [all(labels[n] == v for n, v in e.items()) for e in excluded]
        used = [was or hit for was, hit in zip(used, hits, strict=True)]
        if not any(hits):
            points.append(
                {
                    a.name: (a.values[i], ("matrix", a.key, i))
                    for a, i in zip(axes, choice, strict=True)
                }
            )
    for i, was_used in enumerate(used):
        if not was_used:
            raise document.error(
                ("exclude", i), "this exclusion matches no cell; its values must be of the matrix"
            )
    for i, entry in enumerate(config.include):
        known(entry, ("include", i))
        axis_of = {name: by_name[name] for name in entry}
        points.append(
            {a.name: (a.meant(entry[name]), ("include", i, name)) for name, a in axis_of.items()}
        )
    return points


def _cell(
    base: dict[str, Any],
    axes: tuple[Axis, ...],
    point: _Point,
    seed: int,
    document: Document,
) -> Cell:
    settings: dict[str, Any] = {**base, "seed": seed}
    origin: _Origin = {}
    for axis in sorted(axes, key=lambda axis: len(axis.path)):  # what is inside a section, after it
        if axis.name in point:
            value, origin[axis.path] = point[axis.name]
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k != "label"}
            settings = merged(settings, axis.path, value)
    config = _config(settings, origin, document)
    factors = {
        axis.name: _label(point[axis.name][0]) if axis.name in point else _at(config, axis.path)
        for axis in axes
    }
    return Cell(_identity(factors, config), factors, config)


def _config(settings: dict[str, Any], origin: _Origin, document: Document) -> CellConfig:
    sections = {
        name: _validated(kind, settings[name], (name,), document, origin)
        for name, kind in SECTIONS.items()
    }
    model = sections["model"]
    try:
        check_args(model)
    except GradscopeError as error:
        raise document.error(_written(_refused(model), origin), str(error)) from error
    seed = _validated(CellConfig, {**sections, "seed": settings["seed"]}, ("seeds",), document).seed
    return CellConfig(**sections, seed=seed)


def _refused(model: ModelConfig) -> KeyPath:
    """Which setting of a model `check_args` refuses: one of its arguments, else its name."""
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
    return value if _scalar(value) else _label(value)


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
