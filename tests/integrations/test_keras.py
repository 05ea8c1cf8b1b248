"""Keras 3 on torch: parameters are recorded, and what cannot be seen is said."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("keras") is None, reason="pip install keras"),
]

TRAINED = """
import warnings
import keras
import torch
import gradscope

keras.utils.set_random_seed(0)
x, y = torch.randn(32, 8), torch.randn(32, 1)


def build():
    dense = [keras.layers.Dense(16, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((8,)), *dense, keras.layers.Dense(1)])


def sees(scope):
    (blind_spot,) = scope.blind_spots
    assert blind_spot.startswith("3 layers (Dense) stand in plain Python lists"), blind_spot
    diagnosis = gradscope.diagnose(scope.trace())
    assert diagnosis.verdict == "inconclusive", diagnosis
    assert diagnosis.rests_on.unseen == scope.blind_spots


warnings.simplefilter("ignore")
model = build()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
norms = []
with gradscope.watch(model, optimizer, every=1) as scope:
    for _ in range(4):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        norms.append([p.grad.norm().item() for p in model.parameters()])
        optimizer.step()
sees(scope)
_, recorded = scope.trace().series("weight", "norm")
torch.testing.assert_close(recorded.sort().values, torch.tensor(norms).sort().values)

model = build()
model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse", jit_compile=False)
scope = gradscope.watch(model, every=1)  # its optimizer is not torch's


class Steps(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        scope.step()


model.fit(x.numpy(), y.numpy(), epochs=2, batch_size=16, verbose=0, callbacks=[Steps()])
scope.close()
sees(scope)
assert len(scope.trace().steps) == 4
assert len(scope.trace().series("weight", "norm")[0]) == 6
print("done")
"""


def test_keras_is_recorded_and_the_blind_spot_is_said():
    """In a loop of torch and in its own `fit`; never healthy for want of looking."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINED],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"KERAS_BACKEND": "torch"},
    )
    assert done.stdout.strip() == "done", done.stderr
