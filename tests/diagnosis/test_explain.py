"""Every kind of finding has a text, and no text is about one that does not exist."""

import ast
import re
import tomllib
from importlib import resources
from pathlib import Path

import faults_at_loss  # noqa: F401 - fills the casebook
import faults_at_start  # noqa: F401
import faults_in_graph  # noqa: F401
import faults_of_recipe  # noqa: F401
import pytest
from casebook import SICK, run

from gradscope import diagnose, diagnosis
from gradscope.diagnosis import limits
from gradscope.diagnosis.explain import Explanation, explain, explanations, page
from gradscope.diagnosis.verdict import Verdict

ROOT = Path(__file__).parents[2]
WRITTEN = tomllib.loads(resources.files(diagnosis).joinpath("findings.toml").read_text("utf-8"))
LIMITS = Path(limits.__file__).read_text("utf-8")
SOURCES = sorted(Path(diagnosis.__file__).parent.glob("*.py"))

MAKERS = {"Finding", "_Misfit", "_inconclusive"}
"""What is called with a kind as its first argument."""

FILLED = {
    "exploding-": ("backward", "forward"),
    "mild-": ("decay", "backward-growth", "forward-growth"),
    "uncertain-": ("decay", "backward-growth", "forward-growth"),
}
"""How kinds go on that are put together."""


def words(node):
    """The strings that an expression can be; of one that is put together, how it goes on."""
    if isinstance(node, ast.Constant):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return words(node.body) | words(node.orelse)
    if isinstance(node, ast.JoinedStr):
        begin = node.values[0].value
        return {begin + end for end in FILLED[begin]}
    return set()  # handed on from another maker


def kinds_in_code():
    """All kinds that the modules of the diagnosis can give."""
    return {
        word
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in MAKERS and node.args
        for word in words(node.args[0])
    }


def strings(value):
    """Every text in a document."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in strings(inner)]
    return [str(value)]


def test_every_kind_and_verdict_has_a_text_and_no_other():
    """What the code can say is what the texts are about."""
    told = explanations()
    assert set(told) == kinds_in_code() | set(Verdict)
    assert {kind for kind, each in told.items() if each.verdict} == set(Verdict)


def test_what_the_code_can_say_is_read_right():
    """The reading sees kinds of each form, and would see one that is new."""
    known = kinds_in_code()
    assert {"updates-lost", "short-memory", "collapse", "double-softmax", "no-gradients"} <= known
    assert words(ast.parse("'new' if x else 'newer'", mode="eval").body) == {"new", "newer"}


# torch warns of the one case in which a checkpoint cuts the graph.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", list(SICK)[::4])
def test_kinds_that_are_given_have_a_text(name):
    """Findings of faults of the casebook, whatever made them."""
    assert {f.kind for f in diagnose(run(SICK[name](0, False))).findings} <= set(explanations())


@pytest.mark.parametrize("each", explanations().values(), ids=lambda each: each.kind)
def test_a_text_is_whole(each):
    """It has its parts, its limits are those of the code, and kinds that it names exist."""
    assert isinstance(each, Explanation)
    assert each.means.endswith(".")
    assert each.found.endswith(".")
    assert each.alike.endswith(".")
    assert "{" not in each.found
    for limit in each.limits:
        assert limit.value == getattr(limits, limit.name)
        assert len(limit.reason) > 20
    named = re.findall(r"\b[a-z]+(?:-[a-z]+)*\b", f"{each.found} {each.alike}")
    stems = {"exploding", "uncertain", "mild", "not", "updates", "softmax", "double"}
    almost = {word for word in named if "-" in word and word.partition("-")[0] in stems}
    assert almost <= set(explanations())


@pytest.mark.parametrize("kind", WRITTEN)
def test_nothing_that_is_written_is_left_out(kind):
    """Command, JSON and page have every part of the entry, each limit with the text at it."""
    entry, text = WRITTEN[kind], (ROOT / "docs/findings.md").read_text("utf-8")
    section = re.search(rf"\n### {kind}\n(.*?)(?=\n##|\Z)", text, re.DOTALL)[1]
    document = " ".join(strings(explain(kind).to_dict()))
    parts = (entry.get(part, "") for part in ("means", "found", "alike", "sources"))
    wanted = [words for part in parts for words in re.split(r"\{.*?\}", part)]
    for name in entry.get("limits", ()):
        behind = LIMITS[LIMITS.index(f"\n{name} = ") :].split('"""')[1]
        wanted += [name, " ".join(behind.split())]
    for told in (str(explain(kind)), section, document):
        assert [words for words in wanted if words not in told] == []


def test_a_limit_that_moves_moves_the_text(monkeypatch):
    """The numbers are read, not copied."""
    from gradscope.diagnosis import explain as module

    assert "lose 3 decades" in explain("vanishing").found
    monkeypatch.setitem(module._VALUES, "VANISHING", 4.5)
    assert "lose 4.5 decades" in module.explanations.__wrapped__()["vanishing"].found


def test_the_page_is_up_to_date():
    """docs/findings.md is what the texts make."""
    assert (ROOT / "docs/findings.md").read_text("utf-8") == page(), (
        "python -m gradscope.diagnosis.explain > docs/findings.md"
    )
