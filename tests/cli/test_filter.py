"""``numbasep filter`` against scipy.ndimage: pixels, channels, orientations, signs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import numbasep
from numbasep import kernels
from numbasep.cli.filter import Shown, rounded, showing
from tests.cli.pictures import check_rounded, exact, load, photograph, run, store

Array = npt.NDArray[Any]


@pytest.mark.parametrize(
    ("suffix", "dtype", "channels"),
    [
        (suffix, dtype, channels)
        for suffix in (".png", ".tif")
        for dtype in (np.uint8, np.uint16)
        for channels in (1, 2, 3, 4)
    ],
)
def test_filter_is_convolution(tmp_path: Path, suffix: str, dtype: Any, channels: int) -> None:
    """As scipy.ndimage in float64, rounded once; alpha to the bit."""
    pixels = photograph(channels, dtype)
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    store(source, pixels)
    assert run("filter", source, target, "--kernel", "gaussian:1.5") == 0
    found = load(target)
    colours = 1 if channels < 3 else 3
    kernel = kernels.gaussian(1.5)
    assert found.colour.dtype == dtype
    # gamma(kh + kw + R + 1) of float32, for taps of sum 1.
    n = sum(kernel.shape) + 2
    slack = 1.01 * n * 2.0**-24 * np.iinfo(dtype).max
    check_rounded(found.colour, exact(pixels[:, :, :colours], kernel), slack)
    if channels in (2, 4):
        assert found.alpha is not None
        assert (found.alpha == pixels[:, :, colours:]).all()
    else:
        assert found.alpha is None


def test_float_tiff(tmp_path: Path) -> None:
    pixels = photograph(3, np.float32)
    store(tmp_path / "a.tif", pixels)
    assert run("filter", tmp_path / "a.tif", tmp_path / "b.tiff", "-k", "sobel-x") == 0
    found = load(tmp_path / "b.tiff").colour
    assert found.dtype == np.float32
    # gamma(8) of float32 times sum|K|: a float picture holds signed results as they are.
    error = np.abs(found - exact(pixels, kernels.sobel_x()))
    assert error.max() <= 1.01 * 8 * 2.0**-24 * 8
    assert found.min() < 0


def test_jpeg(tmp_path: Path) -> None:
    y, x = np.mgrid[:32, :48]
    pixels = np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
    store(tmp_path / "a.jpg", pixels, orientation=6, dpi=(300.0, 150.0))
    assert (
        run("filter", tmp_path / "a.jpg", tmp_path / "b.JPG", "-k", "box:3", "--quality", 100) == 0
    )
    before, after = load(tmp_path / "a.jpg"), load(tmp_path / "b.JPG")
    # A box leaves this ramp as it is but at the border; both files are quantised by 1, see
    # tests/test_images.py.
    inner = np.s_[1:-1, 1:-1]
    assert np.abs(after.colour.astype(int) - before.colour)[inner].max() <= 64 / 2 / 4 + 8
    assert (after.orientation, after.dpi) == (6, (300.0, 150.0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_directions_are_the_viewers(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The same picture stored in another orientation is the same picture filtered, to the bit."""
    pixels = photograph(1, np.uint8)
    kernel = np.arange(12).reshape(3, 4)  # even and odd, without any symmetry
    np.save(tmp_path / "k.npy", kernel)
    store(tmp_path / f"a{suffix}", pixels, orientation=orientation)
    options = "--kernel", tmp_path / "k.npy", "--scale", 1 / 66
    assert run("filter", tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", *options) == 0
    found = load(tmp_path / f"b{suffix}")
    whole = numbasep.separable_conv2d(pixels, kernel, boundary="mirror", axes=(0, 1))
    assert found.orientation == orientation
    assert (found.colour == rounded(whole * (1 / 66), np.dtype(np.uint8))).all()


def test_integers_saturate(tmp_path: Path) -> None:
    pixels = photograph(3, np.uint8)
    store(tmp_path / "a.png", pixels)
    np.save(tmp_path / "k.npy", np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]))
    assert run("filter", tmp_path / "a.png", tmp_path / "b.png", "-k", tmp_path / "k.npy") == 0
    value = exact(pixels, np.load(tmp_path / "k.npy"))
    assert (load(tmp_path / "b.png").colour == np.clip(value, 0, 255)).all()
    assert value.min() < 0
    assert value.max() > 255


SHOWN: dict[str, tuple[tuple[object, ...], Callable[[Array], Array]]] = {
    "by itself": ((), lambda y: 128 + y / 8),
    "scale": (("--scale", 2), lambda y: 2 * y),
    "offset": (("--offset", 100), lambda y: y + 100),
    "both": (("--scale", -0.5, "--offset", 10.5), lambda y: 10.5 - y / 2),
    "absolute": (("--absolute",), np.abs),
    "all three": (("--absolute", "--scale", 0.25, "--offset", 1), lambda y: np.abs(y) / 4 + 1),
    "nothing": (("--scale", 1), lambda y: y),
}


@pytest.mark.parametrize(("options", "formula"), SHOWN.values(), ids=SHOWN)
def test_signed_results(
    tmp_path: Path, options: tuple[object, ...], formula: Callable[[Array], Array]
) -> None:
    """Exact sums, one formula, one rounding half to even."""
    pixels = photograph(1, np.uint8)
    store(tmp_path / "a.png", pixels)
    assert run("filter", tmp_path / "a.png", tmp_path / "b.png", "-k", "sobel-x", *options) == 0
    value = formula(exact(pixels, kernels.sobel_x()))
    assert (load(tmp_path / "b.png").colour == np.clip(np.rint(value), 0, 255)).all()


def test_what_is_shown_by_itself() -> None:
    byte, word, real = (np.dtype(t) for t in (np.uint8, np.uint16, np.float32))
    sobel = kernels.sobel_x()
    assert showing(sobel, byte, None, None, False) == Shown(1 / 8, 128)
    assert showing(sobel, word, None, None, False) == Shown(1 / 8, 32768)
    assert showing(sobel, real, None, None, False).plain
    assert showing(sobel, np.dtype(np.int16), None, None, False).plain
    assert showing(kernels.gaussian(1), byte, None, None, False).plain
    assert showing(0 * sobel, byte, None, None, False).plain
    assert showing(sobel, byte, 2, None, False) == Shown(2, 0)
    assert str(Shown(1 / 8, 128)) == "128 + 0.125 x result"
    assert str(Shown(absolute=True)) == "|result|"
    for text in ("log:2", "gabor:0.1,30", "scharr-y", "prewitt-x"):
        kernel = kernels.named(text)
        shown = showing(kernel, byte, None, None, False)
        assert shown.offset == 128
        # The extremes of a result: 255 where taps are positive, or where they are negative.
        extremes = [255 * kernel[kernel > 0].sum(), 255 * kernel[kernel < 0].sum()]
        high, low = (shown.offset + shown.scale * e for e in extremes)
        assert 0 <= low <= 8
        assert 248 <= high <= 264
    sharpen = np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    assert showing(sharpen, byte, None, None, False).plain


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "int64"])
def test_rounding(dtype: str) -> None:
    limits = np.iinfo(dtype)
    values = np.array([0.5, 1.5, 2.5, -0.5, np.inf, -np.inf, np.nan, 2.0**64, -(2.0**64), 3.0])
    expected = [0, 2, 2, 0, limits.max, limits.min, 0, limits.max, limits.min, 3]
    assert rounded(values, np.dtype(dtype)).tolist() == expected


def test_complex_kernels_show_their_magnitude(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = photograph(1, np.uint8)
    kernel = kernels.gabor(0.2, 0.5, part="complex")
    store(tmp_path / "a.png", pixels)
    np.save(tmp_path / "k.npy", kernel)
    arguments = "filter", tmp_path / "a.png", tmp_path / "b.png", "-k", tmp_path / "k.npy"
    assert run(*arguments) == 2
    assert "the kernel is complex" in capsys.readouterr().err
    assert run(*arguments, "--absolute", "--scale", 4) == 0
    value = 4 * np.hypot(exact(pixels, kernel.real), exact(pixels, kernel.imag))
    # Two real sums of at most 255 sum|K|, each within gamma(n), and the root's rounding.
    slack = 4 * 2 * (2 * sum(kernel.shape) + 10) * 2.0**-24 * 255 * np.abs(kernel).sum()
    check_rounded(load(tmp_path / "b.png").colour, value, slack)


@pytest.mark.parametrize(("boundary", "mode"), [("nearest", "nearest"), ("symm", "reflect")])
def test_boundary(tmp_path: Path, boundary: str, mode: str) -> None:
    pixels = photograph(1, np.uint8)
    store(tmp_path / "a.png", pixels)
    arguments = "filter", tmp_path / "a.png", tmp_path / "b.png", "-k", "sobel-y", "--absolute"
    assert run(*arguments, "--boundary", boundary) == 0
    value = np.abs(exact(pixels, kernels.sobel_y(), mode))
    assert (load(tmp_path / "b.png").colour == np.clip(value, 0, 255)).all()


def test_fillvalue(tmp_path: Path) -> None:
    pixels = photograph(1, np.uint8)
    store(tmp_path / "a.png", pixels)
    options = "-k", "prewitt-x", "--absolute", "--boundary", "fill", "--fillvalue", 40
    assert run("filter", tmp_path / "a.png", tmp_path / "b.png", *options) == 0
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), constant_values=40)
    value = np.abs(exact(padded, kernels.prewitt_x())[1:-1, 1:-1])
    assert (load(tmp_path / "b.png").colour == np.clip(value, 0, 255)).all()


def test_the_promise_is_kept_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = photograph(3, np.uint8)
    store(tmp_path / "a.png", pixels)
    assert run("filter", tmp_path / "a.png", tmp_path / "b.png", "-k", "disk:9", "--tol", 0.05) == 0
    printed = capsys.readouterr().out
    factors = numbasep.factorise(kernels.disk(9), tol=0.05)
    assert f"19 x 19, {factors.rank} separable terms" in printed
    bound = factors.output_error_bound(float(pixels.min()), float(pixels.max()))
    assert f"within {bound:.2g} levels" in printed
    error = np.abs(load(tmp_path / "b.png").colour - exact(pixels, kernels.disk(9)))
    # One rounding, and float32: gamma(n) of the terms' sum.
    arithmetic = 2 * (38 + factors.rank) * 2.0**-24 * factors.growth * 255
    assert error.max() <= bound + 0.5 + arithmetic


def test_rank_and_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = photograph(1, np.float32)
    store(tmp_path / "a.tif", pixels)
    options = "-k", "disk:4", "--rank", 1, "--quiet"
    assert run("filter", tmp_path / "a.tif", tmp_path / "b.tif", *options) == 0
    assert capsys.readouterr() == ("", "")
    factors = numbasep.factorise(kernels.disk(4), rank=1)
    whole = numbasep.separable_conv2d(pixels, factors, boundary="mirror", axes=(0, 1))
    assert (load(tmp_path / "b.tif").colour == whole).all()


def test_a_picture_may_replace_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    store(path, photograph(1, np.uint8))
    path.chmod(0o640)
    assert run("filter", path, path, "-k", "sobel-x", "--overwrite") == 0
    value = 128 + exact(photograph(1, np.uint8), kernels.sobel_x()) / 8
    assert (load(path).colour == np.clip(np.rint(value), 0, 255)).all()
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    store(tmp_path / "a.png", photograph(1, np.uint8))
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"precious")
    (tmp_path / "b.png").symlink_to(precious)
    arguments = "filter", tmp_path / "a.png", tmp_path / "b.png", "-k", "sobel-x"
    assert run(*arguments) == 2
    assert run(*arguments, "--overwrite") == 0
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "b.png").is_symlink()
    assert load(tmp_path / "b.png").colour.shape == (23, 31, 1)


def test_backends_agree(tmp_path: Path) -> None:
    """Integer sums are exact on both."""
    store(tmp_path / "a.png", photograph(4, np.uint8))
    for backend in ("cpu", "cuda"):
        options = "-k", "scharr-x", "--absolute", "--backend", backend
        assert run("filter", tmp_path / "a.png", tmp_path / f"{backend}.png", *options) == 0
    assert (tmp_path / "cpu.png").read_bytes() == (tmp_path / "cuda.png").read_bytes()


def test_nothing_is_promised_of_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = photograph(1, np.float32)
    pixels[5, 6] = np.nan
    store(tmp_path / "a.tif", pixels)
    options = "-k", "disk:4", "--rank", 2
    assert run("filter", tmp_path / "a.tif", tmp_path / "b.tif", *options) == 0
    assert "nothing, as the picture holds NaN" in capsys.readouterr().out
    spread = np.isnan(load(tmp_path / "b.tif").colour[:, :, 0])
    assert spread[1:10, 2:11].all()
    assert spread.sum() == 81


def test_a_kernels_name_wins_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sobel-x").write_text("a file of that name")
    store(Path("a.png"), photograph(1, np.uint8))
    assert run("filter", "a.png", "b.png", "-k", "sobel-x") == 0


def test_page(tmp_path: Path) -> None:
    import tifffile

    frames = [photograph(1, np.uint8, seed)[:, :, 0] for seed in range(2)]
    tifffile.imwrite(tmp_path / "a.tif", np.stack(frames), photometric="minisblack")
    arguments = "filter", tmp_path / "a.tif", tmp_path / "b.tif", "-k", "box:1"
    assert run(*arguments) == 2
    assert run(*arguments, "--page", 2) == 0
    assert (load(tmp_path / "b.tif").colour[:, :, 0] == frames[1]).all()
