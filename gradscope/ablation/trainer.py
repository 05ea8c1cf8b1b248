"""train(): the built-in loop, a training function for classifiers of images."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer

from gradscope.ablation.settings import EPOCH_METRICS, TrainConfig
from gradscope.data import ImageDataset
from gradscope.errors import ConfigError, DataError, ModelError
from gradscope.models import build
from gradscope.recording.scope import Scope
from gradscope.study.results import Epoch

if TYPE_CHECKING:
    from gradscope.ablation.handle import Run

CHECK_EVERY = 16
"""Steps between two looks at the losses: how late a divergence is noticed, and how rarely a GPU
has to wait for it."""


def train(run: Run) -> None:
    """Train the classifier that the grid's ``model``, ``data`` and ``train`` describe.

    Args:
        run: the cell.

    Raises:
        ModelError: the model cannot be built, or gives no logits for these classes.
        DataError: there are no training images.
    """
    if run.config.model is None:
        raise ConfigError("the built-in loop needs a model; add the key 'model'")
    splits = run.splits
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run.measured.classes = splits.classes
    model = build(run.config.model, len(splits.classes), run.seed)
    training = _Training(model.to(device), device, run)
    run.measured.diverged = training.run(run.watch(model, training.optimizer))


class _Training:
    """One training run: the model, its optimizer, and what was measured so far."""

    def __init__(self, model: nn.Module, device: torch.device, run: Run) -> None:
        splits, config = run.splits, run.config.train
        if not len(splits.train):
            raise DataError(f"{splits.source}: no training images; choose other classes or limits")
        self._run, self._measured = run, run.measured
        self._device = device
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        self._model = model.to(memory_format=self._format)
        self.optimizer = make_optimizer(model, config)
        self._splits = splits
        self._fit = _evenly(len(splits.train), len(splits.val))
        self._config = config
        self._order = torch.Generator().manual_seed(run.seed)
        per_epoch = len(_batches(torch.arange(len(splits.train)), config.batch_size))
        run.steps = config.epochs * per_epoch
        self._losses = torch.full((run.steps,), math.nan, device=self._device)
        self._step = 0
        self._images = 0
        self._train_s = 0.0

    def run(self, scope: Scope) -> str:
        """Train all epochs, or until the loss becomes non-finite; then why, in one line."""
        for epoch in range(1, self._config.epochs + 1):
            scope.epoch = epoch
            started = time.perf_counter()
            step, images = self._step, self._images
            hits = self._train_epoch(epoch)
            losses = self._losses[step : self._step].double()
            self._measured.step_loss += losses.tolist()
            if not losses.isfinite().all():
                at = int((~losses.isfinite()).nonzero()[0])
                return f"loss became {float(losses[at])} at step {step + at}, epoch {epoch}"
            if self._run.doom:
                return ""
            val_loss, confusion = self._evaluate(self._splits.val)
            fit_loss, fitted = self._evaluate(self._splits.train, self._fit)
            self._note(
                Epoch(
                    epoch=epoch,
                    step=self._step,
                    train_loss=float(losses.mean()),
                    train_accuracy=hits / (self._images - images),
                    val_loss=val_loss,
                    val_accuracy=_accuracy(confusion),
                    confusion=tuple(tuple(row) for row in confusion.tolist()),
                    duration_s=time.perf_counter() - started,
                    fit_loss=fit_loss,
                    fit_accuracy=_accuracy(fitted),
                )
            )
        last = self._measured.epochs[-1]
        if len(self._splits.val) and not math.isfinite(last.val_loss):  # by the very last steps
            return f"validation loss became {last.val_loss} after epoch {last.epoch}"
        return ""

    def _note(self, epoch: Epoch) -> None:
        self._measured.epochs.append(epoch)
        for name in EPOCH_METRICS:
            value = getattr(epoch, name)
            if not math.isnan(value):
                self._measured.logged.setdefault(name, []).append((epoch.step - 1, value))

    def _train_epoch(self, epoch: int) -> int:
        """One pass over the training images, or up to a bad loss; how many were judged right."""
        self._model.train()
        train_s, started = self._train_s, time.perf_counter()
        hits = torch.zeros((), dtype=torch.long, device=self._device)
        order = torch.randperm(len(self._splits.train), generator=self._order)
        for indices in _batches(order, self._config.batch_size):
            hits += self._train_step(indices)
            self._timed(train_s + time.perf_counter() - started)
            self._run.tell(self._step, epoch, lambda: float(self._losses[self._step - 1]))
            if self._step % CHECK_EVERY == 0 and not self._losses_finite():
                break
            if self._run.doom:
                break
        right = int(hits)  # waits for the device
        self._timed(train_s + time.perf_counter() - started)
        return right

    def _timed(self, train_s: float) -> None:
        self._train_s = train_s
        self._measured.images_per_s = self._images / train_s if train_s else 0.0

    def _train_step(self, indices: Tensor) -> Tensor:
        images, labels = self._load(self._splits.train, indices)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._logits(images)
        loss = functional.cross_entropy(logits, labels)
        torch.autograd.backward(loss)
        if self._config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        self.optimizer.step()
        self._losses[self._step] = loss.detach()
        self._step += 1
        self._images += len(indices)
        return (logits.detach().argmax(1) == labels).sum()

    @torch.inference_mode()
    def _evaluate(
        self, dataset: ImageDataset, chosen: Tensor | None = None
    ) -> tuple[float, Tensor]:
        """Mean loss over images (all, or those of some indices), and their confusion matrix."""
        self._model.eval()
        n = len(self._splits.classes)
        loss = torch.zeros((), dtype=torch.double, device=self._device)
        counts = torch.zeros(n * n, dtype=torch.long, device=self._device)
        chosen = torch.arange(len(dataset)) if chosen is None else chosen
        for indices in torch.split(chosen, self._config.eval_batch_size):
            pixels, labels = self._load(dataset, indices)
            logits = self._logits(pixels)
            loss += functional.cross_entropy(logits, labels, reduction="sum")
            counts += torch.bincount(labels * n + logits.argmax(1), minlength=n * n)
        mean = float(loss) / len(chosen) if len(chosen) else math.nan
        return mean, counts.view(n, n).cpu()

    def _load(self, dataset: ImageDataset, indices: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device, its pixels scaled to [-1, 1]."""
        images, labels = dataset.batch(indices)
        images = images.to(self._device)
        images = images.to(torch.float32, memory_format=self._format).div_(127.5).sub_(1.0)
        return images, labels.to(self._device)

    def _logits(self, images: Tensor) -> Tensor:
        mixed = self._config.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=mixed):
            output = self._model(images)
        return logits_of(output, (len(images), len(self._splits.classes))).float()

    def _losses_finite(self) -> bool:
        recent = self._losses[max(0, self._step - CHECK_EVERY) : self._step]
        return bool(recent.isfinite().all())


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer of a run over all trainable parameters, fused where the device can.

    Args:
        model: on the device it will be trained on.
        config: which optimizer, with which settings.

    Raises:
        ModelError: nothing in the model can be trained.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError(
            f"{type(model).__name__} has no trainable parameter; nothing can be learned"
        )
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    shared: dict[str, Any] = {
        "lr": config.lr, "weight_decay": config.weight_decay, "fused": fused
    }  # fmt: skip
    if config.optimizer == "sgd":
        return SGD(parameters, momentum=config.momentum, **shared)
    kind = Adam if config.optimizer == "adam" else AdamW
    return kind(parameters, betas=config.betas, **shared)


def logits_of(output: Any, shape: tuple[int, int]) -> Tensor:
    """The logits in what a model returned.

    Args:
        output: a tensor, a mapping with ``logits`` or an object with ``.logits``, as the models of
            transformers and torchvision return.
        shape: (images, classes).

    Raises:
        ModelError: there are no logits in it, or they have another shape.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        has = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise ModelError(
            f"the model returns a {type(output).__name__}{has}; valid: a tensor of logits, a dict "
            "with 'logits', an object with .logits"
        )
    if logits.shape != shape:
        raise ModelError(
            f"the model gives logits of shape {tuple(logits.shape)} for {shape[0]} images of "
            f"{shape[1]} classes; valid: {shape}; let its factory take n_classes, or set the "
            "number of classes among the model's args"
        )
    return logits


def _accuracy(confusion: Tensor) -> float:
    judged = int(confusion.sum())
    return int(confusion.diagonal().sum()) / judged if judged else math.nan


def _evenly(images: int, wanted: int) -> Tensor:
    """Indices of as many images as are wanted, evenly spread over all there are."""
    count = min(images, wanted)
    return torch.arange(count) * images // max(count, 1)


def _batches(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """Indices by the batch; a last batch of one image, too few for batch norm, is dropped."""
    batches = torch.split(order, size)
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 < size else batches
