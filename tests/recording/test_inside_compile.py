"""Inside compiled networks: what the eager network shows, and not a bit moved.

The oracle of each number is the eager network, of each bit the compiled one that nobody watches.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.errors import GradscopeWarning
from gradscope.recording import compiled, outputs

# Dynamo asks for it where what comes into a compiled part was made outside.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

KEY = ["step", "kind", "module", "call", "output"]
NUMBERS = [
    *("norm", "rms", "abs_max", "zero_fraction", "nonfinite_fraction"),
    *("saturated_fraction", "dead_fraction", "variation"),
]


@pytest.fixture(autouse=True)
def _fresh():
    forget()
    yield
    forget()


def forget():
    """Each run compiles anew."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


class Block(nn.Module):
    """A branch beside a skip connection."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):  # noqa: D102 - see the class
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks one after the other, with checkpoints around them or without."""

    def __init__(self, *, checkpoints=False):
        super().__init__()
        self.blocks = nn.ModuleList([Block(4) for _ in range(3)])
        self.head = nn.Linear(4, 2)
        self.checkpoints = checkpoints

    def forward(self, x):  # noqa: D102 - see the class
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpoints else block(x)
        return self.head(x)


class Residual(nn.Module):
    """Convolutions with normalisation and activations in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):  # noqa: D102 - see the class
        out = self.act(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.act(out)


class Convolutions(nn.Module):
    """Two such blocks in a container, and a head behind views."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Residual(), Residual())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x):  # noqa: D102 - see the class
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


class Again(nn.Module):
    """One layer three times; of two outputs the loss reads one."""

    def __init__(self):
        super().__init__()
        self.layer, self.act, self.head = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
        self.aside = nn.Linear(4, 2)

    def forward(self, x):  # noqa: D102 - see the class
        for _ in range(3):
            x = self.act(self.layer(x))
        return {"out": self.head(x), "aside": self.aside(x)}


class Two(nn.Module):
    """Gives two tensors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):  # noqa: D102 - see the class
        hidden = self.layer(x)
        return hidden.tanh(), hidden.relu()


class Pair(nn.Module):
    """Multiplies two outputs of one module; what is before it is frozen."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).requires_grad_(requires_grad=False)
        self.two, self.head = Two(), nn.Linear(4, 2)

    def forward(self, x):  # noqa: D102 - see the class
        one, other = self.two(self.frozen(x))
        return self.head(one * other)


class Broken(nn.Module):
    """A graph break between two blocks, and one within a module."""

    class Inner(nn.Module):
        """Breaks in the middle."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):  # noqa: D102 - see the class
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.last(x)

    def __init__(self):
        super().__init__()
        self.block, self.inner, self.head = Block(4), self.Inner(), nn.Linear(4, 2)

    def forward(self, x):  # noqa: D102 - see the class
        x = self.block(x)
        torch._dynamo.graph_break()
        return self.head(self.inner(x))


def eager(model, options):
    """Nothing is compiled."""
    del options
    return model


def whole(model, options):
    """The wrapper around the model."""
    return torch.compile(model, **options)


def in_place(model, options):
    """`Module.compile()`."""
    model.compile(**options)
    return model


def blocks(model, options):
    """Each block by itself."""
    for block in model.blocks:
        block.compile(**options)
    return model


def train(make, way, *, watched=True, first=True, steps=5, every=2, batch=4, shape=(4,), **options):
    """Train a network; the losses and weights, its scope and the network."""
    forget()
    torch.manual_seed(1)
    model = make()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    scope = gradscope.watch(model, optimizer, every=every) if watched and first else None
    called = way(model, {"fullgraph": True} | options)
    if watched and not first:
        scope = gradscope.watch(model, optimizer, every=every)
    numbers = []
    for _ in range(steps):
        optimizer.zero_grad()
        output = called(torch.randn(batch, *shape))
        loss = (output["out"] if isinstance(output, dict) else output).square().mean()
        loss.backward()
        optimizer.step()
        numbers.append(loss.detach())
    if scope is not None:
        scope.close()
    return [*numbers, *(v.clone() for v in model.state_dict().values())], scope, model


def table(scope):
    """Outputs and their gradients, by `KEY`."""
    frame = scope.trace().to_pandas()
    return frame[frame.kind != "weight"].set_index(KEY).sort_index()


def check(make, way, *, rounds=False, **options):
    """Read a compiled network; bits of the bare one, numbers of the eager one, two graphs each.

    `rounds`: a fusion ends where a reader stands, so that recorded steps round otherwise.
    """
    bare, _, _ = train(make, way, watched=False, **options)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    numbers, scope, model = train(make, way, **options)
    counters = torch._dynamo.utils.counters
    if options.get("fullgraph", True):
        assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2 * graphs
    for mine, theirs in zip(numbers, bare, strict=True):
        scale = float(theirs.abs().max()) if rounds else 0.0
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * scale)
    assert not scope.blind_spots
    assert not any(m.__dict__.get("_compiled_call_impl") for m in model.modules() if way is whole)
    _, oracle, _ = train(make, eager, **options)
    mine, theirs = table(scope), table(oracle)
    assert mine.index.equals(theirs.index)
    for name in NUMBERS:
        expected = pytest.approx(theirs[name].to_numpy(), rel=1e-3, abs=1e-6, nan_ok=True)
        assert mine[name].to_numpy() == expected, name
    found, expected = scope.trace().structure, oracle.trace().structure
    assert found.blocks == expected.blocks
    assert found.cancelled == expected.cancelled
    assert found.aside == expected.aside
    assert gradscope.diagnose(scope.trace()).verdict == gradscope.diagnose(oracle.trace()).verdict


SLOW = pytest.mark.slow
BACKENDS = ["aot_eager", pytest.param("inductor", marks=SLOW)]


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=SLOW), *BACKENDS])
@pytest.mark.parametrize("way", [whole, in_place, blocks], ids=lambda way: way.__name__)
def test_a_network_of_blocks(way, backend):
    """Whole, in place, and block by block; blocks share their graphs as they do unwatched."""
    check(Net, way, backend=backend)


@pytest.mark.parametrize(
    "way", [in_place, *(pytest.param(way, marks=SLOW) for way in (whole, blocks))]
)
def test_compiled_before_it_is_watched(way):
    """The order does not matter."""
    check(Net, way, backend="aot_eager", first=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpoints(backend):
    """What the backward pass computes again is read once."""
    check(lambda: Net(checkpoints=True), whole, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_that_are_not_compiled_in(backend):
    """With `dynamic=True` the readers take whatever comes."""
    check(Net, whole, backend=backend, dynamic=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_convolutions_in_place(backend):
    """Normalisation, activations in place, containers, views."""
    check(Convolutions, whole, rounds=backend == "inductor", backend=backend, shape=(3, 6, 6))


@SLOW
@pytest.mark.parametrize("make", [Net, Convolutions])
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes_of_the_compiler(mode, make):
    """What they change besides, as choosing among kernels, is the same with readers in the graph.

    On a CPU both run what inductor runs without CUDA graphs.
    """
    convolves = make is Convolutions
    check(make, whole, rounds=convolves, mode=mode, shape=(3, 6, 6) if convolves else (4,))


def test_a_layer_that_runs_three_times():
    """Each call has a row; a head that no loss reads has no gradient."""
    check(Again, in_place, backend="aot_eager")


def test_calls_beyond_the_limit_are_said(monkeypatch):
    """A layer that runs more often than is recorded: as many rows as the limit, and a note."""
    for module in (compiled, outputs):
        monkeypatch.setattr(module, "MAX_CALLS", 2)
    _, scope, _ = train(Again, in_place, backend="aot_eager")
    rows = table(scope).loc[0, "activation", "layer"]
    assert sorted(rows.index.get_level_values("call")) == [0, 1]
    notes = scope.trace().metadata["blind_spots"]
    assert any(note.startswith("'layer' ran more than 2 times in a step") for note in notes)


def test_two_outputs_behind_frozen_layers():
    """Each output has a row; what takes no gradient is read forwards alone."""
    check(Pair, whole, backend="aot_eager")


def test_graph_breaks():
    """Parts that run between the graphs are read as in eager code."""
    check(Broken, whole, backend="aot_eager", fullgraph=False)


def test_batches_of_changing_size():
    """A graph with readers is compiled for other sizes when the user's is, and no more often."""

    def run(*, watched):
        forget()
        torch.manual_seed(1)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = gradscope.watch(model, optimizer, every=1) if watched else None
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        losses = []
        for batch in (4, 6, 3, 5):
            optimizer.zero_grad()
            losses.append(compiled(torch.randn(batch, 4)).square().mean())
            losses[-1].backward()
            optimizer.step()
        if scope is not None:
            scope.close()
        return torch.stack(losses).detach(), torch._dynamo.utils.counters["stats"]["unique_graphs"]

    bare, graphs = run(watched=False)
    losses, mine = run(watched=True)
    assert torch.equal(bare, losses)
    assert mine == graphs == 2  # of one size, of any


def test_steps_that_are_not_recorded_run_the_graph_of_the_user():
    """Nothing stands in it; it is the very one that an unwatched run has."""
    ran = []

    def backend(graph, inputs):
        names = [str(node.target) for node in graph.graph.nodes]
        has_readers = any("read" in name for name in names)

        def run(*args):
            ran.append((has_readers, len(args) - len(inputs)))
            return graph.forward(*args)

        return run

    train(Net, whole, backend=backend, every=3, steps=7)
    assert ran == [(step % 3 == 0, 0) for step in range(7)]


def test_nothing_is_left_behind():
    """`Module.compile()` still has its place, and copies and pickles have nothing of ours."""
    forget()
    model = Net()
    model.compile(backend="aot_eager")
    before = model._compiled_call_impl
    plain = [sorted(vars(m)) for m in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1):
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert model._compiled_call_impl is before
    assert [sorted(vars(m)) for m in model.modules()] == plain
    for twin in twins:
        assert not any(m.__dict__.get("_compiled_call_impl") for m in twin.modules())


def test_a_model_that_is_compiled_anew_while_it_is_watched():
    """What is put in our place is noticed before it runs."""
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(3):
            model.compile(backend="aot_eager")
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
    assert model._compiled_call_impl is not None
    assert table(scope).loc[2, "activation_grad"].index.get_level_values("module").nunique() == 13


def test_hooks_of_its_own_within():
    """What Dynamo traces of the calls of such modules is the same with readers and without."""

    def make():
        model = Net()
        model.blocks[1].up.register_forward_hook(lambda module, args, output: output * 2)
        return model

    bare, _, _ = train(make, whole, watched=False, backend="aot_eager")
    numbers, scope, _ = train(make, whole, backend="aot_eager", steps=5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert all(torch.equal(a, b) for a, b in zip(bare, numbers, strict=True))
    assert not scope.blind_spots


def test_gradients_that_add_up_over_two_passes():
    """The first pass of a step is read, the second runs the user's graph."""

    def run(*, watched):
        forget()
        torch.manual_seed(1)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = gradscope.watch(model, optimizer, every=1) if watched else None
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for _ in range(3):
            optimizer.zero_grad()
            first, second = compiled(torch.randn(3, 4)), compiled(torch.randn(3, 4))
            (first.square().mean() + second.square().mean()).backward()
            optimizer.step()
        if scope is not None:
            scope.close()
        return list(model.parameters()), scope

    (bare, _), (weights, scope) = run(watched=False), run(watched=True)
    assert all(torch.equal(a, b) for a, b in zip(bare, weights, strict=True))
    frame = table(scope)
    assert set(frame.index.get_level_values("call")) == {0}


def test_a_backend_that_cannot_take_readers(monkeypatch):
    """One warning, today's blind spot, and the graph of the user is compiled instead."""
    monkeypatch.delenv("GRADSCOPE_STRICT")

    def backend(graph, inputs):
        if any("read" in str(node.target) for node in graph.graph.nodes):
            raise NotImplementedError("an operation that I do not know")
        return graph.forward

    bare, _, _ = train(Net, whole, watched=False, backend=backend)
    with pytest.warns(GradscopeWarning, match="cannot be looked into") as caught:
        numbers, scope, _ = train(Net, whole, backend=backend, every=1)
    assert len(caught) == len(scope.blind_spots) == 1
    assert all(torch.equal(a, b) for a, b in zip(bare, numbers, strict=True))
    assert gradscope.diagnose(scope.trace()).verdict == "inconclusive"


def test_a_checkpoint_around_what_is_compiled():
    """It compares what is saved when it computes a part again, so nothing may be added there."""

    def make():
        return Net(checkpoints=True)

    bare, _, _ = train(make, blocks, watched=False, backend="aot_eager")
    with pytest.warns(GradscopeWarning, match="cannot be looked into"):
        numbers, scope, _ = train(make, blocks, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(bare, numbers, strict=True))
    assert len(scope.blind_spots) == 1
