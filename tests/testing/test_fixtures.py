"""The pytest plugin, in pytest runs of its own."""

import json
import subprocess
import sys

import pytest

# In-process runs forget the modules that they imported first; torch bears only one import.
import torch._dynamo  # noqa: F401 - which probe() loads

pytest_plugins = ["pytester"]

HEADER = """
import torch
from torch import nn

def build(scale=1.0, depth=6, width=64):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
        nn.init.normal_(layers[-2].weight, 0.0, scale * (2 / width) ** 0.5)
    return nn.Sequential(*layers, nn.Linear(width, 5))

def inputs():
    return torch.randn(16, 64)
"""


def profile_test(pytester, call):
    """A test file that makes one profile."""
    pytester.makepyfile(
        test_net=HEADER + f"\ndef test_net(gradient_profile):\n    gradient_profile({call})\n"
    )
    return pytester.path / "__gradients__" / "test_net" / "test_net.json"


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """Not in CI, wherever these tests run."""
    monkeypatch.delenv("CI", raising=False)


def test_plugin_is_light():
    """Pytest starts without torch, and importing the plugin needs no pytest."""
    code = (
        "import sys, gradscope.testing; "
        "print([m for m in ('torch', 'pytest', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runs_of_others_stay_without_torch(pytester):
    """A pytest run that does not use the plugin never imports torch, and passes under -W error."""
    pytester.makepyfile("import sys\ndef test_nothing():\n    assert 'torch' not in sys.modules\n")
    result = pytester.runpytest_subprocess("-W", "error")
    result.assert_outcomes(passed=1)
    assert "gradscope:" not in result.stdout.str()


def test_first_run_stores_then_compares(pytester):
    """The first run writes the profile and says so; the second compares and writes nothing."""
    path = profile_test(pytester, "build, inputs")
    first = pytester.runpytest_inprocess()
    first.assert_outcomes(passed=1)
    first.stdout.fnmatch_lines(["gradscope: new gradient profile __gradients__*test_net.json"])
    written = path.read_bytes()
    second = pytester.runpytest_inprocess()
    second.assert_outcomes(passed=1)
    assert path.read_bytes() == written
    assert "gradient profile" not in second.stdout.str()


def test_missing_profile_fails_in_ci_unless_asked_for(pytester, monkeypatch):
    """In CI nothing is written: the missing file is named. --gradscope-update writes it."""
    monkeypatch.setenv("CI", "true")
    path = profile_test(pytester, "build, inputs")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_net.json is missing: run this test once*"])
    assert not path.exists()
    asked = pytester.runpytest_inprocess("--gradscope-update")
    asked.assert_outcomes(passed=1)
    asked.stdout.fnmatch_lines(["gradscope: new gradient profile*"])
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


@pytest.mark.slow
def test_new_profiles_are_announced_by_parallel_runs(pytester):
    """Under pytest-xdist too, once each."""
    pytest.importorskip("xdist")
    pytester.makepyfile(
        test_many=HEADER
        + """
import pytest

@pytest.mark.parametrize("seeds", [1, 2])
def test_net(gradient_profile, seeds):
    gradient_profile(build, inputs, seeds=seeds)
"""
    )
    result = pytester.runpytest_subprocess("-n", "2", "-W", "error")
    result.assert_outcomes(passed=2)
    told = [line for line in result.outlines if line.startswith("gradscope: new gradient profile")]
    assert len(told) == 2


def test_changed_network_fails_with_a_table_until_accepted(pytester):
    """Other initialisation: a failure that lists layers; --gradscope-update accepts it."""
    path = profile_test(pytester, "build, inputs")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    before = json.loads(path.read_text())
    profile_test(pytester, "lambda: build(0.5), inputs")
    # In a process of its own: in this one pytest warns that gradscope was imported before.
    failed = pytester.runpytest_subprocess("-W", "error")
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(
        [
            "*gradient profile: same random numbers as stored*",
            "*layers moved beyond rounding, most '*': * decades",
            "*layer * gradient *weight *update *output *flow*",
            "*0 *-*",
            "*accept it with pytest --gradscope-update",
        ]
    )
    assert json.loads(path.read_text()) == before
    accepted = pytester.runpytest_inprocess("--gradscope-update")
    accepted.assert_outcomes(passed=1)
    accepted.stdout.fnmatch_lines(["gradscope: updated gradient profile*"])
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_a_draw_within_chance_asks_and_fails_until_accepted(pytester):
    """Another order of random numbers is told from a change of the network, and not let through."""
    profile_test(pytester, "build, inputs")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    profile_test(pytester, "lambda: (torch.rand(1), build())[1], inputs")
    failed = pytester.runpytest_inprocess()
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(
        [
            "*other random numbers than stored in *",
            "moved by * decades, within chance: accept or not?",
        ]
    )
    pytester.runpytest_inprocess("--gradscope-update").assert_outcomes(passed=1)
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_inputs_drawn_in_the_test_are_the_same_in_each_run(pytester):
    """Whatever ran before: the test runs with seeded generators, which come back after it."""
    test = (
        HEADER
        + """
def test_net(gradient_profile):
    gradient_profile(build, torch.randn(16, 64))
"""
    )
    pytester.makepyfile(test_one=test)
    pytester.runpytest_inprocess().assert_outcomes(passed=1)
    before = "torch.manual_seed(3)\nSTATE = torch.get_rng_state()\n"
    after = "\ndef test_after():\n    assert torch.equal(torch.get_rng_state(), STATE)\n"
    pytester.makepyfile(test_one=test + before + after)
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_old_format_fails_until_accepted(pytester):
    """A profile of means over seeds is announced, and written anew on request."""
    path = profile_test(pytester, "build, inputs")
    path.parent.mkdir(parents=True)
    path.write_text('{"layers": [], "seeds": 3, "width_std": 0.1, "version": 1}')
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_net.json: old format, *accept the profile anew*"])
    pytester.runpytest_inprocess("--gradscope-update").assert_outcomes(passed=1)
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_two_profiles_of_one_test_need_names(pytester):
    """A second profile under the same name is a mistake, under another name it is kept beside."""
    pytester.makepyfile(
        test_two=HEADER
        + """
def test_named(gradient_profile):
    gradient_profile(build, inputs, name="a")
    gradient_profile(lambda: build(0.5), inputs, name="b")

def test_same(gradient_profile):
    gradient_profile(build, inputs)
    gradient_profile(build, inputs)
"""
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    stored = sorted(p.name for p in (pytester.path / "__gradients__" / "test_two").iterdir())
    assert stored == ["test_named-a.json", "test_named-b.json", "test_same.json"]


def test_broken_profile_is_one_clear_line(pytester):
    """A file that is no profile is named, not explained by a traceback of json."""
    path = profile_test(pytester, "build, inputs")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_net.json: no gradient profile*"])


def test_health_fixture(pytester):
    """gradient_health passes a good network and shows the diagnosis of a bad one."""
    pytester.makepyfile(
        test_health=HEADER
        + """
def test_good(gradient_health):
    gradient_health(build(), torch.randn(16, 64))

def test_bad(gradient_health):
    gradient_health(build(0.3, depth=20), torch.randn(16, 64))
"""
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Sequential has unhealthy gradients*", "*verdict: vanishing*"])
