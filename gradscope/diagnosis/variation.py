"""Findings on variation: outputs that are the same for every example, units that are all alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from torch import Tensor

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.loss_side import output_module
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.layers import WEIGHTED, names
from gradscope.trace.table import RecordedTensor
from gradscope.trace.vocabulary import place_of


def collapse(case: Case) -> Iterator[Finding]:
    """The output of the network has become, or stays, the same for all examples."""
    outputs = [(i, t) for i, t in case.columns("activation") if t.module == output_module(case)]
    for i, tensor in outputs[-1:]:
        rows, found = _known(case, i)
        if len(found) < 2 or _fits_targets(case, i, float(found[-1])):
            continue
        last, most = float(found[-1]), float(found.max())
        fell = last < limits.COLLAPSED and most >= limits.COLLAPSE * last
        never = most < limits.ALIKE and len(case.trace.steps) >= limits.MIN_STRETCH
        if not fell and not (never and _inputs_vary(case)):
            continue
        # One number for each example may have to be the same: the value of a state, a price.
        certain = math.prod(tensor.shape[1:]) > 1
        same = (row for row, value in zip(rows, found, strict=True) if value < limits.COLLAPSED)
        yield Finding(
            "constant-output" if never else "collapse",
            Severity.ERROR if certain else Severity.WARNING,
            (_lost_at(case, tensor) if never else tensor.name) or "(root)",
            f"The output of the network {_IS if never else _BECAME} the same for every example, "
            "though the inputs differ: it tells nothing of them, and the gradients of the examples "
            "cancel.",
            {
                "variation": Evidence(last, "variance over examples / mean square"),
                "highest": Evidence(most, "over the recorded steps"),
            },
            _DEEP if never else _EASIER,
            Verdict.DEAD if certain else None,
            since=case.trace.steps[next(same)].step,
        )


_IS, _BECAME = "is", "has collapsed: it has become"
_EASIER = (
    "Lower the learning rate; where a loss compares examples with each other, begin with easier "
    "ones (all or semi-hard triplets rather than the hardest) and normalise the embeddings; let no "
    "penalty or weight decay outweigh the loss."
)
_DEEP = (
    "Use fewer layers that average over examples or neighbours, or add skips around them; "
    "initialise at a scale that keeps differences (kaiming_normal_), and normalise."
)


def units_alike(case: Case) -> Iterator[Finding]:
    """Layers whose units all start with the same weights: they stay the same for ever."""
    weighted = names(WEIGHTED)
    layers: list[tuple[str, float]] = []
    for i, tensor in case.columns("weight"):
        info = case.modules.get(tensor.module)
        few = tensor.shape[0] < 2 or math.prod(tensor.shape[1:]) < 2 if tensor.shape else True
        if info is None or info.type not in weighted or tensor.parameter != "weight" or few:
            continue
        first = case.values("variation", i)[:1]
        layers.append((tensor.name, float(first[0]) if len(first) else math.nan))
    # Units of a layer stay alike where what reads them treats them alike: the layer after it.
    alike = [
        name
        for (name, own), (_, after) in itertools.pairwise(layers)
        if own < limits.ALIKE and after < limits.ALIKE
    ]
    if alike:
        yield Finding(
            "units-alike",
            Severity.ERROR,
            listed(alike),
            "All units of these layers start with the same weights, and so do those after them: "
            "they get the same gradient and stay alike, so that each layer is one unit wide.",
            {
                "layers": Evidence(len(alike), f"of {len(layers)}"),
                "variation": Evidence(
                    max(v for n, v in layers if n in alike), "variance over units"
                ),
            },
            "Initialise the weights at random (kaiming_normal_, xavier_normal_): a constant never "
            "breaks the symmetry.",
            Verdict.DEAD,
        )


def _known(case: Case, column: int) -> tuple[list[int], Tensor]:
    """Rows in which the variation of a tensor was taken, and what it was."""
    series = case.trace.values[:, column, place_of("variation")]
    rows = (~series.isnan()).nonzero().flatten()
    return rows.tolist(), series[rows]


def _fits_targets(case: Case, column: int, last: float) -> bool:
    """Whether the outputs differ as much as the targets do."""
    side = case.structure.loss
    sizes = case.values("rms", column)
    if side is None or not side.targets or not len(sizes):
        return False
    spread = math.sqrt(last) * float(sizes[-1])
    return spread >= limits.COLLAPSED * side.targets[0].std


def _inputs_vary(case: Case) -> bool:
    """Whether something before the output differs from example to example."""
    return any(
        case.largest("variation", i) >= limits.COLLAPSED for i, _ in case.columns("activation")
    )


def _lost_at(case: Case, output: RecordedTensor) -> str:
    """The first module on the way from which on all outputs are the same."""
    lost = output.name
    for i, tensor in reversed(list(case.columns("activation"))):
        if tensor.order > output.order:
            continue
        if case.largest("variation", i) >= limits.COLLAPSED:
            break
        if case.largest("variation", i) >= 0:
            lost = tensor.name
    return lost
