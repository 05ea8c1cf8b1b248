"""Tensors are found in whatever a module takes and returns."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch

from gradscope.nested import describe, tensors_in


def test_tensors_in_any_output():
    """Nested tuples, mappings and dataclasses are searched in order."""

    @dataclass
    class Output:
        loss: torch.Tensor
        more: tuple

    a, b, c, d = (torch.tensor(float(i)) for i in range(4))
    found = tensors_in([a, {"x": b}, Output(c, (d, "text")), UserDict(y=a), None])
    assert [float(t) for t in found] == [0, 1, 2, 3, 0]


def test_what_others_registered_is_searched_too():
    """Types that somebody registered with torch's own walk over trees."""
    from torch.utils import _pytree

    class Pair:
        def __init__(self, a, b):
            self.a, self.b = a, b

    _pytree.register_pytree_node(
        Pair, lambda pair: ([pair.a, pair.b], None), lambda parts, _context: Pair(*parts)
    )
    try:
        a, b = torch.zeros(1), torch.ones(2)
        assert tensors_in(Pair(a, (b, 3))) == [a, b]
    finally:
        _pytree._deregister_pytree_node(Pair)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.ones(2, 3), "(2, 3) float32"),
        ((torch.ones(2), [torch.zeros(1, dtype=torch.bool)]), "(2,) float32, (1,) bool"),
        ({"x": torch.tensor(0.0), "n": 3}, "x=() float32, n=int"),
        (None, "NoneType"),
    ],
)
def test_description_on_one_line(inputs, text):
    """Shapes and types, names of keywords, and what is no tensor by its class."""
    assert describe(inputs) == text
