"""The figures of a report as plotly objects; each can be shown alone, in a notebook for example."""

from __future__ import annotations

from collections.abc import Callable

from gradscope.report.chart import Chart
from gradscope.report.figures import (
    classes,
    comparisons,
    flow,
    histogram,
    layers,
    steps,
    training,
)
from gradscope.report.figures.common import Drawing

__all__ = ["Drawing", "all_charts"]

MAKERS: tuple[Callable[[Drawing], Chart | tuple[Chart, ...] | None], ...] = (
    flow.flow_map,
    flow.gradient_profile,
    flow.chi_profile,
    flow.layer_heat,
    flow.first_to_last,
    layers.by_layer,
    steps.by_step,
    histogram.histograms,
    comparisons.main_effects,
    comparisons.interactions,
    training.loss_by_step,
    steps.logged,
    classes.accuracy,
    training.by_epoch,
    classes.class_accuracy,
    classes.pooled,
    classes.confusion,
)


def all_charts(drawing: Drawing) -> dict[str, Chart]:
    """Every figure that the study has data for, in the order of the page.

    Returns:
        Key of the chart -> the chart.
    """
    found: list[Chart] = []
    for make in MAKERS:
        made = make(drawing)
        found += made if isinstance(made, tuple) else [made] if made is not None else []
    return {chart.key: chart for chart in found}
