"""Step sizes and learning rates over time, on traces whose every number is known."""

import dataclasses

import pytest
import torch
from handwritten import Net

from gradscope import diagnose
from gradscope.trace.structure import ParameterGroup
from gradscope.trace.table import RecordedStep


def judged(updates, *, rates=None, momentum=0.0, losses=None, clip=None, kind="SGD"):
    """The diagnosis of six layers with these updates, rates and losses at each step."""
    net = Net(6, steps=len(updates))
    names = []
    for i in range(6):
        net.put("weight", f"l{i}", "weight", update_ratio=updates)
        if clip is not None:
            net.put("weight", f"l{i}", "weight", unclipped_norm=1 / clip)
        names.append(f"l{i}.weight")
    if losses is not None:
        net.steps = [RecordedStep(i, loss=float(loss)) for i, loss in enumerate(losses)]
    trace = net.trace()
    if rates is not None:
        group = ParameterGroup(kind, tuple(names), 0, {"lr": rates[0], "momentum": momentum})
        structure = dataclasses.replace(trace.structure, groups=(group,))
        trace = dataclasses.replace(
            trace, structure=structure, logged={"lr/0": tuple(enumerate(map(float, rates)))}
        )
    diagnosis = diagnose(trace)
    return diagnosis, {finding.kind: finding for finding in diagnosis.findings}


def momentum_at(step, momentum=0.9):
    """What a step has of its final size: 1 - momentum^(step + 1)."""
    return 1 - momentum ** (step + 1)


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_momentum_is_no_warm_up(steps):
    """Updates that grow at a constant rate are of their final size, which is what is judged."""
    for final, verdict in ((1e-6, "stalled"), (1e-3, "healthy")):
        updates = [final * momentum_at(i) for i in range(steps)]
        diagnosis, findings = judged(updates, rates=[0.1] * steps, momentum=0.9)
        assert diagnosis.verdict == verdict, str(diagnosis)
        assert ("updates-too-small" in findings) == (verdict == "stalled")


def test_small_steps_of_momentum_that_is_still_building_up():
    """4e-6 in the first of three steps becomes 4e-5: no error, and no warning either."""
    updates = [4e-6, 7.6e-6, 1.1e-5]
    diagnosis, findings = judged([x / 2 for x in updates], rates=[0.1] * 3, momentum=0.9)
    assert diagnosis.is_healthy
    assert findings == {}


def test_a_warm_up_is_a_rate_that_rises():
    """The same updates, told apart by the rate."""
    updates = [1e-7 * (i + 1) for i in range(20)]
    rising, findings = judged(updates, rates=[1e-6 * (i + 1) for i in range(20)])
    assert rising.is_healthy
    assert "warm-up" in findings["updates-too-small"].message
    constant, _ = judged(updates, rates=[1e-6] * 20)
    assert constant.verdict == "stalled"


@pytest.mark.parametrize(
    ("rate", "since"),
    [
        (lambda i: 1.0 if i < 5 else 0.0, 5),
        (lambda i: 0.1 ** (i // 4), 12),
        (lambda i: 0.5**i, 10),
    ],
    ids=["zero from step 5", "tenth every 4 steps", "halved at each step"],
)
def test_a_rate_that_falls_to_nothing_is_dated(rate, since):
    """Oracle: the first step at which the schedule is at a thousandth of its start or below."""
    rates = [0.1 * rate(i) for i in range(40)]
    diagnosis, findings = judged([1e-2 * r for r in rates], rates=rates)
    assert diagnosis.verdict == "stalled"
    assert findings["updates-fade"].since == since
    assert "schedule" in findings["updates-fade"].remedy
    assert "updates-too-small" not in findings


@pytest.mark.parametrize(
    "rate",
    [
        lambda x: 1.0,
        lambda x: 1 - x,
        lambda x: 0.5 * (1 + torch.cos(torch.tensor(torch.pi * x)).item()),
        lambda x: 0.1 ** sum(x >= at for at in (0.3, 0.6, 0.9)),
        lambda x: 10 ** (-2 * x),
        lambda x: min(1.0, 10 * x),
    ],
    ids=["constant", "line", "cosine", "three drops", "exponential", "warm-up"],
)
@pytest.mark.parametrize("steps", [12, 40, 200])
def test_schedules_that_end_with_the_run_are_healthy(rate, steps):
    """What is trained with everywhere."""
    rates = [0.1 * rate(i / steps) for i in range(steps)]
    diagnosis, findings = judged([1e-2 * r for r in rates], rates=rates)
    assert diagnosis.is_healthy
    assert findings == {}, str(diagnosis)


def test_a_rate_of_zero_throughout():
    """Named as what it is, not as steps that are too small."""
    diagnosis, findings = judged([0.0] * 6, rates=[0.0] * 6)
    assert diagnosis.verdict == "stalled"
    assert set(findings) == {"learning-rate-zero"}


def noisy(level, fall, steps=60):
    """A loss that falls by a share over the run, with a scatter of a tenth."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(steps, generator=generator)
    return [level * (1 - fall * i / steps + float(noise[i])) for i in range(steps)]


def test_a_loss_that_only_rattles_under_large_steps():
    """Updates of 5 % of the weights: an error where the loss does not fall, else nothing."""
    diagnosis, findings = judged([0.05] * 60, losses=noisy(2.0, 0.0))
    assert diagnosis.verdict == "exploding"
    assert "rattles" in findings["updates-too-large"].message
    assert "Lower the learning rate" in findings["updates-too-large"].remedy
    assert judged([0.05] * 60, losses=noisy(2.0, 0.6))[0].is_healthy


def test_a_loss_that_hardly_falls_under_small_steps():
    """Updates of 5e-6 are worth a warning alone; with a flat loss an error, with a falling none."""
    diagnosis, findings = judged([5e-6] * 60, losses=noisy(2.0, 0.0))
    assert diagnosis.verdict == "stalled"
    assert "hardly falls" in findings["updates-too-small"].message
    assert judged([5e-6] * 60, losses=noisy(2.0, 0.6))[0].is_healthy
    diagnosis, findings = judged([5e-5] * 60, losses=noisy(2.0, 0.0))
    assert diagnosis.is_healthy
    assert findings["updates-too-small"].severity == "warning"
    assert judged([5e-5] * 60, losses=noisy(2.0, 0.6))[1] == {}
    assert judged([5e-5] * 60)[1] == {}


@pytest.mark.parametrize(
    ("left", "update", "kind", "verdict"),
    [
        (1 / 100, 1e-4, "SGD", "stalled"),
        (1 / 100, 1e-2, "SGD", "healthy"),
        (1 / 10, 1e-4, "SGD", "healthy"),
        (1 / 100, 1e-4, "Lion8bit", "healthy"),
    ],
    ids=["to nothing", "with a rate to match", "a little", "by an optimizer nobody knows"],
)
def test_clipping_matters_where_the_steps_are_small_with_it(left, update, kind, verdict):
    """What is left of the gradient, and what becomes of the weights."""
    clip = left * 1.01  # not a power of two, which is a loss scale
    diagnosis, findings = judged([update] * 8, rates=[0.1] * 8, clip=clip, kind=kind)
    assert diagnosis.verdict == verdict, str(diagnosis)
    assert ("clipped" in findings) == (verdict == "stalled")


def test_what_a_loss_scale_took_out_is_no_clipping():
    """A factor of 2^-16 for every weight."""
    diagnosis, findings = judged([1e-4] * 8, rates=[0.1] * 8, clip=2.0**-16)
    assert diagnosis.is_healthy
    assert findings == {}


def grown(norms, at=None):
    """The diagnosis of six layers with small updates and weights of these norms at some steps."""
    net = Net(6, steps=len(norms))
    for i in range(6):
        net.put("weight", f"l{i}", "weight", update_ratio=0.01, weight_norm=torch.tensor(norms))
    net.steps = [RecordedStep(i) for i in at or range(len(norms))]
    return net.diagnose()


def test_weights_that_start_small_may_grow():
    """Hundredfold over 200 steps, by 2.3 % each: no step is as large as the weights."""
    diagnosis, findings = grown([1.0233**i for i in range(0, 200, 5)], at=range(0, 200, 5))
    assert diagnosis.is_healthy, str(diagnosis)
    assert findings == {}


@pytest.mark.parametrize("gap", [1, 5])
def test_weights_that_double_at_each_unrecorded_step_blew_up(gap):
    """An update as large as the weight doubles it: 2 to the power of the steps in between."""
    for factor, verdict in ((2.1, "exploding"), (1.5, "healthy")):
        norms = [1.0, 1.0, float(factor**gap), float(factor**gap)]
        diagnosis, findings = grown(norms, at=[0, gap, 2 * gap, 3 * gap])
        assert diagnosis.verdict == verdict, str(diagnosis)
        assert ("updates-too-large" in findings) == (verdict == "exploding")
