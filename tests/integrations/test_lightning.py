"""A real Lightning Trainer is recorded, and trains as it would have."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from gradscope.recording.watched import is_watched

pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, and of what it uses


def make(kind, fails_at=None):
    """A module of Lightning that notes losses and, before each step, the norms of gradients."""
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.2), nn.Linear(7, 1))
            self.automatic_optimization = kind == "automatic"
            self.norms, self.losses = [], []

        def training_step(self, batch, batch_idx):
            if len(self.losses) == fails_at:
                raise ArithmeticError("the user's own")
            loss = self.body(batch[:, :5]).squeeze(-1).sub(batch[:, 5]).square().mean()
            self.losses.append(loss.item())
            if not self.automatic_optimization:
                optimizers = self.optimizers()
                self.manual_backward(loss)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            return loss

        def on_before_optimizer_step(self, optimizer):
            for group in optimizer.param_groups:
                self.norms += [p.grad.double().square().sum().sqrt() for p in group["params"]]

        def configure_optimizers(self):
            if self.automatic_optimization:
                return torch.optim.AdamW(self.parameters(), lr=0.05)
            parts = (self.body[0], self.body[3])
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

    torch.manual_seed(0)
    return Module()


def fit(folder, kind="automatic", callbacks=(), module=None, **options):
    """The Trainer and the module after six batches in each of two epochs."""
    from lightning.pytorch import Trainer

    module = make(kind) if module is None else module
    torch.manual_seed(1)
    batches = torch.randn(6, 4, 6)
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
        "callbacks": list(callbacks),
        **options,
    }
    trainer = Trainer(**settings)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer, module


def callback(**options):
    """Made here, for the module imports its library."""
    from gradscope.integrations.lightning import GradscopeCallback

    return GradscopeCallback(**options)


@pytest.mark.parametrize(("kind", "every"), [("automatic", 1), ("automatic", 3), ("manual", 1)])
def test_norms_are_those_before_the_step_and_the_training_is_the_same(tmp_path, kind, every):
    """Lightning's own hook before each step is the oracle; weights are equal bit for bit."""
    options = {"accumulate_grad_batches": every}
    _, plain = fit(tmp_path, kind, **options)
    recorder = callback(every=1)
    trainer, seen = fit(tmp_path, kind, [recorder], **options)
    assert seen.losses == plain.losses
    before, after = plain.state_dict(), seen.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)

    trace = recorder.trace
    tensors, norms = trace.series("weight", "norm")
    assert [t.name for t in tensors] == [name for name, _ in seen.named_parameters()]
    steps = 12 // every
    assert [step.step for step in trace.steps] == list(range(steps))
    expected = torch.stack(plain.norms).reshape(steps, 4)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)
    assert [step.epoch for step in trace.steps] == [0] * (steps // 2) + [1] * (steps // 2)
    means = torch.tensor(plain.losses).reshape(steps, every).mean(1)
    told = trace.logged["loss"]
    assert [step for step, _ in told] == list(range(steps))
    torch.testing.assert_close(torch.tensor([value for _, value in told]), means)
    assert trace.metadata["blind_spots"] == []
    _nothing_is_left(trainer, seen, plain)


def _nothing_is_left(trainer, seen, plain):
    for bare, after in zip(plain.modules(), seen.modules(), strict=True):
        assert type(bare).__name__ == type(after).__name__
        assert set(vars(after)) == set(vars(bare))
        assert not after._forward_hooks
        assert not after._forward_pre_hooks
        assert not after._backward_hooks
    assert not any(p._backward_hooks for p in seen.parameters())
    for optimizer in trainer.optimizers:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
    assert not is_watched(seen)


def test_a_clipped_gradient_is_recorded_as_the_optimizer_gets_it(tmp_path):
    """The total norm of every step is the limit, which lies below all of them."""
    recorder = callback(every=1, activations=False)
    _, module = fit(tmp_path, callbacks=[recorder], gradient_clip_val=0.01)
    unclipped = torch.stack(module.norms).reshape(12, 4).square().sum(1).sqrt()
    assert unclipped.min() > 0.02
    _, norms = recorder.trace.series("weight", "norm")
    totals = norms.double().square().sum(1).sqrt()
    torch.testing.assert_close(totals, torch.full_like(totals, 0.01), rtol=1e-3, atol=0)


def test_an_exception_closes_the_scope_and_leaves_the_trace(tmp_path):
    """Five whole steps before the failure."""
    recorder = callback(every=1)
    module = make("automatic", fails_at=5)
    with pytest.raises(ArithmeticError, match="the user's own"):
        fit(tmp_path, callbacks=[recorder], module=module)
    assert len(recorder.trace.steps) == 5
    assert not is_watched(module)


def test_the_scaler_is_known(tmp_path):
    """The scale of Lightning's GradScaler stands in the trace, its gradients are unscaled."""
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    recorder = callback(every=1)
    _, module = fit(tmp_path, callbacks=[recorder], plugins=[precision])
    assert {step.loss_scale for step in recorder.trace.steps} == {64.0}
    _, norms = recorder.trace.series("weight", "norm")
    expected = torch.stack(module.norms).reshape(12, 4)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=0)


def test_a_checkpoint_made_while_recording_knows_nothing_of_it(tmp_path):
    """It has what one of a bare run has, and loads where gradscope cannot be imported."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    contents = []
    for name, more in (("bare", []), ("seen", [callback(every=1)])):
        keeper = ModelCheckpoint(dirpath=tmp_path / name, filename="last", every_n_epochs=1)
        fit(tmp_path, callbacks=[*more, keeper], enable_checkpointing=True)
        contents.append(torch.load(tmp_path / name / "last.ckpt", weights_only=False))
    bare, seen = contents
    assert set(bare) == set(seen)
    assert [key.split("{")[0] for key in seen["callbacks"]] == ["ModelCheckpoint"]
    load = (
        "import sys; sys.modules['gradscope'] = None; import torch; "
        f"print(torch.load({str(tmp_path / 'seen' / 'last.ckpt')!r}, weights_only=False)['epoch'])"
    )
    found = subprocess.run(
        [sys.executable, "-c", load], capture_output=True, text=True, check=False
    )
    assert found.stdout.strip() == "1", found.stderr
