"""Faults at the loss and in the inputs; see `casebook`."""

from __future__ import annotations

import torch
from casebook import Trained, clouds, curve, drawn, mlp, sick, supervised
from torch import Tensor, nn
from torch.nn import functional


@sick
def softmax_before_cross_entropy(seed: int, mended: bool) -> Trained:
    """A softmax layer at the end, and cross entropy on top of it."""
    draw = clouds(seed)
    model = mlp(16, 5, *([] if mended else [nn.Softmax(1)]))
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("double-softmax",), "5", "logits")


@sick
def functional_softmax_before_cross_entropy(seed: int, mended: bool) -> Trained:
    """The same by functional.softmax in the network's own forward."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return x if mended else functional.softmax(x, dim=1)

    draw, model = clouds(seed), Net()
    loss = supervised(model, nn.CrossEntropyLoss(), draw)
    return Trained(model, loss, ("double-softmax",), "root", "logits")


@sick
def sigmoid_before_bce_with_logits(seed: int, mended: bool) -> Trained:
    """A sigmoid layer at the end, and the loss takes another."""
    draw = clouds(seed, 2)
    model = mlp(16, 1, *([] if mended else [nn.Sigmoid()]))
    bce = functional.binary_cross_entropy_with_logits
    loss = supervised(model, lambda o, y: bce(o.squeeze(1), y.float()), draw)
    return Trained(model, loss, ("double-sigmoid",), "5", "logits")


@sick
def tanh_logits(seed: int, mended: bool) -> Trained:
    """The logits of the cross entropy come out of a tanh."""
    draw = clouds(seed)
    model = mlp(16, 5, *([] if mended else [nn.Tanh()]))
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("bounded-logits",), "5", "tanh")


@sick
def likelihood_of_logits(seed: int, mended: bool) -> Trained:
    """nll_loss without log_softmax: it has no lower bound."""
    draw = clouds(seed)
    model = mlp(16, 5, *([nn.LogSoftmax(1)] if mended else []))
    loss = supervised(model, functional.nll_loss, draw)
    return Trained(model, loss, ("likelihood-of-logits",), "4", "log_softmax")


@sick
def likelihood_of_probabilities(seed: int, mended: bool) -> Trained:
    """nll_loss of a softmax instead of a log_softmax."""
    draw = clouds(seed)
    model = mlp(16, 5, nn.LogSoftmax(1) if mended else nn.Softmax(1))
    loss = supervised(model, functional.nll_loss, draw)
    return Trained(model, loss, ("likelihood-of-probabilities",), "5", "log_softmax")


@sick
def one_class(seed: int, mended: bool) -> Trained:
    """Cross entropy of a single logit."""
    draw = clouds(seed, 2)
    model = mlp(16, 2 if mended else 1)
    loss = supervised(
        model, lambda o, y: functional.cross_entropy(o, y if mended else torch.zeros_like(y)), draw
    )
    return Trained(model, loss, ("softmax-of-one",), "4", "one output for each class")


@sick
def sigmoid_output_for_digits(seed: int, mended: bool) -> Trained:
    """Targets from 0 to 9 for an output from 0 to 1."""
    draw = clouds(seed, 10)
    model = mlp(16, 1, nn.Sigmoid())
    scale = 1 / 9 if mended else 1.0
    loss = supervised(
        model, lambda o, y: functional.mse_loss(o.squeeze(1), scale * y.float()), draw
    )
    return Trained(model, loss, ("target-range",), "5", "sigmoid|scale the targets")


@sick
def absolute_error_of_digits_and_a_sigmoid(seed: int, mended: bool) -> Trained:
    """The same with an absolute error, whose gradient tells nothing of the targets but the side."""
    draw = clouds(seed, 10)
    model = mlp(16, 1, nn.Sigmoid())
    scale = 1 / 9 if mended else 1.0
    loss = supervised(model, lambda o, y: functional.l1_loss(o.squeeze(1), scale * y.float()), draw)
    return Trained(model, loss, ("target-range",), "5", "sigmoid|scale the targets")


@sick
def relu_output_for_signed_targets(seed: int, mended: bool) -> Trained:
    """Targets on both sides of zero for an output above it."""
    draw = curve(seed)
    model = mlp(8, 1, *([] if mended else [nn.ReLU()]))
    return Trained(
        model, supervised(model, lambda o, y: (o - y).pow(2).mean(), draw), ("target-range",),
        "5", "relu",
    )  # fmt: skip


@sick
def masks_to_255(seed: int, mended: bool) -> Trained:
    """Masks of 0 and 255 for a binary cross entropy."""
    torch.manual_seed(seed)
    images = torch.randn(128, 3, 8, 8)
    masks = (images.sum(1, keepdim=True) > 0).float() * (1 if mended else 255)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))
    loss = supervised(model, nn.BCEWithLogitsLoss(), drawn(seed, images, masks, size=8))
    return Trained(model, loss, ("target-range",), "2", "255")


@sick
def targets_without_their_last_dimension(seed: int, mended: bool) -> Trained:
    """Outputs (n, 1) against targets (n,): each is compared with all."""
    draw = curve(seed)
    model = mlp(8, 1)

    def value(step: int) -> Tensor:
        x, y = draw()
        left, right = torch.broadcast_tensors(model(x), y if mended else y.squeeze(1))
        return functional.mse_loss(left, right)  # what mse_loss does itself, with a warning

    return Trained(model, value, ("target-broadcast",), "loss", "shape")


@sick
def divided_by_no_positives(seed: int, mended: bool) -> Trained:
    """The batch of step 10 holds no example of the class that counts."""
    draw, model = clouds(seed), mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        positive = torch.zeros(len(y)) if step == 10 else (y > 0).float()
        each = functional.cross_entropy(model(x), y, reduction="none") * positive
        return each.sum() / (positive.sum().clamp(min=1) if mended else positive.sum())

    return Trained(model, value, ("non-finite",), "loss", "divi|denominator|empt")


@sick
def root_of_zero_in_a_module(seed: int, mended: bool) -> Trained:
    """One example of step 5 is all zeros, and the length of a vector of zeros has no derivative."""

    class Unit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside = x.square().sum(1, keepdim=True)
            return 4 * x / (1 + (inside + 1e-6 if mended else inside).sqrt())

    draw = clouds(seed)
    model = nn.Sequential(nn.Linear(16, 48, bias=False), Unit(), *mlp(48, 5))

    def value(step: int) -> Tensor:
        x, y = draw()
        if step == 5:
            x[0] = 0
        return functional.cross_entropy(model(x), y)

    return Trained(model, value, ("non-finite",), "1", "sqrt")


@sick
def targets_of_other_examples(seed: int, mended: bool) -> Trained:
    """The targets are shuffled without their inputs, long enough to tell."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        return functional.cross_entropy(model(x), y if mended else y[torch.randperm(len(y))])

    return Trained(model, value, ("not-learning",), "loss", "belong together", lr=1e-3, steps=220)


# --- inputs -------------------------------------------------------------------------------------


@sick
def pixels_to_255(seed: int, mended: bool) -> Trained:
    """Inputs from 0 to 255 and a network without a normalisation."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        return functional.cross_entropy(model(x if mended else 40 * x + 128), y)

    return Trained(model, value, ("input-scale",), "input", "tandardise")


@sick
def the_same_image_again(seed: int, mended: bool) -> Trained:
    """The loader gives one example n times."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        return functional.cross_entropy(model(x if mended else x[:1].expand_as(x)), y)

    return Trained(model, value, ("constant-input",), "input", "data loader")
