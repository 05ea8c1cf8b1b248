"""Compiled code: watched or not, it is compiled and runs as if nobody watched."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from never_in_the_way import Run, chain, compare, rows
from torch import nn


@pytest.fixture(autouse=True)
def _fresh():
    forget()
    yield
    forget()


def forget():
    """Each run compiles anew."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def counters():
    """Graphs, graph breaks and compilations so far."""
    found = torch._dynamo.utils.counters
    stats = {k: v for k, v in found["stats"].items() if k in {"unique_graphs", "calls_captured"}}
    return stats, dict(found["graph_break"]), dict(found["frames"]), dict(found["unimplemented"])


def whole(model, options):
    """The wrapper around the model."""
    return torch.compile(model, **options)


def in_place(model, options):
    """`Module.compile()`."""
    model.compile(**options)
    return model


def blocks_in_place(model, options):
    """Each linear layer."""
    for part in model:
        if isinstance(part, nn.Linear):
            part.compile(**options)
    return model


def blocks_wrapped(model, options):
    """Each linear layer, in a wrapper that takes its place."""
    for i, part in enumerate(model):
        if isinstance(part, nn.Linear):
            model[i] = torch.compile(part, **options)
    return model


def function(model, options):
    """A compiled function that calls the model."""

    @torch.compile(**options)
    def forward(inputs):
        return model(inputs)

    return forward


def lambda_(model, options):
    """The same without a name."""
    return torch.compile(lambda inputs: model(inputs), **options)  # noqa: PLW0108


WAYS = [whole, in_place, blocks_in_place, blocks_wrapped, function, lambda_]
BACKENDS = [
    {"backend": "eager", "fullgraph": True},
    pytest.param({"backend": "eager"}, marks=pytest.mark.slow),
    pytest.param({"backend": "aot_eager", "fullgraph": True}, marks=pytest.mark.slow),
]


def train(run, model, way, options, *, at, first, steps=6, reads=False):
    """Compile the model at a step, or before; watch it before that or after.

    `reads`: what is compiled is read inside, in graphs of its own.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    inputs = torch.randn(7, 3)
    called = model
    if first:
        run.watch(model, optimizer)
    if at == 0:
        called = way(model, options)
    if not first:
        run.watch(model, optimizer)
    for i in range(steps):
        if at and i == at:
            called = way(model, options)
        optimizer.zero_grad()
        loss = called(inputs).square().mean()
        loss.backward()
        run.step()
        run.numbers.append(loss.detach())
    graphs, breaks, _, unimplemented = counters()
    run.facts.append((breaks, unimplemented) if reads else counters())
    if reads and way in GRAPHS:
        assert not breaks
        assert graphs["unique_graphs"] <= GRAPHS[way] * (1 + run.watched)


GRAPHS = {in_place: 1, blocks_in_place: 3, blocks_wrapped: 3}
"""Graphs of the chain of three linear layers, compiled in a way that can be looked into."""


@pytest.mark.parametrize("options", BACKENDS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("at", "first"), [(0, True), (0, False), (2, True)], ids=["then compiled", "compiled", "at 2"]
)
def test_a_compiled_network_that_is_watched(at, first, way, options):
    """No bit moves; where no call of it can be seen, its graphs are the same and one line says so.

    Else all its outputs are read: at most one more graph a frame, and no break.
    """
    if way is blocks_wrapped and (at or first):
        pytest.skip("renames the parameters while they are watched")
    reads = way in GRAPHS
    run = compare(
        lambda run: train(run, chain(3, 5, 5, 2), way, options, at=at, first=first, reads=reads),
        blind=int(not reads),
        reset=forget,
    )
    found = {name.removesuffix("._orig_mod") for name in rows(run, "activation_grad")}
    assert found >= ({"0", "1", "2", "3", "4"} if reads or at else set())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "with a hook of its own"])
def test_another_compiled_model(every, fullgraph, hooked):
    """A frozen teacher and a loss with a module in it stay whole; the student is seen as ever."""

    def case(run: Run):
        student, teacher = chain(3, 4, 2), chain(3, 8, 2).requires_grad_(False)
        criterion = nn.Sequential(nn.Linear(2, 2), nn.SmoothL1Loss(reduction="none"))[1]
        if hooked:
            teacher[0].register_forward_hook(lambda module, args, output: output * 2)
        options = {"backend": "aot_eager", "fullgraph": fullgraph}
        taught = torch.compile(teacher, **options)
        loss = torch.compile(lambda a, b: criterion(a, b).mean(), **options)
        inputs = torch.randn(7, 3)
        run.train(student, (inputs,), loss=lambda out: loss(out, taught(inputs)), steps=5)
        run.facts.append(counters())

    run = compare(case, every=every, reset=forget)
    assert rows(run, "activation_grad") == {"0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize("fullgraph", [True, False])
def test_hooks_of_its_own_on_a_watched_network_within_a_compiled_function(fullgraph):
    """Dynamo traces the calls of modules that have hooks, ours with them, and need not break.

    It compiles once more when the recorder stands aside: what such a module calls is guarded.
    """

    def case(run: Run):
        model = chain(3, 4, 2)
        for part in model:
            part.register_forward_hook(lambda module, args, output: output * 2)
        train(run, model, function, {"backend": "eager", "fullgraph": fullgraph}, at=0, first=True)
        stats, breaks, _, unimplemented = run.facts.pop()
        assert stats["unique_graphs"] == 1 + run.watched
        assert not breaks
        assert not unimplemented

    compare(case, blind=1, reset=forget)


def test_a_graph_break_within_a_compiled_network():
    """Both parts are read, also where the break brought the network out of a function."""

    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, x):
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.last(self.middle(x))

    def case(run, way):
        train(run, Broken(), way, {"backend": "eager"}, at=0, first=True, reads=True)

    for way in (whole, function):
        run = compare(partial(case, way=way), reset=forget)
        assert rows(run, "activation_grad") == {"first": 1, "middle": 1, "last": 1}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("way", [whole, in_place, function], ids=lambda way: way.__name__)
def test_inductor_gives_the_same_bits(way, mode):
    """Also where the compiled kernels would be others if the graph were."""
    options = {"fullgraph": True, "mode": mode}
    settings = {"at": 2, "first": True, "steps": 4, "reads": way in GRAPHS}
    compare(
        lambda run: train(run, chain(3, 5, 2), way, options, **settings),
        blind=int(way not in GRAPHS),
        reset=forget,
    )


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_compiled_training_step_around_the_forward_and_backward(fullgraph):
    """A function that computes the loss; and compiled code that has nothing to do with networks."""

    def case(run: Run):
        model = chain(3, 4, 2)
        scale = torch.compile(lambda x: x * 2 + 1, backend="eager", fullgraph=fullgraph)
        run.train(model, (torch.randn(5, 3),), loss=lambda out: scale(out).square().mean())
        run.facts.append(counters())

    run = compare(case, reset=forget)
    assert rows(run, "activation") == {"0": 1, "1": 1, "2": 1}


def test_compiled_autograd():
    """The backward pass is compiled with the hooks at gradients in it, and no bit moves."""

    def case(run: Run):
        from torch._dynamo import compiled_autograd

        model = chain(3, 4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.watch(model, optimizer)
        inputs = torch.randn(7, 3)
        compiler = torch.compile(backend="eager")
        for _ in range(3):
            optimizer.zero_grad()
            with compiled_autograd._enable(compiler):
                loss = model(inputs).square().mean()
                loss.backward()
            run.step()
            run.numbers.append(loss.detach())

    run = compare(case, reset=forget)
    assert rows(run, "activation_grad") == {"0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize("capturable", [False, True])
def test_a_compiled_optimizer_step(capturable):
    """Where the step itself is compiled, its hooks run before and after what was compiled.

    One that is to be captured in a graph runs on a CPU only so.
    """

    def case(run: Run):
        model = chain(3, 4, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05, capturable=capturable)
        run.watch(model, optimizer)
        optimizer_step = torch.compile(optimizer.step, backend="eager")
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().mean()
            loss.backward()
            run.optimizer = None
            scope, run.scope = run.scope, None
            run.step()
            run.optimizer, run.scope = optimizer, scope
            optimizer_step()
            run.numbers.append(loss.detach())
        run.facts.append(counters()[0])

    compare(case, reset=forget)
