"""One HTML file from a study or a trace."""

from gradscope.report.write import charts, load, write_report

__all__ = ["charts", "load", "write_report"]
