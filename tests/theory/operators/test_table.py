"""Each rule against the Jacobian itself: white noise pulled back through one operation.

The mean squared norm of what autograd makes of many white-noise gradients, over the norm of the
noise, is |J|_F^2 / outputs: what every rule states for an even share of the gradient.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradscope.theory.flux import Flux
from gradscope.theory.operators.table import RULES, read_operation

DRAWS = 200


def pulled_back(make, *inputs):
    """Mean over white noise of |gradient of each input|^2 / |noise|^2, and the node of the op."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    # An operation of its own before each input, so that the rules see something to carry on to.
    ahead = [x * 1.0 for x in inputs]
    out = make(*ahead)
    totals = torch.zeros(len(inputs))
    for draw in range(DRAWS):
        noise = torch.randn(out.shape, generator=torch.Generator().manual_seed(1000 + draw))
        grads = torch.autograd.grad(out, ahead, noise, retain_graph=True, allow_unused=True)
        for i, grad in enumerate(grads):
            if grad is not None:
                totals[i] += float(grad.square().sum() / noise.square().sum()) / DRAWS
    return totals.tolist(), out.grad_fn, [x.grad_fn for x in ahead]


def walked(node, sources):
    """The rules' factor from a node to each source, over all paths."""
    carried = {node: Flux(0.0)}
    queue = [node]
    while queue:
        here = max(queue, key=lambda n: n._sequence_nr())
        queue.remove(here)
        operation = read_operation(here)
        assert not operation.reason, operation.reason
        for i, (source, _) in enumerate(here.next_functions):
            if source is None or hasattr(source, "variable"):
                continue
            if source not in carried and source not in sources:
                queue.append(source)
            carried[source] = carried.get(source, Flux()) + operation.back(i, carried[here])
    return [torch.tensor(carried.get(s, Flux()).log_square).exp().item() for s in sources]


def x(*shape, seed=0):
    """Standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


W = x(12, 8, seed=5)
KERNEL = x(6, 4, 3, 3, seed=6)
MASK = x(4, 8, seed=7) > 0
IMAGE = (2, 4, 6, 6)

ONE_INPUT = {
    "linear": (lambda a: functional.linear(a, W, torch.ones(12)), (4, 8)),
    "matmul": (lambda a: a @ W.T, (3, 4, 8)),
    "convolution": (lambda a: functional.conv2d(a, KERNEL, padding=1), IMAGE),
    "strided": (lambda a: functional.conv2d(a, KERNEL, stride=2, padding=1), IMAGE),
    "dilated": (lambda a: functional.conv2d(a, KERNEL, dilation=2), IMAGE),
    "grouped": (lambda a: functional.conv2d(a, KERNEL[:, :2], groups=2), IMAGE),
    "transposed": (
        lambda a: functional.conv_transpose2d(a, KERNEL.mT.transpose(0, 1), stride=2),
        (2, 4, 5, 5),
    ),
    "convolution in 1d": (lambda a: functional.conv1d(a, KERNEL[..., 0]), (2, 4, 9)),
    "relu": (torch.relu, (5, 40)),
    "gelu": (functional.gelu, (5, 40)),
    "tanh": (torch.tanh, (5, 40)),
    "sigmoid": (torch.sigmoid, (5, 40)),
    "silu": (functional.silu, (5, 40)),
    "selu": (functional.selu, (5, 40)),
    "relu6": (functional.relu6, (5, 40)),
    "leaky relu": (lambda a: functional.leaky_relu(a, 0.3), (5, 40)),
    "hardswish": (functional.hardswish, (5, 40)),
    "softplus": (functional.softplus, (5, 40)),
    "clamp": (lambda a: a.clamp(-0.5, 0.7), (5, 40)),
    "power": (lambda a: a**2, (5, 40)),
    "exponential": (torch.exp, (5, 40)),
    "scale": (lambda a: a * -3.0, (4, 8)),
    "gain": (lambda a: a * x(8, seed=8), (4, 8)),
    "quotient": (lambda a: a / 4.0, (4, 8)),
    "negative": (torch.neg, (4, 8)),
    "difference": (lambda a: 1.0 - a, (4, 8)),
    "doubled sum": (lambda a: torch.add(torch.zeros(4, 8), a, alpha=2), (4, 8)),
    "softmax": (lambda a: a.softmax(-1), (6, 10)),
    "softmax over rows": (lambda a: a.softmax(0), (6, 10)),
    "log softmax": (lambda a: a.log_softmax(-1), (6, 10)),
    "layer norm": (lambda a: functional.layer_norm(a, (20,)), (6, 20)),
    # By hand, its two paths to the input count as independent, which errs by 1/width.
    "rms norm": (lambda a: functional.rms_norm(a, (200,)), (6, 200)),
    "group norm": (lambda a: functional.group_norm(a, 2), IMAGE),
    "batch norm": (lambda a: functional.batch_norm(a, None, None, training=True), IMAGE),
    "batch norm in evaluation": (
        lambda a: functional.batch_norm(a, torch.zeros(4), torch.arange(1.0, 5.0)),
        IMAGE,
    ),
    "instance norm": (functional.instance_norm, IMAGE),
    "max pool": (lambda a: functional.max_pool2d(a, 2), IMAGE),
    "overlapping max pool": (lambda a: functional.max_pool2d(a, 3, 1), IMAGE),
    "max pool behind relu": (lambda a: functional.max_pool2d(torch.relu(a), 2), (8, 4, 12, 12)),
    "average pool": (lambda a: functional.avg_pool2d(a, 2), IMAGE),
    "adaptive average pool": (lambda a: functional.adaptive_avg_pool2d(a, 2), IMAGE),
    "mean": (lambda a: a.mean((2, 3)), IMAGE),
    "mean of all": (lambda a: a.mean(), IMAGE),
    "sum": (lambda a: a.sum(-1), IMAGE),
    "nearest": (lambda a: functional.interpolate(a, scale_factor=2), IMAGE),
    "bilinear": (
        lambda a: functional.interpolate(a, scale_factor=2, mode="bilinear"),
        IMAGE,
    ),
    "padding": (lambda a: functional.pad(a, (1, 2, 0, 1)), IMAGE),
    "cropping": (lambda a: functional.pad(a, (-1, -1)), IMAGE),
    "reflection": (lambda a: functional.pad(a, (1, 1, 1, 1), mode="reflect"), IMAGE),
    "flatten": (lambda a: a.flatten(1), IMAGE),
    "permute": (lambda a: a.permute(0, 2, 3, 1).reshape(2, -1), IMAGE),
    "selection": (lambda a: a[:, 0], IMAGE),
    "slice": (lambda a: a[:, 1:3], IMAGE),
    "index": (lambda a: a[torch.tensor([0, 1, 1])], IMAGE),
    "expansion": (lambda a: a.expand(3, 4, 8), (1, 4, 8)),
    "roll": (lambda a: a.roll(1, 2), IMAGE),
    "stack": (lambda a: torch.stack([a, torch.zeros_like(a)]), (4, 8)),
    "concatenation with a constant": (lambda a: torch.cat([a, torch.zeros(4, 4)], 1), (4, 8)),
    "masked fill": (lambda a: a.masked_fill(MASK, 0.0), (4, 8)),
    "where": (lambda a: torch.where(MASK, a, torch.zeros(4, 8)), (4, 8)),
    "cast": (lambda a: a.double(), (4, 8)),
    "prelu": (nn.PReLU(), (5, 40)),
}


@pytest.mark.parametrize("name", ONE_INPUT)
def test_one_input(name):
    """The rule gives |J|_F^2 over the number of outputs."""
    make, shape = ONE_INPUT[name]
    expected, node, sources = pulled_back(make, x(*shape))
    assert walked(node, sources) == pytest.approx(expected, rel=0.05)


TWO_INPUTS = {
    "sum": (lambda a, b: a + b, (4, 8), (4, 8)),
    "broadcast sum": (lambda a, b: a + b, (4, 8), (1, 8)),
    "difference": (lambda a, b: a - 2 * b, (4, 8), (4, 8)),
    "product": (lambda a, b: a * b, (4, 8), (4, 8)),
    "gate": (lambda a, b: a * b, IMAGE, (2, 4, 1, 1)),
    "quotient": (lambda a, b: a / (3 + b.abs()), (4, 8), (4, 8)),
    "matrix product": (lambda a, b: a @ b, (4, 8), (8, 5)),
    "batched product": (torch.bmm, (3, 4, 8), (3, 8, 5)),
    "concatenation": (lambda a, b: torch.cat([a, b], 1), (2, 4, 3, 3), (2, 2, 3, 3)),
}


@pytest.mark.parametrize("name", TWO_INPUTS)
def test_two_inputs(name):
    """Each input gets its own factor."""
    make, *shapes = TWO_INPUTS[name]
    inputs = [x(*shape, seed=i) for i, shape in enumerate(shapes)]
    expected, node, sources = pulled_back(make, *inputs)
    assert walked(node, sources) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    """The fused kernel gives nearly what its parts do, for query, key and value."""
    shape = (1, 2, 24, 16)
    inputs = [x(*shape, seed=i) for i in range(3)]
    expected, node, sources = pulled_back(
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=causal), *inputs
    )
    assert walked(node, sources) == pytest.approx(expected, rel=0.3)


def test_dropout():
    """Kept elements carry 1/(1-p), so that the squared norm grows by that factor."""
    expected, node, sources = pulled_back(
        lambda a: functional.dropout(a, 0.3, training=True), x(40, 50)
    )
    assert walked(node, sources) == pytest.approx(expected, rel=0.01)
    assert expected[0] == pytest.approx(1 / 0.7, rel=0.05)


def test_depthwise_convolution_behind_unequal_channels():
    """Where a norm amplifies the channels with small weights, the share per channel matters."""
    kernel = x(16, 1, 3, 3, seed=3) * torch.logspace(-1, 1, 16)[:, None, None, None]

    def make(a):
        y = functional.conv2d(a, kernel, groups=16)
        return functional.batch_norm(y, None, None, training=True)

    expected, node, sources = pulled_back(make, x(8, 16, 8, 8))
    assert walked(node, sources) == pytest.approx(expected, rel=0.1)


def test_unknown_operations_are_named():
    """No rule, no number: the reason names the operation."""
    node = torch.linalg.svdvals(x(3, 3).requires_grad_() * 1.0).grad_fn
    assert "Svd" in read_operation(node).reason
    copied = torch.zeros(4, 8)
    copied[:, :4] = x(4, 4).requires_grad_() * 1.0
    assert "CopySlices" in read_operation(copied.grad_fn).reason


def test_rules_name_nodes_that_exist():
    """A misspelt kind would never apply: torch knows a node of each name."""
    known = {re.sub(r"Backward\d.*", "", name) for name in dir(torch._C._functions)}
    assert RULES.keys() <= known
