"""A real Trainer is recorded, and trains as it would have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import RecorderError
from gradscope.recording.watched import is_watched

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


class Net(nn.Module):
    """Two layers, and a loss as the Trainer wants it."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.2), nn.Linear(7, 1))
        self.passes, self.fails_at = 0, fails_at

    def forward(self, x, labels):
        """Mean squared error, or the failure."""
        self.passes += 1
        if self.passes == self.fails_at:
            raise ArithmeticError("the user's own")
        return {"loss": (self.body(x).squeeze(-1) - labels).square().mean()}


def trained(folder, callbacks=(), fails_at=None, **arguments):
    """A Trainer after its training, on the same numbers each time."""
    torch.manual_seed(0)
    data = [{"x": torch.randn(5), "labels": torch.randn(())} for _ in range(24)]
    model = Net(fails_at)
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 0.05,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **arguments,
    }
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(**settings),
        train_dataset=data,
        callbacks=list(callbacks),
    )
    try:
        trainer.train()
    except ArithmeticError:
        assert fails_at
    return trainer


def callback(**options):
    """Made here, for the module imports its library."""
    from gradscope.integrations.transformers import GradscopeCallback

    return GradscopeCallback(**options)


def logged(trainer, name):
    """What the Trainer itself wrote down under a name."""
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_norms_are_those_of_the_trainer_which_trains_as_before(tmp_path, accumulation):
    """The Trainer's own total norm, unclipped; losses and weights are equal bit for bit."""
    more = {"max_grad_norm": 1e9, "gradient_accumulation_steps": accumulation}
    plain = trained(tmp_path, **more)
    recorder = callback(every=1)
    seen = trained(tmp_path, [recorder], **more)
    assert logged(seen, "loss") == logged(plain, "loss")
    assert logged(seen, "grad_norm") == logged(plain, "grad_norm")
    before, after = plain.model.state_dict(), seen.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)

    trace = recorder.trace
    steps = 12 // accumulation
    tensors, norms = trace.series("weight", "norm")
    assert [t.name for t in tensors] == [name for name, _ in seen.model.named_parameters()]
    expected = torch.tensor(logged(plain, "grad_norm"))
    assert len(expected) == len(trace.steps) == steps
    torch.testing.assert_close(norms.double().square().sum(1).sqrt().float(), expected)
    assert trace.logged["loss"] == tuple(enumerate(logged(plain, "loss")))
    assert [step.epoch for step in trace.steps] == [0] * (steps // 2) + [1] * (steps // 2)
    assert trace.metadata["blind_spots"] == []


def test_a_clipped_gradient_is_recorded_as_the_optimizer_gets_it(tmp_path):
    """The total norm of every step is the limit, which lies below all of them."""
    recorder = callback(every=1, activations=False)
    trainer = trained(tmp_path, [recorder], max_grad_norm=0.01)
    assert min(logged(trainer, "grad_norm")) > 0.02
    _, norms = recorder.trace.series("weight", "norm")
    totals = norms.double().square().sum(1).sqrt()
    torch.testing.assert_close(totals, torch.full_like(totals, 0.01), rtol=1e-3, atol=0)


def test_nothing_is_left_behind(tmp_path):
    """Neither hooks nor attributes, on modules or optimizer; a second run is recorded."""
    recorder = callback(every=2)
    trainer = trained(tmp_path, [recorder])
    bare, seen = trained(tmp_path), trainer
    for plain, after in zip(bare.model.modules(), seen.model.modules(), strict=True):
        assert set(vars(after)) == set(vars(plain))
        assert not after._forward_hooks
        assert not after._backward_hooks
        assert not after._forward_pre_hooks
        assert type(after) is type(plain)
    assert all(not p._backward_hooks for p in seen.model.parameters())
    inner, untouched = seen.optimizer.optimizer, bare.optimizer.optimizer
    assert set(vars(inner)) == set(vars(untouched))
    assert not inner._optimizer_step_pre_hooks
    assert not inner._optimizer_step_post_hooks
    assert not is_watched(seen.model)
    first = recorder.trace
    assert [step.step for step in first.steps] == [0, 2, 4, 6, 8, 10]
    trainer.train()
    assert recorder.trace is not first
    assert len(recorder.trace.steps) == 6


def test_an_exception_leaves_the_trace_and_the_next_run_is_recorded(tmp_path):
    """Five whole steps before the failure, then a whole training of the same model."""
    recorder = callback(every=1)
    trainer = trained(tmp_path, [recorder], fails_at=6)
    assert len(recorder.trace.steps) == 5
    trainer.train()
    assert len(recorder.trace.steps) == 12
    assert not is_watched(trainer.model)


def test_a_wrong_option_is_said_before_the_first_step(tmp_path):
    """With the words of `watch`."""
    with pytest.raises(RecorderError, match="every=0"):
        trained(tmp_path, [callback(every=0)])
    assert callback().trace is None


def test_the_scaler_of_the_optimizer_is_known(tmp_path):
    """Accelerate's optimizer holds a GradScaler: its scale is in the trace."""
    model = nn.Linear(3, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    accelerate = pytest.importorskip("accelerate")
    accelerate.Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(inner, scaler=scaler)
    recorder = callback(every=1)
    recorder.on_train_begin(None, None, None, model=model, optimizer=optimizer)
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    optimizer.step()
    recorder.on_train_end(None, None, None)
    _, norms = recorder.trace.series("weight", "norm")
    torch.testing.assert_close(norms, torch.tensor([[12.0**0.5, 2.0]]))
    assert [step.loss_scale for step in recorder.trace.steps] == [64.0]
    assert gradscope.diagnose(recorder.trace) is not None
