"""What a diagnosis rests on, and findings on what could not be seen."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.diagnosis.case import Case
from gradscope.diagnosis.verdict import Evidence, Finding, RestsOn, Severity, Verdict


def rests_on(case: Case) -> RestsOn:
    """What was looked at."""
    steps = case.trace.steps
    seen = case.trace.present.any(dim=0).tolist() if steps else [False] * len(case.trace.tensors)
    kinds = [tensor.kind for tensor, came in zip(case.trace.tensors, seen, strict=True) if came]
    blind_spots = case.trace.metadata.get("blind_spots", ())
    return RestsOn(
        steps=len(steps),
        first=steps[0].step if steps else 0,
        last=steps[-1].step if steps else 0,
        gradients=kinds.count("weight"),
        outputs=kinds.count("activation_grad"),
        unseen=tuple(dict.fromkeys(str(line) for line in blind_spots)),
    )


def unseen(case: Case) -> Iterator[Finding]:
    """Too little was recorded to call the network healthy."""
    basis = rests_on(case)
    if not basis.steps:
        yield _inconclusive(
            "nothing-recorded",
            "No step was recorded, so that nothing can be said."
            if not case.skipped
            else "Every recorded step was skipped by the GradScaler, so that nothing can be said.",
            "Run at least one forward and backward pass and one optimizer.step() inside watch(); "
            "where the optimizer is not known to watch(), call scope.step() after each step."
            if not case.skipped
            else "Record more steps, until the loss scale has settled.",
        )
    elif not basis.gradients:
        yield _inconclusive(
            "no-gradients",
            "No gradient of any parameter was seen: no backward pass reached the parameters of "
            "this network between two steps.",
            "Watch the module whose parameters are trained, and call backward() inside watch().",
        )
    elif not basis.outputs or (basis.outputs == 1 and _matrices(case) > 1):
        one = ", and one output" if basis.outputs else ""
        told = f" ({basis.unseen[0]})" if basis.unseen else ""
        yield _inconclusive(
            "no-activations",
            f"Only the gradients of weights were recorded{one}{told}: they can look level while "
            "the gradient vanishes on its way to the input.",
            "Record with activations=True, and watch the uncompiled network.",
            parameters=Evidence(basis.gradients, "with a gradient"),
        )


def _matrices(case: Case) -> int:
    """Weights that a gradient may vanish between: those with two or more dimensions."""
    return sum(t.kind == "weight" and len(t.shape) > 1 for t in case.trace.tensors)


def _inconclusive(kind: str, message: str, remedy: str, **evidence: Evidence) -> Finding:
    return Finding(kind, Severity.WARNING, "trace", message, evidence, remedy, Verdict.INCONCLUSIVE)
