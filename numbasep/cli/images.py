"""Pictures in and out: PNG, JPEG and TIFF, with what belongs to them.

Pixels are handled as the viewer sees them: an EXIF (or TIFF) orientation is undone by a view when
a picture is read and done again when it is written, its tag is kept, and so "right" is the viewer's
right in between. Nothing is rounded or rescaled on the way.

========== ================================== ==================================================
format     pixels                             kept
========== ================================== ==================================================
PNG        8 and 16 bit, grey or RGB, alpha   EXIF, ICC profile, pixels per metre
JPEG       8 bit, grey or RGB                 EXIF, ICC profile, dots per inch
TIFF       integers and floats of 8 to 64     orientation, ICC profile, resolution
           bit, grey or RGB, alpha
========== ================================== ==================================================

A palette becomes RGB, a bitmap grey of 0 and 255.
"""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from numbasep.cli.files import check_output, whole

Array = NDArray[Any]

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}

ORIENTATION = 0x0112

# Whether the stored picture is transposed, and then the steps along its rows and columns, to stand
# as the viewer sees it (EXIF 2.32, table 4).
_UPRIGHT = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}


def upright(stored: Array, orientation: int) -> Array:
    """Return a view of a stored picture ``(H, W, ...)`` as the viewer sees it."""
    transposed, vertical, horizontal = _UPRIGHT[orientation]
    seen = stored.swapaxes(0, 1) if transposed else stored
    return seen[::vertical, ::horizontal]


def as_stored(seen: Array, orientation: int) -> Array:
    """Return the view that ``upright`` undoes."""
    transposed, vertical, horizontal = _UPRIGHT[orientation]
    turned = seen[::vertical, ::horizontal]
    return turned.swapaxes(0, 1) if transposed else turned


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the viewer sees it.

    Attributes:
        colour: ``(H, W, 1)`` grey or ``(H, W, 3)`` RGB.
        alpha: ``(H, W, 1)``, or None.
        orientation: 1 to 8, how the file stores it (EXIF tag 274).
        icc: the colour profile.
        dpi: pixels per inch, across and down, as stored.
        exif: the whole EXIF block, if the file has one.
        premultiplied: whether the colours are multiplied by alpha already (TIFF only).
    """

    colour: Array
    alpha: Array | None = None
    orientation: int = 1
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    exif: bytes | None = None
    premultiplied: bool = False

    @property
    def kind(self) -> str:
        """Its channels in words."""
        name = "RGB" if self.colour.shape[2] == 3 else "grey"
        return name if self.alpha is None else f"{name} with alpha"

    def stored(self) -> Array:
        """Return ``(H, W, C)``, alpha last, as the file stores it."""
        parts = [self.colour] if self.alpha is None else [self.colour, self.alpha]
        return np.ascontiguousarray(as_stored(np.concatenate(parts, axis=2), self.orientation))


def of_array(array: Array) -> Picture:
    """Return an array ``(H, W)`` or ``(H, W, 3)`` as a picture."""
    return Picture(array if array.ndim == 3 else array[:, :, None])


def format_of(path: Path) -> str:
    """Return the format that a file's name asks for."""
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise ValueError(
            f"{path}: pictures are written as {', '.join(FORMATS)}; choose one of these names"
        )
    return found


def check_writable(path: Path, picture: Picture) -> None:
    """Refuse a format that cannot hold such a picture."""
    kind, dtype = format_of(path), picture.colour.dtype
    if kind == "JPEG" and (dtype != np.uint8 or picture.alpha is not None):
        what = f"{dtype} pixels" if picture.alpha is None else "an alpha channel"
        raise ValueError(f"{path}: JPEG cannot hold {what}; write .png or .tif")
    if kind == "JPEG" and max(picture.colour.shape) > 65535:
        raise ValueError(f"{path}: JPEG holds at most 65535 pixels a side; write .png or .tif")
    if kind == "PNG" and dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: PNG cannot hold {dtype} pixels; write .tif")


@contextlib.contextmanager
def _decoding(path: Path, max_pixels: int) -> Iterator[None]:
    """Name the file in whatever a decoder raises; decoders have no common error."""
    kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MemoryError:
        raise ValueError(f"{path}: there is not enough memory for its pixels") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:
        raise ValueError(f"{path}: the file is damaged or truncated: {error}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = kept


class Refused(ValueError):
    """A sound file that is not for us; the message says what to do."""


def read(path: Path, *, page: int | None, max_pixels: int) -> Picture:
    """Read a picture.

    page: which one of a file of several pictures, from 1; such a file is refused without it.
    max_pixels: a larger picture is refused before it is decoded.

    Raises:
        ValueError: naming the file, what is wrong with it, and what to do.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            reader = _read_tiff
        elif start == b"\x89PNG\r\n\x1a\n" or start[:3] == b"\xff\xd8\xff":
            reader = _read_pillow
        else:
            what = "is empty" if not start else "is no PNG, JPEG or TIFF picture"
            raise ValueError(f"{path}: {what}; convert it to one of these")
        file.seek(0)
        with _decoding(path, max_pixels):
            return reader(file, page, max_pixels)


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width == 0:
        raise Refused(f"the picture is empty, {width} x {height} pixels")
    if height * width > max_pixels:
        raise Refused(
            f"{width} x {height} pixels are more than {max_pixels:,}, and could be meant to fill "
            f"the memory; if you trust the file, add --max-pixels {height * width}"
        )


def _page(page: int | None, pages: int) -> int:
    if page is None:
        if pages > 1:
            raise Refused(f"holds {pages} pictures; choose one with --page 1 to --page {pages}")
        return 0
    if not 1 <= page <= pages:
        raise Refused(f"has no page {page}; choose --page 1 to --page {pages}")
    return page - 1


def _read_pillow(file: BinaryIO, page: int | None, max_pixels: int) -> Picture:
    # MPO is a JPEG file that holds further pictures, as many telephones write it.
    with Image.open(file, formats=("PNG", "JPEG", "MPO")) as image:
        _check_size(image.height, image.width, max_pixels)
        pages = getattr(image, "n_frames", 1)
        index = _page(page, pages)
        if pages > 1:
            image.seek(index)
            _check_size(image.height, image.width, max_pixels)
        pixels = _pixels(image, file, pages)
        exif = image.info.get("exif")
        tags = image.getexif()
        orientation = tags.get(ORIENTATION, 1)
        dpi = image.info.get("dpi")
        return _oriented(
            pixels,
            orientation,
            icc=image.info.get("icc_profile"),
            dpi=dpi and (float(dpi[0]), float(dpi[1])),
            exif=exif or None,
        )


def _pixels(image: Image.Image, file: BinaryIO, pages: int) -> Array:
    """Return ``(H, W)`` or ``(H, W, C)``, alpha last."""
    header = b""
    if image.format == "PNG":
        file.seek(0)
        header = file.read(26)
    if header[24:25] == b"\x10" and header[25:26] in (b"\2", b"\4", b"\6"):
        # Pillow would read 16-bit colours as 8-bit ones.
        if pages > 1:
            raise Refused("is animated, of 16-bit colours; save the frame by itself")
        import imagecodecs

        file.seek(0)
        wide: Array = imagecodecs.png_decode(file.read())
        return wide
    mode = image.mode
    transparent = image.info.get("transparency")
    if mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        if transparent is None:
            return grey
        return np.stack([grey, np.where(grey == transparent, 0, 65535).astype(np.uint16)], axis=-1)
    if mode in ("P", "PA") or (transparent is not None and mode in ("1", "L", "RGB")):
        opaque = mode == "P" and transparent is None
        image = image.convert("RGB" if opaque else "LA" if mode in ("1", "L") else "RGBA")
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise Refused(f"its pixels are {mode}; convert it to RGB, which a colour profile defines")
    return np.asarray(image)


def _oriented(pixels: Array, orientation: int, **belongings: Any) -> Picture:
    """Return stored pixels ``(H, W)`` or ``(H, W, C)`` as a picture."""
    if orientation not in _UPRIGHT:
        orientation = 1  # as viewers do
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    seen = upright(pixels, orientation)
    channels = seen.shape[2]
    colours = 1 if channels <= 2 else 3
    alpha = seen[:, :, colours:] if channels > colours else None
    return Picture(seen[:, :, :colours], alpha, orientation, **belongings)


def _read_tiff(file: BinaryIO, page: int | None, max_pixels: int) -> Picture:
    import tifffile

    # What it has to say arrives as an error of ours, or does not matter.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    with tifffile.TiffFile(file) as tiff:
        found = tiff.pages[_page(page, len(tiff.pages))]
        _check_size(found.imagelength, found.imagewidth, max_pixels)
        if found.imagedepth != 1:
            raise Refused("holds a volume; save one of its planes")
        size = file.seek(0, io.SEEK_END)
        segments = list(zip(found.dataoffsets, found.databytecounts, strict=True))
        if not segments or any(offset + count > size for offset, count in segments):
            raise EOFError(f"its pixels would end after its {size:,} bytes")
        pixels = _tiff_pixels(found, tifffile)
        tag = found.tags.get
        across, down, unit = tag(282), tag(283), tag(296)
        dpi = None
        if across and down and (unit is None or unit.value != 1):
            per_inch = 2.54 if unit is not None and unit.value == 3 else 1.0
            dpi = tuple(v.value[0] / max(v.value[1], 1) * per_inch for v in (across, down))
        return _oriented(
            pixels,
            1 if tag(274) is None else int(tag(274).value),
            icc=None if tag(34675) is None else bytes(tag(34675).value),
            dpi=dpi,
            premultiplied=tuple(map(int, found.extrasamples)) == (1,),
        )


def check_tiff_pixels(page: Any, tifffile: Any) -> None:
    """Refuse pixels that are no grey, RGB or palette of whole bytes, with at most one alpha."""
    colours = tifffile.PHOTOMETRIC
    kind, samples = page.photometric, page.samplesperpixel
    jpeg = page.compression in (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.OJPEG)
    expected = {colours.MINISBLACK: 1, colours.MINISWHITE: 1, colours.PALETTE: 1, colours.RGB: 3}
    if kind == colours.YCBCR and jpeg:
        expected[kind] = 3  # decoded to RGB
    alpha = int(kind != colours.PALETTE)
    if kind not in expected or not 0 <= samples - expected[kind] <= alpha:
        name = getattr(kind, "name", kind)
        raise Refused(f"its pixels are {name} of {samples} samples; convert it to grey or RGB")
    if (
        page.dtype is None
        or page.dtype.kind not in "buif"
        or page.bitspersample not in (*(1, 8, 16, 32, 64),)
    ):
        raise Refused(f"its samples are of {page.bitspersample} bit; convert it to 8, 16 or 32 bit")


def _tiff_pixels(page: Any, tifffile: Any) -> Array:
    """Return ``(H, W)`` or ``(H, W, C)``, alpha last; white is large."""
    from numbasep.cli import tiff_segments

    check_tiff_pixels(page, tifffile)
    tiff_segments.check(page)
    colours = tifffile.PHOTOMETRIC
    kind, samples = page.photometric, page.samplesperpixel
    pixels: Array = page.asarray()
    if samples > 1 and pixels.shape[0] == samples and page.planarconfig == 2:
        pixels = np.moveaxis(pixels, 0, -1)
    pixels = pixels.reshape(page.imagelength, page.imagewidth, samples)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if kind == colours.PALETTE:
        # Palettes are of 16 bit; what they hold is not.
        palette: Array = (np.moveaxis(page.colormap, 0, -1) >> 8).astype(np.uint8)
        return palette[pixels[:, :, 0]]
    if kind == colours.MINISWHITE:
        if pixels.dtype.kind != "u":
            raise Refused(f"white is small in its {pixels.dtype} pixels; invert it")
        pixels = pixels.copy()
        pixels[:, :, 0] = np.iinfo(pixels.dtype).max - pixels[:, :, 0]
    return pixels


def write(path: Path, picture: Picture, *, overwrite: bool = False, quality: int = 95) -> None:
    """Write a picture in the format of the file's name, whole or not at all.

    quality: of a JPEG, 1 to 100. Its colours are never subsampled.
    """
    check_writable(path, picture)
    check_output(path, overwrite)
    data = encoded(picture, format_of(path), quality)
    with whole(path, overwrite) as file:
        file.write(data)


def encoded(picture: Picture, kind: str, quality: int = 95) -> bytes:
    """Return a picture as the bytes of a file of a format."""
    return {"PNG": _png, "JPEG": _jpeg, "TIFF": _tiff}[kind](picture, quality)


def _exif(picture: Picture) -> bytes | None:
    """Return the EXIF block, with the orientation that may have come from elsewhere."""
    tags = Image.Exif()
    if picture.exif is not None:
        tags.load(picture.exif)
    if tags.get(ORIENTATION, 1) == picture.orientation:
        return picture.exif
    tags[ORIENTATION] = picture.orientation
    return tags.tobytes()


def _jpeg(picture: Picture, quality: int) -> bytes:
    stored = picture.stored()
    image = Image.fromarray(stored[:, :, 0] if stored.shape[2] == 1 else stored)
    belongings = {"exif": _exif(picture), "icc_profile": picture.icc, "dpi": picture.dpi}
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=quality,
        subsampling=0,
        optimize=True,
        **{name: value for name, value in belongings.items() if value is not None},
    )
    return buffer.getvalue()


def _png(picture: Picture, _quality: int) -> bytes:
    import imagecodecs

    # Pillow would write 16-bit colours as 8-bit ones.
    data = bytes(imagecodecs.png_encode(picture.stored()))
    chunks = []
    if picture.icc is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc)))
    if picture.dpi is not None:
        across, down = (round(v / 0.0254) for v in picture.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", across, down, 1)))
    exif = _exif(picture)
    if exif is not None:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    # Before the pixels, after the signature and the header chunk, which are 33 bytes.
    inserted = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    return data[:33] + inserted + data[33:]


def _tiff(picture: Picture, _quality: int) -> bytes:
    import tifffile

    stored = picture.stored()
    rgb = picture.colour.shape[2] == 3
    tags = []
    if picture.orientation != 1:
        tags.append((274, "H", 1, picture.orientation, True))
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if picture.dpi is not None:
        options |= {"resolution": picture.dpi, "resolutionunit": "INCH"}
    if picture.alpha is not None:
        options["extrasamples"] = ["ASSOCALPHA" if picture.premultiplied else "UNASSALPHA"]
    tifffile.imwrite(
        buffer,
        stored if stored.shape[2] > 1 else stored[:, :, 0],
        bigtiff=stored.nbytes > 4_000_000_000,
        photometric="RGB" if rgb else "MINISBLACK",
        planarconfig="CONTIG" if stored.shape[2] > 1 else None,
        compression="zlib",
        predictor=stored.dtype.kind == "f" or stored.dtype.itemsize <= 4,
        iccprofile=picture.icc,
        extratags=tags,
        metadata=None,
        software=False,
        **options,
    )
    return buffer.getvalue()


def with_colour(picture: Picture, colour: Array) -> Picture:
    """Return the picture with other colours, all that belongs to it kept."""
    return replace(picture, colour=colour)
