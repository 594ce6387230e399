"""Tiles and strips of a TIFF that no decoder should see.

The size of the whole picture is checked when a file is opened, and of compressed bytes no more are
decoded than a tile takes. A tile that is a JPEG picture has a size of its own, up to 65535 x 65535
in some hundred kilobytes, which is looked at before it is decoded; so are the codes of LZW data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from numbasep.cli import lzw
from numbasep.cli.images import Refused

OF_BYTES = (
    "NONE", "ADOBE_DEFLATE", "DEFLATE", "ZSTD", "LZMA", "PACKBITS", "CCITTRLE", "CCITTFAX3",
    "CCITTFAX4",
)  # fmt: skip
OF_PICTURES = (
    "JPEG", "OJPEG", "ALT_JPEG", "JPEG_LOSSY", "JPEG2000", "JPEG_2000_LOSSY", "APERIO_JP2000_YCBC",
    "APERIO_JP2000_RGB",
)  # fmt: skip

# A JPEG 2000 codestream's first two markers; a file may have boxes before it.
CODESTREAM = b"\xff\x4f\xff\x51"


def check(page: Any) -> None:
    """Let a page refuse, when it decodes them, parts that are larger than it says.

    Raises:
        Refused: the page's compression does not say how large they are.
    """
    name = getattr(page.compression, "name", str(page.compression))
    if name == "LZW":
        _check_first(page, _check_codes)
        return
    if name in OF_BYTES:
        return
    if name not in OF_PICTURES:
        raise Refused(
            f"its compression is {name}, in which a small file can fill the memory; save it with "
            "deflate, LZW, Zstandard or JPEG"
        )
    down, across = min(page.rowsperstrip, page.imagelength), page.imagewidth
    if page.is_tiled:
        down, across = page.tilelength, page.tilewidth
    # Some encoders fill a picture's last blocks.
    limit = (down + 64) * (across + 64)

    def check_size(page: Any, data: bytes, header: bytes) -> None:
        size = coded_size(header + data)
        if size is None or size[0] * size[1] > limit:
            of = "of unknown size" if size is None else f"of {size[1]} x {size[0]}"
            raise Refused(
                f"a part of {across} x {down} pixels is a picture {of}: it is damaged, or meant to "
                "fill the memory"
            )

    _check_first(page, check_size)


def _check_codes(page: Any, data: bytes, header: bytes) -> None:
    if page.fillorder == 2:
        import imagecodecs

        data = bytes(imagecodecs.bitorder_decode(data))
    if not lzw.sound(data):
        raise ValueError("its LZW codes are wrong, or of the kind that TIFF gave up in 1992")


def _check_first(page: Any, check: Callable[[Any, bytes, bytes], None]) -> None:
    """Let a page look at the data of each part before it decodes them."""
    decode = page.decode

    def checked(data: bytes | None, *more: Any, **options: Any) -> Any:
        if data is not None:
            check(page, data, options.get("jpegheader") or b"")
        return decode(data, *more, **options)

    page.decode = checked


def coded_size(data: bytes) -> tuple[int, int] | None:
    """Return the height and width that JPEG or JPEG 2000 data give their picture, if they do."""
    start = data.find(CODESTREAM, 0, 1 << 16)
    if start >= 0:
        right, lower, left, top = struct.unpack(
            ">4I", data[start + 8 : start + 24].ljust(16, b"\0")
        )
        return lower - top, right - left
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        # Start of frame; C4, C8 and CC are tables and reserved.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">2H", data, place + 5)
            return height, width
        if marker == 0xFF:
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
