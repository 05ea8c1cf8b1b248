"""What a profile holds, against autograd and arithmetic."""

import math
import random

import numpy.random as legacy
import pytest
import torch
from networks import chain
from torch import nn

from gradscope.errors import ConfigError
from gradscope.probing.probe import probe
from gradscope.testing.measure import NOISE, measure, predicted_std


def inputs():
    """Normal vectors, anew for each seed."""
    return torch.randn(16, 32)


def log10_norm(*tensors):
    """Of all of them together."""
    return math.log10(torch.cat([t.detach().flatten().double() for t in tensors]).norm())


def test_numbers_are_those_of_autograd():
    """Gradient, weight and update of each layer; rms and gradient of each output."""
    torch.manual_seed(0)
    model, x, y = chain(depth=2), inputs(), torch.randint(10, (16,))
    profile = measure(model, x, y)
    outputs = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _m, _a, out, name=name: outputs.update({name: out}))
    loss = nn.functional.cross_entropy(model(x), y)
    for output in outputs.values():
        output.retain_grad()
    loss.backward()
    assert list(profile.layers) == ["(inputs)", "(targets)", *outputs]
    for name, module in model.named_children():
        numbers = profile.layers[name].numbers
        output = outputs[name]
        expected = {
            "output": math.log10(output.detach().square().mean().sqrt()),
            "flow": log10_norm(output.grad),
        }
        if own := list(module.parameters()):
            w = own[0].detach().double()
            expected["draw"] = math.log10(w.abs().mean() / w.square().mean().sqrt())
            gradient, weight = log10_norm(*(p.grad for p in own)), log10_norm(*own)
            expected |= {"gradient": gradient, "weight": weight, "update": gradient - weight}
        if isinstance(module, nn.ReLU):
            expected["dead"] = (output == 0).all(dim=0).double().mean().item()
        assert {k: v[0] for k, v in numbers.items()} == pytest.approx(expected, abs=1e-5)
    assert profile.layers["(inputs)"].numbers["weight"][0] == pytest.approx(log10_norm(x))
    assert profile.layers["0"].parameters == "weight 48x32, bias 48"
    assert profile.seeds == 1


def test_parameters_without_a_gradient_are_listed():
    """Frozen, cut off, never called and shared ones, each where it belongs."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.cut, self.idle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.head, self.again = nn.Linear(4, 3), nn.Linear(4, 4)
            self.again.weight = self.a.weight
            self.a.bias.requires_grad_(requires_grad=False)

        def forward(self, x):
            return self.head(self.again(self.a(x)) + self.cut(x).detach())

    profile = measure(Net, torch.randn(8, 4))
    assert profile.frozen == ("a.bias",)
    assert profile.without_gradient == ("cut.weight", "cut.bias", "idle.weight", "idle.bias")
    assert profile.shared == {"again.weight": "a.weight"}
    assert "gradient" not in profile.layers["cut"].numbers
    assert "output" not in profile.layers["idle"].numbers


def test_zero_and_cancelled_gradients():
    """A zero is a zero, and a bias before a batch norm is not measured by its rounding."""

    class Gate(nn.Linear):
        def reset_parameters(self):
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), Gate(8, 3))
    x, y = torch.randn(16, 8), torch.randint(3, (16,))
    numbers = measure(model, x, y).layers
    assert numbers["0"].numbers["gradient"] == (-math.inf,)
    assert numbers["3"].numbers["weight"] == (-math.inf,)
    assert "update" not in numbers["3"].numbers
    nn.init.normal_(model[3].weight)
    nn.functional.cross_entropy(model(x), y).backward()
    found = measure(model, x, y).layers["0"].numbers["gradient"][0]
    assert found == pytest.approx(log10_norm(model[0].weight.grad), abs=1e-6)


def test_first_and_last_call_of_a_loop_are_kept():
    """Ten calls of one cell make two rows."""

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(10):
                x = torch.tanh(self.cell(x))
            return x

    names = [n for n in measure(Loop, torch.randn(8, 4)).layers if n.startswith("cell")]
    assert names == ["cell", "cell[9]"]


def test_every_generator_starts_from_the_seed_and_comes_back():
    """Weights from torch, NumPy or Python are the same in each run; the generators go on."""

    def build():
        model = nn.Linear(4, 3)
        with torch.no_grad():
            model.weight += torch.from_numpy(legacy.normal(size=(3, 4)).astype("float32"))  # noqa: NPY002 - it is to be seeded
            model.bias.fill_(random.random())
        return model

    states = torch.get_rng_state(), legacy.get_state()[1].tolist(), random.getstate()  # noqa: NPY002 - it is to be seeded
    first = measure(build, lambda: torch.randn(8, 4))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert legacy.get_state()[1].tolist() == states[1]  # noqa: NPY002 - it is to be seeded
    assert random.getstate() == states[2]
    torch.rand(1), legacy.rand(), random.random()  # noqa: NPY002 - it is to be seeded
    assert repr(measure(build, lambda: torch.randn(8, 4))) == repr(first)
    assert len(set(first.layers["(root)"].numbers["weight"])) == 3


def test_noise_has_the_size_of_rounding_and_goes_again():
    """Weights move by a few parts in 1e7 / sqrt(n), and the given model comes back bit for bit."""
    model, x = chain(depth=2), inputs()
    before = [p.detach().clone() for p in model.parameters()]
    kept = x.clone()
    calm, shaken = measure(model, x), measure(model, x, shaken=True)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert torch.equal(x, kept)
    moved = abs(calm.layers["0"].numbers["weight"][0] - shaken.layers["0"].numbers["weight"][0])
    # The norm of n weights with independent relative noise e moves by about e / sqrt(n).
    sigma = NOISE * torch.finfo(torch.float32).eps * math.sqrt(3 / (48 * 32)) / math.log(10)
    assert 0 < moved < 4 * sigma


@pytest.mark.parametrize("depth", [4, 30])
def test_noise_moves_more_than_rounding_does(depth):
    """What float32 gets wrong against float64 is less than what the noise does."""

    def build():
        return chain(gain=1.5, depth=depth, activation=nn.Tanh)

    calm, shaken = measure(build, inputs), measure(build, inputs, shaken=True)
    exact = measure(lambda: build().double(), lambda: inputs().double())

    def furthest(other):
        pairs = (
            (layer.numbers[m], other.layers[name].numbers[m])
            for name, layer in calm.layers.items()
            for m in layer.numbers
            if m != "weight"
        )
        return max(abs(a - b) for old, new in pairs for a, b in zip(old, new, strict=True))

    assert furthest(exact) < furthest(shaken)


def test_spread_between_seeds_follows_from_the_width():
    """The predicted spread is that of 60 measured networks, within its own standard error."""
    torch.manual_seed(1)
    traces = [probe(chain(width=48), inputs(), predict=False) for _ in range(60)]
    tensors, _ = traces[0].series("activation_grad", "norm")
    first = next(i for i, tensor in enumerate(tensors) if tensor.module == "1")
    logs = [t.series("activation_grad", "norm")[1][0, first].log10().item() for t in traces]
    measured = torch.tensor(logs).std().item()
    predicted = predicted_std(traces[0])
    # Theory is for one example; averaging 16 correlated ones takes some of the spread away.
    assert 0.4 * predicted < measured < 1.2 * predicted


def test_seeds_must_be_positive():
    """No seed, no profile."""
    with pytest.raises(ConfigError, match="seeds=0"):
        measure(chain, inputs, seeds=0)
