"""Weights as the kernels take them: host arrays, copied from a device once for each value.

A copy is kept for as long as its tensor lives and is made again when the tensor's version counter,
which every operation in place raises, or its memory has changed: one wait for the device for each
weight and optimiser step, none in inference. What writes through ``.data`` raises no counter: call
``forget()`` after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakTensorKeyDictionary


class Kept:
    """What is made of tensors, kept while the first of them lives and none of them changes."""

    def __init__(self) -> None:
        self._found = WeakTensorKeyDictionary()
        self._lock = threading.Lock()

    def get(self, what: object, make: Callable[..., Any], *tensors: Tensor) -> Any:
        """Return ``make(*tensors)``, from before where it is still right; ``what`` tells makes."""
        if any(type(tensor) not in (Tensor, Parameter) for tensor in tensors):
            # Without memory: of a compiler.
            return make(*tensors)
        try:
            seen = what, [(id(one), one._version, one.data_ptr()) for one in tensors]
        except RuntimeError:
            # Without a version counter (of torch.inference_mode), or memory (of torch.func).
            return make(*tensors)
        with self._lock:
            # torch's dictionary has no types.
            found = self._found.get(tensors[0])  # type: ignore[no-untyped-call]
        if found is not None and found[0] == seen:
            return found[1]
        made = make(*tensors)
        with self._lock:
            self._found[tensors[0]] = seen, made
        return made

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._found.clear()


# Copies in host memory; factors; weights with a batch norm folded in.
_copies, _factors, folds = Kept(), Kept(), Kept()


def forget() -> None:
    """Forget every copy of weights: needed after writing to them through ``.data`` only."""
    for kept in (_copies, _factors, folds):
        kept.clear()


def copied(tensor: Tensor) -> Tensor:
    """Return a copy in host memory; waits for the device."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "weight: a changed weight on a device arrived while a CUDA graph is captured; call the "
            "module once before the capture"
        )
    return tensor.detach().to("cpu", copy=True)


def host(tensor: Tensor | None) -> Tensor | None:
    """Return a weight or a bias in host memory."""
    if tensor is None or tensor.device.type == "cpu":
        return None if tensor is None else tensor.detach()
    found: Tensor = _copies.get(None, copied, tensor)
    return found


def factors(columns: Tensor, rows: Tensor) -> Any:
    """Return (filters, R, kh) and (filters, R, kw) as a stack of SeparableKernel."""
    if columns.device.type == "cpu":
        return _stacked(columns, rows)
    return _factors.get(None, _stacked, columns, rows)


def _stacked(columns: Tensor, rows: Tensor) -> Any:
    from numbasep.factorise import SeparableKernel

    taps = [one.detach().to("cpu", torch.float64).numpy() for one in (columns, rows)]
    return SeparableKernel.from_taps(*taps)
