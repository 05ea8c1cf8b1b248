"""Remedies that fit the network at hand: its activations, norms, skips and depth."""

from __future__ import annotations

import math
from collections.abc import Collection

from gradscope.diagnosis.case import Case
from gradscope.layers import RECTIFYING, SATURATING, names


def vanishing(case: Case) -> str:
    """What helps against a gradient that shrinks towards the input."""
    types, steps = case.types, []
    if "Sigmoid" in types and not types & names(RECTIFYING):
        steps.append(
            "replace the sigmoids by ReLU with Kaiming initialisation: a sigmoid passes at most "
            "1/4 of the gradient"
        )
    elif types & names(SATURATING) and not types & names(RECTIFYING):
        steps.append(
            "initialise for tanh: xavier_normal_ with gain 5/3, or orthogonal_ with gain 1; the "
            "weights are too small for the depth"
        )
    elif not case.has_norm:
        steps.append("initialise with kaiming_normal_(nonlinearity='relu'), Var w = 2/fan_in")
    if _mostly_plain(case):
        steps.append(
            "add identity skips around every two layers"
            + ("" if case.has_norm else ", with a normalisation in each branch")
        )
    elif not case.has_norm:
        steps.append("normalise inside each branch (BatchNorm or LayerNorm)")
    else:
        steps.append(
            "put the normalisation before the layers of each branch (pre-norm), so that the skip "
            "path stays free of it"
        )
    return _sentence(steps)


def exploding(case: Case, direction: str) -> str:
    """What helps against a gradient or activations that grow."""
    if _mostly_plain(case) and case.has_norm:
        return _sentence(
            [
                (
                    "add identity skips around every two layers: normalisation without skips "
                    "multiplies the gradient by about 1.21 per layer, and no initialisation or "
                    "learning rate changes that"
                )
            ]
        )
    if not _mostly_plain(case) and not case.has_norm:
        return _sentence(
            [
                (
                    "normalise inside each branch, or start the last layer of each branch at zero "
                    "(SkipInit, Fixup), or scale the branches by 1/sqrt(number of blocks): each "
                    "sum of skip and branch multiplies the variance by two"
                )
            ]
        )
    steps = []
    if case.types & names(SATURATING):
        steps.append("scale the weights down to gain 5/3 for tanh, or use orthogonal_ with gain 1")
    else:
        steps.append("scale the weights down to Var w = 2/fan_in (kaiming_normal_)")
    if not case.has_norm:
        steps.append("or normalise after each layer and add skips")
    if direction == "backward":
        steps.append("clip the gradient norm until then")
    return _sentence(steps)


def short_memory(case: Case, module: str) -> str:
    """What lengthens the memory of a recurrent network."""
    if case.is_gated(module):
        return _sentence(
            ["start the forget gate open: bias 1 or more (for a GRU, a negative bias of z)"]
        )
    return _sentence(
        [
            "initialise the recurrent weights with orthogonal_ or the identity",
            "or use LSTM or GRU cells",
        ]
    )


def exploding_in_time(module: str) -> str:
    """What tames a recurrent network."""
    return _sentence(
        [
            f"scale the recurrent weights of {module} to a spectral radius of 1 (orthogonal_)",
            "clip the gradient norm",
        ]
    )


def dead(case: Case) -> str:
    """What revives dead units."""
    steps = ["check the biases and the scale of the inputs of these layers"]
    if case.types & {"ReLU", "ReLU6"}:
        steps.append("use LeakyReLU or GELU, which pass a gradient on both sides")
    if len(case.trace.steps) > 1:
        steps.append("lower the learning rate: a large step may have killed them")
    return _sentence(steps)


def silent_loss() -> str:
    """What to look for where the loss gives no gradient."""
    return _sentence(
        [
            "look for a mask or weights that leave nothing of the loss",
            "for a clamp, a ReLU or a margin at the loss that all outputs lie beyond",
            "and for an activation at the output that has died or is at its bound",
        ]
    )


def saturation(case: Case) -> str:
    """What brings units back from their bounds."""
    steps = ["scale the weights down (xavier_normal_)"]
    if not case.has_norm:
        steps.append("or normalise before the activation")
    return _sentence(steps)


def disconnected() -> str:
    """Where to look for the cut."""
    return _sentence(
        [
            "look for detach(), no_grad(), .data or a detour over numpy on the way to the loss",
            "look for an output that the loss does not use",
            "set requires_grad=False if they are meant to be frozen",
        ]
    )


def cut_at_loss() -> str:
    """Where to look for a loss that nothing is behind."""
    return _sentence(
        [
            (
                "compute the loss from the outputs themselves: a new tensor of their numbers "
                "(torch.tensor(x, requires_grad=True), .item(), .detach(), numpy) and argmax or "
                "round have no history, and requires_grad_() does not bring it back"
            ),
            "call loss.backward() before optimizer.step()",
        ]
    )


def integers() -> str:
    """What lets a gradient pass a choice."""
    return _sentence(
        [
            (
                "let a gradient pass the choice: a softmax-weighted sum in place of argmax and "
                "index, gumbel_softmax(hard=True), or a straight-through estimator (hard + soft "
                "- soft.detach())"
            ),
            "for reinforcement learning, a loss of log-probabilities",
        ]
    )


def detached(name: str) -> str:
    """Where to look for the cut before a module."""
    return _sentence(
        [
            f"look for detach(), no_grad(), .data, .item() or a detour over numpy before {name}",
            "take what comes before out of the optimizer if the cut is meant",
        ]
    )


def no_grad() -> str:
    """What to do with trained parameters that run under no_grad."""
    return _sentence(
        [
            "call these modules outside of torch.no_grad()",
            "or take them out of the optimizer if they are a teacher",
        ]
    )


def checkpoint() -> str:
    """What makes reentrant checkpoints build a graph."""
    return _sentence(
        [
            "call checkpoint(..., use_reentrant=False)",
            (
                "or let the input of the checkpoint require a gradient "
                "(model.enable_input_require_grads() in transformers)"
            ),
        ]
    )


def zero_factors() -> str:
    """What lets factors that start at zero move."""
    return _sentence(
        [
            (
                "initialise all but the last of them with random non-zero values (kaiming_uniform_ "
                "for LoRA's A) and leave only the last one at zero"
            )
        ]
    )


def watch_closely(last_good: int) -> str:
    """How to find where it began."""
    return _sentence(
        [
            f"resume from a checkpoint near step {last_good} and watch with every=1",
            "lower the learning rate or clip the gradient norm meanwhile",
        ]
    )


def broken_step(*, half: bool) -> str:
    """What keeps a step finite."""
    if half:
        return _sentence(
            [
                (
                    "keep the weights in float32 and compute under autocast (mixed precision), or "
                    "use bfloat16"
                ),
                "or raise the optimizer's eps to 1e-4",
            ]
        )
    return _sentence(
        ["lower the learning rate", "clip the gradient norm", "look at eps and momentum"]
    )


def skipped() -> str:
    """What to do where no loss scale is small enough."""
    return _sentence(
        ["look for what makes NaN or Inf in the forward pass or the loss, without the scaler"]
    )


def broken_input() -> str:
    """What to do with data that hold NaN."""
    return _sentence(
        [
            (
                "look for missing values and divisions by a zero range in the data, and leave such "
                "examples out (torch.isfinite)"
            )
        ]
    )


def broken_forward(name: str, *, late: bool) -> str:
    """Where to look for NaN in a forward pass."""
    steps = [
        f"look for a division, log, sqrt, exp or norm in {name} and keep its argument in range"
    ]
    if late:
        steps.append(
            "if its inputs grew step by step, lower the learning rate or clip the gradient norm"
        )
    return _sentence(steps)


def broken_loss() -> str:
    """What keeps a loss finite."""
    return _sentence(
        [
            (
                "clamp the denominator (x / n.clamp(min=1)) and skip batches that are empty after "
                "masking"
            ),
            "give logits to a loss that takes logits, rather than log of a probability",
        ]
    )


def broken_backward(operations: Collection[str]) -> str:
    """What keeps a backward pass finite."""
    if any(name.startswith("Where") for name in operations):
        return _sentence(
            [
                (
                    "clamp the argument of the branch that is not taken before torch.where, so "
                    "that neither branch overflows"
                )
            ]
        )
    return _sentence(
        [
            (
                "look for an infinite derivative, as of sqrt(0), log(0) or a norm of zero, and add "
                "a small constant inside (sqrt(x + eps))"
            ),
            "torch.autograd.set_detect_anomaly(True) names the operation",
        ]
    )


def odd(name: str, decades: float) -> str:
    """What to do with one layer that is off."""
    return _sentence(
        [f"initialise {name} like its neighbours: its weights are off by about 10^{decades:+.1f}"]
    )


def rate(highest: float, middle: float, *, eps: float = 0.0) -> str:
    """A learning rate that gives the usual update of a thousandth.

    Args:
        highest: largest update/weight.
        middle: typical update/weight.
        eps: of the optimizer, where it is larger than the gradients.
    """
    if eps:
        return _sentence(
            [f"lower the optimizer's eps of {eps:.3g}, beside which the gradients are nothing"]
        )
    factor = 1e-3 / (middle or highest) if middle or highest else 0.0
    if not factor:
        return _sentence(["raise the learning rate: the updates are lost in rounding"])
    change = "raise" if factor > 1 else "lower"
    size = times(max(factor, 1 / factor))
    return _sentence([f"{change} the learning rate by {size}, to updates of 1e-3"])


def times(factor: float) -> str:
    """A factor in words, to its first digit, or to its power of ten where it is a million or more.

    Args:
        factor: one or more.
    """
    power = math.floor(math.log10(factor))
    if power >= 6:
        return f"a factor of about 10^{power}"
    return f"a factor of about {round(factor / 10**power) * 10**power:,d}"


def _mostly_plain(case: Case) -> bool:
    """Whether most blocks have no way around their weights."""
    names = case.flow.blocks
    return 2 * sum(case.is_bypassed(name) for name in names) < max(len(names), 1)


def _sentence(steps: list[str]) -> str:
    text = "; ".join(steps)
    return text[:1].upper() + text[1:] + "."
