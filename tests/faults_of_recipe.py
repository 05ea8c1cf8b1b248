"""Faults of a first recipe, as people ask about them: targets, outputs, data; see `casebook`."""

from __future__ import annotations

import math

import torch
from casebook import Trained, clouds, curve, mlp, sick, supervised
from faults_at_start import MOMENTUM, SGD, circles, digits
from torch import Tensor, nn
from torch.nn import functional


@sick
def prices_in_thousands(seed: int, mended: bool) -> Trained:
    """Targets of 300,000 +- 80,000 for outputs that start at zero."""
    draw = curve(seed)
    model = mlp(8, 1)
    scale, shift = (1.0, 0.0) if mended else (8e4, 3e5)
    loss = supervised(model, lambda o, y: functional.mse_loss(o, scale * y + shift), draw)
    return Trained(model, loss, ("target-scale",), "loss|4", "tandardise", lr=1e-2, steps=60)


@sick
def ages_in_years(seed: int, mended: bool) -> Trained:
    """Targets of 40 +- 15 with SGD: the first steps throw the weights about."""
    draw = curve(seed)
    model = mlp(8, 1)
    scale, shift = (1.0, 0.0) if mended else (150.0, 400.0)
    loss = supervised(model, lambda o, y: functional.mse_loss(o, scale * y + shift), draw)
    return Trained(
        model, loss, ("target-scale", "updates-too-large"), "", "tandardise|learning rate", lr=0.05,
        optimizer=SGD,
    )  # fmt: skip


@sick
def columns_of_a_table_as_they_are(seed: int, mended: bool) -> Trained:
    """Two columns in tens of thousands beside others around one."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        if not mended:
            x = x.clone()
            x[:, :2] = 2e4 * x[:, :2] + 5e4
        return functional.cross_entropy(model(x), y)

    return Trained(model, value, ("input-scale",), "input", "tandardise", lr=1e-3)


@sick
def grey_values_into_sigmoids(seed: int, mended: bool) -> Trained:
    """Pixels from 0 to 255 into a hidden layer of sigmoids."""
    draw = digits(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 5))

    def value(step: int) -> Tensor:
        x, y = draw()
        return functional.cross_entropy(model(x if mended else (60 * x + 128).clamp(0, 255)), y)

    return Trained(model, value, ("input-scale", "saturation"), "input|2", "tandardise|normalise")


@sick
def stretched_by_a_difference(seed: int, mended: bool) -> Trained:
    """Outputs (n, 1) minus targets (n,), squared by hand."""
    draw = curve(seed)
    model = mlp(8, 1)

    def value(step: int) -> Tensor:
        x, y = draw()
        return (model(x) - (y if mended else y.squeeze(1))).pow(2).mean()

    return Trained(model, value, ("target-broadcast",), "loss", "shape")


@sick
def absolute_errors_of_all_pairs(seed: int, mended: bool) -> Trained:
    """The same with absolute errors and the shapes the other way round."""
    draw = curve(seed)
    model = mlp(8, 1)

    def value(step: int) -> Tensor:
        x, y = draw()
        out = model(x) if mended else model(x).squeeze(1)
        return (out - y).abs().mean()

    return Trained(model, value, ("target-broadcast",), "loss", "shape")


@sick
def labels_of_minus_one_for_bce(seed: int, mended: bool) -> Trained:
    """Classes -1 and 1 for a binary cross entropy."""
    draw = clouds(seed, 2)
    model = mlp(16, 1)
    bce = functional.binary_cross_entropy_with_logits
    loss = supervised(
        model, lambda o, y: bce(o.squeeze(1), y.float() if mended else 2.0 * y - 1), draw
    )
    return Trained(model, loss, ("target-range",), "4", "0 and 1")


@sick
def sigmoid_output_and_signs(seed: int, mended: bool) -> Trained:
    """A sigmoid at the end for labels -1 and 1 with a squared error."""
    draw = clouds(seed, 2)
    model = mlp(16, 1, nn.Tanh() if mended else nn.Sigmoid())
    loss = supervised(model, lambda o, y: functional.mse_loss(o.squeeze(1), 2.0 * y - 1), draw)
    return Trained(model, loss, ("target-range",), "5", "sigmoid")


@sick
def relu_logits(seed: int, mended: bool) -> Trained:
    """The logits of a cross entropy come out of a ReLU that starts with most of them off."""
    draw = clouds(seed)
    model = mlp(16, 5, *([] if mended else [nn.ReLU()]))
    with torch.no_grad():
        model[4].bias.fill_(0.0 if mended else -1.5)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("bounded-logits", "dead-units"), "5", "ReLU")


@sick
def divergence_of_probabilities(seed: int, mended: bool) -> Trained:
    """kl_div of probabilities, which expects their logarithms."""
    draw = clouds(seed)
    model = mlp(16, 5, nn.LogSoftmax(1) if mended else nn.Softmax(1))

    def value(step: int) -> Tensor:
        x, y = draw()
        wanted = 0.9 * functional.one_hot(y, 5).float() + 0.02
        return functional.kl_div(model(x), wanted, reduction="batchmean")

    return Trained(model, value, ("likelihood-of-probabilities",), "5", "log_softmax")


@sick
def divergence_of_logits(seed: int, mended: bool) -> Trained:
    """kl_div of logits."""
    draw = clouds(seed)
    model = mlp(16, 5, *([nn.LogSoftmax(1)] if mended else []))

    def value(step: int) -> Tensor:
        x, y = draw()
        wanted = 0.9 * functional.one_hot(y, 5).float() + 0.02
        return functional.kl_div(model(x), wanted, reduction="batchmean")

    return Trained(model, value, ("likelihood-of-logits",), "4", "log_softmax")


@sick
def likelihood_with_the_wrong_sign(seed: int, mended: bool) -> Trained:
    """A likelihood that is minimised: the minus is missing."""
    draw = clouds(seed)
    model = mlp(16, 5)
    sign = 1.0 if mended else -1.0
    loss = supervised(model, lambda o, y: sign * functional.cross_entropy(o, y), draw)
    return Trained(model, loss, ("unbounded-loss",), "loss", "sign", steps=60)


@sick
def softmax_over_the_batch_by_hand(seed: int, mended: bool) -> Trained:
    """functional.log_softmax along dim 0 in the network's own forward."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).log_softmax(1 if mended else 0)

    draw, model = clouds(seed), Net()
    loss = supervised(model, functional.nll_loss, draw)
    return Trained(model, loss, ("softmax-over-batch",), "root", "dim=1")


@sick
def mask_of_nothing(seed: int, mended: bool) -> Trained:
    """The loss is multiplied by a mask that is zero everywhere."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        mask = (y >= 0 if mended else y < 0).float()
        each = functional.cross_entropy(model(x), y, reduction="none")
        return (each * mask).sum() / mask.sum().clamp(min=1)

    return Trained(model, value, ("zero-gradient",), "loss", "mask")


@sick
def every_label_ignored(seed: int, mended: bool) -> Trained:
    """ignore_index is the label of all examples: a mean over nothing."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        y = y if mended else torch.full_like(y, -100)
        return functional.cross_entropy(model(x), y)

    return Trained(model, value, ("non-finite", "non-finite-loss", "zero-gradient"), "loss",
                   "ignore|mask|divi|empt")  # fmt: skip


@sick
def logarithm_of_a_sure_sigmoid(seed: int, mended: bool) -> Trained:
    """Binary cross entropy by hand, in logarithms of probabilities that become 0 and 1."""
    draw = clouds(seed, 2)
    model = mlp(16, 1)

    def value(step: int) -> Tensor:
        x, y = draw()
        logits, y = model(x).squeeze(1), y.float()
        if mended:
            return functional.binary_cross_entropy_with_logits(logits, y)
        p = (600 * logits).sigmoid()
        return -(y * p.log() + (1 - y) * (1 - p).log()).mean()

    return Trained(model, value, ("non-finite", "non-finite-loss"), "loss", "logits|log")


@sick
def division_by_the_range_of_a_constant_column(seed: int, mended: bool) -> Trained:
    """A column that is the same for all, divided by its deviation."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        x = x.clone()
        x[:, 3] = 7.0
        spread = x.std(0)
        x = (x - x.mean(0)) / (spread + 1e-6 if mended else spread)
        return functional.cross_entropy(model(x), y)

    return Trained(model, value, ("non-finite",), "input", "missing|zero range")


@sick
def row_of_a_mask_without_a_key(seed: int, mended: bool) -> Trained:
    """A token that may look at nothing: a softmax of minus infinities."""

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            scores = q @ k.transpose(1, 2) / 4
            hidden = torch.ones(6, 6).triu(1 if mended else 0).bool()
            weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
            return self.out((weights @ v).mean(1))

    draw, model = clouds(seed), Looks()

    def value(step: int) -> Tensor:
        x, y = draw()
        return functional.cross_entropy(model(x[:, None] + 0.3 * torch.randn(len(x), 6, 16)), y)

    return Trained(model, value, ("non-finite",), "", "softmax|mask|division|argument")


@sick
def loss_made_anew(seed: int, mended: bool) -> Trained:
    """The loss is wrapped in a new tensor that requires a gradient: nothing is behind it."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        loss = functional.cross_entropy(model(x), y)
        return loss if mended else torch.tensor(loss.item(), requires_grad=True)

    return Trained(
        model, value, ("disconnected",), "loss|4", r"requires_grad|\.item|detach|tensor\("
    )


@sick
def loss_of_predicted_classes(seed: int, mended: bool) -> Trained:
    """The loss is that of argmax, made to require a gradient."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        if mended:
            return functional.cross_entropy(model(x), y)
        return functional.mse_loss(model(x).argmax(1).float().requires_grad_(), y.float())

    return Trained(model, value, ("disconnected",), "loss|4", "argmax|requires_grad|detach")


@sick
def through_numpy_and_back(seed: int, mended: bool) -> Trained:
    """The features make a detour over numpy."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(288, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.features(x)
            return self.head(x if mended else torch.from_numpy(x.detach().numpy()))

    draw, model = digits(seed), Net()
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("disconnected",), "features", "numpy")


@sick
def linear_to_the_softmax(seed: int, mended: bool) -> Trained:
    """Three linear layers and a log_softmax, nothing between, for rings that no line parts."""
    draw = circles(seed)
    act = nn.ReLU if mended else nn.Identity
    model = nn.Sequential(nn.Linear(2, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 2),
                          nn.LogSoftmax(1))  # fmt: skip
    loss = supervised(model, functional.nll_loss, draw)
    return Trained(model, loss, ("no-activation",), "0", "ReLU", lr=1e-2)


@sick
def linear_with_dropout(seed: int, mended: bool) -> Trained:
    """Dropout between the layers instead of an activation."""
    draw = circles(seed)
    parts = [nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 32)]
    between = [nn.ReLU()] if mended else [nn.Dropout(0.2)]
    model = nn.Sequential(*(m for part in parts for m in (part, *between)), nn.Linear(32, 1),
                          nn.Sigmoid())  # fmt: skip
    loss = supervised(
        model, lambda o, y: functional.binary_cross_entropy(o.squeeze(1), y.float()), draw
    )
    return Trained(model, loss, ("no-activation",), "0", "ReLU", lr=1e-2)


@sick
def sigmoids_and_squared_errors_of_many_classes(seed: int, mended: bool) -> Trained:
    """Twenty sigmoids, one-hot targets, a squared error and SGD: all outputs go to zero."""
    draw = clouds(seed, 20, 32)
    model = mlp(32, 20, *([] if mended else [nn.Sigmoid()]))

    def value(step: int) -> Tensor:
        x, y = draw()
        if mended:
            return functional.cross_entropy(model(x), y)
        return functional.mse_loss(model(x), functional.one_hot(y, 20).float())

    return Trained(model, value, ("sigmoid-squared-error",), "5",
                   "cross_entropy", lr=0.05, steps=220, optimizer=MOMENTUM)  # fmt: skip


@sick
def one_label_for_all(seed: int, mended: bool) -> Trained:
    """An argmax was taken of classes instead of one-hot rows: every target is 0."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(
        model, lambda o, y: functional.cross_entropy(o, y if mended else torch.zeros_like(y)), draw
    )
    return Trained(model, loss, ("constant-target",), "loss", "label", steps=60)


@sick
def absolute_errors_of_thousands(seed: int, mended: bool) -> Trained:
    """Targets of 5,000 +- 800 and an absolute error, which never tells how far they are."""
    draw = curve(seed)
    model = mlp(8, 1)
    scale, shift = (1.0, 0.0) if mended else (800.0, 5000.0)
    loss = supervised(model, lambda o, y: functional.l1_loss(o, scale * y + shift), draw)
    return Trained(model, loss, ("target-scale",), "loss", "tandardise", lr=1e-3, steps=60)


@sick
def probabilities_that_are_shares_of_logits(seed: int, mended: bool) -> Trained:
    """Cross entropy by hand, of logits divided by their sum and clamped."""
    draw = clouds(seed)
    model = mlp(16, 5, *([nn.Softmax(1)] if mended else []))

    def value(step: int) -> Tensor:
        x, y = draw()
        p = model(x)
        p = (p / p.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
        return -p.log()[torch.arange(len(y)), y].mean()

    return Trained(model, value, ("no-probability",), "4", "softmax", lr=1e-3, steps=60)


@sick
def dropout_by_a_function(seed: int, mended: bool) -> Trained:
    """The share to keep given to functional.dropout as the share to drop."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(16, 48), nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(functional.dropout(self.body(x).relu(), 0.05 if mended else 0.95))

    draw, model = clouds(seed), Net()
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("dropout-too-large",), "root", "p = ")


@sick
def adadelta_at_a_thousandth(seed: int, mended: bool) -> Trained:
    """A rate of 0.001 for an optimizer whose own is 1."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(model, functional.cross_entropy, draw)
    lr = 1.0 if mended else 1e-3
    return Trained(model, loss, ("updates-too-small",), "optimizer", "Raise", lr=lr, steps=80,
                   optimizer=torch.optim.Adadelta)  # fmt: skip


@sick
def logistic_loss_that_is_clamped(seed: int, mended: bool) -> Trained:
    """A margin loss whose values are cut at a half: what is most wrong gets no gradient."""
    draw = clouds(seed, 2)
    model = mlp(16, 1)

    def value(step: int) -> Tensor:
        x, y = draw()
        short = 1 - model(x).squeeze(1) * (2.0 * y - 1)
        return (short.clamp(min=0) if mended else short.clamp(0.0, 0.1)).mean()

    return Trained(model, value, ("zero-gradient", "not-learning"), "loss", "clamp")
