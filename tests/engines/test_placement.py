"""Placement: never more than fit, whatever the machine has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.engines.placement import Resources, described, devices, slots
from gradscope.errors import ConfigError


@given(
    jobs=st.integers(1, 12),
    n_gpus=st.integers(0, 8),
    n_cores=st.integers(1, 16),
    memory=st.floats(1, 64),
    cpus=st.none() | st.integers(1, 4),
    gpus=st.none() | st.sampled_from([0, 0.25, 1 / 3, 0.5, 0.7, 1, 2, 3]),
    memory_gb=st.none() | st.floats(0.5, 8),
)
def test_never_more_than_fit(jobs, n_gpus, n_cores, memory, cpus, gpus, memory_gb):
    """Against the sums: processors, memory, and on each GPU the shares of those that see it."""
    names = tuple(f"gpu{i}" for i in range(n_gpus))
    needs = Resources(cpus, gpus, memory_gb)
    fits = (cpus or 1) <= n_cores and (memory_gb or 0) <= memory and (gpus or 0) <= n_gpus
    if not fits:
        with pytest.raises(ConfigError, match=r"^resources\."):
            slots(needs, jobs, names, n_cores=n_cores, memory=memory)
        return
    places = slots(needs, jobs, names, n_cores=n_cores, memory=memory)
    assert 1 <= len(places) <= jobs
    assert len(places) * (cpus or 0) <= n_cores
    assert len(places) * (memory_gb or 0) <= memory * (1 + 1e-9)
    for name in names:
        sharing = sum(name in place for place in places)
        assert sharing * min(gpus if gpus is not None else 1 / jobs, 1) <= 1 + 1e-9
    if gpus is not None and gpus >= 1:
        assert all(len(set(place)) == gpus for place in places)
    elif gpus or (gpus is None and names):
        assert all(len(place) == 1 for place in places)
    else:
        assert set(places) == {()}


def test_gpus_are_shared_only_when_all_are_in_use():
    """Six halves on four GPUs: one on each first."""
    places = slots(Resources(gpus=0.5), 6, ("0", "1", "2", "3"), n_cores=8, memory=8)
    assert places == (("0",), ("1",), ("2",), ("3",), ("0",), ("1",))


def test_a_part_beside_a_whole_is_refused():
    """One and a half GPUs are no share."""
    with pytest.raises(ConfigError, match=r"resources.gpus: 1.5; give a whole number"):
        slots(Resources(gpus=1.5), 1, ("0", "1"))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", ()),
        ("-1", ()),
        ("2", ("2",)),
        ("0, 3", ("0", "3")),
        ("GPU-1f,MIG-2", ("GPU-1f", "MIG-2")),
    ],
)
def test_gpus_are_those_that_this_process_may_use(monkeypatch, value, names):
    """As the environment says, by whatever names."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert devices() == names


def test_the_default_is_said():
    """Where GPUs are there and nobody said how to share them."""
    gpus = ("0", "1")
    assert described(Resources(), (("0",), ("1",)), gpus).startswith(
        "2 GPUs, 2 at a time, one GPU each"
    )
    assert "2 to a GPU" in described(Resources(), (("0",), ("1",)) * 2, gpus)
    assert described(Resources(gpus=1), (("0",),), gpus) == described(Resources(), ((),), ()) == ""
