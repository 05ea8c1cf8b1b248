"""gradscope probe, through the command line: what it prints, its exit codes, its refusals."""

from __future__ import annotations

import json
import math
import re
import sys

import numpy as np
import pytest
import torch

from gradscope.ablation.grid import Grid
from gradscope.cli import app, probe_inputs, probe_view
from gradscope.errors import ConfigError

MODELS = """
import torch
from torch import nn

def plain(depth=30, width=64, norm=False):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 4))

def healthy(width=64):
    model = plain(8, width)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model

class Words(nn.Module):
    def __init__(self, vocabulary=50, n_classes=3):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, n_classes)

    def forward(self, tokens):
        return self.head(torch.tanh(self.hidden(self.embed(tokens).mean(1))))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(5, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x, y):
        return self.head(torch.relu(self.a(x) + self.b(y)))

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.kind, self.box = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, batch):
        h = torch.relu(self.body(batch["image"]["pixels"]))
        return {"kind": self.kind(h), "boxes": (self.box(h), 2 * self.box(h))}

def broken():
    raise ValueError("the factory fell over")

class Marked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"[red]x[/red]<b>": nn.Linear(3, 3), "y": nn.Linear(3, 2)})

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x
"""


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """A module of the user's own in the current folder."""
    (tmp_path / "zoo_of_mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("zoo_of_mine", None)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; exit code, stdout, stderr."""

    def call(*args, columns=160):
        monkeypatch.setattr(sys, "argv", ["gradscope", "probe", *args])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return call


def test_sick_network_exits_1(run):
    """A vanishing network is named as such, with its chi beside the predicted one."""
    code, out, err = run("zoo_of_mine:plain", "--input", "64")
    assert code == 1
    assert "verdict: vanishing" in out
    rows = [line.split() for line in out.splitlines() if " Linear " in line]
    assert len(rows) == 31
    chi, predicted = float(rows[15][3]), float(rows[15][4])
    assert chi == pytest.approx((1 / 6) ** 0.5, rel=0.2)
    assert predicted == pytest.approx(chi, rel=0.2)
    assert "probing zoo_of_mine:plain" in err


def test_what_the_verdict_rests_on_is_shown_of_every_network(run):
    """Sick and healthy: all parameters of its linear layers, and at least the outputs of these."""
    for name, linear in (("plain", 31), ("healthy", 9)):
        _, out, _ = run(f"zoo_of_mine:{name}", "--input", "64")
        told = re.search(r"\nrests on step 0 \(gradients of (\d+) parameters and at (\d+) out", out)
        assert told, out
        assert int(told[1]) == 2 * linear
        assert int(told[2]) >= linear


def test_the_stretch_behind_the_verdict_is_shown(run):
    """Its ends, and thirty times the sixth of mean-field theory in decades, with its factor."""
    _, out, _ = run("zoo_of_mine:plain", "--input", "64")
    assert "\nvanishing at 0 ... 60\n" in out
    told = re.search(
        r"total (-\S+) decades \(a decay by a factor of 10\^(\S+)\)", " ".join(out.split())
    )
    assert told, out
    assert float(told[1]) == pytest.approx(30 * math.log10((1 / 6) ** 0.5), rel=0.1)
    assert float(told[2]) == pytest.approx(-float(told[1]), abs=0.06)


def test_healthy_network_exits_0(run):
    """A network at the right variance is healthy."""
    code, out, _ = run("zoo_of_mine:healthy", "--input", "64")
    assert code == 0
    assert "verdict: healthy" in out


def test_several_are_compared(run):
    """One table for all, the findings of each, and exit code 1 when one is sick."""
    code, out, _ = run("zoo_of_mine:healthy", "zoo_of_mine:plain", "--input", "64")
    assert code == 1
    table = [line for line in out.splitlines() if line.startswith("zoo_of_mine:")]
    assert table[0].split()[-1] == "healthy"
    assert table[1].split()[-1] == "vanishing"
    assert out.count("verdict: ") == 2


def test_json_is_all_there_is(run):
    """Stdout is one JSON document with the verdict, the findings and the flow; no NaN in it."""
    code, out, _ = run("zoo_of_mine:plain", "--input", "64", "--args", "depth=12", "--json")
    told = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert code == 1
    assert told["verdict"] == "vanishing"
    assert len(told["blocks"]) == 13
    assert told["parameters"] == 12 * (64 * 64 + 64) + 64 * 4 + 4
    assert told["findings"][0]["remedy"]
    _, out, _ = run("zoo_of_mine:plain", "zoo_of_mine:healthy", "--input", "64", "--json")
    assert [each["model"] for each in json.loads(out)] == [
        "zoo_of_mine:plain",
        "zoo_of_mine:healthy",
    ]


def test_try_ranks_remedies(run):
    """--try adds the ranking, to the table and to the JSON."""
    arguments = ("zoo_of_mine:plain", "--input", "64", "--args", "depth=12", "--try")
    _, out, _ = run(*arguments)
    assert "remedies, each tried on a copy" in out
    ranked = [line.split() for line in out.splitlines() if line.split()[:1] == ["1"]]
    assert ranked[0][1] == "Kaiming"
    assert "does not apply: critical initialisation" in out
    _, out, _ = run(*arguments, "--json")
    assert json.loads(out)["remedies"]["best"] == "Kaiming initialisation"


def test_tokens_several_inputs_and_classes(run):
    """Integers for embeddings, one --input per argument, --classes for the factory."""
    code, out, _ = run(
        "zoo_of_mine:Words", "--input", "7", "--tokens", "50", "--classes", "9", "--json"
    )
    assert code in (0, 1)
    assert json.loads(out)["probe"]["inputs"] == "(16, 7) int64"
    assert json.loads(out)["parameters"] == 50 * 16 + 16 * 17 + 9 * 17
    _, out, _ = run("zoo_of_mine:Two", "--input", "3", "--input", "5", "--batch", "4", "--json")
    assert json.loads(out)["probe"]["inputs"] == "(4, 3) float32, (4, 5) float32"


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_inputs_from_a_file(run, tmp_path, suffix):
    """Arrays and tensors are read with their batch; doubles become float32."""
    path = tmp_path / f"x{suffix}"
    values = np.random.default_rng(0).normal(size=(6, 64))
    if suffix == ".npy":
        np.save(path, values)
    else:
        torch.save(torch.from_numpy(values), path)
    _, out, _ = run("zoo_of_mine:healthy", "--input-file", str(path), "--json")
    assert json.loads(out)["probe"]["inputs"] == "(6, 64) float32"


def test_dict_of_inputs_from_a_file(run, tmp_path):
    """A dict of tensors is passed by keyword."""
    torch.save({"x": torch.ones(4, 3), "y": torch.ones(4, 5)}, tmp_path / "two.pt")
    _, out, _ = run("zoo_of_mine:Two", "--input-file", "two.pt", "--json")
    assert json.loads(out)["probe"]["inputs"] == "x=(4, 3) float32, y=(4, 5) float32"


class Trap:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("the trap sprang",))


def test_no_code_in_a_file_is_run(run, tmp_path):
    """A pickle in disguise is refused with one line, and nothing of it runs."""
    torch.save({"x": Trap()}, tmp_path / "trap.pt")
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    for name in ("trap.pt", "trap.npy"):
        code, out, err = run("zoo_of_mine:healthy", "--input-file", name)
        assert code == 2
        assert "sprang" not in out + err
        assert err.count("\n") == 1
        assert f"--input-file {name}" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zoo_of_mine:plain",), "--input C,H,W (random), --input-file"),
        (("zoo_of_mine:plain", "--input", "64", "--input-file", "x.pt"), "by one of"),
        (("zoo_of_mine:plain", "--input", "3,x"), "--input '3,x'"),
        (("zoo_of_mine:plain", "--input", "0,4"), "positive integers"),
        (("zoo_of_mine:plain", "--input", "63"), "(16, 63) float32"),
        (("zoo_of_mine:plan", "--input", "64"), "did you mean 'plain'"),
        (("zoo_of_mine:plain", "--input", "64", "--args", "depht=3"), "did you mean 'depth'"),
        (("zoo_of_mine:plain", "--input", "64", "--args", "depth"), "write name=value"),
        (("zoo_of_mine:plain", "--input-file", "none.pt"), "no such file"),
        (("zoo_of_mine:plain", "--input-file", "zoo_of_mine.py"), "unknown suffix"),
        (("zoo_of_mine:plain", "--input", "64", "--batch", "0"), "--batch"),
        (("zoo_of_mine:plain", "--input", "64", "--init", "kaimin"), "did you mean 'kaiming'"),
        (("--input", "64"), "--grid FILE.yaml --cell ID"),
        (("zoo_of_mine:plain", "--cell", "x"), "of which grid? add --grid"),
    ],
)
def test_bad_input_exits_2_with_one_line(run, arguments, message):
    """Nothing on stdout, one line on stderr that names the mistake."""
    code, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("probing ")]
    assert code == 2
    assert not out
    assert len(lines) == 1
    assert message in lines[0]


def test_names_from_outside_are_no_markup(run):
    """Brackets in the name of a module are printed as they are."""
    _, out, _ = run("zoo_of_mine:Marked", "--input", "3")
    assert "layers.[red]x[/red]<b>" in out


def test_html_report(run, tmp_path):
    """--html writes one file per network."""
    run("zoo_of_mine:healthy", "--input", "64", "--html", "flow.html")
    assert "<html" in (tmp_path / "flow.html").read_text()[:2000].lower()
    assert [p.name for p in probe_view.numbered(tmp_path / "a.html", 2)] == ["a-1.html", "a-2.html"]


def test_file_with_more_than_tensors(tmp_path):
    """A number among the tensors is refused by name."""
    torch.save({"x": torch.ones(2), "n": 3}, tmp_path / "mixed.pt")
    with pytest.raises(ConfigError, match=r"more than tensors \(int at n\)"):
        probe_inputs.load_inputs(tmp_path / "mixed.pt")


def test_deep_networks_are_cut_in_the_middle(run):
    """Of many blocks the first and the last are shown, and how many are not."""
    _, out, _ = run("zoo_of_mine:plain", "--input", "64", "--args", "depth=45")
    assert sum(" Linear " in line for line in out.splitlines()) == 40
    assert "6 more" in out


def test_images_of_a_grid(run, tmp_path, monkeypatch):
    """--grid takes the images, their labels and the number of classes from the grid's data."""
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.yaml").write_text(
        "name: small\n"
        "model: {name: net3}\n"
        "data: {source: demo, size: 64, train_per_class: 8, val_per_class: 2}\n"
        "matrix: {lr: [0.001]}\n"
    )
    images, labels, n_classes = probe_inputs.grid_inputs(tmp_path / "small.yaml", 6)
    assert images.shape == (6, 3, 64, 64)
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert int(labels.max()) < n_classes
    _, out, _ = run("hw5net", "--grid", "small.yaml", "--json", "--batch", "4")
    told = json.loads(out)
    assert told["probe"] == {
        "model": "HW5Net",
        "inputs": "(4, 3, 64, 64) float32",
        "loss": "cross entropy",
        "seed": 0,
    }


@pytest.mark.parametrize("networks", [("plain",), ("plain", "healthy")])
def test_no_word_is_broken_at_80_columns(run, networks):
    """Every word stands whole, only remedies are longer, and each of these is one line to copy."""
    specs = [f"zoo_of_mine:{name}" for name in networks]
    _, out, _ = run(*specs, "--input", "64", "--try", columns=80)
    told = json.loads(run(*specs, "--input", "64", "--try", "--json", columns=80)[1])
    told = told if isinstance(told, list) else [told]
    lines = [line.rstrip() for line in out.splitlines()]
    remedies = {f["remedy"] for each in told for f in each["findings"]} - {""}
    changes = {o["change"] for each in told for o in each["remedies"]["ranked"]}
    assert remedies <= set(lines)
    assert changes <= {line.partition(": ")[2] for line in lines}
    long = [line for line in lines if len(line) > 80]
    assert all(line in remedies or line.partition(": ")[2] in changes for line in long)
    words = set(out.split())
    assert {"decades", "forward", "verdict", "vanishing", "orthogonal", "initialisation"} <= words


def test_every_head_is_shown(run, tmp_path):
    """Nested inputs go in, and each output of a nested mapping has its place, shape and rms."""
    inputs = {"batch": {"image": {"pixels": torch.randn(5, 3, dtype=torch.float64)}}}
    torch.save(inputs, tmp_path / "nested.pt")
    _, out, _ = run("zoo_of_mine:Heads", "--input-file", "nested.pt")
    for place in ("output['kind']", "output['boxes'][0]", "output['boxes'][1]"):
        assert place in out
    told = json.loads(run("zoo_of_mine:Heads", "--input-file", "nested.pt", "--json")[1])
    assert [o["shape"] for o in told["outputs"]] == [[5, 4], [5, 2], [5, 2]]
    assert told["outputs"][2]["rms"] == pytest.approx(2 * told["outputs"][1]["rms"])


def test_init_is_that_of_grids(run):
    """Drawn by Kaiming on Conv2d alone, a network without one stays as it was; by name it heals."""
    chi = json.loads(run("net3", "--input", "3,64,64", "--init", "kaiming", "--json")[1])
    plain = json.loads(run("net3", "--input", "3,64,64", "--json")[1])
    assert chi["slope_decades_per_block"] > plain["slope_decades_per_block"] + 0.2


def test_traceback_is_shown_where_asked_for(run):
    """The line of the factory that raised, and still one line that says what went wrong."""
    code, out, err = run("zoo_of_mine:broken", "--input", "3", "--traceback")
    assert code == 2
    assert not out
    assert 'raise ValueError("the factory fell over")' in err
    assert err.splitlines()[-1].startswith("error: building zoo_of_mine:broken() failed")
    _, _, err = run("zoo_of_mine:broken", "--input", "3")
    assert err.count("\n") == 1


def test_a_cell_of_a_grid(run, tmp_path, monkeypatch):
    """Network, arguments and seed are those of the cell; a wrong id names the nearest."""
    monkeypatch.setenv("GRADSCOPE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small.yaml").write_text(
        "name: small\n"
        "model: {name: hw5net}\n"
        "data: {source: demo, size: 64, train_per_class: 8, val_per_class: 2}\n"
        "matrix: {skip: [true, false]}\n"
        "seeds: [3]\n"
    )
    code, out, _ = run("--grid", "small.yaml", "--cell", "no-skip", "--json", "--batch", "4")
    told = json.loads(out)
    assert code in (0, 1)
    assert told["model"].startswith("no-skip-s3-")
    assert told["probe"]["seed"] == 3
    assert [each["seed"] for each in told["draws"]] == [3]
    _, _, err = run("--grid", "small.yaml", "--cell", "skop")
    assert "no cell 'skop'" in err


def test_a_cell_whose_precision_was_measured_is_found_by_the_id_it_is_stored_under(tmp_path):
    """`auto` has become bf16 there; what the grid says now has another id."""
    grid = tmp_path / "g.yaml"
    text = "name: g\nmodel: {name: net3}\ntrain: {precision: PRECISION}\n"
    grid.write_text(text.replace("PRECISION", "bf16"))
    stored = Grid.load(grid).cells()[0]
    grid.write_text(text.replace("PRECISION", "auto"))
    assert probe_inputs.chosen_cell(grid, stored.id) == stored
    assert probe_inputs.chosen_cell(grid, "s0").id != stored.id


CHANCY = """
import torch
from torch import nn

def chancy(share=0.62):
    layers = [nn.Linear(64, 64) for _ in range(24)]
    small = float(torch.rand(())) < share
    for layer in layers:
        nn.init.normal_(layer.weight, std=(0.3 if small else 1.0) * (2 / 64) ** 0.5)
    return nn.Sequential(*(nn.Sequential(layer, nn.ReLU()) for layer in layers), nn.Linear(64, 4))
"""


def test_draws_are_judged_together(run, tmp_path, monkeypatch):
    """The count of sick draws is the one that the coin of the factory makes, seed by seed."""
    (tmp_path / "chancy_nets.py").write_text(CHANCY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    ask = ("chancy_nets:chancy", "--input", "64", "--json", "--seeds", "8")
    code, out, _ = run(*ask)
    told = json.loads(out)
    drawn = {each["seed"]: each["verdict"] for each in told["draws"]}
    assert list(drawn) == list(range(8))
    sick = sum(verdict == "vanishing" for verdict in drawn.values())
    assert 0 < sick < 8
    assert code == (1 if sick > 4 else 0)
    found = next(f for f in told["findings"] if f["kind"] == "differs-by-draw")
    assert found["evidence"]["vanishing"]["value"] == sick
    for seed, verdict in list(drawn.items())[:3]:
        _, out, _ = run(*ask[:-1], "1", "--seed", str(seed))
        alone = json.loads(out)
        assert alone["verdict"] == verdict
        assert alone["draws"] == [{"seed": seed, "verdict": verdict}]
    # Three draws of which the first is not as most are: without --seeds there are as many.
    begin = next(k for k in range(6) if drawn[k] not in (drawn[k + 1], drawn[k + 2]))
    _, out, _ = run(*ask[:4], "--seed", str(begin))
    told = json.loads(out)
    assert [each["seed"] for each in told["draws"]] == [begin, begin + 1, begin + 2]
    assert told["verdict"] == drawn[begin + 1]
    assert told["probe"]["seed"] == begin + 1
    assert (told["slope_decades_per_block"] < -0.2) is (told["verdict"] == "vanishing")
    _, out, _ = run(*ask[:3], "--seed", str(begin))
    assert f"shown is seed {begin + 1}" in out
    _, out, _ = run(*ask[:3], "--seeds", "8")
    assert "8 draws of the weights:" in out
    assert f"vanishing {sick}" in out
