"""The map of gradients and the heat maps: what is painted, and in which units."""

import dataclasses

import numpy as np
import pytest
import torch

from gradscope.report.write import charts
from gradscope.trace.structure import Block, ModuleInfo, Structure
from gradscope.trace.vocabulary import STATISTICS

NORM = list(STATISTICS).index("norm")


def with_head(trace, step):
    """The same trace, its last block a head before which the gradient drops by so many decades."""
    values = trace.values.clone()
    last = trace.structure.blocks[-1].name
    for i, tensor in enumerate(trace.tensors):
        if tensor.module == last:
            values[:, i, NORM] *= 10**step
    blocks = tuple(
        Block(b.name, "Linear" if b.name == last else "Block", b.modules, b.output, 0, is_cut=True)
        for b in trace.structure.blocks
    )
    modules = tuple(ModuleInfo(b.name, b.type, i, 1, b.name) for i, b in enumerate(blocks))
    structure = Structure(modules=modules, blocks=blocks)
    return dataclasses.replace(trace, values=values, structure=structure, predictions=())


def test_a_head_does_not_paint_a_sound_network(studies):
    """The gradient drops a thousandfold at the head and is level from there: a blank row."""
    sound = with_head(studies.make_trace(0), 3.0)
    sick = with_head(studies.make_trace(1, slope=-0.4), 3.0)
    heat = charts({"sound": sound, "sick": sick})["map"].panels[0].data[0]
    rows = dict(zip(heat["text"], heat["z"], strict=True))
    assert np.abs(rows["run sound"]).max() < 0.3
    assert rows["run sick"][0] == pytest.approx(-0.4 * 10, abs=0.3)
    assert heat["zmax"] >= 3  # what matters has full colour, what does not is pale


def test_heat_maps_of_layers_end_at_whole_decades(studies):
    """The scale reads 10 to a whole power at both ends."""
    chart = charts(studies.make_trace(0, slope=-0.37))["heat"]
    heat = chart.panels[0].data[0]
    assert heat["zmin"] == round(heat["zmin"])
    assert all(end.startswith("10") and "." not in end for end in chart.options["scale"][1:])
    assert torch.as_tensor(chart.figures[0].data[0].customdata).log10().numpy() == pytest.approx(
        np.asarray(heat["z"]), abs=1e-5
    )
