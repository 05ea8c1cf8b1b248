"""What importing gradscope loads, and how fast the command line answers."""

from __future__ import annotations

import subprocess
import sys

LIGHT = """
import sys
{first}
before = set(sys.modules)
{then}
after = {{m.split('.')[0] for m in set(sys.modules) - before}} - {{'gradscope'}}
new = sorted(m for m in after if m not in sys.stdlib_module_names and not m.startswith('_'))
print(','.join(new))
"""


def loaded(first: str, then: str) -> set[str]:
    """Third-party packages that the second statement loads after the first."""
    found = subprocess.run(
        [sys.executable, "-c", LIGHT.format(first=first, then=then)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(filter(None, found.stdout.strip().split(",")))


def test_import_gradscope_loads_nothing_beyond_torch():
    """Importing gradscope, and watching a model, load no third-party package that torch did not."""
    assert loaded("import torch", "import gradscope") == set()
    recording = "import gradscope; model = torch.nn.Linear(1, 1)\nwith gradscope.watch(model): pass"
    assert loaded("import torch, torch.optim", recording) == set()


def test_this_test_can_fail():
    """The same question asked of a heavy module has a different answer."""
    assert "pandas" in loaded("import torch", "import gradscope.trace, pandas")


def test_help_does_not_load_torch():
    """Help loads neither torch nor any of the heavy libraries."""
    run = (
        "from typer.testing import CliRunner\n"
        "from gradscope.cli.app import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'run-grid' in result.output, result.output"
    )
    heavy = {
        "torch",
        "torchvision",
        "numpy",
        "pandas",
        "pyarrow",
        "plotly",
        "pycocotools",
        "scipy",
        "statsmodels",
        "pydantic",
    }
    assert not loaded("import sys", run) & heavy


def test_every_public_name_is_there():
    """What __all__ promises can be had, each from where it lives."""
    import gradscope

    for name in gradscope.__all__:
        assert getattr(gradscope, name) is not None
    assert set(gradscope.__all__) == set(gradscope._HOME)
