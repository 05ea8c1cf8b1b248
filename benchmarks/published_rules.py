"""The labelled zoo, judged by gradscope and by the published rules of other tools.

    python benchmarks/published_rules.py [--seeds 3] [--first-seed 0] [KIND ...]

The rules are implemented from their documentation, with its default thresholds:

- SageMaker Debugger, "List of Debugger built-in rules": VanishingGradient (mean |g| of a gradient
  below 1e-7), ExplodingTensor (NaN or Inf), DeadRelu (more than 50 % of a layer's units active less
  than 1 % of the time), PoorWeightInitialization (variances of activation inputs apart by more than
  10, or the narrowest 5 to 95 % range of a gradient below 0.001), WeightUpdateRatio (above 10 or
  below 1e-8).
- AUTOTRAINER (Zhang et al., ICSE 2021): vanishing (first/last layer's gradient below 1e-3 and the
  first below 1e-4), exploding (first/last above 70, or NaN or Inf), dying ReLU (70 % or more of a
  layer's gradients are zero).

They know sick from healthy, not one verdict from another, so that is what they are asked. Rules on
the loss curve need more steps than a look at the gradients takes and are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import zoo

import gradscope


@dataclass
class Step:
    """What the rules look at, of one training step."""

    grads: dict[str, Tensor] = field(default_factory=dict)
    """Parameter -> gradient, in the order of the network."""
    updates: dict[str, float] = field(default_factory=dict)
    """Parameter -> norm of its change / norm of itself."""
    relu: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Input and output of each ReLU."""


def observe(member: zoo.Member) -> list[Step]:
    """Train the member as its label says, and keep what the rules need."""
    model = member.model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = (member.optimizer or (lambda p: torch.optim.SGD(p, lr=0.0)))(parameters)
    steps = []
    for _ in range(member.steps):
        step = Step()

        def keep(
            module: nn.Module, args: tuple[Tensor, ...], output: Tensor, step: Step = step
        ) -> None:
            del module
            step.relu.append((args[0].detach(), output.detach()))

        hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.ReLU)]
        optimizer.zero_grad()
        (member.loss or zoo.classify)(model(*member.inputs), member.targets).backward()
        for hook in hooks:
            hook.remove()
        named = [(n, p) for n, p in model.named_parameters() if p.grad is not None]
        step.grads = {n: p.grad.clone() for n, p in named}
        before = {n: p.detach().clone() for n, p in named}
        optimizer.step()
        step.updates = {
            n: ((p.detach() - before[n]).norm() / (before[n].norm() + 1e-9)).item()
            for n, p in named
        }
        steps.append(step)
    return steps


def vanishing_gradient(steps: list[Step]) -> bool:
    """SageMaker: the mean magnitude of a gradient is below 1e-7."""
    return any(g.abs().mean() < 1e-7 for step in steps for g in step.grads.values())


def exploding_tensor(steps: list[Step]) -> bool:
    """SageMaker: NaN or Inf anywhere."""
    tensors = (
        t
        for step in steps
        for t in (*step.grads.values(), *(x for pair in step.relu for x in pair))
    )
    return any(not torch.isfinite(t).all() for t in tensors)


def dead_relu(steps: list[Step]) -> bool:
    """SageMaker: more than half of a layer's units are active in less than 1 % of the cases."""
    return any(
        ((out > 0).transpose(0, 1).flatten(1).float().mean(1) < 0.01).float().mean() > 0.5
        for step in steps
        for _, out in step.relu
        if out.dim() > 1
    )


def poor_initialization(steps: list[Step]) -> bool:
    """SageMaker: activation inputs of unlike variance, or a narrow gradient, in the first steps."""
    for step in steps[:10]:
        variances = [given.var().item() for given, _ in step.relu]
        if variances and max(variances) > 10 * min(variances):
            return True
        for grad in step.grads.values():
            ends = torch.quantile(grad.flatten()[: 2**24], torch.tensor([0.05, 0.95]))
            if ends[1] - ends[0] < 0.001:
                return True
    return False


def update_ratio(steps: list[Step]) -> bool:
    """SageMaker: update/weight above 10 or below 1e-8; needs an optimizer that moves."""
    return len(steps) > 1 and any(
        not 1e-8 <= ratio <= 10 for step in steps for ratio in step.updates.values()
    )


def autotrainer_vanishing(steps: list[Step]) -> bool:
    """AUTOTRAINER: first/last < 1e-3 and first < 1e-4."""
    return any(_first(s) / _last(s) < 1e-3 and _first(s) < 1e-4 for s in steps if s.grads)


def autotrainer_exploding(steps: list[Step]) -> bool:
    """AUTOTRAINER: first/last > 70, or a gradient that is not finite."""
    broken = any(not torch.isfinite(g).all() for s in steps for g in s.grads.values())
    return broken or any(_first(s) / _last(s) > 70 for s in steps if s.grads)


def autotrainer_dying(steps: list[Step]) -> bool:
    """AUTOTRAINER: 70 % or more of the gradients of a layer are zero."""
    return any((g == 0).float().mean() >= 0.7 for s in steps for g in s.grads.values())


def _weights(step: Step) -> list[Tensor]:
    return [g for g in step.grads.values() if g.dim() > 1] or list(step.grads.values())


def _first(step: Step) -> float:
    return _weights(step)[0].abs().mean().item()


def _last(step: Step) -> float:
    return _weights(step)[-1].abs().mean().item() or 1e-30


Judge = Callable[[list[Step]], bool]

SAGEMAKER: dict[str, Judge] = {
    "VanishingGradient": vanishing_gradient,
    "ExplodingTensor": exploding_tensor,
    "DeadRelu": dead_relu,
    "PoorWeightInitialization": poor_initialization,
    "WeightUpdateRatio": update_ratio,
}
AUTOTRAINER: dict[str, Judge] = {
    "vanishing": autotrainer_vanishing,
    "exploding": autotrainer_exploding,
    "dying ReLU": autotrainer_dying,
}


def main() -> None:
    """Judge and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(zoo.KINDS), metavar="KIND")
    parser.add_argument("--seeds", type=int, default=3, help="members per kind")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    judges: dict[str, dict[str, Judge]] = {
        "SageMaker": SAGEMAKER,
        "SageMaker, gradients only": {"VanishingGradient": vanishing_gradient},
        "AUTOTRAINER": AUTOTRAINER,
    }
    scores = {name: Counter() for name in ("gradscope", *judges)}
    fired: Counter[str] = Counter()
    exact = 0
    columns = [f"{name:>26}" for name in scores]
    print(f"{'called sick, of ' + str(options.seeds):32}{'label':10}" + "".join(columns))
    for kind in options.kinds:
        sick = Counter()
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            member = zoo.draw(kind, seed)
            verdict = gradscope.diagnose(zoo.watch_member(member)).verdict
            exact += verdict in member.label
            called = {"gradscope": verdict in zoo.SICK}
            member = zoo.draw(kind, seed)  # as it was before training
            steps = observe(member)
            for name, rules in judges.items():
                hits = [rule for rule, judge in rules.items() if judge(steps)]
                called[name] = bool(hits)
                if member.is_healthy and name != "SageMaker, gradients only":
                    fired.update(f"{name}: {rule}" for rule in hits)
            for name, is_sick in called.items():
                sick[name] += is_sick
                scores[name]["right"] += is_sick != member.is_healthy
                scores[name]["false alarms"] += is_sick and member.is_healthy
                scores[name]["misses"] += not is_sick and not member.is_healthy
        label = "healthy" if member.is_healthy else "sick"
        print(f"{kind:32}{label:10}" + "".join(f"{sick[name]:26d}" for name in scores))
    total = len(options.kinds) * options.seeds
    print(f"\n{total} networks; gradscope names the right kind of sickness in {exact}")
    for name, score in scores.items():
        share = score["right"] / total
        print(
            f"{name:26} right {share:6.1%}  false alarms {score['false alarms']:4d}  "
            f"misses {score['misses']:4d}"
        )
    print("\nrules that fired on healthy networks:")
    for rule, count in fired.most_common():
        print(f"  {rule:40} {count:4d}")


if __name__ == "__main__":
    main()
