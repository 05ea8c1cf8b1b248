"""No diagnosis advises to raise and to lower the same thing, whatever was found."""

import re

import cases_updates
import faults_at_loss  # noqa: F401 - fills the casebook
import faults_at_start  # noqa: F401
import faults_in_graph  # noqa: F401
import faults_of_recipe  # noqa: F401
import pytest
import sound_oddities  # noqa: F401
import zoo
from casebook import SICK, SOUND, run
from handwritten import Net

from gradscope import diagnose
from gradscope.diagnosis import advice

pytestmark = [
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

QUANTITIES = {
    "learning rate": r"(?:learning|step) (?:rate|size)|\brate\b",
    "weight decay": r"weight decay",
    "weights": r"(?:recurrent )?weights",
    "clip value": r"clip value",
    "eps": r"eps",
    "depth": r"layers",
    "batch": r"batch|examples",
    "loss scale": r"loss scale",
}
"""What can be more or less of, as remedies write it."""

MORE = r"raise|increase|enlarge|more|larger|higher|longer"
LESS = r"lower|reduce|decrease|shrink|fewer|less|smaller"


def advised(remedy):
    """{(quantity, +1 or -1)}: what a remedy says to have more or less of.

    A clause is read at a time: its word of direction, and the first quantity after it. Clipping the
    gradient is a lower clip value, not clipping a higher one.
    """
    found = set()
    for clause in re.split(r"[;:,.] |[;.]$|\bor\b|\band\b", remedy.lower()):
        for words, sign in ((MORE, +1), (LESS, -1)):
            for told in re.finditer(rf"\b(?:{words})\b", clause):
                rest = clause[told.end() :]
                hits = {q: re.search(p, rest) for q, p in QUANTITIES.items()}
                known = {q: hit.start() for q, hit in hits.items() if hit}
                if known:
                    found.add((min(known, key=known.get), sign))
        scaled = re.search(r"\bscale the (.*?)\b(up|down)\b", clause)
        if scaled and "weights" in scaled[1]:
            found.add(("weights", +1 if scaled[2] == "up" else -1))
        if re.search(r"\bclip the gradient", clause):
            found.add(("clip value", -1))
        if re.search(r"\bdo not clip\b", clause):
            found.add(("clip value", +1))
    return found


def contradictions(diagnosis):
    """Quantities that a diagnosis says to raise and to lower."""
    told = set().union(*(advised(finding.remedy) for finding in diagnosis.findings))
    return {what for what, sign in told if (what, -sign) in told}


@pytest.mark.parametrize(
    ("remedy", "told"),
    [
        (
            "Lower the learning rate by a factor of about 10, to updates of 1e-3.",
            {("learning rate", -1)},
        ),
        ("Raise the learning rate: the updates are lost.", {("learning rate", +1)}),
        (
            "Raise the clip value to about the usual norm, or do not clip.",
            {("clip value", +1)},
        ),
        (
            "Lower the learning rate; clip the gradient norm; look at eps and momentum.",
            {("learning rate", -1), ("clip value", -1)},
        ),
        ("Scale the weights down to gain 5/3 for tanh.", {("weights", -1)}),
        ("Use fewer layers that average over examples.", {("depth", -1)}),
        ("Call zero_grad(), backward() and step() in this order.", set()),
        ("Check that the learning rate is neither too small nor too large.", set()),
    ],
)
def test_remedies_are_read_right(remedy, told):
    """Direction and quantity, and nothing where there is no direction."""
    assert advised(remedy) == told


def killed_by_large_steps():
    """A network whose units are dead and whose updates are as large as its weights."""
    net = Net(6, steps=4, type_="ReLU")
    for i in range(6):
        net.put("weight", f"l{i}", "weight", update_ratio=2.0)
        net.put("activation", f"l{i}", dead_fraction=1.0)
    return net.trace()


def test_both_remedies_of_a_killed_network_lower_the_rate():
    """Two findings speak of the rate, in one direction."""
    diagnosis = diagnose(killed_by_large_steps())
    told = [advised(finding.remedy) for finding in diagnosis.findings]
    assert sum(("learning rate", -1) in each for each in told) == 2
    assert contradictions(diagnosis) == set()


def test_a_mutant_that_advises_the_other_way_is_found(monkeypatch):
    """The property can fail: with the sign of one remedy turned round it does."""
    right = advice.rate

    def wrong(highest, middle):
        return right(highest, middle).replace("Lower", "Raise")

    monkeypatch.setattr(advice, "rate", wrong)
    assert contradictions(diagnose(killed_by_large_steps())) == {"learning rate"}


def traces(book, seed):
    """The traces of a collection by name."""
    if book == "sick":
        return {name: (lambda n=name: run(SICK[n](seed, False))) for name in SICK}
    if book == "sound":
        return {name: (lambda n=name: run(SOUND[n](seed))) for name in SOUND}
    if book == "updates":
        return {n: (lambda n=n: cases_updates.run(n, seed)) for n in cases_updates.CASES}
    return {n: (lambda n=n: zoo.watch_member(zoo.draw(n, seed))) for n in zoo.KINDS}


BOOKS = ("sick", "sound", "updates", "zoo")
ALL = [(book, name) for book in BOOKS for name in traces(book, 0)]


@pytest.mark.parametrize(("book", "name"), [each for each in ALL if each[0] == "updates"][::4])
def test_no_diagnosis_contradicts_itself(book, name):
    """Some cheap cases, in which remedies of the steps meet."""
    diagnosis = diagnose(traces(book, 0)[name]())
    assert contradictions(diagnosis) == set(), str(diagnosis)


@pytest.mark.slow
@pytest.mark.parametrize(("book", "name"), ALL)
def test_no_diagnosis_of_any_case_contradicts_itself(book, name):
    """Every case of every collection."""
    diagnosis = diagnose(traces(book, 1)[name]())
    assert contradictions(diagnosis) == set(), str(diagnosis)


@pytest.mark.parametrize(("factor", "told"), [
    (1.0, "1"), (9.6, "10"), (14.0, "10"), (3456.0, "3,000"), (999_999.0, "1,000,000"),
    (2e6, "10^6"), (3e11, "10^11"),
])  # fmt: skip
def test_factors_are_told_in_plain_numbers(factor, told):
    """To the first digit, without an exponent of a computer."""
    assert advice.times(factor) == f"a factor of about {told}"
