"""A labelled zoo: networks of known health, by kind, in random widths, depths and seeds.

A kind is a recipe that draws its own size from a generator, so that the judge can be shown members
it was never tuned on: ``draw(kind, seed)`` gives one, ``standard()`` the fixed selection of the
tests. Labels follow from theory and published practice, never from our own verdict:
healthy kinds are trained as they are by their authors; sick ones have a factor per layer that the
mean-field results or plain arithmetic put far from one over the depth they have, or a defect that
was built in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from networks import (
    Cut,
    Dense,
    Detached,
    Functional,
    Gpt,
    LinearLoop,
    Reader,
    Recurrent,
    Residual,
    ReZero,
    RootOfZero,
    TokenModel,
    Twins,
    UNet,
    Unrolled,
    cnn,
    he,
    images,
    init,
    mlp,
    resnet,
    scaled,
    sequences,
    tokens,
    transformer,
    vectors,
)
from torch import Tensor, nn
from torch.nn import functional

import gradscope

SICK = frozenset({"vanishing", "exploding", "dead", "non-finite", "disconnected", "stalled"})


@dataclass(frozen=True)
class Member:
    """One network with its inputs and how it is trained while it is watched."""

    kind: str
    label: frozenset[str]
    """The verdicts that are right: ``{"healthy"}``, or one or more sick ones."""
    model: nn.Module
    inputs: tuple[Tensor, ...]
    targets: Tensor | None = None
    steps: int = 1
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None
    loss: Callable[[Any, Tensor | None], Tensor] = field(default=None)  # type: ignore[assignment]
    note: str = ""
    finding: str = ""
    """The kind of the error that must be among those that are found; empty for any."""

    @property
    def is_healthy(self) -> bool:
        """True for a healthy label."""
        return self.label == {"healthy"}


def classify(output: Any, targets: Tensor | None) -> Tensor:
    """Cross entropy of whatever holds the logits."""
    logits = getattr(output, "logits", output)
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def watch_member(member: Member) -> gradscope.Trace:
    """Run the member's steps under the recorder."""
    model = member.model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = (member.optimizer or (lambda p: torch.optim.SGD(p, lr=0.0)))(parameters)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(member.steps):
            optimizer.zero_grad()
            (member.loss or classify)(model(*member.inputs), member.targets).backward()
            optimizer.step()
    return scope.trace()


# --- kinds --------------------------------------------------------------------------------------

Draw = Callable[[random.Random], Member]
KINDS: dict[str, Draw] = {}
"""Name of each kind -> its recipe."""


def kind(
    label: str, *more: str, finding: str = ""
) -> Callable[[Callable[[random.Random], dict[str, Any]]], Draw]:
    """Register a recipe that returns the fields of a Member."""

    def register(recipe: Callable[[random.Random], dict[str, Any]]) -> Draw:
        def draw(rng: random.Random) -> Member:
            fields = recipe(rng)
            inputs, targets = fields.pop("data")
            fields.setdefault("label", frozenset({label, *more}))
            return Member(
                recipe.__name__, inputs=inputs, targets=targets, finding=finding, **fields
            )

        KINDS[recipe.__name__] = draw
        return draw

    return register


def draw(name: str, seed: int) -> Member:
    """One random member of a kind, the same for the same seed."""
    torch.manual_seed(seed)
    return KINDS[name](random.Random(f"{name}-{seed}"))


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """A factor between low and high, even on a log scale."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


# healthy


@kind("healthy")
def kaiming_mlp(rng):
    """ReLU at He initialisation: factor 1 per layer (1502.01852)."""
    depth, width = rng.randint(3, 40), rng.choice([128, 192, 256])
    return {"model": init(mlp(depth, width, nn.ReLU), he), "data": vectors()}


@kind("healthy")
def small_default_mlp(rng):
    """What every tutorial starts with: two to four layers as PyTorch initialises them."""
    depth, width = rng.randint(1, 3), rng.choice([32, 64, 128])
    activation = rng.choice([nn.ReLU, nn.Tanh, nn.GELU])
    return {"model": mlp(depth, width, activation), "data": vectors()}


@kind("healthy")
def lenet(rng):
    """Two convolutions and three linear layers, PyTorch's initialisation."""
    width = rng.choice([6, 12, 16])
    model = nn.Sequential(
        nn.Conv2d(3, width, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    return {"model": model, "data": images(32, 16)}


@kind("healthy")
def selu_mlp(rng):
    """SELU with LeCun initialisation normalises itself (1706.02515)."""
    depth, width = rng.randint(4, 32), rng.choice([128, 256])
    model = init(mlp(depth, width, nn.SELU), lambda w: scaled(w, 1.0))
    return {"model": model, "data": vectors()}


@kind("healthy")
def critical_tanh_mlp(rng):
    """Tanh with Glorot initialisation: at the critical point, sw^2 = 1, sb^2 = 0 (1611.01232)."""
    depth, width = rng.randint(3, 20), rng.choice([128, 256])
    model = init(mlp(depth, width, nn.Tanh), nn.init.xavier_normal_)
    return {"model": model, "data": vectors()}


@kind("healthy")
def kaiming_cnn(rng):
    """A plain chain of convolutions at He initialisation."""
    depth, width = rng.randint(4, 16), rng.choice([24, 32, 48])
    return {"model": init(cnn(depth, width), he), "data": images(rng.choice([16, 24]))}


@kind("healthy")
def small_bn_cnn(rng):
    """A few convolutions with batch norm and pooling: the factor 1.21 has no depth to add up."""
    depth, width = rng.randint(3, 8), rng.choice([16, 32])
    model = cnn(depth, width, norm=nn.BatchNorm2d, pool_every=3)
    return {"model": model, "data": images(32)}


@kind("healthy")
def preact_resnet(rng):
    """Pre-activation residual blocks with batch norm (1603.05027)."""
    depth, width = rng.randint(3, 24), rng.choice([16, 24, 32])
    return {"model": resnet(depth, width), "data": images(rng.choice([8, 16]))}


@kind("healthy")
def postact_resnet(rng):
    """The original residual blocks (1512.03385)."""
    depth, width = rng.randint(3, 20), rng.choice([16, 24, 32])
    return {"model": resnet(depth, width, pre=False), "data": images(rng.choice([8, 16]))}


@kind("healthy")
def fixup_like_resnet(rng):
    """No norm, but the last convolution of each branch starts at zero (1901.09321)."""
    depth, width = rng.randint(4, 24), rng.choice([16, 32])
    model = init(resnet(depth, width, norm=None), he)
    for block in model:
        if isinstance(block, Residual):
            nn.init.zeros_(block.branch[-1].weight)
    return {"model": model, "data": images(rng.choice([8, 16]))}


@kind("healthy")
def pre_ln_transformer(rng):
    """Norm first, as GPT-2 and ViT have it."""
    depth, width = rng.randint(2, 16), rng.choice([32, 64])
    return {"model": transformer(depth, width, pre=True), "data": tokens(rng.choice([12, 24]))}


@kind("healthy")
def post_ln_transformer(rng):
    """Norm last at moderate depth, as in the original and BERT."""
    depth, width = rng.randint(2, 8), rng.choice([32, 64])
    return {"model": transformer(depth, width, pre=False), "data": tokens(rng.choice([12, 24]))}


@kind("healthy")
def encoder_decoder(rng):
    """Torch's own nn.Transformer with both stacks."""
    width, depth = rng.choice([32, 64]), rng.randint(2, 4)
    core = nn.Transformer(width, 4, depth, depth, 2 * width, dropout=0.0, batch_first=True)

    class Translate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.core = nn.Embedding(50, width), core
            self.head = nn.Linear(width, 50)

        def forward(self, text: Tensor) -> Tensor:
            x = self.embedding(text)
            return self.head(self.core(x, x))

    return {"model": Translate(), "data": tokens(12)}


@kind("healthy")
def fused_lstm(rng):
    """nn.LSTM, one or two layers."""
    width = rng.choice([32, 64])
    core = nn.LSTM(8, width, rng.randint(1, 2), batch_first=True)
    return {"model": Recurrent(core, width), "data": sequences(rng.randint(10, 40))}


@kind("healthy")
def fused_gru(rng):
    """nn.GRU, one or two layers."""
    width = rng.choice([32, 64])
    core = nn.GRU(8, width, rng.randint(1, 2), batch_first=True)
    return {"model": Recurrent(core, width), "data": sequences(rng.randint(10, 40))}


@kind("healthy")
def unrolled_lstm(rng):
    """LSTMCell in a loop, forget gates open at first (Jozefowicz et al. 2015)."""
    width = rng.choice([32, 64])
    cell = nn.LSTMCell(8, width)
    nn.init.constant_(cell.bias_hh[width : 2 * width], 3.0)
    return {"model": Unrolled(cell, width), "data": sequences(rng.randint(8, 24))}


@kind("healthy")
def orthogonal_rnn(rng):
    """A vanilla RNN with orthogonal recurrence over a short time (1504.00941, 1312.6120)."""
    width = rng.choice([32, 64])
    cell = nn.RNNCell(8, width, nonlinearity="relu")
    nn.init.eye_(cell.weight_hh)
    nn.init.normal_(cell.weight_ih, 0.0, 0.1)
    return {"model": Unrolled(cell, width), "data": sequences(rng.randint(8, 30))}


@kind("healthy")
def unet(rng):
    """Long skips, no trunk."""
    depth, width = rng.randint(2, 4), rng.choice([8, 12])
    inputs, _ = images(32, 4)
    return {"model": UNet(depth, width), "data": (inputs, torch.randint(4, (4, 32, 32)))}


@kind("healthy")
def layer_norm_mlp(rng):
    """Residual MLP blocks with layer norm."""
    depth, width = rng.randint(4, 30), rng.choice([32, 64])
    blocks = [
        Residual(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(),
                               nn.Linear(2 * width, width)))
        for _ in range(depth)
    ]  # fmt: skip
    model = nn.Sequential(nn.Linear(32, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 10))
    return {"model": model, "data": vectors()}


TORCHVISION = [
    "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "vgg11", "vgg11_bn", "vgg13_bn",
    "alexnet", "squeezenet1_1", "densenet121", "mobilenet_v2", "mobilenet_v3_small",
    "efficientnet_b0", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf", "convnext_tiny",
    "googlenet", "vgg16", "vgg16_bn", "swin_t",
]  # fmt: skip


@kind("healthy")
def torchvision_model(rng):
    """A published architecture with its own initialisation."""
    from torchvision import models

    name = rng.choice(TORCHVISION)
    extra = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = models.get_model(name, num_classes=10, **extra)
    return {"model": model, "data": images(64, 4), "note": name}


@kind("healthy")
def vision_transformer(rng):
    """Torchvision's ViT, small."""
    from torchvision.models import VisionTransformer

    depth, width = rng.randint(2, 12), rng.choice([48, 96])
    model = VisionTransformer(32, 8, depth, 4, width, 2 * width, num_classes=10)
    # its own head starts at zero, so that nothing flows in the very first step
    return {"model": model, "data": images(32, 4), "steps": 3, "optimizer": adam(1e-3)}


def adam(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    """An Adam factory."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    """An SGD factory with momentum."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@kind("healthy")
def trained_a_little(rng):
    """A good network after some steps at a sensible rate."""
    name = rng.choice(["kaiming_mlp", "preact_resnet", "pre_ln_transformer", "lenet"])
    member = KINDS[name](rng)
    rate = (
        adam(log_uniform(rng, 3e-5, 2e-3))
        if rng.random() < 0.6
        else sgd(log_uniform(rng, 1e-3, 1e-2))
    )
    return {
        "model": member.model, "data": (member.inputs, member.targets), "steps": 12,
        "optimizer": rate, "note": name,
    }  # fmt: skip


@kind("healthy")
def group_norm_resnet(rng):
    """Residual blocks with group norm."""
    depth, width = rng.randint(3, 24), rng.choice([16, 32])
    model = resnet(depth, width, norm=lambda n: nn.GroupNorm(4, n), pre=rng.random() < 0.5)
    return {"model": model, "data": images(rng.choice([8, 16]))}


@kind("healthy")
def gpt(rng):
    """GPT-2's blocks and initialisation: 0.02, projections over sqrt(2 * depth)."""
    depth, width = rng.randint(2, 16), rng.choice([32, 64])
    model = TokenModel(
        nn.Sequential(*(Gpt(width) for _ in range(depth)), nn.LayerNorm(width)), width
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            last = name.endswith(("project.weight", "down.weight"))
            nn.init.normal_(parameter, 0.0, 0.02 / (math.sqrt(2 * depth) if last else 1.0))
    return {"model": model, "data": tokens(rng.choice([12, 24]))}


@kind("healthy")
def rezero(rng):
    """Gates that start at zero: the branches get no gradient in the first step."""
    depth, width = rng.randint(4, 40), rng.choice([32, 64])
    blocks = (ReZero(width) for _ in range(depth))
    return {
        "model": nn.Sequential(nn.Linear(32, width), *blocks, nn.Linear(width, 10)),
        "data": vectors(),
    }


@kind("healthy")
def functional_mlp(rng):
    """Activations that no hook sees."""
    return {"model": Functional(rng.randint(3, 24), rng.choice([128, 192])), "data": vectors()}


@kind("healthy")
def twins(rng):
    """Shared weights that run twice per step."""
    return {"model": Twins(init(mlp(rng.randint(2, 6), 64, nn.ReLU), he)), "data": vectors()}


@kind("healthy")
def densenet(rng):
    """Concatenation instead of addition."""
    width, growth = 24, rng.choice([8, 12])
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for _ in range(2):
        for _ in range(rng.randint(3, 8)):
            layers.append(Dense(width, growth))
            width += growth
        layers += [
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width // 2, 1),
            nn.AvgPool2d(2),
        ]
        width //= 2
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return {"model": nn.Sequential(*layers, *head), "data": images(16)}


@kind("healthy")
def language_model(rng):
    """Embedding, LSTM or GRU, a loss at every step."""
    core = rng.choice([nn.LSTM, nn.GRU])(32, 64, rng.randint(1, 2), batch_first=True)
    return {"model": Reader(core, last=False), "data": tokens(rng.randint(10, 50))}


@kind("healthy")
def usual_recipe(rng):
    """A residual network at the usual learning rate of SGD, 0.1."""
    return {
        "model": resnet(rng.randint(3, 8), 16, pre=False), "data": images(16, 16), "steps": 10,
        "optimizer": sgd(0.1),
    }  # fmt: skip


@kind("healthy")
def fine_tuning(rng):
    """Adam at 2e-5, as pretrained transformers are tuned."""
    return {
        "model": transformer(rng.randint(2, 6), 64, pre=True), "data": tokens(16), "steps": 8,
        "optimizer": adam(2e-5),
    }  # fmt: skip


# sick


@kind("vanishing")
def deep_sigmoid(rng):
    """The derivative of a sigmoid is at most 1/4: Glorot's factor is below 1/4 per layer."""
    depth, width = rng.randint(8, 30), rng.choice([32, 64, 128])
    weights = rng.choice([nn.init.xavier_normal_, nn.init.xavier_uniform_])
    return {"model": init(mlp(depth, width, nn.Sigmoid), weights), "data": vectors()}


@kind("vanishing")
def underscaled_tanh(rng):
    """Tanh well inside the ordered phase: factor about sw per layer."""
    depth, width = rng.randint(20, 50), rng.choice([64, 128])
    sigma_w2 = rng.uniform(0.1, 0.5)
    return {
        "model": init(mlp(depth, width, nn.Tanh), lambda w: scaled(w, sigma_w2)),
        "data": vectors(),
    }


@kind("exploding")
def overscaled_tanh(rng):
    """Tanh deep in the chaotic phase: chi_1 > 1.5 from sw^2 = 4 on (1606.05340)."""
    depth, width = rng.randint(25, 50), rng.choice([64, 128])
    sigma_w2 = rng.uniform(5.0, 20.0)
    return {
        "model": init(mlp(depth, width, nn.Tanh), lambda w: scaled(w, sigma_w2)),
        "data": vectors(),
    }


@kind("vanishing")
def xavier_relu(rng):
    """ReLU at Glorot: sqrt(1/2) per layer, 50 deep."""
    depth, width = rng.randint(35, 60), rng.choice([64, 128])
    return {"model": init(mlp(depth, width, nn.ReLU), nn.init.xavier_normal_), "data": vectors()}


@kind("vanishing")
def default_plain_cnn(rng):
    """PyTorch's default, sqrt(1/6) per convolution."""
    depth, width = rng.randint(14, 32), rng.choice([16, 32])
    return {"model": cnn(depth, width), "data": images(rng.choice([8, 16]))}


@kind("vanishing")
def default_plain_mlp(rng):
    """PyTorch's default in a deep chain of linear layers."""
    depth, width = rng.randint(14, 40), rng.choice([32, 64, 128])
    return {"model": mlp(depth, width, nn.ReLU), "data": vectors()}


@kind("exploding")
def bn_without_skip(rng):
    """sqrt(pi / (pi - 1)) per layer, whatever the initialisation (1902.08129)."""
    depth, width = rng.randint(45, 70), rng.choice([32, 64])
    weights = rng.choice([he, nn.init.xavier_normal_, lambda w: w])
    if rng.random() < 0.5:
        model, data = mlp(depth, width, nn.ReLU, nn.BatchNorm1d), vectors()
    else:
        model, data = cnn(depth, width // 2, norm=nn.BatchNorm2d), images(8)
    return {"model": init(model, weights, None), "data": data}


@kind("exploding")
def skip_without_norm(rng):
    """sqrt(2) per block, forward and backward (2002.10444)."""
    depth, width = rng.randint(30, 60), rng.choice([16, 32])
    return {"model": init(resnet(depth, width, norm=None), he), "data": images(8)}


@kind("exploding")
def overscaled_relu(rng):
    """He times a gain of 1.5 to 3 in each of many layers."""
    depth, width = rng.randint(15, 35), rng.choice([64, 128])
    gain = rng.uniform(1.5, 3.0)
    return {
        "model": init(mlp(depth, width, nn.ReLU), lambda w: scaled(w, 2.0 * gain**2)),
        "data": vectors(),
    }


@kind("vanishing")
def vanishing_rnn(rng):
    """PyTorch's default recurrence has a spectral radius of 0.58, over 100 steps."""
    width = rng.choice([32, 64])
    return {"model": Unrolled(nn.RNNCell(8, width), width), "data": sequences(rng.randint(60, 110))}


@kind("exploding")
def exploding_rnn(rng):
    """A ReLU recurrence of gain 1.2 to 1.6 over 100 steps."""
    width = rng.choice([32, 64])
    cell = nn.RNNCell(8, width, nonlinearity="relu")
    nn.init.orthogonal_(cell.weight_hh, math.sqrt(2) * rng.uniform(1.2, 1.6))
    return {"model": Unrolled(cell, width), "data": sequences(rng.randint(60, 100))}


@kind("exploding")
def chaotic_rnn(rng):
    """A tanh recurrence deep in the chaotic phase."""
    width = rng.choice([64, 128])
    cell = nn.RNNCell(8, width)
    scaled(cell.weight_hh, rng.uniform(6.0, 16.0))
    return {"model": Unrolled(cell, width), "data": sequences(rng.randint(60, 100))}


@kind("dead")
def dead_relu(rng):
    """One or all layers with a bias so negative that nothing passes."""
    depth, width = rng.randint(3, 12), rng.choice([64, 128])
    model = init(mlp(depth, width, nn.ReLU), he)
    linears = [m for m in model if isinstance(m, nn.Linear)][:-1]
    hit = linears if rng.random() < 0.3 else [rng.choice(linears)]
    for linear in hit:
        nn.init.constant_(linear.bias, -rng.uniform(20.0, 100.0))
    return {"model": model, "data": vectors()}


@kind("dead")
def mostly_dead_cnn(rng):
    """Nine in ten channels of a layer never fire."""
    depth, width = rng.randint(3, 8), rng.choice([32, 64])
    model = init(cnn(depth, width), he)
    convs = [m for m in model if isinstance(m, nn.Conv2d)]
    hit = rng.choice(convs)
    with torch.no_grad():
        hit.bias[: int(rng.uniform(0.9, 0.97) * width)] = -100.0
    return {"model": model, "data": images(16)}


@kind("disconnected")
def detached_branch(rng):
    """One of two branches is cut off by detach()."""
    depth, width = rng.randint(1, 6), rng.choice([64, 128])
    trunk, branch = (
        nn.Sequential(*list(init(mlp(depth, width, nn.ReLU), he))[:-1]) for _ in range(2)
    )
    return {"model": Detached(trunk, branch, nn.Linear(width, 10)), "data": vectors()}


@kind("disconnected")
def detached_stem(rng):
    """The first layers run under no_grad by mistake."""

    class Frozen(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.inner(x)

    depth, width = rng.randint(4, 12), rng.choice([64, 128])
    layers = list(init(mlp(depth, width, nn.ReLU), he))
    cut = 2 * rng.randint(1, depth - 2)
    return {
        "model": nn.Sequential(Frozen(nn.Sequential(*layers[:cut])), *layers[cut:]),
        "data": vectors(),
    }


@kind("non-finite")
def nan_layer(rng):
    """One NaN in the weights of one layer."""
    name = rng.choice(["kaiming_mlp", "preact_resnet", "pre_ln_transformer", "kaiming_cnn"])
    member = KINDS[name](rng)
    weights = [p for p in member.model.parameters() if p.dim() > 1]
    with torch.no_grad():
        rng.choice(weights[1:]).view(-1)[0] = math.nan if rng.random() < 0.7 else math.inf
    return {"model": member.model, "data": (member.inputs, member.targets), "note": name}


@kind("vanishing", "exploding", "dead")
def misscaled_layer(rng):
    """One layer of a good plain network is off by a factor of 1,000 or more."""
    depth, width = rng.randint(8, 30), rng.choice([128, 256])
    model = init(mlp(depth, width, nn.ReLU), he)
    linears = [m for m in model if isinstance(m, nn.Linear)]
    factor = log_uniform(rng, 1e3, 1e5) ** rng.choice([-1, 1])
    with torch.no_grad():
        rng.choice(linears[1:-1]).weight.mul_(factor)
    return {"model": model, "data": vectors(), "note": f"x{factor:.0e}"}


@kind("exploding", "non-finite", "dead")
def rate_too_high(rng):
    """Steps larger than the weights themselves."""
    name = rng.choice(["kaiming_mlp", "kaiming_cnn", "preact_resnet", "pre_ln_transformer"])
    member = KINDS[name](rng)
    rate = (
        adam(log_uniform(rng, 1.0, 30.0))
        if rng.random() < 0.5
        else sgd(log_uniform(rng, 100.0, 3000.0))
    )
    return {
        "model": member.model, "data": (member.inputs, member.targets), "steps": 8,
        "optimizer": rate, "note": name,
    }  # fmt: skip


@kind("stalled", finding="updates-too-small")
def rate_too_low(rng):
    """Steps that no run is long enough for."""
    name = rng.choice(["kaiming_mlp", "kaiming_cnn", "preact_resnet", "pre_ln_transformer"])
    member = KINDS[name](rng)
    rate = (
        adam(log_uniform(rng, 1e-11, 1e-9))
        if rng.random() < 0.5
        else sgd(log_uniform(rng, 1e-11, 1e-8))
    )
    return {
        "model": member.model, "data": (member.inputs, member.targets), "steps": 8,
        "optimizer": rate, "note": name,
    }  # fmt: skip


@kind("vanishing")
def sigmoid_cnn(rng):
    """Sigmoids between convolutions, PyTorch's initialisation."""
    return {"model": cnn(rng.randint(8, 16), 16, nn.Sigmoid), "data": images(16)}


@kind("vanishing")
def tiny_weights(rng):
    """Normal weights of 0.01 whatever the width: a factor of about 0.08 per layer."""
    model = init(mlp(rng.randint(5, 20), 128, nn.ReLU), lambda w: nn.init.normal_(w, 0.0, 0.01))
    return {"model": model, "data": vectors()}


@kind("exploding")
def huge_weights(rng):
    """Standard normal weights: a factor of 8 per layer."""
    model = init(mlp(rng.randint(5, 20), 128, nn.ReLU), nn.init.normal_)
    return {"model": model, "data": vectors()}


@kind("exploding")
def skip_mlp_without_norm(rng):
    """Residual blocks of linear layers, He-initialised, no norm: sqrt(2) per block."""
    width = rng.choice([32, 64])
    blocks = (
        Residual(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))
        for _ in range(rng.randint(30, 60))
    )
    model = nn.Sequential(nn.Linear(32, width), *blocks, nn.Linear(width, 10))
    return {"model": init(model, he), "data": vectors()}


@kind("vanishing")
def fused_vanilla_rnn(rng):
    """nn.RNN as PyTorch initialises it, over 100 steps of embedded text."""
    core = nn.RNN(32, rng.choice([32, 64]), batch_first=True)
    (text,), _ = tokens(rng.randint(60, 100))
    return {"model": Reader(core, last=True), "data": ((text,), torch.randint(10, (len(text),)))}


@kind("vanishing")
def linear_loop_vanishing(rng):
    """Two linear layers in a loop, orthogonal recurrence of 0.5 to 0.8."""
    model = LinearLoop(rng.choice([32, 64]), torch.tanh)
    nn.init.orthogonal_(model.recur.weight, rng.uniform(0.5, 0.8))
    return {"model": model, "data": sequences(rng.randint(60, 100))}


@kind("exploding")
def linear_loop_exploding(rng):
    """Two linear layers in a loop, ReLU and an orthogonal recurrence of 1.8 to 2.4."""
    model = LinearLoop(rng.choice([32, 64]), torch.relu)
    nn.init.orthogonal_(model.recur.weight, rng.uniform(1.8, 2.4))
    return {"model": model, "data": sequences(rng.randint(60, 100))}


@kind("dead")
def dead_functional(rng):
    """A dead layer whose activation no hook sees."""
    model = Functional(rng.randint(3, 12), 128)
    nn.init.constant_(rng.choice(list(model.layers)).bias, -100.0)
    return {"model": model, "data": vectors()}


@kind("disconnected")
def detached_body(rng):
    """Nothing but the head learns."""
    return {"model": Cut(init(mlp(rng.randint(1, 6), 64, nn.ReLU), he)), "data": vectors()}


@kind("non-finite")
def root_of_zero(rng):
    """Finite forward, infinite derivative."""
    return {"model": RootOfZero(init(mlp(rng.randint(1, 6), 64, nn.ReLU), he)), "data": vectors()}


@kind("vanishing", "exploding", "dead")
def misscaled_in_resnet(rng):
    """One convolution before a norm is off by 30 to 1,000: its step size by the square of it."""
    model = resnet(rng.randint(5, 14), 16, pre=False)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    factor = log_uniform(rng, 30.0, 1e3) ** rng.choice([-1, 1])
    with torch.no_grad():
        rng.choice(convolutions[2:-2]).weight.mul_(factor)
    return {"model": model, "data": images(16), "note": f"x{factor:.0e}"}


@kind("vanishing", "exploding", "dead")
def misscaled_in_transformer(rng):
    """One feed-forward layer is off by 30 to 1,000."""
    model = transformer(rng.randint(4, 8), 64, pre=True)
    linears = [m for n, m in model.named_modules() if n.endswith(("linear1", "linear2"))]
    factor = log_uniform(rng, 30.0, 1e3)
    with torch.no_grad():
        rng.choice(linears).weight.mul_(factor)
    return {"model": model, "data": tokens(16), "note": f"x{factor:.0e}"}


def standard() -> Iterator[tuple[str, int]]:
    """The fixed selection: two members of each kind."""
    for name in KINDS:
        for seed in range(2):
            yield name, seed
