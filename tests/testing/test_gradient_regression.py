"""What the reference network does at initialisation stays as it is, in all sixteen variants."""

import itertools

import pytest
import torch

from gradscope import models

VARIANTS = list(itertools.product((32, 64), (True, False), (True, False), ("xavier", "kaiming")))


def images():
    """Eight small normal images; drawn anew for each seed."""
    return torch.randn(8, 3, 16, 16)


def classes():
    """Their classes."""
    return torch.randint(5, (8,))


@pytest.mark.parametrize(("depth", "skip", "batch_norm", "init"), VARIANTS)
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
