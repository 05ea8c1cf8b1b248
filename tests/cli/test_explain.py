"""``gradscope explain``: what a kind of finding means, without loading torch."""

import json
import subprocess
import sys

import pytest

from gradscope.cli.app import main
from gradscope.diagnosis import limits


@pytest.fixture
def run(capsys, monkeypatch):
    """The command as the shell runs it: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["gradscope", "explain", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_kind_is_explained_with_the_limit_that_holds(run, monkeypatch):
    """The number is the one of limits.py."""
    code, out, _ = run("updates-lost")
    assert code == 0
    assert f"LOST_SHARE = {limits.LOST_SHARE:g}" in out
    assert "What else looks like it" in out


def test_json(run):
    """One object for a kind, a list of all without."""
    code, out, _ = run("vanishing", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["verdict"] is True
    assert {limit["name"]: limit["value"] for limit in told["limits"]}["VANISHING"] == 3.0
    _, out, _ = run("--json")
    assert {"healthy", "stalled", "dead-units"} <= {each["kind"] for each in json.loads(out)}


def test_without_a_kind_all_are_listed(run):
    """Each on a line of its own."""
    code, out, _ = run()
    first = {line.split(" ")[0] for line in out.splitlines()}
    assert code == 0
    assert {"healthy", "vanishing", "uncertain-backward-growth", "no-activations"} <= first


def test_an_unknown_kind_names_the_nearest(run):
    """Exit code 2, one line, the likeliest first."""
    code, out, err = run("updates-to-large")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "nearest are updates-too-large, " in err


def test_torch_is_not_loaded():
    """In a process of its own."""
    ask = (
        "import sys; sys.argv = ['gradscope', 'explain', 'dead-units']\n"
        "from gradscope.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "False"
