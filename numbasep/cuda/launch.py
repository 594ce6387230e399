"""The one module that knows ``numba.cuda``: kernels, launches, device arrays, what is available.

Kernels are compiled for explicit signatures of pointers and numbers and launched through
``cuda.core`` with raw addresses, because Numba's own path types and unpacks every array anew: 5 + 2
parameters a dimension, and some 20 to 90 us. In Numba's simulator the same calls run the same
Python source, with a ``HostPointer`` in place of each address.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types
from numba.cuda.core import config as _config
from numpy.typing import NDArray

from numbasep.plan import checks
from numbasep.plan.layout import contiguous
from numbasep.views import Device

Array = NDArray[Any]

__all__ = [
    "SHARED_DEFAULT",
    "SIMULATOR",
    "VERSION",
    "Export",
    "Kernel",
    "View",
    "active",
    "allocate",
    "available",
    "cuda",
    "device_function",
    "device_of",
    "empty",
    "intrinsic",
    "most_shared",
    "order",
    "signature",
    "stream_handle",
    "tensor_cores",
    "to_device",
    "to_host",
    "types",
    "upload",
    "view",
]

SIMULATOR = bool(_config.ENABLE_CUDASIM)

if not SIMULATOR:
    from cuda.bindings import driver as _cuda_driver
    from numba.cuda import dispatcher as _dispatcher
    from numba.cuda import extending as _extending
    from numba.cuda.cudadrv import driver as _driver
    from numba.cuda.typing import signature as _signature

# Static and dynamic shared memory that every device grants without being asked for more.
SHARED_DEFAULT = 48 * 1024

# Part of every kernel's closure, so that Numba's disk cache, whose key is the kernel's own file,
# forgets what other files of this package compiled to.
VERSION = 1


def signature(*parts: Any) -> Any:
    """Return a signature: the result's type, then the arguments'."""
    return _signature(*parts)


def intrinsic(key: str, typing: Callable[..., Any]) -> Any:
    """Return a function that kernels call and whose code ``typing`` emits.

    key: names it for good. Numba's disk cache hashes what a kernel calls; by default an intrinsic
        has a random name in each process, and no kernel would ever be found again.
    """
    made = _extending.intrinsic(typing)
    made._set_uuid(f"numbasep-{VERSION}-{key}")
    return made


def device_function(function: Callable[..., Any]) -> Any:
    """Return a plain Python function as one that kernels can call."""
    return function if SIMULATOR else cuda.jit(device=True, forceinline=True)(function)


class HostPointer:
    """The simulator's pointer: elements of host memory around a first one, bounds checked."""

    __slots__ = ("elements", "origin", "owner")

    def __init__(self, low: int, high: int, address: int, dtype: Any, owner: Any) -> None:
        kind = np.dtype(dtype)
        buffer = (ctypes.c_uint8 * (high - low)).from_address(low)
        self.elements: Array = np.ctypeslib.as_array(buffer).view(kind)
        self.origin = (address - low) // kind.itemsize
        self.owner = owner

    def _at(self, index: int, count: int) -> int:
        start = self.origin + index
        if not 0 <= start <= len(self.elements) - count:
            raise IndexError(
                f"element {index} lies outside of an array that holds {-self.origin} to "
                f"{len(self.elements) - self.origin - 1}"
            )
        return int(start)

    def __getitem__(self, index: int) -> Any:
        return self.elements[self._at(index, 1)]

    def __setitem__(self, index: int, value: Any) -> None:
        self.elements[self._at(index, 1)] = value

    def advanced(self, count: int) -> HostPointer:
        """Return a pointer to the element ``count`` after this one's."""
        moved = HostPointer.__new__(HostPointer)
        moved.elements, moved.owner = self.elements, self.owner
        moved.origin = self.origin + count
        return moved

    @property
    def address(self) -> int:
        return int(self.elements.ctypes.data + self.origin * self.elements.itemsize)

    def moved(self, distance: int, owner: Any) -> HostPointer:
        """Return the same pointer into other memory, ``distance`` bytes away."""
        low = int(self.elements.ctypes.data)
        return HostPointer(
            low + distance,
            low + distance + self.elements.nbytes,
            self.address + distance,
            self.elements.dtype,
            owner,
        )

    def vector(self, offset: int, count: int, dtype: str) -> Array:
        """Return ``count`` elements at a byte offset, aligned to at most 16 bytes of them."""
        size = count * np.dtype(dtype).itemsize
        start = self._at(offset, size)
        found: Array = self.elements[start : start + size]
        if found.ctypes.data % min(size, 16):
            raise ValueError(f"misaligned access of {min(size, 16)} bytes at byte {offset}")
        return found.view(dtype)


@dataclass(frozen=True, slots=True)
class View:
    """A device array as the launchers see it: address, shape, strides and elements in bytes."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    owner: Any
    itemsize: int

    def pointer(self, dtype: Any) -> Any:
        """Return what a kernel takes as ``types.CPointer(dtype)``."""
        if not SIMULATOR:
            return self.address
        low = high = self.address
        for size, stride in zip(self.shape, self.strides, strict=True):
            low += min(0, (size - 1) * stride)
            high += max(0, (size - 1) * stride)
        itemsize = self.itemsize if 0 not in self.shape else 0
        return HostPointer(low, high + itemsize, self.address, _numpy(dtype), self.owner)

    def reshape(self, shape: tuple[int, ...]) -> View:
        """Return the elements of a dense array in another shape."""
        strides = contiguous(shape, self.itemsize, tuple(range(len(shape))))
        return View(self.address, shape, strides, self.owner, self.itemsize)


def _numpy(dtype: Any) -> np.dtype[Any]:
    return np.dtype(str(dtype))


def view(array: Any) -> View:
    """Return where a device array's elements are."""
    if isinstance(array, View):
        return array
    if isinstance(array, Device):
        return View(array.address, array.shape, array.strides, array.owner, array.itemsize)
    if SIMULATOR:
        host = getattr(array, "_ary", array)
        found = host.__array_interface__
        return View(found["data"][0], host.shape, host.strides, host, host.itemsize)
    found = array.__cuda_array_interface__
    shape = found["shape"]
    itemsize = np.dtype(found["typestr"]).itemsize
    strides = found.get("strides") or contiguous(shape, itemsize, tuple(range(len(shape))))
    return View(found["data"][0], shape, strides, array, itemsize)


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype that Numba knows and that has the same size."""
    return np.dtype(np.uint16) if dtype.name == "bfloat16" else dtype


def stream_handle(stream: Any) -> int:
    """Return the handle of a stream of numba.cuda, cuda.core, CuPy or torch, or an integer.

    0 and 1 are the legacy default stream, 2 is the thread's own default stream.
    """
    if stream is None:
        return 0
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, name):
            return int(getattr(stream, name) or 0)
    raise TypeError(
        f"stream: {stream!r} is no CUDA stream; pass one of numba.cuda, cuda.core, CuPy or torch, "
        "or its handle as an integer"
    )


@lru_cache(maxsize=256)
def _core_stream(handle: int) -> Any:
    return _driver._to_core_stream(cuda.external_stream(handle) if handle else 0)


def _numba_stream(stream: Any) -> Any:
    handle = stream_handle(stream) if not SIMULATOR else 0
    return cuda.external_stream(handle) if handle else 0


def current_device() -> int:
    """Return the number of this thread's device; a thread that has none gets the first."""
    if SIMULATOR:
        return 0
    status, device = _cuda_driver.cuCtxGetDevice()
    return int(cuda.get_current_device().id) if status else int(device)


def active(device: int) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which a device is this thread's."""
    if current_device() == device:
        return _NOTHING
    found: contextlib.AbstractContextManager[Any] = cuda.gpus[device]
    return found


_NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


def device_of(address: int) -> int:
    """Return the number of the device in whose memory an address is."""
    if SIMULATOR or not address or _devices() == 1:
        return 0
    attribute = _cuda_driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status, device = _cuda_driver.cuPointerGetAttribute(attribute, address)
    if status:
        raise ValueError(f"address {address:#x} is no device memory: {status.name}")
    return int(device)


@cache
def _devices() -> int:
    return len(cuda.gpus)


def order(first: int, then: int) -> None:
    """Let work on one stream wait for what another has been given so far; the host goes on."""
    if SIMULATOR or {first, then} <= {0, 1} or first == then:
        return
    event = cuda.event(timing=False)
    event.record(_numba_stream(first))
    event.wait(_numba_stream(then))


def capturing(stream: int) -> bool:
    """Return whether a stream's work is recorded into a graph instead of done."""
    status, found = _cuda_driver.cuStreamIsCapturing(stream)
    none = _cuda_driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
    return bool(status) or found != none


def allocate(shape: tuple[int, ...], dtype: str, strides: tuple[int, ...], stream: int) -> Any:
    """Return a fresh Numba device array without gaps; bfloat16 becomes its bits."""
    kind = _plain(np.dtype(dtype))
    if SIMULATOR:
        size = prod(shape) * kind.itemsize
        memory = np.empty(size + 256, np.uint8)
        # Aligned as a device's memory is.
        start = -memory.ctypes.data % 256
        made = np.ndarray(shape, kind, memory[start:], 0, strides)
        return type(cuda.device_array(1))(made)
    handle = _numba_stream(stream)
    return cuda.device_array(shape, kind, strides=strides, stream=handle)


class Export:
    """A Numba device array as DLPack has it, for a library whose work follows ours."""

    def __init__(self, array: Any, dtype: str, stream: int) -> None:
        self.array, self.dtype, self.stream = array, dtype, stream

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, device_of(view(self.array).address)

    def __dlpack__(self, *, stream: int | None = None, **more: Any) -> Any:
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        if stream is not None and stream >= 0:
            order(self.stream, stream)
        found = view(self.array)
        low, high = self.array.gpu_data.device_pointer_value, self.array.alloc_size
        memory = StridedMemoryView.from_buffer(
            Buffer.from_handle(low, high, owner=self.array),
            found.shape,
            tuple(step // found.itemsize for step in found.strides),
            dtype=np.dtype(self.dtype),
        )
        return memory.__dlpack__(stream=-1, **more)


def to_device(array: Array, stream: Any = None) -> Any:
    """Return a copy of a C-ordered host array on the device; bfloat16 becomes its bits."""
    return cuda.to_device(array.view(_plain(array.dtype)), stream=_numba_stream(stream))


def empty(shape: Sequence[int], dtype: Any, stream: Any = None) -> Any:
    """Return a fresh device array; bfloat16 becomes its bits."""
    if _local.session is not None:
        return _local.session.empty(tuple(shape), checks.name_of(np.dtype(dtype)))
    kind = _plain(np.dtype(dtype))
    return cuda.device_array(tuple(shape), kind, stream=_numba_stream(stream))


def to_host(array: Any, out: Array, stream: Any = None) -> None:
    """Copy a device array into a host array of any strides, and wait for it."""
    handle = _numba_stream(stream)
    host = array.copy_to_host(stream=handle)
    if handle:
        handle.synchronize()
    out[...] = host.view(out.dtype)


class Kernel:
    """A CUDA kernel of one signature, compiled when first launched.

    arguments: types of the parameters; pointers as ``types.CPointer``.
    threads, blocks: the most threads in a block, and blocks that should fit on a multiprocessor.
    """

    def __init__(
        self,
        function: Callable[..., None],
        arguments: Sequence[Any],
        threads: int,
        blocks: int | None = None,
    ) -> None:
        self.function = function
        self.arguments = tuple(arguments)
        self.threads = threads
        self.bounds = threads if blocks is None else (threads, blocks)
        self._lock = threading.Lock()
        self._compiled: dict[int, Any] = {}
        self._shared: dict[int, int] = {}
        self._dispatcher: Any = None
        self._configurations: dict[tuple[int, int, int], Any] = {}

    def signature(self) -> Any:
        """Return the signature as ``cuda.compile`` takes it."""
        return types.void(*self.arguments)

    def launch(
        self, grid: int, block: int, shared: int, stream: Any, arguments: Sequence[Any]
    ) -> None:
        """Start the kernel on ``grid`` blocks of ``block`` threads.

        shared: bytes of dynamic shared memory.
        arguments: pointers as ``View.pointer`` gives them, numbers as NumPy scalars of the
            parameters' types; tuples as sequences of them, flattened.
        """
        session = _local.session
        prepared = self._prepare(grid, block, shared, current_device())
        start(prepared, stream_handle(stream), arguments)
        if session is not None:
            session.launched(self, prepared, arguments)

    def _prepare(self, grid: int, block: int, shared: int, device: int) -> tuple[Any, Any]:
        """Return what ``start`` takes: a launch without its stream and arguments."""
        if SIMULATOR:
            return self, (grid, block, shared)
        kernel = self._compiled.get(device) or self._compile(device)
        if shared > self._shared.get(device, SHARED_DEFAULT):
            self._raise_shared(device, kernel, shared)
        key = grid, block, shared
        configuration = self._configurations.get(key)
        if configuration is None:
            if len(self._configurations) >= 256:
                self._configurations.clear()
            configuration = _dispatcher.LaunchConfig(
                grid=(grid, 1, 1), block=(block, 1, 1), shmem_size=shared
            )
            self._configurations[key] = configuration
        return kernel, configuration

    def _compile(self, device: int) -> Any:
        with self._lock:
            if self._dispatcher is None:
                self._dispatcher = cuda.jit(
                    self.signature(), cache=True, launch_bounds=self.bounds
                )(self.function)
            (compiled,) = self._dispatcher.overloads.values()
            compiled.bind()
            kernel = compiled._codelibrary.get_cufunc().kernel
            self._compiled[device] = kernel
            return kernel

    def _raise_shared(self, device: int, kernel: Any, shared: int) -> None:
        """Ask the driver to grant more dynamic shared memory than by default."""
        from cuda.bindings import driver

        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        current = cuda.get_current_device()
        (status,) = driver.cuKernelSetAttribute(
            attribute, shared, driver.CUkernel(int(kernel.handle)), driver.CUdevice(current.id)
        )
        if status != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(
                f"the device refuses {shared} bytes of shared memory a block: {status.name}"
            )
        self._shared[device] = shared

    def _simulate(self, grid: int, block: int, shared: int, arguments: Sequence[Any]) -> None:
        flat = iter(arguments)
        packed = [
            tuple(next(flat) for _ in range(kind.count))
            if isinstance(kind, types.UniTuple)
            else _unpacked(next(flat))
            for kind in self.arguments
        ]
        with np.errstate(all="ignore"):
            cuda.jit(self.function)[grid, block, 0, shared](*packed)


def start(prepared: tuple[Any, Any], stream: int, arguments: Sequence[Any]) -> None:
    """Launch what ``Kernel`` prepared."""
    kernel, configuration = prepared
    if SIMULATOR:
        kernel._simulate(*configuration, arguments)
    else:
        _dispatcher.launch(_core_stream(stream), configuration, kernel, *arguments)


class _Local(threading.local):
    """What a thread's launches belong to: a call between device arrays, or nothing."""

    session: Any = None


_local = _Local()


def _unpacked(value: Any) -> Any:
    """Python's integers do not overflow and are faster than NumPy's scalars."""
    return int(value) if isinstance(value, np.integer) else value


class _Uploads:
    """Arrays kept on the device, found again by their content.

    capacity: arrays, and bytes of them on the device, that are kept; the latest used ones.
    """

    def __init__(self, capacity: int, size: int) -> None:
        self._kept: OrderedDict[tuple[Any, ...], tuple[Array, Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._capacity = capacity
        self._size = size

    def get(self, array: Array, stream: Any, form: tuple[Any, ...] = ()) -> Any:
        """Return a device copy of a C-ordered array, for work on ``stream``.

        form: a function and its further arguments, that makes of the array what is copied.
        """
        # A copy made in the order of one stream is not there yet for another.
        handle = 0 if SIMULATOR else stream_handle(stream)
        # By some of the elements, then compared in full: hashing all takes longer.
        flat = array.reshape(-1).view(f"u{array.itemsize}")
        some = flat[:: flat.size // 256 + 1].tobytes()
        key = array.dtype.str, array.shape, some, form, handle, current_device()
        with self._lock:
            found = self._kept.get(key)
            if found is not None and np.array_equal(found[0], flat):
                self._kept.move_to_end(key)
                return found[1]
            made = form[0](array, *form[1:]) if form else array
            kept = to_device(made, stream)
            self._kept[key] = flat.copy(), kept, made.nbytes
            self._kept.move_to_end(key)
            while len(self._kept) > self._capacity or self._total() > self._size:
                self._kept.popitem(last=False)
            return kept

    def _total(self) -> int:
        return sum(size for _, _, size in self._kept.values())


_uploads = _Uploads(256, 256 << 20)


def upload(array: Array, stream: Any = None, form: tuple[Any, ...] = ()) -> Any:
    """Return a device copy of a C-ordered array, made once for each content, form and stream.

    form: a function and its further arguments, that makes of the array what is copied.
    """
    found = _uploads.get(array, stream, form)
    if _local.session is not None:
        _local.session.uploaded(found)
    return found


def most_shared() -> int:
    """Return the bytes of shared memory that the device grants a block."""
    if SIMULATOR:
        return 227 * 1024
    return int(cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)


def available() -> tuple[bool, str]:
    """Return whether kernels can run here, and why or why not."""
    version = importlib.metadata.version("numba-cuda")
    if SIMULATOR:
        return True, f"Numba's CUDA simulator (numba-cuda {version}, NUMBA_ENABLE_CUDASIM=1)"
    try:
        if not cuda.is_available():
            return False, f"no CUDA device answers (numba-cuda {version}); see nvidia-smi"
        device = cuda.get_current_device()
    except Exception as error:  # The driver's errors have no common base class.
        return False, f"the CUDA driver fails: {str(error).splitlines()[0]}"
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    major, minor = device.compute_capability[:2]
    if (major, minor) < (7, 5):
        return False, f"{name}: compute capability {major}.{minor}; the kernels need 7.5 or later"
    return True, f"{name}, compute capability {major}.{minor}, numba-cuda {version}"


def tensor_cores() -> bool:
    """Return whether the device knows the matrix primitives: from compute capability 8.0 on."""
    return SIMULATOR or tuple(cuda.get_current_device().compute_capability[:2]) >= (8, 0)


@contextlib.contextmanager
def without_device(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Let kernels be compiled, not launched, for a device that is not there."""
    kept = _dispatcher.get_current_device
    _dispatcher.get_current_device = lambda: _Capability(capability)
    try:
        yield
    finally:
        _dispatcher.get_current_device = kept


@dataclass(frozen=True)
class _Capability:
    compute_capability: tuple[int, int]
