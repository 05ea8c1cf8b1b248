"""The pages that people read, and the snippets in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "reference" not in page.parts]
"""All that is written by hand: the reference is made from the code."""

_FENCE = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NAMED = re.compile(r"# (?P<name>[\w/]+\.(?:py|yaml))\b")


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page."""

    language: str
    text: str
    mark: str
    """Of the comment above it: ``runs`` (a shell block that is run), ``needs a, b`` (modules)."""

    @property
    def file(self) -> str:
        """Name of the file that it is, where its first line says one."""
        found = _NAMED.match(self.text)
        return found["name"] if found else ""


def snippets(page: Path, language: str = "") -> list[Snippet]:
    """The fenced blocks of a page, all or of one language, in order."""
    text = page.read_text(encoding="utf-8")
    found = [
        Snippet(match["language"], match["text"], match["mark"] or "")
        for match in _FENCE.finditer(text)
    ]
    return [each for each in found if language in ("", each.language)]


def commands(page: Path) -> list[list[str]]:
    """Every gradscope command line of a page, in a shell block or in its text, split by words."""
    lines = (
        "\n".join(each.text for each in snippets(page, "bash")).replace("\\\n", " ").splitlines()
    )
    found = [re.search(r"(?:^|bin/)gradscope (.*)", line) for line in lines]
    found += [re.fullmatch(r"gradscope (.*)", code) for code in inline(page)]
    return [shlex.split(match[1], comments=True) for match in found if match]


def inline(page: Path) -> list[str]:
    """What stands between single backticks in the text of a page."""
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return re.findall(r"`([^`\n]+)`", text)


def options() -> set[str]:
    """Every option of every command, and of the pytest plugin."""
    from gradscope.cli.app import app

    known, waiting = {"--gradscope-update", "--help"}, [get_command(app)]
    for command in waiting:
        known |= {name for each in command.params for name in each.opts}
        waiting += getattr(command, "commands", {}).values()
    return known


def parse(arguments: list[str]) -> None:
    """Have the command line understand a command, to its last option; nothing is run."""
    from gradscope.cli.app import app

    command = get_command(app)
    context = command.make_context("gradscope", list(arguments), resilient_parsing=True)
    rest = list(arguments)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        command = command.commands[name]
    command.make_parser(context).parse_args(rest)
