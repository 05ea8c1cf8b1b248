"""How modules ran, what they were given and what they computed, told of networks written for it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradscope


def structure_of(model, *args, steps=1, **kwargs):
    """What one step tells of a network."""
    with gradscope.watch(model, every=1) as scope:
        for _ in range(steps):
            model(*args, **kwargs).sum().backward()
            scope.step()
    structure = scope.trace().structure
    return structure, {info.name: info for info in structure.modules}


class Between(nn.Module):
    """Two layers, and what is done between them."""

    def __init__(self, between, first=None):
        super().__init__()
        self.first = first or nn.Linear(4, 4)
        self.second, self.codes = nn.Linear(4, 3), nn.Embedding(4, 4)
        self.between = between

    def forward(self, x):
        """One after the other."""
        return self.between(self, self.first(x))


@pytest.mark.parametrize(("between", "name", "takes"), [
    (lambda self, x: self.second(x), "second", "gradient"),
    (lambda self, x: self.second(x.detach()), "second", "detached"),
    (lambda self, x: self.second(torch.from_numpy(x.detach().numpy() + 1)), "second", "detached"),
    (lambda self, x: self.second(self.codes(x.argmax(1))), "codes", "integer"),
], ids=["plain", "detach", "numpy", "argmax"])  # fmt: skip
def test_what_a_module_is_given(between, name, takes):
    """And the modules before a cut are read by nobody."""
    structure, infos = structure_of(Between(between), torch.randn(8, 4))
    assert infos[name].takes == takes
    assert infos["first"].takes == ""
    assert ("first" in structure.unread) == (takes != "gradient")


@pytest.mark.parametrize("by_name", [True, False])
def test_inputs_of_the_network_are_told_apart(by_name):
    """Also where they are given by name, and where a module takes a view of them."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x, y):
            return self.a(x[:, :2]) * self.b(y)

    torch.manual_seed(0)
    x, y = 5 * torch.randn(8, 4) + 3, torch.randn(8, 2, dtype=torch.float64)
    model = Net()
    model.b = model.b.double()
    structure, infos = structure_of(model, x=x, y=y) if by_name else structure_of(model, x, y)
    assert infos["a"].takes == infos["b"].takes == ""
    assert [s.name for s in structure.inputs] == ["input", "input[1]"]
    first, second = structure.inputs
    assert (first.shape, first.dtype, second.dtype) == ((8, 4), "float32", "float64")
    true = x.numpy().astype(np.float64)
    assert first.mean == pytest.approx(true.mean(), rel=1e-5)
    assert first.std == pytest.approx(true.std(), rel=1e-5)
    assert (first.low, first.high) == (true.min(), true.max())
    assert first.variation == pytest.approx(true.var(0).mean() / (true**2).mean(), rel=1e-5)


def test_a_module_under_no_grad():
    """A teacher."""

    def between(self, x):
        with torch.no_grad():
            target = self.second(x)
        return x.sum() + target.sum()

    _, infos = structure_of(Between(between), torch.randn(8, 4))
    assert infos["second"].mode == "no_grad"
    assert infos["first"].mode == ""


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_module_in_a_checkpoint(reentrant):
    """Only a reentrant one runs its modules without a graph, and nothing runs a third time."""
    runs = []

    class Counted(nn.Linear):
        def forward(self, x):
            runs.append(1)
            return functional.softmax(super().forward(x), dim=1)

    def between(self, x):
        return checkpoint(self.second, x, use_reentrant=reentrant)

    net = Between(between)
    net.second = Counted(4, 3)
    structure, infos = structure_of(net, torch.randn(8, 4))
    assert infos["second"].mode == ("checkpoint" if reentrant else "")
    assert structure.unread == ()
    assert len(runs) == 2


def test_a_validation_pass_first_leaves_no_note():
    """The notes are those of the pass that is trained on."""
    model = Between(lambda self, x: self.second(x))
    with gradscope.watch(model, every=1) as scope:
        with torch.no_grad():
            model(torch.randn(2, 4))
        model(torch.randn(8, 4)).sum().backward()
        scope.step()
    structure = scope.trace().structure
    assert {info.mode for info in structure.modules} == {""}
    assert structure.inputs[0].shape == (8, 4)


class Judge(nn.Module):
    """Gives logits while it trains, and classes when it is asked."""

    def __init__(self):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        """Classes carry no gradient, though all before them does."""
        logits = self.linear(self.dropout(x))
        return logits if self.training else logits.argmax(1)


def test_a_pass_that_gives_classes_leaves_no_note():
    """Validation without no_grad: dropout is noted as it runs in training, inputs as well."""
    model = Judge()
    with gradscope.watch(model, every=1) as scope:
        model.eval()(torch.randn(2, 4))
        model.train()(torch.randn(8, 4)).sum().backward()
        scope.step()
    structure = scope.trace().structure
    settings = {info.name: info.settings for info in structure.modules}
    assert settings["dropout"]["training"] == 1.0
    assert [each.shape for each in structure.inputs] == [(8, 4)]


def test_operations_belong_to_the_module_whose_code_they_are():
    """Those of children to the children, those between them to the parent."""

    class Own(nn.Module):
        def forward(self, x):
            return torch.where(x > 0, x, x.exp() - 1)

    def between(self, x):
        return self.second((2 * x).sin()).tanh()

    net = Between(between, nn.Sequential(nn.Linear(4, 4), Own()))
    _, infos = structure_of(net, torch.randn(8, 4))
    assert infos["first.1"].operations == ("ExpBackward0", "SubBackward0", "WhereBackward0")
    assert infos[""].operations == ("MulBackward0", "SinBackward0", "TanhBackward0")
    assert infos["second"].operations[-1] == "AddmmBackward0"
    assert infos["first"].operations == ()


@pytest.mark.parametrize("scaled", [True, False])
def test_a_softmax_of_products(scaled):
    """Its dimension, size and mean largest share; whether anyone scaled the scores."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            scores = self.q(x) @ self.k(x).transpose(1, 2)
            self.weights = (scores / 4 if scaled else scores).softmax(-1)
            return self.weights @ x

    model = Attention()
    _, infos = structure_of(model, torch.randn(2, 10, 16))
    softmax = infos[""].softmax
    assert (softmax.dim, softmax.shape) == (2, (2, 10, 10))
    assert softmax.largest == pytest.approx(model.weights.amax(-1).mean().item(), rel=1e-5)
    assert softmax.of_products == (not scaled)


def test_settings_are_numbers_that_modules_were_built_with():
    """Rates, sizes and whether the module was in training mode."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.25), nn.LayerNorm(6), nn.GroupNorm(3, 6))
    _, infos = structure_of(model, torch.randn(8, 4))
    assert infos["0"].settings == {}
    assert infos["1"].settings == {"p": 0.25, "training": 1.0}
    assert infos["2"].settings["normalized"] == 6
    assert infos["3"].settings["num_groups"] == 3


def test_what_nobody_reads_is_not_what_is_returned_unused():
    """A pooler that ran for nothing is unread; a second output without a gradient is aside."""

    class Net(nn.Module):
        def __init__(self, returned):
            super().__init__()
            self.body, self.pooler, self.returned = nn.Linear(4, 4), nn.Linear(4, 4), returned

        def forward(self, x):
            x = self.body(x)
            pooled = self.pooler(x)
            return (x, pooled) if self.returned else (x,)

    for returned in (True, False):
        model = Net(returned)
        with gradscope.watch(model, every=1) as scope:
            model(torch.randn(8, 4))[0].sum().backward()
            scope.step()
        structure = scope.trace().structure
        assert structure.unread == (() if returned else ("pooler",))
        assert structure.aside == (("pooler",) if returned else ())
