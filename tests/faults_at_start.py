"""Faults in how weights, depth and rate are chosen, as AUTOTRAINER has them; see `casebook`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from casebook import Trained, clouds, curve, drawn, mlp, sick, supervised
from torch import Tensor, nn
from torch.nn import functional

SGD = torch.optim.SGD
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def circles(seed: int) -> Callable[[], tuple[Tensor, ...]]:
    """Points of two rings and which ring they lie on; seeds torch."""
    torch.manual_seed(seed)
    outer, angle = torch.randint(2, (512,)), 6.2832 * torch.rand(512)
    radius = 0.5 + 0.5 * outer + 0.05 * torch.randn(512)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return drawn(seed, 1.5 * points, outer)


def digits(seed: int, classes: int = 5) -> Callable[[], tuple[Tensor, ...]]:
    """Small grey images with a pattern for each class; seeds torch."""
    torch.manual_seed(seed)
    patterns, y = torch.randn(classes, 1, 8, 8), torch.randint(classes, (256,))
    return drawn(seed, patterns[y] + 0.7 * torch.randn(256, 1, 8, 8), y)


def deep(depth: int, width: int, act: type[nn.Module], inputs: int, out: int) -> nn.Sequential:
    """A chain of linear layers with an activation after each but the last."""
    sizes = [inputs, *[width] * (depth - 1)]
    layers = [m for a, b in zip(sizes, [*sizes[1:], width], strict=True) for m in
              (nn.Linear(a, b), act())]  # fmt: skip
    return nn.Sequential(*layers[:-2], nn.Linear(width, out))


def start(model: nn.Module, weights: Callable[[Tensor], object], bias: float = 0.0) -> None:
    """Initialise the weights, and all biases with a constant."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1:
            weights(parameter)
        else:
            nn.init.constant_(parameter, bias)


def he(weight: Tensor) -> None:
    """The initialisation that fits ReLU."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


@sick
def ten_sigmoids_on_rings(seed: int, mended: bool) -> Trained:
    """Ten layers with sigmoids."""
    draw = circles(seed)
    model = deep(10, 32, nn.ReLU if mended else nn.Sigmoid, 2, 2)
    if mended:
        start(model, he)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("vanishing",), "0", "ReLU|relu")


@sick
def deep_tanh_of_small_weights(seed: int, mended: bool) -> Trained:
    """Twelve layers with tanh that start within 0.05."""
    draw = clouds(seed)
    model = deep(12, 48, nn.Tanh, 16, 5)
    start(model, nn.init.xavier_normal_ if mended else partial(nn.init.uniform_, a=-0.05, b=0.05))
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("vanishing",), "0", "gain|scale|init", lr=1e-3)


@sick
def weights_all_negative(seed: int, mended: bool) -> Trained:
    """Weights drawn from -1 to 0: nothing passes the second layer."""
    draw = clouds(seed)
    model = deep(5, 48, nn.ReLU, 16, 5)
    start(model, he if mended else partial(nn.init.uniform_, a=-1.0, b=0.0))
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("dead-units",), "3", "LeakyReLU|bias", lr=1e-3)


@sick
def biases_of_minus_ten(seed: int, mended: bool) -> Trained:
    """Biases that no input outweighs."""
    draw = clouds(seed)
    model = mlp(16, 5)
    start(model, he, 0.0 if mended else -10.0)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("dead-units",), "1|3", "bias", lr=1e-3)


@sick
def everything_zero(seed: int, mended: bool) -> Trained:
    """All weights and biases start at zero."""
    draw = clouds(seed)
    model = mlp(16, 5)
    start(model, he if mended else nn.init.zeros_)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("zero-initialised", "units-alike", "dead-units"), "0|2|4|1|3",
                   "random|initialise", lr=1e-3)  # fmt: skip


@sick
def standard_normal_weights(seed: int, mended: bool) -> Trained:
    """Three layers whose weights have a deviation of one whatever their width."""
    draw = clouds(seed)
    model = mlp(16, 5, hidden=128)
    start(model, he if mended else nn.init.normal_)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("exploding-forward", "weights-too-large"), "", "[Ss]cale", lr=1e-3)


@sick
def eight_layers_of_standard_normal_weights(seed: int, mended: bool) -> Trained:
    """The same, deeper."""
    draw = clouds(seed)
    model = deep(8, 64, nn.ReLU, 16, 5)
    start(model, he if mended else nn.init.normal_)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(
        model, loss, ("exploding-forward", "exploding-backward"), "", "[Ss]cale", lr=1e-3
    )


@sick
def embedding_of_large_numbers(seed: int, mended: bool) -> Trained:
    """An embedding that starts a hundred times too large, in front of tanh."""
    torch.manual_seed(seed)
    tokens = torch.randint(50, (256, 6))
    targets = (tokens[:, 0] % 5 + tokens[:, 1] % 2) % 5
    table = nn.Embedding(50, 16)
    with torch.no_grad():
        table.weight.mul_(1.0 if mended else 100.0)
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 5))
    loss = supervised(model, functional.cross_entropy, drawn(seed, tokens, targets))
    return Trained(model, loss, ("saturation",), "3", "scale|normalise")


@sick
def sigmoid_convolutions(seed: int, mended: bool) -> Trained:
    """Eight convolutions with sigmoids."""
    draw = digits(seed)
    act = nn.ReLU if mended else nn.Sigmoid
    layers = [m for i in range(8) for m in (nn.Conv2d(16 if i else 1, 16, 3, padding=1), act())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5))
    if mended:
        start(model, he)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("vanishing",), "0|1", "ReLU|relu", lr=1e-3)


class Loop(nn.Module):
    """A plain recurrent network that reads a sequence and is asked at its end."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of (batch, time, 4)."""
        return self.head(self.cell(x)[0][:, -1])


def remembered(seed: int, length: int) -> Callable[[], tuple[Tensor, ...]]:
    """Sequences whose class stands at their beginning; seeds torch."""
    torch.manual_seed(seed)
    x, y = 0.5 * torch.randn(256, length, 4), torch.randint(3, (256,))
    x[torch.arange(256), 0, y] += 3.0
    return drawn(seed, x, y)


@sick
def plain_loop_over_eighty_steps(seed: int, mended: bool) -> Trained:
    """nn.RNN as it comes, asked for what it read 80 steps ago."""
    draw = remembered(seed, 80)
    model = Loop((nn.LSTM if mended else nn.RNN)(4, 32, batch_first=True))
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("vanishing",), "cell", "orthogonal|LSTM", lr=1e-3)


@sick
def loop_of_relus_that_grows(seed: int, mended: bool) -> Trained:
    """A recurrence with ReLU and a gain of 2.2 over 40 steps; mended: the identity."""
    draw = remembered(seed, 40)
    cell = nn.RNN(4, 32, nonlinearity="relu", batch_first=True)
    (nn.init.eye_ if mended else partial(nn.init.orthogonal_, gain=2.2))(cell.weight_hh_l0)
    model = Loop(cell)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("exploding-backward", "exploding-forward", "non-finite"), "",
                   "orthogonal|clip|learning rate", lr=1e-3)  # fmt: skip


# --- the rate -----------------------------------------------------------------------------------


@sick
def sgd_at_five(seed: int, mended: bool) -> Trained:
    """SGD with a learning rate of 5: the loss rattles or everything dies."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("updates-too-large", "dead-units", "non-finite"), "",
                   "learning rate", lr=0.05 if mended else 5.0, optimizer=SGD)  # fmt: skip


@sick
def adam_at_a_half(seed: int, mended: bool) -> Trained:
    """Adam with a learning rate of 0.5 for convolutions."""
    draw = digits(seed)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
              nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 5)]  # fmt: skip
    model = nn.Sequential(*layers)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("updates-too-large", "dead-units"), "", "learning rate",
                   lr=1e-3 if mended else 0.5)  # fmt: skip


@sick
def momentum_of_nearly_one(seed: int, mended: bool) -> Trained:
    """A momentum of 0.999 with a learning rate that is meant for 0.9."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(model, functional.cross_entropy, draw)
    optimizer = partial(SGD, momentum=0.9 if mended else 0.999)
    return Trained(model, loss, ("updates-too-large", "dead-units", "non-finite"), "",
                   "learning rate|momentum", lr=0.02 if mended else 0.5, steps=80,
                   optimizer=optimizer)  # fmt: skip


@sick
def squares_summed_over_the_batch(seed: int, mended: bool) -> Trained:
    """reduction="sum" with a learning rate that is meant for a mean."""
    draw = curve(seed)
    model = mlp(8, 1)
    how = "mean" if mended else "sum"
    loss = supervised(model, lambda o, y: functional.mse_loss(o, y, reduction=how), draw)
    return Trained(model, loss, ("updates-too-large", "non-finite", "dead-units"), "",
                   "learning rate", lr=0.1, optimizer=SGD)  # fmt: skip


@sick
def sgd_at_a_hundred_thousandth(seed: int, mended: bool) -> Trained:
    """SGD with 1e-5."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("updates-too-small",), "optimizer", "raise|Raise",
                   lr=0.05 if mended else 1e-5, optimizer=SGD, steps=60)  # fmt: skip


@sick
def adam_at_a_millionth(seed: int, mended: bool) -> Trained:
    """Adam with 1e-6, from scratch."""
    draw = circles(seed)
    model = mlp(2, 2)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("updates-too-small",), "optimizer", "raise|Raise",
                   lr=1e-2 if mended else 1e-6, steps=60)  # fmt: skip


@sick
def adam_with_eps_of_one(seed: int, mended: bool) -> Trained:
    """An eps beside which the gradients are nothing."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(model, functional.cross_entropy, draw)
    optimizer = partial(torch.optim.Adam, eps=1e-8 if mended else 10.0)
    return Trained(model, loss, ("updates-too-small",), "optimizer", "eps|raise|Raise", lr=1e-3,
                   optimizer=optimizer, steps=60)  # fmt: skip


@sick
def loss_divided_by_a_million(seed: int, mended: bool) -> Trained:
    """A loss that is a mean over far more than there is, with SGD."""
    draw = clouds(seed)
    model = mlp(16, 5)
    scale = 1.0 if mended else 1e-6
    loss = supervised(model, lambda o, y: scale * functional.cross_entropy(o, y), draw)
    return Trained(model, loss, ("updates-too-small", "not-moving", "vanishing"), "", "raise|Raise",
                   lr=0.05, optimizer=SGD, steps=60)  # fmt: skip


@sick
def adam_with_a_decay_of_one(seed: int, mended: bool) -> Trained:
    """Adam's weight decay is mixed with the gradient and outweighs it."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(model, functional.cross_entropy, draw)
    optimizer = partial(torch.optim.Adam, weight_decay=1e-4 if mended else 1.0)
    return Trained(model, loss, ("weight-decay", "collapse"), "", "decay|penalty", lr=3e-3,
                   optimizer=optimizer, steps=80)  # fmt: skip


@sick
def sgd_with_a_decay_of_ten(seed: int, mended: bool) -> Trained:
    """A weight decay that takes half of the weights at each step."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(model, functional.cross_entropy, draw)
    optimizer = partial(SGD, weight_decay=1e-4 if mended else 10.0)
    return Trained(model, loss, ("weight-decay",), "", "decay", lr=0.05, optimizer=optimizer)
