"""The callback of the page on trainers, in a real fit of skorch."""

from __future__ import annotations

import pickle

import pytest
import torch
from pages import ROOT, snippets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradscope.recording.watched import is_watched

skorch = pytest.importorskip("skorch", reason="pip install skorch")
pytestmark = pytest.mark.filterwarnings("ignore")  # skorch's own, and of what it uses

SEED, EPOCHS, BATCH, EVERY = 0, 2, 8, 2


@pytest.fixture(scope="module")
def callback():
    """The class that a reader of the page copies; the rest of its snippet is left out."""
    page = ROOT / "docs" / "how-to" / "trainers.md"
    (snippet,) = (each for each in snippets(page, "python") if each.mark == "needs skorch")
    names = {"__name__": __name__}
    exec(snippet.text.partition("\nwatch = ")[0], names)
    return names["Watch"]


def network():
    """The same weights each time."""
    torch.manual_seed(SEED)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 4))


def data():
    """Five batches an epoch, the last of them smaller."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(36, 16, generator=generator)
    return inputs, torch.randint(4, (36,), generator=generator)


def fit(*callbacks):
    """A fit of skorch; dropout draws from the same seed."""
    inputs, targets = data()
    net = skorch.NeuralNetClassifier(
        network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        train_split=None,
        callbacks=list(callbacks),
        verbose=0,
    )
    torch.manual_seed(SEED)
    return net.fit(inputs, targets.numpy())


def by_hand():
    """The model, losses and norms by parameter of the same training in a plain loop."""
    model, losses, norms = network(), [], []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = DataLoader(TensorDataset(*data()), BATCH)  # it draws a seed for each epoch
    torch.manual_seed(SEED)
    for _ in range(EPOCHS):
        for x, y in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            losses.append(loss.item())
            norms.append({n: p.grad.norm().item() for n, p in model.named_parameters()})
            optimizer.step()
    return model, losses, norms


def test_a_fit_is_recorded_as_a_plain_loop(callback):
    """Losses and norms of every second step; weights are those of a fit that nobody watches."""
    watch = callback()
    net, bare = fit(watch), fit()
    model, losses, norms = by_hand()
    steps = list(range(0, len(norms), EVERY))
    assert [step.step for step in watch.trace.steps] == steps == [0, 2, 4, 6, 8]
    assert [s.loss for s in watch.trace.steps] == pytest.approx([losses[i] for i in steps])
    rows = watch.trace.to_pandas().query("kind == 'weight'")
    assert len(rows) == 4 * len(steps)
    for row in rows.itertuples():
        expected = norms[row.step][f"{row.module}.{row.parameter}"]
        assert row.norm == pytest.approx(expected, rel=1e-5)
    for ours, theirs, plain in zip(
        *(m.parameters() for m in (net.module_, bare.module_, model)), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, plain)


def test_nothing_is_left_behind(callback):
    """After the fit nobody watches; weights are loaded as ever, and the callback pickles."""
    watch = callback()
    net = fit(watch)
    assert not is_watched(net.module_)
    assert vars(net.optimizer_).keys() == vars(fit().optimizer_).keys()
    assert not any(module._forward_hooks for module in net.module_.modules())
    assert (
        pickle.loads(pickle.dumps(net.module_)).state_dict().keys() == network().state_dict().keys()
    )
    assert vars(watch).keys() == {"trace"}
    assert len(net.partial_fit(*data()).history) == 2 * EPOCHS
    assert len(watch.trace.steps) == 5
