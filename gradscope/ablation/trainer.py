"""train_cell(): trains the network of one cell, watched by the recorder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer

from gradscope.ablation.grid import Cell, CellConfig, TrainConfig
from gradscope.ablation.machine import denormals_flushed, environment, memory_kept
from gradscope.data import ImageDataset, Splits
from gradscope.errors import DataError, ModelError
from gradscope.models import build
from gradscope.models.init import seeded
from gradscope.recording.scope import Scope, watch
from gradscope.study.results import CellResult, Epoch, History
from gradscope.trace.table import Trace

CHECK_EVERY = 16
"""Steps between two looks at the losses: how late a divergence is noticed, and how rarely a GPU
has to wait for it."""

_OBSERVE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the training of one cell is."""

    step: int
    """Optimizer steps taken so far."""
    total_steps: int
    epoch: int
    """From 1."""
    loss: float
    """Of the last step."""
    images_per_s: float
    """Training images per second so far, evaluation not counted."""


def train_cell(
    cell: Cell, splits: Splits, observe: Callable[[Progress], None] | None = None
) -> tuple[CellResult, Trace]:
    """Train the network of one cell from its seed, and record its gradients.

    Equal cells give bit-identical losses and weights on one CPU with one number of threads.
    The caller's random streams and floating-point mode are left as they were.

    Args:
        cell: what to train, and how.
        splits: images and classes; uint8 pixels are scaled to [-1, 1].
        observe: told about twice a second how far it is.

    Returns:
        The result, ``done`` or, when the loss became non-finite, ``diverged``; and the trace.

    Raises:
        ModelError: the model cannot be built, or gives no logits for these classes.
        DataError: there are no training images.
    """
    started = time.perf_counter()
    config = cell.config
    device = _best_device()
    with seeded(config.seed), denormals_flushed(), memory_kept():
        model = build(config.model, len(splits.classes), config.seed)
        training = _Training(model.to(device), device, splits, config, observe)
        record = config.record
        with watch(
            model, training.optimizer, every=record.every, activations=record.activations
        ) as scope:
            reason = training.run(scope)
    trace = scope.trace()
    result = CellResult(
        id=cell.id,
        factors=dict(cell.factors),
        seed=config.seed,
        status="diverged" if reason else "done",
        config=config.model_dump(mode="json"),
        history=training.history(),
        classes=splits.classes,
        error=reason,
        n_parameters=sum(p.numel() for p in model.parameters()),
        images_per_s=training.images_per_s,
        duration_s=time.perf_counter() - started,
        environment=environment() | {"device": device.type, "git": trace.metadata["git"]},
    )
    return result, trace


def _best_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Before `seeded`, which leaves alone what is not in use.
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch lacks the annotation
    return torch.device("cuda")


class _Training:
    """One training run: the model, its optimizer, and what was measured so far."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        splits: Splits,
        cell: CellConfig,
        observe: Callable[[Progress], None] | None,
    ) -> None:
        if not len(splits.train):
            raise DataError(f"{splits.source}: no training images; choose other classes or limits")
        config = cell.train
        self._device = device
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        self._model = model.to(memory_format=self._format)
        self.optimizer = make_optimizer(model, config)
        self._splits = splits
        self._fit = _evenly(len(splits.train), len(splits.val))
        self._config = config
        self._order = torch.Generator().manual_seed(cell.seed)
        per_epoch = len(_batches(torch.arange(len(splits.train)), config.batch_size))
        self._losses = torch.full((config.epochs * per_epoch,), math.nan, device=self._device)
        self._step = 0
        self._images = 0
        self._train_s = 0.0
        self._epochs: list[Epoch] = []
        self._observe = observe
        self._observed_at = -math.inf

    @property
    def images_per_s(self) -> float:
        """Training images per second, evaluation not counted."""
        return self._images / self._train_s if self._train_s else 0.0

    def history(self) -> History:
        """Losses and accuracies so far."""
        return History(tuple(self._losses[: self._step].tolist()), tuple(self._epochs))

    def run(self, scope: Scope) -> str:
        """Train all epochs, or until the loss becomes non-finite; then why, in one line."""
        for epoch in range(1, self._config.epochs + 1):
            scope.epoch = epoch
            started = time.perf_counter()
            step, images = self._step, self._images
            hits = self._train_epoch(epoch)
            losses = self._losses[step : self._step].double()
            if not losses.isfinite().all():
                at = int((~losses.isfinite()).nonzero()[0])
                return f"loss became {float(losses[at])} at step {step + at}, epoch {epoch}"
            val_loss, confusion = self._evaluate(self._splits.val)
            fit_loss, fitted = self._evaluate(self._splits.train, self._fit)
            self._epochs.append(
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
        last = self._epochs[-1]
        if len(self._splits.val) and not math.isfinite(last.val_loss):  # by the very last steps
            return f"validation loss became {last.val_loss} after epoch {last.epoch}"
        return ""

    def _train_epoch(self, epoch: int) -> int:
        """One pass over the training images, or up to a bad loss; how many were judged right."""
        self._model.train()
        train_s, started = self._train_s, time.perf_counter()
        hits = torch.zeros((), dtype=torch.long, device=self._device)
        order = torch.randperm(len(self._splits.train), generator=self._order)
        for indices in _batches(order, self._config.batch_size):
            hits += self._train_step(indices)
            self._train_s = train_s + time.perf_counter() - started
            self._tell(epoch)
            if self._step % CHECK_EVERY == 0 and not self._losses_finite():
                break
        right = int(hits)  # waits for the device
        self._train_s = train_s + time.perf_counter() - started
        return right

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

    def _tell(self, epoch: int) -> None:
        now = time.monotonic()
        if self._observe is None or now - self._observed_at < _OBSERVE_EVERY_S:
            return
        self._observed_at = now
        loss = float(self._losses[self._step - 1])
        self._observe(Progress(self._step, len(self._losses), epoch, loss, self.images_per_s))


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
