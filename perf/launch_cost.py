"""What a CUDA call costs the host, from call to launch, measured without a GPU.

Everything of the package runs as on a GPU; the driver's own parts (compilation, the launch, the
current device, memory) are stand-ins that do nothing, and so are the arrays. On a GPU,
``python -m perf.run overhead --machine gpu`` measures the whole.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np

from numbasep.plan.layout import contiguous

Times = dict[str, float]


class DeviceArray:
    """An array with ``__cuda_array_interface__`` and an address nobody reads."""

    def __init__(self, shape: tuple[int, ...], dtype: str, address: int = 1 << 40) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": self.dtype.str,
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


class CupyArray:
    """What of a CuPy array is looked at."""

    __module__ = "cupy"

    def __init__(self, shape: tuple[int, ...], dtype: str, address: int = 1 << 40) -> None:
        self.data = SimpleNamespace(ptr=address, device_id=0)
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.strides = np.empty(shape, dtype).strides


class TorchTensor:
    """What of a CUDA tensor of torch's is looked at, by calls as torch has them."""

    __module__ = "torch"
    is_cuda, requires_grad, layout = True, False, "strided"

    def __init__(self, shape: tuple[int, ...], dtype: str, address: int = 1 << 40) -> None:
        self._address = address
        self.shape, self.dtype = shape, f"torch.{np.dtype(dtype).name}"
        self._size = np.dtype(dtype).itemsize
        steps = contiguous(shape, self._size, tuple(range(len(shape))))
        self._steps = tuple(step // self._size for step in steps)

    def data_ptr(self) -> int:
        return self._address

    def element_size(self) -> int:
        return self._size

    def stride(self) -> tuple[int, ...]:
        return self._steps

    def get_device(self) -> int:
        return 0

    def resolve_conj(self) -> TorchTensor:
        return self

    resolve_neg = resolve_conj


KINDS = {"interface": DeviceArray, "cupy": CupyArray, "torch": TorchTensor}


@contextlib.contextmanager
def stand_ins(*, compiles: bool = False) -> Iterator[list[int]]:
    """Replace the driver's parts; yields a list that grows by one a launch.

    compiles: there is a device, for which kernels are compiled all the same, and kept on disk.
    """
    from numbasep.cuda import launch

    launched: list[int] = []
    stream = SimpleNamespace(ptr=0, cuda_stream=0)
    libraries = {
        "cupy": SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda device: stream)),
        "torch": SimpleNamespace(
            cuda=SimpleNamespace(current_stream=lambda device: stream), strided="strided"
        ),
    }
    device = SimpleNamespace(
        id=0,
        compute_capability=(9, 0),
        MULTIPROCESSOR_COUNT=132,
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=227 * 1024,
    )
    # Plain functions: a mock's own bookkeeping costs more than what is measured. One array stands
    # for all results: making it is the memory pool's time.
    places = count(1 << 43, 1 << 20)

    def uploaded(array: Any, stream: Any) -> DeviceArray:
        return DeviceArray(array.shape, array.dtype.str, next(places))

    result = DeviceArray((1, 512, 512), "f4", 1 << 42)
    driver = (
        (launch.Kernel, "_compile", lambda self, device: object()),
        (launch.Kernel, "_raise_shared", lambda self, device, kernel, shared: None),
        (launch, "current_device", lambda: 0),
        (launch.cuda, "get_current_device", lambda: device),
    )
    replaced = (
        *(() if compiles else driver),
        (launch, "to_device", uploaded),
        (launch, "allocate", lambda *description: result),
        (launch, "device_of", lambda address: 0),
        (launch, "_core_stream", lambda handle: None),
        (launch._dispatcher, "launch", lambda *arguments: launched.append(1)),
    )
    kept = [getattr(owner, name) for owner, name, _ in replaced]
    modules = {name: sys.modules.get(name) for name in libraries}
    for owner, name, value in replaced:
        setattr(owner, name, value)
    sys.modules.update(libraries)  # type: ignore[arg-type]  # stand-ins
    try:
        yield launched
    finally:
        for (owner, name, _), value in zip(replaced, kept, strict=True):
            setattr(owner, name, value)
        for name, module in modules.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def microseconds(call: Callable[[], Any], calls: int = 2000) -> Times:
    """Return p20, p50 and p80 of a call's host time."""
    call()
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    p20, p50, p80 = (1e6 * float(p) for p in np.percentile(taken, (20, 50, 80)))
    return {"p20_us": p20, "p50_us": p50, "p80_us": p80}


def measure(calls: int = 2000) -> dict[str, Any]:
    """Return the host microseconds of calls between device arrays of 512x512 float32.

    separable_conv2d: 9 taps, rank 1, into ``out``; by kind of array. fresh: the result is made.
    depthwise_conv2d: 3x3 on 8 channels. first: without what is known of earlier calls.
    run_separable: the launcher alone. stages: of a repeated call.
    """
    import numbasep
    from numbasep import calls as channelwise
    from numbasep import devices, taps
    from numbasep.cuda import launch, separable, session
    from numbasep.plan.geometry import Axis, SpatialPlan

    if launch.SIMULATOR:
        raise RuntimeError("NUMBA_ENABLE_CUDASIM is set: the simulator's launches are not these")
    axis = Axis(size=512, out=512, taps=9, origin=-4)
    plan = SpatialPlan(
        1, 1, axis, axis, 1, False, 4, 0, "float32", "float32", "float32"
    )  # fmt: skip
    planes = DeviceArray((1, 512, 512, 1), "f4")
    column = np.full(9, 1 / 9, np.float32)
    kernel, one = (column, column.copy()), column[None]
    weight = np.ones((8, 1, 3, 3), np.float32)
    shape, layer = (1, 512, 512), (1, 8, 512, 512)
    found: dict[str, Any] = {}
    with stand_ins() as launched:

        def timed(name: str, call: Callable[[], Any]) -> None:
            before = len(launched)
            found[name] = microseconds(call, calls)
            found[name]["launches_per_call"] = (len(launched) - before) / (calls + 1)

        for name, made in KINDS.items():
            x, out = made(shape, "f4"), made(shape, "f4", 1 << 41)
            call = lambda x=x, out=out: numbasep.separable_conv2d(x, kernel, out=out)  # noqa: E731 (kept in a list)
            timed(f"separable_conv2d {name}", call)
        x = DeviceArray(shape, "f4")
        timed("separable_conv2d fresh", lambda: numbasep.separable_conv2d(x, kernel))
        image, out = DeviceArray(layer, "f4"), DeviceArray(layer, "f4", 1 << 41)
        timed(
            "depthwise_conv2d interface",
            lambda: numbasep.depthwise_conv2d(image, weight, padding=1, out=out),
        )

        def first() -> None:
            session.calls.clear()
            numbasep.separable_conv2d(x, kernel)

        timed("separable_conv2d first", first)
        timed("run_separable", lambda: separable.run_separable(plan, planes, planes, one, one))
        known = devices.kind_of(x)
        assert known is not None
        found["stages"] = {
            "two arrays": microseconds(lambda: devices.arrive(known, x, x, None, None), calls),
            "taps": microseconds(lambda: taps.key(kernel), calls),
            "weights": microseconds(lambda: channelwise.content(weight), calls),
            "stand-in launch": microseconds(
                lambda: launch._dispatcher.launch(None, None, None), calls
            ),
        }
    return found
