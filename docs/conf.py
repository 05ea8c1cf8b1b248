"""How the documentation is built: ``python -m sphinx -W docs build/docs``, then open its index."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "gradscope"
author = "the gradscope authors"
release = metadata.version("gradscope-torch")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
default_role = "code"  # in docstrings a name stands between single backticks
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
html_theme = "furo"
html_title = "gradscope"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False


def setup(app: Any) -> None:
    """Before the pages are read, write those that are made from the code."""
    import generate

    app.connect("builder-inited", lambda app: generate.write(Path(app.srcdir)))
