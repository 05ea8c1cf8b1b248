"""Published networks at their own initialisation and after five steps: none is called sick.

But for those of `published.SICK`, whose reasons stand beside them.
"""

import itertools

import pytest
import torch
from published import SICK, built, is_trained, names, probed, watched

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what others' code says of itself
]

AT_ONCE = {"transformers": 5, "timm": 1, "torchvision": 1}
"""How many one test judges: it takes some seconds."""

SIZES = {"transformers": (150, 25), "timm": (100, 40), "torchvision": (80, 80)}
"""How many there are at least, and how many of them are trained."""


def parts():
    """The library and some names of it, for each test."""
    for library, size in AT_ONCE.items():
        every = names(library)
        for i in range(0, len(every), size):
            yield pytest.param(library, every[i : i + size], id=f"{library}-{every[i]}")


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_sample_is_broad():
    """Of each library as many as were promised, and enough of them trained."""
    for library, (least, least_trained) in SIZES.items():
        every = set(names(library))
        assert len(every) >= least
        assert sum(is_trained(library, name) for name in every) >= least_trained


@pytest.mark.parametrize(("library", "part"), list(parts()))
def test_a_published_network_is_not_called_sick(library, part):
    """Neither by a probe nor after five steps; the exceptions are, as what they are."""
    wrong = {}
    for name in part:
        network = built(library, name)
        found = [probed(network)]
        if is_trained(library, name):
            found.append(watched(network))
        verdicts = [diagnosis.verdict.value for diagnosis in found]
        exception = SICK.get(f"{library}/{name}")
        if exception is None and set(verdicts) != {"healthy"}:
            wrong[name] = [f"{name}: {d}" for d in found if not d.is_healthy]
        elif exception is not None and exception.verdict not in verdicts:
            wrong[name] = [f"{name}: {verdicts}"]
    assert not wrong, "\n\n".join(itertools.chain.from_iterable(wrong.values()))
