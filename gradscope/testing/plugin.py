"""The pytest plugin: the fixtures, and the option that accepts what changed.

pytest imports this module at its start, for everyone who has gradscope installed: it imports
neither torch nor pytest, and does nothing to runs that do not ask for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gradscope-update``."""
    parser.getgroup("gradscope").addoption(
        "--gradscope-update",
        action="store_true",
        default=False,
        help="accept the gradient profiles as they are now, where they differ from the stored ones",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the fixtures."""
    from gradscope.testing import fixtures

    config.pluginmanager.register(fixtures, "gradscope-fixtures")
