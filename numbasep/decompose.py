"""The singular value decomposition that keeps a kernel's symmetries to the bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from numbasep.remainder import EPS

__all__ = ["balanced_terms"]

Array = npt.NDArray[Any]

# A sum of taps below this part of their 1-norm is taken for zero by the sign rule.
NO_SUM = 2.0**-20


def balanced_terms(kernels: Array) -> tuple[Array, Array, Array]:
    """Return columns ``(B, n, kh)``, sigma ``(B, n)`` descending and rows ``(B, n, kw)``.

    ``kernels[b]`` is the sum of ``outer(columns[b, r], rows[b, r])`` to a few eps; each side has
    the square root of sigma, and the sign that ``factorise`` states.
    """
    columns, sigma, rows = _symmetric_svd(kernels)
    root = np.sqrt(sigma)[..., None]
    columns, rows = _signed(columns * root, rows * root)
    return columns, sigma, rows


def _signed(columns: Array, rows: Array) -> tuple[Array, Array]:
    """Give each term the sign (complex: the phase) that :func:`factorise` states."""
    pivot = np.zeros(columns.shape[:-1], columns.dtype)
    largest = np.argmax(np.abs(columns), axis=-1)[..., None]
    candidates = [np.take_along_axis(columns, largest, -1)[..., 0]]
    for taps, conjugate in ((rows, True), (columns, False)):
        total = taps.sum(-1)
        clear = np.abs(total) > NO_SUM * np.abs(taps).sum(-1)
        total = np.conj(total) if conjugate else total
        candidates.append(np.where(clear, total, 0))
    for candidate in candidates:
        pivot = np.where(candidate != 0, candidate, pivot)
    if columns.dtype.kind == "c":
        size = np.abs(pivot)
        phase = np.where(size > 0, np.conj(pivot) / np.where(size > 0, size, 1), 1)[..., None]
        return columns * phase, np.asarray(rows * np.conj(phase))
    sign = np.where(pivot < 0, -1.0, 1.0)[..., None]
    # Adding 0 turns the -0.0 that a negated zero tap would be into 0.0.
    return columns * sign + 0.0, rows * sign + 0.0


def _symmetric_svd(kernels: Array) -> tuple[Array, Array, Array]:
    """Decompose ``(B, kh, kw)`` so that symmetries of a kernel are those of its taps, to the bit.

    A kernel that is even or odd along an axis is folded there, one that is so under a half turn is
    folded into its even and odd blocks, and a real one that is its own transpose has its
    eigenvectors taken. Returns columns ``(B, n, kh)``, sigma ``(B, n)`` descending, and rows
    ``(B, n, kw)``, of unit norm or zero.
    """
    count, kh, kw = kernels.shape
    n = min(kh, kw)
    columns = np.zeros((count, n, kh), kernels.dtype)
    sigma = np.zeros((count, n))
    rows = np.zeros((count, n, kw), kernels.dtype)
    kinds = np.stack(
        [
            _parity(kernels, kernels[:, ::-1]),
            _parity(kernels, kernels[:, :, ::-1]),
            _parity(kernels, kernels[:, ::-1, ::-1]),
            (_parity(kernels, kernels.swapaxes(1, 2)) == 1) & (kernels.dtype.kind == "f")
            if kh == kw
            else np.zeros(count, int),
        ],
        axis=-1,
    )
    for kind in np.unique(kinds, axis=0):
        where = np.flatnonzero((kinds == kind).all(-1))
        down, across, turned, transposed = (int(k) for k in kind)
        blocks = [(down, across)]
        if turned and not (down or across):
            blocks = [(1, turned), (-1, -turned)]
        found = [_folded_svd(kernels[where], d, a, bool(transposed)) for d, a in blocks]
        c, s, r = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        order = np.argsort(-s, axis=-1, kind="stable")
        terms = s.shape[1]
        columns[where, :terms] = np.take_along_axis(c, order[..., None], 1)
        sigma[where, :terms] = np.take_along_axis(s, order, 1)
        rows[where, :terms] = np.take_along_axis(r, order[..., None], 1)
    return columns, sigma, rows


def _parity(kernels: Array, turned: Array) -> Array:
    """Return 1 for kernels that equal their turned image, -1 for its negative, else 0."""
    even = (kernels == turned).all((-2, -1))
    odd = (kernels == -turned).all((-2, -1))
    return np.where(even, 1, np.where(odd, -1, 0))


def _folded_svd(
    kernels: Array, down: int, across: int, transposed: bool
) -> tuple[Array, Array, Array]:
    block = _fold(kernels, down)
    block = _fold(block.swapaxes(1, 2), across).swapaxes(1, 2)
    if transposed and down == across:
        values, vectors = np.linalg.eigh(block)
        order = np.argsort(-np.abs(values), axis=-1, kind="stable")
        values = np.take_along_axis(values, order, -1)
        vectors = np.take_along_axis(vectors.swapaxes(1, 2), order[..., None], 1)
        u, s, v = vectors, np.abs(values), vectors * np.where(values < 0, -1, 1)[..., None]
    else:
        u, s, v = np.linalg.svd(block, full_matrices=False)
        u, v = _projected(block, u, s, v)
    return _unfold(u, down, kernels.shape[1]), s, _unfold(v, across, kernels.shape[2])


def _projected(block: Array, u: Array, s: Array, v: Array) -> tuple[Array, Array]:
    """Return both sides' taps ``(B, terms, length)``, one side projected anew from the kernel.

    LAPACK's iteration stops up to 50 eps short (``dbdsqr``: TOLMUL). The product of one side's
    vectors, where they are a whole basis, with the kernel is the other side to rounding.
    """
    u = u.swapaxes(1, 2)
    count = s.shape[-1]
    sure = s > count * EPS * s[:, :1]
    over = np.where(sure, s, 1)[..., None]
    if block.shape[1] <= block.shape[2]:
        norm = np.sum(np.abs(u) ** 2, axis=-1, keepdims=True)
        return u, np.where(sure[..., None], np.conj(u) @ block / norm / over, v)
    norm = np.sum(np.abs(v) ** 2, axis=-1, keepdims=True)
    return np.where(sure[..., None], np.conj(v) @ block.swapaxes(1, 2) / norm / over, u), v


def _fold(kernels: Array, parity: int) -> Array:
    """Return ``Q.T @ kernel``, Q an orthonormal basis of the even (1) or odd (-1) columns."""
    if parity == 0:
        return kernels
    half = kernels.shape[1] // 2
    first, last = kernels[:, :half], kernels[:, ::-1][:, :half]
    folded = (first + parity * last) * math.sqrt(0.5)
    if parity < 0:
        return np.asarray(folded)
    return np.concatenate([folded, kernels[:, half : kernels.shape[1] - half]], axis=1)


def _unfold(taps: Array, parity: int, length: int) -> Array:
    """Return ``Q @ taps`` of folded taps ``(B, terms, folded length)``."""
    if parity == 0:
        return taps
    half = length // 2
    first = taps[..., :half] * math.sqrt(0.5)
    middle = taps[..., half:] if parity > 0 else np.zeros((*taps.shape[:-1], length - 2 * half))
    return np.concatenate([first, middle, parity * first[..., ::-1]], axis=-1)
