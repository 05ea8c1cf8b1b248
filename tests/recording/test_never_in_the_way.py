"""Awkward trainings: watched, each is bit for bit the bare one, and its norms are the oracle's."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from never_in_the_way import Run, carried_through, chain, compare, hooks_at, rows
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
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


# Tracing, and tensors without data


def jit_trace(model, inputs):
    """The graph of torch.jit.trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        graph = str(torch.jit.trace(model, inputs, check_trace=False).graph)
        return re.sub(r"___torch_mangle_\d+\.", "", graph)  # it counts its types


def jit_script(model, inputs):
    """The code of torch.jit.script."""
    del inputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.jit.script(model).code


def add_graph(model, inputs):
    """What TensorBoard writes down."""
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces with torch.jit
        from torch.utils.tensorboard._pytorch_graph import graph

        return len(graph(model, inputs)[0].node)


def symbolic_trace(model, inputs):
    """The code of torch.fx."""
    del inputs
    return torch.fx.symbolic_trace(model).code


def export(model, inputs):
    """The graph of torch.export."""
    return str(torch.export.export(model, (inputs,), strict=False).graph)


def strict_export(model, inputs):
    """The same by Dynamo."""
    torch._dynamo.reset()
    return str(torch.export.export(model, (inputs,), strict=True).graph)


def make_fx(model, inputs):
    """What runs, by proxies."""
    from torch.fx.experimental.proxy_tensor import make_fx as proxied

    return proxied(model)(inputs).code


def fake(model, inputs):
    """Shapes without numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return model(mode.from_tensor(inputs)).shape


def on_meta(model, inputs):
    """A forward pass of the very modules with other parameters, as Keras makes one first."""
    meta = {k: v.detach().to("meta") for k, v in model.state_dict().items()}
    return torch.func.functional_call(model, meta, inputs.to("meta")).shape


def gradients_on_meta(model, inputs):
    """The same with a backward pass."""
    meta = {k: v.detach().to("meta").requires_grad_() for k, v in model.named_parameters()}
    output = torch.func.functional_call(model, meta, inputs.to("meta"))
    output.sum().backward()
    return sorted(v.grad.shape for v in meta.values())


def per_sample(model, inputs):
    """Gradients by torch.func."""
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def loss(weights, sample):
        return torch.func.functional_call(model, weights, sample[None]).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, inputs)
    return [v.tolist() for v in found.values()]


def batched(model, inputs):
    """A Jacobian by one batched backward pass."""
    output = model(inputs)
    weights = list(model.parameters())
    basis = torch.eye(output.numel()).view(-1, *output.shape)
    found = torch.autograd.grad(output, weights, basis, is_grads_batched=True)
    return [v.tolist() for v in found]


def hessian(model, inputs):
    """A gradient of a gradient."""
    weights = list(model.parameters())
    first = torch.autograd.grad(model(inputs).square().mean(), weights, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), weights)[0].tolist()


def flops(model, inputs):
    """A count of operations, by a mode that sees them all."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(inputs).sum().backward(inputs=list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = None
    return counter.get_total_flops()


ASIDE = [
    jit_trace, jit_script, add_graph, symbolic_trace, export, strict_export, make_fx, fake, on_meta,
    gradients_on_meta, per_sample, batched, hessian, flops, carried_through,
]  # fmt: skip


@pytest.mark.parametrize("aside", ASIDE, ids=lambda aside: aside.__name__)
def test_what_happens_beside_the_steps(aside):
    """Before a step, between two and within one: what comes out is what came out without us."""

    def case(run: Run):
        model = chain(3, 4, 2)
        inputs = torch.randn(5, 3)

        def before(model, step):
            if step in {0, 2}:
                run.facts.append(aside(model, inputs))

        def loss(output):
            if len(run.norms) == 1:
                run.facts.append(aside(model, inputs))
            return output.square().mean()

        run.train(model, (inputs,), loss=loss, before=before)

    run = compare(case)
    expected = {"0": 1, "1": 1, "2": 1}
    if aside.__name__ not in {"hessian", "batched", "flops"}:  # whose pass is the step's first
        assert rows(run, "activation_grad") == expected
    assert rows(run, "activation") == expected


def nested_jagged():
    """Sequences of several lengths through linear layers."""
    parts = [torch.randn(n, 3) for n in (2, 5)]
    return chain(3, 4, 3), torch.nested.nested_tensor(parts, layout=torch.jagged)


def nested_strided():
    """The older layout."""
    parts = [torch.randn(n, 3) for n in (2, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a prototype
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), torch.nested.nested_tensor(parts)


@pytest.mark.parametrize("build", [nested_jagged, nested_strided], ids=lambda build: build.__name__)
def test_nested_tensors(build):
    """Their outputs have no one piece of memory, and are passed over."""

    def case(run: Run):
        model, inputs = build()
        run.train(
            model, (inputs,), loss=lambda out: sum(part.square().sum() for part in out.unbind())
        )

    compare(case)


def test_the_fast_path_of_a_transformer():
    """Its encoder takes nested tensors and kernels of its own when nothing needs a gradient."""

    def case(run: Run):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))
            inputs, mask = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
            mask[0, 3:] = True

            def before(model, step):
                model.eval()
                with torch.no_grad():
                    run.numbers.append(model[0](inputs, src_key_padding_mask=mask))
                model[0].requires_grad_(False)
                run.numbers.append(model[0](inputs, src_key_padding_mask=mask))
                model[0].requires_grad_(True)
                model.train()

            run.train(model, (inputs,), before=before)

    compare(case)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device(device):
    """`torch.device("meta")` around all that is ours changes nothing of it."""

    def case(run: Run):
        model, inputs = chain(3, 40, 2), torch.randn(5, 3)
        run.train(model, (inputs,), steps=2)
        with torch.device(device):
            if run.scope:
                assert len(run.scope.trace().steps) == 2
            for _ in range(40):
                run.optimizer.zero_grad()
                model(inputs).square().mean().backward()
                run.step()
            if run.scope:
                run.scope.close()

    run = compare(case)
    assert rows(run, "activation_grad") == {"0": 1, "1": 1, "2": 1}


# Defaults of the process


def default_dtype(dtype):
    """torch.set_default_dtype."""
    torch.set_default_dtype(dtype)
    return lambda: torch.set_default_dtype(torch.float32)


def deterministic(fill):
    """Deterministic algorithms, with memory filled or not."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True)
    torch.utils.deterministic.fill_uninitialized_memory = fill

    def undo():
        torch.use_deterministic_algorithms(mode=False)
        torch.utils.deterministic.fill_uninitialized_memory = before

    return undo


def default_device(device):
    """torch.set_default_device."""
    torch.set_default_device(device)
    return lambda: torch.set_default_device(None)


def flush_denormal(flush):
    """torch.set_flush_denormal."""
    torch.set_flush_denormal(flush)
    return lambda: torch.set_flush_denormal(False)


DEFAULTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "deterministic": lambda: deterministic(True),
    "deterministic, not filled": lambda: deterministic(False),
    "device": lambda: default_device("cpu"),
    "flush": lambda: flush_denormal(True),
}


@pytest.mark.parametrize("histograms", [False, True], ids=["", "histograms"])
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("when", ["always", "after watch", "before trace", "at watch only"])
def test_defaults_of_the_process(default, when, histograms, monkeypatch):
    """Numbers are the oracle's, whichever default holds at whichever time."""
    monkeypatch.setattr("gradscope.recording.buffer.RING", 4)  # flushes lie within

    def case(run: Run):
        undo = DEFAULTS[default]() if when == "always" else lambda: None
        try:
            inputs = torch.randn(5, 3)
            model = nn.Sequential(
                nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
            )
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            if when == "at watch only":
                undo = DEFAULTS[default]()
            run.watch(model, optimizer, histograms=histograms)
            if when == "at watch only":
                undo()
            if when == "after watch":
                undo = DEFAULTS[default]()
            for _ in range(6):
                optimizer.zero_grad()
                loss = model(inputs).square().mean()
                loss.backward()
                run.step()
                run.numbers.append(loss.detach())
            if when == "before trace":
                undo = DEFAULTS[default]()
            if run.scope:
                run.scope.close()
        finally:
            undo()

    run = compare(case)
    trace = run.scope.trace()
    assert trace.values.dtype == torch.float32
    frame = trace.to_pandas()
    assert frame.norm.notna().all()
    assert (
        frame[frame.kind == "weight"][["abs_max", "weight_norm", "update_ratio"]]
        .notna()
        .all()
        .all()
    )


def test_a_half_precision_training_is_not_non_finite(tmp_path):
    """Lightning's `bf16-true` and `64-true`: the verdict and the file are those of the network."""
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            run = Run(watched=True)
            run.train(chain(3, 8, 8, 2), (torch.randn(16, 3),), steps=8)
            trace = run.scope.trace()
            trace.save(tmp_path / "run.parquet")
            loaded = gradscope.Trace.load(tmp_path / "run.parquet")
            assert torch.equal(loaded.values.nan_to_num(-1.0), trace.values.nan_to_num(-1.0))
            assert gradscope.diagnose(loaded).verdict != "non-finite"
            run.end()
        finally:
            torch.set_default_dtype(torch.float32)


def test_gradients_switched_off_for_the_process():
    """Who switches them on only for the forward pass has it recorded."""

    def case(run: Run):
        torch.set_grad_enabled(mode=False)
        try:
            model = chain(3, 4, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            run.watch(model, optimizer)
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(5, 3))
                with torch.enable_grad():
                    model(torch.randn(5, 3)).square().mean().backward()
                run.step()
        finally:
            torch.set_grad_enabled(mode=True)

    run = compare(case)
    assert rows(run, "activation_grad") == {"0": 1, "1": 1, "2": 1}


def test_inference_mode_at_any_time():
    """watch(), trace() and validation within it leave nothing that cannot be written outside."""

    def case(run: Run):
        model, inputs = chain(3, 4, 2), torch.randn(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with torch.inference_mode():
            run.watch(model, optimizer)
        for step in range(40):
            optimizer.zero_grad()
            with torch.inference_mode():
                run.numbers.append(model(inputs).clone())
                if run.scope and step % 7 == 3:
                    assert len(run.scope.trace().steps) == step
            model(inputs).square().mean().backward()
            run.step()

    run = compare(case)
    assert rows(run, "activation_grad") == {"0": 1, "1": 1, "2": 1}


def test_a_training_in_another_thread_with_defaults_of_its_own():
    """The default device is one of the thread."""

    def case(run: Run):
        def work():
            torch.set_default_device("cpu")
            run.train(model, (torch.randn(5, 3),), steps=3)

        model = chain(3, 4, 2)
        with torch.device("meta"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            if run.scope:
                run.scope.close()

    run = compare(case)
    assert rows(run, "activation_grad") == {"0": 1, "1": 1, "2": 1}


# Modules and outputs


class Gives(nn.Module):
    """A network whose output is made from a tensor by a function."""

    def __init__(self, make) -> None:
        super().__init__()
        self.body, self.make = nn.Linear(3, 3), make

    def forward(self, x):
        """The output, in whatever it is wrapped."""
        return self.make(self, self.body(x))


def deep(module, x):
    """A thousand lists, one in the other."""
    for _ in range(1000):
        x = [x]
    return x


def cyclic(module, x):
    """A list that contains itself."""
    out = [x * 2]
    out.append(out)
    return out


@dataclass
class Unset:
    """A dataclass with a field that nobody set, and a property that is not to be read."""

    value: torch.Tensor
    later: torch.Tensor = field(init=False)

    @property
    def surprise(self):
        """Raises."""
        raise RuntimeError


@dataclass(slots=True)
class Slots:
    """The same with slots."""

    value: torch.Tensor
    later: torch.Tensor = field(init=False)


class Dynamic:
    """Has every attribute that one asks it for."""

    def __init__(self, value):
        self.value = value

    def __getattr__(self, name):
        if name.startswith("__array"):
            raise AttributeError(name)
        return self.value * 2


class Lazy(Mapping):
    """Draws a random number for each value that is asked for."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, key):
        return self.value + torch.randn(())

    def __iter__(self):
        return iter("ab")

    def __len__(self):
        return 2


class LazyDict(dict):
    """The same, as a dictionary."""

    def __getitem__(self, key):
        return super().__getitem__(key) + torch.randn(())

    def values(self):
        """Random each time."""
        return [self[key] for key in self]

    def items(self):
        """Random each time."""
        return [(key, self[key]) for key in self]


OUTPUTS = {
    "deep": (deep, lambda out: unwrapped(out).square().mean()),
    "cyclic": (cyclic, lambda out: out[0].square().mean()),
    "unset field": (lambda module, x: Unset(x * 2), lambda out: out.value.square().mean()),
    "unset slot": (lambda module, x: Slots(x * 2), lambda out: out.value.square().mean()),
    "dynamic attributes": (lambda module, x: Dynamic(x * 2), lambda out: out.other.square().mean()),
    "lazy mapping": (lambda module, x: Lazy(x * 2), lambda out: out["a"].square().mean()),
    "lazy dict": (lambda module, x: LazyDict(a=x * 2), lambda out: out["a"].square().mean()),
    "its parameter": (
        lambda module, x: (x * 2, module.body.weight),
        lambda out: out[0].square().mean() + out[1].square().mean(),
    ),
    "only its parameter": (
        lambda module, x: module.body.weight,
        lambda out: out.square().mean(),
    ),
    "nothing": (lambda module, x: module.__dict__.update(kept=x), None),
}


def unwrapped(output):
    """What lies in the innermost list."""
    while isinstance(output, list):
        output = output[0]
    return output


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_any_kind(name):
    """Nothing of a user's runs when the recorder looks at an output."""
    make, loss = OUTPUTS[name]

    def case(run: Run):
        model = Gives(make)
        of = loss or (lambda out: model.__dict__.pop("kept").square().mean())
        run.train(model, (torch.randn(5, 3),), loss=of)

    compare(case)


def test_lists_that_grow_from_step_to_step_are_cut_off():
    """However many outputs a module gives in the end, the columns stay few."""

    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.steps = nn.Linear(3, 3), 0

        def forward(self, x):
            self.steps += 1
            hidden = self.body(x)
            return [hidden * i for i in range(self.steps)]

    run = compare(
        lambda run: run.train(
            Grows(),
            (torch.randn(5, 3),),
            loss=lambda out: sum(out).square().mean(),
            steps=150,
            lr=0.0,
        )
    )
    assert len(run.scope.trace().tensors) < 150
    assert any("64" in line for line in run.scope.trace().metadata["blind_spots"])


def test_named_parameters_without_the_usual_arguments():
    """A module may hide some of its parameters, and take no arguments, as torchrl's losses do."""

    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.tied = nn.Linear(3, 3), nn.Linear(3, 3)
            self.tied.weight = self.body.weight

        def named_parameters(self, recurse=True):
            return ((n, p) for n, p in super().named_parameters(recurse=recurse))

        def forward(self, x):
            return self.tied(self.body(x))

    run = compare(lambda run: run.train(Hides(), (torch.randn(5, 3),)))
    assert run.scope.trace().structure.shared == {"tied.weight": "body.weight"}


def test_lazy_modules_before_their_first_forward():
    """They have no shape when they are watched, and get one in the first step."""

    def case(run: Run):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are under development
            model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.watch(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 3)).square().mean()
            loss.backward()
            run.step()
            run.numbers.append(loss.detach())

    run = compare(case)
    assert rows(run, "activation_grad") == {"0": 1, "1": 1, "2": 1}
    shapes = {t.name: t.shape for t in run.scope.trace().tensors if t.kind == "weight"}
    assert shapes == {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}


def test_leaves_of_the_user_through_an_identity():
    """Nothing stays on a tensor that the user made, and its gradient is recorded."""

    def case(run: Run):
        model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
        mine = torch.ones(4, 3, requires_grad=True)
        run.train(model, (mine,), steps=3)
        run.facts.append(hooks_at(mine))
        run.numbers.append(mine.grad)

    run = compare(case)
    frame = run.scope.trace().to_pandas()
    assert len(frame[(frame.kind == "activation_grad") & (frame.module == "0")]) == 3


def test_outputs_that_the_user_keeps():
    """After the step no hook of ours is on them, and a later backward pass writes nowhere."""

    def case(run: Run):
        model, inputs = chain(3, 4, 2), torch.randn(5, 3)
        run.watch(model)
        kept = []
        for _ in range(4):
            model.zero_grad()
            output = model(inputs)
            kept.append(output)
            output.square().mean().backward(retain_graph=True)
            run.step()
            run.facts.append([hooks_at(o) for o in kept])
        before = run.scope and run.scope.trace().values.clone()
        (kept[1] * 1e6).sum().backward()
        if run.scope:
            run.scope.close()
            assert torch.equal(run.scope.trace().values.nan_to_num(), before.nan_to_num())
        run.facts.append([hooks_at(o) for o in kept])

    compare(case)


def test_a_frozen_recurrent_layer():
    """Its output needs no gradient: it goes to numpy and is changed in place."""

    class Frozen(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.rnn, self.head = kind(3, 4).requires_grad_(False), nn.Linear(4, 2)

        def forward(self, x):
            hidden, _ = self.rnn(x)
            hidden.numpy().sum()
            hidden += 1
            hidden[0] = 0
            assert not hidden.requires_grad
            return self.head(hidden)

    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        compare(lambda run, kind=kind: run.train(Frozen(kind), (torch.randn(6, 2, 3),)))


def test_a_recurrent_layer_that_changes_its_input():
    """A subclass with a `forward` of its own is handed what the caller gave."""

    class Changes(nn.LSTM):
        def forward(self, x):
            x.mul_(0.5)
            return super().forward(x)[0]

    compare(lambda run: run.train(Changes(3, 4), (torch.randn(6, 2, 3),)))


class Parts(nn.Module):
    """A LightningModule's way: the root is never called, its methods are."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = chain(3, 4, 4), nn.Linear(4, 2)

    def loss(self, x):
        """A step's loss."""
        return self.head(self.encoder(x)).square().mean()


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("validate", [None, torch.no_grad, torch.inference_mode])
def test_a_root_that_is_never_called(micro, validate):
    """However many micro-batches and validation passes, each module has one output a step."""

    def case(run: Run):
        model = Parts()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.watch(model, optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(micro):
                model.loss(torch.randn(5, 3)).backward()
            if validate:
                with validate():
                    model.loss(torch.randn(5, 3))
            run.step()

    run = compare(case)
    expected = dict.fromkeys(("encoder.0", "encoder.1", "encoder.2", "head"), 1)
    assert rows(run, "activation") == expected
    assert rows(run, "activation_grad") == expected


@pytest.mark.parametrize("root", [True, False])
def test_a_forward_that_raises_and_is_retried(root):
    """Nothing of the pass that failed counts, be it the root's or a part's."""

    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.calls = nn.Linear(3, 4), nn.Linear(4, 2), 0

        def forward(self, x):
            hidden = self.first(x)
            self.calls += 1
            if self.calls % 3:
                raise MemoryError
            return self.last(hidden)

    def case(run: Run):
        model = Fails() if root else nn.ModuleDict({"net": Fails()})
        net = model if root else model["net"]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.watch(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            for scale in (100.0, 10.0, 1.0):
                try:
                    loss = net(torch.full((5, 3), scale)).square().mean()
                except MemoryError:
                    continue
                loss.backward()
            run.step()

    run = compare(case)
    prefix = "" if root else "net."
    assert rows(run, "activation_grad")[f"{prefix}first"] == 1
    frame = run.scope.trace().to_pandas()
    first = frame[(frame.kind == "activation") & (frame.module == f"{prefix}first")]
    assert (first.norm < 20).all()


@pytest.mark.parametrize("gradients", [True, False])
def test_an_actor_thread_that_infers_while_the_learner_trains(gradients):
    """What another thread runs is not the training's."""

    def case(run: Run):
        model = chain(3, 4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def act():
            with torch.set_grad_enabled(gradients):
                for _ in range(3):
                    model(torch.full((5, 3), 1e3))

        run.watch(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(5, 3)).square().mean()
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
            loss.backward()
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
            run.step()
            run.numbers.append(loss.detach())

    run = compare(case)
    assert rows(run, "activation") == {"0": 1, "1": 1, "2": 1}
    assert rows(run, "activation_grad") == {"0": 1, "1": 1, "2": 1}
    frame = run.scope.trace().to_pandas()
    assert (frame[frame.kind == "activation"].norm < 100).all()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("wanted", [True, False], ids=["inputs with gradient", "without"])
@pytest.mark.parametrize("micro", [1, 2])
def test_checkpointing(reentrant, wanted, micro):
    """Rows are those that have a gradient, with the norms of the first micro-batch."""

    class Saved(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block, self.last = chain(3, 4), chain(4, 5, 4), nn.Linear(4, 2)
            self.first.requires_grad_(wanted)

        def forward(self, x):
            hidden = self.first(x)
            return self.last(checkpoint(self.block, hidden, use_reentrant=reentrant))

    def case(run: Run):
        model = Saved()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        run.watch(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            for i in range(micro):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # reentrant, none of the inputs has a gradient
                    (model(torch.randn(5, 3)).square().mean() * 1000**i).backward()
            run.step()

    run = compare(case)
    frame = run.scope.trace().to_pandas()
    gradients = frame[frame.kind == "activation_grad"]
    assert (gradients.norm < 100).all()
    assert (gradients.groupby(["module", "step"]).size() == 1).all()
    assert ("block.0" in set(gradients.module)) == (wanted or not reentrant)


def test_a_replica_with_a_copied_dictionary():
    """DataParallel runs replicas in threads, which share the dictionary of the module."""

    def case(run: Run):
        model = chain(3, 4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.watch(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            replica = model[0]._replicate_for_data_parallel()
            replica.weight, replica.bias = torch.zeros(4, 3), torch.zeros(4)
            with ThreadPoolExecutor() as pool:
                assert not pool.submit(replica, torch.ones(5, 3)).result().any()
            model(torch.ones(5, 3)).square().mean().backward()
            run.step()

    compare(case)


def test_a_step_whose_forward_nobody_sees_is_told():
    """Parameters that are used without the modules that hold them: one line says so."""

    def case(run: Run):
        model = chain(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        run.watch(model, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.linear(torch.ones(5, 3), model[0].weight).square().mean().backward()
            run.step()

    run = compare(case, blind=1)
    assert "no call of the network" in run.scope.blind_spots[0]
