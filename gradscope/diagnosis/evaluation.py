"""Findings on the mode of modules: trained while they are as in evaluation."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.case import Case, is_inside, listed
from gradscope.diagnosis.verdict import Evidence, Finding, Severity
from gradscope.layers import is_norm
from gradscope.trace.structure import ModuleInfo

_SHARES = ("drop_prob", "dropout")
"""Attributes that hold the share which a module drops in training, whatever its class."""


def evaluation_mode(case: Case) -> Iterator[Finding]:
    """A network, or a part with trained weights, whose dropout and batch norm are switched off."""
    trained = _trained(case)
    reached = {
        t.module
        for i, t in case.columns("activation_grad")
        if bool(case.trace.present[:1, i].any())  # the pass that was noted is the one trained on
    }
    parts: dict[str, list[ModuleInfo]] = {}
    for info in case.structure.modules:
        off = info.order >= 0 and "eval_since" in info.settings
        if off and info.output in reached and (_drops(info) or _averages(info)):
            part = _part(case, info.name)
            if part is not None and any(is_inside(name, part) for name in trained):
                parts.setdefault(part, []).append(info)
    if not parts:
        return
    idle = [info for infos in parts.values() for info in infos]
    norms = [info for info in idle if _averages(info)]
    fresh = sum(bool(info.settings.get("untouched")) for info in norms)
    evidence = {
        "drop nothing": Evidence(len(idle) - len(norms), "modules"),
        "running statistics": Evidence(len(norms), "modules"),
        "untouched": Evidence(fresh, "of them as they were made: they normalise nothing"),
    }
    since = max(int(info.settings["eval_since"]) for info in idle)
    yield Finding(
        "evaluation-mode",
        Severity.WARNING,
        listed([part or "(root)" for part in parts]),
        "Weights are trained while the modules around them are in evaluation mode: "
        + " and ".join(
            text
            for text, holds in (
                ("dropout drops nothing", len(idle) > len(norms)),
                ("batch norm does not use the batch", len(norms) > fresh),
                ("batch norm normalises nothing, as its running statistics are untouched", fresh),
            )
            if holds
        )
        + ".",
        {name: number for name, number in evidence.items() if number.value},
        "Call model.train() before the training loop and after each validation. Where that is "
        "meant, put only the modules that it is meant for into eval(), or set p = 0.",
        since=since or None,
    )


def _trained(case: Case) -> set[str]:
    """Modules other than normalisations with parameters that an optimizer holds and that learn."""
    return {
        t.module
        for i, t in case.columns("weight")
        if t.name in case.held
        and not is_norm(case.modules[t.module].type if t.module in case.modules else "")
        and case.largest("norm", i) > 0
    }


def _part(case: Case, name: str) -> str | None:
    """The outermost module around one that is in evaluation mode itself, with nothing between."""
    path, found = name, None
    while True:
        info = case.modules.get(path)
        if info is not None and info.order >= 0:  # a ModuleList never runs
            if "eval_since" not in info.settings:
                return found
            found = path
        if not path:
            return found
        path = path.rpartition(".")[0]


def _drops(info: ModuleInfo) -> bool:
    """Whether a module that is in evaluation mode would drop something in training."""
    known, kind = info.settings, info.type.lower()
    own = known.get("p", 0.0) if "drop" in kind or "stochasticdepth" in kind else 0.0
    return max(own, *(known.get(name, 0.0) for name in _SHARES)) > 0 or kind == "rrelu"


def _averages(info: ModuleInfo) -> bool:
    """Whether a norm uses running statistics for being in evaluation mode."""
    return "running" in info.settings
