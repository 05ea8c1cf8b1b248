"""The recorder against optimizers of all kinds: wrapped, replaced, in place, and never seen.

The oracle is what the class that does the arithmetic finds when its own step begins, or after the
closure that it evaluates there, read in float64.
"""

from __future__ import annotations

import copy
import functools
import pickle
import warnings

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeWarning, RecorderError
from gradscope.recording import kernels

STEPS = 4


@pytest.fixture(autouse=True, params=["kernels", "torch"])
def _both_meters(request, monkeypatch):
    """Everything holds with the compiled kernels and with what a GPU runs."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "compiled", None)


class Task:
    """A model with data, the gradients that its optimizer consumed, and a step that wants one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
        self.batches = torch.randn(STEPS, 8, 6)
        self.targets = torch.randint(3, (STEPS, 8))
        self.consumed: list[dict[str, float]] = []

    def loss(self, i: int) -> torch.Tensor:
        """Of one batch."""
        return nn.functional.cross_entropy(self.model(self.batches[i]), self.targets[i])

    def read(self) -> dict[str, float]:
        """The norms of the gradients as they are now."""
        named = self.model.named_parameters()
        return {n: float(p.grad.double().norm()) for n, p in named if p.grad is not None}

    def spied(self, kind: type) -> type:
        """A class of optimizer that notes the gradients with which its arithmetic begins."""
        task = self

        def step(self, closure=None, **options):
            noted = []

            def evaluate():
                loss = closure()
                noted.append(task.read())
                return loss

            before = task.read()
            result = (
                kind.step(self, **options)
                if closure is None
                else kind.step(self, evaluate, **options)
            )
            task.consumed.append(noted[-1] if noted else before)
            return result

        return type(f"Spied{kind.__name__}", (kind,), {"step": step})

    def sgd(self, **options):
        """Spied SGD of all parameters."""
        return self.spied(torch.optim.SGD)(self.model.parameters(), lr=0.1, **options)


def plainly(task, optimizer, i):
    """The loop that everybody writes."""
    optimizer.zero_grad()
    task.loss(i).backward()
    nn.utils.clip_grad_norm_(task.model.parameters(), 0.3)
    optimizer.step()


def by_closure(task, optimizer, i):
    """Everything happens in the closure, the clipping too."""

    def closure():
        optimizer.zero_grad()
        loss = task.loss(i)
        loss.backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), 0.3)
        return loss

    optimizer.step(closure)


def in_two(task, optimizer, i):
    """As SAM's users write it."""
    task.loss(i).backward()
    optimizer.first_step(zero_grad=True)
    task.loss(i).backward()
    optimizer.second_step(zero_grad=True)


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation, as its widely copied implementation is built."""

    def __init__(self, parameters, base, **options) -> None:
        super().__init__(parameters, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, *, zero_grad):
        """Climb."""
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad, alpha=0.1)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self, *, zero_grad):
        """Return, and descend by the gradient from above."""
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"]
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure):
        """Both."""
        closure()
        self.first_step(zero_grad=True)
        closure()
        self.second_step(zero_grad=True)


class Holder:
    """No optimizer of torch; holds one under a name that nobody could guess."""

    def __init__(self, inner) -> None:
        self.whatever = [inner]

    @property
    def param_groups(self):
        """Nobody may ask."""
        raise AssertionError("reading a property may have effects")

    def zero_grad(self):
        """Forget the gradients."""
        self.whatever[0].zero_grad()

    def step(self):
        """Move the weights."""
        self.whatever[0].step()


class Plain:
    """Steps by its own arithmetic, and knows nothing of torch's hooks."""

    def __init__(self, task) -> None:
        self.task = task
        self.param_groups = [{"params": list(task.model.parameters())}]

    def zero_grad(self):
        """Forget the gradients."""
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self):
        """Move the weights."""
        self.task.consumed.append(self.task.read())
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1)

    def __deepcopy__(self, memo):  # the task counts what it reads
        twin = copy.copy(self)
        twin.param_groups = copy.deepcopy(self.param_groups, memo)
        return twin


def replaced(task):
    """An optimizer whose step was replaced on the instance by one that calls no hook."""
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    optimizer.step = functools.partial(Plain.step, Plain(task))
    return optimizer


def scheduled(task):
    """A scheduler puts a step of its own in the place of the optimizer's."""
    optimizer = task.sgd()
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return optimizer


def derived(task):
    """A class whose step calls that of its base, both of which call the hooks."""
    task.sgd()  # torch hooks a class when it first makes one of it
    base = task.spied(torch.optim.SGD)
    base(task.model.parameters(), lr=0.1)

    class Halving(base):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad.mul_(0.5)
            return super().step(closure)

    return Halving(task.model.parameters(), lr=0.1)


def lookahead(task):
    """It keeps slow weights, and is an optimizer of torch itself."""
    library = pytest.importorskip("pytorch_optimizer")
    return library.Lookahead(task.sgd(), k=2)


def of_library(name, **options):
    """An optimizer of the large collection."""

    def make(task):
        library = pytest.importorskip("pytorch_optimizer")
        return task.spied(getattr(library, name))(task.model.parameters(), **options)

    return make


def schedule_free(task):
    """It works in place on the gradients that its closure gives."""
    library = pytest.importorskip("schedulefree")
    optimizer = task.spied(library.AdamWScheduleFree)(task.model.parameters(), lr=0.1)
    optimizer.train()
    return optimizer


def schedule_free_wrapper(task):
    """No optimizer of torch; calls it `base`."""
    library = pytest.importorskip("schedulefree")
    optimizer = library.ScheduleFreeWrapper(task.sgd())
    optimizer.train()
    return optimizer


def accelerated(task):
    """Has the class of an optimizer, and nothing of what makes one."""
    pytest.importorskip("accelerate")
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare(task.sgd())


def of_fabric(task):
    """Takes on the class of what it wraps."""
    pytest.importorskip("lightning")
    from lightning.fabric.strategies import SingleDeviceStrategy
    from lightning.fabric.wrappers import _FabricOptimizer

    return _FabricOptimizer(task.sgd(), SingleDeviceStrategy(torch.device("cpu")))


def of_fastai(task):
    """Hands on what it lacks to `opt`."""
    return pytest.importorskip("fastai.optimizer").OptimWrapper(opt=task.sgd())


def fastai_own(task):
    """Fastai's optimizers are not torch's."""
    library = pytest.importorskip("fastai.optimizer")
    return task.spied(library.Optimizer)(list(task.model.parameters()), [fastai_step], lr=0.1)


def fastai_step(parameter, lr, **_):
    """What fastai calls for each parameter."""
    parameter.data.sub_(parameter.grad, alpha=lr)


CASES = {
    "sgd": (lambda task: task.sgd(), plainly),
    "nesterov": (lambda task: task.sgd(momentum=0.9, nesterov=True, foreach=True), by_closure),
    "nesterov, plainly": (lambda task: task.sgd(momentum=0.9, nesterov=True), plainly),
    "lbfgs": (
        lambda task: task.spied(torch.optim.LBFGS)(task.model.parameters(), max_iter=5),
        by_closure,
    ),
    "sam": (lambda task: Sam(task.model.parameters(), task.spied(torch.optim.SGD), lr=0.1), in_two),
    "sam, closure": (
        lambda task: Sam(task.model.parameters(), task.spied(torch.optim.SGD), lr=0.1),
        by_closure,
    ),
    "holder": (lambda task: Holder(Holder(task.sgd())), plainly),
    "plain object": (Plain, plainly),
    "replaced": (replaced, plainly),
    "scheduled": (scheduled, plainly),
    "derived": (derived, plainly),
    "lookahead": (lookahead, plainly),
    "ranger21": (of_library("Ranger21", num_iterations=STEPS, lr=0.1), by_closure),
    "adalite": (of_library("Adalite", lr=0.1), by_closure),
    "schedule-free": (schedule_free, by_closure),
    "schedule-free wrapper": (schedule_free_wrapper, by_closure),
    "accelerate": (accelerated, plainly),
    "fabric": (of_fabric, plainly),
    "fastai": (of_fastai, plainly),
    "fastai's own": (fastai_own, plainly),
}


def found_on(optimizer):
    """What stands in an optimizer, and in those that it holds."""
    inner = gradscope.recording.optimizers.innermost(optimizer)
    return [sorted(vars(each).keys() - {"_opt_called"}) for each in (optimizer, *inner)]


def can_be_copied(optimizer):
    """Whether a deep copy can be made of it; of some it cannot, watched or not."""
    try:
        copy.deepcopy(optimizer)
    except (AttributeError, TypeError):
        return False
    return True


@pytest.mark.parametrize("case", CASES)
def test_the_norm_is_that_of_the_gradient_the_optimizer_consumes(case):
    """Each step is seen once, with the norms that the arithmetic began with; no bit changes."""
    make, step = CASES[case]
    bare, watched = Task(), Task()
    optimizer = make(bare)
    for i in range(STEPS):
        step(bare, optimizer, i)
    copies = can_be_copied(optimizer)
    optimizer = make(watched)
    watched.consumed.clear()
    before = found_on(optimizer)
    with gradscope.watch(watched.model, optimizer, every=1) as scope:
        for i in range(STEPS):
            step(watched, optimizer, i)
            assert can_be_copied(optimizer) == copies
    assert found_on(optimizer) == before
    for mine, theirs in zip(watched.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    rows = scope.trace().to_pandas().query("kind == 'weight'")
    assert len(watched.consumed) == STEPS
    assert len(rows) == sum(map(len, watched.consumed))
    for row in rows.itertuples():
        expected = watched.consumed[row.step][f"{row.module}.{row.parameter}"]
        assert row.norm == pytest.approx(expected, rel=1e-5)
        assert row.update_ratio > 0
    assert not scope.blind_spots


def test_a_step_that_is_replaced_while_watching_is_seen():
    """From the next backward pass on, though it calls no hook; after close it stands there."""
    task = Task()
    optimizer = task.sgd()
    with gradscope.watch(task.model, optimizer, every=1) as scope:
        plainly(task, optimizer, 0)
        mine = optimizer.step = functools.partial(Plain.step, Plain(task))
        for i in range(1, STEPS):
            plainly(task, optimizer, i)
    assert optimizer.step is mine
    rows = scope.trace().to_pandas().query("kind == 'weight' and module == '2'")
    found = [(row.step, f"2.{row.parameter}", row.norm) for row in rows.itertuples()]
    assert found == [
        (i, name, pytest.approx(task.consumed[i][name]))
        for i in range(STEPS)
        for name in ("2.weight", "2.bias")
    ]


def test_hooks_that_users_add_run_before_the_reading():
    """A step hook that was registered after `watch` and clips has clipped when the norm is read."""
    task = Task()
    optimizer = task.sgd()
    with gradscope.watch(task.model, optimizer, every=1) as scope:
        optimizer.register_step_pre_hook(
            lambda *_: nn.utils.clip_grad_norm_(task.model.parameters(), 0.01) and None
        )
        for i in range(STEPS):
            plainly(task, optimizer, i)
    rows = scope.trace().to_pandas().query("kind == 'weight'")
    assert (rows.groupby("step")["norm"].apply(lambda n: n.pow(2).sum()) ** 0.5).tolist() == [
        pytest.approx(0.01, rel=1e-3)
    ] * STEPS


def test_a_scheduler_may_come_and_stay():
    """One that is made while watching neither complains nor misses the step after the close."""
    task = Task()
    optimizer = replaced(task)
    optimizer.step = Plain.step.__get__(optimizer)  # bound, as schedulers want it
    optimizer.task = task
    with gradscope.watch(task.model, optimizer, every=1) as scope:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        for i in range(2):
            plainly(task, optimizer, i)
            scheduler.step()
    plainly(task, optimizer, 2)
    scheduler.step()
    assert len(task.consumed) == 3
    assert len(scope.trace().steps) == 2


def test_optimizers_of_each_parameter_that_step_within_backward():
    """Optimizer in backward: one record a step, though the gradients are gone when it ends."""
    task = Task()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in task.model.parameters()}
    consumed = []

    def step(parameter):
        consumed.append(float(parameter.grad.double().norm()))
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(step)
    with gradscope.watch(task.model, optimizers, every=1) as scope:
        for i in range(STEPS):
            task.loss(i).backward()
    rows = scope.trace().to_pandas().query("kind == 'weight'")
    assert sorted(rows.norm) == pytest.approx(sorted(consumed), rel=1e-5)
    assert rows.groupby("step").size().tolist() == [4] * STEPS


def test_a_second_step_of_one_optimizer_begins_another_round():
    """Of two optimizers one never steps: each step of the other is a step all the same."""
    task = Task()
    idle = torch.optim.SGD(task.model[0].parameters(), lr=0.1)
    busy = task.spied(torch.optim.SGD)(task.model[2].parameters(), lr=0.1)
    with gradscope.watch(task.model, [idle, busy], every=1) as scope:
        for i in range(STEPS):
            plainly(task, busy, i)
            task.model.zero_grad()
    rows = scope.trace().to_pandas().query("kind == 'weight' and module == '2'")
    assert rows.groupby("step").size().tolist() == [2] * (STEPS - 1)  # the last never ended
    for row in rows.itertuples():
        expected = task.consumed[row.step][f"2.{row.parameter}"]
        assert row.norm == pytest.approx(expected, rel=1e-5)


def test_a_later_pass_of_the_same_step_is_not_what_an_earlier_optimizer_consumed():
    """A discriminator's loss that reaches the generator again leaves the generator's rows alone."""
    task = Task()
    optimizers = [task.spied(torch.optim.SGD)(task.model[i].parameters(), lr=0.1) for i in (0, 2)]
    with gradscope.watch(task.model, optimizers, every=1) as scope:
        for i in range(STEPS):
            for optimizer in optimizers:
                task.model.zero_grad()
                (task.loss(i) * (1 + len(task.consumed))).backward()
                optimizer.step()
    rows = scope.trace().to_pandas().query("kind == 'weight'")
    assert len(rows) == 4 * STEPS
    for row in rows.itertuples():
        consumed = task.consumed[2 * row.step + (row.module == "2")]
        assert row.norm == pytest.approx(consumed[f"{row.module}.{row.parameter}"], rel=1e-5)
        assert row.unclipped_norm == row.norm


def never_told(task):
    """A training in which no step of the optimizer runs: weights are moved by hand."""
    task.loss(0).backward()
    with torch.no_grad():
        for p in task.model.parameters():
            p.sub_(p.grad)
            p.grad = None


def test_a_training_without_a_step_is_not_silent():
    """Closing says that no step was seen, and so does the trace."""
    task = Task()
    scope = gradscope.watch(task.model, task.sgd())
    never_told(task)
    with pytest.warns(GradscopeWarning, match=r"no optimizer.step\(\) was seen; call scope.step"):
        scope.close()
    assert "no optimizer.step() was seen" in scope.trace().metadata["blind_spots"][0]


class SamByItself(torch.optim.Optimizer):
    """Sharpness-aware minimisation with an arithmetic of its own, and no `step`."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def first_step(self):
        """Climb."""
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.data.add_(p.grad, alpha=0.1)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        """Return, and descend by the gradient from above."""
        for p in self.param_groups[0]["params"]:
            p.data.copy_(self.state[p]["old"]).sub_(p.grad, alpha=0.1)
        self.zero_grad()


def test_steps_under_other_names_are_told_while_it_trains():
    """Weights move and no step is seen: one warning in the tenth round, none at the end."""
    task = Task()
    optimizer = SamByItself(task.model.parameters())
    told = []
    with gradscope.watch(task.model, optimizer) as scope:
        for i in range(12):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                task.loss(i % 4).backward()
                optimizer.first_step()
                task.loss(i % 4).backward()
                optimizer.second_step()
            told += [i] * len(caught)
    assert told == [9]
    assert len(scope.blind_spots) == 1
    assert "call scope.step()" in scope.blind_spots[0]


@pytest.mark.parametrize("passes", [1, 19, 20, 21, 45])
def test_many_passes_before_a_step_are_no_unseen_steps(passes):
    """Micro-batches, attacks and searches leave the weights as they are."""
    task = Task()
    optimizer = task.sgd()
    with gradscope.watch(task.model, optimizer) as scope:
        for _ in range(2):
            for i in range(passes):
                task.loss(i % 4).backward()
                if i % 2:
                    task.model.zero_grad()
            task.loss(0).backward()
            optimizer.step()
    assert not scope.blind_spots


def test_a_scope_in_which_nothing_was_trained_is_silent():
    """Without a backward pass, or with steps by hand, nothing is missing."""
    task = Task()
    with gradscope.watch(task.model, task.sgd()):
        task.loss(0)
    with gradscope.watch(task.model) as scope:
        never_told(task)
        scope.step()
    assert not scope.blind_spots


def test_steps_that_go_past_the_recorder_between_recorded_ones_are_told():
    """A step that is replaced where nothing is recorded is found when the scope is closed."""
    task = Task()
    optimizer = task.sgd()
    scope = gradscope.watch(task.model, optimizer, every=3)
    plainly(task, optimizer, 0)
    optimizer.step = functools.partial(Plain.step, Plain(task))
    plainly(task, optimizer, 1)
    with pytest.warns(GradscopeWarning, match="replaced while watching"):
        scope.close()


def test_watched_optimizers_pickle():
    """Also one that is no optimizer of torch, whose step the recorder stands in for."""
    for make in (lambda: Plain(Task()), lambda: Task().sgd()):
        optimizer = make()
        model = nn.ParameterList(optimizer.param_groups[0]["params"])
        optimizer.task = None
        with gradscope.watch(model, optimizer):
            if isinstance(optimizer, Plain):
                twin = pickle.loads(pickle.dumps(optimizer))
                assert twin.step.__self__ is twin
                assert "gradscope" not in str(vars(twin))
            copy.deepcopy(optimizer)


def test_an_optimizer_that_holds_another_for_a_part_steps_by_itself():
    """What it holds does not step all that it steps, so its own step is the one that counts."""
    task = Task()

    class Mixed(task.spied(torch.optim.SGD)):
        def __init__(self, parameters, other) -> None:
            super().__init__(parameters, lr=0.1)
            self.other = other

    part = torch.optim.SGD(task.model[0].parameters(), lr=0.1)
    optimizer = Mixed(task.model.parameters(), part)
    with gradscope.watch(task.model, optimizer, every=1) as scope:
        plainly(task, optimizer, 0)
    assert len(scope.trace().steps) == 1


@pytest.mark.parametrize("given", ["sgd", 5, [5], torch.optim.SGD, object()])
def test_what_is_no_optimizer_is_refused(given):
    """One line says what it got and what would be right."""
    with pytest.raises(RecorderError, match=r"watch\(\) needs a torch.optim.Optimizer, got"):
        gradscope.watch(Task().model, given)


def test_opacus():
    """DP-SGD: the gradient that is consumed is the one with noise, written by its optimizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opacus = pytest.importorskip("opacus")
        task = Task()
        inner = task.sgd()
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(task.batches[0], task.targets[0]), batch_size=4
        )
        model, optimizer, _ = opacus.PrivacyEngine().make_private(
            module=task.model,
            optimizer=inner,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=0.1,
        )
        with gradscope.watch(task.model, optimizer, every=1) as scope:
            for i in range(STEPS):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(task.batches[i]), task.targets[i])
                loss.backward()
                optimizer.step()
    rows = scope.trace().to_pandas().query("kind == 'weight'")
    assert len(rows) == 4 * STEPS
    for row in rows.itertuples():
        expected = task.consumed[row.step][f"{row.module}.{row.parameter}"]
        assert row.norm == pytest.approx(expected, rel=1e-5)


def test_lightning():
    """A Trainer's automatic optimization: what `configure_optimizers` gave, and what wraps it."""
    pytest.importorskip("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        task = Task()

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = task.model

            def training_step(self, batch, i):
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self):
                return task.sgd(momentum=0.9, nesterov=True, foreach=True)

            def on_fit_start(self):
                self.scope = gradscope.watch(task.model, self.optimizers(), every=1)

            def on_fit_end(self):
                self.scope.close()

        data = torch.utils.data.TensorDataset(task.batches[0], task.targets[0])
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=0.1,
        )
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    rows = module.scope.trace().to_pandas().query("kind == 'weight'")
    assert len(rows) == 4 * 4
    for row in rows.itertuples():
        expected = task.consumed[row.step][f"{row.module}.{row.parameter}"]
        assert row.norm == pytest.approx(expected, rel=1e-5)
