"""How the documentation is built: ``python -m sphinx -W docs build/docs``, then open its index."""

from __future__ import annotations

import re
import shutil
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
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["lightning", "transformers"]  # need not be installed to be documented
napoleon_use_rtype = False
html_theme = "furo"
html_title = "gradscope"
html_show_sphinx = False
html_copy_source = False
html_show_search_summary = False  # fetches pages, which browsers forbid on a disk
html_show_sourcelink = False


def linked(text: str) -> str:
    """Links to the published reports, which lie beside the pages of the site."""
    return re.sub(r"\[([^\]]+)\]\(\.\./((?:\.\./)*reports/[\w.-]+)\)", r'<a href="\2">\1</a>', text)


def copy_reports(app: Any, error: Exception | None) -> None:
    """Put the published reports, with their tables, beside the pages."""
    if error is None:
        shutil.copytree(HERE.parent / "reports", Path(app.outdir, "reports"), dirs_exist_ok=True)


def setup(app: Any) -> None:
    """Before the pages are read, write those that are made from the code."""
    import generate

    app.connect("builder-inited", lambda app: generate.write(HERE, Path(app.outdir)))
    app.connect("source-read", lambda _app, _name, source: source.append(linked(source.pop())))
    app.connect("build-finished", copy_reports)
