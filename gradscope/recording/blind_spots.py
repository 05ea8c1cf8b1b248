"""What a scope cannot see: the sentences that say so, and how it is told."""

from __future__ import annotations

from torch import nn

from gradscope.recording.calls import is_ours

NO_STEP = (
    "no optimizer.step() was seen; call scope.step() after each step, and leave the optimizer out "
    "of watch()"
)

REPLACED = (
    "optimizer.step was replaced while watching; steps after that were not seen; replace it first"
)

COMPILED = (
    "the model is compiled in a way that cannot be looked into: its parameter gradients are "
    "recorded, its activations cannot be; watch or probe the uncompiled model to see them"
)

UNSEEN = (
    "no call of the network or of its parts was seen in a recorded step, as where it runs within a "
    "compiled function: its parameter gradients are recorded, its activations are not; watch what "
    "torch.compile gave for the network, or compile it with model.compile(), to see them"
)


def can_be_called(model: nn.Module) -> bool:
    """Whether any of its modules has a `forward`; a list of parameters has none."""
    return any(type(m).forward is not nn.Module.forward for m in model.modules())


def is_compiled(model: nn.Module) -> bool:
    """Whether it, or a part of it, is compiled; what a scope put in its place does not count."""
    found: list[nn.Module | None] = [model]  # several times faster than model.modules()
    for module in found:
        if module is None:
            continue
        children, entry = module._modules, module._compiled_call_impl
        if "_orig_mod" in children or (entry is not None and not is_ours(entry)):
            return True
        if children:
            found.extend(children.values())
    return False
