"""What a trace knows of the network: its modules in execution order, its blocks, what is unused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["", "no_grad", "checkpoint"]
"""How a module ran where autograd was off: under ``no_grad``, or in a reentrant checkpoint."""

Takes = Literal["", "gradient", "detached", "integer"]
"""What a module was given that was no input of the network: a tensor with a history, one without,
or integers alone."""


@dataclass(frozen=True, slots=True)
class Softmax:
    """A softmax as it ran in the first recorded step."""

    dim: int
    """The dimension that it normalises, from 0."""
    shape: tuple[int, ...]
    """Of its result."""
    largest: float = math.nan
    """Mean of the largest share of each distribution, 0 to 1; NaN where not measured."""
    of_products: bool = False
    """Whether its inputs are products of two outputs, as in attention, that nothing scaled."""


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """One module of the network, in the order in which it first ran."""

    name: str
    """Dotted path from the root; the root itself is ``""``."""
    type: str
    """Class name, for example ``Conv2d``."""
    order: int
    """Position of its first output in execution order; -1 when it never ran."""
    calls: int
    """How often it ran in the step that the structure was read from."""
    output: str
    """The module under whose name its output is recorded: itself, or the child that made the
    very same tensor (a ``Sequential`` returns the output of its last child)."""
    is_cut: bool = False
    """True when every path from the input to the output of the network goes through its output."""
    mode: Mode = ""
    """How it ran where autograd was off in a training pass; empty otherwise."""
    takes: Takes = ""
    """What it was given; empty where that is an input of the network, or no tensor."""
    settings: dict[str, float] = field(default_factory=dict)
    """Its numbers as it first ran in a recorded pass that was trained on: ``p`` of a dropout,
    ``eps`` of a norm, ``training``; ``drops``, the share that a dropout which it called itself sets
    to zero; ``eval_since``, the step from which on it was seen in evaluation mode alone, absent
    where it was last seen in training mode; ``running`` of a norm that keeps running statistics,
    ``untouched``, whether these were as they were made where it is in evaluation mode."""
    operations: tuple[str, ...] = ()
    """Autograd nodes that it made itself, not its children, first computed first, such as
    ``ExpBackward0``, ``WhereBackward0``."""
    softmax: Softmax | None = None
    """The softmax that it computed itself, the smallest where there are several."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """What one group of an optimizer holds; the learning rate over time is in `Trace.logged`."""

    optimizer: str
    """Class name, for example ``AdamW``."""
    parameters: tuple[str, ...] = ()
    """Names of the parameters of the network in it."""
    strangers: int = 0
    """How many parameters it holds that are none of the network."""
    settings: dict[str, float] = field(default_factory=dict)
    """Its numbers when the recording began: ``lr``, ``weight_decay``, ``eps``, ``momentum``."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A tensor that has no column, in a few numbers of the first recorded step."""

    name: str
    """For example ``input``, ``input[1]``, ``target``."""
    shape: tuple[int, ...] = ()
    """With the examples first."""
    dtype: str = ""
    """For example ``float32``."""
    mean: float = math.nan
    """Over all elements, as std, low and high; NaN where not measured."""
    std: float = math.nan
    """Standard deviation."""
    low: float = math.nan
    """The least element."""
    high: float = math.nan
    """The largest."""
    variation: float = math.nan
    """Variance over the examples / mean square, 0 to 1; NaN where not measured."""


@dataclass(frozen=True, slots=True)
class LossSide:
    """What lies between the outputs of the network and the loss."""

    operations: tuple[str, ...] = ()
    """Autograd nodes from the outputs of the network to the loss, first computed first, such as
    ``LogSoftmaxBackward0``, ``NllLossBackward0``; before them those that made the outputs."""
    targets: tuple[Summary, ...] = ()
    """What the loss compared the outputs with, where it is one of the usual losses."""
    constant: float = math.nan
    """The loss of the best prediction that is the same for all examples, on the batch of the first
    recorded step; NaN where unknown."""
    outputs: int = 0
    """How many outputs of the network it was computed from; 0 where unknown."""
    sides: tuple[float, float, float] | None = None
    """Of an absolute error: the shares of the outputs with a target above and below them, and the
    most that the mean of the targets can be where those above count as negative; None for others.
    """
    stretched: bool = False
    """Whether one output for each of n examples, (n,) or (n, 1), was stretched to (n, n)."""


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the network between two outputs; chi is measured from block to block."""

    name: str
    """Dotted path of the module, or of the first module of a run of plain layers."""
    type: str
    """Class name of the module, for example ``BasicBlock`` or ``Conv2d``."""
    modules: tuple[str, ...]
    """Names of all modules that ran inside it, in execution order."""
    output: str
    """Name of the recorded activation that leaves the block."""
    call: int
    """Which call of that module, from 0."""
    is_cut: bool
    """True when every path from the input to the output of the network goes through this tensor,
    so that its gradient is the whole of the flow."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What a recorder learned about a network from one forward pass."""

    modules: tuple[ModuleInfo, ...] = ()
    """In the order in which they first ran."""
    blocks: tuple[Block, ...] = ()
    """From the input to the output; chi is measured over them."""
    unused: tuple[str, ...] = ()
    """Trainable parameters that got no gradient and whose module never ran, or ran with others in
    their places."""
    frozen: tuple[str, ...] = ()
    """Parameters with ``requires_grad=False``."""
    cancelled: dict[str, str] = field(default_factory=dict)
    """Bias -> the normalisation after it that subtracts it again; its true gradient is zero."""
    scale_invariant: dict[str, str] = field(default_factory=dict)
    """Weight -> the normalisation after it that cancels its scale."""
    shared: dict[str, str] = field(default_factory=dict)
    """Further name of a shared parameter -> the name under which it is recorded."""
    aside: tuple[str, ...] = ()
    """Modules that lead only to outputs of the network which the loss did not use."""
    unread: tuple[str, ...] = ()
    """Modules whose output has a history and leads neither to the loss nor to an output."""
    handed_on: tuple[str, ...] = ()
    """Those of them whose output a module gave beside others that were read, as a pooler's: nobody
    cut them off."""
    strangers: tuple[str, ...] = ()
    """Leaves of the graph that are no parameters of the network, as ``3 x Linear.weight (64, 64)``
    of layers in a plain list."""
    moved: tuple[str, ...] = ()
    """Trainable parameters that got no gradient and were changed all the same, as a teacher that
    follows by moving average."""
    late: bool = False
    """Whether parameters hold a gradient at the end that no recorded step took, as where the
    backward pass follows the step."""
    groups: tuple[ParameterGroup, ...] = ()
    """What the optimizers hold; empty where none is known."""
    inputs: tuple[Summary, ...] = ()
    """Floating-point inputs of the network."""
    loss: LossSide | None = None
    """None where the loss was not seen."""
