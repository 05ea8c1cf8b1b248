"""Faults in what a network computes, and cuts of its graph; see `casebook`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from casebook import Trained, clouds, curve, drawn, mlp, sick, supervised
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


@sick
def constant_weights(seed: int, mended: bool) -> Trained:
    """All weights start at 0.05."""
    draw = clouds(seed)
    model = mlp(16, 5)
    if not mended:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.05)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("units-alike",), "0.weight", "random")


@sick
def norm_over_one_feature(seed: int, mended: bool) -> Trained:
    """LayerNorm over a single feature on the only way."""
    draw = clouds(seed)
    end = [nn.Linear(48, 1), nn.Identity() if mended else nn.LayerNorm(1), nn.Linear(1, 5)]
    model = nn.Sequential(*mlp(16, 48), nn.ReLU(), *end)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("norm-of-one",), "7", "LayerNorm")


@sick
def groups_of_one_element(seed: int, mended: bool) -> Trained:
    """GroupNorm with one channel a group behind a global pooling."""
    torch.manual_seed(seed)
    x, y = torch.randn(128, 3, 8, 8), torch.randint(4, (128,))
    x[torch.arange(128), y % 3] += 2.0 * (1 + y[:, None, None] // 3)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.GroupNorm(4 if mended else 16, 16), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    loss = supervised(model, functional.cross_entropy, drawn(seed, x, y))
    return Trained(model, loss, ("norm-of-one",), "3", "groups", lr=1e-2)


@sick
def softmax_of_one_output(seed: int, mended: bool) -> Trained:
    """Softmax over a single output where a sigmoid was meant."""
    draw = clouds(seed, 2)
    model = mlp(16, 1, nn.Sigmoid() if mended else nn.Softmax(dim=1))
    loss = supervised(model, lambda o, y: functional.mse_loss(o.squeeze(1), y.float()), draw)
    return Trained(model, loss, ("softmax-of-one",), "5", "sigmoid")


@sick
def softmax_over_the_batch(seed: int, mended: bool) -> Trained:
    """log_softmax along dim 0."""
    draw = clouds(seed)
    model = mlp(16, 5, nn.LogSoftmax(dim=1 if mended else 0))
    loss = supervised(model, functional.nll_loss, draw)
    return Trained(model, loss, ("softmax-over-batch",), "5", "dim=1")


class Attention(nn.Module):
    """One head over twelve tokens, without a scale unless one is given."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 5)
        nn.init.normal_(self.qkv.weight, std=1 / 8)

    def forward(self, x: Tensor) -> Tensor:
        """Classes of (batch, tokens, 64)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2)
        scores = scores * self.scale if self.scale != 1 else scores
        return self.out((scores.softmax(-1) @ v).mean(1))


@sick
def attention_without_scale(seed: int, mended: bool) -> Trained:
    """Scores of attention that nobody divides by sqrt(d)."""
    torch.manual_seed(seed)
    y = torch.randint(5, (256,))
    x = torch.randn(256, 12, 64)
    x[:, ::3] += 1.5 * torch.randn(5, 64)[y][:, None]
    model = Attention(1 / 8 if mended else 1.0)
    loss = supervised(model, functional.cross_entropy, drawn(seed, x, y, size=16))
    return Trained(model, loss, ("unscaled-attention",), "root", r"sqrt\(d\)")


@sick
def dropout_of_nearly_all(seed: int, mended: bool) -> Trained:
    """The share to keep given as the share to drop."""
    draw = clouds(seed)
    model = mlp(16, 5)
    model.insert(4, nn.Dropout(0.05 if mended else 0.95))
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("dropout-too-large",), "4", "p = ")


@sick
def batch_norm_in_evaluation_mode(seed: int, mended: bool) -> Trained:
    """Trained from scratch without model.train(): the running statistics are never moved."""
    draw = clouds(seed, size=64)
    inner = [
        layer
        for i in range(12)
        for layer in (nn.Linear(48 if i else 16, 48), nn.BatchNorm1d(48), nn.ReLU())
    ]
    model = nn.Sequential(*inner, nn.Linear(48, 5)).train(mended)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("evaluation-mode",), "root", r"model\.train", lr=1e-3)


@sick
def saturated_for_good(seed: int, mended: bool) -> Trained:
    """Weights forty times too large in front of tanh."""
    draw = clouds(seed)
    model = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(),
                          nn.Linear(48, 5))  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            nn.init.xavier_normal_(layer.weight, gain=1.0 if mended else 40.0)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("saturation",), "1|3", "weights down", lr=1e-3)


@sick
def no_activation(seed: int, mended: bool) -> Trained:
    """Four linear layers and nothing between them."""
    draw = curve(seed)
    between = nn.ReLU if mended else nn.Identity
    model = nn.Sequential(nn.Linear(8, 32), between(), nn.Linear(32, 32), between(),
                          nn.Linear(32, 32), between(), nn.Linear(32, 1))  # fmt: skip
    loss = supervised(model, functional.mse_loss, draw)
    return Trained(model, loss, ("no-activation",), "0", "ReLU")


# --- variation ----------------------------------------------------------------------------------


@sick
def penalty_that_outweighs_the_loss(seed: int, mended: bool) -> Trained:
    """The squares of the weights count far more than what is to be learned."""
    draw = clouds(seed)
    model = mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        size = sum(p.square().sum() for p in model.parameters() if p.dim() > 1)
        return functional.cross_entropy(model(x), y) + (1e-5 if mended else 3.0) * size

    return Trained(model, value, ("collapse",), "4", "penalty", lr=1e-2, steps=60)


@sick
def hardest_triplets(seed: int, mended: bool) -> Trained:
    """With the hardest triplets alone and large steps all embeddings fall on one point."""
    draw = clouds(seed, 8, size=48)
    model = mlp(16, 8)

    def value(step: int) -> Tensor:
        x, y = draw()
        made = model(0.2 * x + torch.randn_like(x))
        apart = ((made[:, None] - made[None]).square().sum(-1) + 1e-12).sqrt()
        same = y[:, None] == y[None]
        if mended:
            far = apart.masked_fill(~same, 0).sum(1) / same.sum(1)
            near = apart.masked_fill(same, 0).sum(1) / (~same).sum(1)
            return functional.softplus(far - near).mean()
        far, near = apart.masked_fill(~same, 0).amax(1), apart.masked_fill(same, 1e9).amin(1)
        return (far - near + 0.2).clamp(min=0).mean()

    lr = 1e-3 if mended else 1e-2  # with larger ones all units die first
    return Trained(model, value, ("collapse",), "4", "hardest", lr=lr, steps=60)


@sick
def oversmoothed_graph(seed: int, mended: bool) -> Trained:
    """Forty rounds of averaging over neighbours make all nodes the same."""
    torch.manual_seed(seed)
    links = (torch.rand(40, 40) < 0.3).float() + torch.eye(40)
    links = links / links.sum(1, keepdim=True)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)
            nn.init.orthogonal_(self.linear.weight)

        def forward(self, x: Tensor) -> Tensor:
            mixed = self.linear(links @ x)
            return (x + 0.2 * mixed.tanh()) if mended else mixed

    model = nn.Sequential(*(Layer() for _ in range(40)), nn.Linear(16, 4))
    y = torch.randint(4, (40,))
    x = torch.randn(4, 16)[y] + 0.5 * torch.randn(40, 16)
    return Trained(
        model,
        lambda step: functional.cross_entropy(model(x), y),
        ("constant-output", "vanishing"),
        "",
    )


# --- cuts ---------------------------------------------------------------------------------------


class Between(nn.Module):
    """Two networks with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = mlp(16, 16), mlp(16, 5), between

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.second(self.between(self.first(x)))


@sick
def detached_on_the_way(seed: int, mended: bool) -> Trained:
    """detach() between two networks."""
    draw = clouds(seed)
    model = Between((lambda x: x) if mended else torch.Tensor.detach)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("disconnected",), "first", "detach")


@sick
def rounded_to_indices(seed: int, mended: bool) -> Trained:
    """The first network's choice goes to the second by argmax."""

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.codes, self.second = mlp(16, 24), nn.Embedding(24, 16), mlp(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.first(x)
            if mended:
                return self.second(logits.softmax(1) @ self.codes.weight)
            return self.second(self.codes(logits.argmax(1)))

    draw, model = clouds(seed), Codes()
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("disconnected",), "first", "argmax|softmax", lr=1e-2)


@sick
def reentrant_checkpoint(seed: int, mended: bool) -> Trained:
    """A reentrant checkpoint whose input needs no gradient."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, x, use_reentrant=not mended))

    draw, model = clouds(seed), Net()
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, ("disconnected",), "body", "use_reentrant")
