"""What a diagnosis is as JSON and as text."""

import io
import itertools
import json

import pytest
from handwritten import Net, geometric
from rich.console import Console

from gradscope import diagnose
from gradscope.diagnosis.verdict import Finding, RestsOn, Severity, Verdict, decide

HIDES = (
    "non-finite",  # nothing else can be read from NaN
    "disconnected",  # what gets no gradient at all neither grows nor decays
    "dead",  # nor does what is switched off, which makes what is before it vanish
    "exploding",  # a rate of zero or clipping may be somebody's answer to it
    "stalled",  # the gradient is there and does not arrive in the weights
    "vanishing",
    "inconclusive",  # said only where nothing else is
)
"""What the log of verdicts in the documentation counts down from 7 to 1."""


def test_dictionary_is_json_and_text_escapes_markup():
    """to_dict has no NaN; names with rich markup are shown as they are."""
    net = geometric(Net(12), 0.5)
    diagnosis, _ = net.diagnose()
    raw = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert raw["verdict"] == "vanishing"
    assert raw["findings"][0]["kind"] == "vanishing"
    assert raw["findings"][0]["evidence"]["slope"]["unit"] == "decades per block"
    assert set(raw["findings"][0]) == {
        "kind", "severity", "where", "since", "message", "evidence", "remedy"
    }  # fmt: skip
    hostile = Net(8)
    hostile.structure = {"unused": ("[red]boo[/red].weight", "x[/].weight")}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(diagnose(hostile.trace()))
    assert "[red]boo[/red].weight, x[/].weight" in console.export_text()


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations(HIDES, 2)])
def test_what_hides_the_others_makes_the_verdict(first, second):
    """Of two errors the cause of the other one stands, and stands first, in whatever order."""
    two = [Finding(v, Severity.ERROR, "here", "", verdict=Verdict(v)) for v in (first, second)]
    note = Finding("note", Severity.INFO, "there", "")
    for findings in itertools.permutations([*two, note]):
        diagnosis = decide(findings, RestsOn(steps=1))
        assert diagnosis.verdict == first
        assert [f.kind for f in diagnosis.findings] == [first, second, "note"]


def test_without_an_error_it_is_well():
    """Warnings that speak for no verdict leave it healthy."""
    warning = Finding("odd-layer", Severity.WARNING, "here", "")
    assert decide([warning], RestsOn(steps=1)).is_healthy
