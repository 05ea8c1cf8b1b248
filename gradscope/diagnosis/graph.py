"""Findings on what modules compute: over one element, without a scale, with too little left."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradscope.diagnosis import limits
from gradscope.diagnosis.case import Case, listed
from gradscope.diagnosis.loss_side import operations, output_module, output_name, output_shape
from gradscope.diagnosis.verdict import Evidence, Finding, Severity, Verdict
from gradscope.layers import WEIGHTED, is_norm, names
from gradscope.trace.structure import ModuleInfo, Softmax
from gradscope.trace.vocabulary import PASSIVE

_LINEAR = PASSIVE | {
    f"{name}Backward{i}"
    for name in (
        "Add",
        "Addmm",
        "AvgPool2D",
        "Bmm",
        "Cat",
        "Convolution",
        "Expand",
        "Mean",
        "MkldnnConvolution",
        "Mm",
        "Mul",
        "NativeDropout",
        "Neg",
        "Select",
        "Split",
        "Stack",
        "Sub",
        "Sum",
        "Unbind",
    )
    for i in range(2)
}
"""Nodes that leave a network of weights linear, or scale it at random; a product of two outputs is
none, but comes with
other nodes that are not in here."""


_PRODUCTS = {"BmmBackward0", "MmBackward0", "ScaledDotProductFlashAttentionForCpuBackward0"}


def one_element(case: Case) -> Iterator[Finding]:
    """A softmax or a normalisation over a single element, whose result is always the same."""
    if operations(case)[1:2] == ("LogSoftmax",) and output_shape(case)[1:] == (1,):
        yield Finding(
            "softmax-of-one",
            Severity.ERROR,
            output_name(case),
            "The cross entropy has one class alone: the softmax over one element is always 1, the "
            "loss always 0, and there is no gradient.",
            {"classes": Evidence(1, "")},
            "Give the network one output for each class, or use BCEWithLogitsLoss for a single "
            "one.",
            Verdict.DEAD,
        )
    for info in case.structure.modules:
        if info.softmax is not None and info.softmax.shape[info.softmax.dim] == 1:
            yield _softmax_of_one(case, info)
        if is_norm(info.type) and _normalised_over(case, info) == 1:
            yield Finding(
                "norm-of-one",
                Severity.ERROR if info.is_cut else Severity.WARNING,
                info.name,
                "This normalisation takes the mean and the deviation of a single element: its "
                "output is the same for every input, and no gradient passes.",
                {"elements": Evidence(1, "normalised together")},
                "Normalise over the features (LayerNorm of their number, fewer groups than "
                "channels), over more examples (BatchNorm), or leave it out here.",
                Verdict.DEAD if info.is_cut else None,
            )


def softmax_over_batch(case: Case) -> Iterator[Finding]:
    """A softmax whose shares add up to one over the examples rather than over the classes."""
    for info in case.structure.modules:
        softmax = info.softmax
        if softmax is None or softmax.dim or len(softmax.shape) != 2 or softmax.shape[1] < 2:
            continue
        batch = {s.shape[0] for s in case.structure.inputs if s.shape} or {*output_shape(case)[:1]}
        if softmax.shape[0] < 2 or softmax.shape[0] not in batch:
            continue
        at_output = softmax.shape == output_shape(case)
        yield Finding(
            "softmax-over-batch",
            Severity.ERROR if at_output else Severity.WARNING,
            info.name or "(root)",
            "This softmax runs over the batch (dim=0): the examples compete with each other, and "
            "what one gets depends on the others in its batch.",
            {"examples": Evidence(softmax.shape[0], "add up to one")},
            "Take it over the classes: softmax(dim=1) or dim=-1.",
            Verdict.VANISHING if at_output else None,
        )


def unscaled_attention(case: Case) -> Iterator[Finding]:
    """Attention whose scores nobody divided by the root of their length, and that is saturated."""
    hit = [(i, s) for i in case.structure.modules if (s := i.softmax) is not None and _peaked(s)]
    if hit:
        largest = max(softmax.largest for _, softmax in hit)
        yield Finding(
            "unscaled-attention",
            Severity.ERROR if largest >= limits.PEAKED else Severity.WARNING,
            listed([info.name or "(root)" for info, _ in hit]),
            "The scores of this attention are products that nothing scales: the softmax puts "
            "nearly everything on one element, where its derivative is zero.",
            {"largest": Evidence(largest, "mean share of the largest element, in the first step")},
            "Divide the scores by the root of the length of a query, sqrt(d), before the softmax, "
            "or use scaled_dot_product_attention, which does.",
            Verdict.VANISHING if largest >= limits.PEAKED else None,
        )


def dropout(case: Case) -> Iterator[Finding]:
    """Dropout that leaves almost nothing."""
    hit = [
        (info.name or "(root)", p)
        for info in case.structure.modules
        if (p := _drops(info)) >= limits.DROPOUT_LARGE
    ]
    if hit:
        most = max(p for _, p in hit)
        severe = most >= limits.DROPOUT_TOO_LARGE
        yield Finding(
            "dropout-too-large",
            Severity.ERROR if severe else Severity.WARNING,
            listed([name for name, _ in hit]),
            f"This dropout sets {100 * most:.0f} % of its inputs to zero: almost nothing is left "
            "to learn from, and what is left is multiplied by as much.",
            {"p": Evidence(most, "share that is dropped")},
            "Use p = 0.1 to 0.5; p is the share that is dropped, not the one that is kept.",
            Verdict.VANISHING if severe else None,
        )


def no_activation(case: Case) -> Iterator[Finding]:
    """Several layers with weights and nothing between them that is not linear."""
    weighted = names(WEIGHTED)
    layers = [
        t
        for _, t in case.columns("weight")
        if t.order >= 0
        and len(t.shape) > 1
        and t.module in case.modules
        and case.modules[t.module].type in weighted
    ]
    ran = [info for info in case.structure.modules if info.order >= 0]
    ends = operations(case)[:1] if output_module(case) not in case.weighted else ()
    made = {name for info in ran for name in _own(case, info, ends)}
    if len(layers) < 2 or not made or not made <= _LINEAR:
        return
    if any(info.type in {"RNN", "LSTM", "GRU"} for info in ran):
        return
    least = min(layers[0].shape[1], layers[-1].shape[0])
    if any(t.shape[0] < least for t in layers[:-1]):  # a factorisation, or an autoencoder
        return
    severe = len(layers) >= limits.MIN_LINEAR
    yield Finding(
        "no-activation",
        Severity.ERROR if severe else Severity.WARNING,
        f"{layers[0].module} ... {layers[-1].module}",
        "There is no activation between the layers: together they are one linear map, whatever "
        "their number.",
        {"layers": Evidence(len(layers), "with weights")},
        "Put an activation such as ReLU or GELU after each layer but the last.",
        Verdict.STALLED if severe else None,
    )


def _own(case: Case, info: ModuleInfo, last: tuple[str, ...]) -> tuple[str, ...]:
    """What a module computes, but for an activation that makes the output of the network."""
    if info.name != output_module(case) or {*info.operations} & _PRODUCTS:
        return info.operations
    return tuple(n for n in info.operations if n.partition("Backward")[0] not in last)


def _drops(info: ModuleInfo) -> float:
    """The share that a module sets to zero, as a dropout or by one that it calls."""
    known = info.settings
    own = known.get("p", 0.0) if "Dropout" in info.type and known.get("training") else 0.0
    return max(own if info.order >= 0 else 0.0, known.get("drops", 0.0))


def _softmax_of_one(case: Case, info: ModuleInfo) -> Finding:
    softmax = info.softmax
    at_output = softmax is not None and softmax.shape == output_shape(case)
    return Finding(
        "softmax-of-one",
        Severity.ERROR if at_output else Severity.WARNING,
        info.name or "(root)",
        "This softmax runs over a single element: its result is always 1, and no gradient passes.",
        {"elements": Evidence(1, "along its dimension")},
        "Take the softmax over the dimension of the classes, or a sigmoid for a single output.",
        Verdict.DEAD if at_output else None,
    )


def _normalised_over(case: Case, info: ModuleInfo) -> float:
    """How many elements share a mean and a deviation; NaN where that is not known."""
    if "normalized" in info.settings:
        return info.settings["normalized"]
    shapes = [t.shape for _, t in case.columns("activation") if t.module == info.name]
    if "num_groups" in info.settings and shapes and len(shapes[0]) > 1:
        channels = shapes[0][1] / info.settings["num_groups"]
        return channels * math.prod(shapes[0][2:])
    return math.nan


def _peaked(softmax: Softmax) -> bool:
    wide = softmax.shape[softmax.dim] >= limits.MIN_KEYS
    return softmax.of_products and wide and softmax.largest >= limits.PEAKED_MILD
