"""diagnose() on traces whose every number is known."""

import io
import json
import math

import pytest
import torch
from handwritten import NAMES, Net, geometric
from rich.console import Console

from gradscope import diagnose
from gradscope.diagnosis.verdict import Severity, Verdict
from gradscope.trace.structure import Block, ModuleInfo
from gradscope.trace.table import RecordedStep, RecordedTensor, Trace


def test_level_chain_is_healthy():
    """No change over any depth: no finding at all."""
    diagnosis, findings = Net(40).diagnose()
    assert diagnosis.verdict == "healthy"
    assert diagnosis.is_healthy
    assert findings == {}


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


def test_decay_that_does_not_add_up_is_mild():
    """The same factor over six blocks is 1.5 decades: certain, but healthy."""
    diagnosis, findings = geometric(Net(6), 0.5).diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["mild-decay"].severity is Severity.INFO


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


def _fields(block):
    return [block.name, block.type, block.modules, block.output, block.call, block.is_cut]


def test_structural_zeros_never_alarm():
    """A bias that batch norm cancels has a gradient of rounding: information."""
    net = Net(8)
    net.put("weight", "l3", "bias", norm=1e-9, weight_norm=1.0)
    net.structure = {"cancelled": {"l3.bias": "n3"}, "frozen": ("l0.weight",)}
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["structural-zero"].where == "l3.bias"
    assert {f.severity for f in findings.values()} == {Severity.INFO}


def test_cut_graph_unused_and_unused_output_are_told_apart():
    """Ran without a gradient: disconnected; never ran: a warning; for an unread output: a note."""
    net = Net(8)
    net.drop("weight", "l2", "weight")
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "disconnected"
    assert findings["disconnected"].where == "l2.weight"
    net.structure = {"aside": ("l2",), "unused": ("gone.weight",)}
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["no-gradient"].where == "l2.weight"
    assert findings["no-gradient"].severity is Severity.INFO
    assert findings["unused"].where == "gone.weight"
    assert findings["unused"].severity is Severity.WARNING


def test_dead_layer_needs_more_than_chance():
    """64 units of which 90 % are dead, on the trunk: dead; half of them off is chance."""
    net = Net(6)
    for share, verdict in ((0.5, "healthy"), (0.9, "dead")):
        net.put("activation", "l2", dead_fraction=share)
        diagnosis, findings = net.diagnose()
        assert diagnosis.verdict == verdict
    assert findings["dead-units"].evidence["dead"].value == pytest.approx(0.9)


def test_nothing_arrives_is_dead_unless_a_zero_weight_explains_it():
    """Exactly zero gradients below a layer: dead; with a head that starts at zero: information."""
    net = Net(6)
    for i in range(5):
        net.put("activation_grad", f"l{i}", norm=0.0)
        net.put("weight", f"l{i}", "weight", norm=0.0)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "dead"
    assert findings["zero-gradient"].severity is Severity.ERROR
    net.put("weight", "l5", "weight", weight_norm=0.0)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["zero-initialised"].where == "l5.weight"
    assert "Record a few steps" in findings["zero-initialised"].remedy


def test_saturation_is_a_warning():
    """Sixty percent of a tanh's outputs at its bounds."""
    net = Net(6)
    net.put("activation", "l1", saturated_fraction=0.6)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["saturation"].severity is Severity.WARNING


def test_non_finite_names_the_first_step_and_tensor():
    """NaN in an activation of step 2 comes before the gradients it makes."""
    net = Net(6, steps=4)
    net.put("activation", "l3", nonfinite_fraction=[0.0, 0.0, 0.1, 0.2])
    net.put("activation", "l4", nonfinite_fraction=[0.0, 0.0, 0.3, 0.2])
    for i in range(6):
        net.put("weight", f"l{i}", "weight", nonfinite_fraction=[0.0, 0.0, 1.0, 1.0])
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "non-finite"
    assert findings["non-finite"].where == "l3"
    assert findings["non-finite"].evidence["step"].value == 2
    assert findings["non-finite"].evidence["parameters"].value == 6
    assert "lower the learning rate" in findings["non-finite"].remedy.lower()


def test_overflow_in_a_skipped_step_is_no_alarm():
    """A GradScaler that skips a step does what it should."""
    net = Net(6, steps=3)
    net.put("weight", "l0", "weight", nonfinite_fraction=[0.0, 1.0, 0.0])
    net.steps[1] = RecordedStep(1, skipped=True)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "healthy"
    assert findings["skipped-steps"].evidence["skipped"].value == 1


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1e-3] * 5, "healthy"),
        ([2.0] * 5, "exploding"),
        ([0.2] * 5, "healthy"),
        ([1e-9] * 5, "vanishing"),
        ([5e-6] * 5, "healthy"),
        ([5e-7 * i for i in range(1, 6)], "healthy"),
        ([0.0, 1e-9], "healthy"),
    ],
    ids=["usual", "too-large", "large", "too-small", "small", "warm-up", "too-few-steps"],
)
def test_update_sizes(ratios, verdict):
    """Update/weight against the limits of LARS and of float32."""
    net = Net(6, steps=len(ratios))
    for i in range(6):
        net.put("weight", f"l{i}", "weight", update_ratio=ratios)
    assert net.diagnose()[0].verdict == verdict


def test_one_layer_out_of_line_is_named():
    """Before a norm, a weight times 100 divides its gradient by 100: gradient/weight by 10^4."""
    net = Net(12)
    net.put("weight", "l5", "weight", norm=0.01, weight_norm=1000.0)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "vanishing"
    assert findings["odd-layer"].where == "l5"
    assert findings["odd-layer"].evidence["gradient/weight"].value == pytest.approx(-4.0, abs=0.01)


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


def test_without_activations_deep_networks_are_inconclusive():
    """Level weight gradients prove nothing, however few, as a decay can be masked; one shows."""
    for depth, factor, verdict in (
        (20, 1.0, "inconclusive"),
        (4, 1.0, "inconclusive"),
        (14, 0.5, "vanishing"),
    ):
        net = geometric(Net(depth), 1.0, weights=factor)
        net.columns = {key: v for key, v in net.columns.items() if key[0] == "weight"}
        net.blocks = []
        assert net.diagnose()[0].verdict == verdict


def test_empty_trace_is_inconclusive():
    """No step, no verdict."""
    empty = Trace((), (), torch.empty(0, 0, len(NAMES)), torch.empty(0, 0, dtype=torch.bool))
    diagnosis = diagnose(empty)
    assert diagnosis.verdict == "inconclusive"
    assert "No step was recorded" in str(diagnosis)


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
