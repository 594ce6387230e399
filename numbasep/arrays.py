"""Arrays in and out: NumPy's view of what arrives, without a copy, and the result as its kind.

torch, JAX and other libraries are never imported here: an array of theirs brings its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.plan import checks
from numbasep.plan.spatial import Buffer
from numbasep.views import Device

Array = NDArray[Any]

CPU = 1  # DLPack's device type


@dataclass(frozen=True, slots=True)
class Kind:
    """A library's arrays in host memory.

    adopt: the elements of an array as a NumPy view; raises what that library raises.
    wrap: a NumPy array as one of the library's, sharing memory where the library can.
    """

    name: str
    adopt: Callable[[Any], Array]
    wrap: Callable[[Array], Any]


def same(array: Array) -> Array:
    return array


NUMPY = Kind("numpy", same, same)


def plain_tensor(tensor: Any) -> Any:
    """Return a tensor of torch's whose memory holds its elements."""
    if tensor.requires_grad:
        raise TypeError("the tensor requires a gradient, which would be lost; pass .detach()")
    if tensor.layout is not sys.modules["torch"].strided:
        raise TypeError(f"the tensor's layout is {tensor.layout}; pass .to_dense()")
    return tensor.resolve_conj().resolve_neg()


def _adopt_torch(tensor: Any) -> Array:
    tensor = plain_tensor(tensor)
    if str(tensor.dtype) != "torch.bfloat16":
        array: Array = tensor.numpy()
        return array
    import ml_dtypes

    bits: Array = tensor.view(sys.modules["torch"].int16).numpy()
    return bits.view(ml_dtypes.bfloat16)


def _wrap_torch(array: Array) -> Any:
    torch = sys.modules["torch"]
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _adopt_jax(array: Any) -> Array:
    if isinstance(array, sys.modules["jax"].core.Tracer):
        raise TypeError("a traced array has no elements yet; call it outside jax.jit")
    if any(device.platform != "cpu" for device in array.devices()):
        raise TypeError("its shards are on several devices; pass one of addressable_shards")
    return np.asarray(array)


def _wrap_jax(array: Array) -> Any:
    jax = sys.modules["jax"]
    return jax.numpy.asarray(array)


TORCH = Kind("torch", _adopt_torch, _wrap_torch)
JAX = Kind("jax", _adopt_jax, _wrap_jax)


def _other(value: Any) -> Kind:
    """A library that exchanges arrays by DLPack, as the array API standard has it."""
    namespace = getattr(value, "__array_namespace__", None)
    return Kind(
        type(value).__module__.split(".")[0],
        np.from_dlpack,
        same if namespace is None else namespace().from_dlpack,
    )


def kind_of(argument: str, value: Any) -> Kind:
    """Return whose array a value is; refuse what is no array in host memory."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{argument}: a masked array arrived and its mask would be lost; pass .filled(value)"
        )
    if isinstance(value, np.ndarray):
        return NUMPY
    library = type(value).__module__.split(".")[0]
    if hasattr(value, "__dlpack_device__") or library in ("jax", "jaxlib"):
        device, _ = value.__dlpack_device__() if library not in ("jax", "jaxlib") else (CPU, 0)
        if device != CPU:
            raise TypeError(
                f"{argument}: an array of {library} on another device arrived (DLPack type "
                f"{int(device)}); move it to the host"
            )
        return {"torch": TORCH, "jax": JAX, "jaxlib": JAX}.get(library) or _other(value)
    raise TypeError(
        f"{argument}: expected an array, got {type(value).__name__}; pass numpy.asarray(...) of it"
    )


def adopt(argument: str, value: Any) -> tuple[Array, Kind]:
    """Return a NumPy view of an array, and its kind."""
    if type(value) is np.ndarray:
        return value, NUMPY
    kind = kind_of(argument, value)
    try:
        return kind.adopt(value), kind
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(f"{argument}: {kind.name}: {error}") from None


def describe(argument: str, array: Array | Buffer | Device) -> Buffer:
    """Return what a plan needs to know of an array."""
    if isinstance(array, Buffer):
        return array
    if isinstance(array, Device):
        return Buffer(array.shape, array.strides, array.dtype, array.usable)
    return Buffer(
        array.shape,
        array.strides,
        "uint8" if array.dtype == np.bool_ else checks.dtype(argument, array.dtype),
        bool(array.flags.aligned and array.dtype.isnative),
    )


def check_kinds(x: str, out: str) -> None:
    """Refuse a result of another library than the image's."""
    if x != out:
        raise TypeError(f"out: an array of {out} arrived and x is one of {x}; pass that")


def check_wrap(library: str, dtype: str) -> None:
    """Refuse a result that a library would narrow without a word."""
    if library == "jax" and dtype in ("int64", "uint64", "float64", "complex128"):
        jax = sys.modules["jax"]
        if not jax.config.jax_enable_x64:
            raise TypeError(
                f"x: the result is {dtype}, which JAX narrows; pass dtype= a 32-bit dtype, or set "
                "jax_enable_x64"
            )


def check_out(out: Array | Device, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse an ``out`` into which a result of this shape and dtype cannot be written."""
    if out.shape != shape:
        raise ValueError(f"out: shape {out.shape} arrived and the result has {shape}; pass that")
    name = out.dtype if isinstance(out, Device) else checks.name_of(out.dtype)
    if name != dtype:
        raise ValueError(
            f"out: dtype {name} arrived and the result has {dtype}; pass that, or dtype="
        )
    if not (out.writable if isinstance(out, Device) else out.flags.writeable):
        raise ValueError("out: the array is read-only; pass a writable one")
    if 0 not in out.shape and any(
        step == 0 and size > 1 for step, size in zip(out.strides, out.shape, strict=True)
    ):
        raise ValueError(
            "out: elements of the array share memory (a broadcast view); pass a full one"
        )
