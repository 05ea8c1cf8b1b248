"""gradient_flow, loop_flows and weight_profile on traces built by hand, against arithmetic."""

import math

import pytest
import torch

from gradscope.diagnosis.flow import gradient_flow, loop_flows, weight_profile
from gradscope.trace.structure import Block, Structure
from gradscope.trace.table import RecordedStep, RecordedTensor, Trace
from gradscope.trace.vocabulary import STATISTICS

NAMES = list(STATISTICS)


def make_trace(columns, *, blocks=(), **structure):
    """A trace from (kind, module, parameter, call, {statistic: one value per step}) columns."""
    steps = max(len(series) for *_, values in columns for series in values.values())
    values = torch.full((steps, len(columns), len(NAMES)), math.nan)
    present = torch.zeros(steps, len(columns), dtype=torch.bool)
    tensors = []
    for i, (kind, module, parameter, call, measured) in enumerate(columns):
        tensors.append(RecordedTensor(kind, module, parameter, i, call, shape=(4, 4)))
        for name, series in measured.items():
            for step, value in enumerate(series):
                if value is not None:
                    values[step, i, NAMES.index(name)] = value
                    present[step, i] = True
    return Trace(
        tensors=tuple(tensors),
        steps=tuple(RecordedStep(i) for i in range(steps)),
        values=values,
        present=present,
        structure=Structure(blocks=tuple(blocks), **structure),
    )


def chain(norms, rms=None):
    """A chain of blocks with the given gradient norms (one list per step) and activation rms."""
    columns = []
    for i, series in enumerate(zip(*norms, strict=True)):
        activation = {"rms": [rms[i] if rms else 1.0] * len(norms)}
        columns.append(("activation", f"b{i}", "", 0, activation))
        columns.append(("activation_grad", f"b{i}", "", 0, {"norm": series}))
    return make_trace(columns)


def test_constant_factor_is_the_slope():
    """A chain that halves per block has chi 1/2, slope log10(1/2) and the product as its total."""
    flow = gradient_flow(chain([[2.0 ** -(9 - i) for i in range(10)]]))
    assert flow.blocks == tuple(f"b{i}" for i in range(10))
    assert flow.chi == pytest.approx([0.5] * 9)
    assert flow.slope == pytest.approx(math.log10(0.5))
    assert (flow.slope_low, flow.slope_high) == pytest.approx((flow.slope, flow.slope))
    assert flow.total == pytest.approx(9 * math.log10(0.5))
    assert flow.accumulated == pytest.approx(flow.total)
    assert flow.first_to_last == pytest.approx([2.0**-9])


def test_steps_are_averaged_geometrically():
    """Factors 4 and 1/4 in two steps make 1; each step keeps its own ratio."""
    flow = gradient_flow(chain([[4.0, 1.0], [0.25, 1.0]]))
    assert flow.chi == pytest.approx([1.0])
    assert flow.first_to_last == pytest.approx([4.0, 0.25])
    assert gradient_flow(chain([[4.0, 1.0], [0.25, 1.0]]), slice(0, 1)).chi == pytest.approx([4])


def test_one_odd_block_does_not_tilt_the_slope():
    """A jump of four decades at one block is in the total, not in the slope."""
    norms = [1e-4] * 6 + [1.0] * 6
    flow = gradient_flow(chain([norms]))
    assert flow.slope == pytest.approx(0.0)
    assert flow.total == pytest.approx(-4.0)


def test_zero_and_absent_gradients_are_silent_and_never_decay():
    """Blocks with a zero or no gradient are named and left out of chi, slope and total."""
    flow = gradient_flow(chain([[0.0, 1.0, None, 1.0, 1.0]]))
    assert flow.silent == ("b0", "b2")
    assert flow.blocks == ("b1", "b3", "b4")
    assert (flow.slope, flow.total) == (0.0, 0.0)


def test_non_finite_gradients_are_neither_silent_nor_counted():
    """A block whose gradient is NaN in every step is left to the diagnosis."""
    flow = gradient_flow(chain([[1.0, math.nan, 1.0], [1.0, math.inf, 2.0]]))
    assert flow.silent == ()
    assert flow.blocks == ("b0", "b2")
    assert flow.chi == pytest.approx([math.sqrt(0.5)])


def test_forward_counterpart():
    """Activations that double per block show as a forward slope, not a backward one."""
    flow = gradient_flow(chain([[1.0] * 8], rms=[2.0**i for i in range(8)]))
    assert flow.forward_slope == pytest.approx(math.log10(2))
    assert flow.forward_total == pytest.approx(7 * math.log10(2))
    assert flow.slope == 0.0


def test_trunk_is_followed_where_it_is_the_majority():
    """Blocks inside a branch are left out as long as most blocks are cuts."""
    norms = {"a": 1.0, "branch": 1e-6, "b": 1.0, "c": 1.0}
    columns = [("activation_grad", name, "", 0, {"norm": [v]}) for name, v in norms.items()]
    blocks = [Block(n, "", (n,), n, 0, is_cut=n != "branch") for n in norms]
    assert gradient_flow(make_trace(columns, blocks=blocks)).blocks == ("a", "b", "c")
    blocks = [Block(n, "", (n,), n, 0, is_cut=n in "ac") for n in norms]
    assert gradient_flow(make_trace(columns, blocks=blocks)).blocks == ("a", "c"), "just half"
    blocks = [Block(n, "", (n,), n, 0, is_cut=n == "c") for n in norms]
    assert gradient_flow(make_trace(columns, blocks=blocks)).blocks == tuple(norms)


def test_loop_over_time_is_a_flow():
    """Calls of one module in one step are successive positions."""
    columns = []
    for call in range(6):
        columns.append(("activation", "cell", "", call, {"rms": [1.0]}))
        columns.append(("activation_grad", "cell", "", call, {"norm": [10.0 ** (call - 5)]}))
    columns.append(("activation", "head", "", 0, {"rms": [1.0]}))
    (flow,) = loop_flows(make_trace(columns)).values()
    assert flow.blocks == ("cell", *(f"cell[{i}]" for i in range(1, 6)))
    assert flow.slope == pytest.approx(-1.0)
    assert flow.total == pytest.approx(-5.0)


def test_without_activations_the_flow_is_empty():
    """A trace of weights alone has no flow, and says so with neutral numbers."""
    trace = make_trace([("weight", "a", "weight", 0, {"norm": [1.0]})])
    flow = gradient_flow(trace)
    assert flow.blocks == flow.chi == ()
    assert math.isnan(flow.slope)
    assert flow.total == 0.0


def test_weight_profile_leaves_out_what_has_no_flow():
    """Cancelled, unused and frozen parameters and vectors are not in the profile."""
    columns = [
        ("weight", "a", "weight", 0, {"norm": [10.0], "weight_norm": [100.0]}),
        ("weight", "b", "weight", 0, {"norm": [1e-9], "weight_norm": [1.0]}),
        ("weight", "c", "weight", 0, {"norm": [1.0], "weight_norm": [1.0]}),
        ("weight", "d", "weight", 0, {"norm": [0.0], "weight_norm": [1.0]}),
    ]
    profile = weight_profile(make_trace(columns, cancelled={"b.weight": "norm"}))
    assert profile.layers == ("a", "c")
    assert profile.log10_grad == pytest.approx((1.0, 0.0))
    assert profile.log10_weight == pytest.approx((2.0, 0.0))
    assert profile.slope == pytest.approx(1.0)


def test_two_thousand_blocks_and_one():
    """Depths at both ends work: 3,000 blocks, and a single one."""
    deep = gradient_flow(chain([[10 ** (-0.001 * i) for i in range(3000)]]))
    assert deep.slope == pytest.approx(0.001, rel=1e-3)
    single = gradient_flow(chain([[1.0]]))
    assert single.chi == ()
    assert single.total == 0.0
