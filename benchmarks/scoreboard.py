"""How far a diagnosis can be trusted: gradscope beside the published rules of other tools.

    python benchmarks/scoreboard.py                       # judges and prints (minutes)
    python benchmarks/scoreboard.py --only attention      # some of them, one line each
    python benchmarks/scoreboard.py --json FILE           # keeps what was judged
    python benchmarks/scoreboard.py --read FILE --markdown    # the table of README.md
    python benchmarks/scoreboard.py --markdown            # the same, judged anew

Each training of `subjects` runs once, watched by gradscope and by an observer that takes down what
the rules of `published_rules` need. A tool calls it sick or not: gradscope by any verdict but
healthy, the others where a rule fires. It names the cause where a finding (or what a rule can mean)
is one that the case asks for, and the place where it names a module or parameter that the case
does. The seed is 100; the tests of the project use 0 to 3.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from published_rules import AUTOTRAINER, CAUSES, SAGEMAKER, Observer, Rule, Step
from rich.console import Console
from rich.progress import track
from rich.table import Table
from subjects import Subject, subjects

import gradscope

TOOLS = ("gradscope", "SageMaker rules", "AUTOTRAINER rules", "always sick")
RULES: dict[str, dict[str, Rule]] = {"SageMaker rules": SAGEMAKER, "AUTOTRAINER rules": AUTOTRAINER}


def judge(subject: Subject, seed: int) -> dict[str, Any]:
    """What each tool says of one training.

    Returns:
        As JSON types: the subject, and for each tool a string with ``s`` where it calls it sick,
        ``c`` where it names the cause, ``p`` where it names the place.
    """
    training = subject.build(seed)
    model, observer = training.model, Observer(training.model, training.optimizers)
    with gradscope.watch(model, training.optimizers, every=1, **training.watch) as scope, observer:
        for i in range(training.steps):
            training.step(i)
    trace = scope.trace()
    observer.losses({s.step: s.loss for s in trace.steps if s.loss is not None})
    diagnosis = gradscope.diagnose(trace)
    told = [f for f in diagnosis.findings if f.severity != "info"]
    kinds = {f.kind for f in told} | {str(diagnosis.verdict)}
    tools = {"gradscope": _said(subject, not diagnosis.is_healthy, kinds, [f.where for f in told])}
    for name, rules in RULES.items():
        tools[name] = _by_rules(subject, rules, observer.steps)
    tools["always sick"] = _said(subject, True, (), ())
    return {
        "group": subject.group, "name": subject.name, "sick": bool(subject.kinds),
        "has_place": bool(subject.where), "verdict": str(diagnosis.verdict), "tools": tools,
    }  # fmt: skip


def _by_rules(subject: Subject, rules: dict[str, Rule], steps: list[Step]) -> str:
    fired = {name: {*rule(steps)} for name, rule in rules.items()}
    hit = [name for name, places in fired.items() if places]
    kinds = {kind for name in hit for kind in CAUSES[name]}
    return _said(subject, bool(hit), kinds, {p for places in fired.values() for p in places})


def _said(subject: Subject, sick: bool, kinds: Iterable[str], places: Iterable[str]) -> str:
    cause = bool(subject.kinds & {*kinds})
    place = sick and any(re.search(subject.where, place) for place in places)
    return "s" * sick + "c" * cause + "p" * place


def share(rows: Sequence[dict[str, Any]], tool: str, what: str) -> str:
    """How many of some rows, as `12/15` and a percentage; `what` is one of s, c, p."""
    hits = sum(what in row["tools"][tool] for row in rows)
    return f"{hits}/{len(rows)} ({100 * hits / len(rows):.0f} %)" if rows else "-"


def summary(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The lines of the table: title, then one cell for each of `TOOLS`."""
    sick = [row for row in rows if row["sick"]]
    sound = [row for row in rows if not row["sick"]]
    placed = [row for row in sick if row["has_place"]]

    def line(title: str, chosen: Sequence[dict[str, Any]], what: str) -> tuple[str, ...]:
        return (title, *(share(chosen, tool, what) for tool in TOOLS))

    def groups(chosen: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
        names = dict.fromkeys(row["group"] for row in chosen)
        return [line(f"- {n}", [row for row in chosen if row["group"] == n], "s") for n in names]

    lines = [line("sick: called sick", sick, "s"), *groups(sick)]
    lines += [line("sick: cause named", sick, "c"), line("sick: place named", placed, "p")]
    lines += [line("sound: called sick", sound, "s"), *groups(sound)]
    return [entry for entry in lines if any(cell != "-" for cell in entry[1:])]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table for README.md."""
    lines = ["| | " + " | ".join(TOOLS) + " |", "| --- " * (len(TOOLS) + 1) + "|"]
    lines += ["| " + " | ".join(entry) + " |" for entry in summary(rows)]
    return "\n".join(lines) + "\n"


def wrong(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each training that gradscope judged wrong or only by half."""
    lines = []
    for row in rows:
        said = row["tools"]["gradscope"]
        if row["sick"] and not ("s" in said and "c" in said):
            lines.append(f"{row['group']}: {row['name']}: {row['verdict']}, cause not named")
        elif not row["sick"] and "s" in said:
            lines.append(f"{row['group']}: {row['name']}: called {row['verdict']}, and is sound")
    return lines


def show(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """The table, and what gradscope judged wrong."""
    table = Table(title=f"{len(rows)} trainings", box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for tool in TOOLS:
        table.add_column(tool, justify="right")
    for entry in summary(rows):
        table.add_row(*entry, style="" if entry[0].startswith("-") else "bold")
    console.print(table)
    for text in wrong(rows):
        console.print(text, markup=False)


def main() -> None:
    """Judge, or read what was judged, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression on group and name")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was judged")
    parser.add_argument("--read", type=Path, metavar="FILE", help="read it instead of judging")
    parser.add_argument("--markdown", action="store_true", help="print the table of README.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    if options.read is not None:
        rows = json.loads(options.read.read_text(encoding="utf-8"))
    else:
        chosen = [s for s in subjects() if re.search(options.only, f"{s.group}: {s.name}")]
        if not chosen:
            parser.error(f"--only {options.only}: no training has such a name")
        warnings.simplefilter("ignore")
        rows = [judge(s, options.seed) for s in track(chosen, "judging", console=console)]
    if options.json is not None:
        lines = ",\n".join(json.dumps(row, sort_keys=True) for row in rows)
        options.json.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    if options.markdown:
        sys.stdout.write(markdown(rows))
    else:
        show(Console(), rows)


if __name__ == "__main__":
    main()
