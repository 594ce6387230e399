"""Exact integer factors: the lattice steps keep the product, and shorten it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbasep import integer
from numbasep.factorise import factorise

Array = npt.NDArray[Any]


@st.composite
def products(draw: st.DrawFn) -> tuple[Array, Array]:
    kh, kw, rank = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(0, 4))
    largest = draw(st.sampled_from([1, 3, 50, 10**6]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    left = rng.integers(-largest, largest + 1, (kh, rank))
    return left, rng.integers(-largest, largest + 1, (rank, kw))


def product(columns: list[list[int]], rows: list[list[int]], shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape, object)
    for c, r in zip(columns, rows, strict=True):
        out += np.array(c, object)[:, None] * np.array(r, object)[None, :]
    return out


@given(products())
def test_factors_are_exact_and_small(pair: tuple[Array, Array]) -> None:
    kernel = pair[0] @ pair[1]
    rank = int(np.linalg.matrix_rank(kernel)) if kernel.any() else 0
    factors = integer.exact_factors(kernel, rank)
    if factors is None:
        assert rank > 1
        return
    columns, rows = factors
    assert columns.dtype == rows.dtype == np.int64
    assert columns.shape == (rank, kernel.shape[0])
    assert rows.shape == (rank, kernel.shape[1])
    assert (columns.T @ rows == kernel).all()
    growth = np.sum(np.abs(columns).sum(1) * np.abs(rows).sum(1))
    assert growth <= 4 * np.abs(kernel).sum()


@given(products())
def test_each_step_keeps_the_product(pair: tuple[Array, Array]) -> None:
    kernel = pair[0] @ pair[1]
    table = [[int(k) for k in row] for row in kernel]
    columns, rows = integer._parallel_rows(table)
    assert (product(columns, rows, kernel.shape) == kernel).all()
    columns, rows = integer._row_lattice((columns, rows))
    assert (product(columns, rows, kernel.shape) == kernel).all()
    # Echelon form: as many rows as the rank, each starting later than the one before.
    starts = [next(j for j, t in enumerate(row) if t) for row in rows]
    assert starts == sorted(set(starts))
    assert len(rows) == (np.linalg.matrix_rank(kernel) if kernel.any() else 0)
    integer._lll(columns, rows)
    assert (product(columns, rows, kernel.shape) == kernel).all()
    before = integer._growth((columns, rows))
    columns, rows = integer._reduced(columns, rows)
    assert (product(columns, rows, kernel.shape) == kernel).all()
    assert integer._growth((columns, rows)) <= before


@given(products())
def test_lll_meets_its_conditions(pair: tuple[Array, Array]) -> None:
    kernel = pair[0] @ pair[1]
    factors = integer._row_lattice(integer._parallel_rows([[int(k) for k in r] for r in kernel]))
    columns, rows = factors
    integer._lll(columns, rows)
    if len(rows) < 2:
        return
    basis = np.array(rows, np.float64)
    r = np.linalg.qr(basis.T, mode="r")
    lengths = np.abs(np.diag(r))
    mu = (r / np.diag(r)[:, None]).T
    # Size-reduced, and no vector much shorter than the one before it (Lovasz, 3/4). A row of the
    # basis may be as long as its lattice's determinant, which bounds what rounding does.
    blur = 1e3 * np.finfo(np.float64).eps * np.linalg.norm(basis) / lengths.min()
    assert np.abs(np.tril(mu, -1)).max() <= 0.5 + blur
    for k in range(1, len(rows)):
        assert lengths[k] ** 2 >= (0.75 - mu[k, k - 1] ** 2) * lengths[k - 1] ** 2 - (
            blur * lengths[k - 1] ** 2
        )


@pytest.mark.parametrize(("a", "b", "nearest"), [(7, 2, 4), (-7, 2, -3), (7, -2, -3), (6, 4, 2)])
def test_nearest_quotient(a: int, b: int, nearest: int) -> None:
    assert integer._nearest(a, b) == nearest


def test_factors_that_cancel_are_refused() -> None:
    # The shortest basis of a random lattice of this rank is larger than the kernel's own elements.
    rng = np.random.default_rng(3)
    kernel = rng.integers(-9, 10, (32, 20)) @ rng.integers(-9, 10, (20, 32))
    assert integer.exact_factors(kernel, 20) is None
    f = factorise(kernel)
    assert f.dtype == np.float64
    assert f.rank == 20
