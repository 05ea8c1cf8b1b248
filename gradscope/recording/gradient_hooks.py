"""GradientHooks: what waits at the tensors of a step for their gradients, until it is over."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradscope.recording.kernels import Reader


class GradientHooks:
    """Readers of the gradients of one step, at its outputs, inputs and leaves."""

    def __init__(self) -> None:
        self.key = object()
        """Stands for these among the hooks of a tensor that has one of them."""
        self._hooked: list[OrderedDict[object, Reader]] = []
        """Hooks of the tensors that were taken in this step."""
        self._handles: list[RemovableHandle] = []
        """Of the hooks that are not among these."""
        self._leaves: list[Any] = []
        """Graph nodes of leaves with such hooks."""

    def leave(self) -> None:
        """Take the hooks from the tensors of this step, which the user may hold on to."""
        for hooks in self._hooked:
            hooks.pop(self.key, None)
        self._hooked.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._leaves.clear()

    def wait(self, tensor: Tensor, read: Reader) -> None:
        """Have the gradient of the tensor as it is now read, before in-place changes."""
        node = tensor.grad_fn
        if node is None or tensor._backward_hooks is not None or type(tensor) is not Tensor:
            self.at(tensor, read)
        else:
            self.register(tensor, node, read)

    def register(self, tensor: Tensor, node: Any, read: Reader) -> None:
        """What register_hook does at half its cost: there is no handle to remove it with."""
        tensor._backward_hooks = hooks = OrderedDict()
        hooks[self.key] = read  # several times faster than as an argument
        node._register_hook_dict(tensor)
        self._hooked.append(hooks)

    def at(self, tensor: Tensor, read: Reader) -> None:
        """The same for any tensor; at one that stays, nothing may."""
        if tensor.grad_fn is not None:
            handle = tensor.register_hook(read)  # type: ignore[no-untyped-call]  # torch's stub
        else:  # a parameter, or an input of the user's
            node = torch.autograd.graph.get_gradient_edge(tensor).node
            handle = node.register_prehook(lambda gradients: read(gradients[0]))
            self._leaves.append(node)  # else it and the hook may be gone before a graph has it
        self._handles.append(handle)
