"""The training on two workers of Ray Train records what one process with the whole batch has."""

from __future__ import annotations

import sys

import pytest
import torch
from as_user import ROOT, example
from torch import nn

from gradscope.trace.table import Trace

STEPS, EVERY = 20, 2

pytest.importorskip("ray", reason="pip install 'gradscope-torch[ray]'")


def by_hand():
    """Norms by parameter at each step, of a plain loop on the same batches."""
    sys.path.insert(0, str(ROOT))
    from examples.ray_train import batch, network

    sys.path.remove(str(ROOT))
    with torch.random.fork_rng():
        model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    norms = []
    for step in range(STEPS):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        norms.append({n: p.grad.norm().item() for n, p in model.named_parameters()})
        optimizer.step()
    return norms


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="no distributed package")
def test_two_workers_record_the_norms_of_the_whole_batch(tmp_path):
    """Each parameter at each second step; rank 0 alone has written, and said it."""
    done = example(tmp_path, "ray_train.py")
    assert "verdict: " in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ray", "run.parquet"]
    trace = Trace.load(tmp_path / "run.parquet")
    assert "running" not in trace.metadata, "the scope was closed"
    assert [step.step for step in trace.steps] == list(range(0, STEPS, EVERY))
    expected = by_hand()
    rows = trace.to_pandas().query("kind == 'weight'")
    assert len(rows) == len(trace.steps) * len(expected[0])
    for row in rows.itertuples():
        name = f"{row.module}.{row.parameter}".removeprefix("module.")
        assert row.norm == pytest.approx(expected[row.step][name], rel=1e-3)
