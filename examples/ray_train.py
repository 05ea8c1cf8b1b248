"""A training on two workers of Ray Train, watched; rank 0 keeps the run.

python examples/ray_train.py    # pip install 'ray[train]'; run.parquet lies here afterwards
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradscope

BATCH = 16


def network() -> nn.Sequential:
    """The same weights on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The whole batch of a step; each rank takes its share."""
    inputs = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(step))
    return inputs, inputs.sum(1, keepdim=True).sin()


def loop(config: dict[str, Any]) -> None:
    """What each worker runs; the process group is there already."""
    import ray.train
    from ray.train.torch import prepare_model

    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    model = prepare_model(network())
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    save = config["save"] if rank == 0 else None  # all ranks record the same numbers
    with gradscope.watch(model, optimizer, every=2, save=save) as scope:
        for step in range(config["steps"]):
            inputs, targets = (whole[rank::ranks].to(device) for whole in batch(step))
            loss = nn.functional.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scope.log(loss=loss)


def train(folder: Path, steps: int = 20) -> gradscope.Trace:
    """Start the workers, wait for them, and read what rank 0 has written."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    save = folder.absolute() / "run.parquet"  # a worker's own folder is another
    TorchTrainer(
        loop,
        train_loop_config={"save": str(save), "steps": steps},
        scaling_config=ScalingConfig(num_workers=2, use_gpu=torch.cuda.device_count() > 1),
        run_config=RunConfig(storage_path=str(folder.absolute() / "ray")),
    ).fit()
    return gradscope.Trace.load(save)


if __name__ == "__main__":
    sys.stdout.write(f"{gradscope.diagnose(train(Path()))}\n")
