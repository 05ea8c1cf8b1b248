"""Findings on parameters without a gradient, and why: cut off, unread, unused, frozen."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis import advice
from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.trace.structure import ModuleInfo
from gradscope.trace.table import RecordedTensor


def disconnected(case: Case) -> Iterator[Finding]:
    """Parameters whose module ran, that should have got a gradient and did not: a cut.

    No cut are those of a teacher (it ran under no_grad, or no optimizer holds it) and those whose
    output nobody reads, unless a later module was given something without a history in its stead.
    """
    if not case.trace.steps:
        return
    if case.has_no_gradient:
        if case.is_cut_at_loss and case.earlier is None:
            yield Finding(
                "disconnected",
                Severity.ERROR,
                "loss",
                "No backward pass reached the outputs of the network: the loss does not hang "
                "together with them, or backward() is not called.",
                {"steps": Evidence(len(case.trace.steps), "without any gradient")},
                advice.cut_at_loss(),
                Verdict.DISCONNECTED,
            )
        return
    cuts: dict[tuple[str, str], list[str]] = {}
    aside: list[str] = []
    for tensor in _silent(case):
        info = case.modules.get(tensor.module)
        if info is None or not _took_part(case, tensor) or _idle(case, tensor.module):
            continue
        if cut := _cut(case, tensor, info):
            cuts.setdefault(cut, []).append(tensor.name)
        else:
            aside.append(tensor.name)
    for (message, remedy), names in cuts.items():
        yield Finding(
            "disconnected",
            Severity.ERROR,
            listed(names),
            message,
            {"parameters": Evidence(len(names), "without a gradient")},
            remedy,
            Verdict.DISCONNECTED,
        )
    if aside:
        yield Finding(
            "no-gradient",
            Severity.INFO,
            listed(aside),
            "These parameters took part in the forward pass and need no gradient: nothing that the "
            "loss depends on reads their output, or it was computed under no_grad, as a teacher's.",
            {"parameters": Evidence(len(aside), "without a gradient")},
        )


def unused(case: Case) -> Iterator[Finding]:
    """Parameters that never took part in the forward pass."""
    names = [n for n in case.structure.unused if not _ran(case, n.rpartition(".")[0])]
    replaced = [name for name in case.structure.unused if name not in names]
    names += [t.name for t in _silent(case) if case.structure.modules and not _took_part(case, t)]
    left = [name for name in names if case.held and name not in case.held]
    names = [name for name in names if name not in left]
    if replaced:
        yield Finding(
            "replaced",
            Severity.INFO,
            listed(replaced),
            "These parameters are not trained: when their modules ran, other tensors stood in "
            "their places, as torch.func.functional_call puts them there.",
            {"parameters": Evidence(len(replaced), "with others in their places")},
        )
    if left:
        yield Finding(
            "not-trained",
            Severity.INFO,
            listed(left),
            "These parameters never took part in the forward pass and are in no optimizer, as "
            "those of a target network that is only copied to.",
            {"parameters": Evidence(len(left), "neither used nor in an optimizer")},
        )
    if names:
        yield Finding(
            "unused",
            Severity.WARNING,
            listed(names),
            "These parameters never took part in the forward pass.",
            {"parameters": Evidence(len(names), "unused")},
            "Remove them, or call their module; they cost memory and optimizer state.",
        )


def structural(case: Case) -> Iterator[Finding]:
    """Zeros that the structure of the network makes; never an alarm."""
    if case.structure.cancelled:
        names = list(case.structure.cancelled)
        yield Finding(
            "structural-zero",
            Severity.INFO,
            listed(names),
            "These biases are subtracted again by the normalisation after them: their true "
            "gradient is zero, what is measured is rounding.",
            {"parameters": Evidence(len(names), "cancelled")},
            "Build their layers with bias=False.",
        )
    if case.structure.frozen:
        names = list(case.structure.frozen)
        yield Finding(
            "frozen",
            Severity.INFO,
            listed(names),
            "These parameters have requires_grad=False.",
            {"parameters": Evidence(len(names), "frozen")},
        )


def _silent(case: Case) -> Iterator[RecordedTensor]:
    """Trainable parameters that got no gradient, and not by chance."""
    known = {*case.structure.frozen, *case.structure.unused}
    for i, tensor in case.columns("weight"):
        if tensor.name not in known and not case.was_seen(i):
            yield tensor


def _took_part(case: Case, tensor: RecordedTensor) -> bool:
    """That a leaf ran means that its parameters took part; a container may hold a leftover."""
    return _ran(case, tensor.module)


def _ran(case: Case, module: str) -> bool:
    info = case.modules.get(module)
    return info is not None and info.order >= 0 and module not in case.parents


def _idle(case: Case, module: str) -> bool:
    """Whether a module gave no output in this stretch of a run, as an expert that gets no token."""
    outputs = [i for i, t in case.columns("activation") if t.module == module]
    return bool(outputs) and not bool(case.trace.present[:, outputs].any())


def _cut(case: Case, tensor: RecordedTensor, info: ModuleInfo) -> tuple[str, str] | None:
    """Why a parameter that took part got no gradient, and the mend; None where it needs none."""
    if info.mode == "checkpoint":
        return _CHECKPOINT, advice.checkpoint()
    if info.mode == "no_grad":
        trained = tensor.name in case.held and tensor.name not in case.structure.moved
        return (_NO_GRAD, advice.no_grad()) if trained else None
    left_alone = case.held and tensor.name not in case.held  # neither a gradient nor an optimizer
    if left_alone or tensor.module in case.structure.aside:
        return None
    unread = case.structure.handed_on  # what is given to those tells nothing of who reads them
    read = (m for m in case.structure.modules if m.takes and m.name not in unread)
    later = next((m for m in read if m.order > info.order), None)
    if later is not None and later.takes != "gradient":
        if later.takes == "integer":
            given, mend = "integers, as argmax or an index makes", advice.integers()
        else:
            given, mend = "a tensor without a history", advice.detached(later.name)
        return f"{_CUT} before {later.name}, which is given {given}.", mend
    if tensor.module in case.structure.handed_on:
        return None
    return f"{_CUT} between them and the loss.", advice.disconnected()


_CUT = "These parameters took part in the forward pass and get no gradient: the graph is cut"
_NO_GRAD = "These parameters are in the optimizer and ran under no_grad: no graph was built."
_CHECKPOINT = (
    "These parameters ran inside a reentrant checkpoint none of whose inputs needs a gradient: "
    "the checkpointed blocks built no graph."
)
