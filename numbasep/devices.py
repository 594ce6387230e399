"""Arrays in a CUDA device's memory, of any library: where they are, and fresh ones of their kind.

None of the libraries is imported here: an array of theirs brings its own. Nothing waits for the
device: work is ordered by streams and events.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

import numpy as np

from numbasep import arrays
from numbasep.plan import checks
from numbasep.plan.layout import contiguous
from numbasep.plan.spatial import BACKENDS
from numbasep.views import Device, Form, form, itemsize_of

# DLPack's device types: CUDA's own memory, and memory that migrates.
CUDA, MANAGED = 2, 13


@cache
def _launch() -> Any:
    """Return the module that knows CUDA; imported when the first device array arrives."""
    from numbasep.cuda import launch

    return launch


@lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    if dtype == np.bool_:
        return "uint8"
    if not dtype.isnative:
        raise TypeError(f"its elements are {dtype.str}, in another byte order; convert it first")
    return checks.dtype("dtype", dtype)


@lru_cache(maxsize=1024)
def _form(shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any) -> Form:
    """Return the form of an array whose dtype is NumPy's or a type string."""
    return form(shape, strides, _name(np.dtype(dtype)))


class Interface:
    """Anything with ``__cuda_array_interface__``; results are Numba device arrays."""

    name = "numba"

    def describe(self, value: Any, stream: int | None) -> Device:
        """Return where an array is. stream: the work that will read it, where that is known."""
        found = _interface(value)
        if found.get("mask") is not None:
            raise TypeError("its mask would be lost; fill the masked elements first")
        strides = found.get("strides")
        address, read_only = found["data"]
        return Device(
            address or 0,
            _form(
                tuple(found["shape"]), None if strides is None else tuple(strides), found["typestr"]
            ),
            _launch().device_of(address),
            value,
            found.get("stream"),
            not read_only,
        )

    def current(self, image: Device) -> int | None:
        """Return the handle of the stream on which an array becomes valid, None for none."""
        return image.stream

    def empty(
        self, shape: tuple[int, ...], dtype: str, order: tuple[int, ...], device: int, stream: int
    ) -> Any:
        """Return a fresh array, its axes in memory in ``order``, for work on a stream."""
        return _launch().allocate(
            shape, dtype, contiguous(shape, itemsize_of(dtype), order), stream
        )

    def place(self, value: Any, dtype: str) -> Device:
        """Return where an array is that ``empty`` made."""
        found = self.describe(value, None)
        if found.dtype != dtype:
            found.form = form(found.shape, found.strides, dtype)
        return found

    def wrap(self, result: Device, stream: int) -> Any:
        """Return a result as the caller's library has it."""
        return result.owner


def _interface(value: Any) -> dict[str, Any]:
    found: dict[str, Any] | None = getattr(value, "__cuda_array_interface__", None)
    # The simulator's device array holds one of NumPy.
    return value._ary.__array_interface__ if found is None else found


class Numba(Interface):
    """Numba's device arrays, whose interface takes longer to make than to go round."""

    def describe(self, value: Any, stream: int | None) -> Device:
        if not hasattr(value, "device_ctypes_pointer"):
            # Of the simulator.
            return super().describe(value, stream)
        address = value.device_ctypes_pointer.value or 0
        bound = value.stream
        return Device(
            address,
            _form(value.shape, value.strides, value.dtype),
            _launch().device_of(address),
            value,
            _launch().stream_handle(bound) if bound else None,
        )


class Cupy(Interface):
    name = "cupy"

    def describe(self, value: Any, stream: int | None) -> Device:
        memory = value.data
        form = _form(value.shape, value.strides, value.dtype)
        return Device(memory.ptr, form, memory.device_id, value)

    def current(self, image: Device) -> int | None:
        return int(sys.modules["cupy"].cuda.get_current_stream(image.device).ptr)

    def empty(
        self, shape: tuple[int, ...], dtype: str, order: tuple[int, ...], device: int, stream: int
    ) -> Any:
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            if stream == cupy.cuda.get_current_stream().ptr:
                memory = cupy.empty([shape[axis] for axis in order], np.dtype(dtype))
            else:
                with cupy.cuda.ExternalStream(stream, device):
                    memory = cupy.empty([shape[axis] for axis in order], np.dtype(dtype))
        return memory if _plain(order) else memory.transpose(_inverse(order))


class Torch(Interface):
    name = "torch"

    def describe(self, value: Any, stream: int | None) -> Device:
        tensor = arrays.plain_tensor(value)
        form = _torch_form(tensor.shape, tensor.stride(), tensor.dtype)
        return Device(tensor.data_ptr(), form, tensor.get_device(), tensor)

    def current(self, image: Device) -> int | None:
        return int(sys.modules["torch"].cuda.current_stream(image.device).cuda_stream)

    def empty(
        self, shape: tuple[int, ...], dtype: str, order: tuple[int, ...], device: int, stream: int
    ) -> Any:
        torch = sys.modules["torch"]
        sizes = [shape[axis] for axis in order]
        place, kind = torch.device("cuda", device), getattr(torch, dtype)
        if stream == torch.cuda.current_stream(device).cuda_stream:
            memory = torch.empty(sizes, dtype=kind, device=place)
        else:
            with torch.cuda.stream(torch.cuda.ExternalStream(stream, device)):
                memory = torch.empty(sizes, dtype=kind, device=place)
        return memory if _plain(order) else memory.permute(_inverse(order))


@lru_cache(maxsize=1024)
def _torch_form(shape: tuple[int, ...], steps: tuple[int, ...], dtype: Any) -> Form:
    """Return the form of a tensor; its steps are in elements."""
    name = str(dtype).removeprefix("torch.")
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401  NumPy learns the name
    name = "uint8" if name == "bool" else checks.dtype("dtype", name)
    size = itemsize_of(name)
    return form(tuple(shape), tuple([size * step for step in steps]), name)


class Exchanged(Interface):
    """Arrays that only DLPack gives away, JAX's among them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self, value: Any, stream: int | None) -> Device:
        from cuda.core.utils import StridedMemoryView

        # 1 is DLPack's word for the legacy default stream; the producer orders its work before it.
        found = StridedMemoryView.from_dlpack(value, stream_ptr=stream or 1)
        shape, steps, dtype = tuple(found.shape), found.strides, np.dtype(found.dtype)
        strides = None if steps is None else tuple([dtype.itemsize * step for step in steps])
        return Device(
            found.ptr,
            _form(shape, strides, dtype),
            found.device_id,
            found,
            None,
            not found.readonly,
        )

    def place(self, value: Any, dtype: str) -> Device:
        found = Interface.describe(self, value, None)
        return found.reformed(found.shape, found.strides, dtype)


class Jax(Exchanged):
    """JAX knows nothing of our stream: what it reads of ours waits for it, by DLPack's rules."""

    def wrap(self, result: Device, stream: int) -> Any:
        arrays.check_wrap(self.name, result.dtype)
        export = _launch().Export(result.owner, result.dtype, stream)
        return sys.modules["jax"].numpy.from_dlpack(export)


INTERFACE, NUMBA, CUPY, TORCH, JAX = Interface(), Numba(), Cupy(), Torch(), Jax("jax")


def _plain(order: tuple[int, ...]) -> bool:
    return order == tuple(range(len(order)))


@lru_cache(maxsize=64)
def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


@lru_cache(maxsize=256)
def _library(kind: type) -> str:
    return kind.__module__.split(".")[0]


def kind_of(value: Any) -> Interface | None:
    """Return whose device array a value is; None for anything else."""
    if isinstance(value, np.ndarray):
        return None
    kind: Any = type(value)
    library = _library(kind)
    if library == "torch":
        return TORCH if getattr(value, "is_cuda", False) else None
    if library in ("jax", "jaxlib"):
        # A traced or a sharded array has no one device: the host path says so.
        with suppress(AttributeError, BufferError):
            return JAX if value.__dlpack_device__()[0] in (CUDA, MANAGED) else None
        return None
    if library == "cupy":
        return CUPY if hasattr(value, "data") else None
    if library == "numba" and hasattr(kind, "__cuda_ndarray__"):
        return NUMBA
    if hasattr(value, "__cuda_array_interface__"):
        return INTERFACE
    if hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in (CUDA, MANAGED):
        return Exchanged(library)
    return None


def adopt(argument: str, value: Any, kind: Interface, stream: int | None = None) -> Device:
    """Return where a device array is."""
    try:
        return kind.describe(value, stream)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        reason = str(error).removeprefix("dtype: ")
        raise TypeError(f"{argument}: {kind.name}: {reason}") from None


def check_backend(backend: Any) -> None:
    """Refuse a backend on which device arrays cannot be computed."""
    if backend is not None and checks.choice("backend", backend, BACKENDS) != "cuda":
        raise ValueError(
            "backend: 'cpu' arrived and x is on a device; move x to the host, or leave backend out"
        )


def arrive(
    kind: Interface, x: Any, out: Any, backend: Any, stream: Any
) -> tuple[Device, Device | None, int]:
    """Return the image, the place of the result, and the stream of a call between device arrays.

    The stream is the one that was asked for, or that on which the caller works. What was given to
    the caller's stream, and to those that the arrays name, comes before our work.
    """
    check_backend(backend)
    launch = _launch()
    asked = None if stream is None else launch.stream_handle(stream)
    image = adopt("x", x, kind, asked)
    current = kind.current(image)
    handle = (current or 0) if asked is None else asked
    place = None
    if out is not None:
        place = check_place(kind, out, image, handle)
        if place.stream is not None:
            launch.order(place.stream, handle)
    if isinstance(kind, Exchanged) or current not in (None, handle):
        from numbasep.cuda.session import held

        if current is not None:
            launch.order(current, handle)
        held.hold([image.owner, place and place.owner], handle)
    return image, place, handle


def check_place(kind: Interface, out: Any, image: Device, stream: int | None = None) -> Device:
    """Return where an ``out`` is that goes with an image."""
    found = kind_of(out)
    if found is None:
        arrays.kind_of("out", out)
        raise TypeError(
            "out: an array in host memory arrived and x is on a device; pass one on x's device, or "
            "leave it out"
        )
    arrays.check_kinds(kind.name, found.name)
    if kind is JAX:
        raise TypeError("out: arrays of JAX cannot be written to; leave it out")
    place = adopt("out", out, kind, stream)
    if place.device != image.device:
        raise ValueError(
            f"out: an array on device {place.device} arrived and x is on device {image.device}; "
            "pass one there"
        )
    return place


def refuse(argument: str, value: Any, remedy: str) -> None:
    """Refuse a device array where a host array belongs."""
    if value is None or type(value) is np.ndarray:
        return
    kind = kind_of(value)
    if kind is not None:
        raise TypeError(f"{argument}: an array of {kind.name} on a device arrived {remedy}")
