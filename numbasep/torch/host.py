"""Tensors as the package's functions take them, and weights in host memory.

The kernels take weights from the host. A weight on a device is copied for each call, and the call
waits for it: a write through ``.data``, the replay of a CUDA graph and a kernel of another library
raise no version counter, so that nothing tells a copy that was kept from what the weight holds now.
``kept_weights`` is for those who promise that none of these happen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakTensorKeyDictionary

from numbasep.arrays import TORCH
from numbasep.cpu import compare
from numbasep.torch.arguments import stands_last


def seen(tensor: Tensor) -> Any:
    """Return a tensor as the package takes it soonest: of one on the host, NumPy's view."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        return tensor
    if tensor.dtype is torch.float32 and not tensor.is_neg():
        return tensor.numpy()
    return TORCH.adopt(tensor)


def beside(x: Tensor, out: Tensor) -> tuple[Any, dict[str, Any]]:
    """Return an image as ``seen``, and the layout and ``out`` of a call with it.

    Channels last it goes as NHWC: as the kernels see it, so that a repeated call is known at once.
    """
    if stands_last(x):
        image, place = (one.detach().permute(0, 2, 3, 1) for one in (x, out))
        return seen(image), {"layout": "NHWC", "out": seen(place)}
    return seen(x), {"layout": "NCHW", "out": seen(out)}


def alike(*images: Tensor) -> tuple[list[Any], str]:
    """Return images as ``seen``, all in the layout in which they stand, and that."""
    if all(stands_last(one) for one in images):
        return [seen(one.detach().permute(0, 2, 3, 1)) for one in images], "NHWC"
    return [seen(one) for one in images], "NCHW"


class Copies:
    """What tensors on the host hold now; they are contiguous, and may be gone when it is asked."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        with torch.inference_mode(False):
            self._copies = [one.detach().clone() for one in tensors]
        self._table = np.array(
            [
                (one.data_ptr(), copy.data_ptr(), one.numel() * one.element_size())
                for one, copy in zip(tensors, self._copies, strict=True)
            ],
            np.int64,
        )

    def same(self) -> bool:
        """Return whether what is where the tensors were holds the same bytes; they are there."""
        return compare.same(self._table)


class Kept:
    """What is made of tensors, kept while the first of them lives."""

    def __init__(self) -> None:
        self._found = WeakTensorKeyDictionary()
        self._lock = threading.Lock()

    def by_version(self, what: object, make: Callable[..., Any], *tensors: Tensor) -> Any:
        """Return ``make(*tensors)``, from before where no version counter and no memory changed.

        what: tells makes.
        """
        if not _plain(tensors):
            return make(*tensors)
        try:
            versions = what, [(id(one), one._version, one.data_ptr()) for one in tensors]
        except RuntimeError:
            # Without a version counter: of torch.inference_mode.
            return make(*tensors)
        found = self._get(tensors[0])
        if found is not None and found[0] == versions:
            return found[1]
        return self._put(tensors[0], versions, _outlasting(make, tensors))

    def by_content(self, what: object, make: Callable[..., Any], *tensors: Tensor) -> Any:
        """Return ``make(*tensors)``, from before where all hold what they held then.

        what: tells makes. For tensors on the host: all their bytes are compared.
        """
        if not _plain(tensors) or not all(one.is_contiguous() for one in tensors):
            return make(*tensors)
        kinds = what, [(one.data_ptr(), one.dtype, one.shape) for one in tensors]
        found = self._get(tensors[0])
        if found is not None:
            (before, copies), made = found
            if before == kinds and copies.same():
                return made
        return self._put(tensors[0], (kinds, Copies(tensors)), _outlasting(make, tensors))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._found.clear()

    def _get(self, tensor: Tensor) -> Any:
        with self._lock:
            # torch's dictionary has no types.
            return self._found.get(tensor)  # type: ignore[no-untyped-call]

    def _put(self, tensor: Tensor, key: Any, made: Any) -> Any:
        with self._lock:
            self._found[tensor] = key, made
        return made


def _plain(tensors: tuple[Tensor, ...]) -> bool:
    """Return whether tensors have memory of their own: not those of a compiler or of torch.func."""
    if any(type(one) not in (Tensor, Parameter) for one in tensors):
        return False
    try:
        return all(one.data_ptr() or one.numel() == 0 for one in tensors)
    except RuntimeError:
        return False


def _outlasting(make: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Any:
    """Return ``make(*tensors)`` fit for a later call that takes gradients."""
    with torch.inference_mode(False), torch.no_grad():
        return make(*tensors)


# Copies in host memory, and factors; weights with a batch norm folded in.
_copies, _factors = Kept(), Kept()
folds = Kept()
_promises, _lock = 0, threading.Lock()


@contextmanager
def kept_weights() -> Iterator[None]:
    """Keep host copies of weights on a device from call to call, until the ``with`` ends.

    Without it every call copies its weights, and waits for the device to do so. Inside, a weight is
    copied again when its version counter, which every operation in place raises, or its memory has
    changed. Nothing else may change weights inside: no write through ``.data``, no CUDA graph that
    trains, no kernel of another library; leave and enter again where that happens. It holds in all
    threads, those of backward passes included.

    A CUDA graph of a module can be captured inside only, after a call of the module; it replays
    with the weights of that time.
    """
    global _promises
    with _lock:
        _promises += 1
    try:
        yield
    finally:
        with _lock:
            _promises -= 1
            if not _promises:
                for kept in (_copies, _factors, folds):
                    kept.clear()


def promised() -> bool:
    """Return whether weights on a device change only in ways that their version counters show."""
    return _promises > 0


def copied(tensor: Tensor) -> Tensor:
    """Return a copy in host memory; waits for the device."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "weight: one on a device arrived while a CUDA graph is captured, which cannot copy it; "
            "call the module once, and capture, inside numbasep.torch.kept_weights()"
        )
    return tensor.detach().to("cpu", copy=True)


def host(tensor: Tensor | None) -> Any:
    """Return a weight or a bias in host memory, as ``seen``."""
    if tensor is None:
        return None
    if tensor.device.type != "cpu":
        tensor = _copies.by_version(None, copied, tensor) if promised() else copied(tensor)
    return seen(tensor)


def factors(columns: Tensor, rows: Tensor) -> Any:
    """Return (filters, R, kh) and (filters, R, kw) as a stack of SeparableKernel."""
    if columns.device.type != "cpu" and promised():
        return _factors.by_version(None, _stacked, columns, rows)
    return _stacked(columns, rows)


def _stacked(columns: Tensor, rows: Tensor) -> Any:
    from numbasep.factorise import SeparableKernel

    taps = [
        (one if one.device.type == "cpu" else copied(one)).detach().to(torch.float64).numpy()
        for one in (columns, rows)
    ]
    return SeparableKernel.from_taps(*taps)
