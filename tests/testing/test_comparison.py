"""When two profiles differ, and what is said about it."""

import math
import re
from dataclasses import replace

import pytest
import torch
from networks import chain
from scipy import stats

from gradscope.testing.comparison import compare
from gradscope.testing.measure import measure
from gradscope.testing.moves import FACTOR, FALSE_ALARM, FLOOR, POWER, tolerance
from gradscope.testing.profile import Layer, Profile


def inputs():
    """Normal vectors, anew for each seed."""
    return torch.randn(16, 32)


def never():
    """For profiles in which nothing moved: no further pass is spent on them."""
    pytest.fail("measured again without need")


def profile(**layers):
    """A profile of two seeds; each layer is given by its numbers."""
    made = {name: Layer("Linear", "weight 2x2", numbers) for name, numbers in layers.items()}
    return Profile(made, seeds=2, width_std=0.1, torch="2.14.1")


A = {"gradient": (0.1, 0.2), "weight": (1.0, 1.01), "draw": (-0.1, -0.11), "dead": (0.0, 0.25)}


def shifted(build, by):
    """A factory that uses other seeds."""

    def factory():
        torch.manual_seed(torch.initial_seed() + by)
        return build()

    return factory


def test_equal_profiles_do_not_differ():
    """Neither do zeros and what is not finite, where they were before."""
    numbers = {"gradient": (-math.inf, math.nan), "weight": (1.0, 2.0)}
    assert compare(profile(a=numbers), profile(a=numbers), never) == ""


def test_numbers_may_move_by_rounding_only():
    """By the floor, or by four times what noise moved any number of the measure."""
    stored = profile(a=A, b=A)
    moved = profile(a=A, b={**A, "gradient": (0.1, 0.2 + 0.9 * FLOOR)})
    assert compare(stored, moved, never) == ""
    moved = profile(a=A, b={**A, "gradient": (0.1, 0.2 + 0.03)})
    noise = 0.031 / FACTOR
    shaken = profile(a={**A, "gradient": (0.1 + noise, 0.2)}, b=moved.layers["b"].numbers)
    assert compare(stored, moved, lambda: shaken) == ""
    shaken = profile(a={**A, "gradient": (0.1 + 0.9 * noise, 0.2)}, b=moved.layers["b"].numbers)
    text = compare(stored, moved, lambda: shaken)
    assert "same random numbers as stored (2 seeds)" in text
    assert "1 layer moved beyond rounding, most 'b': gradient +0.03 decades" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["layer", "gradient"],
        ["b", "+0.03"],
    ]


def test_a_number_that_is_rounding_itself_is_left_out():
    """Where noise makes or takes a zero, nothing can be said."""
    stored, moved = profile(a={"gradient": (-math.inf, 0.0)}), profile(a={"gradient": (-9.0, 0.0)})
    assert compare(stored, moved, lambda: stored) == ""
    assert "gradient was zero" in compare(stored, moved, lambda: moved)
    assert "gradient zero" in compare(moved, stored, lambda: stored)
    lost = profile(a={"gradient": (math.nan, 0.0)})
    assert "gradient not finite" in compare(moved, lost, lambda: lost)


def test_layers_and_parameters_that_come_go_or_change_are_named():
    """Whatever the numbers."""
    b = Layer("Linear", "weight 2x2, bias 2", A)
    stored = replace(profile(a=A, b=A, c=A), frozen=("c.x",), shared={"d": "e"})
    now = replace(profile(a=A, d=A, c={"weight": A["weight"]}), without_gradient=("c.weight",))
    now = replace(now, layers={**now.layers, "b": b, "a": replace(now.layers["a"], type="Mine")})
    lines, has = compare(stored, now, never).splitlines()[1:], "has gradient, weight, draw, dead"
    assert lines == [
        f"'b' is (weight 2x2, bias 2; {has}), was (weight 2x2; {has})",
        f"'c' is (weight 2x2; has weight), was (weight 2x2; {has})",
        "new layers: 'd'",
        "no longer frozen parameters: 'c.x'",
        "new parameters without a gradient: 'c.weight'",
        "no longer shared parameters: 'd = e'",
        "'a' is a Mine, was a Linear",
    ]


def test_another_class_that_computes_the_same_is_no_change():
    """What a layer is called does not matter."""
    now = profile(a=A)
    assert compare(now, replace(now, layers={"a": replace(now.layers["a"], type="B")}), never) == ""


def test_long_lists_are_cut():
    """Twenty layers are shown, those that moved most; five names of a list."""
    names = [f"l{i}" for i in range(30)]
    stored = profile(**dict.fromkeys(names, A), **{f"gone{i}": A for i in range(8)})
    now = profile(**{f"l{i}": {**A, "gradient": (0.1, 1.2 + i)} for i in range(30)})
    text = compare(stored, now, lambda: now)
    assert "30 layers moved beyond rounding, most 'l29': gradient +30 decades" in text
    assert "no longer layers: 'gone0', 'gone1', 'gone2', 'gone3', 'gone4' and 3 more" in text
    shown = [line.split()[0] for line in text.splitlines() if line.startswith("l")]
    assert shown == ["layer", *names[10:]]
    assert text.endswith("and 10 more layers")


def test_other_seeds_are_within_chance_and_said_to_be():
    """Twenty profiles with other seeds: each asks, none claims that anything moved beyond it."""
    first = measure(chain, inputs)
    for i in range(1, 21):
        other = shifted(chain, 1000 * i)
        text = compare(first, measure(other, inputs), lambda: measure(other, inputs, shaken=True))  # noqa: B023 - called at once
        assert "gradient profile: other random numbers than stored in '(inputs)'" in text
        assert re.search(
            r"moved by \S+ (decades|of its units), within chance: accept or not\?", text
        )
        assert "beyond" not in text
        assert "90% of real moves by " in text


@pytest.mark.parametrize("gain", [0.7, 1.4])
def test_another_initialisation_in_another_draw_is_beyond_chance(gain):
    """A gain of sqrt(2) either way, as between Xavier and Kaiming, is told from chance."""
    build = shifted(lambda: chain(gain), 1000)
    now = measure(build, inputs)
    text = compare(measure(chain, inputs), now, lambda: measure(build, inputs, shaken=True))
    assert "beyond chance, on average over seeds, most " in text
    sign = "-" if gain < 1 else "+"
    rows = [line.split() for line in text.splitlines() if line[0].isdigit()][1:]
    assert rows
    assert all(cell[0] == sign for _, *cells in rows for cell in cells)


def test_a_scaled_layer_is_no_other_draw():
    """Its weights move alike in every seed, so seeds are still compared one by one."""

    def build():
        model = chain()
        with torch.no_grad():
            model[4].weight.mul_(1.5)
        return model

    text = compare(
        measure(chain, inputs), measure(build, inputs), lambda: measure(build, inputs, shaken=True)
    )
    assert text.startswith("gradient profile: same random numbers as stored (3 seeds)")
    header, row = (
        next(line.split() for line in text.splitlines() if line.split()[0] == first)
        for first in ("layer", "4")
    )
    assert row[header.index("weight")] == f"{math.log10(1.5):+.2g}"


def test_inputs_that_are_drawn_anew_are_told_with_the_mend():
    """The same weights and other inputs: draw them where the seed is set."""
    stored, x = measure(chain, inputs()), inputs()
    text = compare(stored, measure(chain, x), lambda: measure(chain, x, shaken=True))
    assert "other random numbers than stored in '(inputs)'" in text
    assert "mend: draw them in a function, as in lambda: torch.randn(8, 3, 32, 32)" in text


def test_versions_of_torch_are_named_where_the_draw_changed():
    """They are the likeliest reason."""
    stored = profile(a=A, b=A)
    other = {**A, "draw": (-0.1, -0.12), "weight": (1.0, 1.02)}
    now = profile(a=other, b=other)
    text = compare(stored, replace(now, torch="3.0"), lambda: now)
    assert text.startswith(
        "gradient profile: other random numbers than stored (torch 2.14.1, now 3.0)"
    )


def test_tolerance_is_the_normal_interval_of_a_difference_of_means():
    """With the spread of the widths alone: scipy's quantiles times sigma sqrt(1/2 + 1/2)."""
    made = replace(profile(**{f"l{i}": {"gradient": (0.0, 0.0)} for i in range(40)}), width_std=0.2)
    allowed, seen = tolerance(("l0", "gradient"), made, made)
    expected = stats.norm.ppf(1 - FALSE_ALARM / 80) * 0.2
    assert allowed == pytest.approx(expected + FLOOR)
    # Of real moves by that much, the share that exceeds the tolerance is the stated power.
    assert stats.norm.sf(allowed, loc=seen, scale=0.2) == pytest.approx(POWER)


def test_seeds_that_scatter_more_than_the_widths_widen_the_tolerance():
    """A layer with a spread of its own is allowed it."""
    calm, wild = {"gradient": (0.0, 0.0)}, {"gradient": (0.0, 1.0)}
    made = profile(a=calm, b=calm, c=wild)
    ratio = (
        tolerance(("c", "gradient"), made, made)[0] / tolerance(("a", "gradient"), made, made)[0]
    )
    assert ratio == pytest.approx(math.sqrt(3), rel=0.01)
