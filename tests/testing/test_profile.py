"""The file of a profile."""

import json
import math

import pytest

from gradscope.errors import TraceError
from gradscope.testing.profile import Layer, Profile, load

PROFILE = Profile(
    layers={
        "(inputs)": Layer("", "(4, 3) float32", {"weight": (1.0, 1.1)}),
        "a.b": Layer(
            "Linear",
            "weight 2x3, bias 2",
            {"gradient": (-0.25, -math.inf), "weight": (0.1234567, math.nan), "dead": (0.5, 0.0)},
        ),
    },
    seeds=2,
    width_std=0.05,
    frozen=("a.c.weight",),
    without_gradient=("a.d",),
    shared={"a.e.weight": "a.b.weight"},
    torch="2.14.1",
)


def test_what_is_saved_is_loaded(tmp_path):
    """Numbers, zeros and what is not finite come back, in their order; one line a layer."""
    path = tmp_path / "deep" / "p.json"
    PROFILE.save(path)
    assert repr(load(path)) == repr(PROFILE)  # NaN is not equal to itself
    assert [list(path.parent.iterdir())] == [[path]]
    lines = [line for line in path.read_text().splitlines() if '"a.b"' in line]
    assert len(lines) == 1
    json.loads(path.read_text(), parse_constant=pytest.fail)  # plain JSON


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": 99}', "written by a newer gradscope; upgrade, or accept"),
        (
            '{"version": 1, "layers": [{"name": "a", "log10_norm": 0.1, "std": 0.1}], "seeds": 3}',
            "old format.*accept the profile anew with pytest --gradscope-update",
        ),
        ("[1", "no gradient profile.*write it anew with pytest --gradscope-update"),
        ("[1]", "no gradient profile"),
        ('{"version": 2}', "no gradient profile"),
        ('{"version": 2, "layers": {"a": 3}, "frozen": [], "without_gradient": []}', "no gradient"),
    ],
)
def test_other_files_are_told_in_one_line(tmp_path, content, message):
    """A newer version, the format before seeds were kept, and what is no profile."""
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(TraceError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
