"""The figures of a report as plotly objects; each can be shown alone, in a notebook for example."""

from __future__ import annotations

from collections.abc import Callable

from gradscope.report.chart import Chart
from gradscope.report.figures.classes import accuracy, class_accuracy, confusion
from gradscope.report.figures.common import Drawing
from gradscope.report.figures.comparisons import interactions, main_effects
from gradscope.report.figures.flow import (
    chi_profile,
    first_to_last,
    flow_map,
    gradient_profile,
    layer_heat,
)
from gradscope.report.figures.training import (
    accuracy_by_epoch,
    gap_by_epoch,
    loss_by_epoch,
    loss_by_step,
)

__all__ = ["Drawing", "all_charts"]


def all_charts(drawing: Drawing) -> dict[str, Chart]:
    """Every figure that the study has data for, in the order of the page.

    Returns:
        Key of the chart -> the chart.
    """
    makers: tuple[Callable[[Drawing], Chart | None], ...] = (
        flow_map,
        gradient_profile,
        chi_profile,
        layer_heat,
        first_to_last,
        main_effects,
        interactions,
        loss_by_step,
        loss_by_epoch,
        accuracy,
        accuracy_by_epoch,
        gap_by_epoch,
        class_accuracy,
        confusion,
    )
    charts = (make(drawing) for make in makers)
    return {chart.key: chart for chart in charts if chart is not None}
