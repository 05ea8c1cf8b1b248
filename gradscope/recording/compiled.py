"""CompiledParts: at recorded steps, a second graph of what is compiled, with readers in it.

The graphs of the user are not touched. For a recorded call Dynamo is asked for another graph, by a
backend that puts readers in and hands it on to the user's: backends are what Dynamo tells graphs of
the same code apart by. So no guard, no hook and no cost is added to any other call.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from gradscope.recording.compiled_graph import Layout, Place, with_readers
from gradscope.recording.compiled_operators import NO_RUN, begin
from gradscope.recording.eligible import MAX_CALLS
from gradscope.recording.gradient_hooks import GradientHooks
from gradscope.recording.guard import Guard, strict
from gradscope.recording.known import KnownModule, place
from gradscope.recording.network import Call
from gradscope.recording.output_readers import Output, OutputReaders
from gradscope.recording.unseen import compiler, unseen_by_dynamo

Made = tuple[weakref.ref[Tensor], int, str, int]
"""A tensor that was read, its version then, and the call of a module that gave it."""

Node = tuple[int, int]
"""Stands for a node of a graph in one of its runs."""

_OPTIONS = inspect.signature(torch.compile).parameters
_ALONE: Any = {"isolate_recompiles": True} if "isolate_recompiles" in _OPTIONS else {}
"""Graphs with readers do not count as recompilations of those without, where torch can tell."""


class CompiledParts:
    """The compiled parts of one network, and what was seen in them in this step."""

    def __init__(
        self,
        *,
        modules: dict[int, KnownModule],
        calls: list[Call],
        seen: dict[int, Made],
        readers: OutputReaders,
        hooks: GradientHooks,
        guard: Guard,
        truncated: set[str],
        position: Callable[[], int],
        on_fault: Callable[[], None],
    ) -> None:
        self.root: nn.Module | None = None
        """The part that runs."""
        self.inner: dict[Any, list[Any]] = {}
        """Nodes of compiled graphs, and of what reads them -> nodes that they came from."""
        self.modules, self.calls, self.seen, self.readers = modules, calls, seen, readers
        self.hooks, self.guard, self.truncated, self.position = hooks, guard, truncated, position
        self.on_fault = on_fault
        self.found = False
        """Whether a graph with readers ran in this step."""
        self._variants: list[tuple[Any, Callable[..., Any]]] = []
        self._entries: weakref.WeakKeyDictionary[Any, Callable[..., Any]]
        self._entries = weakref.WeakKeyDictionary()
        self._runs: list[_Run] = []
        self._given: dict[int, tuple[weakref.ref[Tensor], Node]] = {}

    def forget(self) -> None:
        """Forget the last forward pass: what its graphs still read is of no interest."""
        self._runs.clear()
        self._given.clear()
        self.inner.clear()
        self.found = False

    def entry(self, compiled: Any) -> Callable[..., Any] | None:
        """What to call instead of something compiled.

        Args:
            compiled: what `torch.compile` gave for a function.

        Returns:
            Takes the function, its arguments and its named arguments; None where nothing is known
            of how it was compiled.
        """
        entry = self._entries.get(compiled)
        if entry is None:
            cells = getattr(compiled, "__closure__", None) or ()
            contexts = [c.cell_contents for c in cells if hasattr(c.cell_contents, "callback")]
            if len(contexts) != 1:
                return None
            parts = weakref.ref(self)

            def inside(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
                known = parts()
                call = plainly if known is None else known.variant(compiler())
                return call(function, args, kwargs)

            unseen_by_dynamo(inside, callees=False)
            entry = self._entries[compiled] = contexts[0](inside)
        return entry

    def variant(self, backend: Any) -> Callable[..., Any]:
        """The same within something compiled; `backend` is what compiles there."""
        while hasattr(backend, "_torchdynamo_orig_backend"):
            backend = backend._torchdynamo_orig_backend
        for known, variant in self._variants:
            if known == backend:
                return variant
        compiles: Any = torch.compile  # with an option that not every torch has
        made: Callable[..., Any] = compiles(plainly, backend=_Readers(backend, self), **_ALONE)
        self._variants.append((backend, made))
        return made

    def gave(self, tensor: Tensor, node: Node) -> None:
        """A compiled graph gave a tensor, made by one of its nodes."""
        self._given[id(tensor)] = (weakref.ref(tensor), node)
        if tensor.grad_fn is not None:
            self.inner.setdefault(tensor.grad_fn, []).append(node)

    def node_of(self, tensor: Tensor) -> Any:
        """The node that made a tensor: of a compiled graph or else of autograd's."""
        made = self._given.get(id(tensor))
        return made[1] if made is not None and made[0]() is tensor else tensor.grad_fn

    def begin(self, layout: Layout, inputs: Sequence[Any]) -> Tensor:
        """A graph begins to run; its number."""
        assert self.root is not None
        run = _Run(self, layout, dict(self.root.named_modules()))
        self._runs.append(run)
        token = begin(run)
        run.expect(int(token), inputs)
        return token

    def end(self, outputs: Sequence[Any]) -> None:
        """The graph that began last gave its outputs."""
        if self._runs:
            self._runs[-1].end(outputs)


class _Run:
    """One run of a compiled graph."""

    def __init__(self, parts: CompiledParts, layout: Layout, names: dict[str, nn.Module]) -> None:
        self._parts = parts
        self._layout = layout
        self._names = names
        self._number = 0
        self._before: dict[str, int] = {}
        """How often each module had run before."""
        self._given: dict[tuple[str, int], int] = {}
        self._expected: list[_Expected | None] = []
        self._outputs: dict[int, Output] = {}
        wrap = parts.guard.wrap
        self.output = wrap("at an output in a compiled part", self._output)
        self.direct = wrap("at an output in a compiled part", self._direct)
        self.gradient = wrap("at a gradient in a compiled part", self._gradient)

    def expect(self, number: int, inputs: Sequence[Any]) -> None:
        """Announce the outputs, in the order of computation; readers may run in another one."""
        self._number = number
        self._expected = [self._expect(each) for each in self._layout.places]
        inner = self._parts.inner
        for node, before in self._layout.producers.items():
            inner[number, node] = [(number, each) for each in before]
        for position, node in self._layout.inputs:
            made = inputs[position].grad_fn
            inner[number, node] = [] if made is None else [made]
        self._parts.found |= bool(self._layout.places)

    def end(self, outputs: Sequence[Any]) -> None:
        """Tell of what the graph gave."""
        for tensor, (node, site) in zip(outputs, self._layout.outputs, strict=True):
            if not isinstance(tensor, Tensor):
                continue
            if node is not None:
                self._parts.gave(tensor, (self._number, node))
            expected = None if site is None else self._expected[site]
            if expected is not None:
                made = (weakref.ref(tensor), tensor._version, expected.name, expected.call)
                self._parts.seen[id(tensor)] = made
                self._wait_outside(site, tensor)

    def _expect(self, given: Place) -> _Expected | None:
        module = self._names.get(given.module)
        known = self._parts.modules.get(id(module))
        if module is None or known is None:
            return None
        call = self._count(known, given.call)
        if call >= MAX_CALLS:
            self._parts.truncated.add(known.name)
            return None
        expected = _Expected(known, module, call, given.index, self._parts.position())
        node = (self._number, given.node) if given.node in self._layout.producers else None
        source = self._parts.modules.get(id(self._names.get(given.source)))
        made = (known.name, call)
        calls = self._parts.calls
        calls.append(Call(*made, given.index, node, *made, source.name if source else ""))
        for name, number in given.aliases:
            outer = self._parts.modules.get(id(self._names.get(name)))
            if outer is not None:
                outer_call = self._count(outer, number)
                index = self._given.get((outer.name, outer_call), 0)
                self._given[outer.name, outer_call] = index + 1
                calls.append(Call(outer.name, outer_call, index, node, *made))
        return expected

    def _wait_outside(self, site: int | None, tensor: Tensor) -> None:
        """Have the gradient read where the graph hands out what it does not read itself.

        To compiled code a gradient that nobody sends is one of zeros.
        """
        seen = self._outputs.get(site) if site in self._layout.last else None
        if seen is not None and tensor.requires_grad:
            read = seen.read_gradient
            self._parts.hooks.wait(tensor, lambda g: None if g is None else read(g))

    def _count(self, known: KnownModule, call: int) -> int:
        """Which call of a module in this step is a call in this run."""
        number = self._before.setdefault(known.name, known.calls) + call
        known.calls = max(known.calls, number + 1)
        return number

    def _output(self, site: int, tensor: Tensor) -> None:
        expected = self._expected[site]
        if expected is None or site in self._outputs:  # the backward pass computes some again
            return
        seen = self._outputs[site] = expected.output(self._parts.readers, tensor)
        seen.read(tensor)
        for read in seen.also:
            read(tensor)

    def _gradient(self, site: int, gradient: Tensor) -> None:
        seen = self._outputs.get(site)
        if seen is not None and site not in self._layout.last:
            seen.read_gradient(gradient)

    def _direct(self, site: int, tensor: Tensor) -> None:
        self._output(site, tensor.detach())
        seen = self._outputs.get(site)
        if seen is not None and tensor.requires_grad and site not in self._layout.last:
            self._parts.hooks.wait(tensor, seen.read_gradient)


class _Expected:
    """One output that a run is to give."""

    __slots__ = ("_index", "_known", "_module", "_position", "call", "name")

    def __init__(
        self, known: KnownModule, module: nn.Module, call: int, index: int, position: int
    ) -> None:
        self.name, self.call = known.name, call
        self._known, self._module, self._index, self._position = known, module, index, position

    def output(self, readers: OutputReaders, tensor: Tensor) -> Output:
        """Its readers, now that it is there."""
        at = place(self.call, self._index)
        seen = self._known.outputs.get(at)
        if seen is None or seen.device != tensor.device:
            seen = self._known.outputs[at] = readers.of(
                self.name,
                self._module,
                tensor,
                call=self.call,
                index=self._index,
                position=self._position,
            )
        return seen


class _Readers:
    """A backend that puts readers into a graph and hands it on to another backend."""

    def __init__(self, backend: Any, parts: CompiledParts) -> None:
        self._backend = backend
        self._parts = weakref.ref(parts)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any], **options: Any) -> Any:
        parts = self._parts()
        if parts is None or parts.root is None or parts.guard.faulty:
            return self._backend(graph, inputs, **options)
        fake = detect_fake_mode(inputs)
        example = NO_RUN if fake is None else fake.from_tensor(NO_RUN, static_shapes=True)
        try:
            mine, layout = with_readers(graph, parts.root, example)
            compiled = self._backend(mine, [*inputs, example], **options)
        except Exception:  # whatever is wrong, the training has no need of readers
            if strict():
                raise
            compiled = self._backend(graph, inputs, **options)
            parts.on_fault()
            return compiled
        begin = parts.guard.wrap("at the beginning of a compiled part", _begin)
        end = parts.guard.wrap("at the end of a compiled part", _end)
        known = self._parts

        def run(*args: Any) -> Any:
            token = begin(known, layout, args)
            outputs = compiled(*args, NO_RUN if token is None else token)
            if token is not None:
                end(known, outputs)
            return outputs

        return run


def _begin(known: weakref.ref[CompiledParts], layout: Layout, inputs: Any) -> Tensor | None:
    parts = known()
    return None if parts is None or parts.root is None else parts.begin(layout, inputs)


def _end(known: weakref.ref[CompiledParts], outputs: Any) -> None:
    parts = known()
    if parts is not None:
        parts.end(outputs)


def plainly(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function."""
    return function(*args, **kwargs)


unseen_by_dynamo(plainly, callees=False)
for _own in (CompiledParts.entry, CompiledParts.variant):
    unseen_by_dynamo(_own, callees=True)
