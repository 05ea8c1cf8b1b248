"""The machine's facts and its floating-point mode."""

import json

import pytest
import torch

from gradscope.ablation.machine import denormals_flushed, environment


def halved_smallest():
    """Half of the smallest normal number: a denormal, or zero where they are flushed."""
    return float(torch.tensor(torch.finfo(torch.float32).smallest_normal) / 2)


def raise_while_flushed():
    """Look at a denormal inside, then leave by an error."""
    with denormals_flushed():
        assert halved_smallest() == 0
        raise ZeroDivisionError


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_for_a_while(before):
    """Inside they are zero, after it the mode is the caller's again, errors or not."""
    torch.set_flush_denormal(before)
    try:
        with pytest.raises(ZeroDivisionError):
            raise_while_flushed()
        assert (halved_smallest() == 0) is before
    finally:
        torch.set_flush_denormal(False)


def test_environment_is_json_and_complete():
    """Versions and threads are those of this process, as JSON types."""
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert all(facts.values())
