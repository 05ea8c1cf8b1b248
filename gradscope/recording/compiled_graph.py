"""Layout: what `torch.compile` took down of a network, with readers put in.

Dynamo hands a backend a graph of torch's operations, and each of them tells within which calls of
which modules it ran. What is used outside of a call is an output of it. A reader is one more
operation behind such an output, which nothing in the graph depends on.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from gradscope.layers import is_normalisation
from gradscope.nested import tensors_in
from gradscope.recording.compiled_operators import read
from gradscope.recording.eligible import MAX_OUTPUTS

_Key = tuple[str, str]
"""One call of a module, as Dynamo names it: identity of the module, and the name it went by."""


@dataclass(frozen=True, slots=True)
class Place:
    """One output of one call of a module."""

    module: str
    """Its name within the compiled part."""
    call: int
    """Which of the calls of the module in this graph."""
    index: int
    """Which of the tensors of the call, in the order in which they were computed."""
    node: int
    aliases: list[tuple[str, int]]
    """Calls of enclosing modules that gave the very tensor, from the inside out."""
    source: str
    """For a normalisation: the module that made what it was given, else empty."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of a graph with readers in it; nodes are numbers."""

    places: list[Place]
    """In order of computation; its number is that of the reader too."""
    producers: dict[int, list[int]]
    """What each node that takes a gradient was computed from, without leaves."""
    inputs: list[tuple[int, int]]
    """Positions and nodes of the inputs that some operation outside made."""
    outputs: list[tuple[int | None, int | None]]
    """Of what the graph returns, in order: the node where it takes a gradient, and the place."""
    last: frozenset[int]
    """Places that the graph returns and does not use itself."""


def with_readers(
    graph: GraphModule, root: nn.Module, example: Tensor
) -> tuple[GraphModule, Layout]:
    """Put a reader behind each output of a module in a graph of Dynamo's.

    Args:
        graph: stays as it is.
        root: the compiled part of the network that the graph belongs to; its own outputs are those
            of the graph and get none.
        example: what stands for the number of a run.

    Returns:
        Another graph, with one more input behind the others: the number of the run.
    """
    mine = _copied(graph)
    found = _Graph(mine, root)
    layout = found.layout()
    _put_in(mine, found.sites, _placeholder(mine, example))
    return mine, layout


def _copied(graph: GraphModule) -> GraphModule:
    """A graph of its own over the same tensors, those of checkpoints within it too."""
    nodes: dict[Node, Node] = {}
    copy = torch.fx.Graph()
    copy.output(copy.graph_copy(graph.graph, nodes))
    for old, new in nodes.items():
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source  # of an input
    mine = GraphModule(graph, copy)
    for name, value in vars(graph).items():
        vars(mine).setdefault(name, value)
    mine.meta = graph.meta
    for name, child in graph.named_children():
        if isinstance(child, GraphModule):
            setattr(mine, name, _copied(child))
    return mine


class _Graph:
    """A graph of Dynamo's, while it is read and changed."""

    def __init__(self, graph: GraphModule, root: nn.Module) -> None:
        self.places: list[Place] = []
        self.producers: dict[Node, list[Node]] = {}
        self.inputs: list[tuple[int, Node]] = []
        self._modules = {str(id(m)): (name, m) for name, m in root.named_modules() if name}
        self._calls: dict[_Key, tuple[str, int]] = {}
        self._number: dict[str, int] = {}
        self._given: dict[_Key, int] = {}
        self._stacks: dict[Node, tuple[_Key, ...]] = {}
        self._same: dict[Node, Node] = {}
        """What an operation with a graph of its own gave -> what made it in there."""
        self.sites: dict[Node, int] = {}
        self._latest: dict[int, Node] = {}
        """Identity of the stand-in of a tensor -> the node that changed it last, in place."""
        self._numbers: dict[Node, int] = {}
        self.outputs = self._read(graph, {}, ())

    def layout(self) -> Layout:
        """What is to be kept of it."""
        number = self._numbers
        return Layout(
            self.places,
            {number[n]: [number[p] for p in before] for n, before in self.producers.items()},
            [(position, number[node]) for position, node in self.inputs],
            [
                (number[n] if n in self.producers else None, self.site(n))
                if n is not None
                else (None, None)
                for n in self.outputs
            ],
            frozenset(
                site
                for node, site in self.sites.items()
                if node in self.outputs and len(node.users) == 1
            ),
        )

    def site(self, node: Node | None) -> int | None:
        """Which of the places a node is, if it is one."""
        return None if node is None else self.sites.get(self._same.get(node, node))

    def _read(
        self, graph: GraphModule, operands: dict[Node, Any], around: tuple[_Key, ...]
    ) -> list[Node | None]:
        """Go through the nodes, and give what the graph returns.

        Args:
            graph: the whole, or that of a checkpoint.
            operands: of a checkpoint: its inputs -> what they are outside.
            around: calls that a checkpoint lies in.
        """
        for position, node in enumerate(graph.graph.nodes):  # inputs come first
            self._numbers[node] = len(self._numbers)
            if node.op == "placeholder":
                self._take_input(node, position, operands)
            elif node.op != "output":
                self._take(graph, node, around)
        flat = node.args[0] if isinstance(node.args[0], tuple | list) else [node.args[0]]
        return [each if isinstance(each, Node) else None for each in flat]

    def _take_input(self, node: Node, position: int, operands: dict[Node, Any]) -> None:
        outer = operands.get(node)
        if isinstance(outer, Node):
            self._same[node] = outer = self._same.get(outer, outer)
            if outer in self.producers:
                self.producers[node] = [outer]
        elif not operands and any(t.requires_grad and not t.is_leaf for t in _values(node)):
            self.producers[node] = []
            self.inputs.append((position, node))

    def _take(self, graph: GraphModule, node: Node, around: tuple[_Key, ...]) -> None:
        stack = self._stacks[node] = self._stack(node)
        body = _body(graph, node)
        if body is not None:
            operands = dict(zip(_inputs(body), node.args[1:], strict=True))
            made = self._read(body, operands, stack)
            self.producers[node] = [each for each in made if each in self.producers]
            for user in node.users:
                inner = made[user.args[1]] if user.target is operator.getitem else None  # type: ignore[index]  # a number
                if inner is not None:
                    self._same[user] = inner
            return
        values = _values(node)
        if any(t.requires_grad for t in values):
            inputs = (self._now(each) for each in node.all_input_nodes)
            self.producers[node] = [n for n in dict.fromkeys(inputs) if n in self.producers]
        for value in values:
            self._latest[id(value)] = node
        if isinstance(_value(node), Tensor):
            self._take_output(node, stack, around)

    def _now(self, node: Node) -> Node:
        """What stands for the tensor of a node after it was changed in place."""
        value = _value(node)
        return self._latest.get(id(value), node) if isinstance(value, Tensor) else node

    def _take_output(self, node: Node, stack: tuple[_Key, ...], around: tuple[_Key, ...]) -> None:
        left = [key for key in stack if not self._is_kept(node, key, around)]
        outer = [self._call(key) for key in reversed(left) if key != stack[-1]]
        site = self.site(node)
        if site is not None:  # a checkpoint gave what a module inside it made
            self.places[site].aliases.extend([*map(self._call, left[-1:]), *outer])
            return
        if stack[-1:] != tuple(left[-1:]) or not stack or not _is_readable(_value(node)):
            return
        key = stack[-1]
        index = self._given[key] = self._given.get(key, -1) + 1
        if index < MAX_OUTPUTS:
            self.sites[node] = len(self.places)
            source = self._source(node, key)
            number = self._numbers[node]
            self.places.append(Place(*self._call(key), index, number, outer, source))

    def _is_kept(self, node: Node, key: _Key, around: tuple[_Key, ...]) -> bool:
        """Whether a tensor is used nowhere but within one call of a module."""
        return all(key in (around if u.op == "output" else self._stack(u)) for u in node.users)

    def _source(self, node: Node, key: _Key) -> str:
        """For a normalisation: the module that made the very tensor it was given."""
        if not is_normalisation(self._modules[_identity(key)][1]):
            return ""
        while node.all_input_nodes:
            node = node.all_input_nodes[0]
            if key not in self._stacks.get(node, ()):
                site = self.site(node)
                return "" if site is None else self.places[site].module
        return ""

    def _call(self, key: _Key) -> tuple[str, int]:
        """Name of the module, and which of its calls it is."""
        known = self._calls.get(key)
        if known is None:
            name = self._modules[_identity(key)][0]
            number = self._number[name] = self._number.get(name, -1) + 1
            known = self._calls[key] = name, number
        return known

    def _stack(self, node: Node) -> tuple[_Key, ...]:
        """Calls of modules that an operation ran in, the innermost last."""
        stack = node.meta.get("nn_module_stack")
        if stack is None and node.target is operator.getitem:
            return self._stack(node.all_input_nodes[0])
        keys = ((key, path) for key, (path, _) in (stack or {}).items())
        return tuple(key for key in keys if _identity(key) in self._modules)


def _identity(key: _Key) -> str:
    return key[0].partition("@")[0]


def _inputs(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _body(graph: GraphModule, node: Node) -> GraphModule | None:
    """The graph of a checkpoint."""
    if str(node.target) != "tag_activation_checkpoint":
        return None
    body = getattr(graph, str(node.args[0].target))  # type: ignore[union-attr]  # a get_attr
    assert isinstance(body, GraphModule)
    return body


def _put_in(graph: GraphModule, sites: dict[Node, int], token: Node) -> None:
    example = token.meta["example_value"]
    for node in list(graph.graph.nodes):
        body = _body(graph, node)
        if body is not None:
            node.args = (*node.args, token)
            _put_in(body, sites, _placeholder(body, example))
        elif node in sites:
            with graph.graph.inserting_after(node):
                # Each reader takes what the one before gave, so that none is dropped or moved.
                token = graph.graph.call_function(read, (node, token, sites[node]))
            token.meta["example_value"] = example
    graph.recompile()


def _placeholder(graph: GraphModule, example: Tensor) -> Node:
    with graph.graph.inserting_after(_inputs(graph)[-1]):
        node = graph.graph.placeholder("gradscope_run")
    node.meta["example_value"] = example
    node._dynamo_source = None  # AOTAutograd asks for it
    return node


def _value(node: Node) -> Any:
    """The stand-in for what the node gives, as Dynamo computed it."""
    return node.meta.get("example_value")


def _values(node: Node) -> list[Tensor]:
    return tensors_in(_value(node))


def _is_readable(value: Tensor) -> bool:
    plain = type(value).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl
    fake = isinstance(value, torch._subclasses.FakeTensor)
    floating = value.is_floating_point() or value.is_complex()
    return (plain or fake) and floating and value.layout == torch.strided
