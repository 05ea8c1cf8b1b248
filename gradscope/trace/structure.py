"""What a trace knows of the network: its modules in execution order, its blocks, what is unused."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    blocks: tuple[Block, ...] = ()
    unused: tuple[str, ...] = ()
    """Trainable parameters whose module never ran and that got no gradient."""
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
