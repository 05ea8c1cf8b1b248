"""Numbers of a device wait there and come in order, as exact as they were."""

import torch

from gradscope.ablation.measured import Measured
from gradscope.recording import scalars
from gradscope.recording.logged import Logged
from gradscope.recording.scalars import BATCH


class Elsewhere(torch.Tensor):
    """Says that it is not on the host."""

    @property
    def device(self):
        """Of another place."""
        return torch.device("cuda")


def test_numbers_of_a_device_are_copied_together(monkeypatch):
    """As many as wait in one copy, the rest when they are asked for: for scopes and for cells."""
    copies = []

    class Counted(scalars.Copy):
        def __init__(self, tensor):
            copies.append(tensor.numel())
            super().__init__(torch.Tensor(tensor.as_subclass(torch.Tensor)))

    monkeypatch.setattr(scalars, "Copy", Counted)
    of_scope, of_cell = Logged(lambda step: True), Measured()
    expected = tuple((step, 2.0**24 + step) for step in range(BATCH + 3))  # beyond float32
    for step, value in expected:
        loss = torch.tensor(value, dtype=torch.float64).as_subclass(Elsewhere)
        of_scope.note(step, {"loss": loss})
        of_cell.log(step, {"loss": loss})
    assert copies == [BATCH] * 2
    assert of_scope.series()["loss"] == expected
    of_cell.read()
    assert of_cell.history().logged["loss"] == expected
    assert copies == [BATCH, BATCH, 3, 3]
