"""diagnose() as a whole: on a trace whose every number is known, and under any default."""

from contextlib import contextmanager

import pytest
import torch
import zoo
from handwritten import Net

import gradscope
from gradscope.errors import TraceError


def test_level_chain_is_healthy():
    """No change over any depth: no finding at all."""
    diagnosis, findings = Net(40).diagnose()
    assert diagnosis.verdict == "healthy"
    assert diagnosis.is_healthy
    assert findings == {}


def test_what_is_no_trace_is_refused():
    """A scope in the place of its trace, as a beginner gives it: one line with the mend."""
    scope = gradscope.watch(torch.nn.Linear(1, 1))
    scope.close()
    with pytest.raises(TraceError, match=r"got Scope; give scope\.trace\(\)"):
        gradscope.diagnose(scope)


@contextmanager
def default_device():
    """Meta tensors, whatever does not say otherwise."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype):
    """Numbers of another precision."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS = {
    "meta as context": lambda: torch.device("meta"),
    "meta": default_device,
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "inference": torch.inference_mode,
}


KINDS = ("trained_a_little", "bn_without_skip", "dead_relu", "nan_layer", "detached_stem")


@pytest.fixture(scope="module")
def traces():
    """Networks with as many different verdicts."""
    return [zoo.watch_member(zoo.draw(kind, 0)) for kind in KINDS]


@pytest.mark.parametrize("default", DEFAULTS)
def test_the_default_of_the_process_changes_no_word(default, traces):
    """Device, precision and mode are the user's; the diagnosis is that without them."""
    for trace in traces:
        plain = str(gradscope.diagnose(trace))
        with DEFAULTS[default]():
            assert str(gradscope.diagnose(trace)) == plain
