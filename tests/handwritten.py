"""Traces written by hand, whose every number is known."""

from __future__ import annotations

import math

import torch

from gradscope import diagnose
from gradscope.trace.structure import Block, ModuleInfo, Structure
from gradscope.trace.table import RecordedStep, RecordedTensor, Trace
from gradscope.trace.vocabulary import STATISTICS

NAMES = list(STATISTICS)


class Net:
    """A plain chain of linear layers ``l0, l1, ...``, whose trace is written by hand."""

    def __init__(self, depth=12, steps=1, type_="Linear"):
        self.columns = {}
        self.steps = [RecordedStep(i) for i in range(steps)]
        self.blocks = []
        self.modules = [ModuleInfo("", "Net", 2 * depth, 1, f"l{depth - 1}", is_cut=True)]
        self.structure = {}
        for i in range(depth):
            name = f"l{i}"
            self.modules.append(ModuleInfo(name, type_, 2 * i, 1, name, is_cut=True))
            self.blocks.append(Block(name, type_, (name,), name, 0, is_cut=True))
            self.put("activation", name, rms=1.0, zero_fraction=0.0, nonfinite_fraction=0.0)
            self.put("activation_grad", name, norm=1.0, nonfinite_fraction=0.0)
            self.put("weight", name, "weight", norm=1.0, weight_norm=10.0, nonfinite_fraction=0.0)

    def put(self, kind, module, parameter="", shape=None, **statistics):
        """Set statistics of one tensor, a number or one per step; None takes the tensor away."""
        usual = (64, 64) if parameter != "bias" else (64,)
        values = self.columns.setdefault((kind, module, parameter), {"shape": usual})
        values.update(statistics if shape is None else {**statistics, "shape": shape})

    def drop(self, kind, module, parameter=""):
        """The tensor was never seen."""
        self.columns[kind, module, parameter] = {"shape": (64, 64)}

    def trace(self):
        """As a Trace."""
        order = {info.name: info.order for info in self.modules}
        tensors = tuple(
            RecordedTensor(kind, module, parameter, order.get(module, -1), shape=v["shape"])
            for (kind, module, parameter), v in self.columns.items()
        )
        values = torch.full((len(self.steps), len(tensors), len(NAMES)), math.nan)
        present = torch.zeros(len(self.steps), len(tensors), dtype=torch.bool)
        for i, statistics in enumerate(self.columns.values()):
            for name, value in statistics.items():
                if name != "shape":
                    present[:, i] = True
                    values[:, i, NAMES.index(name)] = torch.as_tensor(value, dtype=torch.float32)
        structure = Structure(tuple(self.modules), tuple(self.blocks), **self.structure)
        return Trace(tensors, tuple(self.steps), values, present, structure)

    def diagnose(self):
        """The diagnosis and its findings by kind."""
        diagnosis = diagnose(self.trace())
        return diagnosis, {finding.kind: finding for finding in diagnosis.findings}


def geometric(net, factor, *, activations=1.0, weights=None):
    """Gradients change by `factor` per layer towards the input, activations towards the output."""
    last = len(net.blocks) - 1
    for i, block in enumerate(net.blocks):
        jitter = 1 + 0.01 * (-1) ** i
        net.put("activation_grad", block.name, norm=factor ** (last - i) * jitter)
        net.put("activation", block.name, rms=activations**i * jitter)
        if weights is not None:
            net.put("weight", block.name, "weight", norm=weights ** (last - i))
    return net
