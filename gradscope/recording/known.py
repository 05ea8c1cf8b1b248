"""KnownModule: one module of a network that is watched, and its calls in a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradscope.recording.output_readers import Output

CALLS = 2**32 - 1
"""What of a place is the call."""


@dataclass(slots=True)
class KnownModule:
    """One module of the network, and how often it ran in this step."""

    name: str
    calls: int = 0
    recomputed: int = 0
    """Calls within the backward pass, by activation checkpointing."""
    outputs: dict[int, Output] = field(default_factory=dict)
    """`place` of a tensor -> output."""


def place(call: int, index: int) -> int:
    """Of a tensor among those of a module: the call itself where a call gives one tensor."""
    return index << 32 | call
