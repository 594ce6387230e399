"""Where pictures larger than memory are kept: Zarr stores and TIFF files, read in parts.

Axes are letters: Y and X those of the picture, S its interleaved colours, all others planes that
are filtered each by itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep.cli import tiff_segments
from numbasep.cli.images import Refused, check_tiff_pixels

Array = NDArray[Any]

# More than anybody has; metadata that say so were not written by a microscope.
MAX_PIXELS = 1 << 44


@dataclass(frozen=True)
class Stack:
    """An array in files.

    array: with shape, dtype, and reading by slices. chunks: what is decoded at a time. unit: what
    a result of the same layout writes at a time. pixel: size and unit of a pixel along an axis.
    """

    path: Path
    array: Any
    axes: str
    chunks: tuple[int, ...]
    unit: tuple[int, ...]
    pixel: dict[str, tuple[float, str]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    ome: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(int, self.array.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        kept: np.dtype[Any] = np.dtype(self.array.dtype).newbyteorder("=")
        return kept

    @property
    def y(self) -> int:
        return self.axes.index("Y")

    @property
    def x(self) -> int:
        return self.axes.index("X")

    def read(self, index: tuple[slice, ...]) -> Array:
        """Return a part of the array, of the machine's byte order."""
        with damaged(self.path):
            return np.asarray(self.array[index]).astype(self.dtype, copy=False)


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Name the file in whatever a decoder raises; decoders have no common error."""
    try:
        yield
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except (PermissionError, FileNotFoundError):
        raise
    except MemoryError:
        raise ValueError(f"{path}: there is not enough memory for its pixels") from None
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: the file is damaged or truncated: {text}") from None


def holds_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def is_zarr(path: Path) -> bool:
    """Whether a path names a Zarr store, or something in one."""
    return path.suffix.lower() == ".zarr" or any(
        (path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")
    )


def is_tiff(path: Path) -> bool:
    """Whether a file says that it is a TIFF picture."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _checked(stack: Stack, max_pixels: int | None) -> Stack:
    if stack.dtype.kind not in "iuf" or stack.dtype.itemsize > 8:
        raise Refused(f"holds {stack.dtype} numbers; convert them to integers or floats")
    if 0 in stack.shape:
        raise Refused(f"holds no pixel, its shape is {stack.shape}")
    pixels = int(np.prod(stack.shape, dtype=object))
    if pixels > (max_pixels or MAX_PIXELS):
        raise Refused(
            f"{pixels:,} elements are more than {max_pixels or MAX_PIXELS:,}; if you trust the "
            f"file, add --max-pixels {pixels}"
        )
    return stack


# --- Zarr


def open_zarr(path: Path, axes: str | None, max_pixels: int | None) -> Stack:
    """Open an array, a group that holds one array, or level 0 of an OME-Zarr picture.

    axes: one letter for each dimension; by default what the store says.

    Raises:
        ValueError: naming the path, what is wrong with it, and what to do.
    """
    import zarr

    from numbasep.cli.zarr_chunks import PIPELINE

    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    with damaged(path), warnings.catch_warnings(), zarr.config.set(PIPELINE):
        warnings.simplefilter("ignore")
        try:
            found = zarr.open(path, mode="r")
        except FileNotFoundError:
            raise Refused("is no Zarr array or group") from None
        pixel: dict[str, tuple[float, str]] = {}
        attributes: dict[str, Any] = {}
        names: Any = None
        if isinstance(found, zarr.Group):
            attributes = dict(found.attrs)
            array, names, pixel = _level(found, attributes)
        else:
            array = found
        letters = _letters(array, names, axes)
        unit = tuple(getattr(array, "shards", None) or array.chunks)
        if not isinstance(found, zarr.Group):
            attributes = {}
        stack = Stack(
            path, array, letters, tuple(array.chunks), unit, pixel, attributes, ome=bool(pixel)
        )
        return _checked(stack, max_pixels)


def _level(group: Any, attributes: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return the full picture of a group, its axes' names, and the sizes of its pixels."""
    import zarr

    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        arrays = list(group.arrays())
        if len(arrays) != 1:
            listed = ", ".join(sorted(name for name, _ in arrays)[:8]) or "none"
            raise Refused(f"holds {len(arrays)} arrays ({listed}); name one, as in PATH/NAME")
        return arrays[0][1], None, {}
    dataset = scales[0]["datasets"][0]
    array = group[dataset["path"]]
    if not isinstance(array, zarr.Array):
        raise Refused(f"its level {dataset['path']!r} is no array")
    axes = scales[0].get("axes")
    if not axes:
        return array, None, {}
    names = [axis["name"] if isinstance(axis, dict) else axis for axis in axes]
    steps = [
        step["scale"]
        for step in dataset.get("coordinateTransformations", [])
        if step.get("type") == "scale"
    ]
    scale = steps[0] if steps else [1.0] * len(names)
    pixel = {
        name.upper(): (float(value), axis.get("unit", "") if isinstance(axis, dict) else "")
        for name, value, axis in zip(names, scale, axes, strict=True)
    }
    return array, names, pixel


def _letters(array: Any, names: Any, axes: str | None) -> str:
    """Return a letter for each axis."""
    ndim = len(array.shape)
    if axes is not None:
        letters = axes.upper()
        if len(letters) != ndim:
            raise Refused(f"has {ndim} axes, of sizes {array.shape}; --axes names {len(letters)}")
    else:
        if names is None:
            names = getattr(array.metadata, "dimension_names", None)
            names = names or array.attrs.get("_ARRAY_DIMENSIONS")
        if not names:
            if ndim == 2:
                return "YX"
            if ndim > 2 and array.shape[-1] > 4:
                return "Q" * (ndim - 2) + "YX"
            raise Refused(
                f"has axes without names, of sizes {array.shape}; say which are the picture's, "
                "such as --axes YXS"
            )
        letters = "".join(
            str(name).upper() if name is not None and len(str(name)) == 1 else "Q" for name in names
        )
    if letters.count("Y") != 1 or letters.count("X") != 1:
        shown = axes if axes is not None else ", ".join(map(str, names))
        raise Refused(
            f"its axes are {shown}; say which are the picture's Y and X, such as --axes "
            f"{'Q' * (ndim - 2)}YX"
        )
    return letters


def create_zarr(folder: Path, like: Stack) -> Any:
    """Create the array of a result in a new store; return it."""
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(like.array, zarr.Array) and like.array.store_path.store.supports_writes:
            version = like.array.metadata.zarr_format
            name = None
            if like.attributes:
                group = zarr.create_group(folder, zarr_format=version)
                name, kept = _kept(like)
                group.attrs.update(kept)
            return zarr.from_array(
                folder, data=like.array, write_data=False, name=name,
                attributes=dict(like.array.attrs),
            )  # fmt: skip
        axes = [letter.lower() for letter in like.axes]
        name = None
        if like.pixel and like.axes in _subsets("TCZYX"):
            group = zarr.create_group(folder, zarr_format=3)
            name = "0"
            group.attrs.update({"ome": _multiscales(like, axes)})
        return zarr.create_array(
            folder, name=name, shape=like.shape, dtype=like.dtype, chunks=like.unit,
            dimension_names=axes,
        )  # fmt: skip


def _subsets(axes: str) -> set[str]:
    found = {""}
    for letter in axes:
        found |= {subset + letter for subset in found}
    return found


def _kept(like: Stack) -> tuple[str, dict[str, Any]]:
    """Return the array's name in its group, and the group's attributes without lower levels."""
    attributes = json.loads(json.dumps(like.attributes))
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        return like.array.basename, attributes
    del scales[1:]
    del scales[0]["datasets"][1:]
    return str(scales[0]["datasets"][0]["path"]), attributes


def _multiscales(like: Stack, axes: list[str]) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel"}
    described: list[dict[str, str]] = []
    for axis in axes:
        unit = like.pixel.get(axis.upper(), (1.0, ""))[1]
        one = {"name": axis, "type": kinds.get(axis, "space")}
        described.append(one | ({"unit": unit} if unit else {}))
    scale = [like.pixel.get(axis.upper(), (1.0, ""))[0] for axis in axes]
    transformation = {"type": "scale", "scale": scale}
    dataset = {"path": "0", "coordinateTransformations": [transformation]}
    return {"version": "0.5", "multiscales": [{"axes": described, "datasets": [dataset]}]}


# --- TIFF

# Units of OME-XML, as OME-Zarr spells them.
UNITS = {"µm": "micrometer", "nm": "nanometer", "mm": "millimeter", "cm": "centimeter",
         "m": "meter", "s": "second", "ms": "millisecond", "pixel": ""}  # fmt: skip
# Compressions that lose nothing and that results are written with too.
LOSSLESS = ("NONE", "LZW", "ADOBE_DEFLATE", "DEFLATE", "ZSTD", "LZMA", "PACKBITS")
TILE = 256


class _Mapped:
    """Uncompressed pixels in a row: only what is read is mapped, and only then."""

    def __init__(self, path: Path, dtype: Any, offset: int, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.offset, self.shape = path, dtype, offset, shape

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return np.array(mapped[index])


@contextlib.contextmanager
def open_tiff(path: Path, page: int | None, max_pixels: int | None) -> Iterator[Stack]:
    """Open the one series of a TIFF file, or one page of it, from 1.

    Raises:
        ValueError: naming the file, what is wrong with it, and what to do.
    """
    import tifffile
    import zarr

    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    with contextlib.ExitStack() as stack:
        with damaged(path):
            tiff = stack.enter_context(tifffile.TiffFile(path))
            if page is None:
                if len(tiff.series) != 1:
                    raise Refused(
                        f"holds {len(tiff.series)} series of pictures; choose one of "
                        f"{len(tiff.pages)} with --page"
                    )
                series = tiff.series[0]
            else:
                if not 1 <= page <= len(tiff.pages):
                    raise Refused(
                        f"has no page {page}; choose --page 1 to --page {len(tiff.pages)}"
                    )
                chosen = tiff.pages[page - 1].aspage()
                series = tifffile.tifffile.TiffPageSeries([chosen])
            first = series.keyframe
            _check_pages(series, tifffile)
            axes, shape = series.get_axes(False), tuple(series.get_shape(False))
            axes, shape = _squeezed(axes, shape)
            if axes.count("Y") != 1 or axes.count("X") != 1:
                raise Refused(f"its axes are {axes}, of sizes {shape}; convert it to planes")
            if series.dataoffset is not None and not series.is_multifile:
                array: Any = _Mapped(path, series.dtype, series.dataoffset, shape)
                chunks = tuple(n if a in "XS" else 1 for a, n in zip(axes, shape, strict=True))
            else:
                store = series.aszarr(level=0, multiscales=False, squeeze=False)
                stack.callback(store.close)
                array = _Reshaped(zarr.open(store, mode="r"), shape)
                chunks = array.chunks
            tile = TILE, TILE
            if first.is_tiled and all(
                n % 16 == 0 and n <= 4096 for n in (first.tilelength, first.tilewidth)
            ):
                tile = int(first.tilelength), int(first.tilewidth)
            sizes = {"Y": tile[0], "X": tile[1], "S": shape[axes.index("S")] if "S" in axes else 1}
            name = getattr(first.compression, "name", "")
            options: dict[str, Any] = {
                "tile": tile,
                "compression": name if name in LOSSLESS else "ADOBE_DEFLATE",
                "photometric": "RGB" if int(first.photometric) in (2, 6) else "MINISBLACK",
            }
            options["predictor"] = name != "NONE" or None
            for key, tag in (("iccprofile", 34675), ("resolution", None)):
                if tag is not None and tag in first.tags:
                    options[key] = bytes(first.tags[tag].value)
            if 282 in first.tags and 283 in first.tags:
                options["resolution"] = first.tags[282].value, first.tags[283].value
                options["resolutionunit"] = first.tags[296].value if 296 in first.tags else 2
            metadata, pixel = _described(tiff, page)
            made = Stack(
                path, array, axes, chunks, tuple(sizes.get(a, 1) for a in axes), pixel, metadata,
                options, ome=bool(tiff.is_ome and page is None),
            )  # fmt: skip
            made = _checked(made, max_pixels)
        yield made


def _squeezed(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Leave out axes of size 1 that are no picture's."""
    kept = [i for i, (a, n) in enumerate(zip(axes, shape, strict=True)) if n > 1 or a in "YX"]
    return "".join(axes[i] for i in kept), tuple(shape[i] for i in kept)


class _Reshaped:
    """An array without its axes of size 1 that have no letter."""

    def __init__(self, array: Any, shape: tuple[int, ...]) -> None:
        self.array, self.shape, self.dtype = array, shape, array.dtype
        self.kept: list[int] = []
        wanted = list(shape)
        for i, size in enumerate(array.shape):
            if len(self.kept) < len(wanted) and size == wanted[len(self.kept)]:
                self.kept.append(i)
        self.chunks = tuple(int(array.chunks[i]) for i in self.kept)

    def __getitem__(self, index: tuple[slice, ...]) -> Array:
        whole = [slice(None)] * len(self.array.shape)
        for place, one in zip(self.kept, index, strict=True):
            whole[place] = one
        found = np.asarray(self.array[tuple(whole)])
        return found.reshape([found.shape[i] for i in self.kept])


def _check_pages(series: Any, tifffile: Any) -> None:
    first = series.keyframe
    check_tiff_pixels(first, tifffile)
    tiff_segments.check(first)
    if first.imagedepth != 1:
        raise Refused("holds volumes; save planes")
    if int(first.photometric) not in (1, 2, 6) or first.extrasamples or first.bitspersample == 1:
        raise Refused(
            f"its pixels are {getattr(first.photometric, 'name', first.photometric)} of "
            f"{first.samplesperpixel} samples of {first.bitspersample} bit; where pictures are "
            "filtered in parts, convert it to grey or RGB without alpha"
        )
    orientation = first.tags.get(274)
    if orientation is not None and int(orientation.value) != 1:
        raise Refused(
            f"is stored turned (orientation {int(orientation.value)}); where pictures are filtered "
            "in parts, turn it first"
        )
    for page in series.pages:
        if page is None:
            raise Refused("lacks some of its planes")
        size = page.parent.filehandle.size
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if not segments or any(offset + count > size for offset, count in segments):
            raise EOFError(f"its pixels would end after its {size:,} bytes")


def _described(tiff: Any, page: int | None) -> tuple[dict[str, Any], dict[str, tuple[float, str]]]:
    """Return OME's description of the pixels as tifffile takes it, and the sizes of a pixel."""
    import tifffile

    if not tiff.is_ome or page is not None:
        return {}, {}
    pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
    image = pixels[0] if isinstance(pixels, list) else pixels
    found = image["Pixels"]
    kept = {
        key: value
        for key, value in found.items()
        if key.startswith(("PhysicalSize", "TimeIncrement"))
    }
    if "Name" in image:
        kept["Name"] = image["Name"]
    channels = found.get("Channel", [])
    names = [c.get("Name") for c in (channels if isinstance(channels, list) else [channels])]
    if names and all(names):
        kept["Channel"] = {"Name": names}
    pixel = {}
    for axis, key in (
        *((a, f"PhysicalSize{a}") for a in "XYZ"),
        ("T", "TimeIncrement"),
    ):
        if key in found:
            unit = str(found.get(f"{key}Unit", "s" if axis == "T" else "µm"))
            pixel[axis] = float(found[key]), UNITS.get(unit, unit)
    return kept, pixel


def write_tiff(
    file: Any, like: Stack, ome: bool, blocks: Iterator[tuple[Any, Array]],
    advance: Callable[[int], None],
) -> None:  # fmt: skip
    """Write blocks of whole rows, in turn, as the tiles of a BigTIFF file."""
    import tifffile

    options: dict[str, Any] = {
        "tile": (TILE, TILE),
        "compression": "ADOBE_DEFLATE",
        "predictor": True,
    }
    options |= {"photometric": "RGB" if like.axes.endswith("S") else "MINISBLACK"} | like.options
    down, across = options["tile"]
    if "S" in like.axes:
        options["planarconfig"] = "CONTIG" if like.axes.endswith("S") else "SEPARATE"
    shape = like.shape

    def tiles() -> Iterator[Array]:
        last = 2 if like.axes.endswith("S") else 1
        for _, block in blocks:
            plane: Array = block.reshape(block.shape[like.y :])
            for top in range(0, plane.shape[0], down):
                for left in range(0, plane.shape[1], across):
                    tile = plane[top : top + down, left : left + across]
                    missing = (down - tile.shape[0], across - tile.shape[1])
                    if any(missing):
                        tile = np.pad(tile, [(0, n) for n in (*missing, 0)[: last + 1]])
                    yield np.ascontiguousarray(tile)
            advance(block.size)

    metadata: dict[str, Any] | None = None
    if ome:
        sizes: dict[str, Any] = {}
        short = {long: unit for unit, long in UNITS.items() if long}
        for axis, (value, unit) in like.pixel.items():
            key = f"PhysicalSize{axis}" if axis in "XYZ" else "TimeIncrement" * (axis == "T")
            if key:
                sizes[key] = value
                sizes |= {f"{key}Unit": short.get(unit, unit)} if unit else {}
        kept = like.attributes if isinstance(like.array, (_Mapped, _Reshaped)) else {}
        metadata = {"axes": like.axes} | sizes | kept
    elif len(shape) > 2:
        metadata = {"axes": like.axes}
    with tifffile.TiffWriter(file, bigtiff=True, ome=ome) as tiff:
        tiff.write(
            tiles(), shape=shape, dtype=like.dtype, software=False, metadata=metadata, **options
        )
