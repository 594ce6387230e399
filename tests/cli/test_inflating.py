"""Parts of files that inflate past what the file declares: one line, before the memory is taken."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from numbasep.cli import stacks, zarr_chunks
from numbasep.cli.images import Refused
from tests.cli.picture_files import read, replaced
from tests.cli.pictures import run

SIDE, CHUNK = 64, 32
VALUES = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
ZEROS = bytes(1 << 20)
EVERYTHING = (slice(0, SIDE), slice(0, SIDE))

# A store's version, its compressors, and what makes a chunk of them of any bytes.
STORES: dict[str, tuple[int, Any, Callable[[bytes], bytes]]] = {
    "zstd": (3, ZstdCodec(), numcodecs.Zstd().encode),
    "zstd with a checksum": (3, ZstdCodec(checksum=True), numcodecs.Zstd(checksum=True).encode),
    "gzip": (3, GzipCodec(), gzip.compress),
    "gzip of two members": (3, GzipCodec(), lambda b: two_members(b)),
    "blosc": (3, BloscCodec(), numcodecs.Blosc().encode),
    "zstd and crc32c": (
        3, (ZstdCodec(), Crc32cCodec()), lambda b: checked(numcodecs.Zstd().encode(b))
    ),
    "version 2, zstd": (2, numcodecs.Zstd(), numcodecs.Zstd().encode),
    "version 2, gzip": (2, numcodecs.GZip(), gzip.compress),
    "version 2, zlib": (2, numcodecs.Zlib(), zlib.compress),
    "version 2, bz2": (2, numcodecs.BZ2(), bz2.compress),
    "version 2, lzma": (2, numcodecs.LZMA(), lzma.compress),
    "version 2, lz4": (2, numcodecs.LZ4(), numcodecs.LZ4().encode),
    "version 2, blosc": (2, numcodecs.Blosc(), numcodecs.Blosc().encode),
}  # fmt: skip


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:99]) + gzip.compress(data[99:])


def checked(data: bytes) -> bytes:
    return bytes(numcodecs.CRC32C(location="end").encode(data))


def store(path: Path, version: int, compressors: Any) -> Path:
    """Write the values; return the file of the second chunk of the first row."""
    array = zarr.create_array(
        path, shape=VALUES.shape, dtype=VALUES.dtype, chunks=(CHUNK, CHUNK),
        compressors=compressors, zarr_format=version,
    )  # fmt: skip
    array[:] = VALUES
    return path / "c" / "0" / "1" if version == 3 else path / "0.1"


@pytest.mark.parametrize("kind", STORES)
def test_a_chunk_that_inflates(kind: str, tmp_path: Path) -> None:
    version, compressors, encode = STORES[kind]
    path = tmp_path / "a.zarr"
    chunk = store(path, version, compressors)
    stack = stacks.open_zarr(path, None, None)
    np.testing.assert_array_equal(stack.read(EVERYTHING), VALUES)
    # As long as it should be, whatever made it.
    part = VALUES[:CHUNK, CHUNK:]
    chunk.write_bytes(encode(part.tobytes()))
    np.testing.assert_array_equal(stack.read(EVERYTHING), VALUES)
    chunk.write_bytes(encode(ZEROS))
    with pytest.raises(ValueError, match=r"a\.zarr: a chunk of .* bytes holds .* fill the memory"):
        stack.read(EVERYTHING)
    # Half a chunk is damage, not a bomb.
    chunk.write_bytes(encode(part.tobytes())[:-9])
    with pytest.raises(ValueError, match=r"a\.zarr: the file is damaged or truncated: "):
        stack.read(EVERYTHING)


@pytest.mark.parametrize("name", ["gzip", "bz2", "lzma"])
def test_no_more_is_decoded_than_the_limit(name: str) -> None:
    encode: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress, "bz2": bz2.compress, "lzma": lzma.compress,
    }  # fmt: skip
    data = encode[name](bytes(1000))
    assert zarr_chunks.bounded(name, data, 1000) == bytes(1000)
    assert len(zarr_chunks.SIZES[name](data, 100)) == 101
    with pytest.raises(Refused, match="holds at least 1,000, and its shape takes fewer than 999"):
        zarr_chunks.bounded(name, data, 999)


def test_frames_that_do_not_say_their_size() -> None:
    """zstd's streams: an empty header field, and content up to the limit."""
    packed = numcodecs.Zstd().encode(bytes(range(200)))
    # Single segment, size in one byte: the header without them, and a window in their place.
    assert packed[4] & 0xE0 == 0x20
    stream = packed[:4] + bytes([packed[4] & ~0x20, 0]) + packed[6:]
    assert zarr_chunks.bounded("zstd", stream, 200) == bytes(range(200))
    with pytest.raises(Exception, match="too small"):
        zarr_chunks.bounded("zstd", stream, 199)


def test_the_command_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            tmp_path / "a.zarr", shape=VALUES.shape, dtype=VALUES.dtype, chunks=(16, 16),
            shards=(CHUNK, CHUNK), compressors=GzipCodec(),
        )  # fmt: skip
        array[:] = VALUES
    # A shard of one inner chunk, in whose index that chunk has all of the file.
    shard = tmp_path / "a.zarr" / "c" / "0" / "0"
    body = gzip.compress(ZEROS)
    index = struct.pack("<8Q", 0, len(body), *[2**64 - 1] * 6)
    shard.write_bytes(body + checked(index))
    assert run("filter", tmp_path / "a.zarr", tmp_path / "b.zarr", "-k", "box:3") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "a.zarr: a chunk of" in err
    assert "holds at least" in err
    assert os.listdir(tmp_path) == ["a.zarr"]


LARGE = np.zeros((2000, 2000), np.uint8)
TILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "zlib": (lambda: replaced("zlib", zlib.compress(ZEROS)), "damaged or truncated: .*SPACE"),
    "zstd": (
        lambda: replaced("zstd", imagecodecs.zstd_encode(ZEROS)), "damaged or .*too small"
    ),
    "packbits": (
        lambda: replaced("packbits", imagecodecs.packbits_encode(ZEROS)), "damaged or truncated: ",
    ),
    "jpeg": (
        lambda: replaced("jpeg", imagecodecs.jpeg8_encode(LARGE)),
        "a part of 64 x 64 pixels is a picture of 2000 x 2000: it is damaged, or meant to fill",
    ),
    "jpeg2000": (
        lambda: replaced("jpeg2000", imagecodecs.jpeg2k_encode(LARGE)),
        "a part of 64 x 64 pixels is a picture of 2000 x 2000",
    ),
    "jpeg without a size": (
        lambda: replaced("jpeg", b"\xff\xd8" + bytes(60)), "is a picture of unknown size",
    ),
    "png": (
        lambda: replaced("png", imagecodecs.png_encode(LARGE)),
        "its compression is PNG, in which a small file can fill the memory; save it with deflate",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), TILES.values(), ids=TILES)
def test_a_tile_that_inflates(
    make: Callable[[], bytes], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    # And in parts.
    assert run("filter", path, tmp_path / "b.tif", "-k", "box:3", "--chunked") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"numbasep: {path}: ")
    assert os.listdir(tmp_path) == ["a.tif"]


@pytest.mark.parametrize("compression", ["lzw", "lzma"])
def test_a_tile_is_cut_where_it_should_end(compression: str, tmp_path: Path) -> None:
    """These stop by themselves."""
    encode = getattr(imagecodecs, f"{compression}_encode")
    path = tmp_path / "a.tif"
    path.write_bytes(replaced(compression, bytes(encode(ZEROS))))
    assert read(path).colour.shape == (SIDE, SIDE, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg"},
        {"compression": "jpeg", "tile": (32, 48)},
        {"compression": "jpeg", "rowsperstrip": 16},
        {"compression": "jpeg2000", "tile": (64, 64)},
    ],
)
def test_pictures_in_a_tiff_are_read(options: dict[str, Any], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (100, 130, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **options)
    expected = tifffile.imread(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif").colour, expected)
    assert run("filter", tmp_path / "a.tif", tmp_path / "b.tif", "-k", "box:1", "--chunked") == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), expected)
