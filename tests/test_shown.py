"""Objects show themselves in a notebook: whole HTML, every name escaped, nothing loaded."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import gradscope
from gradscope import shown
from gradscope.study.results import CellResult, History, Study

EVIL = "<script>alert('&\"')</script>"


class Page(HTMLParser):
    """What a browser would see: tags that close, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        """Opened."""
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag):
        """Closed, the one that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Text, unescaped."""
        self.text += data + "\n"


class Net(nn.Module):
    """A layer whose name is a script."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(4, 4), nn.Sigmoid()]
        self.add_module(EVIL, nn.Sequential(*(nn.Sequential(*layers) for _ in range(9))))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        """One after the other."""
        return self.head(getattr(self, EVIL)(x))


@pytest.fixture(scope="module")
def objects():
    """Each that shows itself."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = gradscope.watch(model, optimizer, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 4)).square().mean()
        loss.backward()
        optimizer.step()
        scope.log(**{"loss": loss, EVIL: 1.0})
    running = scope._repr_html_()
    scope.close()
    trace = scope.trace()
    trace = dataclasses.replace(trace, metadata={**trace.metadata, "blind_spots": [EVIL]})
    result = CellResult(EVIL, {EVIL: EVIL}, 0, "done", {}, History())
    return {
        "trace": trace._repr_html_(),
        "running": running,
        "closed": scope._repr_html_(),
        "diagnosis": gradscope.diagnose(trace)._repr_html_(),
        "remedies": gradscope.try_remedies(Net(), torch.randn(4, 4))._repr_html_(),
        "study": Study(EVIL, {EVIL: tuple(f"{EVIL}{i}" for i in range(20))}, (result,))
        ._repr_html_(),
    }  # fmt: skip


NAMES = ("trace", "running", "closed", "diagnosis", "remedies", "study")


@pytest.mark.parametrize("name", NAMES)
def test_html_is_whole_escaped_small_and_loads_nothing(objects, name):
    """Tags close, names are text, no address stands in it."""
    html = objects[name]
    page = Page(html)
    assert set(page.tags) <= {"div", "span", "table", "thead", "tbody", "tr", "th", "td"}
    assert "<script" not in html
    assert not re.search(r"https?:|url\(|src=|href=|@import", html)
    assert len(html) < 30_000


@pytest.mark.parametrize("name", NAMES)
def test_text_takes_the_colour_of_the_notebook(objects, name):
    """Light or dark: no text has a colour of its own but on the ground of a badge."""
    for attributes in (a for tags in Page(objects[name]).attributes.values() for a in tags):
        style = attributes.get("style", "")
        if re.search(r"(?<![-\w])color:(?!inherit)", style):
            assert "background:" in style


def luminance(colour):
    """Relative, as WCAG has it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground", [shown.WELL, shown.UNSURE, shown.SICK, shown.PLAIN])
def test_badges_can_be_read(ground):
    """White on their ground: a contrast of 4.5 at least."""
    assert 1.05 / (luminance(ground) + 0.05) >= 4.5


def test_what_they_say(objects):
    """The verdict and each finding, the counts of a trace and a study, the state of a scope."""
    said = {name: Page(html).text for name, html in objects.items()}
    assert "vanishing" in said["diagnosis"]
    assert EVIL in said["diagnosis"]
    assert "3 recorded steps, step 0 to 2" in said["trace"]
    assert f"not seen: {EVIL}" in said["trace"]
    assert "running" in said["running"]
    assert "3 steps seen, 3 kept, one in 1 recorded" in said["running"]
    assert "closed" in said["closed"]
    assert "as it is" in said["remedies"]
    assert f"Study {EVIL}: 1 cells" in said["study"]
    assert "1 done" in said["study"]
    assert "and 12 more" in said["study"]


def test_figures_are_plotlys_one_by_one(objects):
    """By the key of their chart, as the report draws them."""
    import plotly.graph_objects as go

    from gradscope.report import charts

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, every=1) as scope:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 4)).square().mean().backward()
            optimizer.step()
    found, drawn = gradscope.figures(scope.trace()), charts(scope.trace())
    assert len(found) == sum(len(chart.panels) for chart in drawn.values()) > 3
    assert all(isinstance(figure, go.Figure) and figure.data for figure in found.values())
    assert {name.partition("/")[0] for name in found} == set(drawn)
    (panel,) = drawn["profile"].panels
    assert found["profile"] == panel.figure
