"""Faults at the loss, in inputs and in the graph are named with place and mend; twins are well."""

import re

import faults_at_loss  # noqa: F401 - fills the casebook
import faults_at_start  # noqa: F401
import faults_in_graph  # noqa: F401
import faults_of_recipe  # noqa: F401
import pytest
import sound_oddities  # noqa: F401
from casebook import SICK, SOUND, run

from gradscope import diagnose

# torch warns of the one case in which a checkpoint cuts the graph.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


def test_the_casebook_is_large_enough():
    """At least fourteen faults with a twin each, and as many sound networks that look odd."""
    assert len(SICK) >= 14
    assert len(SOUND) >= 14


@pytest.mark.parametrize("name", SICK)
def test_a_fault_is_named_with_place_and_mend(name):
    """An error of the right kind, at the right place, whose remedy fits."""
    trained = SICK[name](0, False)
    diagnosis = diagnose(run(trained))
    assert not diagnosis.is_healthy, str(diagnosis)
    assert [
        finding
        for finding in diagnosis.findings
        if finding.kind in trained.kinds
        and finding.severity == "error"
        and re.search(trained.where, finding.where)
        and re.search(trained.remedy, finding.remedy)
    ], str(diagnosis)


@pytest.mark.parametrize("name", SICK)
def test_its_twin_is_healthy(name):
    """The same network and data without the fault: healthy, and no word of that kind."""
    trained = SICK[name](0, True)
    diagnosis = diagnose(run(trained))
    assert diagnosis.is_healthy, str(diagnosis)
    assert not {finding.kind for finding in diagnosis.findings} & set(trained.kinds)


@pytest.mark.parametrize("name", SOUND)
def test_an_odd_network_is_healthy(name):
    """What looks like a fault and is none is left in peace, without an error or a verdict."""
    diagnosis = diagnose(run(SOUND[name](0)))
    assert diagnosis.is_healthy, str(diagnosis)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SICK)
def test_other_seeds(name, seed):
    """Other draws of data and weights: the fault is found, its twin is well."""
    assert {f.kind for f in diagnose(run(SICK[name](seed, False))).findings} & set(
        SICK[name](seed, False).kinds
    )
    assert diagnose(run(SICK[name](seed, True))).is_healthy


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", SOUND)
def test_other_seeds_of_odd_networks(name, seed):
    """Other draws of data and weights."""
    assert diagnose(run(SOUND[name](seed))).is_healthy
