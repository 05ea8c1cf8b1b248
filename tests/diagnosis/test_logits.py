"""Logits that are sure before anything was learned, from traces written by hand."""

import math

import pytest
from handwritten import Net

from gradscope.trace.structure import LossSide
from gradscope.trace.table import RecordedStep

CROSS = ("LogSoftmaxBackward0", "NllLossBackward0")
CHANCE = math.log(10)
LOGISTIC = ("BinaryCrossEntropyWithLogitsBackward0",)


def said(operations, losses, sizes, spacing=1, constant=CHANCE):
    """The finding on a sound chain of layers whose outputs and losses are known."""
    net = Net(4, steps=len(losses))
    net.structure["loss"] = LossSide(operations, constant=constant, outputs=1)
    net.steps = [RecordedStep(spacing * i, loss=x) for i, x in enumerate(losses)]
    net.put("activation", "l3", shape=(32, 10), rms=sizes)
    diagnosis, findings = net.diagnose()
    return diagnosis, findings.get("large-logits")


@pytest.mark.parametrize(("operations", "size", "loss", "found"), [
    (("AddmmBackward0", *CROSS), 12.0, 9.0, True),
    (("AddmmBackward0", *LOGISTIC), 12.0, 9.0, True),
    (CROSS, 12.0, 9.0, True),  # a network that ends in log_softmax
    (("AddmmBackward0", *CROSS), 8.0, 9.0, False),
    (("AddmmBackward0", *CROSS), 80.0, 2.3, False),  # one number added to all, or sure and right
    (("AddmmBackward0", "MseLossBackward0"), 80.0, 900.0, False),  # no logits
    (("AddmmBackward0", *CROSS), 12.0, None, False),
])  # fmt: skip
def test_when_it_is_said(operations, size, loss, found):
    """Of logits that are large and of a loss that is: over three times ln 10 = 2.3."""
    diagnosis, finding = said(operations, [loss], size)
    assert diagnosis.is_healthy
    assert (finding is not None) == found
    if found:
        assert (finding.where, finding.severity) == ("l3", "warning")
        assert finding.evidence["rms"].value == size
        assert finding.evidence["constant"].value == CHANCE


@pytest.mark.parametrize(("losses", "last", "spacing", "severity"), [
    ([20.0] * 30, 30.0, 10, "error"),
    ([20.0] * 30, 30.0, 1, "warning"),  # too early to tell
    ([20.0] * 30, 3.0, 10, "warning"),  # the logits are no longer what holds it
    ([20.0 - 0.4 * i for i in range(30)], 30.0, 10, "warning"),  # on its way down
    ([20.0] * 10 + [0.5] * 20, 30.0, 10, None),  # learned, and sure with reason
])  # fmt: skip
def test_an_error_is_a_loss_that_stays(losses, last, spacing, severity):
    """A warning until two hundred steps have not brought the loss down."""
    steps = len(losses)
    sizes = [30.0 + (last - 30.0) * i / (steps - 1) for i in range(steps)]
    diagnosis, finding = said(("AddmmBackward0", *CROSS), losses, sizes, spacing)
    assert (finding and finding.severity) == severity
    if severity == "error":
        assert diagnosis.verdict == "exploding"
        assert "not-learning" not in {each.kind for each in diagnosis.findings}


def test_no_chance_no_word():
    """One label for all makes the loss of a constant prediction zero: nothing to compare with."""
    assert said(("AddmmBackward0", *CROSS), [9.0], 12.0, constant=0.0)[1] is None
