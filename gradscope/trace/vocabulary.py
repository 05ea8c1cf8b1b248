"""The words of a trace: kinds of tensors, statistics, and the range of its histograms."""

from __future__ import annotations

from typing import Literal

Kind = Literal["weight", "activation", "activation_grad"]

KINDS: tuple[Kind, ...] = ("weight", "activation", "activation_grad")
"""``weight``: the gradient of the loss with respect to a parameter; ``activation``: the output of a
module; ``activation_grad``: the gradient of the loss with respect to that output."""

STATISTICS: dict[str, str] = {
    "norm": "L2 norm, accumulated in float32",
    "rms": "norm / sqrt(number of elements)",
    "abs_max": "largest magnitude",
    "zero_fraction": "share of elements that are exactly zero, 0 to 1",
    "nonfinite_fraction": "share of elements that are NaN or Inf, 0 to 1",
    "unclipped_norm": "norm of the gradient when backward had ended, before any clipping",
    "weight_norm": "L2 norm of the parameter itself before the step",
    "update_ratio": "norm(parameter after - before the step) / norm(parameter before)",
    "saturated_fraction": "share of outputs within 1 % of the bounds of a bounded activation",
    "dead_fraction": "share of units whose output was zero on every example of the last 17 to "
    "32 recorded steps, of all of them where there are fewer",
    "variation": "variance / mean square, 0 (all alike) to 1: of an output over the examples, in "
    "the first three recorded steps, then of what the network returns in every eighth, within it "
    "in every thirty-second; of a weight over its units, in the first",
    "carried_norm": "norm of the gradient that was there already when backward began",
    "unchanged_fraction": "share of a parameter's elements that the step left bit for bit as is",
}
"""Name of each statistic, as a column of the table, and its formula."""

_PLACES = {name: i for i, name in enumerate(STATISTICS)}

HISTOGRAM_RANGE = (-40, 24)
"""log2|g| covered by the histogram, one bin per power of two; outliers land in the end bins."""

PASSIVE = frozenset(
    f"{name}Backward{i}"
    for name in (
        "Alias",
        "AsStrided",
        "Clone",
        "Permute",
        "ReshapeAlias",
        "Slice",
        "Squeeze",
        "T",
        "ToCopy",
        "Transpose",
        "UnsafeView",
        "Unsqueeze",
        "View",
    )
    for i in range(4)
)
"""Autograd nodes that change the shape, place or dtype of elements and not their value."""


def place_of(statistic: str) -> int:
    """Where one of `STATISTICS` stands along the last dimension of `Trace.values`."""
    return _PLACES[statistic]
