"""The command line: one file a command, and the views that a terminal shows."""

from gradscope.cli.app import main

__all__ = ["main"]
