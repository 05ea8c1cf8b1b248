"""The fixtures of the pytest plugin; only pytest imports this module."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = "__gradients__"
"""Folder beside the test file in which profiles are kept, one JSON file per profile."""

_written = pytest.StashKey[list[str]]()


@pytest.fixture
def gradient_health() -> Callable[..., Any]:
    """`gradscope.testing.assert_gradient_health`, without an import of torch in the test file."""
    from gradscope.testing.health import assert_gradient_health

    return assert_gradient_health


@pytest.fixture
def gradient_profile(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compare the gradient norms of a network, layer by layer, with those stored beside the test.

    Call it with a factory (or a model) and inputs; see `gradscope.testing.profile.measure` for the
    arguments. The first run stores the profile, except where ``CI`` is set in the environment:
    there a missing profile is a failure. ``--gradscope-update`` accepts a changed one.
    """
    names: list[str] = []

    def check(model: Any, inputs: Any, targets: Any = None, *, name: str = "", **more: Any) -> None:
        __tracebackhide__ = True
        from gradscope.testing.profile import compare, load, measure

        if name in names:
            pytest.fail(f"a second gradient profile named '{name}' in one test; give it a name")
        names.append(name)
        path = _path(request, name)
        now = measure(model, inputs, targets, **more)
        if not path.exists():
            if _in_ci() and not request.config.getoption("--gradscope-update"):
                pytest.fail(
                    f"{path} is missing: run this test once where CI is not set, and commit the "
                    "file",
                    pytrace=False,
                )
            _store(request, path, now, "new")
            return
        difference = compare(load(path), now)
        if difference and request.config.getoption("--gradscope-update"):
            _store(request, path, now, "updated")
        elif difference:
            pytest.fail(
                f"{difference}\nprofile: {path}\n"
                "If this change is meant, accept it with pytest --gradscope-update",
                pytrace=False,
            )

    return check


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which profiles were written."""
    for line in config.stash.get(_written, []):
        terminalreporter.write_line(f"gradscope: {line}")


def _store(request: pytest.FixtureRequest, path: Path, profile: Any, what: str) -> None:
    profile.save(path)
    shown = path.relative_to(root) if path.is_relative_to(root := request.config.rootpath) else path
    line = f"{what} gradient profile {shown}"
    request.config.stash.setdefault(_written, []).append(line)


def _path(request: pytest.FixtureRequest, name: str) -> Path:
    file = request.path
    stem = f"{request.node.name}-{name}" if name else request.node.name
    return file.parent / FOLDER / file.stem / f"{_file_name(stem)}.json"


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")
