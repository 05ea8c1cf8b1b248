"""Grids: from YAML to cells, and every mistake named with its line."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.ablation.document import read, shown
from gradscope.ablation.grid import Grid
from gradscope.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

IDS = json.loads(Path(__file__).with_name("cell_ids.json").read_text())
"""Grid -> ids of its cells, as they were computed by the version that trained the stored ones."""

BASE = {"name": "t", "model": {"name": "net3"}, "data": {"source": "demo"}}


@pytest.fixture
def write(tmp_path):
    """Write a grid and load it."""

    def load(text, overrides=()):
        path = tmp_path / "grid.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
        return Grid.load(path, overrides)

    return load


@pytest.mark.parametrize("path", sorted((ROOT / "ablations").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_grid_of_the_project_loads(path):
    """All grids in ablations/ are valid and give cells with distinct ids."""
    cells = Grid.load(path).cells()
    assert cells
    assert len({cell.id for cell in cells}) == len(cells)


@pytest.mark.parametrize("name", ["hw5", "hw5-coco"])
def test_the_reference_study_has_all_combinations(name):
    """Skip x norm x init x depth x learning rate: 32 different cells, each setting half of them."""
    cells = Grid.load(ROOT / "ablations" / f"{name}.yaml").cells()
    seen = {
        (
            c.config.model.args["skip"],
            c.config.model.args["batch_norm"],
            c.config.model.init.scheme,
            c.config.model.args["depth"],
            c.config.train.lr,
        )
        for c in cells
    }
    truth = (True, False)
    assert seen == set(
        itertools.product(truth, truth, ("kaiming", "xavier"), (32, 64), (1e-3, 2e-5))
    )
    assert (
        len({(c.config.seed, c.id) for c in cells})
        == len(cells)
        == 32 * len({c.config.seed for c in cells})
    )


def test_the_study_trains_hw5net_at_two_rates_and_net3_at_one():
    """As the write-up: 15 epochs of batch 4; HW5Net at 1e-3 and 2e-5, Net3 at 1e-3, three seeds."""
    cells = Grid.load(ROOT / "ablations" / "hw5-study.yaml").cells()
    variants = Counter(
        (c.config.model.name, c.config.model.init.scheme, c.config.train.lr) for c in cells
    )
    assert variants == {
        ("hw5net", "kaiming", 1e-3): 3,
        ("hw5net", "kaiming", 2e-5): 3,
        ("net3", "xavier", 1e-3): 3,
        ("net3", "default", 1e-3): 3,
    }
    assert {(c.config.train.epochs, c.config.train.batch_size) for c in cells} == {(15, 4)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2E5", 2e5),
        ("1.5e+3", 1500.0),
        ("-1e-3", -1e-3),
        ("1.", 1.0),
        (".5", 0.5),
        (".inf", float("inf")),
        ("12", 12),
        ("1e", "1e"),
        ("e3", "e3"),
        ("'1e-3'", "1e-3"),
        ("0x10", 16),
        ("true", True),
        ("2020-01-31", "2020-01-31"),
        ("1_000.0", 1000.0),
    ],
)
def test_numbers_are_numbers(tmp_path, text, value):
    """1e-3 is a float, as YAML 1.2 has it; what is quoted or no number stays text."""
    path = tmp_path / "g.yaml"
    path.write_text(f"x: {text}\n")
    found = read(path).data["x"]
    assert found == value
    assert type(found) is type(value)


def test_dotted_paths_bare_names_and_sections(write):
    """An axis is a bare name, a dotted path, or a whole section with labels."""
    grid = write(
        BASE
        | {
            "matrix": {
                "lr": [0.1, 0.2],
                "train.batch_size": [8],
                "model": [
                    {"label": "wide", "name": "hw5net", "args": {"depth": 32}},
                    {"name": "net3"},
                ],
            }
        }
    )
    assert grid.factors == {"lr": (0.1, 0.2), "batch_size": (8,), "model": ("wide", "net3")}
    cell = grid.cells()[0]
    assert (cell.config.train.lr, cell.config.train.batch_size) == (0.1, 8)
    assert (cell.config.model.name, cell.config.model.args) == ("hw5net", {"depth": 32})


def test_overrides(write):
    """--set reaches any setting, the matrix and the seeds, with YAML values."""
    grid = write(
        BASE | {"matrix": {"lr": [0.1, 0.2]}, "train": {"epochs": 5}},
        ["train.epochs=1", "matrix.lr=[1e-3]", "seeds=[3, 4]", "data.root=some/where"],
    )
    assert [(c.config.train.epochs, c.config.train.lr, c.config.seed) for c in grid.cells()] == [
        (1, 1e-3, 3),
        (1, 1e-3, 4),
    ]
    assert str(grid.cells()[0].config.data.root) == "some/where"


values = st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)
partial = st.dictionaries(
    st.sampled_from(["epochs", "batch_size", "eval_batch_size"]), st.integers(1, 4), min_size=1
)


@settings(max_examples=60)
@given(values, values, values, st.lists(partial, max_size=3), st.lists(partial, max_size=2))
def test_exclude_and_include_against_a_naive_reference(tmp_path_factory, a, b, c, exclude, include):
    """Cells are the product without what any exclusion matches, and then the inclusions."""
    names = ("epochs", "batch_size", "eval_batch_size")
    product = [dict(zip(names, p, strict=True)) for p in itertools.product(a, b, c)]
    exclude = [e for e in exclude if any(e.items() <= p.items() for p in product)]
    kept = [p for p in product if not any(e.items() <= p.items() for e in exclude)]
    defaults = {"epochs": 1, "batch_size": 32, "eval_batch_size": 256}
    expected = {tuple(p.values()) for p in kept}
    expected |= {tuple((defaults | i)[n] for n in names) for i in include}
    path = tmp_path_factory.mktemp("g") / "grid.yaml"
    path.write_text(
        yaml.safe_dump(
            BASE
            | {
                "matrix": dict(zip(names, (a, b, c), strict=True)),
                "exclude": exclude,
                "include": include,
            },
            sort_keys=False,
        )
    )
    if not expected:
        with pytest.raises(ConfigError, match="excluded"):
            Grid.load(path)
        return
    found = Grid.load(path).cells()
    assert {
        (t.epochs, t.batch_size, t.eval_batch_size) for t in (x.config.train for x in found)
    } == (expected)
    assert all(list(x.factors) == list(names) for x in found)


def test_ids_follow_the_configuration(write):
    """The same configuration has the same id, any changed setting another one."""
    first = write(BASE | {"matrix": {"lr": [0.1]}}).cells()[0].id
    reordered = dict(reversed(list((BASE | {"matrix": {"train.lr": [0.1]}}).items())))
    assert write(reordered).cells()[0].id == first
    for change in (
        "train.epochs=7",
        "data.size=32",
        "seeds=[1]",
        "record.every=9",
        "model.init=xavier",
        "matrix.lr=[0.2]",
        "train.precision=bf16",
    ):
        assert write(BASE | {"matrix": {"lr": [0.1]}}, [change]).cells()[0].id != first


def test_ids_are_the_same_in_another_process():
    """Ids do not depend on hash randomisation."""
    path = ROOT / "ablations" / "hw5.yaml"
    run = (
        "from gradscope.ablation.grid import Grid; "
        f"print([c.id for c in Grid.load({str(path)!r}).cells()])"
    )
    found = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str([c.id for c in Grid.load(path).cells()])


@pytest.mark.parametrize("name", sorted(IDS))
def test_ids_are_those_of_stored_studies(name):
    """Hours of results lie under these ids: what is added to the settings must not change them."""
    grid, _, root = name.partition(" --data ")
    overrides = ["data.source=coco", f"data.root={root}"] if root else []
    loaded = Grid.load(ROOT / "ablations" / f"{grid}.yaml", overrides)
    cells = loaded.settled("bf16", loaded.resources).cells()  # where that is left open, it was so
    assert [cell.id for cell in cells] == IDS[name]


def test_a_function_of_ones_own_needs_neither_model_nor_data(write, tmp_path, monkeypatch):
    """Axes reach its arguments; its settings, and nothing of the built-in loop, make the id."""
    (tmp_path / "own_function.py").write_text("def train(run): pass")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    train = {"function": "own_function:train", "args": {"width": 4, "lr": 0.1, "deep": {"a": 1}}}
    grid = write(
        {
            "name": "t",
            "train": train,
            "matrix": {"width": [4, 8], "args.lr": [0.1, 0.2], "train.args.deep.a": [1]},
        }
    )
    assert [list(cell.factors.values()) for cell in grid.cells()] == [
        [4, 0.1, 1], [4, 0.2, 1], [8, 0.1, 1], [8, 0.2, 1],
    ]  # fmt: skip
    assert [c.config.train.args["width"] for c in grid.cells()] == [4, 4, 8, 8]
    assert [c.config.train.args["lr"] for c in grid.cells()] == [0.1, 0.2, 0.1, 0.2]
    stored = grid.cells()[0].config.model_dump(mode="json")
    assert set(stored) == {"train", "record", "seed"}
    assert set(stored["train"]) == {"function", "args"}


def test_the_source_is_json(write):
    """What was written can be stored beside the results."""
    source = write(BASE | {"matrix": {"lr": [0.1]}}).source
    assert json.loads(json.dumps(source)) == source


HEAD = "name: t\nmodel: {name: hw5net}\n"

WRONG = {
    "no yaml": ("name: [t\n", r"grid.yaml:2: not valid YAML"),
    "no mapping": ("- 1\n", r"grid.yaml: a grid is a mapping"),
    "empty": ("", r"a grid is a mapping"),
    "unknown key": (
        HEAD + "matrx: {}\n",
        r"grid.yaml:3: unknown key 'matrx'; did you mean 'matrix'",
    ),
    "unknown setting": (
        HEAD + "train:\n  epoch: 2\n",
        r"grid.yaml:4: unknown key 'train.epoch'; did you mean 'epochs'",
    ),
    "no model": ("name: t\n", r"key 'model' is missing"),
    "no model name": ("name: t\nmodel: {}\n", r"grid.yaml:2: key 'model.name' is missing"),
    "bad name": ("name: a/b\nmodel: {name: net3}\n", r"grid.yaml:1: name: .*got 'a/b'"),
    "twice": (HEAD + "name: u\n", r"grid.yaml:3: key 'name' stands here a second time .*line 1"),
    "unknown axis": (
        HEAD + "matrix:\n  lr: [1e-3]\n  skips: [true]\n",
        r"grid.yaml:5: unknown axis 'skips'; did you mean 'skip'",
    ),
    "unknown path": (HEAD + "matrix: {train.rate: [1]}\n", r"unknown axis 'train.rate'.*train.lr"),
    "seed axis": (HEAD + "matrix: {seed: [1, 2]}\n", r"list them under the key 'seeds'"),
    "empty axis": (HEAD + "matrix:\n  lr: []\n", r"grid.yaml:4: axis 'lr' has no values"),
    "scalar axis": (HEAD + "matrix:\n  lr: 1e-3\n", r"grid.yaml:4: matrix.lr: .*list"),
    "same value": (HEAD + "matrix: {lr: [1e-3, 0.001]}\n", r"axis 'lr' names a value twice"),
    "negative": (
        HEAD + "matrix:\n  lr: [1e-3, -1]\n",
        r"grid.yaml:4: train.lr: .*greater than 0.*-1",
    ),
    "wrong type": (HEAD + "train: {epochs: many}\n", r"grid.yaml:3: train.epochs: .*'many'"),
    "true for a number": (
        HEAD + "train:\n  epochs: true\n",
        r"grid.yaml:4: train.epochs: give a number, got 'true'",
    ),
    "true among numbers": (
        HEAD + "matrix: {train.lr: [1e-3, false]}\n",
        r"grid.yaml:3: train.lr: give a number, got 'false'",
    ),
    "true in a list": (HEAD + "seeds: [true]\n", r"grid.yaml:3: seeds: give a number, got 'true'"),
    "no processors": (
        HEAD + "resources: {cpus: 0}\n",
        r"grid.yaml:3: resources.cpus: give a whole number from 1, or auto, got '0'",
    ),
    "true in a section": (
        HEAD + "resources: {cpus: true}\n",
        r"grid.yaml:3: resources.cpus: give a number",
    ),
    "bad choice": (
        HEAD + "train: {precision: fp8}\n",
        r"train.precision: .*'fp32', 'bf16' or 'auto'.*'fp8'",
    ),
    "unknown model": (
        "name: t\nmodel: {name: hw6net}\n",
        r"grid.yaml:2: .*hw6net.*did you mean 'hw5net'",
    ),
    "unknown argument": (
        "name: t\nmodel:\n  name: hw5net\n  args: {dept: 32}\n",
        r"grid.yaml:4: .*no argument 'dept'; did you mean 'depth'",
    ),
    "unknown init": (HEAD + "matrix: {init: [kaimin]}\n", r"grid.yaml:3: .*kaimin"),
    "excluded all": (
        HEAD + "matrix: {skip: [true]}\nexclude: [{skip: true}]\n",
        r"every cell .* is excluded",
    ),
    "exclude nothing": (
        HEAD + "matrix: {skip: [true]}\nexclude:\n  - {skip: false}\n",
        r"grid.yaml:5: this exclusion matches no cell",
    ),
    "exclude unknown": (
        HEAD + "matrix: {skip: [true]}\nexclude:\n  - {skp: false}\n",
        r"grid.yaml:5: unknown axis 'skp'; did you mean 'skip'",
    ),
    "negative seed": (HEAD + "seeds: [-1]\n", r"grid.yaml:3: .*seed.*greater than or equal to 0"),
    "no seeds": (HEAD + "seeds: []\n", r"grid.yaml:3: seeds: .*at least 1"),
    "infinite decay": (HEAD + "train: {weight_decay: .inf}\n", r"grid.yaml:3: .*finite"),
    "beta": (
        HEAD + "train:\n  betas:\n    - 0.9\n    - 1.5\n",
        r"grid.yaml:6: train.betas.1: .*1.5",
    ),
    "huge seed": (HEAD + "seeds: [99999999999999999999]\n", r"grid.yaml:3: .*seed.*less than"),
    "seed twice": (HEAD + "seeds: [1, 1]\n", r"grid.yaml:3: seeds: 1 stands twice; remove one"),
    "two axes of one setting": (
        HEAD + "matrix:\n  lr: [1]\n  train.lr: [2]\n",
        r"grid.yaml:5: axis 'train.lr' varies train.lr, as 'lr' does; remove one",
    ),
    "second value": (
        HEAD + "matrix:\n  lr:\n    - 1e-3\n    - -1\n",
        r"grid.yaml:6: train.lr: .*-1",
    ),
    "model in the matrix": (
        HEAD + "matrix:\n  model:\n    - {name: net3}\n    - {name: nett3}\n",
        r"grid.yaml:6: unknown model 'nett3'; did you mean 'net3'",
    ),
    "model name in the matrix": (
        HEAD + "matrix:\n  model.name: [hw5net, nett3]\n",
        r"grid.yaml:4: unknown model 'nett3'; did you mean 'net3'",
    ),
    "model is a list": (
        HEAD + "matrix:\n  model:\n    - name: [net3]\n",
        r"grid.yaml:5: model.name: .*valid string",
    ),
    "model is a name": (HEAD + "matrix: {model: [net3]}\n", r"grid.yaml:3: model: .*valid mapping"),
    "argument beside an axis": (
        "name: t\nmodel:\n  name: hw5net\n  args:\n    dept: 32\nmatrix:\n  skip: [true]\n",
        r"grid.yaml:5: .*no argument 'dept'; did you mean 'depth'",
    ),
    "argument in an axis": (
        HEAD + "matrix:\n  model:\n    - name: net3\n      args:\n        depth: 32\n",
        r"grid.yaml:7: .*no argument 'depth'",
    ),
    "inclusion": (
        HEAD + "matrix: {lr: [1]}\ninclude:\n  - lr: 2\n  - lr: -1\n",
        r"grid.yaml:6: train.lr: .*-1",
    ),
    "alias of itself": (HEAD + "data: &a {args: *a}\n", r"grid.yaml: .*an alias holds itself"),
    "deep": (HEAD + "data: " + "[" * 3000, r"grid.yaml: .*nested too deeply"),
    "aliases of aliases": (
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{b}: &{b} [{','.join(10 * [f'*{a}'])}]\n"
            for a, b in zip("abcdefg", "bcdefgh", strict=True)
        ),
        r"grid.yaml: holds more than 100000 settings",
    ),
    "digits": (HEAD + f"seeds:\n  - {'9' * 5000}\n", r"grid.yaml:4: .*limit \(4300 digits\)"),
    "neither model nor function": ("name: t\ntrain: {lr: 1}\n", r"'model' is missing; add it"),
    "function of no module": (
        "name: t\ntrain:\n  function: nowhere.at:all\n",
        r"grid.yaml:3: .*no module 'nowhere'",
    ),
    "function of another form": ("name: t\ntrain: {function: train}\n", r"grid.yaml:2: .*pattern"),
    "setting beside a function": (
        "name: t\ntrain: {function: 'math:sqrt', lr: 1}\n",
        r"grid.yaml:2: train: lr is a setting of the built-in loop; .*train.args",
    ),
    "args without a function": (HEAD + "train: {args: {a: 1}}\n", r"name it: train.function"),
    "axis of no argument": (
        "name: t\ntrain: {function: 'math:sqrt', args: {lr: 1}}\nmatrix: {args.lrr: [1]}\n",
        r"grid.yaml:3: unknown axis 'args.lrr'; .*did you mean 'train.args.lr'",
    ),
    "objective of nothing": (
        HEAD + "objectives: {perplexity: min}\n",
        r"grid.yaml:3: .*logs no 'perplexity'; .*valid: .*val_loss",
    ),
    "objective without direction": (HEAD + "objectives: {val_loss: low}\n", r"'min' or 'max'"),
    "factory": ("name: t\nmodel: {name: 'nowhere.at:all'}\n", r"grid.yaml:2: .*nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_grids(write, case):
    """Each mistake is one line: where it stands and what would be right."""
    text, message = WRONG[case]
    with pytest.raises(ConfigError, match=message) as caught:
        write(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.epochs", "not of the form key.path=value"),
        ("=3", "not of the form"),
        ("train.epochs=[", "--set train.epochs=.* the value is no YAML"),
        ("train.epochs=" + "9" * 5000, "the value is no YAML .*digits"),
        ("data.args={a: 1, a: 2}", "--set data.args=.*key 'a' stands here a second time"),
        ("data.args.a=&a [*a]", "the value is no YAML .*an alias holds itself"),
        ("train.epochs=x", "--set train.epochs=x: train.epochs: .*'x'"),
        ("name.x=1", "'name' is a text, not a section"),
        ("trian.epochs=1", "--set trian.epochs=1: unknown key 'trian'; did you mean 'train'"),
    ],
)
def test_wrong_overrides(write, option, message):
    """A wrong --set is named as it was typed."""
    with pytest.raises(ConfigError, match=message):
        write(BASE, [option])


@pytest.mark.parametrize("option", ["train={epochs: x}", "matrix.lr=[1, x]", "matrix={lr: [x]}"])
def test_a_wrong_override_is_not_blamed_on_the_line_it_replaces(write, option):
    """The option is named, though the file has a line for the same setting."""
    text = HEAD + "train:\n  epochs: 2\nmatrix:\n  lr:\n    - 1\n    - 2\n"
    with pytest.raises(ConfigError, match=f"^--set {re.escape(option)}: train") as caught:
        write(text, [option])
    assert "'x'" in str(caught.value)


def test_axes_inside_a_section_that_is_an_axis_too(write):
    """Arguments count after the model they belong to, whichever axis is written first."""
    nets = [{"label": "A", "name": "hw5net"}, {"label": "B", "name": "hw5net", "init": "xavier"}]
    for matrix in ({"depth": [32, 64], "model": nets}, {"model": nets, "depth": [32, 64]}):
        cells = write(BASE | {"matrix": matrix}).cells()
        found = {(c.config.model.init.scheme, c.config.model.args["depth"]) for c in cells}
        assert found == {(i, d) for i in ("default", "xavier") for d in (32, 64)}
        assert all(c.config.model.args["depth"] == c.factors["depth"] for c in cells)


def test_labels_stand_for_sections_in_exclude_and_include(write):
    """What a table shows may be written to leave a section out, or to add it."""
    nets = [{"label": "A", "name": "hw5net"}, {"label": "B", "name": "net3"}]
    matrix = {"model": nets, "lr": [1e-2]}
    lists = {"exclude": [{"model": "A"}], "include": [{"model": "A", "lr": 0.5}]}
    cells = write(BASE | {"matrix": matrix} | lists).cells()
    assert [(c.config.model.name, c.config.train.lr, c.factors["model"]) for c in cells] == [
        ("net3", 1e-2, "B"),
        ("hw5net", 0.5, "A"),
    ]


def test_a_model_named_in_the_matrix_alone(write):
    """The section `model` need not name one when every cell does."""
    grid = write({"name": "t", "model": {}, "matrix": {"model.name": ["net3"], "lr": [0.1]}})
    assert grid.cells()[0].config.model.name == "net3"
    with pytest.raises(ConfigError, match=r"key 'model.name' is missing"):
        write({"name": "t", "model": {}, "matrix": {"lr": [0.1]}})


def test_a_missing_file(tmp_path):
    """A grid that is not there is said to be not there."""
    with pytest.raises(ConfigError, match="no such file"):
        Grid.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-3, "0.001"), (2e-5, "2e-5"), (True, "true"), (None, "none"), (1e10, "1e10"), ("a", "a")],
)
def test_values_are_shown_as_people_write_them(value, text):
    """Short floats, lower-case truth values."""
    assert shown(value) == text


def test_infinite_and_missing_arguments_are_different_cells(write):
    """An infinite, an undefined and an absent model argument are three configurations."""
    grid = write(
        "name: t\nmodel: {name: 'torch.nn:Dropout'}\nmatrix: {model.args.p: [.inf, .nan, null]}\n"
    )
    assert len({cell.id for cell in grid.cells()}) == 3
