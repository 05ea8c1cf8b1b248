"""What goes wrong between backward and the update is named, and its mended twin is healthy."""

import cases_updates
import pytest
from cases_updates import CASES

from gradscope import diagnose

SICK = [name for name, case in CASES.items() if not case.is_healthy]
HEALTHY = [name for name, case in CASES.items() if case.is_healthy]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SICK)
def test_fault_is_named(name, seed):
    """Verdict, cause and remedy of each fault that was put in."""
    case = CASES[name]
    diagnosis = diagnose(cases_updates.quiet(name, seed))
    assert str(diagnosis.verdict) in case.verdicts, str(diagnosis)
    found = [f for f in diagnosis.findings if f.severity != "info" and f.kind in case.kinds]
    assert found, str(diagnosis)
    assert case.remedy.lower() in found[0].remedy.lower(), str(diagnosis)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SICK)
def test_mended_twin_is_healthy(name, seed):
    """The same data and network without the fault."""
    diagnosis = diagnose(cases_updates.quiet(name, seed, mended=True))
    assert diagnosis.is_healthy, str(diagnosis)
    assert all(f.severity == "info" for f in diagnosis.findings), str(diagnosis)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", HEALTHY)
def test_what_only_looks_like_a_fault_is_healthy(name, seed):
    """No warning either."""
    diagnosis = diagnose(cases_updates.quiet(name, seed))
    assert diagnosis.is_healthy, str(diagnosis)
    assert all(f.severity == "info" for f in diagnosis.findings), str(diagnosis)
