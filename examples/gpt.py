"""A small character transformer, trained by a function of its own: ``ablations/gpt.yaml``.

    gradscope run-grid ablations/gpt.yaml
    gradscope run-grid ablations/gpt.yaml --set 'train.args.text=[my.txt]'

The norms stand before each branch (pre) or after each sum (post); the latter needs a warm-up of the
learning rate (Xiong et al. 2020, 2002.04745).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradscope


class Block(nn.Module):
    """Attention and a two-layer perceptron, each with a skip connection and a norm."""

    def __init__(self, width: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        """Causal self-attention."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def perceive(self, x: Tensor) -> Tensor:
        """The perceptron."""
        out: Tensor = self.down(functional.gelu(self.up(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(batch, context, width) to the same."""
        if self.norm == "pre":
            x = x + self.attend(self.norm1(x))
            return x + self.perceive(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        out: Tensor = self.norm2(x + self.perceive(x))
        return out


class Gpt(nn.Module):
    """Predicts the next character at each place of a text."""

    def __init__(
        self, characters: int, *, context: int, width: int, heads: int, depth: int, norm: str
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.place = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, norm) for _ in range(depth)))
        self.last = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.head = nn.Linear(width, characters)

    def forward(self, text: Tensor) -> Tensor:
        """Integers (batch, context) to logits (batch, context, characters)."""
        places = torch.arange(text.shape[1], device=text.device)
        x = self.embed(text) + self.place(places)
        out: Tensor = self.head(self.last(self.blocks(x)))
        return out


def initialise(model: Gpt, init: str) -> None:
    """``xavier`` (Glorot & Bengio 2010), or ``gpt``: 0.02, less where branches end (GPT-2)."""
    branches = 2 * len(model.blocks)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "norm" in name:
            continue
        if init == "xavier" and "embed" not in name and "place" not in name:
            nn.init.xavier_uniform_(parameter)
        else:
            ends = name.endswith(("proj.weight", "down.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(branches) if ends else 0.02)


def read(paths: list[str]) -> tuple[Tensor, int]:
    """The characters of some files as integers, and how many different ones there are."""
    text = "\n".join(Path(path).read_text(encoding="utf-8") for path in paths)
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[character] for character in text]), len(alphabet)


def batch(text: Tensor, size: int, context: int, generator: torch.Generator) -> Tensor:
    """Random excerpts, one character longer than the context."""
    starts = torch.randint(len(text) - context, (size, 1), generator=generator)
    return text[starts + torch.arange(context + 1)]


def judge(model: Gpt, text: Tensor, context: int) -> tuple[float, float]:
    """Loss and accuracy on a text that was not trained on."""
    model.eval()
    with torch.inference_mode():
        rows = text[: len(text) // (context + 1) * (context + 1)].view(-1, context + 1)[:128]
        logits = model(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        right = (logits.argmax(-1) == rows[:, 1:]).float().mean()
    model.train()
    return float(loss), float(right)


def train(run: gradscope.Run) -> None:
    """Train one cell; the last tenth of the text is kept for validation."""
    args = run.config.train.args
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text, characters = read(args["text"])
    cut = len(text) * 9 // 10
    known, unseen = text[:cut].to(device), text[cut:].to(device)
    context = args["context"]
    model = Gpt(
        characters,
        context=context,
        width=args["width"],
        heads=args["heads"],
        depth=args["depth"],
        norm=args["norm"],
    )
    initialise(model, args["init"])
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args["lr"], betas=(0.9, 0.95))
    warmed = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(1, args["warmup"]))
    )
    run.watch(model, optimizer)
    run.steps = args["steps"]
    generator = torch.Generator().manual_seed(run.seed)
    for step in range(args["steps"]):
        rows = batch(known, args["batch_size"], context, generator).to(device)
        optimizer.zero_grad()
        logits = model(rows[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        warmed.step()
        run.log(step, loss=loss)
        if (step + 1) % 50 == 0 or step + 1 == args["steps"]:
            val_loss, accuracy = judge(model, unseen, context)
            run.log(step, perplexity=math.exp(min(val_loss, 30.0)), accuracy=accuracy)
        if run.stop:
            break
