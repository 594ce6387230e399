"""explain of the channelwise functions: against the calls, against cost, and by hand."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numbasep
from numbasep import (
    cost,
    depthwise_conv2d,
    depthwise_separable_conv2d,
    explain,
    factorise,
    pointwise_conv2d,
)
from numbasep.plan import bound, cuda_depthwise, traffic
from numbasep.plan.geometry import Axis
from tests import test_refusals_channelwise as refusals
from tests.conftest import examples
from tests.devices import exposed

LAYOUTS = ("NCHW", "NHWC")


@given(
    st.integers(1, 30), st.integers(1, 20), st.integers(1, 6), st.integers(1, 4),
    st.integers(-8, 3), st.integers(1, 9), st.sampled_from((1, 2, 4)),
)  # fmt: skip
def test_traffic_is_that_of_the_tiles(
    size: int, out: int, taps: int, apart: int, origin: int, tile: int, unit: int
) -> None:
    def inside(places: set[int]) -> int:
        return sum(0 <= place < size for place in places)

    def whole(places: set[int], step: int) -> set[int]:
        """From the first to the last, every ``step``-th."""
        return set(range(min(places), max(places) + 1, step))

    axis = Axis(size, out, taps, 1, apart if taps > 1 else 1, origin)
    phases = [list(range(first, out, axis.dilation)) for first in range(axis.dilation)]
    tiles = [p[i : i + tile] for p in phases for i in range(0, len(p), tile)]
    read = [{o + origin + k * axis.dilation for o in t for k in range(taps)} for t in tiles]
    assert traffic.phased(axis, tile) == sum(inside(whole(r, axis.dilation)) for r in read)

    axis = Axis(size, out, taps, apart, 1, origin)
    copied = 0
    for first in range(0, out, tile):
        low = first * apart + origin
        high = low + (tile - 1) * apart + taps
        copied += inside({x for x in range(low - unit, high + unit)
                          if low // unit <= x // unit <= (high - 1) // unit})  # fmt: skip
    assert traffic.copied(axis, tile, unit) == copied

    parts = 0
    for k in range(0, taps, unit):
        count = min(unit, taps - k)
        for first in range(0, out, tile):
            outs = range(first, min(first + tile, out))
            places = {o * apart + origin + j for o in outs for j in range(k, k + count)}
            parts += inside(places if count == 1 else whole(places, 1))
    assert traffic.parted(axis, tile, unit) == parts


def test_bytes_and_multiply_adds_are_those_of_cost(backend: str) -> None:
    """And of both ways, of which one is chosen; shapes stand for arrays."""

    @settings(max_examples=examples(backend))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        draw = data.draw
        n, c, m = (draw(st.integers(1, high)) for high in (40, 70, 2))
        outputs = draw(st.integers(1, 140))
        kernel = draw(st.sampled_from(((3, 3), (5, 5), (1, 3), (2, 4), (9, 9))))
        stride = draw(st.sampled_from((1, 2, (1, 3))))
        padding = draw(st.sampled_from((0, 1, (0, 1, 2, 0), "same")))
        dilation = draw(st.sampled_from((1, 2)))
        layout = draw(st.sampled_from(LAYOUTS))
        name = draw(st.sampled_from(("float32", "float64", "float16", "bfloat16")))
        biased = draw(st.booleans())
        h, w = (draw(st.integers(2 * k, 70)) for k in kernel)
        counted = cost(
            (n, c, h, w), outputs, kernel, stride=stride, padding=padding, dilation=dilation,
            depth_multiplier=m, bias=biased, dtype=name,
        )  # fmt: skip
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        place = {"layout": layout, "backend": backend}
        bias = [np.ones(size, np.float32) if biased else None for size in (c * m, outputs)]
        image = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
        first = explain(
            depthwise_conv2d, (image, name), (c * m, 1, *kernel), bias[0], **options, **place
        )
        second = explain(pointwise_conv2d, (first.shape, name), (outputs, c * m), bias[1], **place)
        both = explain(
            depthwise_separable_conv2d, (image, name), (c * m, 1, *kernel), (outputs, c * m),
            depthwise_bias=bias[0], pointwise_bias=bias[1], **options, **place,
        )  # fmt: skip
        assert counted.pointwise is not None
        for said, part in ((first, counted.depthwise), (second, counted.pointwise)):
            assert (said.bytes_least, said.multiply_adds) == (part.bytes, part.multiply_adds)
        out = counted.out_shape
        assert both.shape == (out if layout == "NCHW" else (out[0], *out[2:], out[1]))
        assert both.multiply_adds_dense == counted.standard.multiply_adds
        assert {said.dtype for said in (first, second, both)} == {name}
        one, two = both.ways
        assert one.chosen != two.chosen
        assert both.launches == (1 if one.chosen else 2)
        assert two.launches[0].bytes_least == first.bytes_least
        assert (two.bytes_least, two.multiply_adds) == (
            counted.two_launches.bytes, counted.two_launches.multiply_adds
        )  # fmt: skip
        if one.launches:
            assert one.bytes_least == counted.separable.bytes
            assert one.multiply_adds == counted.separable.multiply_adds
            assert one.bytes_moved >= one.bytes_least
            # Both bound by the same arithmetic have the same time, but for rounding.
            assert one.seconds <= two.seconds * (1 + 1e-9)
        else:
            assert "no room" in one.why
        for launch in (*one.launches, *two.launches, *first.ways[0].launches):
            assert launch.bytes_moved >= launch.bytes_least
            assert launch.seconds > 0

    check()


def rows() -> list[dict[str, Any]]:
    with (Path(__file__).parent / "layers.csv").open(newline="") as file:
        return [
            {key: value if key == "name" else int(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["float32", "float16"])
def test_the_choice_is_the_rules(layout: str, name: str, backend: str) -> None:
    """One launch moves less where it is chosen, and mostly weights where they decide against it."""
    chosen = set()
    for row in rows():
        n, c, h, w, k, outputs = (row[key] for key in ("N", "C", "H", "W", "k", "Cout"))
        if not outputs:
            continue
        said = explain(
            depthwise_separable_conv2d,
            ((n, c, h, w) if layout == "NCHW" else (n, h, w, c), name),
            (c, 1, k, k), (outputs, c), stride=row["stride"], padding=row["pad"],
            dilation=row["dilation"], layout=layout, backend=backend,
        )  # fmt: skip
        one, two = said.ways
        chosen.add(one.chosen)
        why = said.notes[-1] if one.chosen else two.why
        assert why in said.notes
        if one.chosen:
            # The rule does not know that CPU bands read weights again as float32, whatever the
            # image is.
            if name == "float32" or backend == "cuda":
                assert one.bytes_moved < two.bytes_moved, row["name"]
        elif "rereading" in why:
            assert one.bytes_moved > 2 * one.bytes_least, row["name"]
    assert True in chosen


def test_figures_by_hand() -> None:
    """KernelBench 86: 16 x 64 x 512 x 512, 3 x 3, to 128 channels."""
    options = {"padding": 1, "backend": "cuda"}
    layer: tuple[Any, ...] = ((16, 64, 512, 512), (64, 1, 3, 3), (128, 64))
    said = explain(depthwise_separable_conv2d, *layer, **options)
    one, two = said.ways
    pixels = 16 * 512 * 512
    assert one.bytes_least == 4 * (pixels * (64 + 128) + 64 * 9 + 64 * 128)
    assert two.bytes_least == one.bytes_least + 4 * pixels * 64 * 2
    assert one.multiply_adds == two.multiply_adds == pixels * 64 * (9 + 128)
    assert [launch.binds for launch in one.launches] == ["float32 arithmetic"]
    assert one.seconds == pytest.approx(pixels * 64 * 137 / 33.5e12)
    assert [launch.binds for launch in two.launches] == ["memory", "float32 arithmetic"]
    text = str(said)
    for part in ("modelled: an H200", f"{one.bytes_least:,}", f"{two.bytes_least:,}", "chosen",
                 "one launch", "two launches", "float32 arithmetic binds", said.tile):  # fmt: skip
        assert part in text
    fast = explain(depthwise_separable_conv2d, *layer, precision="tf32", **options)
    assert fast.ways[0].launches[0].binds == "memory"
    wide = explain(pointwise_conv2d, ((64, 1024, 32, 32), "float16"), (4096, 1024), backend="cuda")
    assert wide.ways[0].launches[0].binds == "tensor cores"
    assert wide.variant == "tensor cores, float16"


def test_what_bounds() -> None:
    machine = bound.Machine("one", 10.0, {"float32": 2.0, "tf32": 20.0})
    assert bound.bound(machine, 20, {"float32": 2}) == ("memory", 2.0)
    assert bound.bound(machine, 20, {"float32": 6, "tf32": 40}) == ("float32 arithmetic", 3.0)
    assert bound.bound(machine, 20, {"float32": 4, "tf32": 80}) == ("tensor cores", 4.0)
    one, two = bound.cores(1, 32), bound.cores(2, 32)
    assert (two.memory, two.arithmetic["float64"]) == (2 * one.memory, one.arithmetic["float32"])


CASES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "planes": lambda x: (depthwise_conv2d, x, np.ones((4, 1, 3, 3)), {}),
    "pixels": lambda x: (depthwise_conv2d, x, np.ones((4, 1, 3, 3)), {"layout": "NHWC"}),
    "strided": lambda x: (
        depthwise_conv2d, x, np.ones((8, 1, 3, 3)), {"stride": 2, "padding": "same"},
    ),
    "low rank": lambda x: (depthwise_conv2d, x, factorise(np.ones((4, 1, 3, 3))), {}),
    "pointwise": lambda x: (pointwise_conv2d, x, np.ones((5, 4)), {}),
    "pointwise NHWC": lambda x: (pointwise_conv2d, x, np.ones((5, 4)), {"layout": "NHWC"}),
    "tf32": lambda x: (pointwise_conv2d, x, np.ones((5, 4)), {"precision": "tf32"}),
    "one launch": lambda x: (
        depthwise_separable_conv2d, x, np.ones((4, 1, 3, 3)), np.ones((5, 4)), {"fuse": True},
    ),
    "two launches": lambda x: (
        depthwise_separable_conv2d, x, np.ones((4, 1, 3, 3)), np.ones((5, 4)), {"fuse": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_tiles_are_the_launchers(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the call's own choices return, in their order, is what was explained."""
    x = np.ones((1, 4, 8, 4), np.float32)
    op, *args, options = CASES[name](x)
    taken: list[str] = []

    def record(choose: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*given: Any) -> Any:
            taken.append(str(choose(*given)))
            return choose(*given)

        return recorded

    with monkeypatch.context() as patch:
        for half in ("depthwise", "pointwise", "fused"):
            module = importlib.import_module(f"numbasep.{backend}.{half}")
            if backend == "cpu":
                module.chosen.cache_clear()
            elif half == "depthwise":
                module = cuda_depthwise
            patch.setattr(module, "choose", record(module.choose))
        if backend == "cpu":
            # Where the other passes find it.
            module = importlib.import_module("numbasep.cpu.pointwise_tiles")
            patch.setattr(module, "choose", record(module.choose))
        result = op(*args, backend=backend, **options)
    said = explain(op, *args, backend=backend, **options)
    assert said.tile == ", then ".join(taken)
    assert said.launches == len(taken)
    assert (said.shape, said.dtype) == (result.shape, result.dtype.name)
    shapes = [one if isinstance(one, numbasep.SeparableKernel) else one.shape for one in args]
    # Where a shape stands for an array, nothing is known of where it is.
    known = explain(op, *shapes, backend=backend, **options)
    assert replace(known, notes=()) == replace(said, notes=())


def test_notes(backend: str) -> None:
    def notes(x: Any, **options: Any) -> str:
        weight = np.ones((4, 1, 3, 3))
        return " ".join(explain(depthwise_conv2d, x, weight, backend=backend, **options).notes)

    x = np.ones((1, 4, 8, 8), np.float32)
    assert "copied first" not in notes(x)
    assert "copied first" in notes(np.ones((1, 4, 16, 8), np.float32)[:, :, ::2])
    last = np.moveaxis(np.ones((1, 8, 8, 4), np.float32), -1, 1)
    assert "channels last" in notes(last)
    assert "copied first" not in notes(last)
    assert "computed apart" not in notes(x, out=np.empty((1, 4, 6, 6), np.float32))
    assert "computed apart" in notes(x, out=np.empty((1, 4, 6, 12), np.float32)[..., ::2])
    assert ("to the device" in notes(x)) == (backend == "cuda")


def test_arrays_on_a_device() -> None:
    x, weight = np.ones((1, 4, 8, 8), np.float32), np.ones((4, 1, 3, 3))
    out = np.empty((1, 4, 6, 6), np.float32)
    found = explain(depthwise_conv2d, exposed(x), weight, out=exposed(out))
    assert found.backend == "cuda"
    assert found.notes == ()
    apart = explain(depthwise_conv2d, exposed(x[:, :, ::-1]), weight, out=exposed(out[..., ::-1]))
    assert [note.split(":")[0] for note in apart.notes] == [
        "x is copied first",
        "the result is computed apart, then copied into out",
    ]
    with pytest.raises(ValueError, match="'cpu' arrived and x is on a device"):
        explain(depthwise_conv2d, exposed(x), weight, backend="cpu")


def test_low_rank_counts() -> None:
    """Rank 1 of 3 x 3 on the CPU: columns of the halo are summed too."""
    kernels = factorise(np.ones((4, 1, 3, 3)), tol=0.1)
    said = explain(depthwise_conv2d, (2, 4, 10, 10), kernels)
    assert said.rank == 1
    assert said.multiply_adds == 2 * 4 * (8 * 10 * 3 + 8 * 8 * 3)
    assert said.multiply_adds_dense == 2 * 4 * 8 * 8 * 9
    assert said.bytes_least == 4 * (2 * 4 * (100 + 64) + 4 * 6)
    assert said.promised_error == kernels.error
    both = explain(
        depthwise_separable_conv2d, (2, 4, 10, 10), kernels, (5, 4), backend="cuda", fuse=True
    )
    assert not both.ways[0].launches
    assert "low-rank" in both.ways[0].why
    assert "low-rank" in str(both)
    assert both.launches == 2


def test_an_empty_batch_launches_nothing(backend: str) -> None:
    for said in (
        explain(depthwise_conv2d, (0, 4, 8, 8), (4, 1, 3, 3), backend=backend),
        explain(pointwise_conv2d, (0, 4, 8, 8), (5, 4), backend=backend),
        explain(depthwise_separable_conv2d, (0, 4, 8, 8), (4, 1, 3, 3), (5, 4), backend=backend),
    ):
        assert (said.launches, said.bytes_moved, said.multiply_adds) == (0, 0, 0)
        assert said.shape[0] == 0
        assert said.variant in str(said)


@pytest.mark.parametrize("name", refusals.CALLS)
def test_errors_are_the_calls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, exception, parts = refusals.CALLS[name]
    for op in (depthwise_conv2d, pointwise_conv2d, depthwise_separable_conv2d):
        monkeypatch.setattr(numbasep, op.__name__, partial(explain, op))
    with pytest.raises(exception) as caught:
        call()
    assert type(caught.value) is exception
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("args", "options", "error", "words"),
    [
        (((1, 4, 8), (4, 3, 3), (5, 4)), {"fuse": 3}, TypeError, "fuse: 3"),
        (((1, 4, 8, 8), (4, -1, 3, 3), (5, 4)), {}, ValueError, "depthwise_weight: got -1"),
        (((1, 4, 8, 8), ((4, 3, 3), "float31"), (5, 4)), {}, ValueError, "mean 'float32'"),
        (((1, 4, 8, 8), (4, 3, 3), (5, 3)), {}, ValueError, "pointwise_weight: filters of 3"),
        (((1, 4, 8, 8), (4, 3, 3), (5, 4)), {"out": np.ones(3)}, ValueError, "out: ndarray"),
        (((1, 4, 8, 8), (4, 3, 3), (5, 4)), {"stream": 1}, ValueError, "stream: "),
        ((((1, 4, 8, 8), "uint8"), (4, 3, 3), (5, 4)), {}, TypeError, "x: dtype uint8"),
        (((1, 4, 8, 8), (4, 3, 3)), {}, TypeError, "pointwise_weight"),
        (((1, 4, 8, 8), (4, 3, 3), (5, 4)), {"padd": 1}, TypeError, "padd"),
    ],
)
def test_refusals(args: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        explain(depthwise_separable_conv2d, *args, **options)
