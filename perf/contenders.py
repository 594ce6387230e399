"""Who takes part on the host: numbasep and its peers, each called as its own users would.

Every contender of a case is given the same input arrays and, where it takes one, a preallocated
output; the time of those that do not (torch, onnxruntime, two-pass scipy's intermediate) includes
their allocation, as it does for their users. All run on the same number of threads.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from perf import reference
from perf.cases import Case, Channelwise, Separable
from perf.timing import Verdict, poison, verdict

Array = np.ndarray[Any, Any]
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    call: computes it once. read: call's return value as an array (on a GPU: a tensor) of the
        case's output shape.
    out: the preallocated output, poisoned before the check; None where call allocates.
    precision, intermediate, levels: what the check allows, see ``reference.bound``.
    floor: True for a memory floor, which computes nothing and is not checked.
    border: what it mirrors: "reflect" (about the outermost pixel), or "symmetric" for a peer that
        knows only the other one (GPU only); as in ``np.pad``.
    host_timed: True where events of the GPU's default stream do not see its work (JAX).
    """

    name: str
    call: Callable[[], Any]
    read: Callable[[Any], Any] = np.asarray
    out: Any = None
    precision: str = "float32"
    intermediate: str | None = None
    levels: float = 0.0
    floor: bool = False
    border: str = "reflect"
    host_timed: bool = False


@dataclass(frozen=True)
class Refused:
    """A contender that does not take part in a case, and why."""

    name: str
    reason: str


def optional(name: str) -> Any:
    """Import a peer, or return None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def gaussian_taps(taps: int) -> Array:
    """Return normalised, exactly symmetric Gaussian taps, float32, sigma a sixth of the length."""
    offsets = np.arange(taps) - (taps - 1) / 2
    values = np.exp(-0.5 * (offsets / (taps / 6)) ** 2)
    values = (values + values[::-1]) / 2
    return (values / values.sum()).astype(np.float32)


def separable_data(case: Separable) -> tuple[Array, Array, Array]:
    """Return x, columns (R, k) and rows (R, k) of a case.

    Symmetric taps: the peers that have a faster path for those (OpenCV, 3 and 5 taps) take it.
    """
    rng = np.random.default_rng(20240517)
    if case.dtype == "uint8":
        x: Array = rng.integers(0, 256, case.shape, dtype=np.uint8)
    elif case.dtype == "float64":
        x = rng.standard_normal(case.shape)
    else:
        x = rng.standard_normal(case.shape, dtype=np.float32).astype(case.dtype)
    return (x, *separable_taps(case))


def separable_taps(case: Separable) -> tuple[Array, Array]:
    """Return columns (R, k) and rows (R, k) of a case, float64 for a float64 case, else float32."""
    taps = np.stack([gaussian_taps(case.taps)] * case.rank)
    columns, rows = taps.copy(), taps
    for r in range(1, case.rank):
        # Further terms: the Gaussian modulated, signs and sizes as in a Gabor or a disk.
        wave = np.cos(np.pi * r * (np.arange(case.taps) - (case.taps - 1) / 2) / case.taps)
        columns[r] *= wave.astype(np.float32)
    if case.dtype == "float64":
        return columns.astype(np.float64), rows.astype(np.float64)
    return columns, rows


def check(case: Case, contender: Contender, expected: tuple[Array, Array]) -> Verdict:
    """Run a contender once on a poisoned output and compare with the float64 reference."""
    if contender.out is not None:
        poison(contender.out)
    result = contender.read(contender.call())
    allowed = reference.bound(
        case, *expected, contender.precision, contender.intermediate, contender.levels
    )
    return verdict(result, expected[0], allowed)


# Separable ---------------------------------------------------------------------------------------


def separable(case: Separable) -> list[Contender | Refused]:
    """Return the contenders of a case, numbasep first."""
    x, columns, rows = separable_data(case)
    wide = "float64" if case.dtype == "float64" else "float32"
    found: list[Contender | Refused] = []
    for make in (_numbasep, _opencv, _scipy, _torch, _copy):
        found.extend(make(case, x, columns, rows, wide))
    return found


def _numbasep(
    case: Separable, x: Array, columns: Array, rows: Array, wide: str, backend: str = "cpu"
) -> Iterator[Contender | Refused]:
    numbasep = optional("numbasep")
    if not hasattr(numbasep, "separable_conv2d"):
        yield Refused("numbasep", "has no separable_conv2d")
        return
    out = np.empty_like(x)
    kernel = (columns[0], rows[0]) if case.rank == 1 else (columns, rows)
    yield Contender(
        "numbasep",
        lambda: numbasep.separable_conv2d(x, kernel, boundary="mirror", out=out, backend=backend),
        out=out,
        precision=wide,
    )


# scipy's intermediate and result are truncated, not rounded, to the image's dtype.
SCIPY_LEVELS = 1.5


def _opencv(
    case: Separable, x: Array, columns: Array, rows: Array, wide: str
) -> Iterator[Contender | Refused]:
    cv2 = optional("cv2")
    if cv2 is None or case.rank != 1:
        yield Refused("opencv", "not installed" if cv2 is None else "one term only")
        return
    cv2.setNumThreads(THREADS)
    out = np.empty_like(x)
    images = x.reshape(-1, *x.shape[-2:])
    outs = out.reshape(-1, *x.shape[-2:])
    # OpenCV correlates; the taps are symmetric.
    column, row = columns[0], rows[0]

    def one(i: int) -> None:
        cv2.sepFilter2D(images[i], -1, row, column, dst=outs[i], borderType=cv2.BORDER_REFLECT_101)

    def loop() -> Array:
        for i in range(len(images)):
            one(i)
        return out

    yield Contender("opencv", loop, out=out, precision=wide)
    if len(images) > 1:
        pool = ThreadPoolExecutor(THREADS)

        def pooled() -> Array:
            cv2.setNumThreads(1)
            list(pool.map(one, range(len(images))))
            cv2.setNumThreads(THREADS)
            return out

        yield Contender("opencv_pool", pooled, out=out, precision=wide)


def _scipy(
    case: Separable, x: Array, columns: Array, rows: Array, wide: str
) -> Iterator[Contender | Refused]:
    from scipy import ndimage

    if case.rank != 1:
        yield Refused("scipy", "one term only")
        return
    inner, out = np.empty_like(x), np.empty_like(x)

    def call() -> Array:
        ndimage.convolve1d(x, columns[0], axis=-2, output=inner, mode="mirror")
        ndimage.convolve1d(inner, rows[0], axis=-1, output=out, mode="mirror")
        return out

    levels = SCIPY_LEVELS if case.dtype == "uint8" else 0.0
    yield Contender("scipy", call, out=out, precision=wide, levels=levels)


def _torch(
    case: Separable, x: Array, columns: Array, rows: Array, wide: str
) -> Iterator[Contender | Refused]:
    torch = optional("torch")
    if torch is None or case.dtype == "uint8" or case.rank != 1:
        reason = "not installed" if torch is None else "no uint8 convolution, one term"
        yield Refused("torch", reason)
        return
    if case.dtype == "float64" and case.bytes // 2 * case.taps > 2**31:
        yield Refused("torch", "its float64 path unfolds the image to more than 2 GiB")
        return
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    pad_and_convolve = torch.nn.functional
    image = torch.from_numpy(x if x.ndim == 4 else x[None, None])
    channels, k = image.shape[1], case.taps
    across = torch.from_numpy(rows[0].copy()).reshape(1, 1, 1, k).repeat(channels, 1, 1, 1)
    down = torch.from_numpy(columns[0].copy()).reshape(1, 1, k, 1).repeat(channels, 1, 1, 1)

    def call() -> Any:
        padded = pad_and_convolve.pad(image, (k // 2,) * 4, mode="reflect")
        inner = pad_and_convolve.conv2d(padded, across, groups=channels)
        return pad_and_convolve.conv2d(inner, down, groups=channels)

    yield Contender("torch", call, read=lambda y: y.numpy().reshape(x.shape), precision=wide)


def _copy(
    case: Separable, x: Array, columns: Array, rows: Array, wide: str
) -> Iterator[Contender | Refused]:
    out = np.empty_like(x)
    yield Contender("copyto", lambda: np.copyto(out, x), out=out, floor=True)


# Depthwise, pointwise and both -------------------------------------------------------------------


def channelwise(case: Channelwise) -> list[Contender | Refused]:
    """Return the contenders of a layer, numbasep first."""
    x, taps, mix = layer_data(case)
    found: list[Contender | Refused] = []
    for make in (_numbasep_layer, _torch_layer, _onnxruntime_layer, _matmul_layer):
        found.extend(make(case, x, taps, mix))
    return found


def layer_data(case: Channelwise) -> tuple[Array, Array | None, Array | None]:
    """Return x (N, C, H, W), depthwise taps (C, kh, kw) and pointwise weights (C out, C)."""
    rng = np.random.default_rng(20240517)

    def normal(*shape: int) -> Array:
        values: Array = rng.standard_normal(shape, dtype=np.float32).astype(case.dtype)
        return values

    c = case.shape[1]
    return (
        normal(*case.shape),
        None if case.op == "pointwise" else normal(c, *case.kernel),
        None if case.op == "depthwise" else normal(case.out_channels, c),
    )


FUNCTIONS = {
    "separable": "separable_conv2d",
    "depthwise": "depthwise_conv2d",
    "pointwise": "pointwise_conv2d",
    "fused": "depthwise_separable_conv2d",
}


def _nchw(y: Array) -> Array:
    return np.ascontiguousarray(y.transpose(0, 3, 1, 2))


def _numbasep_layer(
    case: Channelwise, x: Array, taps: Array | None, mix: Array | None, backend: str = "cpu"
) -> Iterator[Contender | Refused]:
    numbasep = optional("numbasep")
    if not hasattr(numbasep, FUNCTIONS[case.op]):
        yield Refused("numbasep", f"has no {FUNCTIONS[case.op]}")
        return
    planar = case.layout == "NCHW"
    image = x if planar else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    n, channels, height, width = case.out_shape
    out = np.empty(case.out_shape if planar else (n, height, width, channels), x.dtype)
    settings: dict[str, Any] = {"layout": case.layout, "out": out, "backend": backend}
    step = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    weight = None if taps is None else taps[:, None]
    matrix = None if mix is None else mix[:, :, None, None]

    def call() -> Any:
        if weight is None:
            return numbasep.pointwise_conv2d(image, matrix, **settings)
        if matrix is None:
            return numbasep.depthwise_conv2d(image, weight, **step, **settings)
        return numbasep.depthwise_separable_conv2d(image, weight, matrix, **step, **settings)

    # A fused kernel may keep the depthwise tile in the image's own dtype.
    narrow = case.dtype if case.dtype == "float16" and case.op == "fused" else None
    read = np.asarray if planar else _nchw
    yield Contender("numbasep", call, read=read, out=out, intermediate=narrow)


def _torch_layer(
    case: Channelwise, x: Array, taps: Array | None, mix: Array | None
) -> Iterator[Contender | Refused]:
    torch = optional("torch")
    if torch is None:
        yield Refused("torch", "not installed")
        return
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    conv2d = torch.nn.functional.conv2d
    for name, memory in (
        ("torch", torch.contiguous_format),
        ("torch_channels_last", torch.channels_last),
    ):
        if case.layout == "NHWC" and name == "torch":
            continue
        image = torch.from_numpy(x).contiguous(memory_format=memory)
        weight = matrix = None
        if taps is not None:
            weight = torch.from_numpy(taps)[:, None].contiguous(memory_format=memory)
        if mix is not None:
            matrix = torch.from_numpy(mix)[:, :, None, None].contiguous(memory_format=memory)

        def call(image: Any = image, weight: Any = weight, matrix: Any = matrix) -> Any:
            y = image
            if weight is not None:
                y = conv2d(
                    y,
                    weight,
                    stride=case.stride,
                    padding=case.padding,
                    dilation=case.dilation,
                    groups=case.shape[1],
                )
            return y if matrix is None else conv2d(y, matrix)

        yield Contender(name, call, read=lambda y: y.contiguous().numpy())


def _onnxruntime_layer(
    case: Channelwise, x: Array, taps: Array | None, mix: Array | None
) -> Iterator[Contender | Refused]:
    if case.layout == "NHWC":
        return
    runtime, onnx = optional("onnxruntime"), optional("onnx")
    if runtime is None or onnx is None:
        yield Refused("onnxruntime", "not installed")
        return
    make = onnx.helper
    single = onnx.TensorProto.FLOAT
    nodes, weights, last = [], [], "x"
    if taps is not None:
        c, kh, kw = taps.shape
        weights.append(make.make_tensor("taps", single, [c, 1, kh, kw], taps.tobytes(), raw=True))
        nodes.append(
            make.make_node(
                "Conv",
                [last, "taps"],
                ["middle"],
                group=c,
                kernel_shape=[kh, kw],
                pads=[case.padding] * 4,
                strides=[case.stride] * 2,
                dilations=[case.dilation] * 2,
            )
        )
        last = "middle"
    if mix is not None:
        weights.append(make.make_tensor("mix", single, [*mix.shape, 1, 1], mix.tobytes(), raw=True))
        nodes.append(make.make_node("Conv", [last, "mix"], ["y"], kernel_shape=[1, 1]))
        last = "y"
    graph = make.make_graph(
        nodes,
        case.op,
        [make.make_tensor_value_info("x", single, list(x.shape))],
        [make.make_tensor_value_info(last, single, list(case.out_shape))],
        weights,
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    # Its threads would spin into the next contender's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    yield Contender("onnxruntime", lambda: session.run(None, {"x": x})[0])


def _matmul_layer(
    case: Channelwise, x: Array, taps: Array | None, mix: Array | None
) -> Iterator[Contender | Refused]:
    if case.op != "pointwise" or mix is None:
        return
    n, c, height, width = case.shape
    if case.layout == "NCHW":
        flat, out = x.reshape(n, c, -1), np.empty(case.out_shape, np.float32)
        target = out.reshape(n, case.out_channels, -1)
        yield Contender("matmul", lambda: (np.matmul(mix, flat, out=target), out)[1], out=out)
        return
    pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(-1, c)
    matrix = np.ascontiguousarray(mix.T)
    out = np.empty((n, height, width, case.out_channels), np.float32)
    target = out.reshape(-1, case.out_channels)
    yield Contender(
        "matmul", lambda: (np.matmul(pixels, matrix, out=target), out)[1], read=_nchw, out=out
    )


def expected(case: Case) -> tuple[Array, Array]:
    """Return the float64 reference and scale of any host case."""
    if isinstance(case, Separable):
        return reference.separable(*separable_data(case))
    return reference.channelwise(case, *layer_data(case))


def numbasep_alone(case: Case, backend: str) -> Contender | Refused:
    """Return numbasep as the only contender of a case, on a named backend, from host arrays."""
    if isinstance(case, Separable):
        wide = "float64" if case.dtype == "float64" else "float32"
        return next(_numbasep(case, *separable_data(case), wide, backend))
    return next(_numbasep_layer(case, *layer_data(case), backend))


def of(case: Case) -> list[Contender | Refused]:
    """Return the contenders of any host case, numbasep first."""
    return separable(case) if isinstance(case, Separable) else channelwise(case)
