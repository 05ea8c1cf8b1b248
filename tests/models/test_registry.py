"""The registry: built-ins, torchvision, the user's own; arguments, class counts, seeds, errors."""

import sys
import warnings

import pytest
import torch
import torchvision
from torch import nn

from gradscope.errors import ModelError
from gradscope.models import HW5Net, ModelConfig, build, check_args, resolve, valid_args


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own in the current folder."""
    (tmp_path / "own_nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from torchvision.models import ResNet, resnet18\n"
        "def mlp(num_classes: int = 3, width: int = 4):\n"
        "    return nn.Sequential(nn.ReLU(), nn.Linear(12, width), nn.Linear(width, num_classes))\n"
        "def fixed(width=2):\n"
        "    return nn.Linear(width, 9)\n"
        "def both(n_classes, num_classes=7):\n"
        "    return nn.Linear(n_classes, num_classes)\n"
        "def anything(**kwargs):\n"
        "    return nn.Linear(**kwargs)\n"
        "def wrapped(*, width: int = 1, **kwargs: 'object') -> ResNet:\n"
        "    return resnet18(**kwargs)\n"
        "def no_module():\n"
        "    return 3\n"
        "def raises():\n"
        "    raise RuntimeError('two\\nlines')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("own_nets", None)


def test_built_in():
    """A built-in by name, its arguments and the number of classes handed on."""
    model = build(ModelConfig(name="hw5net", args={"depth": 8, "skip": False}), n_classes=3)
    assert isinstance(model, HW5Net)
    assert model.fc2.out_features == 3
    assert not model.stage3[0].skip
    assert valid_args("hw5net") >= {
        "depth",
        "skip",
        "batch_norm",
        "shared_downsampler",
        "n_classes",
    }


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"]
)
def test_torchvision_takes_the_number_of_classes(name):
    """The builders of torchvision hide num_classes in **kwargs; it still reaches the model."""
    torch.manual_seed(0)
    spec = f"torchvision.models:{name}"
    assert "num_classes" in valid_args(spec)
    with torch.device("meta"):
        model = build(ModelConfig(name=spec), n_classes=6)
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 6)


def test_every_torchvision_classifier_shows_its_class_count():
    """No model of torchvision.models is left out by the way arguments are read."""
    names = torchvision.models.list_models(module=torchvision.models)
    missing = [n for n in names if "num_classes" not in valid_args(f"torchvision.models:{n}")]
    assert len(names) > 50
    assert missing == []


def test_own_factory(own):
    """The user's own factory gets its arguments and the number of classes."""
    model = build(ModelConfig(name="own_nets:mlp", args={"width": 8}), n_classes=4)
    assert model[1].out_features == 8
    assert model[2].out_features == 4


def test_explicit_class_count_wins(own):
    """A class count among the arguments is not overruled, whatever it is called."""
    assert build(ModelConfig(name="own_nets:mlp", args={"num_classes": 9}), 4)[2].out_features == 9
    chosen = build(ModelConfig(name="own_nets:both", args={"n_classes": 1}), n_classes=4)
    assert (chosen.in_features, chosen.out_features) == (1, 7)


def test_factory_without_class_count(own):
    """A factory that takes no class count gets none."""
    assert build(ModelConfig(name="own_nets:fixed"), n_classes=4).out_features == 9


def test_open_factory(own):
    """**kwargs to an unknown end are the factory's affair; those to an annotated class are not."""
    args = {"in_features": 2, "out_features": 5}
    assert build(ModelConfig(name="own_nets:anything", args=args), n_classes=3).out_features == 5
    with pytest.raises(ModelError, match="failed with TypeError"):
        build(ModelConfig(name="own_nets:anything", args={"wdth": 2}))
    known = valid_args("own_nets:wrapped")
    assert known >= {"width", "num_classes", "zero_init_residual"}
    assert not known & {"block", "layers"}  # resnet18 fills these in


@pytest.mark.parametrize(
    ("name", "args", "says"),
    [
        ("hw5ne", {}, "did you mean 'hw5net'"),
        ("resnet18", {}, "for example torchvision.models:resnet18"),
        ("torchvision.models:resnet181", {}, "did you mean 'resnet18'"),
        ("hw5net", {"skips": True}, "takes no argument 'skips'; did you mean 'skip'"),
        ("torchvision.models:resnet18", {"num_clases": 3}, "did you mean 'num_classes'"),
        ("own_nets:no_module", {}, "returned a int"),
        ("own_nets:no_module", {"a": 1}, "it takes none"),
        ("own_nets:raises", {}, "own_nets:raises.. failed with RuntimeError: two lines$"),
        ("own_nets:fixed", {"width": "wide"}, r"fixed\(width='wide'\) failed with TypeError"),
        ("hw5net", {"depth": 30}, "depth=30 must be a multiple of 8"),
    ],
)
def test_errors_name_the_remedy(own, name, args, says):
    """Each way to be wrong ends in one line that names what would be right."""
    with pytest.raises(ModelError, match=says) as caught:
        build(ModelConfig(name=name, args=args), n_classes=5)
    assert "\n" not in str(caught.value)


def test_check_args_builds_nothing(own):
    """A grid is checked before any model is built: a factory that raises passes the check."""
    check_args(ModelConfig(name="own_nets:raises"))
    with pytest.raises(ModelError, match="takes no argument 'wide'"):
        check_args(ModelConfig(name="own_nets:fixed", args={"wide": 1}))
    assert resolve("own_nets:fixed").__name__ == "fixed"


@pytest.mark.parametrize("init", ["default", "kaiming", "orthogonal"])
def test_seed_makes_the_parameters(init):
    """Equal seeds give bit-identical parameters, others do not, and the caller's RNG goes on."""
    config = ModelConfig(name="net3", init=init)
    torch.manual_seed(11)
    expected = torch.rand(5)
    torch.manual_seed(11)
    first = build(config, seed=1).state_dict()
    assert torch.equal(torch.rand(5), expected)
    again, other = build(config, seed=1).state_dict(), build(config, seed=2).state_dict()
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_rng_survives_a_factory_that_raises(own):
    """The caller's random stream is put back even when building fails."""
    state = torch.get_rng_state()
    with pytest.raises(ModelError):
        build(ModelConfig(name="own_nets:raises"), seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_paired_cells_share_their_draws():
    """Switches that add no parameter leave the draws alone: cells differ in one thing only."""
    plain = build(ModelConfig(name="hw5net", args={"skip": False, "batch_norm": False}), seed=4)
    full = build(ModelConfig(name="hw5net", args={"skip": True, "batch_norm": True}), seed=4)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, full.state_dict()[name]), name


def test_build_is_silent():
    """Building warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(build(ModelConfig(name="torchvision.models:resnet18")), nn.Module)
