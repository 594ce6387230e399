"""Who takes part on a GPU: numbasep and its peers on the same device memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from perf.cases import Case, Channelwise, Separable
from perf.contenders import (
    FUNCTIONS,
    Contender,
    Refused,
    optional,
    separable_taps,
)

# JAX would take three quarters of the device's memory when it starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKEND = "cuda" if DEVICE == "cuda" else "cpu"
torch.set_grad_enabled(False)

# torch.compile takes seconds a case: these carry the comparison.
COMPILED = ("/82_", "/84_", "/86_", "/87_", "8192x8192/9taps")
# So does XLA, which tries its algorithms first.
XLA = ("/9taps", "/31taps")


@dataclass(frozen=True)
class Data:
    """A case's inputs on the device.

    image: (N, C, H, W), or (1, planes, H, W) of a separable case, contiguous. columns, rows: host
    taps (R, k). taps: (C, kh, kw). mix: (C out, C). out_shape: of what ``Contender.read`` returns.
    """

    image: Any
    out_shape: tuple[int, ...]
    columns: Any = None
    rows: Any = None
    taps: Any = None
    mix: Any = None


def allow_tf32(allowed: bool) -> None:
    """Let PyTorch round float32 operands to tf32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def data(case: Case) -> Data:
    """Return random inputs of a case on the device."""
    generator = torch.Generator(device=DEVICE).manual_seed(20240517)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)

    if isinstance(case, Separable):
        planes = (1, int(np.prod(case.shape[:-2])), *case.shape[-2:])
        if case.dtype == "uint8":
            image = torch.randint(0, 256, planes, generator=generator, device=DEVICE, dtype=dtype)
        else:
            image = normal(*planes)
        return Data(image, planes, *separable_taps(case))
    c = case.shape[1]
    return Data(
        normal(*case.shape),
        case.out_shape,
        taps=None if case.op == "pointwise" else normal(c, *case.kernel),
        mix=None if case.op == "depthwise" else normal(case.out_channels, c),
    )


def of(case: Case, inputs: Data) -> Iterator[Contender | Refused]:
    """Yield the contenders of a case, numbasep first; each is built when its turn comes."""
    makers = SEPARABLE if isinstance(case, Separable) else LAYERS
    for make in makers:
        try:
            yield from make(case, inputs)
        except Exception as error:
            text = str(error).strip().splitlines()
            yield Refused(make.__name__.strip("_"), f"{type(error).__name__}: {text[:1]}")


def _compiled(case: Case) -> bool:
    return case.dtype == "float32" and any(part in case.name for part in COMPILED)


@cache
def _compiler_works() -> bool:
    """Say whether torch.compile works here, tried in a process of its own (it may crash)."""
    code = (
        "import torch; d = 'cuda' if torch.cuda.is_available() else 'cpu';"
        "f = torch.compile(lambda x: x + 1); assert f(torch.ones(4, device=d)).sum() == 8"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=90)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _with_compiled(
    case: Case, name: str, call: Callable[[], Any], read: Callable[[Any], Any], **settings: Any
) -> Iterator[Contender | Refused]:
    """Yield a torch contender, and its compiled twin where the case asks for one."""
    yield Contender(name, call, read=read, **settings)
    if not _compiled(case):
        return
    if not _compiler_works():
        yield Refused(f"{name}_compile", "torch.compile does not work here")
        return
    yield Contender(f"{name}_compile", torch.compile(call), read=read, **settings)


# Separable ---------------------------------------------------------------------------------------


def _numbasep(case: Separable, inputs: Data) -> Iterator[Contender | Refused]:
    import numbasep

    out = torch.empty_like(inputs.image)
    image = inputs.image
    columns, rows = inputs.columns, inputs.rows
    kernel = (columns[0], rows[0]) if case.rank == 1 else (columns, rows)

    def call() -> Any:
        numbasep.separable_conv2d(image, kernel, boundary="mirror", out=out, backend=BACKEND)
        return out

    yield Contender("numbasep", call, read=_same, out=out)


def _same(tensor: Any) -> Any:
    return tensor


def _torch(case: Separable, inputs: Data) -> Iterator[Contender | Refused]:
    if case.dtype == "uint8":
        yield Refused("torch", "no uint8 convolution")
        return
    allow_tf32(False)
    # Planes are a batch of one channel; R terms are R channels, summed by the second pass.
    image = inputs.image.reshape(-1, 1, *inputs.image.shape[-2:])
    k, rank = case.taps, case.rank
    across = torch.tensor(inputs.rows, device=DEVICE).to(image.dtype).reshape(rank, 1, 1, k)
    down = torch.tensor(inputs.columns, device=DEVICE).to(image.dtype).reshape(1, rank, k, 1)
    # Correlation: flip the taps.
    across, down = across.flip(-1), down.flip(-2)
    shape = inputs.out_shape
    functional = torch.nn.functional
    narrow = case.dtype if case.dtype == "float16" else None

    def call() -> Any:
        padded = functional.pad(image, (k // 2, (k - 1) // 2) * 2, mode="reflect")
        return functional.conv2d(functional.conv2d(padded, across), down)

    def read(y: Any) -> Any:
        return y.reshape(shape)

    yield from _with_compiled(case, "torch", call, read, intermediate=narrow)
    last = torch.channels_last
    image_last, across_last = image.to(memory_format=last), across.to(memory_format=last)
    down_last = down.to(memory_format=last)

    def call_last() -> Any:
        padded = functional.pad(image_last, (k // 2, (k - 1) // 2) * 2, mode="reflect")
        return functional.conv2d(functional.conv2d(padded, across_last), down_last)

    yield Contender("torch_channels_last", call_last, read=read, intermediate=narrow)


def _cupy(case: Separable, inputs: Data) -> Iterator[Contender | Refused]:
    cupy = optional("cupy")
    if cupy is None or DEVICE != "cuda":
        yield Refused("cupy", "not installed, or no GPU")
        return
    yield from _ndimage("cupy", optional("cupyx.scipy.ndimage"), case, inputs)
    signal = optional("cupyx.scipy.signal")
    planes = inputs.image.shape[1]
    if signal is None or planes != 1 or case.rank != 1 or case.dtype != "float32":
        yield Refused("cupy_sepfir2d", "one float32 image, one term only")
        return
    image = cupy.asarray(inputs.image[0, 0])
    row, column = cupy.asarray(inputs.rows[0]), cupy.asarray(inputs.columns[0])
    yield Contender(
        "cupy_sepfir2d",
        lambda: signal.sepfir2d(image, row, column),
        read=lambda y: torch.as_tensor(y, device=DEVICE).reshape(inputs.out_shape),
        border="symmetric",
    )


def _cucim(case: Separable, inputs: Data) -> Iterator[Contender | Refused]:
    ndimage = optional("cucim.skimage._vendored.ndimage")
    if ndimage is None or DEVICE != "cuda":
        yield Refused("cucim", "not installed, or no GPU")
        return
    yield from _ndimage("cucim", ndimage, case, inputs)


def _ndimage(
    name: str, ndimage: Any, case: Separable, inputs: Data
) -> Iterator[Contender | Refused]:
    cupy = optional("cupy")
    if cupy is None or ndimage is None or case.rank != 1:
        yield Refused(name, "not installed" if ndimage is None else "one term only")
        return
    out = torch.empty_like(inputs.image)
    image, target = cupy.asarray(inputs.image[0]), cupy.asarray(out[0])
    inner = cupy.empty_like(image)
    row, column = cupy.asarray(inputs.rows[0]), cupy.asarray(inputs.columns[0])

    def call() -> Any:
        ndimage.convolve1d(image, column, axis=-2, output=inner, mode="mirror")
        ndimage.convolve1d(inner, row, axis=-1, output=target, mode="mirror")
        return out

    # Integer images: the intermediate and the result are truncated to the image's dtype.
    levels = 1.5 if case.dtype == "uint8" else 0.0
    narrow = case.dtype if case.dtype == "float16" else None
    yield Contender(name, call, read=_same, out=out, levels=levels, intermediate=narrow)


def _opencv(case: Separable, inputs: Data) -> Iterator[Contender | Refused]:
    cv2 = optional("cv2")
    if cv2 is None or DEVICE != "cuda" or not hasattr(cv2, "cuda_GpuMat"):
        yield Refused("opencv_cuda", "not built with CUDA here")
        return
    if cv2.cuda.getCudaEnabledDeviceCount() == 0:
        yield Refused("opencv_cuda", "not built with CUDA here")
        return
    kinds = {"float32": cv2.CV_32FC1, "uint8": cv2.CV_8UC1}
    if case.taps > 31 or case.rank != 1 or inputs.image.shape[1] != 1 or case.dtype not in kinds:
        yield Refused("opencv_cuda", "one float32 or uint8 image, one term, at most 32 taps")
        return
    kind = kinds[case.dtype]
    border = cv2.BORDER_REFLECT_101
    taps = inputs.rows[0], inputs.columns[0]
    both = cv2.cuda.createSeparableLinearFilter(kind, kind, *taps, (-1, -1), border, border)
    image = cv2.cuda_GpuMat()
    image.upload(inputs.image[0, 0].cpu().numpy())
    target = cv2.cuda_GpuMat(*image.size()[::-1], kind)

    def read(_: Any) -> Any:
        return torch.from_numpy(target.download()).to(DEVICE).reshape(inputs.out_shape)

    yield Contender("opencv_cuda", lambda: both.apply(image, target), read=read, levels=1.0)


def _jax(case: Separable, inputs: Data) -> Iterator[Contender | Refused]:
    jax = optional("jax")
    if jax is None or case.dtype == "uint8" or case.rank != 1:
        yield Refused("jax", "not installed" if jax is None else "floating, one term only")
        return
    if not any(part in case.name for part in XLA):
        return
    numpy = optional("jax.numpy")
    planes = inputs.image.reshape(-1, 1, *inputs.image.shape[-2:])
    if planes.numel() > 2**27:
        yield Refused("jax", "left out above 2**27 elements: it reserves memory of its own")
        return
    image = jax.device_put(planes.cpu().numpy())
    k = case.taps
    across = numpy.asarray(inputs.rows[0][::-1].astype(case.dtype)).reshape(1, 1, 1, k)
    down = numpy.asarray(inputs.columns[0][::-1].astype(case.dtype)).reshape(1, 1, k, 1)
    highest = jax.lax.Precision.HIGHEST

    @jax.jit
    def both(x: Any) -> Any:
        border = (k // 2, (k - 1) // 2)
        padded = numpy.pad(x, ((0, 0), (0, 0), border, border), mode="reflect")
        inner = jax.lax.conv(padded, across, (1, 1), "VALID", precision=highest)
        return jax.lax.conv(inner, down, (1, 1), "VALID", precision=highest)

    def read(y: Any) -> Any:
        return torch.from_numpy(np.array(y)).to(DEVICE).reshape(inputs.out_shape)

    narrow = case.dtype if case.dtype == "float16" else None
    yield Contender(
        "jax", lambda: both(image).block_until_ready(), read, intermediate=narrow, host_timed=True
    )


# Depthwise, pointwise and both -------------------------------------------------------------------


def _numbasep_layer(case: Channelwise, inputs: Data) -> Iterator[Contender | Refused]:
    import numbasep

    if not hasattr(numbasep, FUNCTIONS[case.op]):
        yield Refused("numbasep", f"has no {FUNCTIONS[case.op]}")
        return
    planar = case.layout == "NCHW"
    image = inputs.image if planar else inputs.image.permute(0, 2, 3, 1).contiguous()
    n, channels, height, width = case.out_shape
    shape = case.out_shape if planar else (n, height, width, channels)
    out = torch.empty(shape, dtype=image.dtype, device=DEVICE)
    # Host arrays: numbasep keeps their copies on the device.
    weight = None if inputs.taps is None else inputs.taps[:, None].cpu().contiguous()
    matrix = None if inputs.mix is None else inputs.mix[:, :, None, None].cpu().contiguous()
    step = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}

    def run(**more: Any) -> Any:
        settings = {"layout": case.layout, "out": out, "backend": BACKEND, **more}
        if weight is None:
            numbasep.pointwise_conv2d(image, matrix, **settings)
        elif matrix is None:
            numbasep.depthwise_conv2d(image, weight, **step, **settings)
        else:
            numbasep.depthwise_separable_conv2d(image, weight, matrix, **step, **settings)
        return out

    def read(y: Any) -> Any:
        return y if planar else y.permute(0, 3, 1, 2)

    # A fused kernel may keep the depthwise tile in the image's own dtype.
    narrow = case.dtype if case.dtype == "float16" and case.op == "fused" else None
    yield Contender("numbasep", run, read=read, out=out, intermediate=narrow)
    if case.op != "depthwise" and case.dtype == "float32" and BACKEND == "cuda":
        tf32 = partial(run, precision="tf32")
        yield Contender("numbasep_tf32", tf32, read=read, out=out, precision="tf32")
    if case.op == "fused":
        unfused = partial(run, fuse=False)
        yield Contender("numbasep_unfused", unfused, read=read, out=out, intermediate=narrow)


def _torch_layer(case: Channelwise, inputs: Data) -> Iterator[Contender | Refused]:
    conv2d = torch.nn.functional.conv2d
    narrow = case.dtype if case.dtype == "float16" and case.op == "fused" else None
    for name, memory in (
        ("torch", torch.contiguous_format),
        ("torch_channels_last", torch.channels_last),
    ):
        if case.layout == "NHWC" and name == "torch":
            continue
        image = inputs.image.contiguous(memory_format=memory)
        weight = matrix = None
        if inputs.taps is not None:
            weight = inputs.taps[:, None].contiguous(memory_format=memory)
        if inputs.mix is not None:
            matrix = inputs.mix[:, :, None, None].contiguous(memory_format=memory)
        step = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
        groups = case.shape[1]

        def layer(
            image: Any, weight: Any, matrix: Any, step: Any = step, groups: int = groups
        ) -> Any:
            y = image
            if weight is not None:
                y = conv2d(y, weight, groups=groups, **step)
            return y if matrix is None else conv2d(y, matrix)

        def exact(image: Any = image, weight: Any = weight, matrix: Any = matrix) -> Any:
            allow_tf32(False)
            return layer(image, weight, matrix)

        def rounded(image: Any = image, weight: Any = weight, matrix: Any = matrix) -> Any:
            allow_tf32(True)
            return layer(image, weight, matrix)

        yield Contender(name, exact, read=_same, intermediate=narrow)
        if case.op != "depthwise" and case.dtype == "float32" and DEVICE == "cuda":
            yield Contender(f"{name}_tf32", rounded, read=_same, precision="tf32_truncated")
        if name != "torch" or not _compiled(case):
            continue
        if not _compiler_works():
            yield Refused(f"{name}_compile", "torch.compile does not work here")
            continue
        fast = torch.compile(layer)

        def compiled(
            image: Any = image, weight: Any = weight, matrix: Any = matrix, fast: Any = fast
        ) -> Any:
            allow_tf32(False)
            return fast(image, weight, matrix)

        yield Contender(f"{name}_compile", compiled, read=_same)


def _cublas(case: Channelwise, inputs: Data) -> Iterator[Contender | Refused]:
    if case.op != "pointwise":
        return
    n, c, height, width = case.shape
    if case.layout == "NCHW":
        flat = inputs.image.reshape(n, c, -1)
        # One product per image, the weights broadcast: no copy of them is made.
        weights = inputs.mix.expand(n, -1, -1)

        def call() -> Any:
            allow_tf32(False)
            return torch.bmm(weights, flat)

        def read(y: Any) -> Any:
            return y.reshape(case.out_shape)

        yield Contender("cublas", call, read=read)
        if case.dtype == "float32" and DEVICE == "cuda":

            def rounded() -> Any:
                allow_tf32(True)
                return torch.bmm(weights, flat)

            yield Contender("cublas_tf32", rounded, read=read, precision="tf32_truncated")
        return
    pixels = inputs.image.permute(0, 2, 3, 1).reshape(-1, c)
    transposed = inputs.mix.t().contiguous()

    def call_nhwc() -> Any:
        allow_tf32(False)
        return torch.mm(pixels, transposed)

    def read_nhwc(y: Any) -> Any:
        return y.reshape(n, height, width, -1).permute(0, 3, 1, 2)

    yield Contender("cublas", call_nhwc, read=read_nhwc)


SEPARABLE: tuple[Callable[..., Iterator[Contender | Refused]], ...] = (
    _numbasep, _torch, _cupy, _cucim, _opencv, _jax,
)  # fmt: skip
LAYERS: tuple[Callable[..., Iterator[Contender | Refused]], ...] = (
    _numbasep_layer, _torch_layer, _cublas,
)  # fmt: skip
