"""Both meters against float64 arithmetic, for any shape, layout, dtype and value."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import gradscope
from gradscope.recording import kernels
from gradscope.recording.buffer import WINDOW, StatisticsBuffer
from gradscope.recording.device_meter import DeviceMeter
from gradscope.recording.host_meter import HostMeter
from gradscope.recording.reductions import UPDATE_LIMIT
from gradscope.trace.table import RecordedTensor

CPU = torch.device("cpu")
METERS = (HostMeter, DeviceMeter)
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
)
values = st.sampled_from([0.0, -0.0, 1.0, -2.5, 3e-3, math.inf, -math.inf, math.nan])


def made(kind, width=1):
    """A meter of one kind, and its buffer with some columns."""
    buffer = StatisticsBuffer(1, 512, histograms=False)
    columns = [buffer.column(RecordedTensor("weight", f"m{i}", "w", i)) for i in range(width)]
    return kind(CPU, buffer), buffer, columns


def read(buffer, column, *names):
    """Cells of one column."""
    return [float(buffer.cell(CPU, column, name)) for name in names]


def laid_out(tensor, layout):
    """The same elements in another order of memory, or not dense at all."""
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1)
    if layout == "channels last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([tensor, tensor], -1)[..., 0]
    return tensor


layouts = st.sampled_from(["dense", "transposed", "channels last", "strided"])


def test_the_kernels_were_compiled():
    """Where this runs there is a C compiler, so the recorder must not fall back in silence."""
    assert kernels.compiled is not None


@pytest.mark.parametrize("kind", METERS)
@given(shape=st.lists(st.integers(1, 7), max_size=4), dtype=dtypes, layout=layouts, data=st.data())
def test_statistics_are_those_of_float64(kind, shape, dtype, layout, data):
    """Norm, share of NaN and Inf, largest magnitude, share of zeros of an output and a gradient."""
    numel = math.prod(shape)
    drawn = data.draw(st.lists(values, min_size=numel, max_size=numel))
    tensor = laid_out(torch.tensor(drawn, dtype=torch.float64).reshape(shape).to(dtype), layout)
    meter, buffer, (column, gradient) = made(kind, 2)
    meter.output_reader(column, norm_only=False)(tensor)
    meter.gradient_reader(gradient)(tensor)
    meter.end()
    plain = torch.view_as_real(tensor) if dtype.is_complex else tensor
    exact = plain.double().flatten()
    finite = bool(exact.isfinite().all())
    norm, nonfinite, largest = read(buffer, column, "norm", "nonfinite", "abs_max")
    if finite:
        assert norm == pytest.approx(float(exact.norm()), rel=1e-6)
        assert largest == pytest.approx(float(exact.abs().max()), rel=1e-6)
        (zero,) = read(buffer, column, "zero")
        assert zero == pytest.approx(float((exact == 0).double().mean()), abs=1e-6)
    else:
        assert not math.isfinite(norm)
        assert math.isnan(largest) == bool(exact.isnan().any())
    share = float((~exact.isfinite()).double().mean())
    assert nonfinite == pytest.approx(share, abs=1e-6)
    assert buffer.numel[column] == buffer.numel[gradient] == exact.numel()
    assert read(buffer, gradient, "norm") == pytest.approx([norm], nan_ok=True)
    assert read(buffer, gradient, "nonfinite") == pytest.approx([share], abs=1e-6)


@pytest.mark.parametrize("layout", ["dense", "transposed", "channels last", "strided"])
def test_what_is_dense_is_read_where_it_lies(layout):
    """Only a tensor with gaps is left to be copied."""
    _, buffer, (column,) = made(HostMeter)
    tensor = laid_out(torch.randn(2, 3, 4, 5), layout)
    left = kernels.compiled.measure(buffer.area(CPU, column), [column], [tensor], 4)
    assert left == ([0] if layout == "strided" else [])


@given(st.integers(1, 20_000), st.integers(0, 2**31), st.integers(0, 19_999), st.booleans())
def test_a_gradient_is_read_again_only_where_it_changed(numel, seed, place, changed):
    """Unknown to the version counter too; what did not change keeps what stands in its cells."""
    generator = torch.Generator().manual_seed(seed)
    parameter = torch.nn.Parameter(torch.zeros(numel))
    parameter.grad = torch.randn(numel, generator=generator)
    parameter.grad[place % numel] = 1e3
    _, buffer, (column,) = made(HostMeter)
    area, marks = buffer.area(CPU, column), bytearray()

    def norm_then():
        left = kernels.compiled.measure(area, [column], [parameter.grad], 4, marks)
        assert left == []
        return read(buffer, column, "norm")[0]

    assert norm_then() == pytest.approx(float(parameter.grad.double().norm()))
    buffer.cell(CPU, column, "norm").fill_(-1.0)
    if changed:
        parameter.grad.data.clamp_(-100, 100)
    expected = float(parameter.grad.double().norm()) if changed else -1.0
    assert norm_then() == pytest.approx(expected)


@given(st.integers(1, 300_000), dtypes, st.integers(0, 2**31), st.integers(1, 3))
def test_many_elements_on_many_threads(numel, dtype, seed, threads):
    """Sizes beside the kernel's blocks and threads, in the middle of a larger tensor."""
    whole = torch.randn(numel + 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    tensor = whole[1 : numel + 1]
    meter, buffer, (column,) = made(HostMeter)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        meter.parameter_gradients([column], [tensor], unclipped=True)
    finally:
        torch.set_num_threads(before)
    exact = (torch.view_as_real(tensor) if dtype.is_complex else tensor).double()
    norm, unclipped, largest, zero = read(buffer, column, "norm", "unclipped", "abs_max", "zero")
    assert norm == pytest.approx(float(exact.norm()), rel=1e-6)
    assert unclipped == norm
    assert largest == pytest.approx(float(exact.abs().max()), rel=1e-6)
    assert zero == pytest.approx(float((exact == 0).double().mean()), abs=1e-7)


@pytest.mark.parametrize("kind", METERS)
@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e-22, 1e22, 1e37])
def test_norms_whose_squares_leave_their_type(kind, scale):
    """Norms of tiny and huge elements in float32 and float64, as far as float32 can tell them."""
    for dtype in (torch.float32, torch.float64):
        tensor = torch.full((12,), scale, dtype=dtype)
        meter, buffer, (column,) = made(kind)
        meter.output_reader(column, norm_only=False)(tensor)
        expected = float(torch.tensor(float(tensor[0]) * 12**0.5).float())
        assert read(buffer, column, "norm") == [pytest.approx(expected, rel=1e-5, abs=1e-44)]


@pytest.mark.parametrize("kind", METERS)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    layout=layouts,
    dim=st.integers(0, 1),
    seed=st.integers(0, 2**31),
)
def test_dead_units_are_those_that_were_always_zero(kind, shape, dtype, layout, dim, seed):
    """A unit counts as dead until it was not zero somewhere in some call; -0.0 is zero."""
    generator = torch.Generator().manual_seed(seed)
    meter, buffer, (column,) = made(kind)
    reader = meter.units_reader(column, dim)
    active = torch.zeros(shape[dim], dtype=torch.bool)
    for _ in range(2):
        alive = torch.rand(shape, generator=generator) < 0.1
        tensor = torch.where(alive, -1.0, -0.0).to(dtype)
        if layout == "transposed":
            tensor = tensor.transpose(0, -1).contiguous().transpose(0, -1)
        else:
            tensor = laid_out(tensor, layout)
        reader(tensor)
        active |= (tensor != 0).movedim(dim, 0).flatten(1).any(1)
        dead = 1 - float(active.double().mean())
        assert read(buffer, column, "dead") == [pytest.approx(dead, abs=1e-6)]


@pytest.mark.parametrize("kind", METERS)
@given(
    active=st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=80),
    layout=layouts,
)
def test_dead_units_are_forgotten_with_their_window(kind, active, layout):
    """Counted again from all calls: what this window of them and the one before hold."""
    meter, buffer, (column,) = made(kind)
    reader = meter.units_reader(column, 1)
    for i, units in enumerate(active):
        tensor = torch.zeros(2, 4, 3, 2)
        tensor[1, sorted(units), 2, 0] = 5.0
        reader(laid_out(tensor, layout))
        window = active[max(0, WINDOW * (i // WINDOW - 1)) : i + 1]
        assert WINDOW < len(window) <= 2 * WINDOW or len(window) == i + 1
        dead = 1 - len(set().union(*window)) / 4
        assert read(buffer, column, "dead") == [pytest.approx(dead, abs=1e-6)]


@pytest.mark.parametrize("kind", METERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("numel", [0, 5, UPDATE_LIMIT // 2, 20 * UPDATE_LIMIT + 7])
def test_weights_and_updates(kind, dtype, numel):
    """Exact up to the limit, within a few per cent beyond it; nothing of an empty parameter."""
    weight = torch.randn(numel, dtype=torch.complex64 if dtype.is_complex else torch.float32)
    weight = weight.to(dtype)
    meter, buffer, (column,) = made(kind)
    for _ in range(2):
        before = weight.clone()
        meter.weights([column], [weight])
        weight += torch.randn(numel).to(dtype) / 10
        meter.updates([column], [weight])
    found = read(buffer, column, "weight_norm", "update")
    if not numel:
        assert all(math.isnan(x) for x in found)
        return
    expected = [float(before.abs().double().norm()), float((weight - before).abs().double().norm())]
    error = 1e-5 if numel < UPDATE_LIMIT else 0.05
    if dtype == torch.bfloat16:  # torch subtracts in bfloat16 and rounds, the kernels do not
        error = max(error, 0.01)
    assert found == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("kind", METERS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("numel", [7, 20 * UPDATE_LIMIT + 7])
def test_elements_that_a_step_left_as_they_were(kind, dtype, numel):
    """Oracle: torch's own comparison; of large parameters a sample within a few points."""
    weight = torch.randn(numel).to(dtype)
    step = torch.randn(numel).to(dtype) * 2.0**-10  # in half precision much of it is rounded away
    step[::3] = 0
    meter, buffer, (column,) = made(kind)
    meter.weights([column], [weight])
    expected = (weight + step == weight).double().mean().item()
    weight += step
    meter.updates([column], [weight])
    assert read(buffer, column, "unchanged") == [
        pytest.approx(expected, abs=1e-6 if numel == 7 else 0.03)
    ]
    assert expected > 0.3


@pytest.mark.parametrize("kind", METERS)
def test_gradients_of_float16_outputs_in_full(kind):
    """Zeros and the largest magnitude too: there they underflow."""
    meter, buffer, (column,) = made(kind)
    gradient = torch.tensor([0.0, 0.0, -(2.0**-24), 2.0**-20], dtype=torch.float16)
    meter.gradient_reader(column, whole=True)(gradient)
    meter.end()
    assert read(buffer, column, "zero", "abs_max") == [0.5, 2.0**-20]


def test_a_parameter_may_change_its_size_and_dtype():
    """A sample that no longer fits is taken anew; a change in between is not compared."""
    meter, buffer, (column,) = made(HostMeter)
    meter.weights([column], [torch.ones(4)])
    meter.updates([column], [torch.ones(900)])
    assert math.isnan(read(buffer, column, "update")[0])
    meter.weights([column], [torch.full((400,), 2.0, dtype=torch.float64)])
    meter.updates([column], [torch.full((400,), 2.5, dtype=torch.float64)])
    assert read(buffer, column, "weight_norm", "update") == [40.0, 10.0]


def test_the_same_sample_for_both_meters():
    """Estimates from samples do not depend on who takes them."""
    weight = torch.randn(100, 2000) * torch.linspace(0.1, 3, 2000)
    found = []
    for kind in METERS:
        meter, buffer, (column,) = made(kind)
        meter.weights([column], [weight])
        found += read(buffer, column, "weight_norm")
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_cells_stay_valid_when_the_buffer_grows():
    """A reader made before the buffer grew writes where the buffer reads."""
    meter, buffer, (column,) = made(HostMeter)
    reader = meter.output_reader(column, norm_only=False)
    for i in range(1000):
        last = buffer.column(RecordedTensor("weight", f"more{i}", "w", i))
    meter.output_reader(last, norm_only=False)(torch.full((4,), 2.0))
    reader(torch.full((9,), 1.0))
    assert read(buffer, column, "norm") == [3.0]
    assert read(buffer, last, "norm") == [4.0]


def test_a_graph_may_outlive_the_recording():
    """What a graph calls in its backward pass holds on to the memory that it writes."""
    meter, buffer, (column,) = made(HostMeter)
    readers = [
        meter.output_reader(column, norm_only=False),
        meter.gradient_reader(column),
        meter.units_reader(column, 0),
    ]
    area = weakref.ref(buffer.area(CPU, column))
    buffer.release()
    del meter, buffer
    for left in (3, 2, 1):
        gc.collect()
        assert area() is not None, f"{left} readers write to memory that is gone"
        readers.pop()(torch.ones(3, 3))
    gc.collect()
    assert area() is None


class Refuse(TorchDispatchMode):
    """Refuse every operation whose answer the host would have to wait for on a GPU."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "is_nonzero",
        "equal",
        "masked_select",
        "unique",
        "item",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0].lstrip("_")
        assert name not in {w.lstrip("_") for w in self.WAITING}, f"{name} makes the host wait"
        if name == "index":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "bool index waits"
        return func(*args, **(kwargs or {}))


def training(empty=True):
    """A step of a small convolutional network on the best device at hand."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 5),
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    inputs, targets = torch.randn(4, 3, 6, 6, device=device), torch.arange(4, device=device)

    def step():
        if empty is not None:
            optimizer.zero_grad(set_to_none=empty)
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return model, optimizer, step


@pytest.mark.parametrize("empty", [True, False, None], ids=["to none", "to zero", "never"])
def test_torch_operations_never_make_the_host_wait(monkeypatch, empty):
    """What runs on a GPU asks for no value within a step, shown without one."""
    monkeypatch.setattr(kernels, "compiled", None)
    model, optimizer, step = training(empty)
    with gradscope.watch(model, optimizer, every=1) as scope:
        step()  # the first step makes constants
        with Refuse():
            for _ in range(3):
                step()
    assert scope.trace().to_pandas().norm.notna().all()


def test_the_refusal_can_fail():
    """The mode of the test above notices a value that is asked for."""
    with pytest.raises(AssertionError, match="wait"), Refuse():
        torch.ones(3).sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_on_a_gpu_synchronises():
    """CUDA itself raises on a synchronisation, over as many steps as fill the ring twice."""
    model, optimizer, step = training()
    with gradscope.watch(model, optimizer, every=1) as scope:
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(70):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    table = scope.trace().to_pandas()
    assert len(table.step.unique()) == 71
    assert table.norm.notna().all()


def test_transforms_of_torch_func_are_let_through():
    """A watched model inside vmap runs as it would alone, though its tensors have no memory."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())
    inputs = torch.randn(4, 3)
    expected = model(inputs)
    with gradscope.watch(model, every=1):
        found = torch.func.vmap(model)(inputs)
    assert torch.allclose(found, expected)
