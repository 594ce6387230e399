"""What the tests of picture files share."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from numbasep.cli import images

Array = npt.NDArray[Any]

HEIGHT, WIDTH = 5, 7
LIMIT = 1 << 20


def pixels(channels: int, dtype: Any, seed: int = 0) -> Array:
    """Return different pixels, (H, W, channels), over the range of a dtype."""
    random = np.random.default_rng(seed)
    shape = HEIGHT, WIDTH, channels
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return random.standard_normal(shape).astype(kind)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max, shape, kind, endpoint=True)


def read(path: Path, page: int | None = None, max_pixels: int = LIMIT) -> images.Picture:
    return images.read(path, page=page, max_pixels=max_pixels)


def whole(picture: images.Picture) -> Array:
    """Return all channels as the viewer sees them."""
    parts = [picture.colour] if picture.alpha is None else [picture.colour, picture.alpha]
    return np.concatenate(parts, axis=2)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png() -> bytes:
    return bytes(imagecodecs.png_encode(pixels(3, np.uint8)))


def saved(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(pixels(3, np.uint8))).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array: Array, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def replaced(compression: str, data: bytes, **options: Any) -> bytes:
    """Return a TIFF of 64 x 64 pixels whose one tile is other data."""
    side = 64
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.zeros((side, side), np.uint8), compression=compression, tile=(side, side),
        photometric="minisblack", metadata=None, **options,
    )  # fmt: skip
    made = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(made)) as tiff:
        tags = tiff.pages[0].tags
        places = [tags[code].valueoffset for code in (324, 325)]
    for place, value in zip(places, (len(made), len(data)), strict=True):
        struct.pack_into("<I", made, place, value)
    return bytes(made) + data
