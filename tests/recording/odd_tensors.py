"""Gives the kernels everything that could make them read or write where they must not.

    python odd_tensors.py LIBRARY NAME [short]

runs under the sanitizers, which end the process at the first fault; what is read is compared with
torch's own arithmetic in float64. `short` does a little of it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import math
import struct
import sys
import threading

import torch

LIBRARY, NAME = sys.argv[1:3]
spec = importlib.util.spec_from_file_location(NAME, LIBRARY)
kernels = sys.modules[NAME] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)

import gradscope  # noqa: E402 - the kernels must be there before it looks for them
from gradscope.recording import kernels as loaded  # noqa: E402
from gradscope.recording.buffer import StatisticsBuffer  # noqa: E402
from gradscope.recording.host_meter import HostMeter  # noqa: E402
from gradscope.trace.table import RecordedTensor  # noqa: E402

CPU = torch.device("cpu")
READ = (torch.float32, torch.float64, torch.bfloat16)
REFUSED = (
    torch.float16, torch.float8_e4m3fn, torch.int8, torch.int32, torch.int64, torch.uint8,
    torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip


class Strange(torch.Tensor):
    """A subclass, whose memory is its own matter."""


def of_each_layout(dtype):
    """Tensors of one dtype with every shape and stride that torch lets one make."""
    values = torch.tensor([0.0, -0.0, 1.5, -2.0, 3.0, 0.25]).repeat(60).reshape(3, 4, 5, 6)
    block = values.to(dtype)
    huge = 2**40 if dtype.is_complex else 2**61  # of complex numbers torch doubles the strides
    yield from (block, block[0, 0, 0, 0], block[:0], block[:, :0], block[1:, 2:], block[..., 3])
    yield from (block[..., ::2], block.transpose(0, 3), block.permute(2, 0, 3, 1))
    yield from (block.contiguous(memory_format=torch.channels_last), block.flip(0))
    yield from (block.expand(2, 3, 4, 5, 6), block[:1].expand(7, 4, 5, 6), block[0, 0, 0, :1])
    yield from (block.as_strided((4, 4), (1, 2)), block.as_strided((3, 2), (0, 0)))
    yield from (block.as_strided((1, 6), (2 * huge, 1)), block.as_strided((2, 1), (1, huge), 7))
    yield from (torch.empty(0, dtype=dtype), torch.empty((0, 2**30, 2**30), dtype=dtype))
    yield from (block.flatten()[:1].expand(2**40), block.flatten()[2].expand(2**20, 2**30))
    yield from (block.as_strided((0, 5), (2**40, 2**40), 300), torch.ones([1] * 64, dtype=dtype))
    yield block.as_strided([2] + [1] * 63, [6] * 64)
    for numel in (1, 31, 32, 33, 4095, 4096, 4097, 3 * 4096 + 17, 200_001):
        yield torch.ones(numel).to(dtype)
    if dtype in READ:
        yield from (torch._neg_view(block), block.as_strided((0, 2**31, 2**31, 4), (1, 1, 1, 1)))


def of_strange_numbers():
    """Payloads of NaN, Inf, denormals, and magnitudes whose squares leave their range."""
    for pattern in (0x7F800001, 0x7FFFFFFF, -1, -0x3FFFFF, 0x7F800000, 1, 0x00400000, 0x7F7FFFFF):
        yield torch.tensor([pattern, 0, 0x3F800000], dtype=torch.int32).view(torch.float32)
    for pattern in (0x7FF0000000000001, -1, 1, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000):
        yield torch.tensor([pattern, 0], dtype=torch.int64).view(torch.float64)
    for pattern in (0x7F81, -1, 1, 0x7F7F, 0x7F80):
        yield torch.tensor([pattern, 0, 0x3F80], dtype=torch.int16).view(torch.bfloat16)
    for value in (1e-300, 1e300, 1e-40, 1e38, math.inf, -math.inf, math.nan):
        yield torch.full((4097,), value, dtype=torch.float64)
        yield torch.full((4097,), value, dtype=torch.float64).float()


def without_elements_at_hand():
    """What has no memory, or another kind of it."""
    yield torch.ones(3, 3).to_sparse()
    yield torch.ones(3, 3).to_sparse_csr()
    yield torch.empty(3, 4, device="meta")
    yield torch.empty((2**30, 2**30), device="meta")
    yield torch.ones(4).as_subclass(Strange)
    yield torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with torch.inference_mode():
        yield torch.ones(5)


def misaligned():
    """Numbers that do not begin at a multiple of their size."""
    memory = bytearray(8 * 5000 + 1)
    for dtype in READ:
        size = torch.tensor([], dtype=dtype).element_size()
        memory[1 : 4099 * size + 1] = bytes(torch.ones(4099).to(dtype).view(torch.uint8).numpy())
        yield torch.frombuffer(memory, dtype=dtype, offset=1, count=4099)


def made(width=1):
    """A meter with the compiled kernels, its buffer and some columns."""
    buffer = StatisticsBuffer(1, 512, histograms=False)
    columns = [buffer.column(RecordedTensor("weight", f"m{i}", "w", i)) for i in range(width)]
    return HostMeter(CPU, buffer), buffer, columns


def check(tensor):
    """What the kernel itself reads of a tensor, and its norm if it read it."""
    _, buffer, (column,) = made()
    area, left = buffer.area(CPU, column), []
    for wanted in range(6):
        kernels.measure_one(area, column, wanted, left.append, tensor)
        indices = kernels.measure(area, [column], [tensor], wanted, bytearray(wanted))
        assert indices == ([0] if left else [])
    if left:
        return
    assert tensor.dtype in READ
    exact, found = tensor.detach().double(), float(buffer.cell(CPU, column, "norm"))
    expected = float(exact.norm().float())
    if math.isfinite(expected):
        assert math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-40), (tensor, found)
        assert float(buffer.cell(CPU, column, "abs_max")) == float(
            exact.abs().max().float() if exact.numel() else 0.0
        )
    else:
        assert not math.isfinite(found) or exact.isfinite().all(), (tensor, found)
    for dim in range(tensor.dim()):
        kernels.dead_units(area, column, 6, dim, 16, bytearray(), left.append, tensor)


def use(tensor):
    """Let a meter do with a tensor all that it does, conversions included."""
    meter, buffer, columns = made(4)
    meter.output_reader(columns[0], norm_only=False)(tensor)
    meter.gradient_reader(columns[1])(tensor)
    meter.parameter_gradients([columns[2]], [tensor], unclipped=True)
    if tensor.dim() and tensor.layout == torch.strided:
        reader = meter.units_reader(columns[0], tensor.dim() - 1)
        reader(tensor)
        reader(tensor[..., :1])  # of another width
    for weights in (tensor, tensor, torch.ones(77), tensor):
        meter.weights([columns[3]], [weights])
        meter.updates([columns[3]], [weights])
    assert buffer.numel[columns[0]] >= 0


def leaves():
    """Parameters with gradients, taken twice, changed in between and replaced."""
    parameters = [torch.nn.Parameter(torch.randn(n)) for n in (1, 5, 4096, 70_000)]
    _, buffer, columns = made(4)
    area, marks = buffer.area(CPU, 4), bytearray()
    for round_ in range(6):
        gradients = [torch.randn_like(p) if round_ % 2 else p.detach() for p in parameters]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        kernels.measure(area, columns, gradients, 5, marks)
        gradients[3].data[69_999] = 7.0
        parameters[2].grad = None
        del gradients[1]
        kernels.measure(area, columns[:3], gradients, 5, marks)
        kernels.measure(area, columns[:3], parameters[:3], 5, bytearray(33))
    kernels.measure(area, [0, 0, 0, 0], parameters, 4, marks)


def replaced():
    """Lists of tensors that nobody else holds."""
    _, buffer, columns = made(2)
    for _ in range(3):
        tensors = [torch.ones(3), torch.ones(300_000)]
        kernels.measure(buffer.area(CPU, 2), columns, tensors, 4)
        tensors.clear()


def who_lives_longer():
    """Readers without their meter, tensors without their owner, a graph without its scope."""
    meter, buffer, (first, second, third) = made(3)
    readers = [
        meter.output_reader(first, norm_only=False),
        meter.gradient_reader(second),
        meter.units_reader(third, 0),
    ]
    for i in range(1000):  # the cells move
        last = buffer.column(RecordedTensor("weight", f"more{i}", "w", i))
    buffer.area(CPU, last)
    buffer.release()
    del meter, buffer
    for reader in readers:
        gc.collect()
        tensor = torch.ones(300_000).view(3, -1)
        reader(tensor)
        del tensor
        reader(torch.zeros(3, 3))
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for options in ({}, {"norms_only": True}, {"activations": False}):
        with gradscope.watch(model, optimizer, every=1, **options) as scope:
            for _ in range(35):
                model(torch.randn(4, 6)).sum().backward()
                optimizer.step()
            loss = model(torch.randn(4, 6)).sum()
        assert scope.trace().to_pandas().norm.notna().all()
        del scope
        gc.collect()
        loss.backward()


def at_the_same_time():
    """Two threads measure, without the interpreter's lock, what a third replaces."""
    meter, buffer, columns = made(8)
    area, tensors, marks = buffer.area(CPU, 8), [torch.ones(400_000) for _ in columns], bytearray()
    stop = threading.Event()

    def measure():
        while not stop.is_set():
            kernels.measure(area, columns, tensors, 5, marks)
            kernels.measure(area, columns, tensors, 2)

    threads = [threading.Thread(target=measure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(100):
        tensors[i % 8] = torch.full((300_000 + i,), 2.0)
        if i % 10 == 0:
            buffer.area(CPU, 100 * i)
    stop.set()
    for thread in threads:
        thread.join()
    meter.end()


def wrong_arguments():
    """Any argument of any kernel replaced by something else is an error, or does no harm."""
    _, buffer, (column,) = made()
    area, tensor = buffer.area(CPU, column), torch.ones(4)

    def room(*numbers, size=4):
        return bytearray(struct.pack("5q", *numbers, size)) + bytes(16)

    sample = room(4, 4, 1, 4)
    right = {
        "measure": (area, [column], [tensor], 4, bytearray()),
        "measure_one": (area, column, 4, len, tensor),
        "remember": (area, [column], [tensor], [sample], 7),
        "change": (area, [column], [tensor], [sample], 8),
        "dead_units": (area, column, 6, 0, 16, bytearray(), len, tensor),
    }
    strange = (
        None, -1, 2**40, 2**62, 2**70, "", [], [None], [2**62], (), {}, [()], [(1,)], object(),
        [sample[:39]], [sample[:40]], [room(2**40, 1, 2**40, 4)], [room(1, 2**62, 3, 4)],
        [room(-1, -1, -1, 4)], [room(4, 4, 1, 4, size=0)], [room(4, 4, 1, 4, size=2**62)],
        [room(1, 1, 4, 2**62)], [tensor] * 3, bytearray(1), torch.nn.Parameter(torch.ones(2)),
    )  # fmt: skip
    for name, arguments in right.items():
        getattr(kernels, name)(*arguments)
        for i in range(len(arguments)):
            for other in strange:
                with contextlib.suppress(Exception):
                    getattr(kernels, name)(*arguments[:i], other, *arguments[i + 1 :])
            with contextlib.suppress(TypeError):
                getattr(kernels, name)(*arguments[:i])
    for arguments in ((), (1, 2, 3, 4), (torch.Tensor, torch.nn.Parameter, None, loaded.CALLS)):
        with contextlib.suppress(TypeError, ValueError):
            kernels.configure(*arguments)


def main():
    """Run all of it, with one thread and with two."""
    assert loaded.compiled is kernels, "the recorder uses other kernels than these"
    for threads in (1, 2):
        torch.set_num_threads(threads)
        check(torch.ones(200_001))
        check(torch.ones(4).as_strided((0, 2**31, 2**31, 4), (1, 1, 1, 1)))
        for tensor in misaligned():
            check(tensor)
        replaced()
        if "short" in sys.argv:
            continue
        for dtype in (*READ, *REFUSED):
            for tensor in of_each_layout(dtype):
                if tensor.numel() < 2**30:
                    use(tensor)
                    check(tensor)
                assert kernels.measure(*refusing(), [tensor], 4) in ([], [0])
        for tensor in (*of_strange_numbers(), *misaligned()):
            check(tensor)
            use(tensor)
            check(tensor.clone().requires_grad_())
        for tensor in without_elements_at_hand():
            assert kernels.measure(*refusing(), [tensor], 4) in ([], [0])
        torch.func.vmap(lambda t: (check(t), t)[1])(torch.ones(3, 4))
        leaves()
        who_lives_longer()
        at_the_same_time()
    if "short" not in sys.argv:
        wrong_arguments()
    print("done")  # noqa: T201 - tells the test that nothing was left out


def refusing():
    """An area and a column to measure into."""
    _, buffer, columns = made()
    return buffer.area(CPU, columns[0]), columns


main()
