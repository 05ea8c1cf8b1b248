"""The sentences of a report: generated from its numbers, and saying no more than these support."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gradscope.diagnosis.verdict import RestsOn, factor_of
from gradscope.report.claims import effect_sentences, explained, strongest
from gradscope.study import labels
from gradscope.study.effect import Effect
from gradscope.study.objectives import PREFIX
from gradscope.study.outcome import NOT_LEARNING
from gradscope.study.tables import Tables


def opening(tables: Tables, found: Sequence[Effect]) -> tuple[str, ...]:
    """What the study found, in a few sentences with numbers.

    Args:
        tables: of the study.
        found: its effects.

    Returns:
        Sentences, not escaped; the first says what was run and how its gradients are.
    """
    sentences = [health(tables), resting(tables), *extremes(tables), learning(tables)]
    sentences += [strongest(tables, found, key) for key in ("drift", "accuracy")]
    sentences += explained(tables, found)
    wanted = [e for e in found if e.metric.startswith(PREFIX)]
    sentences += effect_sentences(wanted)
    if not wanted and not any(e.metric == "accuracy" for e in found):
        sentences += best(tables)
    return tuple(s for s in sentences if s)


def health(tables: Tables) -> str:
    """How many cells have which verdict."""
    verdicts = Counter(r.verdict for r in tables.readings if r.verdict)
    judged = sum(verdicts.values())
    total = len(tables.readings)
    noun = "run" if tables.kind == "traces" else "cell"
    if not judged:
        return f"None of the {labels.count(total, noun)} has a recorded gradient yet."
    if total == 1:
        return f"The gradient is {next(iter(verdicts))}."
    if len(verdicts) == 1 and judged == total:
        verdict = next(iter(verdicts))
        return f"All {total} {noun}s are {verdict}."
    parts = [f"{n} {'is' if n == 1 else 'are'} {v}" for v, n in verdicts.most_common()]
    of = f"{judged} of {total} {noun}s that have a gradient"
    of = of if judged < total else f"{total} {noun}s"
    return f"Of the {of}, {labels.listed(parts, 8)}."


def resting(tables: Tables) -> str:
    """What the verdict on a single run rests on: what was seen, and the stretch of the network."""
    if len(tables.readings) != 1 or not tables.readings[0].verdict:
        return ""
    seen = RestsOn(**tables.readings[0].diagnosis["rests_on"])
    stretch = str(tables.cell_rows[0]["rests_on"]) if seen.steps else ""
    return f"The verdict {seen}{': ' if stretch else ''}{stretch}."


def extremes(tables: Tables) -> list[str]:
    """The steepest and the flattest gradient."""
    known = [
        (variant, [r.flow.slope for r in map(tables.readings.__getitem__, variant.cells)
                   if r.flow is not None and math.isfinite(r.flow.slope)])
        for variant in tables.variants
    ]  # fmt: skip
    slopes = [(v, float(np.mean(s))) for v, s in known if s]
    if not slopes:
        return []
    steepest = max(slopes, key=lambda s: abs(s[1]))
    words = f"{_drift(steepest[1])} decades of gradient norm per block"
    if len(slopes) == 1:
        reading = tables.readings[slopes[0][0].cells[0]]
        assert reading.flow is not None
        flow = reading.flow
        through = labels.count(len(flow.blocks), "block")
        return [f"On its way back through {through} its norm {_change(flow.total, flow.slope)}."]
    flattest = min(slopes, key=lambda s: abs(s[1]))
    flat = f"the flattest ({flattest[0].label}) {_drift(flattest[1])}"
    return [f"The steepest variant ({steepest[0].label}) {words}; {flat}."]


def _drift(slope: float) -> str:
    verb = "loses" if slope < 0 else "gains"
    return f"{verb} {labels.number(abs(slope), 2)}"


def _change(decades: float, slope: float) -> str:
    """What the norm does in all; per block too, where the typical block does the same."""
    if abs(decades) < 0.005:
        return "stays as it was"
    verb = "shrinks" if decades < 0 else "grows"
    words = f"{verb} by {factor_of(decades)} ({labels.number(abs(decades), 2)} decades)"
    if decades * slope > 0:
        words += f", {labels.number(abs(slope), 2)} decades in a typical block"
    return words


def learning(tables: Tables) -> str:
    """How many of the cells that were trained to the end learned nothing."""
    idle = [row for row in tables.cell_rows if row["status"] == NOT_LEARNING]
    if not idle:
        return ""
    do = "does" if len(idle) == 1 else "do"
    return (
        f"{len(idle)} of {labels.count(len(tables.readings), 'cell')} {do} not learn: the loss is "
        "not below that of chance, and the accuracy is within what guessing gives."
    )


def best(tables: Tables) -> list[str]:
    """The best validation accuracy, where factors cannot be compared."""
    known = [row for row in tables.cell_rows if math.isfinite(row["val_accuracy"])]
    if not known:
        return []
    top = max(known, key=lambda row: float(row["val_accuracy"]))
    where = f" ({top['variant']})" if len(known) > 1 else ""
    return [f"The best validation accuracy is {labels.percent(top['val_accuracy'])}{where}."]


def completeness(tables: Tables) -> tuple[str, ...]:
    """What is missing: cells that did not run, failed or diverged, seeds that are absent."""
    counts = Counter(str(r.result.status) for r in tables.readings)
    total = len(tables.readings)
    sentences = []
    words = {
        "pending": ("has not run yet", "have not run yet"),
        "running": ("is still running", "are still running"),
        "failed": ("failed", "failed"),
        "diverged": ("diverged", "diverged"),
    }
    missing = [f"{counts[s]} {one if counts[s] == 1 else many}" for s, (one, many) in words.items()
               if counts[s]]  # fmt: skip
    if missing:
        sentences.append(
            f"Of {labels.count(total, 'cell')}, {labels.listed(missing)}. Each comparison leaves "
            "out the cells that lack its number."
        )
    seeds = {len(v.cells) for v in tables.variants}
    if len(seeds) > 1:
        sentences.append(f"Variants have between {min(seeds)} and {max(seeds)} seeds.")
    broken = sum(bool(r.trace_error) for r in tables.readings)
    if broken:
        sentences.append(f"The trace of {labels.count(broken, 'cell')} could not be read.")
    return tuple(sentences)


def certainty(tables: Tables) -> str:
    """How sure the comparisons are."""
    if len(tables.variants) < 2 or tables.kind == "traces":
        return ""
    n = tables.n_seeds
    if n < 2:
        return (
            "There is one seed per variant. Nothing here tells an effect from the luck of that "
            "seed: estimates come without intervals and without p-values."
        )
    return (
        f"Up to {n} seeds per variant. Intervals are 95 %, over seeds: differences are taken "
        "within a seed, with Welch-Satterthwaite degrees of freedom. p-values are corrected for "
        "all comparisons on the same metric (Holm)."
    )
