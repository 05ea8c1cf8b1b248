"""What modules compute, from traces written by hand: sizes at which a word is said, and silence."""

import dataclasses

import pytest
from handwritten import Net

from gradscope.trace.structure import Softmax


def said(index=1, shape=None, **facts):
    """Findings on a chain of layers, facts about one of which are changed."""
    net = Net(4)
    place = next(i for i, info in enumerate(net.modules) if info.name == f"l{index}")
    net.modules[place] = dataclasses.replace(net.modules[place], **facts)
    if shape:
        net.put("activation", f"l{index}", shape=shape)
    return net.diagnose()[1]


@pytest.mark.parametrize(("p", "severity"), [
    (0.5, None), (0.7, None), (0.8, "warning"), (0.95, "error"), (1.0, "error"),
])  # fmt: skip
def test_dropout(p, severity):
    """Published rates are let be; in evaluation mode any."""
    found = said(type="Dropout", settings={"p": p, "training": 1.0}).get("dropout-too-large")
    assert (found and found.severity) == severity
    assert "dropout-too-large" not in said(type="Dropout", settings={"p": p, "training": 0.0})


@pytest.mark.parametrize(("largest", "size", "of_products", "severity"), [
    (0.95, 16, True, "error"), (0.6, 16, True, "warning"), (0.2, 16, True, None),
    (0.95, 16, False, None), (0.95, 4, True, None),
])  # fmt: skip
def test_attention(largest, size, of_products, severity):
    """Saturated, over enough keys, and nobody scaled it."""
    softmax = Softmax(3, (8, 2, size, size), largest, of_products=of_products)
    found = said(softmax=softmax).get("unscaled-attention")
    assert (found and found.severity) == severity


@pytest.mark.parametrize(("type_", "settings", "shape", "found"), [
    ("LayerNorm", {"normalized": 1.0}, (8, 1), True),
    ("LayerNorm", {"normalized": 64.0}, (8, 64), False),
    ("GroupNorm", {"num_groups": 16.0}, (8, 16, 1, 1), True),
    ("GroupNorm", {"num_groups": 16.0}, (8, 16, 7, 7), False),
    ("GroupNorm", {"num_groups": 4.0}, (8, 16, 1, 1), False),
    ("BatchNorm1d", {"eps": 1e-5}, (8, 16), False),
])  # fmt: skip
def test_normalisation_of_one_element(type_, settings, shape, found):
    """Features, or channels of a group times places."""
    assert ("norm-of-one" in said(type=type_, settings=settings, shape=shape)) == found


@pytest.mark.parametrize(("index", "severity"), [(3, "error"), (1, "warning")])
def test_softmax_of_one_element(index, severity):
    """At the output there is nothing else; inside it may be one token of a sequence."""
    findings = said(index, (8, 1), softmax=Softmax(1, (8, 1)))
    assert findings["softmax-of-one"].severity == severity


@pytest.mark.parametrize(("operations", "found"), [
    (("AddmmBackward0",), True),
    (("TBackward0", "AddmmBackward0", "AddBackward0"), True),
    (("AddmmBackward0", "ReluBackward0"), False),
    (("AddmmBackward0", "MyFunctionBackward"), False),
    ((), False),
])  # fmt: skip
def test_nothing_but_linear_operations(operations, found):
    """What is not known to be linear counts as an activation."""
    assert ("no-activation" in said(operations=operations)) == found
