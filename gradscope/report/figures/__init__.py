"""The figures of a report as plotly objects; each can be shown alone, in a notebook for example."""

from gradscope.report.figures.common import Drawing
from gradscope.report.figures.gallery import all_charts

__all__ = ["Drawing", "all_charts"]
