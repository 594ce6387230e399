"""What a call would do, in words and numbers, without doing it: ``explain``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from numbasep import arrays, devices, spatial
from numbasep.plan import bands, checks, cpu_tiles, cuda_tiles, traffic
from numbasep.plan.geometry import SpatialPlan
from numbasep.plan.layout import contiguous
from numbasep.plan.spatial import Buffer
from numbasep.views import Device


@dataclass(frozen=True, slots=True)
class Explanation:
    """The plan of one call.

    backend: "cpu" or "cuda".
    variant: the kernel that runs.
    tile: what one block (CUDA) or one thread at a time (CPU) computes.
    launches: kernel launches (CUDA) or passes over the image (CPU).
    rank: terms of the separable sum; 0 for a direct 2-D convolution.
    bytes_moved: bytes that the tiles read and write, halos included. What a cache holds of the
        halos is not subtracted.
    bytes_least: the image, the result and the taps, once each.
    multiply_adds, multiply_adds_dense: of this plan, and of the dense kernel applied directly.
    promised_error: of the factors, relative to ``sum|K| * max|x|``; rounding comes on top.
    notes: copies that the arrays' memory layout forces, and reasons of choices.
    """

    function: str
    backend: str
    variant: str
    tile: str
    launches: int
    rank: int
    shape: tuple[int, ...]
    dtype: str
    bytes_moved: int
    bytes_least: int
    multiply_adds: int
    multiply_adds_dense: int
    promised_error: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        more = self.bytes_moved / max(self.bytes_least, 1)
        fewer = self.multiply_adds_dense / max(self.multiply_adds, 1)
        shown = {
            "bytes moved": f"{self.bytes_moved:,} ({more:.2f} x the least, {self.bytes_least:,})",
            "multiply-adds": f"{self.multiply_adds:,} "
            f"(dense: {self.multiply_adds_dense:,}, {fewer:.2f} x)",
            "promised error": f"{self.promised_error:.3g} x sum|K| x max|x|",
        }
        hidden = {"bytes_moved", "bytes_least", "multiply_adds", "multiply_adds_dense"}
        lines = {
            field.name: str(getattr(self, field.name))
            for field in fields(self)
            if field.name not in {*hidden, "promised_error", "notes"}
        } | shown
        width = max(map(len, lines))
        return "\n".join(
            [f"{name:<{width}}  {value}" for name, value in lines.items()]
            + [f"{'note':<{width}}  {note}" for note in self.notes]
        )


def explain(op: Callable[..., Any], x: Any, *args: Any, **options: Any) -> Explanation:
    """Say what ``op(x, *args, **options)`` would do; nothing is computed.

    Parameters
    ----------
    op : function
        ``numbasep.separable_conv2d``.
    x : array, or a shape, or a pair (shape, dtype)
        A shape stands for a C-ordered float32 array.
    args, options
        As ``op`` takes them; each is checked as ``op`` would.

    Returns
    -------
    Explanation
        Its attributes are numbers, ``print`` shows them as a table.

    Equal to
    --------
    No peer has it; the nearest is reading a profile afterwards.
    """
    known = [function for function in EXPLAINED if function is op]
    if not known:
        names = ", ".join(f"numbasep.{function.__name__}" for function in EXPLAINED)
        raise ValueError(f"op: {op!r} cannot be explained; pass one of {names}")
    return EXPLAINED[known[0]](_described(x), *args, **options)


def _described(x: Any) -> Any:
    if not isinstance(x, tuple):
        return _placed("x", x)
    shape, dtype = x if len(x) == 2 and isinstance(x[0], tuple) else (x, "float32")
    shape = tuple(checks.integer("x", size, 0) for size in shape)
    name = checks.dtype("x", dtype)
    return Buffer(shape, contiguous(shape, _size(name), tuple(range(len(shape)))), name, True)


def _placed(argument: str, array: Any) -> Any:
    """Return an array as NumPy's, or one on a device as what is known of its place."""
    kind = devices.kind_of(array)
    return (
        arrays.adopt(argument, array)[0] if kind is None else devices.adopt(argument, array, kind)
    )


def _separable(x: Any, kernel: Any, **options: Any) -> Explanation:
    if options.get("out") is not None:
        options["out"] = _placed("out", options["out"])
    call = spatial.prepare(x, kernel, **options)
    problem = call.spatial.problem
    notes = []
    if call.spatial.layout.copied:
        notes.append("x is copied first: the kernels cannot read its memory layout in place")
    out = options.get("out")
    if out is not None and not call.spatial.takes(arrays.describe("out", out)):
        notes.append("the result is computed apart, then copied into out: its layout is another")
    if problem.direct:
        notes.append("direct: the kernel's factors would take more multiply-adds than the kernel")
    if call.backend == "cuda" and not isinstance(x, Device) and bands.large(problem):
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

    work = cpu_tiles.choose(problem, numba.get_num_threads())
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
    spatial.separable_conv2d: _separable
}
