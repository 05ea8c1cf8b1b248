"""Inputs of the wrong scale, from traces written by hand."""

import pytest
from handwritten import Net

from gradscope.trace.structure import LossSide, Summary
from gradscope.trace.table import RecordedStep


def said(rms, *, losses=(), first=None, cancelled=False, type_="Linear"):
    """Findings on a chain whose inputs have mean zero and a deviation."""
    net = Net(4, steps=max(len(losses), 1), type_=type_)
    net.steps = [RecordedStep(i, loss=x) for i, x in enumerate(losses or [None])]
    net.structure["inputs"] = (Summary("input", (32, 64), "float32", 0.0, rms, -rms, rms, 1.0),)
    net.structure["loss"] = LossSide(("AddmmBackward0", "MseLossBackward0"), (), 1.0, 1)
    if cancelled:
        net.structure["scale_invariant"] = {"l0.weight": "norm"}
    net.put("activation", "l0", rms=rms / 2 if first is None else first)
    return net.diagnose()


@pytest.mark.parametrize(("rms", "severity"), [
    (150.0, "warning"), (30.0, "warning"), (3.0, None), (1.0, None), (0.05, None),
    (0.002, "warning"),
])  # fmt: skip
def test_scale(rms, severity):
    """Pixels to 255 have 150, standardised ones 1, those divided by 255 twice 0.002."""
    diagnosis, findings = said(rms)
    assert (findings["input-scale"].severity if severity else None) == severity
    assert ("input-scale" in findings) == bool(severity)
    assert diagnosis.is_healthy


def test_it_is_an_error_where_it_bites():
    """The loss begins at a hundred times that of a constant prediction."""
    diagnosis, findings = said(150.0, losses=[100.0, 90.0, 80.0])
    assert findings["input-scale"].severity == "error"
    assert "100 times" in findings["input-scale"].message
    assert diagnosis.verdict == "exploding"


def test_a_normalisation_takes_it_up():
    """The scale of the first weight is cancelled, so that of its input is as well."""
    assert "input-scale" not in said(150.0, losses=[100.0, 90.0], cancelled=True)[1]


def test_small_first_weights_take_it_up():
    """Somebody scaled the first layer instead."""
    assert "input-scale" not in said(150.0, losses=[100.0, 90.0], first=1.0)[1]
