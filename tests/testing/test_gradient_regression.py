"""What the reference network does at initialisation stays as it is, in all sixteen variants."""

import pytest
import torch

from gradscope import models


def images():
    """Eight small normal images; drawn anew for each seed."""
    return torch.randn(8, 3, 16, 16)


def classes():
    """Their classes."""
    return torch.randint(5, (8,))


@pytest.mark.parametrize("init", ["xavier", "kaiming"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("depth", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_hw5net_gradients(gradient_profile, depth, skip, batch_norm, init):
    """Gradients, weights and outputs of every layer are those stored, but for rounding."""
    config = models.ModelConfig(
        name="hw5net",
        args={"depth": depth, "skip": skip, "batch_norm": batch_norm, "image_size": 16},
        init=init,
    )

    def build():
        return models.build(config, 5, seed=torch.initial_seed())

    gradient_profile(build, images, classes)
