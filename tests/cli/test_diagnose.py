"""``gradscope diagnose``: what it prints where, and its exit codes."""

import json

import pytest
import zoo

from gradscope.cli.app import main


@pytest.fixture
def run(capsys, monkeypatch):
    """The command as the shell runs it: exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["gradscope", "diagnose", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """A healthy and a sick trace on disk."""
    folder = tmp_path_factory.mktemp("traces")
    return {
        name: zoo.watch_member(zoo.draw(name, 0)).save(folder / f"{name}.parquet")
        for name in ("kaiming_mlp", "deep_sigmoid")
    }


def test_healthy_run_exits_with_0(run, traces):
    """The verdict on stdout, nothing on stderr."""
    code, out, err = run(traces["kaiming_mlp"])
    assert (code, err) == (0, "")
    assert out.startswith("verdict: healthy")


def test_sick_run_exits_with_1_and_tells_the_remedy(run, traces):
    """Sigmoids in a chain: the advice names them."""
    code, out, err = run(traces["deep_sigmoid"])
    assert (code, err) == (1, "")
    assert out.startswith("verdict: vanishing")
    assert "sigmoids by ReLU" in " ".join(out.split())


def test_json_is_all_there_is_on_stdout(run, traces):
    """One JSON document, the same verdict, the same exit code."""
    code, out, _ = run(traces["deep_sigmoid"], "--json")
    assert code == 1
    assert json.loads(out)["verdict"] == "vanishing"


def test_bad_file_is_one_line_and_exit_2(run, tmp_path):
    """A missing file and a file of another kind."""
    (tmp_path / "x.parquet").write_text("no")
    for path in (tmp_path / "gone.parquet", tmp_path / "x.parquet"):
        code, out, err = run(path)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        assert path.name in err
