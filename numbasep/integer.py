"""Exact integer factors of integer kernels: ``K == columns.T @ rows`` with no rounding anywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["exact_factors"]

_Rows = list[list[int]]
_Factors = tuple[_Rows, _Rows]

# sum_r |columns[r]|_1 |rows[r]|_1 may be at most this multiple of sum|K|.
_GROWTH = 4
# A lattice basis of more rows takes a second and more, and seldom meets _GROWTH.
_LARGEST_RANK = 24
# Rounds of steps between pairs of terms. Kernels whose factors were then small enough took five at
# most; coefficients near 2**64 that differ in their last bits can take 2**64 steps of one.
_ROUNDS = 32
# Taps must be floats without rounding, too.
_LARGEST_TAP = 2**53


def exact_factors(
    kernel: npt.NDArray[Any], rank: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Return integer columns ``(R, kh)`` and rows ``(R, kw)`` of an integer kernel, or None.

    R is the kernel's exact rank; ``rank`` is its rank in floating point, a lower bound. None where
    no factors were found whose terms add up, in 1-norms, to at most 4 times the kernel's. They
    are looked for in the directions of the rows, in those of the columns, and, up to rank 24, in
    reduced bases of the lattices that they span.
    """
    table: _Rows = [[int(k) for k in row] for row in kernel]
    size = sum(map(_norm, table))
    if size >= 2**62:
        return None
    turned: _Rows = [list(column) for column in zip(*table, strict=True)]
    down, across = _parallel_rows(table), _parallel_rows(turned)
    if len(down[1]) == rank:
        return _checked(table, down)
    if len(across[1]) == rank:
        return _checked(table, (across[1], across[0]))
    if rank > _LARGEST_RANK:
        return None
    by_rows = _reduced(*_row_lattice(down))
    by_columns = _reduced(*_row_lattice(across))
    return _checked(table, min(by_rows, (by_columns[1], by_columns[0]), key=_growth))


def _checked(
    table: _Rows, factors: _Factors
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    columns, rows = factors
    size = sum(map(_norm, table))
    largest = max((abs(t) for taps in columns + rows for t in taps), default=0)
    if _growth(factors) > _GROWTH * size or largest >= _LARGEST_TAP:
        return None
    for r, taps in enumerate(columns):
        decides = next((d for d in (sum(taps), sum(rows[r]), max(taps, key=abs)) if d != 0), 1)
        if decides < 0:
            columns[r], rows[r] = [-t for t in taps], [-t for t in rows[r]]
    return (
        np.array(columns, np.int64).reshape(len(columns), len(table)),
        np.array(rows, np.int64).reshape(len(rows), len(table[0])),
    )


def _growth(factors: _Factors) -> int:
    return sum(_norm(c) * _norm(r) for c, r in zip(*factors, strict=True))


def _norm(taps: list[int]) -> int:
    return sum(abs(t) for t in taps)


def _parallel_rows(table: _Rows) -> _Factors:
    """Return factors with one term for each direction among the rows; they never grow.

    A row is its greatest common divisor times a row that stands for its direction.
    """
    columns: _Rows = []
    rows: _Rows = []
    seen: dict[tuple[int, ...], int] = {}
    for i, row in enumerate(table):
        divisor = math.gcd(*row)
        if divisor == 0:
            continue
        if next(k for k in row if k) < 0:
            divisor = -divisor
        direction = tuple(k // divisor for k in row)
        r = seen.setdefault(direction, len(rows))
        if r == len(rows):
            rows.append(list(direction))
            columns.append([0] * len(table))
        columns[r][i] = divisor
    return columns, rows


def _row_lattice(factors: _Factors) -> _Factors:
    """Replace the rows by a basis of the lattice they span, in echelon form, by Euclid's steps."""
    columns, rows = ([list(taps) for taps in side] for side in factors)
    done = 0
    for j in range(len(rows[0]) if rows else 0):
        while True:
            left = [i for i in range(done, len(rows)) if rows[i][j]]
            if not left:
                break
            p = min(left, key=lambda i: abs(rows[i][j]))
            if len(left) == 1:
                rows[done], rows[p] = rows[p], rows[done]
                columns[done], columns[p] = columns[p], columns[done]
                done += 1
                break
            for i in left:
                if i != p:
                    _move(columns, rows, i, p, -_nearest(rows[i][j], rows[p][j]))
    return columns[:done], rows[:done]


def _move(columns: _Rows, rows: _Rows, i: int, j: int, times: int) -> None:
    """Add ``times`` row j to row i; the product stays as it was."""
    if times:
        rows[i] = [a + times * b for a, b in zip(rows[i], rows[j], strict=True)]
        columns[j] = [a - times * b for a, b in zip(columns[j], columns[i], strict=True)]


def _nearest(a: int, b: int) -> int:
    """Return the integer nearest to a / b."""
    if b < 0:
        a, b = -a, -b
    return (2 * a + b) // (2 * b)


def _dot(a: list[int], b: list[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _reduced(columns: _Rows, rows: _Rows) -> _Factors:
    """Make the terms small: LLL on the rows, then steps between pairs of terms while they help."""
    _lll(columns, rows)
    for _ in range(_ROUNDS):
        improved = False
        for i in range(len(rows)):
            for j in range(len(rows)):
                if i != j and _improve(columns, rows, i, j):
                    improved = True
        if not improved:
            break
    return columns, rows


def _improve(columns: _Rows, rows: _Rows, i: int, j: int) -> bool:
    ci, cj, ri, rj = columns[i], columns[j], rows[i], rows[j]
    before = _norm(ci) * _norm(ri) + _norm(cj) * _norm(rj)
    guesses = {1, -1, -_nearest(_dot(ri, rj), _dot(rj, rj)), _nearest(_dot(ci, cj), _dot(ci, ci))}
    best, least = 0, before
    for times in sorted(guesses - {0}):
        after = _norm(ci) * _norm([a + times * b for a, b in zip(ri, rj, strict=True)])
        after += _norm(rj) * _norm([a - times * b for a, b in zip(cj, ci, strict=True)])
        if after < least:
            best, least = times, after
    _move(columns, rows, i, j, best)
    return best != 0


def _lll(columns: _Rows, rows: _Rows) -> None:
    """Reduce the rows in place (Lenstra, Lenstra and Lovasz), all in integers.

    Cohen, A Course in Computational Algebraic Number Theory, algorithm 2.6.7: ``d`` are the Gram
    determinants, ``m[i][j] / d[j + 1]`` the Gram-Schmidt coefficients.
    """
    n = len(rows)
    if n < 2:
        return
    d = [1] + [0] * n
    m = [[0] * n for _ in range(n)]

    def orthogonalise(k: int) -> None:
        for j in range(k + 1):
            u = _dot(rows[k], rows[j])
            for i in range(j):
                u = (d[i + 1] * u - m[k][i] * m[j][i]) // d[i]
            if j < k:
                m[k][j] = u
            else:
                d[k + 1] = u

    def shorten(k: int, j: int) -> None:
        times = _nearest(m[k][j], d[j + 1])
        if times:
            _move(columns, rows, k, j, -times)
            m[k][j] -= times * d[j + 1]
            for i in range(j):
                m[k][i] -= times * m[j][i]

    orthogonalise(0)
    k, known = 1, 0
    while k < n:
        if k > known:
            known = k
            orthogonalise(k)
        shorten(k, k - 1)
        if 4 * (d[k + 1] * d[k - 1] + m[k][k - 1] ** 2) < 3 * d[k] ** 2:
            _swap(columns, rows, d, m, k, known)
            k = max(1, k - 1)
        else:
            for j in range(k - 2, -1, -1):
                shorten(k, j)
            k += 1


def _swap(columns: _Rows, rows: _Rows, d: list[int], m: _Rows, k: int, known: int) -> None:
    for side in (columns, rows):
        side[k], side[k - 1] = side[k - 1], side[k]
    for j in range(k - 1):
        m[k][j], m[k - 1][j] = m[k - 1][j], m[k][j]
    u = m[k][k - 1]
    b = (d[k - 1] * d[k + 1] + u * u) // d[k]
    for i in range(k + 1, known + 1):
        t = m[i][k]
        m[i][k] = (d[k + 1] * m[i][k - 1] - u * t) // d[k]
        m[i][k - 1] = (b * t + u * m[i][k]) // d[k + 1]
    d[k] = b
