"""One study from whatever a report is asked to draw: a trace, a study, several studies."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gradscope.study import labels
from gradscope.study.results import CellResult, Study
from gradscope.trace.table import Trace

STUDY_FACTOR = "study"
"""Name of the factor that tells merged studies apart."""


def as_study(source: Trace | Study | Sequence[Study]) -> tuple[Study, dict[str, Trace]]:
    """One study, and the traces that are not on disk, by the id of their cell."""
    if isinstance(source, Trace):
        return _of_trace(source)
    if isinstance(source, Study):
        return source, {}
    studies = list(source)
    return (studies[0] if len(studies) == 1 else merged(studies)), {}


def _of_trace(trace: Trace) -> tuple[Study, dict[str, Trace]]:
    name = next((m.type for m in trace.structure.modules if not m.name), "trace")
    cell = CellResult(name, {}, 0, "done", {})
    return Study(name, {}, (cell,)), {name: trace}


def merged(studies: Sequence[Study]) -> Study:
    """Several studies as one, with the study as a further factor.

    A factor that a study does not vary keeps the value that its cells were given, or has none.

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
            own = {STUDY_FACTOR: name, **result.factors}
            results.append(dataclasses.replace(result, id=f"{name}/{result.id}", factors=own))
    for factor, values in list(factors.items()):
        missing = [r for r in results if factor not in r.factors]
        if missing and labels.identity(None) not in {labels.identity(v) for v in values}:
            factors[factor] = (*values, None)
    return Study(
        name=" and ".join(names),
        factors=factors,
        results=tuple(results),
        grid={n: s.grid for n, s in zip(names, studies, strict=True)},
    )


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
