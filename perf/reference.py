"""float64 references for the host and the bound that a result is held to.

For each op two arrays: the exact-to-float64 result, and the scale ``s``: the same operation on
``|x|`` with ``|coefficients|``. Every order of summation in an accumulator of unit roundoff u is
within ``gamma(n) s`` of the result (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1), n the number of roundings on the longest path.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from perf.cases import Case, Channelwise, Separable
from perf.timing import UNIT_ROUNDOFF, gamma

Array = np.ndarray[Any, Any]


def separable(x: Array, columns: Array, rows: Array) -> tuple[Array, Array]:
    """Return result and scale of the mirrored separable convolution of every image of x."""
    from scipy import ndimage

    def passes(image: Array, down: Array, across: Array) -> Array:
        total = np.zeros(image.shape)
        for column, row in zip(down, across, strict=True):
            inner = ndimage.convolve1d(image, column, axis=-2, mode="mirror")
            total += ndimage.convolve1d(inner, row, axis=-1, mode="mirror")
        return total

    wide = x.astype(np.float64)
    down, across = columns.astype(np.float64), rows.astype(np.float64)
    result = passes(wide, down, across)
    if wide.min(initial=0) >= 0 and down.min(initial=0) >= 0 and across.min(initial=0) >= 0:
        return result, result
    return result, passes(np.abs(wide), np.abs(down), np.abs(across))


def channelwise(
    case: Channelwise, x: Array, depthwise: Array | None, pointwise: Array | None
) -> tuple[Array, Array]:
    """Return result and scale of a layer, both NCHW.

    x: NCHW. depthwise: (C, kh, kw) or None. pointwise: (C out, C) or None.
    """

    def apply(values: Array, taps: Array | None, mix: Array | None) -> Array:
        if taps is not None:
            pad, step, spread = case.padding, case.stride, case.dilation
            padded = np.pad(values, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
            height, width = case.spatial
            total = np.zeros((*values.shape[:2], height, width))
            for i in range(taps.shape[1]):
                for j in range(taps.shape[2]):
                    down, across = i * spread, j * spread
                    window = padded[
                        :,
                        :,
                        down : down + (height - 1) * step + 1 : step,
                        across : across + (width - 1) * step + 1 : step,
                    ]
                    total += window * taps[:, i, j][None, :, None, None]
            values = total
        if mix is not None:
            n, c, height, width = values.shape
            values = (mix @ values.reshape(n, c, -1)).reshape(n, -1, height, width)
        return values

    def wide(values: Array | None) -> Array | None:
        return None if values is None else values.astype(np.float64)

    def size(values: Array | None) -> Array | None:
        return None if values is None else np.abs(values.astype(np.float64))

    return (
        apply(x.astype(np.float64), wide(depthwise), wide(pointwise)),
        apply(np.abs(x.astype(np.float64)), size(depthwise), size(pointwise)),
    )


def roundings(case: Case) -> int:
    """Return n, the roundings on the longest path of a result element."""
    if isinstance(case, Separable):
        return 2 * case.taps + case.rank + 1
    kh, kw = case.kernel
    depthwise = 0 if case.op == "pointwise" else kh * kw
    pointwise = 0 if case.op == "depthwise" else case.shape[1]
    return depthwise + pointwise + 1


def relative_bound(case: Case, precision: str, intermediate: str | None = None) -> float:
    """Return the bound as a share of the scale, the output's own rounding left out.

    precision: the accumulator's, or "tf32" ("tf32_truncated" where operands are cut to it, not
    rounded, as matrix units do by themselves). intermediate: dtype in which a contender stores what
    stands between its passes, where it is narrower.
    """
    share = gamma(roundings(case), "float32" if "tf32" in precision else precision)
    if "tf32" in precision:
        # Both operands of each product are rounded once.
        share += 2 * UNIT_ROUNDOFF[precision] * 1.01
    if precision == "float64":
        share *= 2  # the reference rounds as well
    if intermediate is not None:
        share += UNIT_ROUNDOFF[intermediate] * 1.01
    return share


def bound(
    case: Case,
    reference: Array,
    scale: Array,
    precision: str,
    intermediate: str | None = None,
    levels: float = 0.0,
) -> Array:
    """Return the elementwise bound. levels: grey levels allowed beyond the rounding to integer."""
    allowed = relative_bound(case, precision, intermediate) * scale
    if case.dtype == "uint8":
        return allowed + 0.5 + levels
    u = UNIT_ROUNDOFF[case.dtype]
    smallest = {"float16": 2.0**-25}.get(case.dtype, 0.0)
    return allowed + u * (np.abs(reference) + allowed) + smallest
