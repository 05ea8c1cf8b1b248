"""Leaves between the inputs and the outputs of a network that it did not register."""

import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope import diagnose


class Holder(nn.Module):
    """Holds weights where no module looks for them."""

    def __init__(self, held):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.held = held

    def forward(self, x: Tensor, *, shift: Tensor | None = None) -> Tensor:
        """Runs or multiplies with all that it holds."""
        x = self.inner(x)
        for part in self.held.values() if isinstance(self.held, dict) else self.held:
            x = part(x) if isinstance(part, nn.Module) else x @ part
        return x if shift is None else x + shift


def strangers(model, inputs=None, extra=(), **named):
    """What a trace of two steps calls strangers."""
    optimizer = torch.optim.SGD([*model.parameters(), *extra], lr=0.01)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(2):
            optimizer.zero_grad()
            x = torch.randn(4, 3) if inputs is None else inputs()
            model(x, **named).square().sum().backward()
            optimizer.step()
    return scope.trace().structure.strangers


def test_layers_in_a_list_are_named_by_class_and_shape():
    """As many as there are of each kind."""
    found = strangers(Holder([nn.Linear(3, 3) for _ in range(2)] + [nn.PReLU()]))
    assert sorted(found) == [
        "2 x Linear.bias (3,)", "2 x Linear.weight (3, 3)", "PReLU.weight (1,)",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [list, lambda parts: dict(enumerate(parts))])
def test_tensors_are_named_by_the_attribute_that_holds_them(kind):
    """Plain tensors and parameters alike."""
    model = nn.Sequential(Holder(kind([torch.eye(3).requires_grad_()])))
    assert strangers(model) == ("0.held (3, 3)",)
    assert strangers(Holder(kind([nn.Parameter(torch.eye(3))]))) == ("held (3, 3)",)


def test_registered_layers_are_none():
    """The twin."""
    assert strangers(Holder(nn.ModuleList([nn.Linear(3, 3)]))) == ()
    assert strangers(Holder(nn.ParameterList([nn.Parameter(torch.eye(3))]))) == ()


def test_what_an_optimizer_holds_is_trained():
    """Whoever hands the list to the optimizer by hand knows of it."""
    layer = nn.Linear(3, 3)
    assert strangers(Holder([layer]), extra=layer.parameters()) == ()


def test_what_lies_before_the_inputs_belongs_to_others():
    """Another network's output, leaves joined into an input, a named argument."""
    model, other = Holder([]), nn.Linear(3, 3)
    first, second = (torch.randn(4, n, requires_grad=True) for n in (1, 2))
    assert strangers(model, lambda: other(torch.randn(4, 3))) == ()
    assert strangers(model, lambda: torch.cat([first, second], 1)) == ()
    assert strangers(model, lambda: torch.randn(4, 3, requires_grad=True)) == ()
    assert strangers(model, shift=torch.zeros(3, requires_grad=True)) == ()
    assert strangers(model, lambda: other(torch.randn(4, 3)).detach()) == ()


def test_hidden_networks_under_no_grad_are_none():
    """A teacher kept out of the parameters on purpose."""

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher, self.own = [nn.Linear(3, 3)], nn.Linear(3, 3)

        def forward(self, x):
            with torch.no_grad():
                target = self.teacher[0](x)
            return self.own(x) - target

    assert strangers(Student()) == ()


def test_a_view_of_an_input_that_asks_for_a_gradient_is_no_stranger():
    """As networks do that checkpoint their first layers, and as recurrent layers are handed one."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.loop, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            asked = x[:, None].squeeze(1).detach()
            asked.requires_grad = True
            return self.head(self.loop(2 * asked.detach())[0]) + asked.sum()

    model = Net()
    with gradscope.watch(model, every=1) as scope:
        model(torch.randn(3, 5, 4)).sum().backward()
        scope.step()
    assert scope.trace().structure.strangers == ()


class Lent(nn.Module):
    """Runs a network with weights that are none of its own."""

    def __init__(self, weights=None):
        super().__init__()
        self.code, self.make = nn.Sequential(nn.Linear(3, 2)), nn.Linear(1, 8)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """With those that it was given, or with those that another layer makes."""
        made = self.make(torch.ones(1))
        weights = self.weights or {"0.weight": made[:6].view(2, 3), "0.bias": made[6:]}
        return torch.func.functional_call(self.code, weights, (x,))


def test_weights_that_are_made_stand_in_the_places_of_others():
    """Whose places these are is told as information: they are not cut off, and nobody's fault."""
    model = Lent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
    structure, diagnosis = scope.trace().structure, diagnose(scope.trace())
    assert structure.strangers == ()
    assert sorted(structure.unused) == ["code.0.bias", "code.0.weight"]
    assert diagnosis.is_healthy
    assert [(f.kind, f.severity) for f in diagnosis.findings] == [("replaced", "info")]


@pytest.mark.parametrize("optimizer", [True, False])
def test_a_stateless_network_is_inconclusive(optimizer):
    """Its weights are held apart: nothing is wrong with them, and nothing was seen of them."""
    model = nn.Sequential(nn.Linear(3, 2))
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    steps = torch.optim.SGD(weights.values(), lr=0.01)
    with gradscope.watch(model, steps if optimizer else None, every=1) as scope:
        for _ in range(2):
            steps.zero_grad()
            loss = torch.func.functional_call(model, weights, (torch.randn(4, 3),)).square().sum()
            loss.backward()
            steps.step()
            if not optimizer:
                scope.step()
    diagnosis = diagnose(scope.trace())
    assert scope.trace().structure.strangers == ()
    assert diagnosis.verdict == "inconclusive"
    assert [f.kind for f in diagnosis.findings] == ["no-gradients", "replaced"]


def test_a_layer_that_is_replaced_before_it_runs_is_the_network_s_own():
    """What stands in a place when the step is over has come to stay."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, every=1) as scope:
        model[0].weight = nn.Parameter(torch.eye(3))
        model[1] = nn.Linear(3, 2)
        for _ in range(2):
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
    assert scope.trace().structure.strangers == ()
    assert scope.trace().structure.unused == ()
