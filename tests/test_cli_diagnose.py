"""``gradscope diagnose``: what it prints where, and its exit codes."""

import json
import subprocess
import sys

import pytest
import zoo

MAIN = "from gradscope.cli import main; main()"


def run(*arguments):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, "diagnose", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """A healthy and a sick trace on disk."""
    folder = tmp_path_factory.mktemp("traces")
    return {
        name: zoo.watch_member(zoo.draw(name, 0)).save(folder / f"{name}.parquet")
        for name in ("kaiming_mlp", "deep_sigmoid")
    }


def test_healthy_run_exits_with_0(traces):
    """The verdict on stdout, nothing on stderr."""
    done = run(traces["kaiming_mlp"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("verdict: healthy")


def test_sick_run_exits_with_1_and_tells_the_remedy(traces):
    """Sigmoids in a chain: the advice names them."""
    done = run(traces["deep_sigmoid"])
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("verdict: vanishing")
    assert "sigmoids by ReLU" in " ".join(done.stdout.split())


def test_json_is_all_there_is_on_stdout(traces):
    """One JSON document, the same verdict, the same exit code."""
    done = run(traces["deep_sigmoid"], "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["verdict"] == "vanishing"


def test_bad_file_is_one_line_and_exit_2(tmp_path):
    """A missing file and a file of another kind."""
    (tmp_path / "x.parquet").write_text("no")
    for path in (tmp_path / "gone.parquet", tmp_path / "x.parquet"):
        done = run(path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ")
        assert path.name in done.stderr
