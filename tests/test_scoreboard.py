"""The scoreboard: README's table is that of the file beside it, its rules are those published."""

import importlib
import json
import math
import re
from pathlib import Path

import pytest
from pages import README

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BLOCK = re.compile(r"<!-- scoreboard -->\n(.*?)<!-- /scoreboard -->", re.DOTALL)


@pytest.fixture
def scoreboard(monkeypatch):
    """The program as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scoreboard")


@pytest.fixture
def rules(monkeypatch):
    """The rules of other tools."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("published_rules")


@pytest.fixture
def rows():
    """What was judged and committed."""
    return json.loads((BENCHMARKS / "scoreboard.json").read_text(encoding="utf-8"))


def test_the_table_of_the_readme_is_that_of_the_file(scoreboard, rows):
    """Written once more from what was judged, it is as it stands."""
    assert BLOCK.search(README.read_text(encoding="utf-8"))[1] == scoreboard.markdown(rows)


def test_the_file_was_counted_right(scoreboard, rows):
    """Totals counted again in another way; who always says sick is right and wrong throughout."""
    table = {entry[0]: entry[1:] for entry in scoreboard.summary(rows)}
    sick = [row["tools"]["gradscope"] for row in rows if row["sick"]]
    found = [said for said in sick if said[:1] == "s"]
    assert table["sick: called sick"][0].startswith(f"{len(found)}/{len(sick)} ")
    for title in ("sick: called sick", "sound: called sick"):
        assert table[title][3].endswith("(100 %)")
        parts = [e[4] for e in scoreboard.summary(rows) if e[0].startswith("- ")]
        counts = [int(part.split("/")[0]) for part in parts]
        assert sum(counts) == len(rows)
    assert table["sick: cause named"][3].startswith("0/")


def test_a_fault_and_its_twin_are_judged(scoreboard):
    """Biases of -10: dead to all that look at ReLUs; the twin is well."""
    both = [s for s in scoreboard.subjects() if s.name == "biases_of_minus_ten"]
    sick, sound = (scoreboard.judge(subject, 0) for subject in both)
    assert sick["tools"]["gradscope"] == "scp"
    assert "sc" in sick["tools"]["SageMaker rules"]
    assert (sick["sick"], sound["sick"], sound["verdict"]) == (True, False, "healthy")
    assert sound["tools"]["gradscope"] == ""


@pytest.mark.parametrize(("rule", "fires", "does_not"), [
    ("vanishing_gradient", {"mean_grad": {"a": 0.9e-7}}, {"mean_grad": {"a": 1.1e-7}}),
    ("exploding_tensor", {"broken": ["a"]}, {}),
    ("dead_relu", {"inactive": {"a": 0.51}}, {"inactive": {"a": 0.5}}),
    ("saturated_activation", {"saturated": {"a": 0.51}}, {"saturated": {"a": 0.5}}),
    ("all_zero", {"zeros": ["a"]}, {}),
    ("poor_initialization", {"variance": {"b": 1.0, "a": 11.0}}, {"variance": {"b": 1, "a": 9}}),
    ("poor_initialization", {"narrow": {"a": 0.0009}}, {"narrow": {"a": 0.0011}}),
    (
        "autotrainer_vanishing",
        {"mean_grad": {"a": 0.9e-4, "b": 1.0}},
        {"mean_grad": {"a": 1.1e-4, "b": 1.0}},
    ),
    (
        "autotrainer_exploding",
        {"mean_grad": {"a": 71.0, "b": 1.0}},
        {"mean_grad": {"a": 69.0, "b": 1.0}},
    ),
    ("autotrainer_dying", {"zero_grad": {"a": 0.7}}, {"zero_grad": {"a": 0.69}}),
])  # fmt: skip
def test_thresholds_are_those_published(rules, rule, fires, does_not):
    """Just beyond and just within, and where it fired."""
    judged = getattr(rules, rule)
    assert [*judged([rules.Step(**fires)])] == ["a"]
    assert [*judged([rules.Step(**does_not)])] == []


def test_rules_over_time(rules):
    """The loss over ten steps, and updates, which a single step without a rate does not have."""
    falls = [rules.Step(loss=1.0 - 0.00011 * i) for i in range(11)]
    stays = [rules.Step(loss=1.0 - 0.00009 * i) for i in range(11)]
    unknown = [rules.Step(loss=math.nan) for _ in range(11)]
    assert [*rules.loss_not_decreasing(falls)] == []
    assert [*rules.loss_not_decreasing(stays)] == ["loss"]
    assert [*rules.loss_not_decreasing(unknown)] == []
    large = rules.Step(update={"a": 11.0, "b": 1e-3, "c": 0.9e-8})
    assert [*rules.weight_update_ratio([large])] == []
    assert [*rules.weight_update_ratio([large, rules.Step()])] == ["a", "c"]


def test_every_rule_says_what_it_can_mean(rules):
    """And no other does."""
    assert {*rules.SAGEMAKER, *rules.AUTOTRAINER} == {*rules.CAUSES}
