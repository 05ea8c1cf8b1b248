"""One study from whatever a report is asked to draw: a trace, a study, several studies."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gradscope.errors import ConfigError
from gradscope.models.config import resolve
from gradscope.study import labels
from gradscope.study.results import CellResult, Study
from gradscope.trace.table import Trace

STUDY_FACTOR = "study"
"""Name of the factor that tells merged studies apart."""

RUN_FACTOR = "run"
"""Name of the factor that tells compared traces apart."""

DEFAULT = "default"
"""What stands for the value of a setting that a study neither varies nor tells."""


Source = Trace | Study | Sequence[Study] | Sequence[Trace] | Mapping[str, Trace]

Kind = Literal["trace", "traces", "study", "studies"]


@dataclass(frozen=True)
class Gathered:
    """Whatever is to be drawn, as one study."""

    study: Study
    kind: Kind
    traces: dict[str, Trace] = field(default_factory=dict)
    """Cell id -> its trace, where it is not on disk."""
    factor: str = ""
    """The factor that tells apart what is compared, for ``traces`` and ``studies``."""


def gather(source: Source) -> Gathered:
    """One study from a trace, a study, or several of one of them.

    Args:
        source: several traces may have names; else they are called before and after, or numbered.

    Raises:
        ConfigError: neither a trace nor a study was given, or traces and studies together.
    """
    if isinstance(source, Trace):
        name = _network(source)
        cell = CellResult(name, {}, 0, "done", {})
        return Gathered(Study(name, {}, (cell,)), "trace", {name: source})
    if isinstance(source, Study):
        return Gathered(source, "study")
    if isinstance(source, Mapping) and all(isinstance(each, Trace) for each in source.values()):
        return _of_traces(dict(source))
    if isinstance(source, str | Mapping) or not isinstance(source, Iterable):
        raise ConfigError(
            f"nothing to draw in a {type(source).__name__}: give a trace, such as scope.trace() or "
            "Trace.load(path), or a study, or several of one of them"
        )
    every: list[Any] = list(source)
    if len(every) == 1:
        return gather(every[0])
    if every and all(isinstance(each, Trace) for each in every):
        names = (
            ["before", "after"] if len(every) == 2 else [f"run {i + 1}" for i in range(len(every))]
        )
        return _of_traces(dict(zip(names, every, strict=True)))
    if every and all(isinstance(each, Study) for each in every):
        return Gathered(merged(every), "studies", factor=STUDY_FACTOR)
    raise ConfigError(
        "nothing to compare: give one or several traces, or one or several studies, not both"
    )


def _network(trace: Trace) -> str:
    return next((m.type for m in trace.structure.modules if not m.name), "network")


def _of_traces(traces: dict[str, Trace]) -> Gathered:
    """Several runs as the cells of a study whose one factor is the run."""
    cells = tuple(CellResult(name, {RUN_FACTOR: name}, 0, "done", {}) for name in traces)
    networks = dict.fromkeys(_network(trace) for trace in traces.values())
    name = f"{labels.listed(networks)}: {labels.listed(traces)}"
    study = Study(name, {RUN_FACTOR: tuple(traces)}, cells)
    return Gathered(study, "traces", traces, RUN_FACTOR)


def merged(studies: Sequence[Study]) -> Study:
    """Several studies as one, with the study as a further factor.

    A factor that a study does not vary has the value that its cells were trained with: that of
    their configuration, else the default of the model's factory.

    Args:
        studies: two or more; those of one name are told apart by folder or by number.

    Returns:
        A study whose cell ids carry the name of their study.
    """
    names = _distinct(studies)
    factors: dict[str, tuple[Any, ...]] = {STUDY_FACTOR: tuple(names)}
    for study in studies:
        for factor, values in study.factors.items():
            known = {labels.identity(v): v for v in (*factors.get(factor, ()), *values)}
            factors[factor] = tuple(known.values())
    results = []
    for name, study in zip(names, studies, strict=True):
        for result in study.results:
            told = {f: setting(result, f) for f in factors if f not in result.factors}
            own = {**told, **result.factors, STUDY_FACTOR: name}
            for factor, value in told.items():
                told_of = {labels.identity(v) for v in factors[factor]}
                if factor != STUDY_FACTOR and labels.identity(value) not in told_of:
                    factors[factor] = (*factors[factor], value)
            results.append(dataclasses.replace(result, id=f"{name}/{result.id}", factors=own))
    return Study(
        name=" and ".join(names),
        factors=factors,
        results=tuple(results),
        grid={n: s.grid for n, s in zip(names, studies, strict=True)},
    )


def setting(result: CellResult, factor: str) -> Any:
    """The value of a setting that a cell's study did not vary.

    Args:
        result: the cell.
        factor: the last part of a path into its configuration, or the whole path.

    Returns:
        The value in the configuration, else the default of the model's factory, else `DEFAULT`.
    """
    found = [v for path, v in _leaves(result.config) if f".{path}".endswith(f".{factor}")]
    if found:
        return found[0]
    model = result.config.get("model")
    try:
        parameters = inspect.signature(resolve(model["name"])).parameters  # type: ignore[index]
    except Exception:  # noqa: BLE001  # a study from elsewhere: its model may not be here
        return DEFAULT
    default = parameters[factor].default if factor in parameters else inspect.Parameter.empty
    return DEFAULT if default is inspect.Parameter.empty else default


def _leaves(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path -> value of every setting that is no mapping, and of named ones by their name."""
    for name, value in config.items():
        at = f"{path}.{name}".strip(".")
        if isinstance(value, Mapping):
            named = value.get("label", value.get("scheme", value.get("name")))
            if named is not None:
                yield at, named
            yield from _leaves(value, at)
        else:
            yield at, value


def _distinct(studies: Sequence[Study]) -> list[str]:
    """A name for each study that no other one has."""
    names = [study.name for study in studies]
    for alternative in ("revision", "folder", "number"):
        if len(set(names)) == len(names):
            break
        counts = Counter(names)
        names = [
            f"{name} ({_mark(study, i, alternative)})" if counts[name] > 1 else name
            for i, (name, study) in enumerate(zip(names, studies, strict=True))
        ]
    return names


def _mark(study: Study, position: int, kind: str) -> str:
    if kind == "revision":
        revisions = [r.environment.get("git") for r in study.results if r.environment]
        return str(next((r for r in revisions if r), "?"))[:12]
    return study.path.name if kind == "folder" and study.path else f"no. {position + 1}"
