"""Separable convolution of images: ``separable_conv2d``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import arrays, devices, lazy, nvtx, views
from numbasep.boundary import NAMES as BOUNDARIES
from numbasep.known import Known
from numbasep.plan import bands as bands_planner
from numbasep.plan import checks
from numbasep.plan import spatial as planner
from numbasep.plan.geometry import SpatialPlan
from numbasep.plan.spatial import Buffer, Spatial
from numbasep.taps import Taps, resolve
from numbasep.taps import key as taps_key
from numbasep.views import Device

Array = NDArray[Any]


def separable_conv2d(
    x: Any,
    kernel: Any,
    *,
    mode: str = "same",
    boundary: str = "fill",
    fillvalue: complex = 0,
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    axes: tuple[int, int] = (-2, -1),
    dtype: Any = None,
    out: Any = None,
    backend: str | None = None,
    stream: Any = None,
) -> Any:
    """Convolve each image of an array with a 2-D kernel that is a sum of separable ones.

    Equal to ``scipy.signal.convolve2d(image, K, mode, boundary, fillvalue)[::stride, ::stride]``
    for every image of ``x``, where ``K`` is the dense kernel. Like it, this convolves (the kernel
    is flipped); ``torch.nn.functional.conv2d`` correlates. The rows of the sum are computed in one
    pass over the image, and the intermediate of the two 1-D passes never reaches memory.

    Parameters
    ----------
    x : array of shape (..., H, W)
        Images: any number of leading axes, or any two spatial axes, see ``axes``. Integers,
        float16, bfloat16, float32, float64 or complex. NumPy, PyTorch, JAX, CuPy, Numba's device
        arrays, or anything with DLPack or ``__cuda_array_interface__``; where it is, without a
        copy. Read in place where the spatial axes stand as in planar, interleaved (H, W, C) or
        Fortran-ordered images; copied first otherwise.
    kernel : SeparableKernel, pair of taps, or dense array of shape (kh, kw)
        Factors from ``numbasep.factorise``; or a tuple ``(column_taps, row_taps)`` of shapes (kh,)
        and (kw,), with ``K = outer(column_taps, row_taps)``, or (R, kh) and (R, kw) for a sum of R
        such terms; or ``K`` itself, which is factorised to its own precision, or convolved
        directly where that costs less.
    mode : "full", "valid" or "same"
        As in ``scipy.signal.convolve2d``: H + kh - 1, |H - kh| + 1, or H rows.
    boundary : "fill", "wrap", "symm", "nearest" or "mirror"
        What stands outside the image: the first three as in ``scipy.signal.convolve2d``, the
        others as in ``scipy.ndimage``. A kernel may be longer than the image.
    fillvalue : number, default 0
        The value outside the image for ``boundary="fill"``, exact in both passes.
    stride : int or (int, int), default 1
        Step between outputs, in elements: every stride-th row and column of the result.
    dilation : int or (int, int), default 1
        Step between taps, in elements: the kernel with dilation - 1 zeros between its taps, and
        its extent ``(k - 1) * dilation + 1`` in place of k in the shapes above.
    axes : (int, int), default (-2, -1)
        The vertical and the horizontal axis of ``x``; the others are batch axes. (0, 1) for one
        image of shape (H, W, C).
    dtype : dtype, optional
        Of the result. By default that of a floating ``x``; for an integer ``x``, integer taps give
        the exact sums as int32 (int64 for 32-bit integers and wider), other taps float32
        (float64). A narrower dtype rounds once (integers: half to even, saturating, NaN to 0).
    out : array, optional
        Where the result goes; may overlap ``x``. Of ``x``'s library and device.
    backend : "cpu" or "cuda", optional
        By default where ``x`` is. "cuda" with a host array copies it to the device and back; a
        large one (64 MiB with its result) in bands, of which one is copied while another is
        computed, so that it may be larger than the device's memory.
    stream : optional
        The CUDA stream to run on: of numba.cuda, cuda.core, CuPy or PyTorch, or its handle as an
        integer (1: the legacy default stream, 2: the thread's own). By default the one on which
        ``x``'s library works. A call between device arrays never waits for the device.

    Returns
    -------
    array
        Of ``x``'s kind, with the two spatial axes replaced by the mode's sizes divided by
        ``stride``, rounded up. A Numba device array where ``x`` is on a device and its library is
        none of those named above.

    Raises
    ------
    ValueError, TypeError
        An argument is wrong; the message names it. Nothing is computed, ``out`` is untouched.
    MemoryError
        The device has no room for one row's band of a host array. (Where smaller bands than planned
        have room, the result is the same, and a RuntimeWarning says so.)

    Notes
    -----
    Against exact arithmetic each element of the result is within ``gamma(n) * s`` with
    ``gamma(n) = n u / (1 - n u)``, ``n = kh + kw + R + 1``, ``u`` the unit roundoff of the
    accumulator (float32 for float16, bfloat16, float32 and 8- and 16-bit integers; else float64)
    and ``s`` the convolution of ``|x|`` with ``sum_r |column_r| |row_r|``, plus one rounding to
    the result's dtype (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    if lazy.is_dask(x):
        return lazy.separable_conv2d(
            x, kernel, mode=mode, boundary=boundary, fillvalue=fillvalue, stride=stride,
            dilation=dilation, axes=axes, dtype=dtype, out=out, backend=backend, stream=stream,
        )  # fmt: skip
    options = mode, boundary, fillvalue, stride, dilation, axes, dtype
    with nvtx.range("numbasep.separable_conv2d"):
        device = devices.kind_of(x)
        if device is not None:
            return _between(device, x, kernel, options, out, backend, stream)
        return _on_host(x, kernel, options, out, backend, stream)


def _on_host(
    x: Any, kernel: object, options: tuple[Any, ...], out: Any, backend: Any, stream: Any
) -> Any:
    """Compute a call between host arrays, on either backend."""
    image, kind = arrays.adopt("x", x)
    place = None
    if out is not None:
        devices.refuse("out", out, "and x is in host memory; pass a host array, or move x there")
        place, place_kind = arrays.adopt("out", out)
        arrays.check_kinds(kind.name, place_kind.name)
    key = _key(kind.name, image, kernel, options, place, backend) if stream is None else None
    known = None if key is None else _repeats.get(key)
    if known is None or (place is not None and np.may_share_memory(image, place)):
        result = _first(key, kind.name, image, kernel, options, place, backend, stream)
    else:
        arrays.check_wrap(kind.name, checks.name_of(known.dtype))
        result = np.empty(known.shape, known.dtype) if place is None else place
        known.call(image, result)
    return kind.wrap(result) if out is None else out


def _first(
    key: Hashable,
    library: str,
    image: Array,
    kernel: object,
    options: tuple[Any, ...],
    place: Array | None,
    backend: Any,
    stream: Any,
) -> Array:
    """Check, plan and compute a call between host arrays; keep what the next one like it needs."""
    mode, boundary, fillvalue, stride, dilation, axes, dtype = options
    call = prepare(
        image,
        kernel,
        mode=mode,
        boundary=boundary,
        fillvalue=fillvalue,
        stride=stride,
        dilation=dilation,
        axes=axes,
        dtype=dtype,
        out=place,
        backend=backend,
        stream=stream,
    )
    arrays.check_wrap(library, call.spatial.dtype)
    result = run(call, image, place, stream)
    if key is not None:
        repeat = _repeat(call, image, result)
        if repeat is not None:
            _repeats.put(key, repeat)
    return result


@dataclass(frozen=True, slots=True)
class Repeat:
    """A call on the CPU between C-contiguous arrays that needs no check and no plan again."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    call: Callable[[Array, Array], None]


# To check and plan a call takes longer than to filter a small image.
_repeats: Known[Repeat] = Known()


def _key(
    library: str,
    image: Array,
    kernel: object,
    options: tuple[Any, ...],
    place: Array | None,
    backend: object,
) -> Hashable:
    """Return all that tells a call from others but its elements; None where it is not repeated."""
    flags = image.flags
    if not (flags.c_contiguous and flags.aligned):
        return None
    written = None
    if place is not None:
        there = place.flags
        if not (there.c_contiguous and there.aligned and there.writeable):
            return None
        written = place.shape, place.dtype
    key = (
        image.shape, image.dtype, written, options, checks.types(options), taps_key(kernel),
        backend, library,
    )  # fmt: skip
    try:
        hash(key)
    except TypeError:
        # Something without a hash: a list, or an argument that the checks refuse.
        return None
    return key


def _repeat(call: Call, image: Array, result: Array) -> Repeat | None:
    """Return a computed call to be made again, if the kernels took its arrays as they are."""
    spatial, problem = call.spatial, call.spatial.problem
    taken = (
        call.backend == "cpu"
        and spatial.largest is None
        and not spatial.layout.copied
        and spatial.layout.plain
        and spatial.dtype == problem.output
        and (problem.rank > 0 or problem.direct)
        and result.size > 0
        and image.dtype.isnative
        and result.dtype.isnative
        and result.flags.c_contiguous
    )
    if not taken:
        return None
    plane = problem.y.size * problem.x.size * problem.channels
    planes = image.nbytes // (plane * np.dtype(problem.storage).itemsize)
    taps = call.taps.prepared(problem.compute, spatial.layout.swapped)
    return Repeat(
        result.shape, result.dtype, _separable().dense_call(replace(problem, planes=planes), taps)
    )


def _options(
    mode: object,
    boundary: object,
    fillvalue: object,
    stride: object,
    dilation: object,
    axes: object,
    dtype: object,
    *,
    ndim: int,
) -> tuple[Any, ...]:
    """Check the arguments that need nothing but themselves."""
    return (
        checks.choice("mode", mode, planner.MODES),
        checks.choice("boundary", boundary, BOUNDARIES),
        checks.scalar("fillvalue", fillvalue),
        checks.pair("stride", stride, 1),
        checks.pair("dilation", dilation, 1),
        checks.axes("axes", axes, ndim),
        None if dtype is None else checks.dtype("dtype", dtype),
    )


@lru_cache(maxsize=1024)
def _checked(options: tuple[Any, ...], kinds: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """``kinds`` are the options' types: 1, 1.0 and True are equal keys, and not equally right."""
    return _options(*options, ndim=ndim)


@dataclass(frozen=True, slots=True)
class Call:
    """A checked call: its taps, its plan, where it runs."""

    taps: Taps
    spatial: Spatial
    backend: str


def prepare(
    x: Array | Buffer | Device,
    kernel: object,
    *,
    mode: object = "same",
    boundary: object = "fill",
    fillvalue: object = 0,
    stride: object = 1,
    dilation: object = 1,
    axes: object = (-2, -1),
    dtype: object = None,
    out: Array | Device | None = None,
    backend: object = None,
    stream: object = None,
) -> Call:
    """Check every argument of ``separable_conv2d`` and plan the call."""
    image = arrays.describe("x", x)
    if len(image.shape) < 2:
        raise ValueError(
            f"x: an array of shape {image.shape} arrived; pass at least two dimensions, (..., H, W)"
        )
    where = "cuda" if isinstance(x, Device) else "cpu"
    if backend is not None:
        where = checks.choice("backend", backend, planner.BACKENDS)
    if stream is not None and where == "cpu":
        raise ValueError("stream: a stream arrived and the call runs on the CPU; leave it out")
    taps = resolve(kernel)
    if dtype is None and out is not None:
        dtype = out.dtype
    options = mode, boundary, fillvalue, stride, dilation, axes, dtype
    try:
        checked = _checked(options, checks.types(options), len(image.shape))
    except TypeError:
        # Something without a hash: a list, or an argument that the checks refuse.
        checked = _options(*options, ndim=len(image.shape))
    spatial = planner.plan(image, taps.info, *checked)
    if out is not None:
        arrays.check_out(out, spatial.shape, spatial.dtype)
    return Call(taps, spatial, where)


def run(call: Call, x: Array, out: Array | None, stream: Any) -> Array:
    """Compute a prepared call."""
    spatial = call.spatial
    problem = spatial.problem
    taps = call.taps.prepared(problem.compute, spatial.layout.swapped)
    if spatial.largest is not None:
        _check_range(x, spatial.largest)
    direct_out = out is not None and (
        (_stands(spatial, out) or spatial.takes(arrays.describe("out", out)))
        and not np.may_share_memory(x, out)
    )
    result = (
        out
        if out is not None and direct_out
        else views.empty(spatial.shape, spatial.dtype, spatial.order)
    )
    if problem.rank == 0 and not problem.direct:
        result[...] = 0
    elif result.size:
        image = x.view(np.uint8) if x.dtype == np.bool_ else x
        large = call.backend == "cuda" and bands_planner.large(bands_planner.whole(problem))
        if spatial.layout.copied and not (large and x.dtype.isnative):
            image = views.contiguous(image, spatial.layout.order)
        if x.ndim == 2 and _stands(spatial, result) and spatial.dtype == problem.output:
            images, outs = image[None, ..., None], result[None, ..., None]
        else:
            images, outs = views.loops(
                views.as_images(image, spatial.layout, problem.storage),
                views.as_images(result, spatial.layout, problem.output),
            )
        if images.shape[-4] != problem.planes:
            problem = replace(problem, planes=images.shape[-4])
        if call.backend == "cuda":
            _through_device(problem, images, outs, taps, stream, large)
        elif images.ndim == 4:
            _on_cpu(problem, images, outs, taps)
        else:
            for index in np.ndindex(images.shape[:-4]):
                _on_cpu(problem, images[index], outs[index], taps)
    if out is not None and result is not out:
        np.copyto(out, result)
        return out
    return result


def _stands(spatial: Spatial, out: Array) -> bool:
    """Whether the result is plainly where the kernels write it; quick, and not all that may be."""
    flags = out.flags
    return bool(
        spatial.layout.plain and flags.c_contiguous and flags.aligned and out.dtype.isnative
    )


@cache
def _separable() -> Any:
    return importlib.import_module("numbasep.cpu.separable")


def _on_cpu(problem: SpatialPlan, image: Array, out: Array, taps: tuple[Array, ...]) -> None:
    kernels = _separable()
    if problem.direct:
        kernels.run_direct(problem, image, out, taps[0])
    else:
        kernels.run_separable(problem, image, out, taps[0], taps[1])


def _through_device(
    problem: SpatialPlan,
    images: Array,
    outs: Array,
    taps: tuple[Array, ...],
    stream: Any,
    large: bool,
) -> None:
    """Compute host arrays on a device, in bands where they are large."""
    from numbasep.cuda import bands, transfers

    def launcher(plan: SpatialPlan, image: Any, out: Any, stream: Any) -> None:
        _launch(plan, image, out, taps, stream)

    whole = bands_planner.whole(problem)
    chosen = bands_planner.choose(whole, transfers.free()) if large else None
    bands.run(whole, images, outs, launcher, stream, chosen)


def _launch(
    problem: SpatialPlan, image: Any, out: Any, taps: tuple[Array, ...], stream: Any
) -> None:
    from numbasep.cuda import separable

    if problem.direct:
        separable.run_direct(problem, image, out, taps[0], stream)
    else:
        separable.run_separable(problem, image, out, taps[0], taps[1], stream)


def _between(
    kind: devices.Interface,
    x: Any,
    kernel: object,
    options: tuple[Any, ...],
    out: Any,
    backend: Any,
    stream: Any,
) -> Any:
    """Compute a call between device arrays, where they are."""
    from numbasep.cuda import session

    image, place, handle = devices.arrive(kind, x, out, backend, stream)
    apart = place is not None and image.overlaps(place)
    writable = place is None or place.writable
    try:
        key = "separable", options, checks.types(options), taps_key(kernel), apart, writable
        hash(key)
    except TypeError:
        # Something without a hash: a list, or an argument that the checks refuse.
        key = None
    given = [image] if place is None else [image, place]

    def work(current: session.Session) -> Device:
        return _work(current, image, place, kernel, options, apart)

    result = session.run(key, kind, handle, given, work)
    return out if place is not None else kind.wrap(result, handle)


def _work(
    session: Any,
    image: Device,
    place: Device | None,
    kernel: object,
    options: tuple[Any, ...],
    apart: bool,
) -> Device:
    """Check and plan a call between device arrays, and launch it."""
    from numbasep.cuda import copying

    mode, boundary, fillvalue, stride, dilation, axes, dtype = options
    call = prepare(
        image,
        kernel,
        mode=mode,
        boundary=boundary,
        fillvalue=fillvalue,
        stride=stride,
        dilation=dilation,
        axes=axes,
        dtype=dtype,
        out=place,
    )
    spatial, problem, layout = call.spatial, call.spatial.problem, call.spatial.layout
    if spatial.largest is not None:
        raise ValueError(
            f"x: {image.dtype} values above {spatial.largest} could exceed 64-bit integers under "
            "these taps, and values on a device are not looked at; convert x to int32 or float64"
        )
    taps = call.taps.prepared(problem.compute, layout.swapped)
    stream = session.stream
    direct = place is not None and not apart and spatial.takes(arrays.describe("out", place))
    result = (
        place
        if place is not None and direct
        else session.empty(spatial.shape, spatial.dtype, spatial.order)
    )
    if problem.rank == 0 and not problem.direct:
        copying.fill_zero(result, stream)
    elif result.size:
        source = image
        if layout.copied:
            source = session.empty(image.shape, image.dtype, layout.order)
            copying.copy(image, source, stream)
        for images, outs in views.device_loops(
            views.device_images(source, layout, problem.storage),
            views.device_images(result, layout, problem.output),
        ):
            _launch(replace(problem, planes=images.shape[0]), images, outs, taps, stream)
    if place is not None and result is not place:
        copying.copy(result, place, stream)
        return place
    return result


def _check_range(x: Array, largest: int) -> None:
    """Refuse data whose integer sums could exceed 64 bits."""
    if x.size == 0:
        return
    low, high = int(x.min()), int(x.max())
    if max(-low, high) > largest:
        raise ValueError(
            f"x: values from {low} to {high} could exceed 64-bit integers under these taps; "
            f"keep |x| within {largest}, or convert x to float64"
        )
