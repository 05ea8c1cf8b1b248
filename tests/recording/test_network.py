"""Blocks, cuts and structural zeros of small networks whose answers are known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscope


def structure_of(model, *inputs):
    """The structure that one recorded step finds."""
    with gradscope.watch(model, every=1) as scope:
        output = model(*inputs)
        (output if isinstance(output, torch.Tensor) else output[0]).square().sum().backward()
        scope.step()
    return scope.trace().structure


class Residual(nn.Module):
    """Two linear layers with an identity around them."""

    def __init__(self, width, *, skip=True) -> None:
        super().__init__()
        self.first, self.act, self.second = (
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
        )
        self.skip = skip

    def forward(self, x):
        """Add the identity where asked to."""
        branch = self.second(self.act(self.first(x)))
        return x + branch if self.skip else branch


@pytest.mark.parametrize("skip", [True, False])
def test_blocks_are_the_same_with_and_without_skips(skip):
    """A stack of composite blocks is one block each, so that variants can be compared."""
    model = nn.Sequential(
        nn.Linear(3, 4), *(Residual(4, skip=skip) for _ in range(3)), nn.Linear(4, 2)
    )
    blocks = structure_of(model, torch.randn(2, 3)).blocks
    assert [(b.name, b.type) for b in blocks] == [
        ("0", "Linear"),
        ("1", "Residual"),
        ("2", "Residual"),
        ("3", "Residual"),
        ("4", "Linear"),
    ]
    assert all(b.is_cut for b in blocks)
    assert set(blocks[1].modules) == {"1", "1.first", "1.act", "1.second"}


def test_a_block_whose_output_is_its_childs_output_is_recorded_once():
    """Without the skip a block returns the tensor of its last layer: one record, found by name."""
    model = nn.Sequential(Residual(4, skip=False), Residual(4, skip=False), nn.Linear(4, 1))
    structure = structure_of(model, torch.randn(2, 4))
    assert structure.blocks[0].output == "0.second"
    assert {m.name: m.output for m in structure.modules}["0"] == "0.second"


def test_inner_layers_of_a_residual_block_are_no_cuts():
    """A path around the branch exists, so its inner layers do not carry the whole flow."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.a(x)
            return self.c(x + self.b(x))

    blocks = structure_of(Net(), torch.randn(1, 2)).blocks
    assert {b.name: b.is_cut for b in blocks} == {"a": True, "b": False, "c": True}


def test_a_side_input_leaves_the_main_path_whole():
    """Adding a learned position embedding does not break the chain of cuts."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position = nn.Embedding(5, 4), nn.Embedding(6, 4)
            self.blocks = nn.ModuleList(Residual(4) for _ in range(2))
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            x = self.token(x) + self.position(torch.arange(x.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    blocks = structure_of(Net(), torch.randint(5, (2, 6))).blocks
    cuts = {b.name for b in blocks if b.is_cut}
    assert {"blocks.0", "blocks.1", "head"} <= cuts


def test_two_heads_of_which_both_count():
    """Behind a fork into two outputs that both enter the loss, no tensor carries everything."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.stem(x)
            return self.left(x), self.right(x)

    model = Net()
    with gradscope.watch(model, every=1) as scope:
        left, right = model(torch.randn(1, 2))
        (left.sum() + right.sum()).backward()
        scope.step()
    cut = {b.name: b.is_cut for b in scope.trace().structure.blocks}
    assert cut["stem"]
    assert not (cut["left"] and cut["right"])


@pytest.mark.parametrize(
    ("layers", "cancelled", "invariant"),
    [
        ([nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)], True, True),
        ([nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4)], True, True),
        ([nn.Conv2d(2, 4, 3), nn.GroupNorm(4, 4)], True, True),
        ([nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)], False, False),
        ([nn.Conv2d(2, 4, 3, bias=False), nn.GroupNorm(2, 4)], None, True),
        ([nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)], False, False),
        ([nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4).eval()], False, False),
    ],
    ids=[
        "batch",
        "instance",
        "group per channel",
        "group of two",
        "group of two, no bias",
        "relu between",
        "eval",
    ],
)
def test_biases_that_a_norm_cancels(layers, cancelled, invariant):
    """A bias is called cancelled exactly when shifting it leaves the output as it is."""
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 16, 3))
    inputs = torch.randn(3, 2, 6, 6)
    structure = structure_of(model, inputs)
    with torch.no_grad():
        plain = model(inputs)
        model[0].weight *= 2
        scaled = model(inputs)
        model[0].weight /= 2
        if cancelled is not None:
            model[0].bias += torch.arange(4.0)
            assert torch.allclose(plain, model(inputs), atol=1e-4) == cancelled
    assert ("0.bias" in structure.cancelled) == bool(cancelled)
    assert ("0.weight" in structure.scale_invariant) == invariant
    assert torch.allclose(plain, scaled, atol=1e-3) == invariant


def test_a_bias_that_also_goes_elsewhere_is_not_cancelled():
    """When the layer's output is used beside the norm as well, its bias counts."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x):
            x = self.conv(x)
            return x + self.norm(x)

    assert structure_of(Net(), torch.randn(2, 1, 3, 3)).cancelled == {}


def test_thousands_of_layers():
    """Two thousand layers are read without recursion limits."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(2000)))
    blocks = structure_of(model, torch.randn(1, 2)).blocks
    assert len(blocks) == 2000
    assert all(b.is_cut for b in blocks)


def test_a_network_of_one_layer():
    """The root itself may be the only layer."""
    structure = structure_of(nn.Linear(2, 2), torch.randn(1, 2))
    assert [(b.name, b.output, b.is_cut) for b in structure.blocks] == [("", "", True)]
