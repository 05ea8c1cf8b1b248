"""Building blocks of the zoo: networks in any width and depth, initialisations, inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def scaled(weight: Tensor, sigma_w2: float) -> None:
    """Normal weights with Var w = sigma_w2 / fan_in."""
    fan_in = weight[0].numel()
    nn.init.normal_(weight, 0.0, math.sqrt(sigma_w2 / fan_in))


def init(model: nn.Module, weights: Callable[[Tensor], Any], bias: float | None = 0.0) -> nn.Module:
    """Initialise every linear and convolution weight; biases constant unless None."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weights(module.weight)
            if bias is not None and module.bias is not None:
                nn.init.constant_(module.bias, bias)
    return model


def he(weight: Tensor) -> None:
    """He initialisation, fan_in."""
    scaled(weight, 2.0)


def mlp(depth: int, width: int, activation: Callable[[], nn.Module], norm=None) -> nn.Sequential:
    """Input 32 -> depth hidden layers -> 10."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers.append(nn.Linear(32 if i == 0 else width, width))
        if norm is not None:
            layers.append(norm(width))
        layers.append(activation())
    return nn.Sequential(*layers, nn.Linear(width, 10))


def chain(gain: float = 1.0, depth: int = 8, width: int = 48, activation=nn.ReLU) -> nn.Sequential:
    """Input 32 -> depth hidden layers at He initialisation times a gain, no bias at first -> 10."""
    return init(mlp(depth, width, activation), lambda weight: scaled(weight, 2.0 * gain**2))


def cnn(
    depth: int, width: int, activation=nn.ReLU, *, norm=None, pool_every: int = 0
) -> nn.Sequential:
    """A plain chain of 3x3 convolutions, global average, classifier."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers.append(nn.Conv2d(3 if i == 0 else width, width, 3, padding=1))
        if norm is not None:
            layers.append(norm(width))
        layers.append(activation())
        if pool_every and i % pool_every == pool_every - 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Residual(nn.Module):
    """x + branch(x), optionally followed by an activation or a norm."""

    def __init__(self, branch: nn.Module, after: nn.Module | None = None) -> None:
        """Wrap the branch."""
        super().__init__()
        self.branch = branch
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to its input."""
        x = x + self.branch(x)
        return x if self.after is None else self.after(x)


def resnet(depth: int, width: int, norm=nn.BatchNorm2d, pre: bool = True) -> nn.Sequential:
    """Pre- or post-activation residual blocks of two 3x3 convolutions; norm may be None."""

    def block() -> nn.Module:
        layers: list[nn.Module] = []
        for i in range(2):
            parts = [norm(width)] if norm else []
            parts.append(nn.ReLU())
            conv = nn.Conv2d(width, width, 3, padding=1, bias=norm is None)
            # post-activation: conv, norm, relu, conv, norm; the last relu comes after the sum
            layers += [*parts, conv] if pre else [conv, *(parts if i == 0 else parts[:-1])]
        return Residual(nn.Sequential(*layers), None if pre else nn.ReLU())

    stem = nn.Conv2d(3, width, 3, padding=1)
    head = [norm(width), nn.ReLU()] if pre and norm else [nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(stem, *(block() for _ in range(depth)), *head, *pool)


class TokenModel(nn.Module):
    """Embedding, positions, a body over (batch, time, width), and a head for every token."""

    def __init__(self, body: nn.Module, width: int, vocabulary: int = 50, length: int = 64) -> None:
        """Put the parts together."""
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.body = body
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, time, vocabulary)."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.body(x))


def transformer(depth: int, width: int, *, pre: bool) -> TokenModel:
    """A transformer encoder from torch's own layers, each with an initialisation of its own."""
    layers = [
        nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=pre
        )
        for _ in range(depth)
    ]
    return TokenModel(nn.Sequential(*layers, *([nn.LayerNorm(width)] if pre else [])), width)


class Recurrent(nn.Module):
    """A fused recurrent network and a head on its last output."""

    def __init__(self, core: nn.Module, width: int) -> None:
        """Put the parts together."""
        super().__init__()
        self.core = core
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10) from (batch, time, features)."""
        return self.head(self.core(x)[0][:, -1])


class Unrolled(nn.Module):
    """A cell in a Python loop and a head on the last state."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        """Put the parts together."""
        super().__init__()
        self.cell = cell
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10) from (batch, time, features)."""
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class UNet(nn.Module):
    """An encoder-decoder with long skips, a class per pixel."""

    def __init__(self, depth: int, width: int, norm=nn.BatchNorm2d) -> None:
        """Build depth levels, each twice as wide as the one above."""
        super().__init__()

        def double(n_in: int, n_out: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for n in (n_in, n_out):
                layers += [nn.Conv2d(n, n_out, 3, padding=1), norm(n_out), nn.ReLU()]
            return nn.Sequential(*layers)

        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.merge = nn.ModuleList(double(2 * a, a) for a in widths[:-1])
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, height, width, 4)."""
        kept = []
        for level in self.down[:-1]:
            x = level(x)
            kept.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for up, merge, skip in zip(
            reversed(self.up), reversed(self.merge), reversed(kept), strict=True
        ):
            x = merge(torch.cat([up(x), skip], dim=1))
        return self.head(x).movedim(1, -1)


class Detached(nn.Module):
    """Two branches whose sum is classified; one of them is cut off by ``detach``."""

    def __init__(self, trunk: nn.Module, branch: nn.Module, head: nn.Module) -> None:
        """Put the parts together."""
        super().__init__()
        self.trunk, self.branch, self.head = trunk, branch, head

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.trunk(x) + self.branch(x).detach())


class Gpt(nn.Module):
    """One block of GPT-2, its functions called as functions."""

    def __init__(self, width: int) -> None:
        """Build attention and MLP, both behind a layer norm."""
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same."""
        heads = (
            h.unflatten(-1, (4, -1)).transpose(1, 2) for h in self.qkv(self.ln_1(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.ln_2(x))))


class ReZero(nn.Module):
    """x + a * relu(linear(x)), with a scalar that starts at zero (2003.04887)."""

    def __init__(self, width: int) -> None:
        """Start as the identity."""
        super().__init__()
        self.linear, self.a = nn.Linear(width, width), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Add the gated branch."""
        return x + self.a * functional.relu(self.linear(x))


class Functional(nn.Module):
    """A He-initialised chain whose activations are functions, not modules."""

    def __init__(self, depth: int, width: int) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32 if i == 0 else width, width) for i in range(depth))
        self.head = nn.Linear(width, 10)
        init(self, he)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for layer in self.layers:
            x = functional.relu(layer(x))
        return self.head(x)


class Twins(nn.Module):
    """One body for two inputs."""

    def __init__(self, body: nn.Module) -> None:
        """Put the head on both outputs."""
        super().__init__()
        self.body, self.head = body, nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of x and of x backwards."""
        return self.head(torch.cat([self.body(x), self.body(x.flip(1))], dim=1))


class Dense(nn.Module):
    """A layer of DenseNet: its output goes beside its input."""

    def __init__(self, width: int, growth: int) -> None:
        """Normalise first."""
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate."""
        return torch.cat([x, self.conv(functional.relu(self.norm(x)))], dim=1)


class LinearLoop(nn.Module):
    """A vanilla RNN out of two linear layers and a Python loop."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        """Build the two maps and the head."""
        super().__init__()
        self.read, self.recur = nn.Linear(8, width), nn.Linear(width, width)
        self.head, self.activation = nn.Linear(width, 10), activation

    def forward(self, x: Tensor) -> Tensor:
        """Logits from (batch, time, 8)."""
        state = x.new_zeros(x.shape[0], self.recur.in_features)
        for t in range(x.shape[1]):
            state = self.activation(self.read(x[:, t]) + self.recur(state))
        return self.head(state)


class Reader(nn.Module):
    """Embedding, a fused recurrent layer, and a head on every output or on the last."""

    def __init__(self, core: nn.RNNBase, *, last: bool, vocabulary: int = 50) -> None:
        """Put the parts together."""
        super().__init__()
        self.embedding, self.core, self.last = nn.Embedding(vocabulary, core.input_size), core, last
        self.head = nn.Linear(core.hidden_size, 10 if last else vocabulary)

    def forward(self, text: Tensor) -> Tensor:
        """Logits (batch, 10) or (batch, time, vocabulary)."""
        states = self.core(self.embedding(text))[0]
        return self.head(states[:, -1] if self.last else states)


class RootOfZero(nn.Module):
    """A body plus the root of something that is exactly zero: its derivative is infinite."""

    def __init__(self, body: nn.Module) -> None:
        """Keep the body."""
        super().__init__()
        self.body, self.head = body, nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, finite in the forward pass."""
        y = self.body(x)
        return self.head(y) + torch.sqrt((y - y).square().sum(dim=1, keepdim=True))


class Cut(nn.Module):
    """A body and a head with a detach between them."""

    def __init__(self, body: nn.Module) -> None:
        """Keep the body."""
        super().__init__()
        self.body, self.head = body, nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x).detach())


def vectors(batch: int = 64) -> tuple[tuple[Tensor, ...], Tensor]:
    """(batch, 32) normal vectors with one of ten classes each."""
    return (torch.randn(batch, 32),), torch.randint(10, (batch,))


def images(size: int, batch: int = 8, classes: int = 10) -> tuple[tuple[Tensor, ...], Tensor]:
    """Normal images with a class each."""
    return (torch.randn(batch, 3, size, size),), torch.randint(classes, (batch,))


def tokens(length: int, batch: int = 8) -> tuple[tuple[Tensor, ...], Tensor]:
    """Random tokens; the target is the token itself shifted by one."""
    text = torch.randint(50, (batch, length + 1))
    return (text[:, :-1],), text[:, 1:]


def sequences(length: int, batch: int = 16) -> tuple[tuple[Tensor, ...], Tensor]:
    """Normal sequences of eight features with a class each."""
    return (torch.randn(batch, length, 8),), torch.randint(10, (batch,))
