"""Ranks that share a network record the norms of one process with the whole batch, or say why not.

All scenarios run one after another in one pair of gloo processes, so that each also shows that the
one before left the ranks in step.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context

import pytest
import torch
from torch import distributed, nn

import gradscope

if not distributed.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

STEPS = 3


def build(width: int = 9) -> nn.Sequential:
    """A chain whose widths two ranks cannot halve evenly, unless another one is asked for."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, width), nn.Linear(width, 7)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(7, 1))


class Gain(nn.Module):
    """A gain and an offset, in pieces or whole."""

    def __init__(self, of=nn.Parameter) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gain, self.offset = of(torch.randn(6)), of(torch.randn(6))
        self.unused = of(torch.randn(4))

    def forward(self, x):
        """Both, and something that makes their gradients unlike."""
        return (x * self.gain + self.offset) * self.gain


def batch(i: int) -> torch.Tensor:
    """The whole batch of one step."""
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(i))


def no_change(model):
    """Nothing happens to the model after `watch`."""


def train(
    model,
    inputs_of,
    *,
    clip=None,
    watched=True,
    every=1,
    close_after=STEPS,
    prepare=no_change,
    by_hand=False,
):
    """Train under the recorder; the scope, or None, and the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = None
    if watched:
        scope = gradscope.watch(model, None if by_hand else optimizer, every=every)
    prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if by_hand else optimizer
    for i in range(STEPS):
        optimizer.zero_grad()
        model(inputs_of(i)).square().mean().backward()
        if clip:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(clip)
        optimizer.step()
        if scope is not None and by_hand:
            scope.step()
        if scope is not None and i + 1 == close_after:
            scope.close()
    return scope


COLUMNS = ["norm", "abs_max", "weight_norm", "update_ratio", "zero_fraction", "unclipped_norm"]


def table(scope):
    """The statistics of parameter gradients, by step and name."""
    frame = scope.trace().to_pandas().query("kind == 'weight'")
    names = frame.module.astype(str) + "." + frame.parameter.astype(str)
    frame["name"] = names.astype(str).str.removeprefix("module.")
    return frame.set_index(["step", "name"])[COLUMNS].sort_index()


class Rank:
    """One of several ranks, with its share of each batch, and what it can be told to do."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.collectives = rank, world, []

    def share(self, i: int) -> torch.Tensor:
        """This rank's part of a batch."""
        return batch(i).chunk(self.world)[self.rank]

    def mesh(self, *shape: int):
        """A mesh of all ranks."""
        names = ("replicate", "shard")[-len(shape) :]
        return distributed.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=names)

    def shard(self, model, *meshes):
        """FSDP2 on each layer, by turns on these meshes."""
        from torch.distributed.fsdp import fully_shard

        meshes = meshes or (self.mesh(self.world),)
        for i, layer in enumerate((model[0], model[2], model[4])):
            fully_shard(layer, mesh=meshes[i % len(meshes)])
        fully_shard(model, mesh=meshes[0])
        return model

    def ddp(self):
        """Every rank has the whole gradient; nothing is exchanged."""
        return table(train(nn.parallel.DistributedDataParallel(build()), self.share))

    def fsdp2(self):
        """Every rank has a piece of each gradient."""
        return table(train(self.shard(build()), self.share))

    def clipped(self):
        """The same, with gradients that somebody changed before the step."""
        return table(train(self.shard(build()), self.share, clip=0.5))

    def watched_first(self):
        """`fully_shard` after `watch`: all parameters are others."""
        return table(train(build(), self.share, prepare=self.shard, by_hand=True))

    def two_meshes(self):
        """One layer in pieces, the next one in copies."""
        meshes = (self.mesh(self.world), self.mesh(self.world, 1))
        return table(train(self.shard(build(), *meshes), self.share))

    def hybrid(self):
        """Pieces in one direction of the mesh, copies in the other."""
        return table(train(self.shard(build(), self.mesh(2, self.world // 2)), self.share))

    def partial(self, clip=None):
        """Parameters whole on each rank, gradients that are still to be summed."""
        from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

        mesh = self.mesh(self.world)
        model = Gain(lambda t: nn.Parameter(distribute_tensor(t, mesh, [Replicate()])))
        return table(
            train(model, lambda i: DTensor.from_local(self.share(i), mesh, [Shard(0)]), clip=clip)
        )

    def partial_and_clipped(self):
        """The same, changed before the step: summed once more."""
        return self.partial(clip=0.5)

    def tensor_parallel(self):
        """Columns of one layer, rows of the next, and a part that no mesh holds."""
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        return table(train(parallelize_module(build(8), self.mesh(self.world), plan), batch))

    def fully_gathered(self):
        """FSDP2 that keeps its parameters together: the modules show others than are stepped."""
        model = self.shard(build())
        model.set_reshard_after_backward(False)
        return table(train(model, self.share))

    def part_and_whole(self):
        """Two scopes at once, each of which exchanges."""
        model = self.shard(build())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scopes = [gradscope.watch(part, optimizer, every=1) for part in (model, model[2])]
        for i in range(STEPS):
            optimizer.zero_grad()
            model(self.share(i)).square().mean().backward()
            optimizer.step()
        for scope in scopes:
            scope.close()
        return [table(scope) for scope in scopes]

    def misused(self, **options):
        """Train as this rank does and without a recorder: what it said, its rows, and the bits."""
        model, bare = self.shard(build()), self.shard(build())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scope = train(model, self.share, **options)
            if scope is not None:
                scope.close()
        train(bare, self.share, watched=False)
        same = [
            torch.equal(a.to_local(), b.to_local())
            for a, b in zip(model.parameters(), bare.parameters(), strict=True)
        ]
        assert all(same)
        said = [str(w.message) for w in caught if "gradscope" in str(w.message)]
        return said, None if scope is None else (scope.blind_spots, table(scope))

    def one_rank(self):
        """Only the first rank watches, and does not wait as long as it would elsewhere."""
        from gradscope.recording import agreement

        patience, agreement.FIRST_PATIENCE = agreement.FIRST_PATIENCE, timedelta(seconds=2)
        try:
            return self.misused(watched=self.rank == 0)
        finally:
            agreement.FIRST_PATIENCE = patience

    def closed_early(self):
        """The last rank closes its scope while the others go on."""
        return self.misused(close_after=1 if self.rank == self.world - 1 else STEPS)

    def unlike_intervals(self):
        """Each rank records other steps."""
        return self.misused(every=1 + self.rank)


PAIR = [
    "ddp",
    "fsdp2",
    "clipped",
    "watched_first",
    "one_rank",
    "two_meshes",
    "closed_early",
    "partial",
    "partial_and_clipped",
    "unlike_intervals",
    "tensor_parallel",
    "fully_gathered",
    "part_and_whole",
]


def worker(rank, world, port, scenarios):
    """What one rank got in each scenario, and the sizes of what it exchanged."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    mine = Rank(rank, world)
    original = distributed.all_gather_into_tensor

    def counted(output, tensor, *args, **kwargs):
        if sys._getframe(1).f_globals["__name__"].startswith("gradscope."):
            mine.collectives.append(output.numel())  # FSDP gathers its weights with it too
        return original(output, tensor, *args, **kwargs)

    distributed.all_gather_into_tensor = counted
    results = {}
    try:
        for scenario in scenarios:
            mine.collectives = []
            results[scenario] = getattr(mine, scenario)(), mine.collectives
    finally:
        distributed.destroy_process_group()
    return results


def run(world, scenarios):
    """The results of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(world, mp_context=get_context("spawn")) as ranks:
        arguments = [world] * world, [port] * world, [scenarios] * world
        return list(ranks.map(worker, range(world), *arguments, timeout=300))


@pytest.fixture(scope="module")
def pair():
    """What two ranks got."""
    return run(2, PAIR)


@pytest.fixture(scope="module")
def alone():
    """What one process records, by the scenario's name; most are of the same network."""
    tables = {
        "": table(train(build(), batch)),
        "clipped": table(train(build(), batch, clip=0.5)),
        "tensor_parallel": table(train(build(8), batch)),
        "partial": table(train(Gain(), batch)),
        "partial_and_clipped": table(train(Gain(), batch, clip=0.5)),
    }
    return lambda scenario: tables.get(scenario, tables[""])


def assert_alike(found, expected, columns=COLUMNS):
    """Both have the same rows, and the same numbers to 1e-5."""
    assert found.index.equals(expected.index)
    assert (found - expected)[columns].abs().max().max() < 1e-5


WELL = [name for name in PAIR if name not in {"one_rank", "closed_early", "unlike_intervals"}]


@pytest.mark.parametrize("scenario", [name for name in WELL if name != "part_and_whole"])
def test_two_ranks_record_what_one_process_records(pair, alone, scenario):
    """Every statistic on both ranks equals that of one process with the whole batch, to 1e-5."""
    for rank in pair:
        found, collectives = rank[scenario]
        # Without an optimizer nobody knows when weights move, nor what was before clipping.
        columns = COLUMNS[:2] if scenario == "watched_first" else COLUMNS
        expected = alone(scenario)
        if scenario == "fully_gathered":  # what was gathered stays as it was before the first step
            found, expected = found.loc[[0]], expected.loc[[0]]
        assert_alike(found, expected, columns)
        if scenario == "ddp":
            assert not collectives
        if scenario == "fsdp2":
            full = sum(p.numel() for p in build().parameters())
            assert len(collectives) == STEPS, "one collective per recorded step"
            assert max(collectives) == 2 * 10 * 6 < 2 * full, "statistics travel, gradients do not"


def test_two_scopes_exchange_each_for_itself(pair, alone):
    """A scope of the model and one of its part."""
    for rank in pair:
        whole, part = rank["part_and_whole"][0]
        assert_alike(whole, alone(""))
        of_part = alone("")
        of_part = of_part[of_part.index.get_level_values("name").str.startswith("2.")]
        assert part.norm.tolist() == pytest.approx(of_part.norm.tolist(), rel=1e-5)


def test_a_rank_that_watches_alone_gives_up_and_says_so(pair):
    """It waits once, and has no row of a tensor of which it knows a piece only."""
    (first, second) = (rank["one_rank"][0] for rank in pair)
    assert second == ([], None)
    said, (blind_spots, found) = first
    assert len(said) == len(blind_spots) == 1
    assert "not all of 2 ranks came in 2 s" in said[0]
    assert "6 sharded parameters" in said[0]
    assert found.empty


def test_a_rank_that_closes_first_leaves_the_others_going(pair, alone):
    """What was recorded before stays; the others do not wait, and say from where they are blind."""
    (first, second) = (rank["closed_early"][0] for rank in pair)
    expected = alone("").loc[[0]]
    for said, (_, found) in (first, second):
        assert_alike(found, expected)
        assert len(said) == (said is first[0])
    assert "rank 1 stopped recording" in first[0][0]


def test_ranks_that_record_other_steps_refuse(pair):
    """They would wait for each other in vain: found out at the first step, without waiting."""
    for rank in pair:
        (message,), (_, found) = rank["unlike_intervals"][0]
        assert "different steps" in message
        assert found.empty


@pytest.mark.slow
def test_four_ranks_on_a_mesh_of_two_dimensions(alone):
    """HSDP: copies are not counted twice, whichever way the mesh is gathered."""
    for rank in run(4, ["hybrid", "one_rank", "hybrid", "closed_early", "partial"]):
        assert_alike(rank["hybrid"][0], alone(""))
        assert_alike(rank["partial"][0], alone("partial"))
