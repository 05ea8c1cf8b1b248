"""What was measured of each layer beside the flow: updates, weights, outputs, clipping, metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscope.trace.table import RecordedTensor, Trace
from gradscope.trace.vocabulary import HISTOGRAM_RANGE, place_of

Columns = dict[str, Any]
"""Name of a column -> its values; all of one length."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kept:
    """How much of each measure is kept."""

    layers: int
    steps: int
    logged: int


def evenly(n: int, limit: int) -> list[int]:
    """At most so many of n positions, evenly spaced, the first and the last among them."""
    if n <= limit:
        return list(range(n))
    spaced = np.linspace(0, n - 1, max(limit, 2)).round().astype(int)
    return [int(i) for i in np.unique(spaced)]


def measures(trace: Trace, kept: Kept) -> dict[str, Columns]:
    """Everything that a trace measured beside the flow, as tables.

    Args:
        trace: any trace.
        kept: where to thin.

    Returns:
        - ``layers``: of each weight the median over the steps of update/weight, and its norm at the
          first and the last step;
        - ``outputs``: of each module's output the median rms, and the shares of zeros, of dead and
          of saturated units at the last recorded step;
        - ``course``: at each step the norm of all gradients, the share of it that clipping left,
          the median update/weight over the layers, and the loss scale;
        - ``histogram``: counts of log2|gradient| of each weight over all steps;
        - ``logged``: what the user logged, and learning rates.

        A table without a measured number is empty.
    """
    types = {info.name: info.type for info in trace.structure.modules}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column that was never measured is NaN
        return {
            "layers": _layers(trace, types, kept),
            "outputs": _outputs(trace, types, kept),
            "course": _course(trace, kept),
            "histogram": _histogram(trace, kept),
            "logged": _logged(trace, kept),
        }


def _series(trace: Trace, columns: Sequence[int], statistic: str) -> Floats:
    """One statistic of some tensors; shape (steps, tensors)."""
    index = place_of(statistic)
    return np.asarray(trace.values[:, list(columns), index].double().numpy())


def _weights(trace: Trace) -> list[int]:
    """The parameters with two or more dimensions that ran, in execution order."""
    found = [
        i
        for i, t in enumerate(trace.tensors)
        if t.kind == "weight" and len(t.shape) > 1 and t.order >= 0
    ]
    return sorted(found, key=lambda i: (trace.tensors[i].order, i))


def _layer(tensor: RecordedTensor) -> str:
    return tensor.name.removesuffix(".weight")


def _layers(trace: Trace, types: dict[str, str], kept: Kept) -> Columns:
    chosen = _weights(trace)
    chosen = [chosen[i] for i in evenly(len(chosen), kept.layers)]
    updates = _series(trace, chosen, "update_ratio")
    norms = _series(trace, chosen, "weight_norm")
    if not np.isfinite(updates).any() and not np.isfinite(norms).any():
        return {}
    tensors = [trace.tensors[i] for i in chosen]
    return {
        "position": list(range(len(chosen))),
        "layer": [_layer(t) for t in tensors],
        "type": [types.get(t.module, "") for t in tensors],
        "update_ratio": np.nanmedian(updates, axis=0).tolist(),
        "weight_norm_first": _ends(norms, 0),
        "weight_norm": _ends(norms, -1),
    }


def _ends(values: Floats, at: int) -> list[float]:
    """The first or the last known value of each column; NaN where there is none."""
    found = []
    for column in values.T:
        known = column[np.isfinite(column)]
        found.append(float(known[at]) if len(known) else math.nan)
    return found


def _outputs(trace: Trace, types: dict[str, str], kept: Kept) -> Columns:
    found = [i for i, t in enumerate(trace.tensors) if t.kind == "activation" and t.output == 0]
    found.sort(key=lambda i: (trace.tensors[i].order, i))
    chosen = [found[i] for i in evenly(len(found), kept.layers)]
    rms = _series(trace, chosen, "rms")
    if not chosen or not np.isfinite(rms).any():
        return {}
    tensors = [trace.tensors[i] for i in chosen]
    return {
        "position": list(range(len(chosen))),
        "output": [t.name for t in tensors],
        "type": [types.get(t.module, "") for t in tensors],
        "rms": np.nanmedian(rms, axis=0).tolist(),
        "zero": _ends(_series(trace, chosen, "zero_fraction"), -1),
        "dead": _ends(_series(trace, chosen, "dead_fraction"), -1),
        "saturated": _ends(_series(trace, chosen, "saturated_fraction"), -1),
    }


def _course(trace: Trace, kept: Kept) -> Columns:
    every = [i for i, t in enumerate(trace.tensors) if t.kind == "weight"]
    norms = np.sqrt(np.nansum(_series(trace, every, "norm") ** 2, axis=1))
    whole = np.sqrt(np.nansum(_series(trace, every, "unclipped_norm") ** 2, axis=1))
    rows = evenly(len(trace.steps), kept.steps)
    if not rows or not every:
        return {}
    updates = np.nanmedian(_series(trace, _weights(trace), "update_ratio"), axis=1)
    left = np.where(whole > 0, norms / whole, np.nan)
    return {
        "step": [trace.steps[i].step for i in rows],
        "grad_norm": norms[rows].tolist(),
        "clipped_to": left[rows].tolist(),
        "update_ratio": updates[rows].tolist(),
        "loss_scale": [trace.steps[i].loss_scale for i in rows],
    }


def _histogram(trace: Trace, kept: Kept) -> Columns:
    if trace.histograms is None:
        return {}
    chosen = _weights(trace)
    chosen = [chosen[i] for i in evenly(len(chosen), kept.layers)]
    counts = trace.histograms[:, chosen].sum(dim=0).numpy()
    used = np.flatnonzero(counts.sum(axis=0))
    if not len(used):
        return {}
    bins = range(int(used[0]), int(used[-1]) + 1)
    return {
        "position": [p for p in range(len(chosen)) for _ in bins],
        "layer": [_layer(trace.tensors[i]) for i in chosen for _ in bins],
        "log2": [HISTOGRAM_RANGE[0] + b for _ in chosen for b in bins],
        "count": counts[:, bins.start : bins.stop].ravel().tolist(),
    }


def _logged(trace: Trace, kept: Kept) -> Columns:
    names: list[str] = []
    steps: list[int] = []
    values: list[float] = []
    for name, series in trace.logged.items():
        for i in evenly(len(series), kept.logged):
            names.append(name)
            steps.append(series[i][0])
            values.append(series[i][1])
    return {"name": names, "step": steps, "value": values} if names else {}
