"""The fixtures of the pytest plugin; only pytest imports this module."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = "__gradients__"
"""Folder beside the test file in which profiles are kept, one JSON file per profile."""

_PROPERTY = "gradscope"
"""Key of what a report tells of a profile that was written."""


@pytest.fixture
def gradient_health() -> Callable[..., Any]:
    """`gradscope.testing.assert_gradient_health`, without an import of torch in the test file."""
    from gradscope.testing.health import assert_gradient_health

    return assert_gradient_health


@pytest.fixture
def gradient_profile(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Compare what a network does at initialisation with what was stored beside the test.

    Call it with a factory (or a model) and inputs; see `gradscope.testing.measure.measure` for the
    arguments. Kept are gradients, weights, updates and outputs of each layer, and what is dead,
    frozen or without a gradient. The first run stores the profile, except where ``CI`` is set in
    the environment: there a missing profile is a failure. ``--gradscope-update`` accepts what is
    new or changed. The test runs with all generators seeded, so that inputs drawn in it are the
    same in each run.
    """
    from gradscope.testing.measure import drawn_from

    names: list[str] = []

    def check(model: Any, inputs: Any, targets: Any = None, *, name: str = "", **more: Any) -> None:
        __tracebackhide__ = True
        if name in names:
            pytest.fail(f"a second gradient profile named '{name}' in one test; give it a name")
        names.append(name)
        _check(request, _path(request, name), (model, inputs, targets), more)

    with drawn_from(0):
        yield check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which profiles were written; reports bring that along from other processes too."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for report in reports:
        for key, line in getattr(report, "user_properties", ()):
            if key == _PROPERTY and report.when == "call":
                terminalreporter.write_line(f"gradscope: {line}")


def _check(
    request: pytest.FixtureRequest, path: Path, network: tuple[Any, ...], more: dict[str, Any]
) -> None:
    """Store a profile that is new or accepted; fail where it differs from the stored one."""
    __tracebackhide__ = True
    from gradscope.errors import TraceError
    from gradscope.testing.comparison import compare
    from gradscope.testing.measure import measure
    from gradscope.testing.profile import load

    update = request.config.getoption("--gradscope-update")
    now = measure(*network, **more)
    if not path.exists():
        if _in_ci() and not update:
            pytest.fail(
                f"{path} is missing: run this test once where CI is not set, or with pytest "
                "--gradscope-update, and commit the file",
                pytrace=False,
            )
        _store(request, path, now, "new")
        return
    try:
        difference = compare(load(path), now, lambda: measure(*network, **more, shaken=True))
    except TraceError as error:
        difference = str(error)
    if difference and update:
        _store(request, path, now, "updated")
    elif difference:
        pytest.fail(
            f"{difference}\nprofile: {path}\n"
            "If this change is meant, accept it with pytest --gradscope-update",
            pytrace=False,
        )


def _store(request: pytest.FixtureRequest, path: Path, profile: Any, what: str) -> None:
    profile.save(path)
    shown = path.relative_to(root) if path.is_relative_to(root := request.config.rootpath) else path
    request.node.user_properties.append((_PROPERTY, f"{what} gradient profile {shown}"))


def _path(request: pytest.FixtureRequest, name: str) -> Path:
    file = request.path
    stem = f"{request.node.name}-{name}" if name else request.node.name
    return file.parent / FOLDER / file.stem / f"{_file_name(stem)}.json"


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")
