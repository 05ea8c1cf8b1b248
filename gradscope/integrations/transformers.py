"""Transformers: a callback that records what its Trainer trains."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gradscope.integrations.trainers import Watched


class GradscopeCallback(Watched, TrainerCallback):  # type: ignore[misc] # mypy does not read it
    """Records a ``Trainer``: model, optimizer and GradScaler are found when the training begins.

    The loss that the Trainer logs, a mean since it last did, is kept in ``trace.logged["loss"]``.
    The Trainer tells nothing of an exception: what was recorded until then is in ``trace``, and the
    scope stays on the model until the next training or until the callback is forgotten.

    Args:
        options: what `gradscope.watch` takes beyond the model and the optimizer.

    Raises:
        RecorderError: in ``train()``, before the first step, where an option makes no sense.

    Example:
        >>> callback = GradscopeCallback(every=10)  # doctest: +SKIP
        >>> Trainer(model, arguments, callbacks=[callback]).train()  # doctest: +SKIP
        >>> gradscope.diagnose(callback.trace)  # doctest: +SKIP
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch; optimizer and model are what the Trainer will call."""
        del args, state, control
        optimizer = kwargs["optimizer"]
        self._begin(kwargs["model"], optimizer, getattr(optimizer, "scaler", None))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the scope which epoch the steps that follow belong to."""
        del args, control, kwargs
        if self._scope is not None:
            self._scope.epoch = int(state.epoch or 0)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the training loss, where the Trainer says one."""
        del args, state, control
        logs = kwargs.get("logs") or {}
        if self._scope is not None and "loss" in logs:
            self._scope.log(loss=logs["loss"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the scope; the trace stays."""
        del args, state, control, kwargs
        self._end()
