"""What else may stand around a training: watched, it is the bare one, and its norms are right."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from never_in_the_way import Run, chain, compare
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from gradscope.recording import kernels


@pytest.fixture(
    autouse=True,
    params=[
        ("kernels", "1"),
        pytest.param(("torch", "1"), marks=pytest.mark.slow),
        pytest.param(("kernels", "0"), marks=pytest.mark.slow),
    ],
    ids=["strict", "without kernels", "as users run it"],
)
def _ways(request, monkeypatch):
    """With the compiled kernels and with what a GPU runs; nothing may rest on the guard."""
    if request.param[0] == "torch":
        monkeypatch.setattr(kernels, "compiled", None)
    monkeypatch.setenv("GRADSCOPE_STRICT", request.param[1])


X = torch.linspace(-1, 1, 15).reshape(5, 3)


def loop(run, model, optimizer, *, value=None, steps=4, after=None):
    """Watch and train; `value(model)` is the loss, `after(step)` runs at the end of each step."""
    run.watch(model, optimizer)
    for i in range(steps):
        optimizer.zero_grad()
        loss = model(X).square().mean() if value is None else value(model)
        loss.backward()
        run.step()
        run.numbers.append(loss.detach().clone())
        if after is not None:
            after(i)


def sgd(model, **options):
    """The optimizer of most rows."""
    return torch.optim.SGD(model.parameters(), **({"lr": 0.05, "momentum": 0.9} | options))


# Optimizers and what stands around their steps


def adam(**options):
    """Adam with one of its ways of stepping."""

    def case(run):
        model = chain(3, 4, 2)
        loop(run, model, torch.optim.Adam(model.parameters(), lr=0.01, **options))

    return case


def scheduled(make, when="after"):
    """A scheduler wraps `step`, before or after `watch`."""

    def case(run):
        model = chain(3, 4, 2)
        optimizer = sgd(model)
        scheduler = make(optimizer) if when == "before" else None
        run.watch(model, optimizer)
        scheduler = scheduler or make(optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(X).square().mean()
            loss.backward()
            run.step()
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([float(loss.detach())] if plateau else []))
            run.facts.append([group["lr"] for group in optimizer.param_groups])
        run.facts.append(sorted(scheduler.state_dict()))

    return case


def averaged(run):
    """Weights averaged beside the training, and its own schedule."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    average = swa_utils.AveragedModel(model)
    ema = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    schedule = swa_utils.SWALR(optimizer, swa_lr=0.01)

    def after(step):
        average.update_parameters(model)
        ema.update_parameters(model)
        schedule.step()
        run.numbers.append(average(X).detach())

    loop(run, model, optimizer, after=after)
    run.numbers += list(ema.state_dict().values())


def copied_teacher(run):
    """A copy made while it is watched is trained by its source and judged beside it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    teacher = []

    def value(model):
        if not teacher:
            teacher.append(copy.deepcopy(model).requires_grad_(False))
        with torch.no_grad():
            for p, q in zip(teacher[0].parameters(), model.parameters(), strict=True):
                p.lerp_(q, 0.1)
        return functional.mse_loss(model(X), teacher[0](X) + 1)

    loop(run, model, sgd(model), value=value)
    run.facts.append([sorted(vars(m)) for m in teacher[0].modules()])


def lbfgs(run):
    """Many evaluations a step, with a line search."""
    model = chain(3, 4, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, line_search_fn="strong_wolfe")
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = (model(X) - 1).square().mean()
        loss.backward()
        seen.append({n: float(p.grad.double().norm()) for n, p in model.named_parameters()})
        return loss

    run.watch(model, optimizer)
    for _ in range(3):
        seen.clear()
        run.numbers.append(optimizer.step(closure).detach())
        run.norms.append(seen[-1])


def scaled(run):
    """A GradScaler on a CPU; the scope is not told of it, and reads what the optimizer gets."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    if run.watched:
        run.watch(model, optimizer, scaler=scaler)
    else:
        run.watch(model, optimizer)
    for i in range(4):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        scaler.scale(loss).backward()
        if i % 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        else:
            scaler.unscale_(optimizer)
        run.norms.append({n: float(p.grad.double().norm()) for n, p in model.named_parameters()})
        scaler.step(optimizer)
        scaler.update()
        run.numbers.append(loss.detach())


def refused(run):
    """A step that raises, as one that is to be captured does on a CPU, and one that does not."""
    model = chain(3, 4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, capturable=True)
    run.watch(model, optimizer)
    for i in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        if i == 0:
            with pytest.raises(AssertionError, match="capturable"):
                optimizer.step()
            optimizer.param_groups[0]["capturable"] = False
        run.step()


def differentiated(run):
    """The gradient of what steps of an inner optimizer made of the weights (Finn et al. 2017)."""

    def value(model):
        fast = {name: p.clone() for name, p in model.named_parameters()}
        inner = torch.optim.SGD(fast.values(), lr=0.1, momentum=0.9, differentiable=True)
        for _ in range(2):
            now = {name: p.clone() for name, p in fast.items()}
            loss = torch.func.functional_call(model, now, (X,)).square().mean()
            found = torch.autograd.grad(loss, list(now.values()), create_graph=True)
            for p, g in zip(fast.values(), found, strict=True):
                p.grad = g
            inner.step()
        return torch.func.functional_call(model, fast, (X + 1,)).square().mean()

    loop(run, model := chain(3, 4, 2), sgd(model), value=value)


def matrices_apart(run):
    """Muon steps the matrices, AdamW all else."""
    model = chain(3, 4, 2)
    apart = [[p for p in model.parameters() if (p.dim() == 2) == two] for two in (True, False)]
    both = [torch.optim.Muon(apart[0], lr=0.01), torch.optim.AdamW(apart[1], lr=0.01)]
    run.watch(model, both)
    run.optimizer = None
    for _ in range(4):
        for each in both:
            each.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        run.norms.append({n: float(p.grad.double().norm()) for n, p in model.named_parameters()})
        for each in both:
            each.step()
        run.numbers.append(loss.detach())


def ways_of_stepping():
    """Each optimizer of torch, with each of its ways of doing the same that a CPU knows."""
    ways = {"foreach": (True, False), "fused": (True,), "maximize": (True,)}
    for kind in (
        torch.optim.Adadelta, torch.optim.Adafactor, torch.optim.Adagrad, torch.optim.Adam,
        torch.optim.Adamax, torch.optim.AdamW, torch.optim.ASGD, torch.optim.NAdam,
        torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Rprop, torch.optim.SGD,
    ):  # fmt: skip
        known = inspect.signature(kind).parameters
        options = [{way: value} for way in ways if way in known for value in ways[way]]
        for each in ({}, *options):
            name = " ".join([kind.__name__, *(f"{way}={value}" for way, value in each.items())])
            yield name, kind, each


def two_models_one_optimizer(run):
    """An encoder that is watched, and a head that is not."""
    body, head = chain(3, 4), nn.Linear(4, 2)
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.05)
    loop(run, body, optimizer, value=lambda body: head(body(X)).square().mean())
    run.numbers += list(head.state_dict().values())


def one_parameter_in_groups(run):
    """Groups of single parameters, one added while it trains."""
    model = chain(3, 4, 2)
    first, *rest = model.parameters()
    optimizer = torch.optim.SGD([{"params": [p]} for p in rest], lr=0.05)
    first.requires_grad_(False)

    def after(step):
        if step == 1:
            first.requires_grad_(True)
            optimizer.add_param_group({"params": [first]})

    loop(run, model, optimizer, after=after, steps=5)


def parameters_in_turns(run):
    """Layers are frozen and thawed in turns."""
    model = chain(3, 4, 4, 2)

    def after(step):
        model[0].requires_grad_(step % 2 == 0)

    loop(run, model, sgd(model), after=after, steps=5)


OPTIMIZERS = {
    "amsgrad, maximize": adam(amsgrad=True, maximize=True),
    "weight decay": adam(weight_decay=0.1, decoupled_weight_decay=True),
    "rate in a tensor": lambda run: loop(
        run,
        model := chain(3, 4, 2),
        torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), foreach=False),
    ),
    "refused": refused,
    "differentiable": differentiated,
    "matrices apart": matrices_apart,
    "cosine": scheduled(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5)),
    "one cycle": scheduled(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9), "before"
    ),
    "plateau": scheduled(lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0)),
    "in sequence": scheduled(
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2),
                torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
            ],
            milestones=[2],
        ),
    ),
    "averaged": averaged,
    "copied teacher": copied_teacher,
    "L-BFGS": lbfgs,
    "scaled": scaled,
    "two models": two_models_one_optimizer,
    "groups": one_parameter_in_groups,
    "in turns": parameters_in_turns,
    **{
        name: lambda run, kind=kind, options=options: loop(
            run, model := chain(3, 4, 2), kind(model.parameters(), lr=0.01, **options)
        )
        for name, kind, options in ways_of_stepping()
    },
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_and_what_wraps_them(name):
    """Every way of stepping in torch, and whatever counts, plans or averages steps."""
    compare(OPTIMIZERS[name])


# Ways of making a gradient


def penalty(run):
    """The gradient of a gradient, with a graph of its own."""

    def value(model):
        x = X.clone().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return model(x).square().mean() + (g.norm(dim=1) - 1).square().mean()

    loop(run, model := chain(3, 4, 2), sgd(model), value=value)


def sharp(run):
    """A backward pass with a graph, and one of the gradients that it left."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    run.watch(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the cycle that it makes
            loss.backward(create_graph=True)
        sum(p.grad.square().sum() for p in model.parameters()).backward()
        run.step()
        run.numbers.append(loss.detach())
        for p in model.parameters():
            p.grad = None


def kept_graph(run):
    """Two losses, one after the other, on one graph."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    run.watch(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        output = model(X)
        output.square().mean().backward(retain_graph=True)
        (output - 1).abs().sum().backward(inputs=list(model[0].parameters()))
        run.step()


def accumulated(run):
    """Micro-batches of several sizes, one of them without a gradient."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    run.watch(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        for part in (X[:1], X[1:4], X[:0], X[4:]):
            model(part).square().sum().backward()
        with torch.no_grad():
            model(X)
        run.step()


def assigned(run):
    """Gradients by autograd.grad, put where the optimizer looks."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    run.watch(model, optimizer)
    for _ in range(3):
        weights = list(model.parameters())
        found = torch.autograd.grad(model(X).square().mean(), weights)
        for p, g in zip(weights, found, strict=True):
            p.grad = g
        run.step()


def functional_training(run):
    """The same by torch.func: the modules run within a transform."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    run.watch(model, optimizer)

    def loss(weights, x):
        return torch.func.functional_call(model, weights, (x,)).square().mean()

    for _ in range(3):
        weights = dict(model.named_parameters())
        found = torch.func.vmap(torch.func.grad(loss), (None, 0))(
            {k: v.detach() for k, v in weights.items()}, X[:, None]
        )
        for k, p in weights.items():
            p.grad = found[k].mean(0)
        run.step()


def ensemble(run):
    """Stacked weights, one model that gives their code, vmap."""
    models = [chain(3, 4, 2) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(models)
    holder = nn.ParameterDict({k.replace(".", "_"): nn.Parameter(v) for k, v in weights.items()})
    base = copy.deepcopy(models[0]).to("meta")

    def value(holder):
        stacked = {k: holder[k.replace(".", "_")] for k in weights}
        call = lambda w: torch.func.functional_call(base, w, (X,))  # noqa: E731 - as users write it
        return torch.func.vmap(call)(stacked).square().mean()

    loop(run, holder, torch.optim.SGD(holder.parameters(), lr=0.05), value=value)


def stateless(make, hold=None):
    """A network that is called with weights that are handed to it.

    Args:
        make: what the weights of a call are, by name, from the parameters of the network.
        hold: what to train instead of the parameters, which then get no gradient.
    """

    def case(run):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        trained = {k: hold(p) if hold else p for k, p in model.named_parameters()}
        optimizer = torch.optim.SGD(trained.values(), lr=0.05, momentum=0.9)

        def value(model):
            weights = {k: make(p) for k, p in trained.items()} | dict(model.named_buffers())
            return torch.func.functional_call(model, weights, (X,)).square().mean()

        loop(run, model, optimizer, value=value)
        run.numbers += list(trained.values())

    return case


def living_ensemble(run):
    """The parameters of several networks, stacked anew in each step, through the code of one."""

    def value(models):
        weights = [dict(model.named_parameters()) for model in models]
        stacked = {k: torch.stack([w[k] for w in weights]) for k in weights[0]}
        found = torch.func.vmap(lambda w: torch.func.functional_call(models[0], w, (X,)))(stacked)
        return found.square().mean()

    loop(run, models := nn.ModuleList(chain(3, 4, 2) for _ in range(3)), sgd(models), value=value)


def forward_mode(run):
    """Dual numbers through the model, in the step and beside it."""
    import torch.autograd.forward_ad as fwad

    def value(model):
        with fwad.dual_level():
            output = model(fwad.make_dual(X, torch.ones_like(X)))
            primal, tangent = fwad.unpack_dual(output)
            return primal.square().mean() + tangent.square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it scripts some of itself when it is first used
        loop(run, model := chain(3, 4, 2), sgd(model), value=value)


def linearised(run):
    """A Jacobian product by torch.func, whose result is trained on."""
    model = chain(3, 4, 2)

    def value(model):
        output, tangent = torch.func.jvp(model, (X,), (torch.ones_like(X),))
        return output.square().mean() + tangent.square().mean()

    loop(run, model, sgd(model), value=value)


class InPlace(torch.autograd.Function):
    """A function of somebody's own that writes over its input."""

    @staticmethod
    def forward(ctx, x):
        """Halve it."""
        ctx.mark_dirty(x)
        return x.mul_(0.5)

    @staticmethod
    def backward(ctx, gradient):
        """Halve it too, over the gradient that it is handed."""
        return gradient.mul_(0.5)


class Apart(torch.autograd.Function):
    """One with several outputs, one of which has no gradient."""

    @staticmethod
    def forward(ctx, x):
        """The sign apart."""
        sign = x.sign()
        ctx.save_for_backward(sign)
        ctx.mark_non_differentiable(sign)
        return x.abs(), sign

    @staticmethod
    def backward(ctx, gradient, _):
        """Of the absolute value."""
        (sign,) = ctx.saved_tensors
        return gradient * sign


class Applies(nn.Module):
    """A function of autograd as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        """The first of its outputs."""
        output = self.function.apply(x)
        return output[0] * output[1] if isinstance(output, tuple) else output


def own_functions(run):
    """Functions that write over what they are given."""
    model = nn.Sequential(nn.Linear(3, 4), Applies(InPlace), nn.Linear(4, 4), Applies(Apart))
    model.append(nn.Linear(4, 2))
    loop(run, model, sgd(model))


def saved_elsewhere(run):
    """What the graph keeps is packed by the user."""
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.double()

    model = chain(3, 4, 2)

    def value(model):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t.float()):
            return model(X).square().mean()

    loop(run, model, sgd(model), value=value)
    run.facts.append(packed)


def with_anomalies_told(run):
    """The mode that looks for NaN in the backward pass."""

    def value(model):
        with torch.autograd.detect_anomaly(check_nan=True):
            return model(X).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop(run, model := chain(3, 4, 2), sgd(model), value=value)


def nested_checkpoints(run):
    """Checkpoints within checkpoints, and in a row."""

    class Saved(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner, self.last = chain(3, 4), chain(4, 4, 4), nn.Linear(4, 2)

        def deep(self, x):
            return checkpoint(self.inner, x.tanh(), use_reentrant=False).tanh()

        def forward(self, x):
            x = checkpoint(self.deep, self.first(x), use_reentrant=False)
            x = checkpoint_sequential(list(self.inner), 2, x, use_reentrant=False)
            return self.last(x)

    loop(run, model := Saved(), sgd(model))


def branches_that_stop(run):
    """A detach, a no_grad part and a part whose loss is not used."""

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.a(x)
            with torch.no_grad():
                self.b(hidden)
            self.c(hidden.detach())
            return self.b(hidden)

    loop(run, model := Partly(), sgd(model))


GRADIENTS = {
    "stateless": stateless(lambda p: p),
    "stateless, noisy": stateless(lambda p: p + 0.1 * torch.randn_like(p)),
    "stateless, held apart": stateless(
        torch.clone, hold=lambda p: p.detach().clone().requires_grad_()
    ),
} | {
    f.__name__: f
    for f in (
        penalty, sharp, kept_graph, accumulated, assigned, functional_training, ensemble,
        living_ensemble, forward_mode, linearised, own_functions, saved_elsewhere,
        with_anomalies_told, nested_checkpoints, branches_that_stop,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_ways_of_making_a_gradient(name):
    """By whatever part of autograd it is made, and however often."""
    compare(GRADIENTS[name])


# Modules


def reparametrised(wrap, *, after=False):
    """A layer whose weight is made of others, by hooks or by parametrisation."""

    def case(run):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
        if not after:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the older ones are deprecated
                wrap(model[2])
        loop(run, model, sgd(model), after=(lambda i: i or wrap(model[2])) if after else None)

    return case


class Symmetric(nn.Module):
    """A parametrisation of a user's own."""

    def forward(self, weight):
        """The symmetric part."""
        return weight + weight.T


def own_parametrisation(module):
    """Two on top of each other."""
    parametrize.register_parametrization(module, "weight", Symmetric())
    parametrize.register_parametrization(module, "weight", nn.Tanh())


class Slotted(nn.Module):
    """Attributes in slots beside those of a module."""

    __slots__ = ("calls",)

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "calls", 0)
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        """Count, and go on."""
        object.__setattr__(self, "calls", self.calls + 1)
        return self.inner(x)


class Trap(nn.Module):
    """Gives something for every name, refuses new names, and is empty, false and like no other."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.__dict__["closed"] = True

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or name == "_compiled_call_impl":
                raise
            raise AssertionError(f"asked for {name}") from None

    def __setattr__(self, name, value):
        assert not self.__dict__.get("closed") or name == "training", f"set {name}"
        super().__setattr__(name, value)

    def __len__(self):
        return 0

    def __bool__(self):
        raise AssertionError("asked for its truth")

    def __eq__(self, other):
        raise AssertionError("compared")

    def __hash__(self):
        return id(self)

    def __iter__(self):
        raise AssertionError("walked through")

    def forward(self, x):
        """Go on."""
        return self.inner(x)


class OwnCall(nn.Module):
    """A `__call__` of its own around torch's."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def __call__(self, *args, **kwargs):
        """Twice the output."""
        return 2 * super().__call__(*args, **kwargs)

    def forward(self, x):
        """Go on."""
        return self.inner(x)


def instance_forward():
    """A `forward` that was replaced on the instance."""
    module = nn.Linear(4, 4)
    original = module.forward
    module.forward = lambda x: original(x) * 0.5
    return module


def scripted():
    """A part in TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


def as_graph():
    """A part that torch.fx made of code."""
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


def exported():
    """A part that torch.export made of code."""
    return torch.export.export(nn.Linear(4, 4), (torch.ones(5, 4),)).module()


def halve(parameter):
    """What a user does when a gradient is complete."""
    parameter.grad.mul_(0.5)


def hooked():
    """Hooks of the user of every kind."""
    module = nn.Linear(4, 4)
    module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    module.register_forward_hook(lambda m, args, output: output + 1)
    module.register_forward_hook(
        lambda m, args, kwargs, output: output * 0.5, with_kwargs=True, always_call=True
    )
    module.register_full_backward_hook(lambda m, inward, outward: (inward[0] * 0.5,))
    module.register_full_backward_pre_hook(lambda m, outward: (outward[0] * 3,))
    module.weight.register_hook(lambda g: g * 2)
    module.bias.register_post_accumulate_grad_hook(halve)
    return module


def twice():
    """One layer in two places."""
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.Tanh(), shared)


class InsideOut(nn.Module):
    """Modules made in the forward pass."""

    def forward(self, x):
        """One that lives as long as the pass, and one that is added for good."""
        if not hasattr(self, "late"):
            self.late = nn.Identity()
        return self.late(nn.Hardtanh()(x))


MODULES = {
    "slots": Slotted,
    "trap": Trap,
    "own call": OwnCall,
    "forward on the instance": instance_forward,
    "scripted": scripted,
    "fx": as_graph,
    "exported": exported,
    "hooked": hooked,
    "twice": twice,
    "inside out": InsideOut,
    "data parallel": lambda: nn.DataParallel(nn.Linear(4, 4)),
}

REPARAMETRISED = {
    "spectral norm": reparametrised(parametrizations.spectral_norm),
    "weight norm": reparametrised(parametrizations.weight_norm),
    "orthogonal": reparametrised(parametrizations.orthogonal),
    "own": reparametrised(own_parametrisation),
    "own, while watching": reparametrised(own_parametrisation, after=True),
    "spectral norm by hook": reparametrised(nn.utils.spectral_norm),
    "weight norm by hook": reparametrised(nn.utils.weight_norm),
}


@pytest.mark.parametrize("name", [*MODULES, *REPARAMETRISED])
def test_modules_with_habits_of_their_own(name):
    """Nothing is asked of them that they would not be asked by torch."""

    def case(run):
        model = nn.Sequential(nn.Linear(3, 4), MODULES[name](), nn.Linear(4, 2))
        loop(run, model, sgd(model))

    compare(case if name in MODULES else REPARAMETRISED[name])


# Kinds of numbers, inputs and outputs


def packed(run):
    """Sequences of several lengths through recurrent layers."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 3, padding_idx=0), nn.Linear(8, 2)
            self.rnn = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, tokens, lengths):
            sequence = nn.utils.rnn.pack_padded_sequence(
                self.embed(tokens), lengths, batch_first=True, enforce_sorted=False
            )
            output, _ = self.rnn(sequence)
            padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
            return self.head(padded)

    tokens = torch.randint(1, 9, (3, 6))
    lengths = torch.tensor([2, 6, 4])
    loop(run, model := Reader(), sgd(model), value=lambda m: m(tokens, lengths).square().mean())


def sparse(run):
    """Sparse gradients, their own Adam beside a usual optimizer."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 4, sparse=True), nn.Linear(4, 2)

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    model = Reader()
    both = [
        torch.optim.SparseAdam(model.embed.parameters(), lr=0.01),
        torch.optim.Adam(model.head.parameters(), lr=0.01),
    ]
    run.model, tokens = model, torch.randint(0, 50, (4, 5))
    run.watch(model, both)
    run.optimizer = both[1]
    for _ in range(4):
        for each in both:
            each.zero_grad()
        loss = model(tokens).square().mean()
        loss.backward()
        run.norms.append(
            {n: float(p.grad.to_dense().double().norm()) for n, p in model.named_parameters()}
        )
        for each in both:
            each.step()
        run.numbers.append(loss.detach())


def complex_numbers(run):
    """Complex parameters and outputs."""

    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
            self.linear = nn.Linear(4, 4, dtype=torch.complex64)

        def forward(self, x):
            return torch.fft.ifft(self.linear(torch.fft.fft(x @ self.weight))).abs()

    model = Waves()
    loop(run, model, sgd(model), value=lambda m: m(X.to(torch.complex64)).square().mean())


def half(dtype):
    """Parameters and outputs of half precision, some norms in single."""

    def case(run):
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(dtype)
        model[1].float()
        model[1].register_forward_pre_hook(lambda m, args: (args[0].float(),))
        model[1].register_forward_hook(lambda m, args, output: output.to(dtype))
        loop(run, model, sgd(model), value=lambda m: m(X.to(dtype)).float().square().mean())

    return case


def autocast(run):
    """Half precision in the forward pass only, without its cache in turns."""
    model = chain(3, 8, 8, 2)

    def value(model):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=len(run.norms) % 2 == 0):
            return model(X).float().square().mean()

    loop(run, model, sgd(model), value=value)


def converted(run):
    """The network changes its precision and its layout while it trains."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    images = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
    kind = {"dtype": torch.float32}

    def after(step):
        if step == 1:
            model.to(memory_format=torch.channels_last)
        elif step == 2:
            kind["dtype"] = torch.float64
            model.double()

    loop(
        run,
        model,
        sgd(model, momentum=0.0),
        value=lambda m: m(images.to(kind["dtype"])).square().mean(),
        after=after,
        steps=5,
    )


class Tagged(torch.Tensor):
    """A tensor of the user's own class, which counts what is done to it."""

    seen = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Count."""
        cls.seen += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def tagged(run):
    """It is asked for nothing more than without us."""
    Tagged.seen = 0
    model = chain(3, 4, 2)
    loop(run, model, sgd(model), value=lambda m: m(X.as_subclass(Tagged)).square().mean())
    run.facts.append(Tagged.seen)


def zero_sized(run):
    """Parameters and outputs without elements."""

    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.none, self.linear = nn.Parameter(torch.zeros(0, 3)), nn.Linear(3, 2)

        def forward(self, x):
            return torch.cat([self.linear(x), (x @ self.none.T).sum(1, keepdim=True)], 1)

    loop(run, model := Nothing(), sgd(model))


def quantised(run):
    """Training that is aware of a later quantisation: observers and fake quantisation."""
    quantization = pytest.importorskip("torch.ao.quantization")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(4 * 36, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves to another package
        model.qconfig = quantization.get_default_qat_qconfig("x86")
        quantization.prepare_qat(model.train(), inplace=True)
        images = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
        loop(run, model, sgd(model), value=lambda m: m(images).square().mean())


NUMBERS = {
    "packed": packed,
    "sparse": sparse,
    "complex": complex_numbers,
    "bfloat16": half(torch.bfloat16),
    "float16": half(torch.float16),
    "float64": half(torch.float64),
    "autocast": autocast,
    "converted": converted,
    "tagged": tagged,
    "zero-sized": zero_sized,
    "quantised": quantised,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_kinds_of_numbers(name):
    """Norms are those of the numbers that are there, whatever holds them."""
    compare(NUMBERS[name])


# What runs beside


def threads_of_their_own(run):
    """Two trainings at once, each in its thread; one is watched."""
    other = chain(3, 4, 2)

    def train_other():
        optimizer = sgd(other)
        for _ in range(20):
            optimizer.zero_grad()
            other(X).square().mean().backward()
            optimizer.step()

    thread = threading.Thread(target=train_other)
    thread.start()
    model = chain(3, 4, 2)
    loop(run, model, sgd(model), steps=20)
    thread.join()
    run.numbers += list(other.state_dict().values())


def in_a_pool(run):
    """Forward, backward and step each in another thread."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    run.watch(model, optimizer)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for _ in range(4):
            optimizer.zero_grad()
            loss = first.submit(lambda: model(X).square().mean()).result()
            second.submit(loss.backward).result()
            first.submit(run.step).result()
            run.numbers.append(loss.detach())


def loaded_by_workers(run):
    """Workers that are forked while it is watched, and use the very model."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)
    run.watch(model, optimizer)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            twin = copy.deepcopy(model)
            twin(X[i : i + 1]).sum().backward()  # a backward pass in the worker
            return X[i] + twin[0].weight.grad.sum() * 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside threads
        loader = torch.utils.data.DataLoader(
            Rows(), batch_size=2, num_workers=2, multiprocessing_context="fork"
        )
        for batch in loader:
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            run.step()
            run.numbers.append(loss.detach())


def stored_and_gone_on(run):
    """Checkpoints of everything, and a training that goes on with what was loaded."""
    model = chain(3, 4, 2)
    optimizer = sgd(model)

    def after(step):
        file = io.BytesIO()
        torch.save({"model": model, "state": model.state_dict(), "optimizer": optimizer}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        run.facts.append([sorted(vars(m)) for m in loaded["model"].modules()])
        run.facts.append(sorted(vars(loaded["optimizer"])))
        model.load_state_dict(loaded["state"])
        optimizer.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        twin = copy.deepcopy(optimizer)
        run.facts.append(len(twin._optimizer_step_pre_hooks) + len(twin._optimizer_step_post_hooks))

    loop(run, model, optimizer, after=after)


def stopped_by_hand(run):
    """Ctrl-C in the forward and in the backward pass, and the loop goes on."""

    class Stops(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if len(run.norms) == 1 and not run.facts:
                run.facts.append("forward")
                raise KeyboardInterrupt
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if len(run.norms) == 2 and len(run.facts) == 1:
                run.facts.append("backward")
                raise KeyboardInterrupt
            return gradient

    model = nn.Sequential(nn.Linear(3, 4), Applies(Stops), nn.Linear(4, 2))
    optimizer = sgd(model)
    run.watch(model, optimizer)
    while len(run.norms) < 4:
        optimizer.zero_grad()
        try:
            model(X).square().mean().backward()
        except KeyboardInterrupt:
            continue
        run.step()


def counted(run):
    """Modes of the user that see every operation: they see those that he asked for."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            run.facts.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            run.facts.append(str(function))
            return function(*args, **(kwargs or {}))

    model = chain(3, 4, 2)
    optimizer = sgd(model)
    run.watch(model, optimizer)
    for _ in range(3):
        with Functions(), Operations():
            optimizer.zero_grad()
            model(X).square().mean().backward()
        run.norms.append({n: float(p.grad.double().norm()) for n, p in model.named_parameters()})
        with Functions(), Operations():
            optimizer.step()


def profiled(run):
    """The profiler of torch with all that it can tell."""
    model = chain(3, 4, 2)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        record_shapes=True,
        with_stack=True,
        with_modules=True,
        profile_memory=True,
    ):
        loop(run, model, sgd(model))


BESIDE = {
    f.__name__: f
    for f in (
        threads_of_their_own, in_a_pool, loaded_by_workers, stored_and_gone_on, stopped_by_hand,
        counted, profiled,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_runs_beside(name):
    """Threads, processes, files, signals, modes and profilers."""
    compare(BESIDE[name])


@pytest.mark.parametrize("discriminator", [1, 3])
def test_two_networks_that_train_against_each_other(discriminator):
    """Both are watched; each optimizer steps in its turn, one of them more often."""

    def case(run: Run):
        generator, critic = chain(2, 4, 3), chain(3, 4, 1)
        model = nn.ModuleDict({"generator": generator, "critic": critic})
        first, second = sgd(generator), sgd(critic)
        run.watch(model, [first, second])
        run.optimizer = None
        noise = torch.linspace(-1, 1, 10).reshape(5, 2)
        for _ in range(3):
            consumed = {}
            for _ in range(discriminator):
                second.zero_grad()
                (critic(generator(noise).detach()) - critic(X)).mean().backward()
                found = {n: float(p.grad.double().norm()) for n, p in critic.named_parameters()}
                second.step()
            consumed |= {f"critic.{n}": v for n, v in found.items()}
            first.zero_grad()
            (-critic(generator(noise))).mean().backward()
            found = {n: float(p.grad.double().norm()) for n, p in generator.named_parameters()}
            first.step()
            run.norms.append(consumed | {f"generator.{n}": v for n, v in found.items()})

    if discriminator == 1:
        compare(case)
    else:
        with pytest.raises(AssertionError):  # a second step of one optimizer begins another round
            compare(case)


def test_nothing_that_the_step_made_is_kept():
    """Outputs and graphs die when the loop lets go of them."""
    import gradscope

    model = chain(3, 4, 2)
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, every=1):
        for _ in range(3):
            optimizer.zero_grad()
            output = model(X)
            held = weakref.ref(output)
            output.square().mean().backward()
            optimizer.step()
            del output
            assert held() is None
            gc.collect()
