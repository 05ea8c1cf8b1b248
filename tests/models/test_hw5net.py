"""HW5Net, SkipBlock and Net3 against the published counts and a second implementation."""

import itertools

import pytest
import torch
from torch.nn import functional

from gradscope.errors import ModelError
from gradscope.models import HW5Net, Net3, SkipBlock

SWITCHES = list(itertools.product((False, True), repeat=2))


def scalars(model):
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters())


def without_gradient(model, size=64):
    """Names of the parameters that one training step leaves without a gradient."""
    torch.manual_seed(0)
    model(torch.randn(4, 3, size, size)).square().sum().backward()
    return [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("depth", "shared", "tensors"),
    [(32, False, 108), (64, False, 172), (32, True, 98), (64, True, 162)],
)
def test_tensor_counts(depth, shared, tensors):
    """The published numbers of parameter tensors, before and after the correction."""
    model = HW5Net(depth=depth, shared_downsampler=shared)
    assert len(list(model.parameters())) == tensors


@pytest.mark.parametrize(("depth", "expected"), [(32, 10_295_925), (64, 11_775_093)])
def test_scalar_counts(depth, expected):
    """The published numbers of scalars for five classes, skips or not."""
    assert scalars(HW5Net(5, depth=depth)) == expected
    assert scalars(HW5Net(5, depth=depth, skip=False)) == expected


@pytest.mark.parametrize(("batch_norm", "expected"), [(True, 14), (False, 8)])
@pytest.mark.parametrize("skip", [True, False])
def test_parameters_without_gradient(skip, batch_norm, expected):
    """Only what is declared and never called gets no gradient: the last block, one convolution."""
    idle = without_gradient(HW5Net(skip=skip, batch_norm=batch_norm))
    assert len(idle) == expected
    assert {name.split(".")[0] for name in idle} == {"down3", "widen"}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n_classes", [2, 7])
def test_output_shape(n_classes, shared):
    """Logits have one row per image and one column per class, at other image sizes too."""
    for size in (64, 32):
        model = HW5Net(n_classes, shared_downsampler=shared, image_size=size)
        assert model(torch.randn(3, 3, size, size)).shape == (3, n_classes)


def reference_block(x, state, prefix, *, down, skip, batch_norm):
    """SkipBlock from its description, on a bare state dict."""

    def layer(x, number):
        x = functional.conv2d(
            x, state[f"{prefix}conv{number}.weight"], state[f"{prefix}conv{number}.bias"], padding=1
        )
        if batch_norm:
            mean = x.mean(dim=(0, 2, 3), keepdim=True)
            variance = x.var(dim=(0, 2, 3), keepdim=True, correction=0)
            gain = state[f"{prefix}bn{number}.weight"][:, None, None]
            shift = state[f"{prefix}bn{number}.bias"][:, None, None]
            x = (x - mean) / (variance + 1e-5).sqrt() * gain + shift
        return x.clamp(min=0)

    out = layer(x, 1)
    if out.shape[1] == x.shape[1]:
        out = layer(out, 2)
    if down:
        kernel = state[f"{prefix}downsampler.weight"][:, :, 0, 0]
        bias = state[f"{prefix}downsampler.bias"][:, None, None]
        out, x = (torch.einsum("oc,nchw->nohw", kernel, t[..., ::2, ::2]) + bias for t in (out, x))
    if skip:
        out = out + (x if out.shape[1] == x.shape[1] else torch.cat([x, x], 1))
    return out


def randomised(model):
    """The model in float64 with every parameter random, so that no term hides behind a zero."""
    torch.manual_seed(1)
    model.double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model, dict(model.state_dict())


@pytest.mark.parametrize(("skip", "batch_norm"), SWITCHES)
@pytest.mark.parametrize(("out", "down"), [(6, False), (6, True), (12, False)])
def test_block_is_what_it_says(out, down, skip, batch_norm):
    """Every switch setting agrees with the block written out by hand."""
    block, state = randomised(SkipBlock(6, out, downsample=down, skip=skip, batch_norm=batch_norm))
    x = torch.randn(4, 6, 8, 8, dtype=torch.float64)
    expected = reference_block(x, state, "", down=down, skip=skip, batch_norm=batch_norm)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("depth", [32, 64])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("skip", "batch_norm"), SWITCHES)
def test_network_is_what_it_says(depth, shared, skip, batch_norm):
    """The whole network agrees with its published plan, read line by line."""
    model, state = randomised(
        HW5Net(depth=depth, skip=skip, batch_norm=batch_norm, shared_downsampler=shared)
    )
    x = images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    x = functional.max_pool2d(
        functional.conv2d(x, state["conv.weight"], state["conv.bias"], padding=1).relu(), 2
    )
    early = {32: 1, 64: 2}[depth]
    plan = [(f"stage1.{i}.", False, 32) for i in range(early)]
    plan += [("down1.", True, 16)]
    plan += [(f"stage2.{i}.", False, 16) for i in range(depth // 8 - early)]
    plan += [("down2.", True, 8), ("widen.", False, 8)]
    plan += [(f"stage3.{i}.", False, 8) for i in range(depth // 8)]
    for prefix, down, side in plan:
        x = reference_block(x, state, prefix, down=down, skip=skip, batch_norm=batch_norm)
        assert x.shape[-1] == side
    assert x.flatten(1).shape == (2, 8192)
    x = functional.linear(x.flatten(1), state["fc1.weight"], state["fc1.bias"]).relu()
    torch.testing.assert_close(
        model(images), functional.linear(x, state["fc2.weight"], state["fc2.bias"])
    )


def test_shared_downsampler_is_one_block():
    """Before the correction, the same parameters halve the image both times."""
    shared, separate = HW5Net(shared_downsampler=True), HW5Net()
    assert shared.down1 is shared.down2
    assert separate.down1 is not separate.down2


def test_net3_counts():
    """Net3 is a chain of 12 convolutions and 2 linear layers; scalars by arithmetic."""
    model = Net3(5)
    convolutions = (3 * 16 * 9 + 16) + (16 * 32 * 9 + 32) + 10 * (32 * 32 * 9 + 32)
    left = (((64 - 2) // 2) - 2) // 2
    linear = (32 * left * left * 64 + 64) + (64 * 5 + 5)
    assert len(list(model.parameters())) == 2 * (12 + 2)
    assert scalars(model) == convolutions + linear
    assert without_gradient(model) == []


def test_net3_shape():
    """Net3 takes any image that survives its poolings."""
    assert Net3(3)(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert Net3(3, image_size=10)(torch.randn(2, 3, 10, 10)).shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: HW5Net(depth=30), "depth=30 must be a multiple of 8"),
        (lambda: HW5Net(depth=0), "depth=0 must be a multiple of 8"),
        (lambda: HW5Net(image_size=60), "image_size=60 must be a multiple of 8"),
        (lambda: SkipBlock(64, 96), "the width must stay or double; valid: 64, 128"),
        (lambda: SkipBlock(64, 128, downsample=True), "keeps its width; valid: 64"),
        (lambda: Net3(image_size=8), "image_size=8 is too small"),
        (lambda: HW5Net()(torch.zeros(1, 3, 32, 32)), "image_size=32"),
        (lambda: Net3()(torch.zeros(1, 1, 64, 64)), r"\(3, 64, 64\), got \(1, 64, 64\)"),
    ],
)
def test_bad_arguments(make, says):
    """What cannot be built, or does not fit the images, is said in words."""
    with pytest.raises(ModelError, match=says):
        make()
