"""What a call would do, in words and numbers, without doing it: ``explain``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numbasep import arrays, channelwise, devices, explain_channelwise, spatial
from numbasep.explanation import Explanation, described
from numbasep.plan import bands, cpu_tiles, cuda_tiles, traffic
from numbasep.plan.geometry import SpatialPlan
from numbasep.plan.layout import contiguous
from numbasep.plan.spatial import Buffer
from numbasep.views import Device


def explain(op: Callable[..., Any], x: Any, *args: Any, **options: Any) -> Explanation:
    """Say what ``op(x, *args, **options)`` would do; nothing is computed.

    Parameters
    ----------
    op : function
        ``numbasep.separable_conv2d``, ``depthwise_conv2d``, ``pointwise_conv2d`` or
        ``depthwise_separable_conv2d``.
    x : array, or a shape, or a pair (shape, dtype)
        A shape stands for a C-ordered float32 array.
    args, options
        As ``op`` takes them; each is checked as ``op`` would. Weights of the channelwise functions
        may be shapes too, or pairs (shape, dtype); without one their dtype is that of ``x``.

    Returns
    -------
    Explanation
        Its attributes are numbers, ``print`` shows them as a table. For
        ``depthwise_separable_conv2d`` both ways are in it, one launch and two: bytes,
        multiply-adds, and what binds each, modelled for an H200 (CPU: for cores of assumed rates).

    Raises
    ------
    ValueError, TypeError
        ``op`` is none of those functions, or would raise the same.

    Equal to
    --------
    No peer has it; the nearest is reading a profile afterwards.
    """
    known = [function for function in EXPLAINED if function is op]
    if not known:
        names = ", ".join(f"numbasep.{function.__name__}" for function in EXPLAINED)
        raise ValueError(f"op: {op!r} cannot be explained; pass one of {names}")
    return EXPLAINED[known[0]](x, *args, **options)


def _described(x: Any) -> Any:
    found = described("x", x, "float32")
    if found is None:
        return _placed("x", x)
    shape, name = found
    return Buffer(shape, contiguous(shape, _size(name), tuple(range(len(shape)))), name, True)


def _placed(argument: str, array: Any) -> Any:
    """Return an array as NumPy's, or one on a device as what is known of its place."""
    kind = devices.kind_of(array)
    return (
        arrays.adopt(argument, array)[0] if kind is None else devices.adopt(argument, array, kind)
    )


def _separable(x: Any, kernel: Any, **options: Any) -> Explanation:
    image = _described(x)
    if options.get("out") is not None:
        options["out"] = _placed("out", options["out"])
    call = spatial.prepare(image, kernel, **options)
    problem = call.spatial.problem
    notes = []
    if call.spatial.layout.copied:
        notes.append("x is copied first: the kernels cannot read its memory layout in place")
    out = options.get("out")
    if out is not None and not call.spatial.takes(arrays.describe("out", out)):
        notes.append("the result is computed apart, then copied into out: its layout is another")
    if problem.direct:
        notes.append("direct: the kernel's factors would take more multiply-adds than the kernel")
    if call.backend == "cuda" and not isinstance(image, Device) and bands.large(problem):
        chosen = bands.choose(problem, math.inf)
        count = -(-problem.planes // chosen.planes) * -(-problem.y.out // chosen.rows)
        notes.append(
            f"x goes through the device in {count:,} bands of {chosen}; "
            "smaller ones where memory is short"
        )
    variant, tile, height, width, why = _tile(problem, call.backend)
    kh, kw = call.taps.shape
    images = problem.planes * problem.channels
    outputs = images * problem.y.out * problem.x.out
    weights = kh * kw if problem.direct else problem.rank * (kh + kw)
    fixed = outputs * _size(problem.output) + weights * _size(problem.compute)
    works = outputs > 0 and (problem.direct or problem.rank > 0)
    multiply_adds = outputs * kh * kw
    if not problem.direct:
        # The column pass is done for the columns of the halo too.
        columns = traffic.spanned(problem.x, width, beyond=True)
        summed = images * problem.y.out * columns
        multiply_adds = problem.rank * (summed * problem.y.taps + outputs * problem.x.taps)
    return Explanation(
        function="separable_conv2d",
        backend=call.backend,
        variant=variant,
        tile=tile,
        launches=int(works),
        rank=problem.rank,
        shape=call.spatial.shape,
        dtype=call.spatial.dtype,
        bytes_moved=fixed
        + images
        * traffic.spanned(problem.y, height)
        * traffic.spanned(problem.x, width)
        * _size(problem.storage),
        bytes_least=fixed
        + images * traffic.needed(problem.y) * traffic.needed(problem.x) * _size(problem.storage),
        multiply_adds=multiply_adds,
        multiply_adds_dense=outputs * kh * kw,
        promised_error=call.taps.error,
        notes=(*notes, why),
    )


def _tile(problem: SpatialPlan, backend: str) -> tuple[str, str, int, int, str]:
    """Return the kernel's name, its tile in words, the tile's height and width, and the reason."""
    if backend == "cuda":
        tile = cuda_tiles.choose(problem)
        width = max(tile.width // problem.channels, 1) if tile.shape else tile.width
        return tile.variant, str(tile), tile.height, width, tile.reason
    import numba

    from numbasep.cpu import simd

    work = cpu_tiles.choose(problem, numba.get_num_threads(), simd.COPIES)
    return (
        "direct" if problem.direct else "fused passes",
        str(work),
        work.band,
        work.strip,
        "image rows are converted into cache first" if work.packed else "image rows are read as is",
    )


def _size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


EXPLAINED: dict[Callable[..., Any], Callable[..., Explanation]] = {
    spatial.separable_conv2d: _separable,
    channelwise.depthwise_conv2d: explain_channelwise.depthwise,
    channelwise.pointwise_conv2d: explain_channelwise.pointwise,
    channelwise.depthwise_separable_conv2d: explain_channelwise.separable,
}
