"""What the optimizers hold, and their learning rates over time."""

import torch
from torch import nn

import gradscope
from gradscope.trace.structure import ParameterGroup
from gradscope.trace.table import Trace


def train(model, optimizers, steps, after=lambda i: None, **options):
    """A trace of a few steps; `after` runs after each."""
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    with gradscope.watch(model, optimizers, **{"every": 1, **options}) as scope:
        for i in range(steps):
            model.zero_grad()
            model(torch.randn(4, 3)).square().sum().backward()
            for each in optimizers:
                each.step()
            after(i)
    return scope.trace()


def test_groups_with_their_names_strangers_and_numbers(tmp_path):
    """Two optimizers, three groups, one parameter that is none of the network; through a file."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    other = nn.Parameter(torch.zeros(1))
    adam = torch.optim.AdamW(
        [{"params": model[0].weight, "weight_decay": 0.0}, {"params": [model[0].bias, other]}],
        lr=1e-3,
        eps=1e-6,
    )
    sgd = torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9)
    trace = train(model, [adam, sgd], 2)
    first, second, third = trace.structure.groups
    assert (first.optimizer, first.parameters, first.strangers) == ("AdamW", ("0.weight",), 0)
    assert (second.parameters, second.strangers) == (("0.bias",), 1)
    assert (third.optimizer, third.parameters) == ("SGD", ("1.weight", "1.bias"))
    assert first.settings["weight_decay"] == 0.0
    assert second.settings["weight_decay"] == 0.01
    assert (first.settings["eps"], first.settings["betas[1]"]) == (1e-6, 0.999)
    assert third.settings["momentum"] == 0.9
    again = Trace.load(trace.save(tmp_path / "run.parquet"))
    assert again.structure.groups == trace.structure.groups
    assert again.logged == trace.logged


def test_learning_rates_are_those_of_the_steps():
    """Oracle: the schedule's own formula; settings stay those of the beginning."""
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    plan = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    trace = train(model, optimizer, 6, lambda i: plan.step(), every=2)
    assert trace.logged["lr/0"] == ((0, 0.1), (2, 0.05), (4, 0.025))
    assert trace.logged["lr/1"] == ((0, 0.4), (2, 0.2), (4, 0.1))
    assert [group.settings["lr"] for group in trace.structure.groups] == [0.1, 0.4]


def test_a_group_that_is_added_later_is_held_too():
    """Gradual unfreezing."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)

    def after(i):
        if i == 1:
            optimizer.add_param_group({"params": list(model[0].parameters())})

    trace = train(model, optimizer, 4, after)
    assert {n for group in trace.structure.groups for n in group.parameters} == {
        "0.weight", "0.bias", "1.weight", "1.bias",
    }  # fmt: skip
    assert [step for step, _ in trace.logged["lr/1"]] == [2, 3]


def test_rates_of_steps_that_were_thinned_out_are_forgotten():
    """The series has the steps of the table."""
    model = nn.Linear(3, 2)
    trace = train(model, torch.optim.SGD(model.parameters(), lr=0.1), 80, max_steps=32)
    assert [step for step, _ in trace.logged["lr/0"]] == [step.step for step in trace.steps]


def test_without_an_optimizer_nothing_is_known():
    """No groups, no rates."""
    model = nn.Linear(3, 2)
    with gradscope.watch(model, every=1) as scope:
        model(torch.randn(4, 3)).sum().backward()
        scope.step()
    trace = scope.trace()
    assert trace.structure.groups == ()
    assert trace.logged == {}


def test_a_rate_that_lives_in_a_tensor():
    """As torch.compile wants it."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.25))
    trace = train(model, optimizer, 1)
    assert trace.logged["lr/0"] == ((0, 0.25),)
    assert isinstance(trace.structure.groups[0], ParameterGroup)
