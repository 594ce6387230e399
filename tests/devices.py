"""Arrays on a device, of several libraries: real ones, or, in the simulator, stand-ins.

A stand-in has the attributes of its library's arrays that are looked at, over host memory, which
is what the simulator's kernels read.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Library:
    """put: an array on the device with these elements. get: its elements. is_own: whether one."""

    name: str
    put: Callable[[Array], Any]
    get: Callable[[Any], Array]
    is_own: Callable[[Any], bool]


class Exposed:
    """Anything with ``__cuda_array_interface__``: memory that another array holds."""

    def __init__(self, interface: dict[str, Any], owner: Any, **more: Any) -> None:
        self.owner = owner
        self.interface = {**interface, "version": 3, **more}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface


def exposed(array: Array, **more: Any) -> Exposed:
    """Return host memory as what a CUDA library exposes."""
    return Exposed(dict(array.__array_interface__), array, **more)


class CupyArray:
    """A stand-in for ``cupy.ndarray``."""

    __module__ = "cupy"

    def __init__(self, array: Array, device: int = 0) -> None:
        self.array = array
        self.data = SimpleNamespace(ptr=array.ctypes.data, device_id=device)
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype

    def transpose(self, order: tuple[int, ...]) -> CupyArray:
        return CupyArray(self.array.transpose(order))


class CudaTensor:
    """A stand-in for a CUDA tensor: one of the CPU that says otherwise."""

    __module__ = "torch"
    is_cuda = True

    def __init__(self, tensor: Any, device: int = 0) -> None:
        self.tensor, self.device_number = tensor, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    def get_device(self) -> int:
        return self.device_number

    def resolve_conj(self) -> CudaTensor:
        return CudaTensor(self.tensor.resolve_conj(), self.device_number)

    def resolve_neg(self) -> CudaTensor:
        return CudaTensor(self.tensor.resolve_neg(), self.device_number)

    def permute(self, order: tuple[int, ...]) -> CudaTensor:
        return CudaTensor(self.tensor.permute(order), self.device_number)


CUPY_STREAM, TORCH_STREAM = 11, 12


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put stand-ins in the place of what CuPy and torch do on a device."""
    import torch

    cupy = ModuleType("cupy")
    cupy.empty = lambda shape, dtype: CupyArray(aligned(np.empty(shape, dtype)))  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        get_current_stream=lambda device=None: SimpleNamespace(ptr=CUPY_STREAM),
        Device=lambda number: nullcontext(),
        ExternalStream=lambda handle, device: nullcontext(),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    real = torch.empty

    def empty(*sizes: Any, device: Any = None, **options: Any) -> Any:
        if device is None or torch.device(device).type != "cuda":
            return real(*sizes, device=device, **options)
        return CudaTensor(strided_tensor(aligned(_of_tensor(real(*sizes, **options)))))

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=TORCH_STREAM)
    )
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: handle)


def strided_tensor(array: Array) -> Any:
    """Return a CPU tensor of an array, with its strides where torch can have them."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if any(step % array.itemsize or step < 0 for step in array.strides) or not array.size:
        array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def libraries(runs_on: str) -> list[Library]:
    """Return the libraries whose arrays can be had here."""
    from numba import cuda

    if runs_on == "simulator":
        numba = type(cuda.to_device(np.zeros(1)))
        return [
            Library("interface", exposed, _of_interface, lambda a: isinstance(a, numba)),
            Library("numba", _simulated, _of_interface, lambda a: isinstance(a, numba)),
            Library("dlpack", _exchanged, _of_exchanged, lambda a: isinstance(a, numba)),
            Library("cupy", CupyArray, lambda a: a.array, lambda a: isinstance(a, CupyArray)),
            Library(
                "torch",
                lambda array: CudaTensor(strided_tensor(array)),
                lambda a: _of_tensor(a.tensor),
                lambda a: isinstance(a, CudaTensor),
            ),
        ]
    numba = type(cuda.to_device(np.zeros(1)))
    found = [
        Library("interface", _exposed_on_device, _from_device, lambda a: isinstance(a, numba)),
        Library("numba", cuda.to_device, _from_device, lambda a: isinstance(a, numba)),
    ]
    try:
        import cupy
    except ImportError:
        pass
    else:
        found.append(
            Library("cupy", cupy.asarray, cupy.asnumpy, lambda a: isinstance(a, cupy.ndarray))
        )
    import torch

    if torch.cuda.is_available():
        found.append(
            Library(
                "torch",
                lambda array: strided_tensor(array).cuda(),
                lambda a: _of_tensor(a.cpu()),
                lambda a: isinstance(a, torch.Tensor) and a.is_cuda,
            )
        )
    return found


def _simulated(array: Array) -> Any:
    from numba import cuda

    return type(cuda.device_array(1))(array)


def aligned(array: Array) -> Array:
    """Return the same array, its first byte aligned as in a device's memory."""
    low, high = np.lib.array_utils.byte_bounds(array)
    memory = np.zeros(high - low + 256, np.uint8)
    start = -memory.ctypes.data % 256 + array.ctypes.data - low
    moved = np.ndarray(array.shape, array.dtype, memory, start, array.strides)
    moved[...] = array
    moved.flags.writeable = array.flags.writeable
    return moved


def _of_interface(array: Any) -> Array:
    return array.owner if isinstance(array, Exposed) else array._ary


def _exchanged(array: Array) -> Any:
    # NumPy gives away no read-only memory.
    return Exchanged(array if array.flags.writeable else array.copy())


def _of_exchanged(array: Any) -> Array:
    return array.array if isinstance(array, Exchanged) else array._ary


def _exposed_on_device(array: Array) -> Exposed:
    from numba import cuda

    base = cuda.to_device(np.ascontiguousarray(array))
    return Exposed(base.__cuda_array_interface__, base)


def _from_device(array: Any) -> Array:
    from numba import cuda

    cuda.synchronize()
    found: Array = (array.owner if isinstance(array, Exposed) else array).copy_to_host()
    return found


def _of_tensor(tensor: Any) -> Array:
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class Exchanged:
    """A stand-in for an array that only DLPack gives away: host memory that says otherwise.

    streams: of those who asked for it.
    """

    def __init__(self, array: Array) -> None:
        self.array = array
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: Any = None, **more: Any) -> Any:
        self.streams.append(stream)
        capsule = self.array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # After the pointer to the elements stands the device's type.
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = 2
        return capsule
