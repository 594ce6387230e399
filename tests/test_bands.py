"""How large host images are cut into bands: arithmetic alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from numbasep.boundary import map_index
from numbasep.plan import bands
from numbasep.plan.bands import Bands
from numbasep.plan.geometry import Axis, SpatialPlan
from tests.by_hand import axes

PLAN = SpatialPlan(1, 1, Axis(9, 9, 3), Axis(9, 9, 3), 1, False, 0, 0, "uint8", "float32", "int32")


@given(axis=axes(30, taps=9, stride=4, dilation=5), boundary=st.integers(0, 4), data=st.data())
def test_a_band_reads_what_the_whole_does(axis: Axis, boundary: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, axis.out - 1))
    end = data.draw(st.integers(begin + 1, axis.out))
    pieces, part = bands.window(axis, begin, end, boundary)
    rows = [row for piece in pieces for row in piece]
    assert len(rows) == part.size <= bands.image_rows(axis, end - begin)
    assert part.out == end - begin
    for o in range(part.out):
        for k in range(axis.taps):
            at = (begin + o) * axis.stride + axis.origin + k * axis.dilation
            found = map_index(
                o * part.stride + part.origin + k * part.dilation, part.size, boundary
            )
            assert map_index(at, axis.size, boundary) == (rows[found] if found >= 0 else -1)


@given(
    planes=st.integers(1, 9),
    y=axes(60, taps=9, stride=4),
    free=st.integers(1, 40_000),
    band=st.integers(1, 10_000),
)
def test_bands_cover_the_result_and_fit(planes: int, y: Axis, free: int, band: int) -> None:
    plan = replace(PLAN, planes=planes, y=y)
    chosen = bands.choose(bands.whole(plan), free, band)
    assert chosen.planes == 1 or chosen.rows == y.out
    most = sum(bands.sizes(bands.whole(plan), chosen.planes, chosen.rows))
    assert 2 * most <= free or (chosen.planes, chosen.rows) == (1, 1)
    seen = []
    for part in bands.cut(bands.whole(plan), chosen):
        assert part.problem.planes == part.last - part.first
        assert part.problem.y.out == part.end - part.begin
        taken = part.problem.planes * part.problem.y.size * plan.x.size
        sizes = bands.sizes(bands.whole(plan), chosen.planes, chosen.rows)
        assert taken <= sizes[0]
        assert part.problem.planes * part.problem.y.out * plan.x.out * 4 <= sizes[1]
        seen += [(p, o) for p in range(part.first, part.last) for o in range(part.begin, part.end)]
    assert seen == [(p, o) for p in range(planes) for o in range(y.out)]


@given(planes=st.integers(1, 9), rows=st.integers(1, 99))
def test_smaller_bands_end_at_one_row(planes: int, rows: int) -> None:
    plan = replace(PLAN, planes=planes, y=Axis(rows, rows, 1))
    found: Bands | None = None
    steps = [Bands(planes, rows)]
    while (found := bands.smaller(bands.whole(plan), found)) is not None:
        before, after = (one.slots * sum(bands.sizes(bands.whole(plan), one.planes, one.rows))
                         for one in (steps[-1], found))  # fmt: skip
        assert after < before
        steps.append(found)
    assert steps[-1] == Bands(1, 1, 1)
    assert len(steps) <= 14


def test_large_images_have_bands_of_some_16_mib() -> None:
    axis = Axis(40_000, 40_000, 31, origin=-15)
    plan = replace(PLAN, y=axis, x=axis, storage="uint16", output="float32")
    assert bands.large(bands.whole(plan))
    chosen = bands.choose(bands.whole(plan), 70e9)
    assert 8 << 20 < sum(bands.sizes(bands.whole(plan), 1, chosen.rows)) < 96 << 20
    # The rows between bands are read twice: few of them.
    assert chosen.rows >= 7 * 30
    less = bands.choose(bands.whole(plan), 30e6)
    assert sum(bands.sizes(bands.whole(plan), 1, less.rows)) <= 15e6


def test_small_images_are_not_cut() -> None:
    small = replace(PLAN, y=Axis(2048, 2048, 3), x=Axis(2048, 2048, 3))
    assert not bands.large(bands.whole(small))
