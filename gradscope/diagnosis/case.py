"""Case: the facts of a trace that several findings need, worked out once."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from gradscope.diagnosis import limits
from gradscope.diagnosis.flow import (
    MIN_LOOP_CALLS,
    GradientFlow,
    WeightProfile,
    gradient_flow,
    loop_flows,
    weight_profile,
)
from gradscope.layers import is_gated, is_norm
from gradscope.trace.structure import Block, ModuleInfo, Structure
from gradscope.trace.table import RecordedTensor, Trace
from gradscope.trace.vocabulary import Kind, place_of


class Case:
    """A trace as the findings see it: without the steps that a GradScaler skipped."""

    def __init__(self, trace: Trace, earlier: Trace | None = None) -> None:
        kept = [i for i, step in enumerate(trace.steps) if not step.skipped]
        self.skipped = len(trace.steps) - len(kept)
        self.trace = _part(trace, kept) if self.skipped else trace
        self.earlier = earlier
        """The steps before, where this is a stretch of a longer run."""

    def stretch(self, start: int, stop: int) -> Case:
        """Some of the recorded steps, by index, as a case of its own."""
        before = _part(self.trace, list(range(start)))
        return Case(_part(self.trace, list(range(start, stop))), before)

    @property
    def structure(self) -> Structure:
        """The structure of the network."""
        return self.trace.structure

    @cached_property
    def flow(self) -> GradientFlow:
        """The flow along the depth."""
        return gradient_flow(self.trace)

    @cached_property
    def loops(self) -> dict[str, GradientFlow]:
        """Module -> flow over time; calls of modules without weights are places, not times."""
        owners = [tensor.module for tensor in self.trace.tensors if tensor.kind == "weight"]
        return {
            name: loop
            for name, loop in loop_flows(self.trace).items()
            if any(owner == name or owner.startswith(f"{name}.") for owner in owners)
            and not self._is_shared_over_depth(name)
        }

    def _is_shared_over_depth(self, module: str) -> bool:
        """Whether layers that run only once or twice stand between most calls of a module.

        A loop runs the same layers again and again; a module that several blocks share, as a
        positional encoding may be, is called at places, not at times.
        """
        calls = sorted(
            tensor.order
            for tensor in self.trace.tensors
            if tensor.kind == "activation" and tensor.module == module and not tensor.output
        )
        single = [
            info.order
            for name, info in self.modules.items()
            if name in self.weighted and info.order >= 0 and info.calls < MIN_LOOP_CALLS
        ]
        gaps = list(itertools.pairwise(calls))
        apart = sum(any(low < order < high for order in single) for low, high in gaps)
        return 2 * apart > len(gaps)

    @cached_property
    def weights(self) -> WeightProfile:
        """The gradient norms of the weights."""
        return weight_profile(self.trace)

    @cached_property
    def modules(self) -> dict[str, ModuleInfo]:
        """All modules by name."""
        return {info.name: info for info in self.structure.modules}

    @cached_property
    def types(self) -> set[str]:
        """Class names of the modules that ran."""
        return {info.type for info in self.structure.modules if info.order >= 0}

    @cached_property
    def has_norm(self) -> bool:
        """Whether a normalisation ran."""
        return any(is_norm(name) for name in self.types)

    @cached_property
    def weighted(self) -> set[str]:
        """Modules that own a weight with two or more dimensions."""
        return {t.module for t in self.trace.tensors if t.kind == "weight" and len(t.shape) > 1}

    @cached_property
    def gains(self) -> dict[str, float]:
        """Module -> log10 of its weight's gain, std(w) * sqrt(fan_in), at the first recorded step.

        1 keeps the variance of a linear layer (Glorot & Bengio 2010); usual initialisations lie
        between a third and one and a half. Lookup tables have no gain; zeros are left out.
        """
        found: dict[str, float] = {}
        for i, tensor in self.columns("weight"):
            info = self.modules.get(tensor.module)
            lookup = info is not None and "embedding" in info.type.lower()
            norms = self.values("weight_norm", i)
            if len(tensor.shape) < 2 or lookup or not len(norms) or not norms[0].item() > 0:
                continue
            fan_out = max(tensor.shape[0], 1)  # norm = std * sqrt(fan_in * fan_out)
            gain = math.log10(norms[0].item() / math.sqrt(fan_out))
            if tensor.module not in found or abs(gain) > abs(found[tensor.module]):
                found[tensor.module] = gain
        return found

    def is_misscaled(self, modules: Iterable[str]) -> bool:
        """Whether the weight of one of these modules is off from the usual gain of the network."""
        known = [name for name in modules if name in self.gains]
        return any(abs(self.gains[n] - self._usual_gain(n)) >= limits.ODD_WEIGHT for n in known)

    def _usual_gain(self, module: str) -> float:
        """Median over the layers of its type and name, over all where these are fewer than four."""
        kind = self.role(module)[::2]  # as all depthwise convolutions, on the trunk and beside it
        alike = [gain for name, gain in self.gains.items() if self.role(name)[::2] == kind]
        return statistics.median(alike if len(alike) >= 4 else self.gains.values())

    def role(self, name: str) -> tuple[str, str, str]:
        """What a layer is for: its type, whether it is on the trunk, its name inside the block."""
        info = self.modules.get(name)
        own = name.rpartition(".")[2]
        if info is None:
            return ("", "", own)
        return (info.type, str(info.is_cut), "" if own.isdigit() else own)

    @cached_property
    def parents(self) -> set[str]:
        """Modules that hold other modules."""
        return {name.rpartition(".")[0] for name in self.modules if name}

    @cached_property
    def held(self) -> set[str]:
        """Parameters that an optimizer holds; empty where none is known."""
        return {name for group in self.structure.groups for name in group.parameters}

    @cached_property
    def has_no_gradient(self) -> bool:
        """Whether an optimizer steps and no parameter has a gradient when it does.

        No cut explains that, since the backward pass would have failed.
        """
        weights = [i for i, _ in self.columns("weight")]
        return bool(self.held) and not bool(self.trace.present[:, weights].any())

    @cached_property
    def is_cut_at_loss(self) -> bool:
        """Whether outputs with a history were seen, and never a gradient at any of them."""
        made, back = (
            any(bool(self.trace.present[:, i].any()) for i, _ in self.columns(kind))
            for kind in ("activation", "activation_grad")
        )
        return made and not back and not self.structure.late

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The blocks by name."""
        return {block.name: block for block in self.structure.blocks}

    def is_bypassed(self, block: str) -> bool:
        """Whether a path leads around some weights of a block, as a skip connection does."""
        if block not in self.blocks:
            return False
        weighted = [name for name in self.blocks[block].modules if name in self.weighted]
        return any(not self.modules[name].is_cut for name in weighted if name in self.modules)

    def norms_in(self, block: str, *, on_trunk: bool) -> int:
        """How many normalisations ran in a block; if asked, only those nothing leads around."""
        inside = self.blocks[block].modules if block in self.blocks else ()
        infos = [self.modules[name] for name in inside if name in self.modules]
        return sum(is_norm(i.type) and (i.is_cut or not on_trunk) for i in infos)

    def is_scale_free(self, block: str) -> bool:
        """Whether normalisations remove the scale of all weights of a block."""
        inside = self.blocks[block].modules if block in self.blocks else ()
        free = {name.rpartition(".")[0] for name in self.structure.scale_invariant}
        weighted = [name for name in inside if name in self.weighted]
        return bool(weighted) and all(name in free for name in weighted)

    def pooling(self, before: str, after: str) -> float:
        """Decades that averaging over the elements lost between two blocks takes from both ways."""
        sizes = [self._elements(before), self._elements(after)]
        return max(0.0, 0.5 * math.log10(sizes[0] / sizes[1])) if all(sizes) else 0.0

    def _elements(self, block: str) -> int:
        output = (
            (self.blocks[block].output, self.blocks[block].call) if block in self.blocks else ()
        )
        for tensor in self.trace.tensors:
            if tensor.kind == "activation" and (tensor.module, tensor.call) == output:
                return math.prod(tensor.shape)
        return 0

    def is_gated(self, module: str) -> bool:
        """Whether gates decide what a recurrent module keeps over time."""
        inside = {
            info.type
            for name, info in self.modules.items()
            if name == module or name.startswith(f"{module}.")
        }
        return "Sigmoid" in inside or any(map(is_gated, inside))

    @cached_property
    def first_part(self) -> dict[str, int]:
        """Module -> where the first of its parts ran, for those with parts that did."""
        found: dict[str, int] = {}
        for name, info in self.modules.items():
            if not name or info.order < 0:
                continue
            parts = name.split(".")
            for length in range(len(parts)):
                whole = ".".join(parts[:length])
                found[whole] = min(info.order, found.get(whole, info.order))
        return found

    def columns(self, kind: Kind) -> Iterator[tuple[int, RecordedTensor]]:
        """Index and label of the tensors of one kind, in execution order."""
        yield from self._columns.get(kind, ())

    @cached_property
    def _columns(self) -> dict[str, list[tuple[int, RecordedTensor]]]:
        """The same for each kind."""
        found: dict[str, list[tuple[int, RecordedTensor]]] = {}
        for i, tensor in sorted(enumerate(self.trace.tensors), key=lambda item: item[1].order):
            found.setdefault(tensor.kind, []).append((i, tensor))
        return found

    def values(self, statistic: str, column: int) -> Tensor:
        """One statistic of one tensor over the steps in which it was seen; shape (<= steps,)."""
        values = self.trace.values[:, column, place_of(statistic)]
        return values if self._always[column] else values[self.trace.present[:, column]]

    @cached_property
    def _always(self) -> list[bool]:
        """Whether each tensor came up in every step."""
        return list(self.trace.present.all(dim=0).tolist())

    def was_seen(self, column: int) -> bool:
        """Whether a tensor came up, or stayed away by no more than chance.

        A tensor that came up in a share p of the earlier steps, as the gradient of an expert that
        few tokens reach, stays away for n steps in a row with probability (1 - p)^n.
        """
        if bool(self.trace.present[:, column].any()):
            return True
        if self.earlier is None or not len(self.earlier.steps):
            return False
        share = float(self.earlier.present[:, column].float().mean())
        return bool((1 - share) ** len(self.trace.steps) > limits.CHANCE)

    def largest(self, statistic: str, column: int) -> float:
        """The largest known value of a statistic of one tensor, -1 where there is none."""
        if statistic not in self._largest:
            values = self.trace.values[:, :, place_of(statistic)]
            known = self.trace.present & ~values.isnan()
            below = values.new_full(
                (1, values.shape[1]), -torch.inf
            )  # for a recording without a step
            highest = torch.cat([below, values.where(known, -torch.inf)]).amax(dim=0)
            self._largest[statistic] = highest.where(known.any(dim=0), -1.0).tolist()
        return self._largest[statistic][column]

    @cached_property
    def _largest(self) -> dict[str, list[float]]:
        """Statistic -> the largest known value of each tensor, for those asked for."""
        return {}


def _part(trace: Trace, kept: list[int]) -> Trace:
    """Some of the recorded steps, by index."""
    return dataclasses.replace(
        trace,
        steps=tuple(trace.steps[i] for i in kept),
        values=trace.values[kept],
        present=trace.present[kept],
        histograms=None if trace.histograms is None else trace.histograms[kept],
    )


def known_steps(log10_rms: Sequence[float]) -> list[float]:
    """Steps from block to block; an unknown end makes a step of zero, to keep the places."""
    steps = [b - a for a, b in itertools.pairwise(log10_rms)]
    return [step if math.isfinite(step) else 0.0 for step in steps]


def is_inside(name: str, module: str) -> bool:
    """Whether a module is another one or a part of it; the network itself has the empty name."""
    return not module or name == module or name.startswith(f"{module}.")


def listed(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
