"""On a GPU: no recorded step of a real network makes the host wait or changes the numbers."""

import pytest
import torch
import torchvision

import gradscope
from examples.gpt import Gpt
from gradscope.models import ModelConfig, build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")


def hw5net():
    """The reference network on four images."""
    model = build(ModelConfig(name="hw5net", init="kaiming"), n_classes=5)
    return model, torch.randn(4, 3, 64, 64), torch.randint(5, (4,))


def resnet50():
    """Of torchvision, on four images."""
    images, labels = torch.randn(4, 3, 96, 96), torch.randint(1000, (4,))
    return torchvision.models.resnet50(), images, labels


def gpt():
    """A small one on four texts."""
    model = Gpt(100, context=64, width=128, heads=4, depth=4, norm="pre")
    return model, torch.randint(100, (4, 64)), torch.randint(100, (4, 64))


class Training:
    """Steps of a network on the GPU, always the same."""

    def __init__(self, make):
        torch.manual_seed(0)
        model, inputs, targets = make()
        self.model, self.inputs, self.targets = model.cuda(), inputs.cuda(), targets.cuda()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=True)
        self.losses = []

    def step(self):
        """One step; its loss stays on the device."""
        self.optimizer.zero_grad()
        logits = self.model(self.inputs)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2) if logits.dim() > 2 else logits, self.targets.flatten()
        )
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())


@pytest.mark.parametrize("norms_only", [True, False], ids=["norms", "everything"])
@pytest.mark.parametrize("make", [hw5net, resnet50, gpt])
def test_no_recorded_step_waits_for_the_gpu(make, norms_only):
    """CUDA raises where the host would wait, over more steps than the buffer holds."""
    training = Training(make)
    training.step()  # what torch itself waits for, once
    settings = {"every": 1, "norms_only": norms_only}
    with gradscope.watch(training.model, training.optimizer, **settings) as scope:
        training.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(70):
                training.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    trace = scope.trace()
    assert len(trace.steps) == 71
    assert trace.to_pandas().query("kind == 'weight'").norm.notna().all()


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("make", [hw5net, gpt])
def test_recording_changes_no_number_on_a_gpu(make):
    """Ten steps with and without it, by deterministic kernels: every weight the same."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        bare, recorded = Training(make), Training(make)
        for _ in range(10):
            bare.step()
        with gradscope.watch(recorded.model, recorded.optimizer, every=1):
            for _ in range(10):
                recorded.step()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.stack(bare.losses), torch.stack(recorded.losses))
    for one, other in zip(bare.model.parameters(), recorded.model.parameters(), strict=True):
        assert torch.equal(one, other)
