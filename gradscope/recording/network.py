"""Facts about a network: execution order, blocks, unused parameters, what norm follows what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from gradscope.layers import (
    CONTAINERS,
    has_channels,
    normalises_input,
    subtracts_bias,
)
from gradscope.trace.structure import Block, ModuleInfo, Structure


@dataclass(slots=True)
class Call:
    """One output of one call of one module, as the recorder saw it in the forward pass."""

    module: str
    call: int
    output: int
    node: Any
    """The autograd node of the tensor, None where it needs no gradient."""
    alias: str
    """Name of the module under which the very same tensor is recorded, else the own name."""
    alias_call: int
    normalised: str = ""
    """For a normalisation: the module whose output it was given."""


def read_structure(
    root: nn.Module,
    calls: list[Call],
    sinks: list[Any],
    inner: Mapping[Any, list[Any]] = MappingProxyType({}),
) -> Structure:
    """Facts about a network from the calls of one forward pass and its autograd graph.

    Args:
        root: the network.
        calls: what ran, in the order of outputs.
        sinks: autograd nodes of those outputs of the network that received a gradient.
        inner: nodes that autograd does not know, or not well -> what they were computed from.

    Returns:
        Everything but `unused` and `frozen`, which the recorder knows after the backward pass.
    """
    graph = _Graph(calls, sinks, inner)
    modules = dict(nn.Module.named_modules(root))
    order: dict[str, int] = {}
    output: dict[str, str] = {}
    count: dict[str, int] = {}
    cuts = {call.module for call in calls if call.node in graph.cuts}
    for i, call in enumerate(calls):
        order.setdefault(call.module, i)
        output.setdefault(call.module, call.alias)
        count[call.module] = max(count.get(call.module, 0), call.call + 1)
    infos = [
        ModuleInfo(
            name,
            type(module).__name__,
            order.get(name, -1),
            count.get(name, 0),
            output.get(name) or name,
            name in cuts,
        )
        for name, module in modules.items()
    ]
    infos.sort(key=lambda info: (info.order < 0, info.order))
    cancelled, invariant = _after_norm(modules, calls, graph)
    beside = _beside(calls, graph, inner)
    return Structure(
        modules=tuple(infos),
        blocks=tuple(_blocks(modules, calls, graph)),
        cancelled=cancelled,
        scale_invariant=invariant,
        shared=shared_parameters(root),
        aside=_named(calls, {*beside}.difference(graph.nodes)),
        unread=_named(calls, {c.node for c in calls}.difference(graph.nodes, beside, {None})),
        handed_on=_named(calls, _handed_on(calls, {*graph.nodes, *beside}, inner)),
    )


def _beside(
    calls: list[Call], graph: _Graph, inner: Mapping[Any, list[Any]]
) -> dict[Any, list[Any]]:
    """Nodes on the way to outputs that got no gradient, such as those of auxiliary heads."""
    outputs = {c.node for c in calls if not c.module and c.node is not None}
    beside: dict[Any, list[Any]] = {}
    _topological([node for node in outputs if node not in graph.nodes], beside, inner)
    return beside


def _handed_on(calls: list[Call], read: set[Any], inner: Mapping[Any, list[Any]]) -> set[Any]:
    """Nodes that lead only to tensors which modules handed on among others that were read.

    So does a pooler beside the hidden states. The only output of a module that nothing reads was
    not left aside but cut off, as by detach().
    """
    outermost: dict[Any, Call] = {}
    for call in calls:  # an enclosing module gives its outputs after those inside it
        if call.node is not None and call.module:
            outermost[call.node] = call
    given: dict[tuple[str, int], list[Call]] = {}
    for call in calls:
        given.setdefault((call.module, call.call), []).append(call)
    ends = [
        node
        for node, call in outermost.items()
        if node not in read and any(c.node in read for c in given[call.module, call.call])
    ]
    aside: dict[Any, list[Any]] = {}
    _topological(ends, aside, inner)
    return {node for node in aside if node not in read}


def _named(calls: list[Call], nodes: set[Any]) -> tuple[str, ...]:
    """The modules, but for the root, whose output is made by some nodes."""
    return tuple(dict.fromkeys(c.module for c in calls if c.module and c.node in nodes))


def shared_parameters(root: nn.Module) -> dict[str, str]:
    """Further names of parameters that several modules share -> the first name."""
    first: dict[int, str] = {}
    shared = {}
    for name, parameter in nn.Module.named_parameters(root, remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            shared[name] = first[id(parameter)]
    return shared


class _Graph:
    """The autograd graph between the first module's output and the outputs of the network."""

    def __init__(self, calls: list[Call], sinks: list[Any], inner: Mapping[Any, list[Any]]) -> None:
        producers: dict[Any, list[Any]] = {}
        consumers: dict[Any, list[Any]] = {}
        order = _topological(sinks, producers, inner)
        self.nodes = producers.keys()
        for node in order:
            for producer in producers[node]:
                consumers.setdefault(producer, []).append(node)
        self._consumers = consumers
        first = next((c.node for c in calls if c.node in producers), None)
        reached = {first} if first is not None else set()
        for node in order:
            if any(p in reached for p in producers[node]):
                reached.add(node)
        self.cuts = self._sweep([n for n in order if n in reached], producers, reached)

    def consumed_once(self, node: Any) -> bool:
        """Whether exactly one operation reads the tensor that the node made."""
        return len(self._consumers.get(node, ())) == 1

    @staticmethod
    def _sweep(order: list[Any], producers: dict[Any, list[Any]], reached: set[Any]) -> set[Any]:
        # In topological order, a node lies on every path exactly when no edge jumps over it.
        position = {node: i for i, node in enumerate(order)}
        reach = [0] * len(order)  # furthest consumer of each node
        for node in order:
            for producer in producers[node]:
                if producer in reached:
                    start = position[producer]
                    reach[start] = max(reach[start], position[node])
        cuts = set()
        furthest = 0
        for i, node in enumerate(order):
            if furthest <= i:
                cuts.add(node)
            furthest = max(furthest, reach[i])
        return cuts


def _topological(
    sinks: list[Any], producers: dict[Any, list[Any]], inner: Mapping[Any, list[Any]]
) -> list[Any]:
    """Nodes from the first to the last computed; fills in who feeds whom. No recursion: deep."""
    order: list[Any] = []
    done: set[Any] = set()
    stack = [(sink, False) for sink in sinks]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
            continue
        if node in done:
            continue
        done.add(node)
        inputs = inner.get(node)
        if inputs is None:
            behind = (n for n, _ in node.next_functions if n is not None)
            inputs = [n for n in behind if not hasattr(n, "variable")]
        producers[node] = inputs
        stack.append((node, True))
        stack.extend((n, False) for n in inputs if n not in done)
    return order


def _after_norm(
    modules: dict[str, nn.Module], calls: list[Call], graph: _Graph
) -> tuple[dict[str, str], dict[str, str]]:
    """Biases that a following normalisation subtracts again, weights whose scale it cancels."""
    made = {(c.module, c.call): c for c in calls}
    cancelled: dict[str, str] = {}
    invariant: dict[str, str] = {}
    for call in calls:
        source = made.get((call.normalised, 0)) if call.normalised else None
        if source is None or not graph.consumed_once(source.node):
            continue
        layer, norm = modules[call.normalised], modules[call.module]
        prefix = f"{call.normalised}." if call.normalised else ""
        if not has_channels(layer) or not normalises_input(norm):
            continue
        has_bias = isinstance(getattr(layer, "bias", None), nn.Parameter)
        if has_bias and subtracts_bias(norm):
            cancelled[f"{prefix}bias"] = call.module
        if not has_bias or f"{prefix}bias" in cancelled:
            invariant[f"{prefix}weight"] = call.module
    return cancelled, invariant


def _blocks(modules: dict[str, nn.Module], calls: list[Call], graph: _Graph) -> list[Block]:
    """Group the calls into blocks: composite modules, or a weighted layer with its train."""
    ran = {c.module for c in calls}
    cut_modules = {c.module for c in calls if c.node in graph.cuts}
    units = _units(modules, ran, cut_modules)
    inner: dict[str, list[str]] = {}
    for name in dict.fromkeys(c.module for c in calls):
        if name in units:
            inner.setdefault(units[name], []).append(name)
    blocks: list[Block] = []
    waiting: list[str] = []
    extendable = False
    for call in calls:
        if units.get(call.module) != call.module or call.output:
            continue
        module = modules[call.module]
        composite = any(True for _ in module.children())
        weighted = any(p.dim() > 1 for p in module.parameters(recurse=False))
        if not composite and not weighted:
            if extendable and call.node is not None:
                last = blocks[-1]
                blocks[-1] = replace(
                    last,
                    modules=(*last.modules, call.module),
                    output=call.alias,
                    call=call.alias_call,
                    is_cut=call.node in graph.cuts,
                )
            else:
                waiting.append(call.module)
            continue
        name = call.module + (f"[{call.call}]" if call.call else "")
        members = (*waiting, *inner.get(call.module, [call.module]))
        blocks.append(
            Block(
                name,
                type(module).__name__,
                members,
                call.alias,
                call.alias_call,
                call.node in graph.cuts,
            )
        )
        waiting, extendable = [], not composite
    if blocks and waiting:
        blocks[-1] = replace(blocks[-1], modules=(*blocks[-1].modules, *waiting))
    return blocks


def _units(modules: dict[str, nn.Module], ran: set[str], cuts: set[str]) -> dict[str, str]:
    """Map every module that ran to the block-sized module around it; containers map to nothing."""
    units: dict[str, str] = {}
    waiting: list[tuple[str, str | None]] = [("", None)]
    while waiting:  # no function that calls itself: it would keep the network until it is collected
        name, unit = waiting.pop()
        module = modules[name]
        if unit is None and not _is_container(name, module, cuts):
            unit = name
        if unit is not None and name in ran:
            units[name] = unit
        paths = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        # A module with two parents is listed under the first.
        waiting.extend((path, unit) for path in reversed(paths) if path in modules)
    return units


def _is_container(name: str, module: nn.Module, cuts: set[str]) -> bool:
    """Whether a module is a stack of blocks rather than a block; needs no list of types."""
    if not any(True for _ in module.children()):
        return False
    if not name or isinstance(module, CONTAINERS):
        return True
    kinds = Counter(
        type(inner)
        for path, inner in module.named_modules(prefix=name)
        if path != name
        and path in cuts
        and not isinstance(inner, CONTAINERS)
        and any(True for _ in inner.children())
    )
    return any(n > 1 for n in kinds.values())
