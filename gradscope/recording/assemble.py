"""What a trace needs beside its rows: what nobody used, the order of parameters, the revision."""

from __future__ import annotations

import dataclasses
import subprocess
from functools import cache

from torch import nn

from gradscope.recording.groups import Groups
from gradscope.recording.parameters import ParameterReader
from gradscope.recording.strangers import Strangers
from gradscope.trace.structure import Structure
from gradscope.trace.table import RecordedTensor


def complete(
    structure: Structure | None,
    model: nn.Module,
    parameters: ParameterReader,
    groups: Groups,
    strangers: Strangers,
) -> Structure:
    """Add what the forward pass does not tell: which parameters nobody used, and who holds them."""
    structure = structure or Structure()
    ever, moved = parameters.ever(), parameters.moved()
    ran = {info.name for info in structure.modules if info.order >= 0}
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    replaced = strangers.replaced()
    unused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and name not in ever
        and (name in replaced or name.rpartition(".")[0] not in ran)
    ]
    known = bool(ran)  # without activations nobody knows what ran
    return dataclasses.replace(
        structure,
        unused=tuple(unused) if known else (),
        frozen=tuple(frozen),
        moved=tuple(
            n for n, p in model.named_parameters() if p.requires_grad and n in moved - ever
        ),
        late=not ever and bool(parameters.with_gradient()),
        groups=groups.describe(),
        strangers=strangers.named(groups.held()),
    )


def ordered(columns: list[RecordedTensor], structure: Structure) -> tuple[RecordedTensor, ...]:
    """Give parameters the place of the module that used them, or of the nearest one around it."""
    order = {info.name: info.order for info in structure.modules if info.order >= 0}
    unused = set(structure.unused)

    def place(tensor: RecordedTensor) -> RecordedTensor:
        if tensor.kind != "weight" or tensor.name in unused:
            return tensor
        owner = tensor.module
        while owner and owner not in order:
            owner = owner.rpartition(".")[0]
        return dataclasses.replace(tensor, order=order.get(owner, -1))

    return tuple(place(tensor) for tensor in columns)


@cache
def git_revision() -> str:
    """Revision of the code that is being run, empty outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
