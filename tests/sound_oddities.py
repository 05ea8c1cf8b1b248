"""Networks that look odd and are well; see `casebook`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from casebook import Trained, clouds, curve, drawn, mlp, sound, supervised
from torch import Tensor, nn
from torch.nn import functional


@sound
def log_softmax_and_likelihood(seed: int) -> Trained:
    """The pair that belongs together."""
    draw = clouds(seed)
    model = mlp(16, 5, nn.LogSoftmax(1))
    return Trained(model, supervised(model, functional.nll_loss, draw))


@sound
def sigmoid_and_bce(seed: int) -> Trained:
    """The other pair that belongs together; it gets sure."""
    draw = clouds(seed, 2)
    model = mlp(16, 1, nn.Sigmoid())
    bce = functional.binary_cross_entropy
    return Trained(model, supervised(model, lambda o, y: bce(o.squeeze(1), y.float()), draw))


@sound
def autoencoder_of_pixels(seed: int) -> Trained:
    """Sigmoid at the output, pixels in [0, 1] as targets, a bottleneck."""
    torch.manual_seed(seed)
    images = torch.rand(128, 4) @ torch.rand(4, 36) / 4
    model = mlp(36, 36, nn.Sigmoid(), hidden=24)
    draw = drawn(seed, images)
    return Trained(model, lambda step: functional.mse_loss(model(x := draw()[0]), x))


@sound
def regression_far_from_zero(seed: int) -> Trained:
    """Targets of 100 +- 5: their own variation is small."""
    draw = curve(seed)
    model = mlp(8, 1)
    with torch.no_grad():
        model[-1].bias.fill_(100.0)
    return Trained(model, supervised(model, lambda o, y: functional.mse_loss(o, 100 + 5 * y), draw))


@sound
def actor_and_critic(seed: int) -> Trained:
    """Probabilities, log probabilities, entropy and a value: the losses of PPO."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
            self.policy, self.value = nn.Linear(32, 5), nn.Linear(32, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x)
            return self.policy(x).softmax(-1), self.value(x).squeeze(-1)

    draw, model = clouds(seed), Net()

    def value(step: int) -> Tensor:
        x, y = draw()
        probabilities, guess = model(x)
        chosen = torch.distributions.Categorical(probs=probabilities)
        action = chosen.sample()
        reward = (action == y).float()
        ratio = (chosen.log_prob(action) - chosen.log_prob(action).detach()).exp()
        gain = reward - guess.detach()
        clipped = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        loss = (guess - reward).square().mean() - clipped.mean()
        return loss - 0.01 * chosen.entropy().mean()

    return Trained(model, value, steps=60)


@sound
def generator_and_critic(seed: int) -> Trained:
    """A GAN in one module; the discriminator steps and the generator steps take turns."""
    torch.manual_seed(seed)

    class Gan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator, self.critic = mlp(8, 16, nn.Tanh()), mlp(16, 1)

        def forward(self, noise: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
            fake = self.generator(noise)
            return self.critic(fake), self.critic(real)

    model = Gan()
    draw = drawn(seed, (0.5 * torch.randn(512, 16) + 0.2).clamp(-1, 1))
    bce = functional.binary_cross_entropy_with_logits

    def value(step: int) -> Tensor:
        fake, real = model(torch.randn(32, 8), draw()[0])
        if step % 2:
            return bce(fake, torch.ones_like(fake)) + 0 * real.sum()
        return bce(fake, torch.zeros_like(fake)) + bce(real, torch.ones_like(real))

    return Trained(model, value, lr=1e-3)


@sound
def contrastive_pairs(seed: int) -> Trained:
    """InfoNCE of normalised embeddings with a temperature, as CLIP."""
    draw = clouds(seed)
    model = mlp(16, 8)

    def value(step: int) -> Tensor:
        x, _ = draw()
        a, b = (functional.normalize(model(x + 0.1 * torch.randn_like(x))) for _ in range(2))
        return functional.cross_entropy(a @ b.T * 10, torch.arange(len(a)))

    return Trained(model, value)


@sound
def variational_autoencoder(seed: int) -> Trained:
    """Squared error and a divergence, of three outputs."""

    class Vae(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = mlp(16, 8), mlp(4, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_variance = self.encoder(x).chunk(2, 1)
            code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            return self.decoder(code), mean, log_variance

    draw, model = clouds(seed), Vae()

    def value(step: int) -> Tensor:
        x, _ = draw()
        again, mean, log_variance = model(x)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        return functional.mse_loss(again, x, reduction="sum") / len(x) + 0.1 * divergence

    return Trained(model, value)


@sound
def distilled(seed: int) -> Trained:
    """KL divergence to the softened outputs of a teacher, and the labels."""
    draw = clouds(seed)
    teacher, model = mlp(16, 5), mlp(16, 5)

    def value(step: int) -> Tensor:
        x, y = draw()
        with torch.no_grad():
            soft = (teacher(x) / 4).softmax(1)
        logits = model(x)
        divergence = functional.kl_div((logits / 4).log_softmax(1), soft, reduction="batchmean")
        return divergence * 16 + functional.cross_entropy(logits, y)

    return Trained(model, value)


@sound
def segmented(seed: int) -> Trained:
    """Cross entropy at each pixel, most of them background, some to be ignored."""
    torch.manual_seed(seed)
    images = torch.randn(64, 3, 8, 8)
    masks = (images.sum(1) > 1.5).long() + (images[:, 0] > 1.5).long()
    masks[:, 0] = 255
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    cross = nn.CrossEntropyLoss(ignore_index=255)
    return Trained(model, supervised(model, cross, drawn(seed, images, masks, size=8)))


@sound
def recurrent_with_classes_last(seed: int) -> Trained:
    """Next token by an LSTM, time first."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.loop, self.head = (
                nn.Embedding(20, 16),
                nn.LSTM(16, 32),
                nn.Linear(32, 20),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.loop(self.token(x))[0])

    torch.manual_seed(seed)
    motif = torch.randint(20, (128, 4)).repeat(1, 4)
    draw, model = drawn(seed, motif), Net()

    def value(step: int) -> Tensor:
        (tokens,) = draw()
        out = model(tokens[:, :-1].T)
        return functional.cross_entropy(out.flatten(0, 1), tokens[:, 1:].T.flatten())

    return Trained(model, value, lr=1e-2, steps=60)


@sound
def instances_of_a_bag(seed: int) -> Trained:
    """Attention over the instances of one bag, a softmax along dim 0 of a column."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.weight, self.head = mlp(16, 16), nn.Linear(16, 1), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return (self.weight(x).softmax(0) * x).sum(0, keepdim=True) @ self.head.weight.T

    draw, model = clouds(seed, 2), Bag()

    def value(step: int) -> Tensor:
        x, y = draw()
        return functional.cross_entropy(model(x + y[:1, None]), y[:1])

    return Trained(model, value)


@sound
def dataclass_output_with_its_own_loss(seed: int) -> Trained:
    """The network computes its loss, as those of transformers do."""

    @dataclasses.dataclass
    class Output:
        loss: Tensor
        logits: Tensor

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(16, 5)

        def forward(self, x: Tensor, y: Tensor) -> Output:
            logits = self.body(x)
            return Output(functional.cross_entropy(logits, y, label_smoothing=0.1), logits)

    draw, model = clouds(seed), Net()
    return Trained(model, lambda step: model(*draw()).loss)


@sound
def detector(seed: int) -> Trained:
    """Classes and boxes with losses of their own, returned as a dict."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(16, 32)
            self.classes, self.boxes = nn.Linear(32, 5), nn.Linear(32, 4)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            h = self.body(x).relu()
            box = functional.smooth_l1_loss(self.boxes(h).sigmoid(), x[:, :4].sigmoid())
            return {"classes": functional.cross_entropy(self.classes(h), y), "boxes": box}

    draw, model = clouds(seed), Net()
    return Trained(model, lambda step: sum(model(*draw()).values()))


@sound
def raw_inputs_into_a_norm(seed: int) -> Trained:
    """Large inputs that a batch norm standardises first."""
    draw = clouds(seed)
    model = nn.Sequential(nn.BatchNorm1d(16), *mlp(16, 5))

    def value(step: int) -> Tensor:
        x, y = draw()
        return functional.cross_entropy(model(300 * x + 900), y)

    return Trained(model, value)


@sound
def zero_head_and_zero_gates(seed: int) -> Trained:
    """A head of zeros and gates of zero, as in ReZero."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.gate = mlp(16, 16), nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gate * self.body(x)

    draw = clouds(seed)
    head = nn.Linear(16, 5)
    nn.init.zeros_(head.weight)
    model = nn.Sequential(Block(), Block(), head)
    return Trained(model, supervised(model, functional.cross_entropy, draw), lr=1e-2)


@sound
def linear_autoencoder(seed: int) -> Trained:
    """Principal components by two linear maps; nothing is missing between them."""
    draw = clouds(seed)
    model = nn.Sequential(nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False))
    return Trained(model, lambda step: functional.mse_loss(model(x := draw()[0]), x), lr=1e-2)


@sound
def squeezed_and_gated(seed: int) -> Trained:
    """Squeeze-and-excitation, depthwise and pointwise convolutions without a ReLU between."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    torch.manual_seed(seed)
    y = torch.randint(4, (128,))
    x = torch.randn(4, 3, 8, 8)[y] + torch.randn(128, 3, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3, groups=3, padding=1), nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.SiLU(),
        Gate(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    return Trained(model, supervised(model, functional.cross_entropy, drawn(seed, x, y)), lr=1e-2)


@sound
def gradient_penalty(seed: int) -> Trained:
    """A first backward pass for the penalty, which is not the loss."""
    draw = curve(seed)
    model = nn.Sequential(nn.Linear(8, 32), nn.Softplus(), nn.Linear(32, 1))

    def value(step: int) -> Tensor:
        x, y = draw()
        x.requires_grad_()
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return functional.mse_loss(out, y) + 0.01 * slope.square().mean()

    return Trained(model, value, lr=1e-2)


@sound
def still_at_chance(seed: int) -> Trained:
    """Thirty small steps at the beginning of a long run: a loss at chance is no error yet."""
    draw = clouds(seed)
    model = mlp(16, 5)
    loss = supervised(model, functional.cross_entropy, draw)
    return Trained(model, loss, lr=0.01, steps=30, optimizer=torch.optim.SGD)


@sound
def momentum_teacher(seed: int) -> Trained:
    """BYOL: the target runs under no_grad and follows by moving average."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = mlp(16, 8), mlp(16, 8)
            self.predictor = mlp(8, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                target = self.teacher(x)
            return self.predictor(self.student(x)), target

    draw, model = clouds(seed), Pair()

    def value(step: int) -> Tensor:
        x, _ = draw()
        guess, target = model(x + 0.1 * torch.randn_like(x))
        return 2 - 2 * functional.cosine_similarity(guess, target).mean()

    def follow(pair: nn.Module) -> None:
        with torch.no_grad():
            both = zip(pair.teacher.parameters(), pair.student.parameters(), strict=True)
            for teacher, student in both:
                teacher.lerp_(student, 0.01)

    return Trained(model, value, again=follow)


def images_of_four_classes(seed: int) -> Callable[[], tuple[Tensor, ...]]:
    """Batches of small images, each class brighter in a channel or darker."""
    torch.manual_seed(seed)
    x, y = torch.randn(256, 3, 8, 8), torch.randint(4, (256,))
    x[torch.arange(256), y % 3] += 1.5 * (1 - 2 * (y[:, None, None] // 3))
    return drawn(seed, x, y)


def normed(width: int = 16) -> nn.Sequential:
    """Two convolutions with batch norm, a dropout, and a head, which saw some batches."""
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(width, 4),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(32, 3, 8, 8))
    return model


@sound
def frozen_batch_norm(seed: int) -> Trained:
    """The recipe of fine-tuning: norms alone are in evaluation mode."""
    draw, model = images_of_four_classes(seed), normed()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return Trained(model, supervised(model, functional.cross_entropy, draw))


@sound
def head_on_a_network_in_evaluation_mode(seed: int) -> Trained:
    """Fixed features: all is in evaluation mode and the head alone is trained."""
    draw, model = images_of_four_classes(seed), normed().eval()
    for parameter in model[:-1].parameters():
        parameter.requires_grad_(False)
    return Trained(model, supervised(model, functional.cross_entropy, draw), lr=1e-2)


@sound
def trained_in_evaluation_mode(seed: int) -> Trained:
    """As a loaded network is: a warning, and well all the same."""
    draw, model = images_of_four_classes(seed), normed().eval()
    return Trained(model, supervised(model, functional.cross_entropy, draw))
