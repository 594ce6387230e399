"""Pictures larger than memory: the same pixels as at once, and no part of a file left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from numbasep.boundary import NAMES as BOUNDARIES
from numbasep.cli import bands, filter
from numbasep.cli.kernel_files import read_kernel
from tests.cli.pictures import contents, run

Array = npt.NDArray[Any]

KERNEL = "gaussian:2.5"


def pixels(shape: tuple[int, ...], dtype: Any = np.uint16) -> Array:
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


def at_once(image: Array, axes: tuple[int, int], kernel: str = KERNEL, **options: Any) -> Array:
    return filter.prepared(image.dtype, read_kernel(kernel), **options)(image, axes)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", [KERNEL, "sobel-x", "motion:9,30", "box:4"])
def test_blocks_are_the_whole(boundary: str, kernel: str) -> None:
    """Bands of few rows, narrower than the picture, chunks smaller than the kernel."""
    image = pixels((2, 37, 53))
    made = filter.prepared(image.dtype, read_kernel(kernel), boundary=boundary)
    for steps in ((1, 8, 16), (2, 37, 53), (1, 5, 53)):
        for rows in (3, 100):
            grid = bands.Grid(image.shape, image.dtype, 1, 2, steps, rows)
            read: list[tuple[slice, ...]] = []

            def reading(index: tuple[slice, ...], read: Any = read) -> Array:
                read.append(index)
                return image[index]

            found = np.full_like(image, 7777)
            bands.written(bands.Run(reading, grid, made), found.__setitem__, lambda count: None)
            assert (found == made(image, (1, 2))).all()


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_keeps_what_it_is(tmp_path: Path, version: int) -> None:
    image = pixels((70, 90))
    source = zarr.create_array(
        tmp_path / "a.zarr", shape=image.shape, dtype=image.dtype, chunks=(16, 32),
        zarr_format=version, attributes={"stain": "DAPI"},
    )  # fmt: skip
    source[:] = image
    assert run("filter", tmp_path / "a.zarr", tmp_path / "b.zarr", "-k", KERNEL) == 0
    found = zarr.open_array(tmp_path / "b.zarr", mode="r")
    assert (found[:] == at_once(image, (0, 1))).all()
    assert found.chunks == (16, 32)
    assert found.metadata.zarr_format == version
    assert dict(found.attrs) == {"stain": "DAPI"}
    assert found.compressors == source.compressors
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr"]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (32, 48)])
def test_tiff(tmp_path: Path, compression: str | None, tile: tuple[int, int] | None) -> None:
    image = pixels((3, 70, 90))
    tifffile.imwrite(
        tmp_path / "a.ome.tif", image, ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5},
        photometric="minisblack", compression=compression, tile=tile,
    )  # fmt: skip
    arguments = tmp_path / "a.ome.tif", tmp_path / "b.tif", "-k", KERNEL, "--chunked"
    assert run("filter", *arguments) == 0
    with tifffile.TiffFile(tmp_path / "b.tif") as found:
        assert found.is_bigtiff
        assert found.series[0].axes == "ZYX"
        assert 'PhysicalSizeX="0.5"' in found.ome_metadata
        assert (found.asarray() == at_once(image, (1, 2))).all()
    assert run("filter", tmp_path / "a.ome.tif", tmp_path / "c.zarr", "-k", KERNEL) == 0
    group = zarr.open_group(tmp_path / "c.zarr", mode="r")
    assert (group["0"][:] == at_once(image, (1, 2))).all()


def test_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pixels((70, 90))
    zarr.create_array(tmp_path / "a.zarr", data=image, chunks=(16, 32))
    command = "filter", tmp_path / "a.zarr", tmp_path / "b.zarr", "-k", KERNEL

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(filter.Filter, "inner", interrupt)
        assert run(*command) == 130
    assert os.listdir(tmp_path) == ["a.zarr"]
    chunk = tmp_path / "a.zarr" / "c" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:20])
    assert run(*command) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "a.zarr: the file is damaged or truncated" in err
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_what_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=pixels((20, 30)), chunks=(16, 32))
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "thesis.txt").write_text("years of work")
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "old.zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "old.zarr")
    (tmp_path / "file.zarr").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    for target, options in (
        ("old.zarr", ()), ("link.zarr", ()), ("file.zarr", ("--overwrite",)),
        ("a.zarr/b.zarr", ()), ("a.zarr", ()),
    ):  # fmt: skip
        command = tmp_path / "a.zarr", tmp_path / target, "-k", KERNEL, *options
        assert run("filter", *command) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    command = tmp_path / "a.zarr", tmp_path / "link.zarr", "-k", KERNEL, "--overwrite"
    assert run("filter", *command) == 0
    assert not (tmp_path / "link.zarr").is_symlink()
    assert (zarr.open_array(tmp_path / "old.zarr")[:] == pixels((20, 30))).all()
    assert contents(tmp_path / "mine.zarr")["thesis.txt"] == b"years of work"
