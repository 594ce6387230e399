"""Spatial correlations as sums by hand, any plan, and small plans to test them on."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from numbasep.boundary import map_index
from numbasep.plan.geometry import Axis, SpatialPlan

Array = NDArray[Any]


def correlate(plan: SpatialPlan, image: Array, kernel: Array) -> Array:
    """Return what backends write for a dense kernel, before rounding and saturation."""
    y, x = plan.y, plan.x
    ys, xs = (
        [
            [map_index(o * a.stride + a.origin + k * a.dilation, a.size, plan.boundary)
             for k in range(a.taps)]
            for o in range(a.out)
        ]
        for a in (y, x)
    )  # fmt: skip
    wide = image.astype(complex)
    found = np.zeros((plan.planes, y.out, x.out, plan.channels), complex)
    for i, j in np.ndindex(y.out, x.out):
        for a, b in np.ndindex(y.taps, x.taps):
            m, n = ys[i][a], xs[j][b]
            value = wide[:, m, n] if m >= 0 and n >= 0 else plan.fillvalue
            found[:, i, j] += kernel[a, b] * value
    return found


@st.composite
def axes(draw: Any, most: int, *, taps: int = 9, stride: int = 3, dilation: int = 3) -> Axis:
    """Axes of images smaller and larger than the kernel, and outputs far outside of them."""
    return Axis(
        size=draw(st.integers(1, most)),
        out=draw(st.integers(1, most)),
        taps=draw(st.integers(1, taps)),
        stride=draw(st.integers(1, stride)),
        dilation=draw(st.integers(1, dilation)),
        origin=draw(st.integers(-12, 12)),
    )
