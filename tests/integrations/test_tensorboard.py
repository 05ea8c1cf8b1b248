"""TensorBoard reads what was told, number for number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.integrations import tensorboard

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_the_event_file_holds_every_number(tmp_path):
    """Through the real writer and the real reader, as float32."""
    from torch.utils.tensorboard import SummaryWriter

    told = {}
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with SummaryWriter(str(tmp_path)) as writer:
        write = tensorboard(writer)

        def log(numbers, step):
            told[step] = numbers
            write(numbers, step)

        with gradscope.watch(model, optimizer, every=2, log=log):
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.randn(4, 3)).sum().backward()
                optimizer.step()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {name for numbers in told.values() for name in numbers}
    for name in told[0]:
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [
            (step, float(np.float32(told[step][name]))) for step in told if name in told[step]
        ]
    assert set(told) == {0, 2, 4, 5}  # the last is of the verdict
