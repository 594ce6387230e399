"""``numbasep filter`` in parts: when, of which formats, within what, and what ends it midway."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from numbasep.cli import bands, filter, large
from numbasep.cli.kernel_files import read_kernel
from tests.cli.pictures import COMMAND, HEARS, ROOT, run

Array = npt.NDArray[Any]
KERNEL = "gaussian:1.5"


def pixels(*shape: int, dtype: Any = np.uint8) -> Array:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def at_once(image: Array, axes: tuple[int, int]) -> Array:
    return filter.prepared(image.dtype, read_kernel(KERNEL))(image, axes)


@pytest.fixture
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pictures of a few tiles have several bands."""
    monkeypatch.setattr(bands, "WORTHWHILE", 1)
    monkeypatch.setattr(bands, "WINDOW", 4000)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """Return the one line that a refused command says; it writes nothing."""
    before = sorted(os.listdir(folder))
    assert run("filter", *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(os.listdir(folder)) == before
    return err


def test_large_tiffs_are_filtered_in_parts_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pixels(300, 280)
    source = tmp_path / "a.tif"
    tifffile.imwrite(source, image, compression="zlib", rowsperstrip=16)
    assert run("filter", source, tmp_path / "small.tif", "-k", KERNEL) == 0
    assert "blocks" not in capsys.readouterr().out
    with tifffile.TiffFile(tmp_path / "small.tif") as file:
        assert not file.is_bigtiff
    with monkeypatch.context() as patch:
        patch.setattr(large, "MAX_PIXELS", image.size - 1)
        assert run("filter", source, tmp_path / "large.tif", "-k", KERNEL) == 0
        assert re.search(r"blocks +\d+ of", capsys.readouterr().out)
        # Another format has no parts; a limit is a wish to have no such picture.
        assert not large.takes(source, tmp_path / "b.png", False, None, 10**9, None)
        assert not large.takes(source, tmp_path / "b.tif", False, None, 10**9, 10**6)
    for name in ("small.tif", "large.tif"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), at_once(image, (0, 1)))
    # By memory: that of the pixels is too much.
    target = tmp_path / "b.tif"
    assert large.takes(source, target, False, None, image.nbytes - 1, None)
    assert not large.takes(source, target, False, None, image.nbytes, None)
    # What cannot be opened in parts is for the reader of pictures to refuse.
    source.write_bytes(source.read_bytes()[:-100])
    assert not large.takes(source, target, False, None, 1, None)


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [("800MB", 800_000_000), ("1.5GB", 1_500_000_000), ("2G", 2 * 10**9), ("64kB", 64_000),
     ("3K", 3000), ("12", 12), ("1 TiB", 10**12)],
)  # fmt: skip
def test_memory(given: str, bytes_: int) -> None:
    assert large.memory_of(given) == bytes_


def test_memory_that_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=pixels(200, 300), chunks=(100, 100))
    arguments = tmp_path / "a.zarr", tmp_path / "b.zarr", "-k", KERNEL, "--memory"
    for wrong in ("lots", "-1GB", "1PB", "", "GB", "1..2GB", "nan"):
        said = refused(capsys, tmp_path, *arguments, wrong)
        assert f"--memory: got {wrong!r}; pass bytes, such as 800MB or 2GB" in said
    said = refused(capsys, tmp_path, *arguments, "10kB")
    found = re.search(r"--memory: blocks of 100 x \d+ pixels take .* which is more than 10.0 kB; "
                      r"add --memory (\d+)MB", said)  # fmt: skip
    assert found
    # The remedy is one.
    assert run("filter", *arguments, f"{found[1]}MB", "--quiet") == 0
    np.testing.assert_array_equal(
        zarr.open_array(tmp_path / "b.zarr", mode="r")[:], at_once(pixels(200, 300), (0, 1))
    )


def test_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pixels(40, 3, 50, 2)
    source = tmp_path / "a.zarr"
    zarr.create_array(source, data=image, chunks=(16, 2, 16, 2))
    arguments = source, tmp_path / "b.zarr", "-k", KERNEL
    assert "has axes without names, of sizes (40, 3, 50, 2); say which" in refused(
        capsys, tmp_path, *arguments
    )
    for wrong, said in (
        ("YX", "has 4 axes, of sizes (40, 3, 50, 2); --axes names 2"),
        ("YCXSQ", "--axes names 5"),
        ("QCZS", "its axes are QCZS; say which are the picture's Y and X, such as --axes QQYX"),
        ("YYXX", "its axes are YYXX; say which"),
    ):
        assert said in refused(capsys, tmp_path, *arguments, "--axes", wrong)
    assert run("filter", *arguments, "--axes", "ycxs", "--quiet") == 0
    found = zarr.open_array(tmp_path / "b.zarr", mode="r")
    np.testing.assert_array_equal(found[:], at_once(image, (0, 2)))
    assert found.chunks == (16, 2, 16, 2)
    tifffile.imwrite(tmp_path / "a.tif", image[..., 0])
    for options in ((), ("--chunked",)):
        said = refused(capsys, tmp_path, tmp_path / "a.tif", tmp_path / "b.tif", "-k", KERNEL,
                       "--axes", "YX", *options)  # fmt: skip
        assert "--axes: is for Zarr arrays" in said


def test_axes_that_a_tiff_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=pixels(40, 3, 50), chunks=(16, 2, 16))
    said = refused(capsys, tmp_path, tmp_path / "a.zarr", tmp_path / "b.tif", "-k", KERNEL,
                   "--axes", "YCX")  # fmt: skip
    assert "a TIFF holds axes that end in YX or YXS, not those of" in said
    assert "YCX; write .zarr" in said


@pytest.mark.parametrize("shards", [(64, 64), (32, 96)])
def test_sharded_stores(tmp_path: Path, shards: tuple[int, int], small_bands: None) -> None:
    image = pixels(150, 210, dtype=np.uint16)
    source = zarr.create_array(
        tmp_path / "a.zarr", shape=image.shape, dtype=image.dtype, chunks=(16, 16), shards=shards
    )
    source[:] = image
    assert run("filter", tmp_path / "a.zarr", tmp_path / "b.zarr", "-k", KERNEL) == 0
    found = zarr.open_array(tmp_path / "b.zarr", mode="r")
    np.testing.assert_array_equal(found[:], at_once(image, (0, 1)))
    assert (found.chunks, found.shards) == ((16, 16), shards)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{}, {"tile": (64, 48)}, {"rowsperstrip": 20}])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_rgb_tiffs(
    tmp_path: Path, planar: str, layout: dict[str, Any], compression: str | None, small_bands: None
) -> None:
    """Interleaved and in planes; to TIFF and to Zarr."""
    image = pixels(150, 210, 3)
    stored = image if planar == "contig" else np.moveaxis(image, -1, 0)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar,
        compression=compression, **layout,
    )  # fmt: skip
    expected = at_once(image, (0, 1))
    arguments = tmp_path / "a.tif", tmp_path / "b.tif", "-k", KERNEL, "--chunked"
    assert run("filter", *arguments) == 0
    with tifffile.TiffFile(tmp_path / "b.tif") as found:
        page = found.pages[0]
        assert page.photometric == tifffile.PHOTOMETRIC.RGB
        assert page.planarconfig == tifffile.PLANARCONFIG[planar.upper()]
        values = found.asarray()
    last = -1 if planar == "contig" else 0
    np.testing.assert_array_equal(np.moveaxis(values, last, -1), expected)
    assert run("filter", tmp_path / "a.tif", tmp_path / "b.zarr", "-k", KERNEL) == 0
    again = zarr.open_array(tmp_path / "b.zarr", mode="r")[:]
    np.testing.assert_array_equal(np.moveaxis(again, last, -1), expected)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("target", ["b.tif", "b.zarr"])
def test_damaged_tiffs_in_parts(
    tmp_path: Path, compression: str | None, target: str, capsys: pytest.CaptureFixture[str],
    small_bands: None,
) -> None:  # fmt: skip
    """Cut anywhere; and, where compressed, with a strip that is damaged when others are done."""
    source = tmp_path / "a.tif"
    tifffile.imwrite(source, pixels(200, 300), compression=compression, rowsperstrip=20)
    data = source.read_bytes()
    command = source, tmp_path / target, "-k", KERNEL, "--chunked"
    for end in (4, 9, len(data) // 2, len(data) - 1):
        source.write_bytes(data[:end])
        assert "a.tif: " in refused(capsys, tmp_path, *command)
    if compression is not None:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            last = tiff.pages[0].dataoffsets[-1]
        source.write_bytes(data[:last] + bytes(40) + data[last + 40 :])
        assert "a.tif: the file is damaged or truncated" in refused(capsys, tmp_path, *command)


SLOW = """
import time
from numbasep.cli import bands, filter
bands.WORTHWHILE, bands.WINDOW, inner = 1, 4000, filter.Filter.inner
def slow(self, window, axes):
    print("band", flush=True)
    time.sleep(0.05)
    return inner(self, window, axes)
filter.Filter.inner = slow
"""


@pytest.mark.parametrize("target", ["b.zarr", "b.tif"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_midway(tmp_path: Path, target: str, number: int, code: int) -> None:
    """While one thread reads and another writes: no file is left, and nothing is said."""
    zarr.create_array(tmp_path / "a.zarr", data=pixels(4000, 100), chunks=(16, 100))
    arguments = "filter", str(tmp_path / "a.zarr"), str(tmp_path / target), "-k", KERNEL
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", HEARS + SLOW + COMMAND, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(20):
        assert process.stdout.readline() == "band\n"
    assert len(os.listdir(tmp_path)) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (code, "")
    assert os.listdir(tmp_path) == ["a.zarr"]
