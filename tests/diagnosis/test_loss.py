"""The side of the loss, from traces written by hand: what fits, what is out of reach, chance."""

import math

import pytest
from handwritten import Net

from gradscope.trace.structure import LossSide, Summary
from gradscope.trace.table import RecordedStep

CROSS = ("LogSoftmaxBackward0", "NllLossBackward0")
LOGISTIC = ("BinaryCrossEntropyWithLogitsBackward0",)
SQUARED = ("MseLossBackward0",)


def said(side, losses=(), spacing=1, **put):
    """Findings on a sound chain of layers with something at its loss."""
    net = Net(4, steps=max(len(losses), 1))
    net.structure["loss"] = side
    net.steps = [RecordedStep(spacing * i, loss=x) for i, x in enumerate(losses or [None])]
    net.put("activation", "l3", shape=(32, 10), **put)
    return net.diagnose()


@pytest.mark.parametrize(("made", "read", "kind", "severity"), [
    ("Softmax", CROSS, "double-softmax", "error"),
    ("Sigmoid", CROSS, "bounded-logits", "error"),
    ("Tanh", CROSS, "bounded-logits", "error"),
    ("Relu", CROSS, "bounded-logits", "warning"),
    ("LogSoftmax", CROSS, "double-log-softmax", "info"),
    ("Sigmoid", LOGISTIC, "double-sigmoid", "error"),
    ("Relu", LOGISTIC, "bounded-logits", "error"),
    ("Softmax", ("NllLossBackward0",), "likelihood-of-probabilities", "error"),
    ("Addmm", ("NllLossBackward0",), "likelihood-of-logits", "error"),
    ("Softmax", SQUARED, "softmax-squared-error", "warning"),
])  # fmt: skip
def test_what_does_not_fit(made, read, kind, severity):
    """Each pair has its word; views and casts between them hide nothing."""
    for between in ((), ("ViewBackward0", "ToCopyBackward0")):
        operations = (f"{made}Backward0", *between, *read)
        diagnosis, findings = said(LossSide(operations, outputs=1))
        assert findings[kind].severity == severity
        assert findings[kind].where == "l3"
        assert diagnosis.is_healthy == (severity != "error")


@pytest.mark.parametrize(("operations", "outputs"), [
    (("AddmmBackward0", *CROSS), 1),
    (("AddmmBackward0", "SoftmaxBackward0", *CROSS), 1),  # a softmax of the loss's own
    (("SoftmaxBackward0", *CROSS), 2),  # of two outputs, which one is not known
    (("SoftmaxBackward0", *CROSS), 0),
    (("LogSoftmaxBackward0", "NllLossBackward0"), 1),
    (("SigmoidBackward0", "BinaryCrossEntropyBackward0"), 1),
    (("AddmmBackward0", *LOGISTIC), 1),
    (("SigmoidBackward0", *SQUARED), 1),
    (("TanhBackward0", "MulBackward0", *CROSS), 1),  # a tanh of ten, as pointer networks have
])  # fmt: skip
def test_what_fits_or_is_not_known(operations, outputs):
    """Not a word."""
    diagnosis, findings = said(LossSide(operations, outputs=outputs))
    assert diagnosis.is_healthy
    assert findings == {}


@pytest.mark.parametrize(("made", "low", "high", "found"), [
    ("Sigmoid", 0.0, 1.0, False), ("Sigmoid", 0.0, 9.0, True), ("Sigmoid", -1.0, 1.0, True),
    ("Tanh", -1.0, 1.0, False), ("Tanh", -3.0, 3.0, True), ("Relu", 0.0, 99.0, False),
    ("Relu", -3.0, 3.0, True), ("Relu", -0.01, 9.0, False), ("Addmm", -99.0, 99.0, False),
])  # fmt: skip
def test_targets_out_of_reach(made, low, high, found):
    """What the output cannot give, by more than noise at the bound."""
    target = Summary("target", (32, 1), "", (low + high) / 2, (high - low) / 4, low, high)
    side = LossSide((f"{made}Backward0", *SQUARED), (target,), outputs=1)
    assert ("target-range" in said(side)[1]) == found


@pytest.mark.parametrize(("losses", "spacing", "severity"), [
    ([2.31] * 30, 1, "warning"),
    ([2.31] * 30, 10, "error"),
    ([2.31] * 12, 1, None),  # too few to tell
    ([2.31 - 0.02 * i for i in range(30)], 10, None),
    ([20.0 - 0.4 * i for i in range(30)], 10, None),  # above chance, and on its way down
    ([0.7] * 30, 10, None),  # flat, and far below chance
])  # fmt: skip
def test_a_loss_at_chance(losses, spacing, severity):
    """Chance is ln 10 = 2.303 for ten classes; an error from two hundred steps on."""
    side = LossSide(("AddmmBackward0", *CROSS), outputs=1)
    diagnosis, findings = said(side, losses, spacing)
    found = findings.get("not-learning")
    assert (found and found.severity) == severity
    assert diagnosis.verdict == ("stalled" if severity == "error" else "healthy")
    if found:
        assert found.evidence["constant"].value == pytest.approx(math.log(10))


def test_the_constant_of_the_targets_goes_before_even_classes():
    """Nine in ten of one class: 0.5 is chance, and 0.33 is not."""
    side = LossSide(("AddmmBackward0", *CROSS), constant=0.5, outputs=1)
    assert "not-learning" in said(side, [0.51] * 30)[1]
    assert "not-learning" not in said(side, [0.33] * 30)[1]


def test_a_loss_that_is_nan_alone():
    """The gradients are finite: a warning, dated, and no verdict."""
    side = LossSide(("AddmmBackward0", "DivBackward0"), outputs=1)
    diagnosis, findings = said(side, [1.0, 0.9, math.nan, 0.8])
    assert findings["non-finite-loss"].since == 2
    assert findings["non-finite-loss"].severity == "warning"
    assert diagnosis.is_healthy
