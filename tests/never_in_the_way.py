"""What the rows of the tables of `test_never_in_the_way` run in: a training, bare or watched."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

import gradscope
from gradscope.errors import GradscopeWarning


class Run:
    """One training; it is told where a step's gradients are what the optimizer consumes."""

    def __init__(self, *, watched: bool, every: int = 1) -> None:
        self.watched = watched
        self.every = every
        self.numbers: list[torch.Tensor] = []
        """Whatever must be bit for bit the same."""
        self.facts: list[Any] = []
        """Whatever else must be the same."""
        self.norms: list[dict[str, float]] = []
        """Of each step, read from `p.grad` without any hook."""
        self.model: Any = None
        self.optimizer: Any = None
        self.scope: Any = None

    def watch(self, model, optimizer=None, **options):
        """Call it where a user calls `gradscope.watch`."""
        self.model, self.optimizer = model, optimizer
        if self.watched:
            self.scope = gradscope.watch(model, optimizer, **({"every": self.every} | options))

    def step(self):
        """Call it instead of `optimizer.step()`."""
        self.norms.append(
            {
                name: float(torch.linalg.vector_norm(_plain(p.grad)))
                for name, p in self.model.named_parameters()
                if p.grad is not None
            }
        )
        if self.optimizer is not None:
            self.optimizer.step()
        elif self.scope is not None:
            self.scope.step()

    def train(self, model, inputs, *, loss=None, steps=4, lr=0.05, watch=True, before=None):
        """The plain loop; `before(model, step)` runs at the start of each step."""
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9
        )
        if watch:
            self.watch(model, optimizer)
        for i in range(steps):
            if before is not None:
                before(model, i)
            optimizer.zero_grad()
            output = model(*inputs)
            value = output.square().mean() if loss is None else loss(output)
            value.backward()
            self.step()
            self.numbers.append(value.detach().clone())

    def end(self):
        """Close the scope, and note what is left."""
        if self.scope is not None:
            self.scope.close()
        for module in self.model.modules():
            self.facts.append((type(module).__name__, sorted(vars(module))))
            self.facts.append(len(module._forward_hooks) + len(module._forward_pre_hooks))
            self.facts.append(len(module._backward_hooks) + len(module._backward_pre_hooks))
        for parameter in self.model.parameters():
            self.facts.append(hooks_at(parameter))
        if isinstance(self.optimizer, torch.optim.Optimizer):
            self.facts.append(len(self.optimizer._optimizer_step_pre_hooks))
            self.facts.append(len(self.optimizer._optimizer_step_post_hooks))
        self.facts.append(torch_module._has_any_global_hook())
        self.numbers += [v for v in self.model.state_dict().values() if torch.is_tensor(v)]
        self.numbers.append(torch.get_rng_state())


def _plain(gradient):
    gradient = gradient.detach()
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    return gradient.to(torch.complex128 if gradient.is_complex() else torch.float64)


def hooks_at(tensor):
    """What hangs on a tensor."""
    return (
        len(tensor._backward_hooks or ()),
        len(getattr(tensor, "_post_accumulate_grad_hooks", None) or ()),
    )


def carried_through(model, inputs):
    """Copies and pickles of a model, as a user makes them in the middle of a training."""
    del inputs
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model[0])]
    torch.save(model, io.BytesIO())
    return [[sorted(vars(m)) for m in twin.modules()] for twin in twins]


def compare(case: Callable[[Run], None], *, every: int = 1, blind: int = 0, reset=None):
    """Run a case bare and watched; the watched run is the bare one, and its table tells the truth.

    Args:
        case: what is run; the same at both times.
        every: as for `watch`.
        blind: how many blind spots, and warnings, there are to be.
        reset: called before each run.

    Returns:
        The watched run.
    """
    runs = []
    for watched in (False, True):
        if reset is not None:
            reset()
        torch.manual_seed(5)
        run = Run(watched=watched, every=every)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            case(run)
            run.end()
        ours = [w for w in caught if issubclass(w.category, GradscopeWarning)]
        run.facts.append(sorted({str(w.message) for w in caught if w not in ours}))
        runs.append(run)
        assert len(ours) == (blind if watched else 0), [str(w.message) for w in ours]
    bare, run = runs
    assert len(bare.numbers) == len(run.numbers)
    for mine, theirs in zip(bare.numbers, run.numbers, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine.nan_to_num(), theirs.nan_to_num())
    assert bare.facts == run.facts
    assert len(run.scope.blind_spots) == blind
    agrees(run)
    return run


def agrees(run: Run):
    """Each norm of the table is that of the oracle, and none is missing or more than it has."""
    trace = run.scope.trace()
    frame = trace.to_pandas()
    frame = frame[frame.kind == "weight"]
    names = (frame.module + "." + frame.parameter).str.strip(".")
    kept = {s.step for s in trace.steps}
    assert kept == set(range(0, len(run.norms), run.every))
    for step in kept:
        mine = frame.step == step
        found = dict(zip(names[mine], frame[mine].norm, strict=True))
        expected = {n: v for n, v in run.norms[step].items() if n not in trace.structure.shared}
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert abs(found[name] - value) <= 1e-5 * abs(value) + 1e-12, (step, name)


def chain(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def rows(run: Run, kind: str) -> dict[str, int]:
    """How many outputs a step has at most, by module."""
    frame = run.scope.trace().to_pandas()
    frame = frame[frame.kind == kind]
    return frame.groupby(["module", "step"]).size().groupby("module").max().to_dict()
