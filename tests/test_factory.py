"""load_factory finds what a spec names, and says in one line why when it cannot."""

import sys
import textwrap
from collections import OrderedDict

import pytest

from gradscope.errors import ModelError
from gradscope.factory import load_factory


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder; the import path and the loaded modules are restored after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder, name, text):
    """Write a module into the folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))


def message(spec):
    """The one line that a wrong spec ends in."""
    with pytest.raises(ModelError) as caught:
        load_factory(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_finds_installed_and_nested():
    """Installed modules, and names inside classes."""
    assert load_factory("collections:OrderedDict") is OrderedDict
    assert load_factory("collections:OrderedDict.fromkeys")("a") == OrderedDict(a=None)


def test_finds_module_in_current_folder(folder):
    """A module beside the grid is found although the folder is on no import path."""
    write(folder, "mine_nets.py", "def make(width=1):\n    return ['net', width]\n")
    assert str(folder) not in sys.path
    assert load_factory("mine_nets:make")(width=3) == ["net", 3]


def test_current_folder_is_added_once(folder):
    """Many loads leave one entry on the import path."""
    write(folder, "mine_once.py", "def make():\n    return 1\n")
    for _ in range(3):
        load_factory("mine_once:make")
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    "spec",
    ["", "resnet18", "a.b", ":make", "mod:", "a..b:make", "a b:make", "../net.py:make", "a:b:c"],
)
def test_wrong_form(spec):
    """Anything but package.module:factory is told the right form."""
    assert "package.module:factory" in message(spec)


def test_missing_module(folder):
    """A missing module names the nearest one in the current folder."""
    write(folder, "my_networks.py", "")
    said = message("my_network:make")
    assert "no module 'my_network'" in said
    assert "did you mean 'my_networks'?" in said


def test_missing_submodule(folder):
    """A missing submodule names the nearest one of its package."""
    write(folder, "pack_a/__init__.py", "")
    write(folder, "pack_a/blocks.py", "")
    said = message("pack_a.block:make")
    assert "no module 'pack_a.block'" in said
    assert "did you mean 'blocks'?" in said


def test_missing_attribute(folder):
    """A missing name gets the nearest callable, and only callables are offered."""
    write(
        folder, "mine_attr.py", "def make_net():\n    return 1\nmake_nets = 3\n_make_ne = print\n"
    )
    said = message("mine_attr:make_ne")
    assert "mine_attr has no 'make_ne'" in said
    assert "did you mean 'make_net'? valid: make_net" in said
    assert "make_nets" not in said


def test_missing_attribute_in_a_large_module_lists_only_the_likely():
    """torchvision.models has hundreds of names; the message stays readable."""
    said = message("torchvision.models:resnet19")
    assert "did you mean 'resnet1" in said
    assert len(said) < 400


def test_not_callable(folder):
    """A value that cannot be called says what it is."""
    write(folder, "mine_value.py", "net = 3\n")
    assert "net is a int, which cannot be called" in message("mine_value:net")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
        ("import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
        ("def (:", "SyntaxError"),
    ],
)
def test_import_that_raises(folder, body, reason):
    """The reason of a failing import is named; a missing dependency is not called the module."""
    write(folder, "mine_broken.py", body)
    said = message("mine_broken:make")
    assert "importing mine_broken failed" in said
    assert reason in said
