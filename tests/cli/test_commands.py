"""``numbasep factorise``, ``cost`` and ``demo``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import numbasep
from numbasep import kernels
from numbasep.cli import demo as demonstration
from numbasep.cli import tables
from numbasep.cli.cost import read_layers
from numbasep.cli.kernel_files import read_kernel
from numbasep.cost import cost
from tests.cli.pictures import LAYERS, load, photograph, run, store

Array = npt.NDArray[Any]


def test_factorise_prints_keeps_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = "--out", tmp_path / "f.npz", "--picture", tmp_path / "f.png"
    assert run("factorise", "disk:5", "--tol", 0.1, *paths) == 0
    factors = numbasep.factorise(kernels.disk(5), tol=0.1)
    printed = capsys.readouterr().out
    assert f"{factors.rank} of 11" in printed
    assert f"{factors.speedup:.3g}x fewer" in printed
    assert tables.percent(factors.error) in printed
    for value in factors.singular_values:
        assert f"{value:.6g}" in printed
    kept = read_kernel(str(tmp_path / "f.npz"))
    assert isinstance(kept, numbasep.SeparableKernel)
    for name in factors.__dataclass_fields__:
        assert (getattr(kept, name) == getattr(factors, name)).all()
    drawing = load(tmp_path / "f.png").colour
    assert drawing.std() > 10  # more than a blank page


@pytest.mark.parametrize("text", ["motion:15,30", "sobel-x", "box:1", "gaussian:30", "zeros"])
def test_factorise_every_kind(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text == "zeros":
        text = str(tmp_path / "zeros.npy")
        np.save(text, np.zeros((3, 4)))
    assert run("factorise", text, "--picture", tmp_path / "f.png") == 0
    printed = capsys.readouterr().out
    factors = numbasep.factorise(read_kernel(text))
    assert ("does not pay" in printed) == (not factors.worth_separating)
    assert ("exact" in printed) == (factors.error == 0)


def test_kept_factors_filter_like_the_named_kernel(tmp_path: Path) -> None:
    store(tmp_path / "a.png", photograph(1, np.uint8))
    assert run("factorise", "disk:5", "--tol", 0.1, "--out", tmp_path / "f.npz") == 0
    for name, kernel in (("b", ("disk:5", "--tol", 0.1)), ("c", (tmp_path / "f.npz",))):
        assert run("filter", tmp_path / "a.png", tmp_path / f"{name}.png", "-k", *kernel) == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_kept_factors_are_factorised_anew(tmp_path: Path) -> None:
    for name, kernel in (("f", "disk:5"), ("g", tmp_path / "f.npz")):
        options = "--rank", 2, "--out", tmp_path / f"{name}.npz"
        assert run("factorise", kernel, *options) == 0
    first, second = (read_kernel(str(tmp_path / f"{name}.npz")) for name in "fg")
    assert isinstance(first, numbasep.SeparableKernel)
    assert isinstance(second, numbasep.SeparableKernel)
    assert second.rank == 2
    assert second.error == pytest.approx(first.error, rel=1e-9)


# --- cost


def test_layers_are_what_cost_says() -> None:
    layers = read_layers(LAYERS, 2, "float16")
    lines = LAYERS.read_text().splitlines()[1:]
    assert len(layers) == len(lines)
    for layer, line in zip(layers, lines, strict=True):
        name, *numbers = line.split(",")
        n, c, h, w, k, stride, pad, dilation, cout = map(int, numbers)
        expected = cost(
            (n, c, h, w),
            cout or None,
            k,
            stride=stride,
            padding=pad,
            dilation=dilation,
            rank=2,
            dtype="float16",
        )
        assert (layer.name, layer.cost) == (name, expected)


def test_cost_prints_each_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "layers.csv"
    # In another order, with spaces, a column of no use, and Windows' line ends and mark.
    path.write_bytes(
        b"\xef\xbb\xbfname, note, Cout, N, C, H, W, k, stride, pad, dilation\r\n"
        b"[bold], x, 64, 1, 32, 112, 112, 3, 1, 1, 1\r\nalone, y, 0, 2, 8, 9, 9, 1, 1, 0, 1\r\n"
    )
    assert run("cost", path, "--rank", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    (first,) = (line for line in lines if "[bold]" in line)
    found = cost((1, 32, 112, 112), 64, 3, padding=1, rank=3)
    assert found.low_rank is not None
    for value in (
        "1x32x112x112 -> 1x64x112x112",
        tables.quantity(found.standard.parameters),
        tables.quantity(found.separable.parameters),
        tables.quantity(found.standard.multiply_adds),
        tables.quantity(found.separable.multiply_adds),
        f"{found.ratio:.4f}",
        tables.quantity(found.low_rank.multiply_adds),
        tables.size(found.standard.bytes),
        tables.size(found.separable.bytes),
        tables.size(found.intermediate_bytes),
    ):
        assert value in first
    (alone,) = (line for line in lines if "alone" in line)
    assert alone.rstrip().endswith(" 0 B")  # nothing between two parts of which one is not there
    assert lines[-2].split()[:3] == ["total", "2", "layers"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (9994, "9.99 k"),
        (9995, "10.0 k"),
        (99_949, "99.9 k"),
        (99_950, "100 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (1.5e13, "15.0 T"),
    ],
)
def test_quantity(value: float, text: str) -> None:
    assert tables.quantity(value) == text


# --- demo


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a small picture, so that the test is quick; CI runs the whole one too."""
    monkeypatch.setattr(demonstration, "photograph", lambda: photograph(3, np.uint8))
    monkeypatch.setattr(demonstration, "ROUNDS", 1)
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    (folder / "disk.png").write_bytes(b"of an earlier demonstration")
    assert run("demo", "--out", folder) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name in ("scipy.signal.fftconvolve", "scipy.signal.convolve2d", "scipy.ndimage.convolve"):
        assert out.count(name) == 2
    names = ("photograph", "disk", "disk-before-after", "gabor", "gabor-before-after")
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.png" for name in names)
    for name in names:
        assert str(folder / f"{name}.png") in out
        assert load(folder / f"{name}.png").colour.std() > 1  # more than a blank page
    assert (load(folder / "photograph.png").colour == photograph(3, np.uint8)).all()


@pytest.mark.parametrize("subject", demonstration.SUBJECTS, ids=lambda s: s.name)
def test_demo_keeps_its_promise(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "ROUNDS", 1)
    image = photograph(3, np.float32)
    outcome = demonstration.study(subject, image)
    assert outcome.errors["numbasep"] <= outcome.promised
    if subject.tol is not None:
        # For this picture at most what is promised for any of its brightness.
        assert outcome.promised <= 1.001 * subject.tol * outcome.factors.magnitude * image.max()
    # The contenders compute the same. Direct sums: gamma of the taps' number; Fourier sums: some
    # roundings for each of the transform's stages, of values as large as the channel's norm.
    taps, padded = outcome.kernel.size, image[:, :, 0].size * 9
    magnitude = np.abs(outcome.kernel).sum() * image.max()
    direct = 2 * taps * 2.0**-24 * magnitude
    fourier = 8 * np.log2(padded) * 2.0**-24 * np.linalg.norm(outcome.kernel) * np.sqrt(padded)
    for name, error in outcome.errors.items():
        if name != "numbasep":
            assert error <= (fourier if "fft" in name else direct)


def test_medians_take_turns() -> None:
    order: list[str] = []

    def call(name: str) -> Callable[[], Array]:
        def record() -> Array:
            order.append(name)
            return np.zeros(1)

        return record

    seconds, results = demonstration.medians({"a": call("a"), "b": call("b")}, 1e9, 3)
    assert order == ["a", "b"] * 4
    assert set(seconds) == set(results) == {"a", "b"}
    demonstration.medians({"c": call("c")}, 0.0, 3)
    assert order[8:] == ["c"]
