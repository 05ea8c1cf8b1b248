"""The examples in the docstrings show what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import gradscope

ROOT = Path(__file__).resolve().parents[1]


def test_examples_run(monkeypatch):
    """Every example of every module, as typed where the grids lie."""
    monkeypatch.chdir(ROOT)
    failed, tried = [], 0
    for info in pkgutil.walk_packages(gradscope.__path__, "gradscope."):
        if info.name.endswith(("__main__", "_kernels")) or ".integrations." in info.name:
            continue  # they run when they are imported, or need the library of somebody
        found = doctest.testmod(importlib.import_module(info.name))
        failed += [info.name] * found.failed
        tried += found.attempted
    assert failed == []
    assert tried > 5
