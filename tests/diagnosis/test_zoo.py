"""Networks of known health are judged right, and no healthy one is called sick."""

import pytest
import torch
import zoo
from torchvision import models as torchvision_models

from gradscope import diagnose, models

SLOW_SEEDS = range(1000, 1010)

HW5NET = {
    # (skip, batch norm, initialisation) -> verdict: measured and published first/last ratios say
    # plain nets vanish, batch norm without skips explodes backward, skips without batch norm at
    # Kaiming explode forward; plain Kaiming has chi = 1 in theory (sqrt(1/2) and sqrt(1/6) else).
    (False, False, "default"): "vanishing",
    (False, False, "xavier"): "vanishing",
    (False, False, "kaiming"): "healthy",
    (False, True, "default"): "exploding",
    (False, True, "xavier"): "exploding",
    (False, True, "kaiming"): "exploding",
    (True, False, "default"): "healthy",
    (True, False, "kaiming"): "exploding",
    (True, True, "default"): "healthy",
    (True, True, "xavier"): "healthy",
    (True, True, "kaiming"): "healthy",
}


def judge(members):
    """[(name, seed, note, right, false alarm, verdict and kinds)] of many members."""
    rows = []
    for name, seed in members:
        member = zoo.draw(name, seed)
        diagnosis = diagnose(zoo.watch_member(member))
        verdict, errors = diagnosis.verdict, {f.kind for f in diagnosis.findings if f.verdict}
        alarm = member.is_healthy and verdict in zoo.SICK
        right = verdict in member.label and (not member.finding or member.finding in errors)
        rows.append((name, seed, member.note, right, alarm, f"{verdict}: {sorted(errors)}"))
    return rows


@pytest.fixture(scope="module")
def verdicts():
    """The standard zoo, judged once."""
    return judge(zoo.standard())


def test_zoo_is_large_enough():
    """At least 25 healthy and 25 sick kinds, each in several widths, depths and seeds."""
    healthy = sum(zoo.draw(name, 0).is_healthy for name in zoo.KINDS)
    assert healthy >= 25
    assert len(zoo.KINDS) - healthy >= 25


def test_members_are_reproducible():
    """The same seed draws the same member, another seed another one."""
    first, again, other = (zoo.draw("kaiming_mlp", seed) for seed in (3, 3, 4))
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert torch.equal(first.model[0].weight, again.model[0].weight)
    assert not torch.equal(first.inputs[0], other.inputs[0])


def test_at_least_95_percent_are_right(verdicts):
    """Of the standard zoo."""
    wrong = [row for row in verdicts if not row[3]]
    assert len(wrong) <= 0.05 * len(verdicts), wrong


def test_no_healthy_network_is_called_sick(verdicts):
    """Of the standard zoo."""
    assert [row for row in verdicts if row[4]] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.KINDS)
def test_held_out_members(name):
    """Members of each kind that no limit was ever tried on."""
    rows = judge((name, seed) for seed in SLOW_SEEDS)
    assert [row for row in rows if row[4]] == []
    assert sum(row[3] for row in rows) >= 0.9 * len(rows), [row for row in rows if not row[3]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*zoo.TORCHVISION, "resnet101", "vgg19_bn", "vit_b_32"])
def test_torchvision_models_are_healthy(name):
    """Each published architecture at its own initialisation."""
    torch.manual_seed(0)
    size = 224 if name.startswith("vit") else 64
    extra = {"init_weights": True} if name == "googlenet" else {}
    model = torchvision_models.get_model(name, num_classes=10, **extra)
    inputs, targets = zoo.images(size, 4)
    member = zoo.Member(name, frozenset({"healthy"}), model, inputs, targets)
    diagnosis = diagnose(zoo.watch_member(member))
    assert diagnosis.is_healthy, str(diagnosis)


def hw5net(depth, skip, batch_norm, init, seed, batch=4):
    """The diagnosis of one variant of the reference network."""
    arguments = {"depth": depth, "skip": skip, "batch_norm": batch_norm}
    config = models.ModelConfig(name="hw5net", args=arguments, init=init)
    model = models.build(config, 5, seed=seed)
    torch.manual_seed(seed)
    inputs, targets = zoo.images(64, batch, classes=5)
    member = zoo.Member("hw5net", frozenset(), model, inputs, targets)
    return diagnose(zoo.watch_member(member))


@pytest.mark.parametrize("depth", [32, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", HW5NET, ids=str)
def test_hw5net_variants(variant, depth):
    """Each variant of the reference network gets the verdict of theory and publication."""
    diagnosis = hw5net(depth, *variant, seed=0)
    assert diagnosis.verdict == HW5NET[variant], str(diagnosis)
    kinds = {finding.kind for finding in diagnosis.findings if finding.severity == "error"}
    if variant[:2] == (False, True):
        assert kinds == {"exploding-backward"}
    if variant == (True, False, "kaiming"):
        assert "exploding-forward" in kinds


def test_hw5net_with_everything_names_what_is_unused():
    """14 parameters that never run are a warning, cancelled biases information: still healthy."""
    diagnosis = hw5net(32, skip=True, batch_norm=True, init="kaiming", seed=0)
    findings = {finding.kind: finding for finding in diagnosis.findings}
    assert findings["unused"].evidence["parameters"].value == 14
    assert findings["unused"].severity == "warning"
    assert findings["structural-zero"].severity == "info"
    assert diagnosis.is_healthy


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("depth", [32, 64])
@pytest.mark.parametrize("variant", HW5NET, ids=str)
def test_hw5net_other_seeds(variant, depth, seed):
    """Other seeds and a larger batch give the same verdicts."""
    assert hw5net(depth, *variant, seed=seed, batch=8).verdict == HW5NET[variant]
