"""The machine's facts and its floating-point mode."""

import json
import platform
import subprocess
import sys

import pytest
import torch

from gradscope.ablation.machine import denormals_flushed, environment

FAULTS = """
import resource
from contextlib import nullcontext
import torch
from gradscope.ablation.machine import memory_kept

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    return [torch.ones(4 << 20) for _ in range(5)]

with {context}():
    step(), step(), step(), step()
    before = faults()
    for _ in range(10):
        step()
    print(faults() - before)
"""


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


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set")
def test_memory_is_kept_between_steps():
    """Ten steps of 80 MB fault in fewer than a tenth of the pages that they do else."""

    def faults(context):
        script = FAULTS.format(context=context)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        return int(done.stdout)

    assert faults("memory_kept") < faults("nullcontext") / 10
