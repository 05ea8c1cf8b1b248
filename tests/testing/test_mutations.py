"""Twenty changes to each of six networks are noticed, and no unchanged run is taken for one.

What is changed is known, since it is changed here: that is the oracle.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torchvision
from networks import Recurrent, TokenModel, UNet, cnn, he, init, mlp, transformer
from torch import nn

from gradscope.recording import kernels
from gradscope.testing.comparison import compare
from gradscope.testing.measure import measure
from gradscope.testing.profile import Profile, load

Change = Callable[[nn.Module], object]
"""Changes a network that was just built, or returns another in its place."""

CLASSES = 10


@dataclass(frozen=True)
class Subject:
    """A network, what it is called with, and the changes that fit it."""

    build: Callable[..., nn.Module]
    inputs: Callable[[], torch.Tensor]
    changes: dict[str, Change]

    def measure(self, change: Change | None = None, *, shaken: bool = False) -> Profile:
        """Its profile, with one change."""

        def changed() -> nn.Module:
            model = self.build()
            other = change(model) if change is not None else None
            return other if isinstance(other, nn.Module) else model

        return measure(changed, self.inputs, shaken=shaken)


def at(model: nn.Module, kind: type[nn.Module], index: int = 0) -> nn.Module:
    """The module of a kind at one place."""
    return [module for module in model.modules() if isinstance(module, kind)][index]


def swap(kind: type[nn.Module], make: Callable[[nn.Module], nn.Module], only: int | None = None):
    """Put others in place of all modules of a kind, or of one of them."""

    def change(model: nn.Module) -> None:
        names = [name for name, module in model.named_modules() if isinstance(module, kind)]
        for name in names if only is None else [names[only]]:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, make(model.get_submodule(name)))

    return change


def scale(kind: type[nn.Module], by: float, index: int = 0) -> Change:
    """Multiply the first parameter of one layer."""

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            next(at(model, kind, index).parameters()).mul_(by)

    return change


def freeze(kind: type[nn.Module], index: int = 0) -> Change:
    """Freeze one layer."""

    def change(model: nn.Module) -> None:
        at(model, kind, index).requires_grad_(requires_grad=False)

    return change


def on_output(kind: type[nn.Module], what: Callable[[torch.Tensor], torch.Tensor], index: int = 0):
    """Do something to the output of one layer, the first one of several."""

    def hook(_module, _args, output):
        return (what(output[0]), *output[1:]) if isinstance(output, tuple) else what(output)

    def change(model: nn.Module) -> None:
        at(model, kind, index).register_forward_hook(hook)

    return change


def gradient_times(by: float, output: torch.Tensor) -> torch.Tensor:
    """The same forward, another backward."""
    return output * by + (output * (1 - by)).detach()


def redraw(draw: Callable[[torch.Tensor], object], only: int | None = None) -> Change:
    """Initialise all matrices, or one, otherwise."""

    def change(model: nn.Module) -> None:
        weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        for weight in weights if only is None else [weights[only]]:
            draw(weight)

    return change


def without_bias(kind: type[nn.Module], index: int = 0) -> Change:
    """Take the bias of one layer away."""
    return lambda model: at(model, kind, index).register_parameter("bias", None)


def fill(name: str, value: float, kind: type[nn.Module], index: int = 0) -> Change:
    """Start one parameter elsewhere."""

    def change(model: nn.Module) -> None:
        nn.init.constant_(getattr(at(model, kind, index), name), value)

    return change


def put(name: str, value: object, kind: type[nn.Module], index: int = 0) -> Change:
    """Give one module another attribute."""
    return lambda model: setattr(at(model, kind, index), name, value)


def tie(kind: type[nn.Module], first: int, second: int) -> Change:
    """Let two layers share their weight."""

    def change(model: nn.Module) -> None:
        at(model, kind, second).weight = at(model, kind, first).weight

    return change


def wider(linear: nn.Linear) -> nn.Linear:
    """A head for twice as many classes."""
    return nn.Linear(linear.in_features, 2 * linear.out_features)


def deeper(linear: nn.Linear) -> nn.Sequential:
    """A head with a hidden layer."""
    n = linear.in_features
    return nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, linear.out_features))


def reverse_pairs(*kinds: type[nn.Module]) -> Change:
    """Swap neighbours of two kinds in every sequence."""

    def change(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Sequential):
                for i, (one, two) in enumerate(itertools.pairwise(list(module))):
                    if isinstance(one, kinds[0]) and isinstance(two, kinds[1]):
                        module[i], module[i + 1] = two, one

    return change


def everywhere(kind: type[nn.Module], last: type[nn.Module]) -> dict[str, Change]:
    """The changes that fit every network, to a layer in its midst and to its head."""
    middle = 0 if kind is nn.LSTM else 1
    return {
        "layer x 1.5": scale(kind, 1.5, middle),
        "layer x 1.01": scale(kind, 1.01, middle),
        "frozen layer": freeze(kind, middle),
        "frozen head": freeze(last, -1),
        "dropout": on_output(kind, nn.Dropout(0.1), middle),
        "detach": on_output(kind, torch.Tensor.detach, middle),
        "gradient x 2": on_output(kind, partial(gradient_times, 2.0), middle),
        "gradient x 1.01": on_output(kind, partial(gradient_times, 1.01), middle),
        "output x 0.9": on_output(last, lambda output: 0.9 * output, -1),
        "xavier everywhere": redraw(nn.init.xavier_uniform_),
        "one layer orthogonal": redraw(nn.init.orthogonal_, 1),
        "bias removed": without_bias(last, -1),
    }


ACTIVATION: dict[str, Change] = {
    "ReLU -> GELU": swap(nn.ReLU, lambda _: nn.GELU()),
    "ReLU -> LeakyReLU, one": swap(nn.ReLU, lambda _: nn.LeakyReLU(0.01), 1),
}


def images(size: int, batch: int) -> Callable[[], torch.Tensor]:
    """Normal images, drawn anew for each seed."""
    return lambda: torch.randn(batch, 3, size, size)


BasicBlock = torchvision.models.resnet.BasicBlock


def cut_skip(block: BasicBlock) -> None:
    """Leave the identity of a ResNet block out."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        return block.relu(block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x))))))

    block.forward = forward


def cut_skips(model: nn.Module, only: int | None = None) -> None:
    """Leave the identities of all blocks out that have nothing else there, or of one."""
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock) and m.downsample is None]
    for block in blocks if only is None else [blocks[only]]:
        cut_skip(block)


def resnet18() -> Subject:
    """torchvision's, at small input."""
    changes = everywhere(nn.Conv2d, nn.Linear) | ACTIVATION | {
        "identity skips removed": cut_skips,
        "one skip removed": partial(cut_skips, only=2),
        "norm removed": swap(nn.BatchNorm2d, lambda _: nn.Identity(), 2),
        "norm eps": swap(nn.BatchNorm2d, lambda n: nn.BatchNorm2d(n.num_features, eps=0.01), 2),
        "head doubled": swap(nn.Linear, wider, -1),
        "pooling": swap(nn.MaxPool2d, lambda _: nn.AvgPool2d(3, 2, 1)),
        "stride": put("stride", (1, 1), nn.Conv2d),
        "depth": lambda _: torchvision.models.resnet.ResNet(BasicBlock, [2, 2, 3, 2], CLASSES),
    }  # fmt: skip
    return Subject(
        partial(torchvision.models.resnet18, num_classes=CLASSES), images(32, 4), changes
    )


def convolutions() -> Subject:
    """A small chain, eight channels wide, with batch norm."""
    build = partial(cnn, norm=nn.BatchNorm2d, pool_every=2)
    changes = everywhere(nn.Conv2d, nn.Linear) | ACTIVATION | {
        "width": lambda _: build(6, 16),
        "depth": lambda _: build(7, 8),
        "norm removed": swap(nn.BatchNorm2d, lambda _: nn.Identity()),
        "one norm removed": swap(nn.BatchNorm2d, lambda _: nn.Identity(), 2),
        "norm of groups": swap(nn.BatchNorm2d, lambda n: nn.GroupNorm(2, n.num_features)),
        "norm after activation": reverse_pairs(nn.BatchNorm2d, nn.ReLU),
        "pooling": swap(nn.MaxPool2d, lambda _: nn.AvgPool2d(2)),
        "kernel": swap(nn.Conv2d, lambda c: nn.Conv2d(c.in_channels, c.out_channels, 1), 1),
        "weights tied": tie(nn.Conv2d, 1, 2),
        "width doubled, one layer x 2": lambda _: doubled(build(6, 16)),
    }  # fmt: skip
    return Subject(partial(build, 6, 8), images(16, 8), changes)


def doubled(model: nn.Module) -> nn.Module:
    """The same with one layer times two."""
    scale(nn.Conv2d, 2.0, 2)(model)
    return model


def perceptron() -> Subject:
    """Twelve layers at He initialisation, without norm."""

    def build(depth: int = 12, width: int = 32, norm=None) -> nn.Sequential:
        return init(mlp(depth, width, nn.ReLU, norm), he)

    changes = everywhere(nn.Linear, nn.Linear) | ACTIVATION | {
        "width": lambda _: build(width=48),
        "depth": lambda _: build(depth=13),
        "norm added": lambda _: build(norm=nn.LayerNorm),
        "one layer left out": swap(nn.Linear, lambda _: nn.Identity(), 4),
        "tanh": swap(nn.ReLU, lambda _: nn.Tanh(), 3),
        "weights tied": tie(nn.Linear, 2, 3),
        "bias of 0.1": fill("bias", 0.1, nn.Linear, 2),
        "order of layers and activations": reverse_pairs(nn.ReLU, nn.Linear),
    }  # fmt: skip
    return Subject(build, lambda: torch.randn(16, 32), changes)


def attention() -> Subject:
    """Three encoder layers over tokens."""

    def build(depth: int = 3, width: int = 32, *, pre: bool = True) -> TokenModel:
        return transformer(depth, width, pre=pre)

    layer = nn.TransformerEncoderLayer
    changes = everywhere(nn.Linear, nn.Linear) | {
        "width": lambda _: build(width=48),
        "depth": lambda _: build(depth=4),
        "norm after the sum": lambda _: build(pre=False),
        "relu": put("activation", nn.functional.relu, layer, 1),
        "norm removed": swap(nn.LayerNorm, lambda _: nn.Identity(), 1),
        "embedding tied to head": lambda m: setattr(m.head, "weight", m.embedding.weight),
        "head with a hidden layer": swap(nn.Linear, deeper, -1),
        "attention dropout": put("dropout", 0.1, nn.MultiheadAttention),
    }
    return Subject(build, lambda: torch.randint(50, (8, 32)), changes)


def recurrent() -> Subject:
    """Two fused LSTM layers."""

    def build(width: int = 32, layers: int = 2, core: type[nn.RNNBase] = nn.LSTM) -> nn.Module:
        return Recurrent(core(8, width, layers, batch_first=True), width)

    changes = everywhere(nn.LSTM, nn.Linear) | {
        "width": lambda _: build(48),
        "depth": lambda _: build(layers=3),
        "GRU": lambda _: build(core=nn.GRU),
        "bias of one": fill("bias_ih_l0", 1.0, nn.LSTM),
        "dropout between layers": put("dropout", 0.1, nn.LSTM),
        "recurrence off": fill("weight_hh_l1", 0.0, nn.LSTM),
        "weights tied": lambda m: setattr(m.core, "weight_hh_l1", m.core.weight_hh_l0),
        "head with a hidden layer": swap(nn.Linear, deeper, -1),
        "head doubled": swap(nn.Linear, wider, -1),
    }
    return Subject(build, lambda: torch.randn(8, 20, 8), changes)


def forget(_module: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
    """Zero the half of the channels that a long skip brings."""
    up, skip = args[0].chunk(2, dim=1)
    return torch.cat([up, torch.zeros_like(skip)], dim=1)


def unet() -> Subject:
    """An encoder and a decoder with long skips."""

    def cut(model: UNet) -> None:
        for merge in model.merge:
            merge[0].register_forward_pre_hook(forget)

    changes = everywhere(nn.Conv2d, nn.Conv2d) | ACTIVATION | {
        "width": lambda _: UNet(2, 12),
        "depth": lambda _: UNet(3, 8),
        "long skips removed": cut,
        "norm removed": swap(nn.BatchNorm2d, lambda _: nn.Identity()),
        "norm of instances": swap(nn.BatchNorm2d, lambda n: nn.InstanceNorm2d(n.num_features)),
        "pooling": swap(nn.MaxPool2d, lambda _: nn.AvgPool2d(2)),
        "norm after activation": reverse_pairs(nn.BatchNorm2d, nn.ReLU),
    }  # fmt: skip
    return Subject(partial(UNet, 2, 8), images(16, 4), changes)


SUBJECTS = {f.__name__: f for f in (convolutions, perceptron, resnet18, attention, recurrent, unet)}
FAST = ("convolutions", "perceptron")
NAMES = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in SUBJECTS]


@pytest.fixture
def stored(tmp_path) -> Callable[[Subject], Profile]:
    """The profile of an unchanged network, as it comes back from its file."""

    def keep(subject: Subject) -> Profile:
        subject.measure().save(tmp_path / "stored.json")
        return load(tmp_path / "stored.json")

    return keep


@contextmanager
def elsewhere(threads: int, *, compiled: bool, onednn: bool) -> Iterator[None]:
    """Another number of threads, other code for the recording, other code for the network."""
    before = torch.get_num_threads(), kernels.compiled
    torch.set_num_threads(threads)
    kernels.compiled = before[1] if compiled else None
    torch._C._set_mkldnn_enabled(onednn)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        kernels.compiled = before[1]
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize("name", NAMES)
def test_changes_are_noticed(stored, name):
    """At least nineteen of twenty changes of each network."""
    subject = SUBJECTS[name]()
    before = stored(subject)
    missed = []
    for what, change in subject.changes.items():
        again = partial(subject.measure, change, shaken=True)
        if not compare(before, subject.measure(change), again):
            missed.append(what)
    assert len(subject.changes) >= 20
    assert len(missed) <= 0.05 * len(subject.changes), missed


@pytest.mark.parametrize(
    ("name", "repeats"),
    [
        ("convolutions", 1),
        *(pytest.param(n, 1 if n == "resnet18" else 3, marks=pytest.mark.slow) for n in SUBJECTS),
    ],
)
def test_unchanged_runs_pass(stored, name, repeats):
    """None of 204 runs in all is taken for a change: threads, kernels, oneDNN, repeated."""
    subject = SUBJECTS[name]()
    before = stored(subject)
    ways = itertools.product((1, 2, 3), (True, False), (True, False))
    for threads, compiled, onednn in list(ways) * repeats:
        with elsewhere(threads, compiled=compiled, onednn=onednn):
            now = subject.measure()
            assert not compare(before, now, partial(subject.measure, shaken=True))
