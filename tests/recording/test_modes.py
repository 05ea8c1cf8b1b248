"""The modes of modules as they are while a network is trained, not as they are afterwards."""

import pytest
import torch
from torch import nn

import gradscope


def settings_of(model, modes, after):
    """Settings by module: `modes[i]` is the mode of step i, `after` that at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for mode in modes:
            model.train(mode)
            model(torch.randn(4, 6)).sum().backward()
            optimizer.step()
        model.train(after)
        trace = scope.trace()
    assert {i.name: i.settings for i in scope.trace().structure.modules} == {
        i.name: i.settings for i in trace.structure.modules
    }
    return {info.name: info.settings for info in trace.structure.modules}


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_that_of_the_training(mode):
    """Whatever it is when the trace is made."""
    settings = settings_of(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), [mode] * 2, not mode)
    assert settings["1"]["training"] == mode
    assert ("eval_since" in settings["1"]) == (not mode)
    assert ("eval_since" in settings["0"]) == (not mode)


def test_numbers_are_those_of_the_first_step():
    """A rate that is changed later does not change the note."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    with gradscope.watch(model, every=1) as scope:
        model(torch.randn(4, 6)).sum().backward()
        scope.step()
    model[1].p = 0.9
    again = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    with gradscope.watch(again, every=1) as open_scope:
        again(torch.randn(4, 6)).sum().backward()
        open_scope.step()
        again[1].p = 0.9
        trace = open_scope.trace()
    for each in (scope.trace(), trace):
        assert each.structure.modules[1].settings["p"] == 0.5


@pytest.mark.parametrize(("modes", "since"), [
    ([True] * 64, None),
    ([True] * 40 + [False] * 24, 63),
    ([False] * 64, 0),
    ([False] * 40 + [True] * 24, None),
    ([True] * 20 + [False] * 76, 31),
])  # fmt: skip
def test_the_mode_is_looked_at_every_32_recorded_steps(modes, since):
    """The first of the last looks that found it so; steps are counted from zero."""
    settings = settings_of(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), modes, after=True)
    assert settings["1"].get("eval_since") == since


@pytest.mark.parametrize(("seen", "untouched"), [(0, 1.0), (1, 0.0)])
def test_running_statistics_as_they_were_made(seen, untouched):
    """Told of a norm in evaluation mode; one batch moves them."""
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    for _ in range(seen):
        model(torch.randn(4, 6))
    assert settings_of(model, [False], after=True)["1"]["untouched"] == untouched
    assert "untouched" not in settings_of(model, [True], after=True)["1"]
