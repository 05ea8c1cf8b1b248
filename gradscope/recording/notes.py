"""Notes: what the first forward pass tells of each module besides its output.

A hook of its own in the first recorded step, so that later steps pay nothing.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.layers import has_running_statistics
from gradscope.nested import tensors_in
from gradscope.recording import reductions
from gradscope.recording.modes import Modes
from gradscope.recording.nodes import ancestors, name_of
from gradscope.recording.variation import variation
from gradscope.trace.structure import Mode, ModuleInfo, Softmax, Structure, Summary, Takes
from gradscope.trace.vocabulary import PASSIVE

MOST_OPERATIONS = 64
"""Nodes that are named of one module."""

_SETTINGS = (
    "p",
    "drop_prob",
    "dropout",
    "eps",
    "momentum",
    "dim",
    "num_heads",
    "num_groups",
    "negative_slope",
)
"""Attributes of modules that are worth a note where they are numbers."""

_MASKED = 64
"""Elements of a mask that tell a dropout."""

_SOFTMAX = frozenset({"SoftmaxBackward0", "SafeSoftmaxBackward0", "LogSoftmaxBackward0"})

_PRODUCTS = frozenset({"BmmBackward0", "MmBackward0", "MatmulBackward0"})
_SCALINGS = frozenset({"MulBackward0", "DivBackward0", "BaddbmmBackward0"})
_MASKS = frozenset({"AddBackward0", "MaskedFillBackward0", "WhereBackward0", "SubBackward0"})


@dataclass(slots=True)
class _Note:
    """What is known of one module."""

    mode: Mode = ""
    given: tuple[Takes, frozenset[int]] = ("", frozenset())
    """What it was given, and the memory that it came in."""
    settings: dict[str, float] | None = None
    """Its numbers as it first ran; None until it did."""
    untouched: Tensor | None = None
    """Whether running statistics are those of their initialisation, on their device."""
    operations: list[str] = field(default_factory=list)
    drops: float | None = None
    """The largest share that a dropout which it called itself sets to zero."""
    softmax: Softmax | None = None
    largest: Tensor | None = None
    """Of the softmax, on its device."""


class Notes:
    """How each module ran, what it was given and what it computed itself; inputs of the network."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._names = {id(module): name for name, module in model.named_modules()}
        self._complete = False
        self._inputs: list[tuple[Summary, Tensor]] = []
        self.modes = Modes()
        self._begin()

    def _begin(self) -> None:
        self._notes: dict[str, _Note] = {}
        self._known: set[Any] = set()
        """Nodes that are some module's already."""
        self.modes.forget()

    def take(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Take notes of one call, its named arguments among the others."""
        name = self._names.get(id(module))
        if name is None or self._complete or torch.is_inference_mode_enabled():
            return
        if torch._C._are_functorch_transforms_active():
            return
        if torch._C._current_graph_task_id() != -1:  # computed again within the backward pass
            return
        given, made = (
            [t for t in tensors_in(each) if reductions.is_readable(t)] for each in (args, output)
        )
        note = self._notes.get(name)
        if note is None:
            note = self._notes[name] = _Note(_mode(), _given(given))
        if note.settings is None:
            note.settings = _settings(module)
            note.untouched = None if module.training else _untouched(module)
            self.modes.meet(name, module)
        # What feeds a module and is none's yet was computed by the code that called it.
        self._claim(given, name.rpartition(".")[0])
        self._claim(made, name)
        if not name:
            self._end(given, trained=any(t.requires_grad for t in made))

    def _claim(self, tensors: Iterable[Tensor], name: str) -> None:
        for tensor in tensors:
            for node, _ in ancestors(tensor.grad_fn, self._known):
                if node in self._known:
                    continue
                self._known.add(node)
                note = self._notes.get(name)
                if note is None:
                    note = self._notes[name] = _Note()
                if len(note.operations) < MOST_OPERATIONS:
                    note.operations.append(name_of(node))
                if name_of(node) in _SOFTMAX:
                    _note_softmax(note, node)
                elif (drops := _drops(node)) is not None:
                    note.drops = max(note.drops or 0.0, drops)

    def _end(self, given: list[Tensor], *, trained: bool) -> None:
        """The network has run: tell its inputs from what is made inside it."""
        if not trained:  # a validation pass
            self._begin()
            return
        self._complete = True
        self._known.clear()
        memory = {reductions.memory(tensor) for tensor in given}
        for note in self._notes.values():
            if note.given[1] & memory:
                note.given = ("", frozenset())
        floating = [t for t in given if t.is_floating_point() and t.numel()]
        for i, tensor in enumerate(floating):
            name = f"input[{i}]" if i else "input"
            dtype = str(tensor.dtype).removeprefix("torch.")
            self._inputs.append((Summary(name, tuple(tensor.shape), dtype), _numbers(tensor)))

    def added(self, structure: Structure) -> Structure:
        """The structure with the notes in it; waits for the device."""
        infos = (self._noted(info) for info in structure.modules)
        inputs = (
            dataclasses.replace(summary, mean=mean, std=std, low=low, high=high, variation=varies)
            for summary, numbers in self._inputs
            for mean, std, low, high, varies in [numbers.tolist()]
        )
        return dataclasses.replace(structure, modules=tuple(infos), inputs=tuple(inputs))

    def _noted(self, info: ModuleInfo) -> ModuleInfo:
        note = self._notes.get(info.name, _Note())
        softmax = note.softmax
        if softmax is not None and note.largest is not None:
            softmax = dataclasses.replace(softmax, largest=note.largest.item())
        return dataclasses.replace(
            info,
            mode=note.mode,
            takes=note.given[0],
            settings={
                **(note.settings or {}),
                **({} if note.drops is None else {"drops": note.drops}),
                **({} if note.untouched is None else {"untouched": float(note.untouched)}),
                **self.modes.of(info.name),
            },
            operations=tuple(note.operations),
            softmax=softmax,
        )


def _mode() -> Mode:
    """How a module runs whose output cannot have a history."""
    if torch.is_grad_enabled():
        return ""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename.endswith("torch/utils/checkpoint.py"):
            return "checkpoint"
    return "no_grad"


def _given(tensors: list[Tensor]) -> tuple[Takes, frozenset[int]]:
    """What a module was given, and the memory that it came in."""
    if not tensors:
        return "", frozenset()
    floating = [t for t in tensors if t.is_floating_point() or t.is_complex()]
    takes: Takes = "integer"
    if floating:
        takes = "gradient" if any(t.requires_grad for t in floating) else "detached"
    return takes, frozenset(reductions.memory(tensor) for tensor in tensors)


def _settings(module: nn.Module) -> dict[str, float]:
    # Not `getattr`: a module may have one of its own, which does something when it is asked.
    own, kind = vars(module), type(module)
    found = {name: own.get(name, getattr(kind, name, None)) for name in _SETTINGS}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        found["normalized"] = math.prod(module.normalized_shape)
    if has_running_statistics(module):
        found["running"] = 1
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:  # it drops between layers
        del found["dropout"]
    known = {n: float(value) for n, value in found.items() if isinstance(value, int | float)}
    return {**known, "training": float(module.training)} if known else {}


def _untouched(module: nn.Module) -> Tensor | None:
    """Whether no batch has moved the running statistics of a module; None where it has none."""
    if not has_running_statistics(module):
        return None
    mean, variance = module.running_mean, module.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return None
    if not (reductions.is_readable(mean) and reductions.is_readable(variance)):
        return None
    return mean.eq(0).all() & variance.eq(1).all()


def _numbers(tensor: Tensor) -> Tensor:
    """Mean, standard deviation, low, high and variation of an input; on its device."""
    whole = reductions.elements(tensor).float()
    spread = variation(tensor)
    nothing = whole.new_tensor(math.nan) if spread is None else spread
    deviation, mean = torch.std_mean(whole, correction=0)
    return torch.stack([mean, deviation, *torch.aminmax(whole), nothing])


def _note_softmax(note: _Note, node: Any) -> None:
    """Keep the smallest softmax of a module: its numbers, not the tensors that it holds."""
    shape = tuple(node._input_metadata[0].shape)
    if not shape:
        return
    dim = node._saved_dim
    dim = (dim - 2**64 if dim >= 2**63 else dim) % len(shape)
    known = note.softmax
    if known is not None and known.shape[known.dim] <= shape[dim]:
        return
    # Through the usual attribute a checkpoint would compute the tensor again.
    result = node._raw_saved_result.data
    note.largest = None
    if isinstance(result, Tensor) and result.numel() and result.layout == torch.strided:
        few = result.detach() if dim == 0 else result.detach()[:8]
        few = few.float().amax(dim)
        note.largest = (few.exp() if name_of(node).startswith("Log") else few).mean()
    note.softmax = Softmax(dim, shape, of_products=_unscaled(node))


def _drops(node: Any) -> float | None:
    """The share that a dropout sets to zero; None for another operation.

    On a CPU a dropout is a product with a mask of zeros and of 1 / (1 - p).
    """
    if name_of(node) == "NativeDropoutBackward0":
        return float(node._saved_p)
    mask = node._raw_saved_other.data if name_of(node) == "MulBackward0" else None
    if not isinstance(mask, Tensor) or mask.device.type != "cpu" or mask.requires_grad:
        return None
    few = mask.flatten()[: reductions.SAMPLE_LIMIT].float()
    if len(few) < _MASKED or not bool((few[:_MASKED] == 0).any()):
        return None
    kept = few.max().item()
    share = 1 - 1 / kept if kept > 1 else 0.0
    is_mask = bool(((few == 0) | (few == kept)).all())
    return share if is_mask and abs((few == 0).float().mean().item() - share) < 0.1 else None


def _unscaled(softmax: Any) -> bool:
    """Whether the inputs of a softmax are products of two outputs that nothing scaled."""
    product = _maker(softmax.next_functions[0][0], PASSIVE | _MASKS)
    if product is None or name_of(product) not in _PRODUCTS:
        return False
    factors = [_maker(node, PASSIVE) for node, _ in product.next_functions]
    both = all(factor is not None for factor in factors)
    return both and not any(name_of(factor) in _SCALINGS for factor in factors)


def _maker(node: Any, through: frozenset[str]) -> Any:
    """The node behind those that are to be looked through; None for a leaf."""
    while node is not None and not hasattr(node, "variable") and name_of(node) in through:
        node = node.next_functions[0][0] if node.next_functions else None
    return None if node is None or hasattr(node, "variable") else node
