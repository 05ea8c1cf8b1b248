"""Several draws of the weights of one network, judged together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gradscope.diagnosis.verdict import PRIORITY, Diagnosis, Evidence, Finding, Severity, Verdict


def verdict_of(draws: Mapping[int, Diagnosis]) -> Verdict:
    """The verdict on a network whose weights were drawn several times.

    A network is well unless more than half of its draws are not; then the verdict is the one that
    most of those give, of equally many the one that hides the others.

    Args:
        draws: seed -> the diagnosis of that draw, at least one.
    """
    counts = Counter(each.verdict for each in draws.values() if not each.is_healthy)
    if 2 * counts.total() <= len(draws):
        return Verdict.HEALTHY
    most = max(counts.values())
    return next(verdict for verdict in PRIORITY if counts[verdict] == most)


def judge_draws(draws: Mapping[int, Diagnosis]) -> Diagnosis:
    """One diagnosis from those of several draws of the weights.

    Args:
        draws: seed -> the diagnosis of that draw, at least one.

    Returns:
        The first diagnosis that has the verdict of them all (`verdict_of`), or of a network that is
        well in just half of its draws. Where draws differ, a warning counts their verdicts.
    """
    verdict = verdict_of(draws)
    shown = next(each for each in draws.values() if each.verdict is verdict)
    counts = Counter(each.verdict for each in draws.values())
    if len(counts) == 1:
        return shown
    others = [(v, n) for v, n in counts.most_common() if v is not verdict]
    told = " and ".join(f"{v.value} in {n} of {len(draws)} draws" for v, n in others)
    first = {v: next(s for s, each in draws.items() if each.verdict is v) for v, _ in others}
    seeds = ", ".join(f"{v.value} with seed {seed}" for v, seed in first.items())
    finding = Finding(
        "differs-by-draw",
        Severity.WARNING,
        "initialisation",
        f"This network is {told} of its weights: what becomes of it depends on the seed ({seeds}).",
        {v.value: Evidence(n, f"of {len(draws)} draws") for v, n in counts.most_common()},
        "Look at such a draw on its own, and give the weights an initialisation that leaves less "
        "to chance (wider layers, orthogonal_, normalisation in each branch).",
    )
    at = sum(f.severity is Severity.ERROR for f in shown.findings)
    ordered = (*shown.findings[:at], finding, *shown.findings[at:])
    return Diagnosis(verdict, ordered, shown.rests_on)
