"""A fault of the recorder is one warning, and the training is the one that nobody watched."""

from __future__ import annotations

import contextlib
import sys
import warnings

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import GradscopeWarning
from gradscope.recording import (
    buffer,
    calls,
    device_meter,
    gradient_hooks,
    guard,
    host_meter,
    kernels,
    loss_scale,
    meters,
    network,
    output_readers,
    outputs,
    parameters,
    reductions,
    scope,
    through_time,
)

STEPS = 10


@pytest.fixture(autouse=True)
def _small_ring(monkeypatch):
    """Several flushes lie within the steps."""
    monkeypatch.setattr(buffer, "RING", 4)


class Net(nn.Module):
    """Has what each of the recorder's callbacks waits for."""

    def __init__(self):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(3, 4), nn.BatchNorm1d(4)
        self.act, self.drop, self.head = nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 2)

    def forward(self, x):
        """The last state of the sequence, normalised."""
        return self.head(self.drop(self.act(self.norm(self.lstm(x)[0][-1]))))


def train(watch=None):
    """Losses, weights and what hangs on model and optimizer after a short training."""
    torch.manual_seed(7)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    watching = watch(model, optimizer, scaler) if watch else None
    losses = []
    for _ in range(STEPS):
        with contextlib.suppress(RuntimeError):
            model(torch.randn(5, 4, 9))
        for _ in range(2):
            loss = model(torch.randn(5, 4, 3)).square().mean()
            scaler.scale(loss).backward()
        with torch.no_grad():
            model(torch.randn(5, 4, 3))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.detach())
    if watching:
        watching.close()
    left = [
        *(sorted(vars(m)) for m in model.modules()),
        *((len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()),
        *(p._backward_hooks for p in model.parameters()),
        len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks),
    ]
    return watching, [*losses, *model.state_dict().values(), torch.get_rng_state()], left


@pytest.fixture(scope="module")
def bare():
    """The training that nobody watches."""
    return train()


KERNELS = ("measure", "measure_one", "remember", "change", "dead_units")

TARGETS = [
    *((outputs.ForwardReader, name) for name in (
        "enter", "saw", "left", "lend", "begin", "end", "_take", "saw_again", "_measure",
        "_position", "_source", "_root_gradient", "_end_of_backward", "_read_structure",
        "_forget_graph", "failed",
    )),
    *((gradient_hooks.GradientHooks, name) for name in ("wait", "register", "at")),
    *((output_readers.OutputReaders, name) for name in ("of", "_saturation_reader")),
    *((through_time.ThroughTime, name) for name in ("lend", "take")),
    *((outputs, name) for name in ("read_structure", "floating_in", "is_normalisation")),
    (calls.ModuleCalls, "attach"),
    *((scope.Scope, name) for name in (
        "_arm", "_install", "_after_backward", "_before_step", "_after_step", "_end_step",
        "_on_another_pass", "_build_trace",
    )),
    *((scope, name) for name in ("complete", "ordered", "git_revision", "finish")),
    *((parameters.ParameterReader, name) for name in (
        "begin", "after_backward", "measure", "remember_weights", "measure_update", "end", "ever",
    )),
    *((loss_scale.LossScale, name) for name in (
        "begin", "scale", "remember", "updated", "left_to",
    )),
    *((meters.Meters, name) for name in ("of", "gradients", "end")),
    *((buffer.StatisticsBuffer, name) for name in (
        "wants", "column", "cell", "area", "put", "begin", "end", "flush", "rows", "release",
    )),
    *((buffer.Area, name) for name in ("grow", "turn", "turn_back")),
    *((kernels.compiled, name) for name in KERNELS),
    *((host_meter.HostMeter, name) for name in (
        "output_reader", "gradient_reader", "units_reader", "parameter_gradients", "weights",
        "updates", "end",
    )),
    *((device_meter.DeviceMeter, name) for name in (
        "output_reader", "gradient_reader", "units_reader", "parameter_gradients", "weights",
        "updates", "end", "_norm",
    )),
    *((reductions, name) for name in ("saturated_share", "is_readable", "write_norm", "numel")),
    *((network, name) for name in ("shared_parameters", "_blocks")),
]  # fmt: skip

FAULTS = (RuntimeError("refused"), torch.OutOfMemoryError("out of memory"), TypeError("not so"))


@pytest.mark.parametrize("at", [1, 3], ids=["first call", "third call"])
@pytest.mark.parametrize(
    ("owner", "name"), TARGETS, ids=[f"{getattr(o, '__name__', o)}.{n}" for o, n in TARGETS]
)
def test_a_fault_anywhere_is_one_warning(owner, name, at, bare, monkeypatch):
    """The training is bit for bit the bare one, nothing is left on it, whole steps stay."""
    monkeypatch.delenv("GRADSCOPE_STRICT")
    at += name == "begin"  # the first is part of construction, of the idle scope too
    fault = FAULTS[(TARGETS.index((owner, name)) + at) % len(FAULTS)]
    if owner in {device_meter.DeviceMeter, reductions}:
        monkeypatch.setattr(kernels, "compiled", None)
    original, count = getattr(owner, name), 0

    def faulty(*args, **kwargs):
        nonlocal count
        count += 1
        if count >= at:  # and ever after
            raise fault
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, faulty)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watching, numbers, left = train(
            lambda m, o, s: gradscope.watch(m, o, every=1, scaler=s, histograms=name == "put")
        )
        trace = watching.trace()
    assert count, "nothing came by"
    assert all(torch.equal(a, b) for a, b in zip(numbers, bare[1], strict=True))
    assert left == bare[2]
    messages = [str(w.message) for w in caught if w.category is GradscopeWarning]
    assert len(messages) == len(caught) == (count >= at)  # some are called but once
    assert all(f"{type(fault).__name__}: {fault}" in message for message in messages)
    assert all(len(message.splitlines()) == 1 for message in messages)
    assert trace.metadata["blind_spots"] == list(watching.blind_spots)
    assert [message.removeprefix("gradscope: ") for message in messages] == [*watching.blind_spots]
    steps = [step.step for step in trace.steps]
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize("at", [1, 7, 40])
def test_the_steps_before_a_fault_are_kept(at, monkeypatch):
    """What a fault ends after so many steps has the numbers of an undisturbed recording."""
    monkeypatch.delenv("GRADSCOPE_STRICT")
    whole = train(lambda m, o, s: gradscope.watch(m, o, every=1, scaler=s))[0].trace()
    original, count = scope.Scope._before_step, 0

    def faulty(self, *args):
        nonlocal count
        count += 1
        if count == at:
            raise MemoryError
        return original(self, *args)

    monkeypatch.setattr(scope.Scope, "_before_step", faulty)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradscopeWarning)
        trace = train(lambda m, o, s: gradscope.watch(m, o, every=1, scaler=s))[0].trace()
    kept = min(at - 1, STEPS)
    assert [step.step for step in trace.steps] == list(range(kept))
    if kept:
        assert [t.name for t in trace.tensors] == [t.name for t in whole.tensors]
        assert torch.equal(trace.values.nan_to_num(-1.0), whole.values[:kept].nan_to_num(-1.0))


def test_strict_raises(monkeypatch):
    """With GRADSCOPE_STRICT=1 the fault itself comes out, with its own traceback."""
    monkeypatch.setattr(outputs.ForwardReader, "saw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(lambda m, o, s: gradscope.watch(m, o, every=1))
    monkeypatch.undo()


def test_a_warning_made_an_error_does_not_end_the_training(bare, monkeypatch, capsys):
    """Who runs with warnings as errors reads the line on stderr."""
    monkeypatch.delenv("GRADSCOPE_STRICT")
    monkeypatch.setattr(outputs.ForwardReader, "saw", lambda *_: 1 / 0)
    numbers = train(lambda m, o, s: gradscope.watch(m, o, every=1))[1]
    assert all(torch.equal(a, b) for a, b in zip(numbers, bare[1], strict=True))
    assert capsys.readouterr().err.startswith("gradscope: recording stopped by a fault")


def test_ctrl_c_is_no_fault(monkeypatch):
    """What is meant to end the training does."""
    monkeypatch.delenv("GRADSCOPE_STRICT")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs.ForwardReader, "saw", interrupt)
    model = Net()
    with pytest.raises(KeyboardInterrupt), gradscope.watch(model, every=1):
        model(torch.randn(5, 4, 3))


def test_the_message_of_a_fault_is_one_short_line():
    """Whatever the exception says, and also where it cannot say anything."""

    class MuteError(RuntimeError):
        def __str__(self):
            raise ValueError

    for fault in (RuntimeError("long\nstory " * 1000), MuteError()):
        try:
            raise fault
        except RuntimeError as caught:
            line = guard._described("in a test", caught)
        assert len(line.splitlines()) == 1
        assert len(line) < 500
        assert type(fault).__name__ in line


def test_modes_of_a_user_do_not_see_what_the_recorder_does():
    """A mode that counts operations counts those of the training alone."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    def counted(mode, *, watched):
        """What the mode saw, and what was recorded."""
        seen.clear()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watching = gradscope.watch(model, optimizer, every=1) if watched else None
        with mode():
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(5, 3)).square().sum().backward()
                optimizer.step()
        if watching:
            watching.close()
        return list(seen), watching and watching.trace()

    seen = []
    for without in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if without:
                patch.setattr(kernels, "compiled", None)
            whole = counted(contextlib.nullcontext, watched=True)[1]
            assert len(whole.steps) == 3
            for mode in (Functions, Operations):
                operations, trace = counted(mode, watched=True)
                assert operations == counted(mode, watched=False)[0]
                assert torch.equal(trace.values.nan_to_num(-1.0), whole.values.nan_to_num(-1.0))


def test_no_torch_dynamo_is_loaded():
    """The guard asks torch's C part; loading Dynamo takes seconds."""
    import subprocess

    code = "import sys, gradscope.watching; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
