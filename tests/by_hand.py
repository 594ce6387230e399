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
    ys, xs = (
        np.array(
            [
                map_index(o * a.stride + a.origin + k * a.dilation, a.size, plan.boundary)
                for k in range(a.taps)
                for o in range(a.out)
            ]
        ).reshape(a.taps, a.out)
        for a in (plan.y, plan.x)
    )
    wide = image.astype(complex)
    found = np.zeros((plan.planes, plan.y.out, plan.x.out, plan.channels), complex)
    for a, b in np.ndindex(plan.y.taps, plan.x.taps):
        rows, columns = ys[a][:, None], xs[b][None, :]
        inside = ((rows >= 0) & (columns >= 0))[..., None]
        found += kernel[a, b] * np.where(inside, wide[:, rows, columns], plan.fillvalue)
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
