"""A layer out of line is an error where its weights are off, and a note on how it is built else."""

import math

import pytest
import torch
from handwritten import Net
from torch import nn

import gradscope


@pytest.mark.parametrize(
    ("factor", "scale", "verdict"),
    [
        (100.0, 100.0, "exploding"),
        (0.01, 0.01, "vanishing"),
        (100.0, 1.0, "healthy"),
        (0.01, 1.0, "healthy"),
    ],
)
def test_an_odd_block_is_an_error_only_with_odd_weights(factor, scale, verdict):
    """A block that scales by a factor with weights that are off by it; and with usual weights."""
    net = Net(12)
    for i in range(12):
        jitter = 1 + 0.01 * (-1) ** i
        net.put("activation", f"l{i}", rms=(1.0 if i < 6 else factor) * jitter)
        net.put("activation_grad", f"l{i}", norm=(factor if i < 6 else 1.0) * jitter)
    net.put("weight", "l6", "weight", weight_norm=10.0 * scale)
    diagnosis, findings = net.diagnose()
    assert findings["odd-block"].where == "l6"
    assert findings["odd-block"].evidence["factor"].value == pytest.approx(factor, rel=0.1)
    assert findings["odd-block"].severity == ("warning" if verdict == "healthy" else "error")
    assert diagnosis.verdict == verdict


HEADS = {
    "a linear layer": (lambda head: [head], nn.functional.cross_entropy),
    "with something behind it": (
        lambda head: [head, nn.Dropout(0.0), nn.Flatten()],
        nn.functional.cross_entropy,
    ),
    "log_softmax": (lambda head: [head, nn.LogSoftmax(1)], nn.functional.nll_loss),
}


def headed(scale, classes, tail, layer=None):
    """Ten He-initialised layers and a head of gain `scale`; or one of the ten with that gain."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64) for _ in range(10)]
    head = nn.Linear(64, classes)
    for each in layers:
        nn.init.kaiming_normal_(each.weight, nonlinearity="relu")
    nn.init.normal_((head if layer is None else layers[layer]).weight, std=scale / 8)
    return nn.Sequential(*(part for each in layers for part in (each, nn.ReLU())), *tail(head))


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("head", HEADS)
def test_a_large_head_is_a_warning(head, classes):
    """What it does it does to all layers alike: the trunk is sound, the logits are too large."""
    tail, loss = HEADS[head]
    model = headed(100.0, classes, tail)
    trace = gradscope.probe(model, torch.randn(32, 64), torch.arange(32) % classes, loss=loss)
    diagnosis = gradscope.diagnose(trace)
    found = {finding.kind: finding.severity for finding in diagnosis.findings}
    assert diagnosis.is_healthy, str(diagnosis)
    assert found == {"odd-block": "warning", "large-logits": "warning"}


@pytest.mark.parametrize("layer", [3, 8])
def test_a_large_layer_of_the_trunk_is_an_error(layer):
    """The same gain, seven or two layers before the loss; the large logits follow from it."""
    model = headed(100.0, 10, lambda head: [head], layer)
    trace = gradscope.probe(model, torch.randn(32, 64), torch.arange(32) % 10)
    diagnosis = gradscope.diagnose(trace)
    errors = {finding.where for finding in diagnosis.findings if finding.severity == "error"}
    assert diagnosis.verdict == "exploding"
    assert errors == {str(2 * layer)}
    assert "large-logits" not in {finding.kind for finding in diagnosis.findings}


@pytest.mark.parametrize("classes", [2, 3])
def test_heads_drawn_by_fan_out_for_few_classes(classes):
    """MNASNet draws its head by fan_out, where few classes make the weights large."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.mnasnet0_5(num_classes=classes)
    trace = gradscope.probe(model, torch.randn(16, 3, 64, 64), torch.arange(16) % classes)
    assert gradscope.diagnose(trace).is_healthy


class Gate(nn.Module):
    """Squeeze and excitation: two layers on the mean of each channel, and a sigmoid."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x):
        """The input, each channel times its gate."""
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def gated(depth):
    """Convolutions with batch norm, skips and a gate in every fourth."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, gate):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.gate = Gate(16) if gate else nn.Identity()

        def forward(self, x):
            return x + self.gate(self.norm(self.conv(x)).relu())

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *(Block(i % 4 == 1) for i in range(depth)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def test_gates_of_usual_weights_are_no_error():
    """Squeeze-excitation gets far less gradient than the convolutions around it, by design."""
    trace = gradscope.probe(gated(12), torch.randn(8, 3, 16, 16), torch.randint(5, (8,)))
    assert gradscope.diagnose(trace).is_healthy


@pytest.mark.parametrize("scale", [0.02, 50.0])
def test_one_convolution_scaled_is_found_beside_gates(scale):
    """The same network with one weight fifty times off: batch norm hides it from activations."""
    model = gated(12)
    with torch.no_grad():
        model[6].conv.weight.mul_(scale)
        model[6].conv.bias.zero_()
    trace = gradscope.probe(model, torch.randn(8, 3, 16, 16), torch.randint(5, (8,)))
    diagnosis = gradscope.diagnose(trace)
    assert not diagnosis.is_healthy
    assert diagnosis.findings[0].where == "6.conv"


def test_gain_is_std_times_root_of_fan_in():
    """Of He's initialisation sqrt(2), of PyTorch's default 1/sqrt(3), whatever the shape."""
    from gradscope.diagnosis.case import Case

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64 * 36, 200))
    nn.init.kaiming_normal_(model[0].weight, nonlinearity="relu")
    gains = Case(gradscope.probe(model, torch.randn(2, 3, 8, 8))).gains
    assert gains["0"] == pytest.approx(math.log10(math.sqrt(2)), abs=0.02)
    assert gains["2"] == pytest.approx(math.log10(1 / math.sqrt(3)), abs=0.02)


def test_one_layer_out_of_line_is_named():
    """Before a norm, a weight times 100 divides its gradient by 100: gradient/weight by 10^4."""
    net = Net(12)
    net.put("weight", "l5", "weight", norm=0.01, weight_norm=1000.0)
    diagnosis, findings = net.diagnose()
    assert diagnosis.verdict == "vanishing"
    assert findings["odd-layer"].where == "l5"
    assert findings["odd-layer"].evidence["gradient/weight"].value == pytest.approx(-4.0, abs=0.01)
