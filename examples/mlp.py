"""Perceptrons on scikit-learn's handwritten digits, for a grid of a minute: ``ablations/mlp.yaml``.

pip install 'gradscope-torch[examples]'
gradscope run-grid ablations/mlp.yaml
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradscope

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 64) in 0..1 and labels to train on, then those of the fifth that is kept aside."""
    from sklearn.datasets import load_digits  # here, so that the grid is read without it

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x = torch.from_numpy(images).float()[order] / 16
    y = torch.from_numpy(labels).long()[order]
    cut = len(y) * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]


def perceptron(depth: int, width: int, activation: str, *, norm: bool) -> nn.Sequential:
    """So many hidden layers, each with its activation, and with a batch norm where asked for."""
    layers: list[nn.Module] = []
    features = 64
    for _ in range(depth):
        layers.append(nn.Linear(features, width))
        layers += [nn.BatchNorm1d(width)] if norm else []
        layers.append(ACTIVATIONS[activation]())
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 10))


def train(run: gradscope.Run) -> None:
    """Train one cell by plain stochastic gradient descent."""
    args = run.config.train.args
    x, y, unseen, truth = digits(run.seed)
    model = perceptron(args["depth"], args["width"], args["activation"], norm=args["norm"])
    optimizer = torch.optim.SGD(model.parameters(), lr=args["lr"], momentum=0.9)
    run.watch(model, optimizer)
    batches = len(y) // args["batch_size"]
    run.steps = args["epochs"] * batches
    step = 0
    for _ in range(args["epochs"]):
        order = torch.randperm(len(y))
        for indices in order[: batches * args["batch_size"]].view(batches, -1):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x[indices]), y[indices])
            loss.backward()
            optimizer.step()
            run.log(step, loss=loss)
            step += 1
        model.eval()
        with torch.inference_mode():
            right = (model(unseen).argmax(1) == truth).float().mean()
        model.train()
        run.log(step - 1, accuracy=right)
        if run.stop:
            break
