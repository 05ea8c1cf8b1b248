"""The training on two ranks records the same under DDP and FSDP2, and leaves one file."""

from __future__ import annotations

import pytest
import torch
from as_user import example

from gradscope.trace.table import Trace


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="no distributed package")
def test_ddp_and_fsdp_record_the_same(tmp_path):
    """Losses, and the total norm of the clipped gradient, of two ways through torch."""
    traces = {}
    for how in ("ddp", "fsdp"):
        folder = tmp_path / how
        folder.mkdir()
        ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        done = example(folder, "parallel.py", how, launcher=ranks)
        assert done.stdout.count("verdict: healthy") == 1
        assert [path.name for path in folder.iterdir()] == ["run.parquet"]
        traces[how] = Trace.load(folder / "run.parquet")
    one, two = traces.values()
    assert [s.step for s in one.steps] == [s.step for s in two.steps] == [0, 2, 4, 6]
    (a_tensors, a), (b_tensors, b) = (t.series("weight", "norm") for t in (one, two))
    assert len(a_tensors) == len(b_tensors) == 42
    totals = [norms.double().square().sum(1).sqrt() for norms in (a, b)]
    torch.testing.assert_close(*totals, rtol=1e-4, atol=0)
    assert all(total <= 1.0 + 1e-4 for total in totals[0].tolist())
    assert [loss for _, loss in one.logged["loss"]] == pytest.approx(
        [loss for _, loss in two.logged["loss"]], rel=1e-4
    )
    outputs = [
        sum(t.kind == "activation" and "blocks" in t.module for t in trace.tensors)
        for trace in (one, two)
    ]
    assert min(outputs) >= 3 * 6, "outputs of every block, also where they are computed anew"
