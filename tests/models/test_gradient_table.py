"""The study's table of gradients at initialisation comes out of recorded traces of HW5Net."""

import pytest
import torch
from torch.nn import functional

from gradscope.models import ModelConfig, build
from gradscope.watching import watch

# (skip, batch norm, init) -> range of the first convolution's gradient norm over that of the last
# block, for depth 32 and for depth 64, as measured independently of this package with one seed.
TABLE = {
    (False, False, "default"): ((2e-8, 2e-8), (1e-14, 1e-14)),
    (False, False, "xavier"): ((5e-3, 5e-3), (1e-5, 1e-5)),
    (False, False, "kaiming"): ((6e-2, 6e-2), (1e-1, 1e-1)),
    (False, True, "default"): ((7, 25), (126, 446)),
    (False, True, "xavier"): ((7, 25), (126, 446)),
    (False, True, "kaiming"): ((7, 25), (126, 446)),
    (True, False, "default"): ((0.6, 0.6), (0.6, 0.6)),
    (True, False, "kaiming"): ((5e-2, 5e-2), (1e-2, 1e-2)),
    (True, True, "default"): ((1.2, 5), (1.8, 9)),
    (True, True, "xavier"): ((1.2, 5), (1.8, 9)),
    (True, True, "kaiming"): ((1.2, 5), (1.8, 9)),
}
# Skips with Xavier and no batch norm are not among the measured rows: its weights are larger than
# the default's and smaller than Kaiming's, so its ratio lies between theirs.
TABLE[True, False, "xavier"] = ((5e-2, 0.6), (1e-2, 0.6))

SEED_FACTOR = 2.5
"""One seed against another: the table holds in order of magnitude and sign."""


@pytest.mark.parametrize("depth", [32, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", TABLE)
def test_first_over_last_gradient(variant, depth):
    """First over last gradient norm of one step on noise, for every switch setting."""
    skip, batch_norm, init = variant
    args = {"skip": skip, "batch_norm": batch_norm, "depth": depth}
    model = build(ModelConfig(name="hw5net", args=args, init=init), 5)
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 64, 64), torch.randint(5, (16,))
    with watch(model, every=1, activations=False) as scope:
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        scope.step()
    tensors, norms = scope.trace().series("weight", "norm")
    norm = {tensor.name: value for tensor, value in zip(tensors, norms[0].tolist(), strict=True)}
    ratio = norm["conv.weight"] / norm[f"stage3.{depth // 8 - 1}.conv2.weight"]
    low, high = TABLE[variant][depth == 64]
    assert low / SEED_FACTOR < ratio < high * SEED_FACTOR
    if variant == (True, False, "kaiming"):  # the activations explode with the depth
        assert loss.item() > {32: 60, 64: 600}[depth]


def test_biases_before_a_norm_are_rounding_not_gradient():
    """The convolution biases whose gradient is only rounding are those named as cancelled."""
    model = build(ModelConfig(name="hw5net", init="kaiming"), 5)
    images, labels = torch.randn(16, 3, 64, 64), torch.randint(5, (16,))
    with watch(model, every=1) as scope:
        functional.cross_entropy(model(images), labels).backward()
        scope.step()
    trace = scope.trace()
    tensors, norms = trace.series("weight", "norm")
    biases = {t.name: n for t, n in zip(tensors, norms[0].tolist(), strict=True) if n == n}  # noqa: PLR0124 - NaN where nothing was measured
    biases = {name: norm for name, norm in biases.items() if name.endswith("bias")}
    rounding = {name for name, norm in biases.items() if norm < 1e-5 * max(biases.values())}
    assert set(trace.structure.cancelled) == rounding
    assert rounding
    assert len(trace.structure.unused) == 14
