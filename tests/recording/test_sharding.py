"""DDP and FSDP2 over two gloo processes give the norms of one process with the whole batch."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import distributed, nn

import gradscope

if not distributed.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

STEPS = 3


def build() -> nn.Sequential:
    """A chain whose widths two ranks cannot halve evenly."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 1))


def batch(i: int) -> torch.Tensor:
    """The whole batch of one step."""
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(i))


def train(model, inputs_of, before_step=lambda: None):
    """Train under the recorder; give the table of the parameter gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for i in range(STEPS):
            optimizer.zero_grad()
            model(inputs_of(i)).square().mean().backward()
            before_step()
            optimizer.step()
    frame = scope.trace().to_pandas().query("kind == 'weight'")
    frame["name"] = (frame.module + "." + frame.parameter).str.removeprefix("module.")
    columns = ["norm", "abs_max", "weight_norm", "update_ratio", "zero_fraction", "unclipped_norm"]
    return frame.set_index(["step", "name"])[columns].sort_index()


def worker(rank, port, kind):
    """One of two ranks, with its half of each batch: its table, and how much it exchanged."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    collectives = []
    try:
        model = build()
        if kind == "ddp":
            model = nn.parallel.DistributedDataParallel(model)
        else:
            from torch.distributed.fsdp import fully_shard

            for layer in (model[0], model[2], model[4]):
                fully_shard(layer)
            fully_shard(model)
            original = distributed.all_gather_into_tensor

            def counted(output, tensor, *args, **kwargs):
                if sys._getframe(1).f_globals["__name__"].startswith("gradscope."):
                    collectives.append(output.numel())  # FSDP gathers its weights with it too
                return original(output, tensor, *args, **kwargs)

            distributed.all_gather_into_tensor = counted
        table = train(model, lambda i: batch(i)[rank * 4 : rank * 4 + 4])
        return table, collectives
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_record_what_one_process_records(kind):
    """Every statistic on both ranks equals that of one process with the whole batch, to 1e-5."""
    expected = train(build(), batch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as ranks:
        found = list(ranks.map(worker, range(2), [port] * 2, [kind] * 2, timeout=120))
    for table, collectives in found:
        assert table.index.equals(expected.index)
        assert (table - expected).abs().max().max() < 1e-5
        if kind == "fsdp2":
            full = sum(p.numel() for p in build().parameters())
            assert len(collectives) == STEPS, "one collective per recorded step"
            assert max(collectives) == 2 * 10 * 6 < 2 * full, "statistics travel, gradients do not"
