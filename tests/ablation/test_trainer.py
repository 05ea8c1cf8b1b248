"""train_cell against a plain loop written here, and its promises: same bits, no leak, no crash."""

import itertools
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models.inception import InceptionOutputs

from gradscope.ablation import handle, trainer
from gradscope.ablation.grid import Cell
from gradscope.ablation.settings import CellConfig, RecordConfig, TrainConfig
from gradscope.ablation.trainer import CHECK_EVERY, logits_of, make_optimizer
from gradscope.ablation.training import train_cell
from gradscope.data import DataConfig, ImageDataset, Splits
from gradscope.errors import DataError, ModelError
from gradscope.models import ModelConfig, build

CLASSES = ("circle", "square", "star")

NETS = """
import torch
from torch import nn
from types import SimpleNamespace

class Cnn(nn.Module):
    def __init__(self, n_classes, dropout=0.0, returns="tensor", scale=1.0):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(4, n_classes)
        self.returns, self.scale = returns, scale
    def forward(self, x):
        logits = self.fc(self.dropout(self.bn(self.conv(x)).relu().mean((2, 3)))) * self.scale
        return {
            "tensor": logits, "dict": {"logits": logits}, "object": SimpleNamespace(logits=logits),
            "wrong": {"scores": logits}, "none": None,
        }[self.returns]

def frozen():
    return nn.Flatten()

def fixed_width():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 7))
"""


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """Small networks in a module of the current folder; one thread, to be kind and repeatable."""
    (tmp_path / "trainer_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("trainer_nets", None)


def make_splits(train=24, val=10, size=8, *, seed=0):
    """Random images whose class shows in their brightness, so that it can be learned."""
    generator = torch.Generator().manual_seed(seed)

    def dataset(n):
        labels = torch.arange(n) % len(CLASSES)
        noise = torch.randint(0, 60, (n, 3, size, size), generator=generator)
        return ImageDataset((noise + 90 * labels[:, None, None, None]).to(torch.uint8), labels)

    return Splits(dataset(train), dataset(val), CLASSES, "random images", "0")


def make_cell(model="trainer_nets:Cnn", args=None, *, seed=0, every=1, init="default", **train):
    """A cell of one small network."""
    config = CellConfig(
        model=ModelConfig(name=model, args=args or {}, init=init),
        data=DataConfig(),
        train=TrainConfig(**{"batch_size": 6, "lr": 0.01, **train}),
        record=RecordConfig(every=every),
        seed=seed,
    )
    return Cell("a-cell", {"lr": config.train.lr}, config)


@pytest.fixture
def built(monkeypatch):
    """Every model that train_cell builds, in order."""
    models = []

    def keep(*args):
        models.append(build(*args))
        return models[-1]

    monkeypatch.setattr(trainer, "build", keep)
    return models


def reference_adam(cell, splits):
    """The same training as a plain loop, with Adam written out (1412.6980), in float64.

    The order of the images and the initial weights are drawn as train_cell documents it: from
    generators seeded with the seed of the cell.
    """
    config = cell.config.train
    model = build(cell.config.model, 3, cell.config.seed).double()
    order = torch.Generator().manual_seed(cell.config.seed)
    first = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    second = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    losses = []
    for _ in range(config.epochs):
        for batch in torch.randperm(len(splits.train), generator=order).split(config.batch_size):
            pixels = splits.train.images[batch].double() / 255 * 2 - 1
            loss = functional.nll_loss(model(pixels).log_softmax(1), splits.train.labels[batch])
            model.zero_grad()
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    one, two = config.betas
                    first[name] = one * first[name] + (1 - one) * weight.grad
                    second[name] = two * second[name] + (1 - two) * weight.grad**2
                    mean = first[name] / (1 - one ** len(losses))
                    deviation = (second[name] / (1 - two ** len(losses))).sqrt()
                    weight.sub_(config.lr * mean / (deviation + 1e-8))
    return model, losses


@pytest.mark.parametrize("channels_last", [True, False])
def test_agrees_with_a_plain_loop(built, channels_last):
    """Losses, weights and validation accuracy are those of a plain float64 loop with Adam."""
    cell = make_cell(epochs=3, channels_last=channels_last, seed=3)
    splits = make_splits()
    result, _ = train_cell(cell, splits)
    model, losses = reference_adam(cell, splits)
    assert result.history.step_loss == pytest.approx(losses, rel=1e-4)
    for name, value in model.named_parameters():
        if name == "conv.bias":  # batch norm cancels it: its gradient is rounding, Adam follows it
            continue
        trained = dict(built[0].named_parameters())[name].double()
        torch.testing.assert_close(trained, value, atol=1e-4, rtol=1e-3)
    model.eval()
    guess = model(splits.val.images.double() / 255 * 2 - 1).argmax(1)
    expected = [[0] * 3 for _ in CLASSES]
    for true, predicted in zip(splits.val.labels.tolist(), guess.tolist(), strict=True):
        expected[true][predicted] += 1
    last = result.history.epochs[-1]
    assert [list(row) for row in last.confusion] == expected
    right = (guess == splits.val.labels).sum().item()
    assert last.val_accuracy == pytest.approx(right / len(splits.val))


def test_history_is_consistent():
    """Counts and means of the history follow from each other."""
    result, trace = train_cell(make_cell(epochs=3), make_splits(train=23, val=11))
    history = result.history
    assert result.status == "done"
    assert len(history.step_loss) == 3 * 4  # 6 + 6 + 6 + 5 images
    assert [e.epoch for e in history.epochs] == [1, 2, 3]
    assert [e.step for e in history.epochs] == [4, 8, 12]
    for i, epoch in enumerate(history.epochs):
        steps = history.step_loss[4 * i : 4 * i + 4]
        assert epoch.train_loss == pytest.approx(sum(steps) / 4)
        assert sum(map(sum, epoch.confusion)) == 11
        assert epoch.train_accuracy * 23 == pytest.approx(round(epoch.train_accuracy * 23))
        assert 0 < epoch.duration_s < result.duration_s
    assert result.classes == CLASSES
    assert result.images_per_s > 0
    assert result.n_parameters == (3 * 4 * 9 + 4) + 2 * 4 + (4 * 3 + 3)
    assert [s.step for s in trace.steps] == list(range(12))
    assert [s.epoch for s in trace.steps] == [1] * 4 + [2] * 4 + [3] * 4


def test_learns():
    """Brightness is learned: the accuracies end far above chance, on training images too."""
    result, _ = train_cell(make_cell(epochs=25, lr=0.03), make_splits(train=60, val=30))
    last = result.history.epochs[-1]
    assert last.val_accuracy > 0.9
    assert last.train_accuracy > 0.9
    assert last.train_loss < result.history.epochs[0].train_loss / 2
    assert last.val_loss < math.log(3) / 2


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["trainer_nets:Cnn", "torchvision.models:shufflenet_v2_x0_5"])
def test_recorder_changes_no_bit(built, monkeypatch, optimizer, precision, model):
    """Losses and weights are bit-identical with and without the recorder, dropout included."""
    args = {"dropout": 0.5} if "Cnn" in model else {}
    cell = make_cell(model, args, optimizer=optimizer, precision=precision, epochs=2)
    splits = make_splits(size=32)
    watched, trace = train_cell(cell, splits)
    assert len(trace) > 0
    closed = handle.watch(nn.Linear(1, 1))
    closed.close()
    monkeypatch.setattr(handle, "watch", lambda *_, **__: closed)
    bare, empty = train_cell(cell, splits)
    assert len(empty) == 0
    assert watched.history.step_loss == bare.history.step_loss
    assert same_numbers(*built)
    assert [e.confusion for e in watched.history.epochs] == [
        e.confusion for e in bare.history.epochs
    ]


def same_numbers(one, other):
    """Whether two models hold the same bits, buffers included."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorder_changes_no_bit_of_the_reference_network(built, monkeypatch, precision):
    """The same for the reference network with all its ingredients."""
    cell = make_cell("hw5net", init="kaiming", precision=precision, batch_size=4, every=2)
    splits = make_splits(train=24, size=64)
    watched, _ = train_cell(cell, splits)
    closed = handle.watch(nn.Linear(1, 1))
    closed.close()
    monkeypatch.setattr(handle, "watch", lambda *_, **__: closed)
    bare, _ = train_cell(cell, splits)
    assert watched.history.step_loss == bare.history.step_loss
    assert same_numbers(*built)


def test_equal_cells_give_equal_bits(built):
    """A cell trained twice gives the same bits; another seed gives others; the RNG goes on."""
    splits = make_splits()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, trace = train_cell(make_cell(args={"dropout": 0.5}, epochs=2), splits)
    assert torch.equal(torch.rand(4), expected)
    second, again = train_cell(make_cell(args={"dropout": 0.5}, epochs=2), splits)
    other, _ = train_cell(make_cell(args={"dropout": 0.5}, epochs=2, seed=1), splits)
    assert first.history.step_loss == second.history.step_loss
    assert same_numbers(built[0], built[1])
    assert torch.equal(trace.values.nan_to_num(-1), again.values.nan_to_num(-1))
    assert first.history.step_loss != other.history.step_loss


@pytest.mark.parametrize("epochs", [1, 40])
def test_divergence_is_a_result(epochs):
    """A run whose loss overflows ends early as `diverged`, with its losses and its trace."""
    cell = make_cell(args={"scale": 1e30}, optimizer="sgd", lr=1e30, epochs=epochs)
    result, trace = train_cell(cell, make_splits())
    losses = result.history.step_loss
    bad = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
    assert result.status == "diverged"
    assert bad
    assert f"at step {bad[0]}, epoch {bad[0] // 4 + 1}" in result.error
    assert "\n" not in result.error
    assert len(losses) <= bad[0] + CHECK_EVERY
    assert len(losses) <= epochs * 4
    assert len(trace.steps) == len(losses)
    assert len(result.history.epochs) == bad[0] // 4  # whole epochs before it are kept


def test_divergence_in_the_last_step_is_seen_in_validation():
    """Weights that overflow in the very last step give no training loss, but a validation loss."""
    cell = make_cell(args={"scale": 1e30}, optimizer="sgd", lr=1e30)
    result, _ = train_cell(cell, make_splits(train=6))
    assert math.isfinite(result.history.step_loss[0])
    assert result.status == "diverged"
    assert "validation loss became" in result.error


def test_clipping_bounds_the_gradient():
    """With clip_norm, the recorded gradients have that norm at most, and had more before."""
    _, trace = train_cell(make_cell(clip_norm=1e-3, epochs=1), make_splits())
    total = trace.series("weight", "norm")[1].square().nansum(1).sqrt()
    before = trace.series("weight", "unclipped_norm")[1].square().nansum(1).sqrt()
    assert total.max().item() <= 1e-3 * 1.001
    assert before.min().item() > 1e-3


def test_clipping_bounds_the_step():
    """Plain SGD on a clipped gradient moves the weights by lr x clip_norm at most."""
    cell = make_cell(clip_norm=1e-3, optimizer="sgd", momentum=0, lr=0.5, epochs=1)
    _, trace = train_cell(cell, make_splits(train=6))
    ratio, norm = (trace.series("weight", s)[1][0] for s in ("update_ratio", "weight_norm"))
    moved = (ratio * norm).nan_to_num().square().sum().sqrt().item()
    assert moved == pytest.approx(0.5 * 1e-3, rel=0.02)


@pytest.mark.parametrize("returns", ["tensor", "dict", "object"])
def test_logits_in_any_wrapping(returns):
    """A tensor, a dict with logits and an object with .logits train alike."""
    plain, _ = train_cell(make_cell(), make_splits())
    wrapped, _ = train_cell(make_cell(args={"returns": returns}), make_splits())
    assert wrapped.history.step_loss == plain.history.step_loss


def test_torchvision_auxiliary_output():
    """The named tuple that torchvision returns in training gives its logits."""
    outputs = InceptionOutputs(torch.zeros(2, 3), torch.ones(2, 3))
    assert logits_of(outputs, (2, 3)) is outputs.logits


@pytest.mark.parametrize(
    ("model", "args", "says"),
    [
        ("trainer_nets:Cnn", {"returns": "wrong"}, "returns a dict with scores; valid: a tensor"),
        ("trainer_nets:Cnn", {"returns": "none"}, "returns a NoneType"),
        ("trainer_nets:fixed_width", {}, r"\(6, 7\) for 6 images of 3 classes; valid: \(6, 3\)"),
        ("trainer_nets:frozen", {}, "Flatten has no trainable parameter"),
    ],
)
def test_models_that_do_not_fit(model, args, says):
    """A model that cannot be trained on these classes is told what is missing."""
    with pytest.raises(ModelError, match=says):
        train_cell(make_cell(model, args), make_splits())


def test_no_training_images():
    """An empty training split is an error before any work."""
    with pytest.raises(DataError, match="no training images"):
        train_cell(make_cell(), make_splits(train=0))


def test_no_validation_images():
    """Without validation images the accuracy is unknown, not zero."""
    result, _ = train_cell(make_cell(), make_splits(val=0))
    assert math.isnan(result.history.epochs[-1].val_accuracy)
    assert math.isnan(result.history.epochs[-1].val_loss)


@pytest.mark.parametrize(("images", "steps"), [(13, 2), (14, 3), (1, 1)])
def test_a_last_batch_of_one_is_dropped(images, steps):
    """Batch norm cannot take one value per channel; a lone image among others is left out."""
    result, _ = train_cell(make_cell(), make_splits(train=images))
    assert len(result.history.step_loss) == steps


def test_progress():
    """The observer hears of steps in order, and not more than the promised twice a second."""
    heard = []
    result, _ = train_cell(make_cell(epochs=4), make_splits(), heard.append)
    assert 1 <= len(heard) <= 1 + 2 * result.duration_s
    assert heard[0].step == 1
    assert heard[0].total_steps == len(result.history.step_loss) == 16
    assert heard[0].loss == pytest.approx(result.history.step_loss[0])
    assert [p.step for p in heard] == sorted(p.step for p in heard)


def test_images_are_not_written_to():
    """Scaling works on a copy: the images may be a read-only memory map."""
    splits = make_splits()
    before = splits.train.images.clone()
    train_cell(make_cell(), splits)
    assert torch.equal(splits.train.images, before)


def test_interruption_leaves_nothing_behind(monkeypatch):
    """Ctrl-C in the middle passes through and the next cell trains as if nothing had been."""
    expected, _ = train_cell(make_cell(), make_splits())

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cell(make_cell(), make_splits(), interrupt)
    again, _ = train_cell(make_cell(), make_splits())
    assert again.history.step_loss == expected.history.step_loss
    assert not nn.modules.module._global_forward_hooks


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_are_fused_and_set_up(name):
    """The optimizer has the settings of the grid, is fused, and skips frozen parameters."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    config = TrainConfig(optimizer=name, lr=0.2, momentum=0.4, betas=(0.5, 0.6), weight_decay=0.1)
    optimizer = make_optimizer(model, config)
    group = optimizer.param_groups[0]
    assert type(optimizer).__name__.lower() == name
    assert group["fused"]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.2, 0.1, 3)
    assert group["momentum"] == 0.4 if name == "sgd" else group["betas"] == (0.5, 0.6)


def test_validation_is_not_recorded():
    """Each step's rows are those of its training batch, also right after a validation pass."""
    _, trace = train_cell(make_cell(epochs=3), make_splits())
    for kind in ("activation", "activation_grad"):
        tensors, norms = trace.series(kind, "norm")
        assert {t.module for t in tensors} >= {"conv", "bn", "fc"}
        assert torch.isfinite(norms).all()
    assert {t.shape[0] for t in trace.tensors if t.kind == "activation"} == {6}  # not 10


def test_the_fit_is_judged_in_evaluation_mode_on_a_fixed_part():
    """Every training image judged by the untouched weights: what evaluation of the same part gives.

    With as many validation as training images the fixed part is all of them; when validation holds
    the very training images, both columns must agree to the last bit, whatever dropout does.
    """
    splits = make_splits(train=12, val=12)
    same = Splits(splits.train, splits.train, CLASSES, "random images", "0")
    result, _ = train_cell(make_cell(args={"dropout": 0.5}, epochs=2, batch_size=4), same)
    for epoch in result.history.epochs:
        assert epoch.fit_loss == epoch.val_loss
        assert epoch.fit_accuracy == epoch.val_accuracy


def test_the_fixed_part_is_spread_over_all_training_images():
    """Indices are distinct, ordered, and leave no gap wider than their usual distance plus one."""
    for images, wanted in ((10, 3), (7203, 2413), (5, 9), (4, 0)):
        chosen = trainer._evenly(images, wanted).tolist()
        assert len(set(chosen)) == len(chosen) == min(images, wanted)
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert all(g <= images // wanted + 1 for g in gaps)
        assert not chosen or (chosen[0] == 0 and chosen[-1] < images)
