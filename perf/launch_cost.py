"""What a CUDA call costs the host, from call to launch, measured without a GPU.

Everything of the package runs as on a GPU; the driver's own parts (compilation, the launch, the
current device, uploads of taps) are stand-ins that do nothing. On a GPU, ``python -m perf.run
overhead --machine gpu`` measures the whole.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class DeviceArray:
    """What a launcher needs of a device array: shape, strides and an address nobody reads."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": self.dtype.str,
            "data": (1 << 40, False),
            "strides": None,
            "version": 3,
        }


@contextlib.contextmanager
def stand_ins() -> Iterator[list[int]]:
    """Replace the driver's parts; yields a list that grows by one a launch."""
    from numbasep.cuda import launch

    launched: list[int] = []

    class Device:
        id = 0
        compute_capability = (9, 0)
        MULTIPROCESSOR_COUNT = 132

    device = Device()
    uploaded: dict[Any, Any] = {}

    def upload(array: Any, stream: Any = None) -> DeviceArray:
        # As the package's own: found again by content.
        key = array.dtype.str, array.tobytes()
        return uploaded.setdefault(key, DeviceArray(array.shape, array.dtype.str))

    # Plain functions: a mock's own bookkeeping costs more than what is measured.
    replaced = (
        (launch.Kernel, "_compile", lambda self, device: object()),
        (launch, "upload", upload),
        (launch, "_core_stream", lambda handle: None),
        (launch.cuda, "get_current_device", lambda: device),
        (launch._dispatcher, "launch", lambda *arguments: launched.append(1)),
    )
    kept = [getattr(owner, name) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield launched
    finally:
        for (owner, name, _), value in zip(replaced, kept, strict=True):
            setattr(owner, name, value)


def microseconds(call: Callable[[], Any], calls: int = 2000) -> dict[str, float]:
    """Return p20, p50 and p80 of a call's host time."""
    call()
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    p20, p50, p80 = (1e6 * float(p) for p in np.percentile(taken, (20, 50, 80)))
    return {"p20_us": p20, "p50_us": p50, "p80_us": p80}


def measure() -> dict[str, Any]:
    """Return the host microseconds of a separable launch between device arrays, 9 taps, rank 1."""
    from numbasep.cuda import launch, separable
    from numbasep.plan.geometry import Axis, SpatialPlan

    if launch.SIMULATOR:
        raise RuntimeError("NUMBA_ENABLE_CUDASIM is set: the simulator's launches are not these")
    axis = Axis(size=512, out=512, taps=9, origin=-4)
    plan = SpatialPlan(
        1, 1, axis, axis, 1, False, 4, 0, "float32", "float32", "float32"
    )  # fmt: skip
    image, out = DeviceArray((1, 512, 512, 1), "f4"), DeviceArray((1, 512, 512, 1), "f4")
    taps = np.full((1, 9), 1 / 9, np.float32)
    with stand_ins() as launched:
        found = microseconds(
            lambda: separable.run_separable(plan, image, out, taps, taps), calls=2000
        )
        found["launches_per_call"] = len(launched) / 2001
        bare = microseconds(lambda: launch._dispatcher.launch(None, None, None), calls=2000)
    return {"run_separable": found, "stand_in": bare}
