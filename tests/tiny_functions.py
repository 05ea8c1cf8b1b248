"""A training function of the kind that users write, good and bad; fixture `tiny` copies this."""

import os
import signal

import torch
from torch import nn

WRONG = {
    "text": {"stage": "warm"},
    "vector": {"errors": torch.zeros(4)},
    "device": {"loss": torch.zeros((), device="meta")},
    "complex": {"phase": 1j},
}
"""Trouble -> what is logged beside the loss."""


def train(run):
    """A line that is fitted, with whatever trouble the cell asks for."""
    args = run.config.train.args
    trouble = args["trouble"]
    model = nn.Sequential(nn.Linear(3, args["width"]), nn.Tanh(), nn.Linear(args["width"], 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=args["lr"])
    for _ in range({"unwatched": 0, "watches twice": 2}.get(trouble, 1)):
        run.watch(model, optimizer)
    run.steps = args["steps"]
    first = taken_up(run, model)
    for step in range(first, 0 if trouble == "logs nothing" else args["steps"]):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        run.log(1.5 if trouble == "no step" else step, **{"loss": loss, **WRONG.get(trouble, {})})
        if trouble == "raises" and step == 2:
            raise KeyError("no such thing")
        if trouble == "saves":
            save(run, model, step + 1)
            if step == 3 and first == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if run.stop:
            break
    if trouble not in ("no objective", "logs nothing"):
        run.log(args["steps"] - 1, error=loss.item() ** 0.5, seen=torch.tensor(first))
    return {"loss": loss.item()} if trouble == "returns" else None


def save(run, model, step):
    """Write a checkpoint, whole or not at all."""
    temporary = run.folder / "last.tmp"
    torch.save({"model": model.state_dict(), "step": step}, temporary)
    temporary.replace(run.folder / "last.pt")


def taken_up(run, model):
    """Go on from the last checkpoint, where there is one; the step to go on with."""
    if run.resume is None:
        return 0
    state = torch.load(run.resume, weights_only=True)
    model.load_state_dict(state["model"])
    return state["step"]
