"""Lightning: a callback that records what its Trainer trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gradscope.integrations.trainers import Watched


class GradscopeCallback(Watched, Callback):  # type: ignore[misc] # mypy does not read it
    """Records a ``Trainer``, with automatic or manual optimisation, and stores nothing with it.

    Model, optimizers and GradScaler are found when the training begins. The loss of the batches of
    a step is kept in ``trace.logged["loss"]``, as Lightning weighs them where it optimises, their
    mean where the module does and returns one. Checkpoints are those of a run without it.

    Args:
        options: what `gradscope.watch` takes beyond the model and the optimizer.

    Raises:
        RecorderError: in ``fit()``, before the first step, where an option makes no sense.

    Example:
        >>> callback = GradscopeCallback(every=10)  # doctest: +SKIP
        >>> Trainer(callbacks=[callback]).fit(module, batches)  # doctest: +SKIP
        >>> gradscope.diagnose(callback.trace)  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._losses: list[Tensor] = []
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch; the optimizers exist by now."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._begin(pl_module, trainer.optimizers, scaler)
        self._losses.clear()
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the scope which epoch the steps that follow belong to."""
        del pl_module
        if self._scope is not None:
            self._scope.epoch = trainer.current_epoch

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the loss of the batches whose gradient was stepped."""
        del batch, batch_idx
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        if trainer.global_step == self._steps:  # the gradient is still being accumulated
            return
        self._steps = trainer.global_step
        if self._losses and self._scope is not None:
            losses = torch.stack(self._losses)  # parts of a mean, where Lightning accumulates
            whole = losses.sum() if pl_module.automatic_optimization else losses.mean()
            self._scope.log(loss=whole)
        self._losses.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the scope; the trace stays."""
        del trainer, pl_module
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the scope; the trace holds the whole steps until then."""
        del trainer, pl_module, exception
        self._end()
