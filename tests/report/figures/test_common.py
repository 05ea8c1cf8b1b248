"""How names and decades are written on figures."""

import pytest

from gradscope.report.figures.common import merged_names, power_of_ten, shortened
from gradscope.report.figures.lines import _ticks


def test_a_name_keeps_both_its_ends():
    """What gives way is in the middle; a short name stays."""
    name = "encoder.layers.11.downsampler[1]"
    short = shortened(name, 18)
    assert len(short) == 18
    assert short.startswith("encoder.")
    assert short.endswith("mpler[1]")
    assert shortened("conv1", 18) == "conv1"


def test_networks_of_other_depth_share_their_layers():
    """A layer that both have stands at one place, in the order of each of them."""
    deep = ["conv", "a.0", "a.1", "a.2", "fc"]
    shallow = ["conv", "a.0", "a.1", "norm", "fc"]
    order = merged_names([deep, shallow])
    assert sorted(order) == sorted({*deep, *shallow})
    for names in (deep, shallow):
        assert [n for n in order if n in names] == names


@pytest.mark.parametrize(
    "other", [["x", "y", "z"], ["b", "a"], ["a", "b", "a"]], ids=["strange", "turned", "twice"]
)
def test_networks_without_a_common_order_have_none(other):
    """Other names, another order, a name that comes twice: positions, not names."""
    assert merged_names([["a", "b", "c"], other]) is None


def test_decades_are_whole_powers():
    """As people write them."""
    assert power_of_ten(-9) == "10\u207b\u2079"
    assert power_of_ten(2.0) == "10\u00b2"


@pytest.mark.parametrize("limits", [(-3.5, -2.5), (0.1, 0.5), (0.30, 0.34), (-1.9, 0.0)])
def test_a_log_axis_has_three_ticks_or_more(limits):
    """Also within a part of a decade; and never more than seven."""
    ticks = _ticks(limits)["tickvals"]
    assert 3 <= len(ticks) <= 7
    assert all(10 ** limits[0] <= t * 1.01 and t <= 1.01 * 10 ** limits[1] for t in ticks)
