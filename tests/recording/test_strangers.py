"""Leaves between the inputs and the outputs of a network that it did not register."""

import pytest
import torch
from torch import Tensor, nn

import gradscope


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
