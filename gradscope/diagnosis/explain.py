"""What each verdict and each kind of finding means, from `findings.toml`; needs no torch."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from gradscope.diagnosis import limits
from gradscope.errors import ConfigError

_VALUES = {name: value for name, value in vars(limits).items() if name.isupper()}


@dataclass(frozen=True)
class Limit:
    """A number that a finding rests on."""

    name: str
    value: float
    reason: str
    """What it is and where it comes from."""


@dataclass(frozen=True)
class Explanation:
    """What a verdict or a kind of finding means."""

    kind: str
    means: str
    found: str
    """How it is found, with the numbers of `limits`."""
    alike: str
    """What looks like it and is something else."""
    sources: str = ""
    """Where it comes from, beside what stands at its limits."""
    limits: tuple[Limit, ...] = ()
    verdict: bool = False
    """Whether a diagnosis as a whole can be called so."""

    def to_dict(self) -> dict[str, object]:
        """As JSON types."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        parts = [self.kind, self.means, f"How it is found: {self.found}"]
        parts += [f"  {limit.name} = {limit.value:.4g}: {limit.reason}" for limit in self.limits]
        parts += [f"Source: {self.sources}"] if self.sources else []
        return "\n".join([*parts, f"What else looks like it: {self.alike}"])


@cache
def explanations() -> Mapping[str, Explanation]:
    """Kind -> its explanation, verdicts first, else in alphabetical order."""
    text = resources.files("gradscope.diagnosis").joinpath("findings.toml").read_text("utf-8")
    reasons = _reasons()
    told = {}
    for kind, entry in tomllib.loads(text).items():
        names = entry.pop("limits", ())
        entry["found"] = entry["found"].format_map(_VALUES)
        known = tuple(Limit(name, _VALUES[name], reasons[name]) for name in names)
        told[kind] = Explanation(kind, limits=known, **entry)
    return dict(sorted(told.items(), key=lambda item: (not item[1].verdict, item[0])))


def explain(kind: str) -> Explanation:
    """What a verdict or a kind of finding means.

    Args:
        kind: as a diagnosis names it, ``vanishing`` for example.

    Raises:
        ConfigError: there is no such kind.
    """
    known = explanations()
    if kind not in known:
        near = ", ".join(difflib.get_close_matches(kind, known, n=3, cutoff=0.0))
        raise ConfigError(
            f"explain {kind}: no such kind of finding; the nearest are {near}; `gradscope explain` "
            "lists all"
        )
    return known[kind]


def page() -> str:
    """All explanations as one page of Markdown: ``docs/findings.md``."""
    lines = [
        "# Verdicts and findings",
        "",
        (
            "What each word of a diagnosis means. `gradscope explain KIND` prints the same; the "
            "page is made by `python -m gradscope.diagnosis.explain > docs/findings.md`."
        ),
    ]
    for title, wanted in (("Verdicts", True), ("Findings", False)):
        lines += ["", f"## {title}"]
        for each in explanations().values():
            if each.verdict is wanted:
                lines += ["", f"### {each.kind}", "", *_paragraphs(each)]
    return "\n".join(lines) + "\n"


def _paragraphs(each: Explanation) -> list[str]:
    lines = [each.means, "", f"**How it is found.** {each.found}"]
    lines += [""] if each.limits else []
    lines += [f"- `{limit.name}` = {limit.value:.4g}: {limit.reason}" for limit in each.limits]
    lines += ["", f"**Source.** {each.sources}"] if each.sources else []
    return [*lines, "", f"**What else looks like it.** {each.alike}"]


def _reasons() -> dict[str, str]:
    """Name of a limit -> the text that stands under it in `limits.py`."""
    source = resources.files("gradscope.diagnosis").joinpath("limits.py").read_text("utf-8")
    body = ast.parse(source).body
    return {
        target.id: " ".join(text.value.value.split())
        for limit, text in itertools.pairwise(body)
        if isinstance(limit, ast.Assign) and isinstance(text, ast.Expr)
        for target in limit.targets
        if isinstance(target, ast.Name)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - the page is what it is run for
