"""A training watched live, with the log that you use, on this machine alone.

python examples/live.py wandb        # or mlflow, trackio, swanlab, tensorboard, terminal
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import gradscope


def train(log: Callable[[dict[str, float], int], object], steps: int = 40) -> gradscope.Trace:
    """A perceptron on a sine; every fourth step is told to the log."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    model.append(nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with gradscope.watch(model, optimizer, every=4, log=log) as scope:
        for _ in range(steps):
            x = torch.rand(64, 1) * 6 - 3
            loss = (model(x) - x.sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scope.log(loss=loss)
    return scope.trace()


def with_wandb(folder: Path) -> gradscope.Trace:
    """Weights & Biases, offline; `wandb sync` sends it later."""
    import wandb

    with wandb.init(project="gradscope", mode="offline", dir=folder) as run:
        return train(run.log)


def with_mlflow(folder: Path) -> gradscope.Trace:
    """MLflow, into files; `mlflow ui` shows them. A data base or a server is another address."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    mlflow.set_tracking_uri(folder.absolute().as_uri())
    mlflow.set_experiment("gradscope")
    with mlflow.start_run():
        return train(mlflow.log_metrics)


def with_trackio(folder: Path) -> gradscope.Trace:
    """Trackio, into its data base on this machine; `trackio show` shows it."""
    os.environ["TRACKIO_DIR"] = str(folder)  # before it is imported
    import trackio

    trackio.init(project="gradscope", embed=False)
    trace = train(trackio.log)
    trackio.finish()
    return trace


def with_swanlab(folder: Path) -> gradscope.Trace:
    """SwanLab, offline; `swanlab sync` sends it later."""
    import swanlab

    swanlab.init(project="gradscope", mode="offline", logdir=str(folder))
    trace = train(swanlab.log)
    swanlab.finish()
    return trace


def with_tensorboard(folder: Path) -> gradscope.Trace:
    """TensorBoard; `tensorboard --logdir` shows it."""
    from torch.utils.tensorboard import SummaryWriter

    from gradscope.integrations.tensorboard import tensorboard

    with SummaryWriter(str(folder)) as writer:
        return train(tensorboard(writer))


def with_terminal(folder: Path) -> gradscope.Trace:
    """No library: any function of names, values and the step."""
    del folder
    return train(lambda numbers, step: sys.stdout.write(f"{step} {numbers}\n"))


LOGS = {
    "wandb": with_wandb,
    "mlflow": with_mlflow,
    "trackio": with_trackio,
    "swanlab": with_swanlab,
    "tensorboard": with_tensorboard,
    "terminal": with_terminal,
}

if __name__ == "__main__":
    place = Path("runs") / "live"
    place.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"{gradscope.diagnose(LOGS[sys.argv[1]](place))}\n")
