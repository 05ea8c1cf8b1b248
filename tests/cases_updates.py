"""Training loops with one fault between backward and the update each, and their mended twins.

A case builds a tiny network with its loop for a seed, sick or mended: the same data, the same
network, the fault taken out. What is wrong is known because it was put there. Healthy cases are
loops that look like a fault and are none.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import gradscope


@dataclass
class Loop:
    """A network in training: `step` does one step."""

    model: nn.Module
    optimizer: Any
    step: Callable[[], Any]
    watch: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `gradscope.watch`."""


@dataclass(frozen=True)
class UpdateCase:
    """One fault; a case without kinds is healthy."""

    name: str
    build: Callable[[int, bool], Loop]
    kinds: frozenset[str]
    """Kinds of findings of which one must be there as a warning or an error."""
    verdicts: frozenset[str]
    """Verdicts of which one must be given."""
    remedy: str
    """A word of the remedy."""
    steps: int

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.kinds


CASES: dict[str, UpdateCase] = {}


def case(
    *kinds: str, verdict: str | tuple[str, ...] = "stalled", remedy: str = "", steps: int = 40
) -> Callable[[Callable[[int, bool], Loop]], Callable[[int, bool], Loop]]:
    """Register a builder; without kinds as a healthy loop."""

    def register(build: Callable[[int, bool], Loop]) -> Callable[[int, bool], Loop]:
        verdicts = frozenset([verdict] if isinstance(verdict, str) else verdict)
        CASES[build.__name__] = UpdateCase(
            build.__name__,
            build,
            frozenset(kinds),
            verdicts if kinds else frozenset({"healthy"}),
            remedy,
            steps,
        )
        return build

    return register


def run(name: str, seed: int, *, mended: bool = False) -> gradscope.Trace:
    """Train a case under the recorder."""
    known = CASES[name]
    torch.manual_seed(seed)
    loop = known.build(seed, mended)
    with gradscope.watch(loop.model, loop.optimizer, every=1, **loop.watch) as scope:
        for _ in range(known.steps):
            loop.step()
    return scope.trace()


# --- parts --------------------------------------------------------------------------------------


def batches(seed: int, features: int = 16, classes: int = 4, size: int = 32) -> Iterator[Any]:
    """Endless batches of Gaussian clouds, one per class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=generator)
    while True:
        labels = torch.randint(classes, (size,), generator=generator)
        noise = torch.randn(size, features, generator=generator)
        yield centres[labels] + noise, labels


def network(width: int = 32, features: int = 16, classes: int = 4) -> nn.Sequential:
    """Three linear layers."""
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, classes),
    )  # fmt: skip


def classifier(
    seed: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    after_backward: Callable[[], Any] = lambda: None,
    after_step: Callable[[], Any] = lambda: None,
    **watch: Any,
) -> Loop:
    """The usual loop: zero_grad, forward, backward, step."""
    data = batches(seed)

    def step() -> Tensor:
        inputs, labels = next(data)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs).float(), labels)
        loss.backward()
        after_backward()
        optimizer.step()
        after_step()
        return loss.detach()

    return Loop(model, optimizer, step, watch)


class Heads(nn.Module):
    """A body with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both heads."""
        x = torch.relu(self.body(x))
        return self.first(x) + self.second(x)


# --- what the optimizer holds -------------------------------------------------------------------


@case("not-in-optimizer", remedy="optimizer")
def two_optimizers_miss_a_head(seed: int, mended: bool) -> Loop:
    """One optimizer for the body, one for the first head, none for the second."""
    model = Heads()
    heads = [*model.first.parameters(), *(model.second.parameters() if mended else ())]
    both = [torch.optim.Adam(model.body.parameters(), 1e-3), torch.optim.SGD(heads, 0.05)]
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        model.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        for each in both:
            each.step()

    return Loop(model, both, step)


@case("not-in-optimizer", remedy="optimizer")
def head_replaced_after_optimizer(seed: int, mended: bool) -> Loop:
    """The optimizer holds the head that was thrown away."""
    model = network()
    optimizer = None if mended else torch.optim.Adam(model.parameters(), 1e-3)
    model[-1] = nn.Linear(32, 4)
    return classifier(seed, model, optimizer or torch.optim.Adam(model.parameters(), 1e-3))


@case("not-in-optimizer", remedy="optimizer", verdict=("inconclusive", "stalled"))
def optimizer_of_a_copy(seed: int, mended: bool) -> Loop:
    """The model was copied after the optimizer had been built."""
    model = network()
    optimizer = None if mended else torch.optim.Adam(model.parameters(), 1e-3)
    model = copy.deepcopy(model)
    data = classifier(seed, model, optimizer or torch.optim.Adam(model.parameters(), 1e-3))
    inner = data.step

    def step() -> None:
        inner()
        model.zero_grad()

    return Loop(model, data.optimizer, step)


@case("unregistered", remedy="ModuleList", verdict="inconclusive")
def branches_in_a_dict(seed: int, mended: bool) -> Loop:
    """Branches kept in a plain dict."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(16, 32)
            parts = {name: nn.Linear(32, 32) for name in ("a", "b")}
            self.branches = nn.ModuleDict(parts) if mended else parts
            self.head = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.inner(x))
            return self.head(sum(torch.relu(self.branches[name](x)) for name in ("a", "b")))

    model = Branches()
    return classifier(seed, model, torch.optim.Adam(model.parameters(), 1e-2))


@case("unregistered", remedy="Parameter", verdict="inconclusive")
def weight_as_plain_tensor(seed: int, mended: bool) -> Loop:
    """A weight that requires a gradient, but is no nn.Parameter."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = 0.2 * torch.randn(32, 32)
            self.weight = nn.Parameter(weight) if mended else weight.requires_grad_()
            self.inner, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(torch.relu(self.inner(x)) @ self.weight))

    model = Plain()
    return classifier(seed, model, torch.optim.Adam(model.parameters(), 1e-2))


# --- between backward and the step ----------------------------------------------------------------


@case("gradients-accumulate", verdict="exploding", remedy="zero_grad")
def no_zero_grad(seed: int, mended: bool) -> Loop:
    """Gradients of all batches add up, at a rate at which nothing explodes yet."""
    model = network()
    loop = classifier(seed, model, torch.optim.Adam(model.parameters(), 1e-3))
    if not mended:
        loop.optimizer.zero_grad = lambda: None
    return loop


@case("gradients-accumulate", verdict="exploding", remedy="zero_grad")
def zero_grad_of_the_other_optimizer(seed: int, mended: bool) -> Loop:
    """Only one of two optimizers empties its gradients; the other holds most of the network."""
    model = network()
    both = [
        torch.optim.SGD(model[:3].parameters(), 0.01),
        torch.optim.SGD(model[3:].parameters(), 0.01),
    ]
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        for each in both if mended else both[1:]:
            each.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        for each in both:
            each.step()

    return Loop(model, both, step)


@case("gradients-accumulate", verdict="exploding", remedy="zero_grad")
def discriminator_never_emptied(seed: int, mended: bool) -> Loop:
    """Each step of a discriminator takes what the generator's step and all before it left there."""
    return adversarial(seed, only="discriminator", empty=mended)


@case("zeroed-before-step", remedy="zero_grad")
def step_before_backward(seed: int, mended: bool) -> Loop:
    """The optimizer steps before there is a gradient, which is emptied before the next step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        for do in (loss.backward, optimizer.step) if mended else (optimizer.step, loss.backward):
            do()

    return Loop(model, optimizer, step)


@case("zeroed-before-step", remedy="zero_grad")
def zero_grad_after_backward(seed: int, mended: bool) -> Loop:
    """Gradients are emptied, to None, between backward and the step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    empty = (lambda: None) if mended else optimizer.zero_grad
    return classifier(seed, model, optimizer, after_backward=empty)


@case("zeroed-before-step", remedy="zero_grad")
def zeros_after_backward(seed: int, mended: bool) -> Loop:
    """The same with gradients that stay, as zeros, and with Adam."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def empty() -> None:
        if not mended:
            optimizer.zero_grad(set_to_none=False)

    return classifier(seed, model, optimizer, after_backward=empty)


@case("clipped", remedy="clip")
def clip_norm_of_next_to_nothing(seed: int, mended: bool) -> Loop:
    """clip_grad_norm_ at 1e-4 with SGD."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    limit = 10.0 if mended else 1e-4

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), limit)

    return classifier(seed, model, optimizer, after_backward=clip)


@case("clipped", remedy="clip")
def clip_value_of_next_to_nothing(seed: int, mended: bool) -> Loop:
    """clip_grad_value_ at 1e-5 with SGD."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    limit = 1.0 if mended else 1e-5

    def clip() -> None:
        nn.utils.clip_grad_value_(model.parameters(), limit)

    return classifier(seed, model, optimizer, after_backward=clip)


@case("clipped", remedy="clip")
def clip_below_eps_of_adam(seed: int, mended: bool) -> Loop:
    """A clip so low that Adam's eps is all that is left; a thousand times more would do no harm."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    limit = 1e-3 if mended else 1e-9

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), limit)

    return classifier(seed, model, optimizer, after_backward=clip)


@case("clipped", remedy="unscale_")
def clip_before_unscale(seed: int, mended: bool) -> Loop:
    """Clipped to 1 while the gradients still carry the loss scale of 65536."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(model(inputs), labels)).backward()
        if mended:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return Loop(model, optimizer, step, {"scaler": scaler})


@case("updates-lost", remedy="float32")
def bfloat16_weights(seed: int, mended: bool) -> Loop:
    """Weights in bfloat16, eight bits, with a rate of 1e-5; mended: autocast alone."""
    model = network(64)
    model = model if mended else model.bfloat16()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4 if mended else 1e-5)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mended):
            outputs = model(inputs if mended else inputs.bfloat16())
        functional.cross_entropy(outputs.float(), labels).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@case("updates-lost", remedy="float32")
def bfloat16_weights_sgd(seed: int, mended: bool) -> Loop:
    """The same with SGD at a rate that would do for float32."""
    model = network(64)
    model = model if mended else model.bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), 0.002)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        optimizer.zero_grad()
        outputs = model(inputs.to(model[0].weight.dtype))
        functional.cross_entropy(outputs.float(), labels).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@case("underflow", verdict="vanishing", remedy="GradScaler")
def float16_without_scaler(seed: int, mended: bool) -> Loop:
    """A loss that is a mean over many outputs, in float16 and not scaled."""
    model = network(64, classes=1024)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=mended)
    data = batches(seed, size=256)
    wanted = 0.05 * torch.randn(1024)

    def step() -> None:
        inputs, _ = next(data)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            outputs = model(inputs)
        loss = 0.05 * functional.mse_loss(outputs.float(), wanted.expand(256, -1))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return Loop(model, optimizer, step, {"scaler": scaler})


@case("non-finite", verdict="non-finite", remedy="eps")
def float16_weights_and_adam(seed: int, mended: bool) -> Loop:
    """Adam with its eps of 1e-8, which is zero in float16."""
    model = network().half()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, eps=1e-4 if mended else 1e-8)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs.half()).float(), labels).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@case("zero-initialised", verdict="dead", remedy="random")
def both_factors_zero(seed: int, mended: bool) -> Loop:
    """A product of two weights that both start at zero."""

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(16, 16).requires_grad_(False)
            self.down, self.up = nn.Parameter(torch.zeros(3, 16)), nn.Parameter(torch.zeros(16, 3))
            if mended:
                nn.init.normal_(self.down, 0.0, 0.3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.base(x) + x @ self.down.T @ self.up.T)

    model = nn.Sequential(Adapter(), Adapter(), nn.Linear(16, 4))
    return classifier(seed, model, torch.optim.Adam(model.parameters(), 1e-2))


# --- the rate -----------------------------------------------------------------------------------


def scheduled(seed: int, rate: Callable[[int], float], *, lr: float = 0.05) -> Loop:
    """SGD with momentum and a factor on the rate that depends on the step."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return classifier(seed, model, optimizer, after_step=plan.step)


@case("updates-fade", remedy="schedul")
def rate_zero_from_step_five(seed: int, mended: bool) -> Loop:
    """A linear decay over 5 epochs, stepped per batch."""
    return scheduled(seed, lambda step: max(0.0, 1 - step / (40 if mended else 5)))


@case("updates-fade", remedy="schedul")
def exponential_per_batch(seed: int, mended: bool) -> Loop:
    """A rate that is halved at each step instead of each epoch."""
    return scheduled(seed, lambda step: 0.5 ** (step // 40 if mended else step))


@case("updates-fade", remedy="schedul")
def plateau_that_waits_for_a_rise(seed: int, mended: bool) -> Loop:
    """ReduceLROnPlateau with mode="max" and a loss: each step is a plateau."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    plan = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "min" if mended else "max", patience=20 if mended else 0, threshold=0.5
    )
    loop = classifier(seed, model, optimizer)
    inner = loop.step

    def step() -> None:
        plan.step(inner())

    return Loop(model, optimizer, step)


@case("learning-rate-zero", remedy="learning rate")
def warm_up_that_never_starts(seed: int, mended: bool) -> Loop:
    """A warm-up whose counter stays at zero."""
    return scheduled(seed, lambda step: min(1.0, step / 10) if mended else 0.0)


@case("not-moving", remedy="learning rate", verdict="healthy")
def group_without_a_rate(seed: int, mended: bool) -> Loop:
    """One of two groups has a rate of zero: worth a warning."""
    model = network()
    body = {"params": model[:3].parameters(), "lr": 1e-3 if mended else 0.0}
    optimizer = torch.optim.Adam([body, {"params": model[3:].parameters()}], 1e-3)
    return classifier(seed, model, optimizer)


@case("updates-too-small", remedy="raise the learning rate")
def rate_of_a_billionth(seed: int, mended: bool) -> Loop:
    """A rate of 1e-9, in the first ten steps of momentum, while the updates still grow."""
    return scheduled(seed, lambda step: 1.0, lr=0.05 if mended else 1e-9)


@case("weight-decay", verdict="vanishing", remedy="weight decay")
def decay_of_a_fifth_a_step(seed: int, mended: bool) -> Loop:
    """AdamW with a weight decay of 20 at a rate of 0.01."""
    model = network()
    decay = 0.01 if mended else 20.0
    return classifier(seed, model, torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=decay))


# --- healthy ------------------------------------------------------------------------------------


@case()
def warm_up_from_zero(seed: int, mended: bool) -> Loop:
    """A rate that rises from zero over the whole recording."""
    return scheduled(seed, lambda step: step / 100)


@case(steps=10)
def first_steps_of_momentum(seed: int, mended: bool) -> Loop:
    """Momentum adds up."""
    return scheduled(seed, lambda step: 1.0, lr=0.01)


@case()
def cosine_to_zero(seed: int, mended: bool) -> Loop:
    """Cosine annealing to zero at the very end."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    return classifier(seed, model, optimizer, after_step=plan.step)


@case()
def one_cycle(seed: int, mended: bool) -> Loop:
    """OneCycleLR over the whole run."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=41)
    return classifier(seed, model, optimizer, after_step=plan.step)


@case()
def three_drops(seed: int, mended: bool) -> Loop:
    """MultiStepLR as for ImageNet, at 30, 60 and 90 per cent."""
    return scheduled(seed, lambda step: 0.1 ** sum(step >= at for at in (12, 24, 36)))


@case()
def micro_batches(seed: int, mended: bool) -> Loop:
    """Gradients are accumulated over four micro-batches, on purpose."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    data = batches(seed, size=8)

    def step() -> None:
        optimizer.zero_grad(set_to_none=seed % 2 == 0)
        for _ in range(4):
            inputs, labels = next(data)
            (functional.cross_entropy(model(inputs), labels) / 4).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


class Gan(nn.Module):
    """A generator and a discriminator in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = network(classes=16), network(classes=1)


def adversarial(seed: int, *, only: str = "", empty: bool = True) -> Loop:
    """Both networks of a GAN trained in turn; watched together or one of them.

    Args:
        seed: of the data.
        only: the one that is watched.
        empty: call zero_grad() for the discriminator.
    """
    model = Gan()
    parts = {"generator": model.generator, "discriminator": model.discriminator}
    both = {name: torch.optim.Adam(part.parameters(), 1e-3) for name, part in parts.items()}
    data = batches(seed)

    def step() -> None:
        real, _ = next(data)
        fake = model.generator(torch.randn(32, 16))
        if empty:
            both["discriminator"].zero_grad()
        loss = functional.softplus(-model.discriminator(real)).mean()
        (loss + functional.softplus(model.discriminator(fake.detach())).mean()).backward()
        both["discriminator"].step()
        both["generator"].zero_grad()
        functional.softplus(-model.discriminator(fake)).mean().backward()
        both["generator"].step()

    if only:
        return Loop(parts[only], both[only], step)
    return Loop(model, list(both.values()), step)


@case()
def gan(seed: int, mended: bool) -> Loop:
    """Two optimizers in turn: the discriminator's gradients of the generator's step are emptied."""
    return adversarial(seed)


@case()
def discriminator_alone(seed: int, mended: bool) -> Loop:
    """The generator, which is no part of what is watched, is not unregistered."""
    return adversarial(seed, only="discriminator")


@case()
def generator_alone(seed: int, mended: bool) -> Loop:
    """Nor is the discriminator behind it."""
    return adversarial(seed, only="generator")


@case()
def frozen_backbone(seed: int, mended: bool) -> Loop:
    """Only the head learns, as it should."""
    model = network()
    model[:4].requires_grad_(False)
    return classifier(seed, model, torch.optim.Adam(model[4:].parameters(), 1e-3))


@case()
def tied_weights(seed: int, mended: bool) -> Loop:
    """One weight in two places."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.inner = nn.Embedding(20, 32), nn.Linear(32, 32)
            self.head = nn.Linear(32, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.relu(self.inner(self.embedding(tokens))))

    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        tokens = torch.randint(20, (64,))
        optimizer.zero_grad()
        functional.cross_entropy(model(tokens), (tokens + 1) % 20).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@case()
def averaged_teacher(seed: int, mended: bool) -> Loop:
    """A teacher inside the model follows by moving average and still says requires_grad."""

    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = network()
            self.teacher = copy.deepcopy(self.student)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                target = self.teacher(x)
            return self.student(x), target

    model = Distilled()
    optimizer = torch.optim.Adam(model.student.parameters(), 1e-3)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        optimizer.zero_grad()
        outputs, target = model(inputs)
        loss = functional.cross_entropy(outputs, labels)
        (loss + 0.1 * functional.mse_loss(outputs, target)).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(
                model.teacher.parameters(), model.student.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.01)

    return Loop(model, optimizer, step)


@case()
def master_weights(seed: int, mended: bool) -> Loop:
    """The optimizer holds float32 copies, which are written back after each step."""
    model = network().bfloat16()
    masters = [p.detach().float().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.Adam(masters, 1e-3)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        model.zero_grad()
        functional.cross_entropy(model(inputs.bfloat16()).float(), labels).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)

    return Loop(model, optimizer, step)


@case()
def clipping_that_adam_undoes(seed: int, mended: bool) -> Loop:
    """A low clip value that does no harm: Adam's steps do not depend on the scale."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def clip() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    return classifier(seed, model, optimizer, after_backward=clip)


@case()
def scaler_that_watch_does_not_know(seed: int, mended: bool) -> Loop:
    """What unscale_ divides out is no clipping."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(model(inputs), labels)).backward()
        scaler.step(optimizer)
        scaler.update()

    return Loop(model, optimizer, step)


@case()
def learned_temperature_outside(seed: int, mended: bool) -> Loop:
    """A weight outside the model that the optimizer holds, and inputs with a gradient."""
    model = network()
    temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([*model.parameters(), temperature], 1e-3)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        optimizer.zero_grad()
        outputs = model(inputs.requires_grad_()) * temperature.exp()
        functional.cross_entropy(outputs, labels).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


@case()
def gradient_penalty(seed: int, mended: bool) -> Loop:
    """A second backward pass within the step, before the gradients are emptied."""
    model = network(classes=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    data = batches(seed)

    def step() -> None:
        inputs, labels = next(data)
        outputs = model(inputs.requires_grad_())
        (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        loss = functional.mse_loss(outputs[:, 0], labels.float())
        optimizer.zero_grad()
        (loss + 0.1 * (slope.norm(dim=1) - 1).square().mean()).backward()
        optimizer.step()

    return Loop(model, optimizer, step)


def quiet(name: str, seed: int, *, mended: bool = False) -> gradscope.Trace:
    """As `run`, without what torch and the recorder warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(name, seed, mended=mended)
