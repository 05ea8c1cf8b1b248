"""Trained in evaluation mode by mistake: said of what is switched off, and of nothing else."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradscope


class Net(nn.Module):
    """A body with batch norm and dropout, and a head without."""

    def __init__(self, p=0.2, norm=nn.BatchNorm1d):
        super().__init__()
        block = [nn.Linear(32, 32), norm(32), nn.ReLU(), nn.Dropout(p)]
        self.body = nn.ModuleList(
            [nn.Sequential(nn.Linear(8, 32), nn.ReLU()), nn.Sequential(*block)]
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        """Classes."""
        for part in self.body:
            x = part(x)
        return self.head(x)


def trained(model, steps=3, switch=None, optimizer=True):
    """The diagnosis of some steps; `switch(step)` runs before each."""
    torch.manual_seed(0)
    held = [p for p in model.parameters() if p.requires_grad]
    stepper = torch.optim.Adam(held, lr=1e-3) if optimizer else None
    with gradscope.watch(model, stepper, every=1) as scope:
        for i in range(steps):
            if switch is not None:
                switch(i)
            model.zero_grad()
            inputs, targets = torch.randn(16, 8), torch.randint(4, (16,))
            functional.cross_entropy(model(inputs), targets).backward()
            stepper.step() if stepper is not None else scope.step()
    return gradscope.diagnose(scope.trace())


def said(diagnosis):
    """The finding; None where nothing is said."""
    return next((f for f in diagnosis.findings if f.kind == "evaluation-mode"), None)


def numbers(finding):
    """The evidence, without units."""
    return {name: each.value for name, each in finding.evidence.items()}


def test_a_forgotten_train():
    """A warning that makes no verdict, with what is off and that no batch was ever counted."""
    diagnosis = trained(Net().eval())
    found = said(diagnosis)
    assert diagnosis.is_healthy, str(diagnosis)
    assert (found.severity, found.where, found.since) == ("warning", "(root)", None)
    assert numbers(found) == {"drop nothing": 1, "running statistics": 1, "untouched": 1}
    assert "model.train()" in found.remedy


def test_running_statistics_that_have_seen_batches():
    """They are no longer those of the initialisation."""
    model = Net()
    model(torch.randn(16, 8))
    assert numbers(said(trained(model.eval()))) == {"drop nothing": 1, "running statistics": 1}


def test_a_part_that_came_in_evaluation_mode():
    """As a loaded network inside a module that is in training mode itself."""
    model = nn.Sequential(nn.Linear(8, 8), Net())
    model[1].eval()
    assert said(trained(model)).where == "1"


@pytest.mark.parametrize("back", [False, True])
def test_forgotten_after_a_validation(back):
    """Since the look after the validation; one that went back to training is let be."""
    model = Net()

    def switch(step):
        if step == 20:
            model.eval()
        if step == 50 and back:
            model.train()

    found = said(trained(model, 70, switch))
    assert (found is None) == back
    assert back or 20 <= found.since <= 52


def freeze(module):
    """Take all its parameters out of the training."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def frozen_norm(model):
    """Batch norm in evaluation mode, all else in training."""
    model.body[1][1].eval()


def frozen_norm_without_affine(model):
    """The same, with its weights frozen."""
    freeze(model.body[1][1]).eval()


def frozen_body(model):
    """Only the head is trained."""
    for part in model.body:
        freeze(part).eval()


def frozen_body_all_in_evaluation(model):
    """Features of a fixed network: dropout and norm of it are as they should be."""
    for part in model.body:
        freeze(part)
    model.eval()


def single_dropout(model):
    """Somebody does without it."""
    model.body[1][3].eval()


def nothing_that_differs(model):
    """No dropout, no running statistics."""
    model.body[1][1] = nn.LayerNorm(32)
    model.body[1][3].p = 0.0
    model.eval()


def statistics_of_the_batch(model):
    """A norm that keeps none runs the same in both modes."""
    model.body[1][1] = nn.BatchNorm1d(32, track_running_stats=False)
    model.body[1][3] = nn.Identity()
    model.eval()


@pytest.mark.parametrize("prepare", [
    nn.Module.train, frozen_norm, frozen_norm_without_affine, frozen_body,
    frozen_body_all_in_evaluation, single_dropout, nothing_that_differs, statistics_of_the_batch,
], ids=lambda f: f.__name__)  # fmt: skip
def test_what_is_meant_is_let_be(prepare):
    """Nothing is said, and in the same network all in evaluation mode it would be."""
    model = Net()
    prepare(model)
    assert said(trained(model)) is None
    other = Net()
    assert said(trained(other.eval())) is not None


def test_a_mode_that_changes_nothing_changes_nothing():
    """The cases that count as alike in both modes give the same losses in both: the oracle."""
    for prepare in (nothing_that_differs, statistics_of_the_batch):
        model = Net()
        prepare(model)
        twin = copy.deepcopy(model).train()
        x = torch.randn(16, 8)
        assert torch.equal(model(x), twin(x))


def test_evaluated_and_not_trained():
    """Without an optimizer nobody trains; a probe looks at a network as it is."""
    assert said(trained(Net().eval(), optimizer=False)) is None
    x, y = torch.randn(16, 8), torch.randint(4, (16,))
    assert said(gradscope.diagnose(gradscope.probe(Net().eval(), x, y))) is None


def test_a_validation_with_a_graph_before_the_training():
    """Its modes are not those that are trained in."""
    model = Net()

    def switch(step):
        if step == 0:
            model.eval()
            model(torch.randn(16, 8))
            model.train()

    assert said(trained(model, switch=switch)) is None


def test_layers_that_drop_by_themselves():
    """Recurrent ones between their layers, attention in its weights; one layer has no between."""

    class Reader(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.rnn = nn.LSTM(8, 16, layers, dropout=0.3 if layers > 1 else 0.0, batch_first=True)
            self.rnn.dropout = 0.3
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.rnn(x[:, None])[0][:, -1])

    assert numbers(said(trained(Reader(2).eval()))) == {"drop nothing": 1}
    assert said(trained(Reader(1).eval())) is None
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    found = said(trained(nn.Sequential(nn.Unflatten(1, (1, 8)), encoder, nn.Flatten()).eval()))
    assert found.evidence["drop nothing"].value >= 3


@pytest.mark.parametrize("mode", [True, False])
def test_a_chain_whose_batch_norm_normalises_nothing(mode):
    """PyTorch's initialisation loses sqrt(1/6) of the gradient a layer, which batch norm mends.

    In twelve layers that is 0.408^12 = 2e-5. The cause is the mode; its mend goes first.
    """
    torch.manual_seed(0)
    layer = lambda: nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())  # noqa: E731
    layers = [layer() for _ in range(12)]
    model = nn.Sequential(nn.Linear(8, 32), *layers, nn.Linear(32, 4)).train(mode)
    diagnosis = trained(model, 8)
    errors = {f.kind: f.verdict for f in diagnosis.findings if f.severity == "error"}
    assert errors == ({} if mode else {"evaluation-mode": "vanishing"})
    assert diagnosis.verdict == ("healthy" if mode else "vanishing")
