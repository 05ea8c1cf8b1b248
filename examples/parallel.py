"""A training on several processes without a framework, watched under DDP or FSDP2.

torchrun --nproc-per-node 2 examples/parallel.py ddp    # or fsdp
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import gradscope

WIDTH, HEADS, WORDS, LENGTH, DEPTH = 32, 4, 61, 16, 3


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, length, width), as it comes."""
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Predicts the next word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        """Logits, shape (batch, length, words)."""
        x = self.words(words) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def parallel(model: Transformer, how: str) -> nn.Module:
    """The model over all ranks: whole on each, or each block in pieces and computed anew."""
    if how == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for i, block in enumerate(model.blocks):
        model.blocks[i] = fully_shard(checkpoint_wrapper(block), mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(how: str, steps: int = 8) -> gradscope.Trace:
    """Train on words that follow each other by a rule; every rank calls this."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    model = parallel(Transformer(), how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 4))
    save = "run.parquet" if rank == 0 else None  # all ranks record the same numbers
    with gradscope.watch(model, optimizer, every=2, save=save) as scope:
        for step in range(steps):
            first = torch.randint(WORDS, (8, 1), generator=torch.Generator().manual_seed(step))
            line = (first * 3 ** torch.arange(LENGTH + 1) + 1) % WORDS
            mine = line[rank::ranks]
            loss = functional.cross_entropy(
                model(mine[:, :-1]).flatten(0, 1), mine[:, 1:].flatten()
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            scope.log(loss=loss)
    return scope.trace()


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    recorded = train(sys.argv[1])
    if distributed.get_rank() == 0:
        sys.stdout.write(f"{gradscope.diagnose(recorded)}\n")
    distributed.destroy_process_group()
