"""What a grid proved: its results, tables and effects, without a page."""

from gradscope.study.results import CellResult, Epoch, History, Status, Study

__all__ = ["CellResult", "Epoch", "History", "Status", "Study"]
