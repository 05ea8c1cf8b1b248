"""Tables of the probe command that break no word at 80 columns, in a terminal or in a pipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gradscope.diagnosis.verdict import Diagnosis, Verdict
from gradscope.probing.outcomes import Remedies
from gradscope.trace.table import Prediction

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from gradscope.cli.probe_view import Probed

_SHOWN_BLOCKS = 40
"""Rows of the table of blocks; of a deeper network the first and the last half as many."""

_WIDE = 100
"""Columns from which a table has room for long names and for intervals."""


def console() -> Console:
    """Standard output; a pipe has no width, so its tables are those of 80 columns or COLUMNS."""
    from rich.console import Console

    return Console(soft_wrap=False, highlight=False)


def shortened(name: str, length: int) -> str:
    """A name that fits into a column: what is in the middle gives way."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"


def models_table(probed: Sequence[Probed], width: int) -> RenderableType:
    """Networks side by side, one row each."""
    from rich.console import Group

    wide = width >= _WIDE
    titles = ["model", "parameters", "blocks", "chi per\nblock", "decades", "predicted", "forward"]
    if wide:
        titles.insert(4, "95 %")
    table = _table(*titles, "verdict")
    name_width = max(16, width - (92 if wide else 64))
    for each in probed:
        flow = each.flow
        row = [
            shortened(each.name, name_width),
            f"{each.parameters:,}" if wide else _large(each.parameters),
            str(len(flow.blocks)),
            _chi(flow.slope),
            f"{flow.total:+.2f}",
            _signed(each.predicted_total),
            f"{flow.forward_total:+.2f}",
        ]
        if wide:
            row.insert(4, f"{_chi(flow.slope_low)} to {_chi(flow.slope_high)}")
        table.add_row(*map(_plain, row), _verdict(each.diagnosis.verdict))
    return Group(
        table,
        _note(
            "decades: log10 of the gradient norm at the first block over the last, measured and "
            "predicted; forward: of the activation rms at the last block over the first"
        ),
    )


def blocks_table(probed: Probed, width: int) -> RenderableType:
    """The blocks of one network, with what theory says of them under the table."""
    from rich.console import Group

    table = _table("block", "type", "log10\n|grad|", "chi", "predicted", "by")
    types = {block.name: block.type for block in probed.trace.structure.blocks}
    predictions = probed.predictions
    flow = probed.flow
    rows = list(zip(flow.blocks, flow.log10_grad, (math.nan, *flow.chi), strict=True))
    half = _SHOWN_BLOCKS // 2
    names, kinds = (24, 16) if width < _WIDE else (width - 76, 24)
    reasons: dict[str, int] = {}
    for i, (name, grad, chi) in enumerate(rows):
        if len(rows) > _SHOWN_BLOCKS and half <= i < len(rows) - half:
            if i == half:
                table.add_row("...", f"{len(rows) - 2 * half} more")
            continue
        told = predictions.get(name)
        reason = told.reason.removeprefix("mean field: ") if told else ""
        number = reasons.setdefault(reason, len(reasons) + 1) if reason else 0
        table.add_row(
            _plain(shortened(name, names)),
            _plain(shortened(types.get(name, ""), kinds)),
            f"{grad:.2f}",
            "" if math.isnan(chi) else f"{chi:.3g}",
            _interval(told),
            str(number or ""),
        )
    return Group(
        table,
        *(_note(f"{number}: {reason}") for reason, number in reasons.items()),
        _note(
            "chi: gradient norm at the output of the block before over that of this block; "
            "predicted: mean field, 95 % at this width"
        ),
    )


def outputs_table(probed: Probed, width: int) -> Table:
    """Every output of the network: heads, tuples, nested mappings."""
    table = _table("output", "shape", "rms")
    for name, shape, rms in probed.outputs:
        table.add_row(_plain(shortened(name, max(16, width - 40))), str(shape), f"{rms:.3g}")
    return table


def findings(diagnosis: Diagnosis) -> RenderableType:
    """Verdict and findings as paragraphs; each remedy is one line of its own."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    head = Text("verdict: ") + _verdict(diagnosis.verdict)
    parts: list[RenderableType] = [head, _note(str(diagnosis.rests_on))]
    styles = {"error": "bold red", "warning": "yellow", "info": "cyan"}
    for finding in diagnosis.findings:
        kind = Text(f"\n{finding.kind}", style=styles[finding.severity.value])
        since = "" if finding.since is None else f", since step {finding.since}"
        parts.append(kind + Text(f" at {finding.where}{since}", style="default"))
        numbers = "; ".join(f"{name} {e}" for name, e in finding.evidence.items())
        parts += [Padding(Text(t), (0, 0, 0, 2)) for t in (finding.message, numbers) if t]
    remedies = dict.fromkeys(f.remedy for f in diagnosis.findings if f.remedy)
    if remedies:
        parts.append(Text("\nremedies", style="bold"))
        parts += [_line(remedy) for remedy in remedies]
    return Group(*parts)


def remedies_table(remedies: Remedies, width: int) -> RenderableType:
    """What was tried on copies, ranked; under the table what to do for each, a line to copy."""
    from rich.console import Group
    from rich.text import Text

    table = _table("", "remedy", "chi per\nblock", "decades", "forward", "verdict")
    for i, outcome in enumerate((remedies.baseline, *remedies.ranked)):
        table.add_row(
            str(i) if i else "",
            _plain(shortened(outcome.name, max(24, width - 48))),
            _chi(outcome.slope),
            _signed(outcome.accumulated),
            _signed(outcome.forward),
            _verdict(outcome.verdict) if outcome.verdict else Text(""),
        )
    todo = [_line(f"{i}: {outcome.change}") for i, outcome in enumerate(remedies.ranked, 1)]
    unfit = [
        _note(f"does not apply: {outcome.name}: {outcome.reason}")
        for outcome in remedies.not_applicable
    ]
    title = Text("\nremedies, each tried on a copy", style="bold")
    return Group(title, table, *todo, *unfit)


def _interval(predicted: Prediction | None) -> str:
    if predicted is None or math.isnan(predicted.chi):
        return ""
    if not predicted.log_std:
        return f"{predicted.chi:.3g}"
    factor = math.exp(1.96 * predicted.log_std)
    return f"{predicted.chi:.3g} ({predicted.chi / factor:.2g} to {predicted.chi * factor:.2g})"


def _chi(log10: float) -> str:
    if math.isnan(log10):
        return ""
    return f"{10.0 ** max(min(log10, 300.0), -300.0):.3g}" if math.isfinite(log10) else "?"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else ""


def _large(n: int) -> str:
    """A count in at most six characters: ``850``, ``25.6M``."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.3g}{letter}"
    return str(n)


def _verdict(verdict: Verdict) -> Text:
    from rich.text import Text

    styles = {Verdict.HEALTHY: "bold green", Verdict.INCONCLUSIVE: "bold yellow"}
    return Text(verdict.value, style=styles.get(verdict, "bold red"))


def _plain(text: str) -> Text:
    """Text that rich does not read markup in: names come from outside."""
    from rich.text import Text

    return Text(text)


def _note(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="dim")


def _line(text: str) -> Text:
    """A line that no console folds, so that it can be copied whole."""
    from rich.text import Text

    return Text(" ".join(text.split()), no_wrap=True, overflow="ignore")


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    left: Iterable[str] = (
        "model",
        "block",
        "type",
        "predicted",
        "95 %",
        "verdict",
        "remedy",
        "output",
        "shape",
        "by",
        "",
    )
    for title in titles:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    return table
