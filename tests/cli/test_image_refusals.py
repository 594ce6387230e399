"""Picture files that are refused: unknown, damaged, cut, hostile, or of pixels not known here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from numbasep.cli import images
from tests.cli.picture_files import chunk, pixels, png, read, saved, tiff, whole


def bomb() -> bytes:
    """A PNG of 400 bytes that says it has 30000 x 30000 pixels."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(300_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def tiff_bomb() -> bytes:
    data = tiff(np.zeros((16, 16), np.uint8), compression="zlib")
    # The tags of width and height: type short, count 1, 16.
    for tag in (256, 257):
        old = struct.pack("<HHII", tag, 4, 1, 16), struct.pack("<HHIHH", tag, 3, 1, 16, 0)
        new = struct.pack("<HHII", tag, 4, 1, 60000)
        assert sum(data.count(o) for o in old) == 1
        for o in old:
            data = data.replace(o, new)
    return data


def text_bomb() -> bytes:
    data = png()
    body = zlib.compress(bytes(8 << 20))
    return data[:33] + chunk(b"zTXt", b"Comment\0\0" + body) + data[33:]


def animated() -> bytes:
    data = bytes(imagecodecs.png_encode(pixels(3, np.uint16)))
    return data[:33] + chunk(b"acTL", struct.pack(">II", 2, 0)) + data[33:]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty; convert it to one of these"),
    "text": (lambda: b"hello, world", "is no PNG, JPEG or TIFF picture"),
    "a GIF": (lambda: saved("GIF"), "is no PNG, JPEG or TIFF picture"),
    "a BMP": (lambda: saved("BMP"), "is no PNG, JPEG or TIFF picture"),
    "half a PNG": (lambda: png()[: len(png()) // 2], "damaged or truncated"),
    "half a 16-bit PNG": (
        lambda: bytes(imagecodecs.png_encode(pixels(3, np.uint16)))[:150], "damaged or truncated",
    ),
    "half a JPEG": (lambda: saved("JPEG")[:-60], "damaged or truncated"),
    "half a TIFF": (lambda: tiff(pixels(3, np.uint8), photometric="rgb")[:-50], "damaged or trunc"),
    "half a compressed TIFF": (
        lambda: tiff(pixels(3, np.uint8), photometric="rgb", compression="zlib")[:-50],
        "damaged or truncated",
    ),
    "a TIFF header": (lambda: b"II*\0\x08\0\0\0", "damaged or truncated"),
    "a PNG header": (lambda: png()[:8], "damaged or truncated"),
    "a wrong checksum": (lambda: png()[:20] + b"\1" + png()[21:], "damaged or truncated"),
    "a bomb": (bomb, r"30000 x 30000 pixels are more than 1,048,576.*--max-pixels 900000000"),
    "a TIFF bomb": (tiff_bomb, r"60000 x 60000 pixels are more than .*--max-pixels 3600000000"),
    "a bomb of text": (text_bomb, "damaged or truncated"),
    "a film": (animated, "holds 3 pictures; choose one with --page 1 to --page 3"),
    "CMYK": (
        lambda: saved("JPEG", Image.fromarray(pixels(3, np.uint8)).convert("CMYK")),
        "its pixels are CMYK; convert it to RGB",
    ),
    "CMYK TIFF": (
        lambda: tiff(pixels(4, np.uint8), photometric="separated"), "its pixels are SEPARATED of 4",
    ),
    "Lab TIFF": (
        lambda: saved("TIFF", Image.fromarray(pixels(3, np.uint8)).convert("LAB")),
        "its pixels are CIELAB of 3 samples; convert it to grey or RGB",
    ),
    "five channels": (
        lambda: tiff(pixels(5, np.uint8), photometric="minisblack", planarconfig="contig"),
        "its pixels are MINISBLACK of 5 samples",
    ),
    "complex": (
        lambda: tiff(np.ones((4, 4), np.complex64)), "its samples are of 64 bit; convert",
    ),
    "12 bit": (
        lambda: tiff(pixels(1, np.uint16)[:, :, 0] >> 4, bitspersample=12, compression=None),
        "its samples are of 12 bit; convert it to 8, 16 or 32 bit",
    ),
    "a volume": (
        lambda: tiff(np.ones((4, 16, 16), np.uint8), volumetric=True, photometric="minisblack"),
        "holds a volume; save one of its planes",
    ),
    "float white": (
        lambda: tiff(np.ones((4, 4), np.float32), photometric="miniswhite"),
        "white is small in its float32 pixels; invert it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_files(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_frame_of_16_bit_colours(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(animated())
    with pytest.raises(
        ValueError, match="is animated, of 16-bit colours; save the frame by itself"
    ):
        read(tmp_path / "a.png", page=1)


def test_a_bomb_is_for_the_user_to_trust(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    with pytest.raises(ValueError, match="--max-pixels 35"):
        read(path, max_pixels=34)
    assert read(path, max_pixels=35).colour.shape == (5, 7, 3)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.png")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


SOUND = {
    "png": png(),
    "png16": bytes(imagecodecs.png_encode(pixels(4, np.uint16))),
    "jpeg": saved("JPEG"),
    "tiff": tiff(pixels(3, np.uint8), photometric="rgb"),
    "zlib": tiff(pixels(3, np.uint16), photometric="rgb", compression="zlib", predictor=True),
    "lzw": tiff(pixels(1, np.float32)[:, :, 0], photometric="minisblack", compression="lzw"),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_cut_is_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    """No cut of a file gives other pixels than the whole file."""
    path = tmp_path / "a"
    path.write_bytes(SOUND[kind])
    expected = whole(read(path))
    refused, cuts = 0, range(0, len(SOUND[kind]), 3)
    for end in cuts:
        path.write_bytes(SOUND[kind][:end])
        try:
            found = read(path)
        except ValueError:
            refused += 1
        else:
            assert whole(found).tobytes() == expected.tobytes()
    assert refused > len(cuts) / 2


@given(st.data())
def test_damage_is_an_error_of_the_file(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is in a file: pixels, or a ValueError that names it."""
    kind = data.draw(st.sampled_from(sorted(SOUND)))
    damaged = bytearray(SOUND[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a"
    path.write_bytes(damaged)
    message = ""
    try:
        assert read(path).colour.ndim == 3
    except ValueError as error:
        message = str(error)
    assert message == "" or message.startswith(f"{path}: ")


UNWRITABLE: dict[str, tuple[str, images.Picture, str]] = {
    "no format": ("a.gif", images.of_array(pixels(3, np.uint8)), r"are written as \.png, \.jpg"),
    "no suffix": ("a", images.of_array(pixels(3, np.uint8)), r"are written as \.png, \.jpg"),
    "16-bit JPEG": ("a.jpg", images.of_array(pixels(3, np.uint16)), r"JPEG cannot hold uint16 pix"),
    "JPEG with alpha": (
        "a.jpeg", images._oriented(pixels(4, np.uint8), 1), r"JPEG cannot hold an alpha channel; wr"
    ),
    "a wide JPEG": (
        "a.jpg", images.of_array(np.zeros((1, 65536), np.uint8)), r"at most 65535 pixels a side; w"
    ),
    "float PNG": ("a.png", images.of_array(pixels(3, np.float32)), r"PNG cannot hold float32"),
    "signed PNG": ("a.png", images.of_array(pixels(3, np.int8)), r"PNG cannot hold int8 pixels; w"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "picture", "message"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_refused_formats(tmp_path: Path, name: str, picture: images.Picture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.write(tmp_path / name, picture)
    assert list(tmp_path.iterdir()) == []
