"""What grows and decays over the depth and over time."""

import math

import pytest
import torch
from handwritten import NAMES, Net, geometric

from gradscope import diagnose
from gradscope.diagnosis.verdict import Severity, Verdict
from gradscope.trace.structure import Block, ModuleInfo
from gradscope.trace.table import RecordedTensor, Trace


def test_decay_is_vanishing_with_its_numbers():
    """0.5 per block over 12 blocks: 11 factors, 3.31 decades, all told with units."""
    diagnosis, findings = geometric(Net(12), 0.5, weights=0.5).diagnose()
    assert diagnosis.verdict is Verdict.VANISHING
    finding = findings["vanishing"]
    assert finding.where == "l0 ... l11"
    assert finding.evidence["total"].value == pytest.approx(11 * math.log10(0.5), rel=0.01)
    assert finding.evidence["total"].unit == "decades"
    assert finding.evidence["factor"].value == pytest.approx(0.5, rel=0.01)
    assert (
        finding.evidence["slope_low"].value
        <= math.log10(0.5)
        <= finding.evidence["slope_high"].value
    )
    assert "kaiming" in finding.remedy
    assert "masked-decay" not in findings


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (10 ** (-2 / 3), "-2 decades (a decay by a factor of 100)"),
        (0.05, "-3.9 decades (a decay by a factor of 8,000)"),
        (0.01, "-6 decades (a decay by a factor of 10^6.0)"),
        (10, "3 decades (a growth by a factor of 1,000)"),
    ],
)
def test_the_factor_is_told_in_plain_words(factor, words):
    """Four blocks, three equal factors: their product, not its decades, in one direction."""
    net = Net(4)
    for i in range(4):
        net.put("activation_grad", f"l{i}", norm=factor ** (3 - i))
    _, findings = net.diagnose()
    (told,) = (f.evidence["total"] for f in findings.values() if "total" in f.evidence)
    assert str(told) == words


def test_decay_that_does_not_add_up_is_mild():
    """The same factor over six blocks is 1.5 decades: certain, but healthy."""
    diagnosis, findings = geometric(Net(6), 0.5).diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["mild-decay"].severity is Severity.INFO


@pytest.mark.parametrize(("usual", "sick"), [(0.15, False), (0.21, True)])
def test_a_few_odd_blocks_make_no_trend(usual, sick):
    """Eleven factors lose more than three decades; the usual ones alone must lose two of them.

    Three blocks of 0.7 decades among eight usual ones: 11 * 0.15 is 1.7, 11 * 0.21 is 2.3.
    """
    net, norm = Net(12), 1.0
    for i in range(11, -1, -1):
        net.put("activation_grad", f"l{i}", norm=norm)
        norm *= 10 ** -(0.7 if i in (3, 6, 9) else usual + 0.01 * (-1) ** i)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == ("vanishing" if sick else "inconclusive")
    decay = findings["vanishing" if sick else "uncertain-decay"]
    assert decay.evidence["total"].value == pytest.approx(-(2.1 + 8 * usual), abs=0.02)


def test_masked_decay_is_named():
    """Weight gradients are level, block gradients are not."""
    diagnosis, findings = geometric(Net(14), 0.5, activations=0.5, weights=1.0).diagnose()
    assert diagnosis.verdict == "vanishing"
    assert findings["masked-decay"].evidence["weight_gradients"].value == pytest.approx(0, abs=0.01)
    assert findings["masked-decay"].evidence["block_gradients"].value < -3


def test_growth_backward_and_forward_are_two_findings():
    """1.6 per block over 12 blocks is 2.2 decades, either way."""
    diagnosis, findings = geometric(Net(12), 1.6).diagnose()
    assert diagnosis.verdict == "exploding"
    assert set(findings) == {"exploding-backward"}
    diagnosis, findings = geometric(Net(12), 1.0, activations=1.6).diagnose()
    assert diagnosis.verdict == "exploding"
    assert set(findings) == {"exploding-forward"}
    _, findings = geometric(Net(12), 1.6, activations=1.6).diagnose()
    assert set(findings) == {"exploding-backward", "exploding-forward"}


def test_scatter_without_trend_is_inconclusive_where_it_would_matter():
    """Factors that jump up and down and end 4 decades low cannot be told from chance."""
    net = Net(9)
    level = 0.0
    for i, step in enumerate([0.0, 2.0, -1.2, 2.1, -1.1, 1.9, 2.2, -1.3, 0.5]):
        level += step
        net.put("activation_grad", f"l{i}", norm=10.0**level)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "inconclusive"
    assert "To settle it" in findings["uncertain-decay"].remedy


def _fields(block):
    return [block.name, block.type, block.modules, block.output, block.call, block.is_cut]


def test_normalised_chain_is_judged_by_the_length_of_its_run():
    """1.21 per layer: 16 batch-normed layers in a row are healthy, 24 are not (1902.08129)."""
    for layers, verdict in ((16, "healthy"), (24, "exploding")):
        net = geometric(Net(layers), math.sqrt(math.pi / (math.pi - 1)))
        for i, block in enumerate(net.blocks):
            norm = ModuleInfo(f"n{i}", "BatchNorm2d", 2 * i + 1, 1, f"n{i}", is_cut=True)
            net.modules.append(norm)
            net.blocks[i] = Block(
                *[*_fields(block)[:2], (block.name, norm.name), *_fields(block)[3:]]
            )
        assert net.diagnose()[0].verdict == verdict


def test_normalised_residual_growth_is_healthy():
    """The same growth beside skips is a power of the depth: healthy."""
    net = geometric(Net(30), 1.21)
    for i, block in enumerate(net.blocks):
        net.modules[i + 1] = ModuleInfo(block.name, "Linear", 2 * i, 1, block.name, is_cut=False)
        norm = ModuleInfo(f"n{i}", "LayerNorm", 2 * i + 1, 1, f"n{i}", is_cut=False)
        net.modules.append(norm)
        net.blocks[i] = Block(*[*_fields(block)[:2], (block.name, norm.name), *_fields(block)[3:]])
    assert net.diagnose()[0].verdict == "healthy"


def test_recurrent_flow_is_judged_over_time():
    """Twenty calls of one cell, 0.6 per step: vanishing over time, with how far it reaches."""
    net = Net(2)
    trace = net.trace()
    tensors = [
        RecordedTensor(kind, "l0", "", 0, call, shape=(4, 64))
        for call in range(20)
        for kind in ("activation", "activation_grad")
    ]
    values = torch.full((1, 40, len(NAMES)), math.nan)
    values[0, 0::2, NAMES.index("rms")] = 1.0
    values[0, 1::2, NAMES.index("norm")] = 0.6 ** torch.arange(19, -1, -1)
    keep = [i for i, t in enumerate(trace.tensors) if t.module != "l0" or t.kind == "weight"]
    joined = Trace(
        tuple(trace.tensors[i] for i in keep) + tuple(tensors),
        trace.steps,
        torch.cat([trace.values[:, keep], values], dim=1),
        torch.cat([trace.present[:, keep], torch.ones(1, 40, dtype=torch.bool)], dim=1),
        trace.structure,
    )
    diagnosis = diagnose(joined)
    finding = next(f for f in diagnosis.findings if f.kind == "vanishing")
    assert diagnosis.verdict == "vanishing"
    assert "over time" in finding.where
    assert finding.evidence["reach"].value == pytest.approx(-3 / math.log(0.6), rel=0.01)
