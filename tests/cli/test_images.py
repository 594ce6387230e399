"""Pictures in and out: every kind of file, what belongs to them, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from numbasep.cli import images
from tests.cli.picture_files import chunk, pixels, read, whole

Array = npt.NDArray[Any]

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_shows(orientation: int) -> None:
    stored = pixels(3, np.uint8)
    image = Image.fromarray(stored)
    image.getexif()[images.ORIENTATION] = orientation
    seen = images.upright(stored, orientation)
    assert (seen == np.asarray(ImageOps.exif_transpose(image))).all()
    assert (images.as_stored(seen, orientation) == stored).all()


PNG = [(c, d) for c in (1, 2, 3, 4) for d in ("uint8", "uint16")]
TIFF_DTYPES = "uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64"
TIFF = [(c, d) for c in (1, 2, 3, 4) for d in TIFF_DTYPES.split()]


@pytest.mark.parametrize(
    ("suffix", "channels", "dtype"),
    [(".png", *kind) for kind in PNG] + [(".tif", *kind) for kind in TIFF],
)
def test_round_trip(tmp_path: Path, suffix: str, channels: int, dtype: str) -> None:
    """Pixels to the bit, and orientation, profile and resolution, in each orientation."""
    seen = pixels(channels, dtype)
    colours = 1 if channels < 3 else 3
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}{suffix}"
        given = images.Picture(
            seen[:, :, :colours],
            seen[:, :, colours:] if channels > colours else None,
            orientation,
            ICC,
            (300.0, 150.0),
        )
        images.write(path, given)
        found = read(path)
        assert found.colour.dtype == dtype
        assert whole(found).tobytes() == seen.tobytes()
        assert (found.alpha is None) == (channels in (1, 3))
        assert found.orientation == orientation
        assert found.icc == ICC
        # PNG keeps whole pixels per metre.
        assert found.dpi == pytest.approx((300.0, 150.0), abs=0.0254)


@pytest.mark.parametrize(("suffix", "channels", "dtype"), [(".png", *kind) for kind in PNG])
def test_other_readers_see_the_same_png(
    tmp_path: Path, suffix: str, channels: int, dtype: str
) -> None:
    seen = pixels(channels, dtype)
    picture = images._oriented(seen, 1, icc=ICC, dpi=(300.0, 300.0))
    path = tmp_path / "a.png"
    images.write(path, picture)
    assert (imagecodecs.png_decode(path.read_bytes()).reshape(seen.shape) == seen).all()
    with Image.open(path) as image:
        image.load()
        assert image.info["icc_profile"] == ICC
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.0254)
    tagged = images._oriented(seen, 6)
    images.write(path, tagged, overwrite=True)
    with Image.open(path) as image:
        assert image.getexif()[images.ORIENTATION] == 6
    stored = imagecodecs.png_decode(path.read_bytes()).reshape(seen.shape)
    assert (stored == seen).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg(tmp_path: Path, channels: int, orientation: int) -> None:
    """A smooth picture survives within what its quantisation can change."""
    y, x = np.mgrid[:32, :48]
    seen = np.stack([4 * x, 5 * y, 2 * (x + y)][:channels], axis=-1).astype(np.uint8)
    path = tmp_path / "a.jpg"
    given = images.Picture(seen, None, orientation, ICC, (300.0, 150.0))
    images.write(path, given, quality=100)
    found = read(path)
    assert found.orientation == orientation
    assert found.icc == ICC
    assert found.dpi == (300.0, 150.0)
    # Quality 100 quantises by 1: 64 coefficients off by a half each, of basis functions of at most
    # 1/4, and the colour transform with its rounding on top.
    assert np.abs(found.colour.astype(int) - seen).max() <= 64 / 2 / 4
    worst = read_quality(tmp_path, given, 10)
    assert worst > np.abs(found.colour.astype(int) - seen).max()


def read_quality(folder: Path, picture: images.Picture, quality: int) -> int:
    images.write(folder / "low.jpg", picture, quality=quality)
    return int(np.abs(read(folder / "low.jpg").colour.astype(int) - picture.colour).max())


def test_the_whole_exif_block_is_kept(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[images.ORIENTATION] = 8
    tags[0x010F] = "Maker"
    tags.get_ifd(0x8769)[0x9003] = "2026:01:02 03:04:05"
    Image.fromarray(pixels(3, np.uint8)).save(tmp_path / "a.jpg", exif=tags.tobytes())
    for name in ("b.jpg", "c.png", "d.jpg"):
        picture = read(sorted(tmp_path.iterdir())[-1])
        images.write(tmp_path / name, picture)
        with Image.open(tmp_path / name) as image:
            found = image.getexif()
            assert found[images.ORIENTATION] == 8
            assert found[0x010F] == "Maker"
            assert found.get_ifd(0x8769)[0x9003] == "2026:01:02 03:04:05"


def test_an_orientation_that_is_none_is_upright(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[images.ORIENTATION] = 9
    Image.fromarray(pixels(3, np.uint8)).save(tmp_path / "a.png", exif=tags.tobytes())
    assert (read(tmp_path / "a.png").colour == pixels(3, np.uint8)).all()


def test_an_orientation_of_xmp_becomes_one_of_exif(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    note = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/"><a tiff:Orientation="6"/></x>'
    image = Image.fromarray(pixels(3, np.uint8))
    image.save(tmp_path / "a.jpg", exif=tags.tobytes(), xmp=note)
    picture = read(tmp_path / "a.jpg")
    assert picture.orientation == 6
    images.write(tmp_path / "b.jpg", picture)
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.getexif()[images.ORIENTATION] == 6
        assert image.getexif()[0x010F] == "Maker"


# --- kinds of pixels that are converted


def test_palette(tmp_path: Path) -> None:
    rgb = pixels(3, np.uint8)[:, :, :]
    image = Image.fromarray(rgb).quantize(16)
    image.save(tmp_path / "a.png")
    assert (whole(read(tmp_path / "a.png")) == np.asarray(image.convert("RGB"))).all()
    image.save(tmp_path / "b.png", transparency=3)
    found = whole(read(tmp_path / "b.png"))
    assert found.shape[2] == 4
    assert (found[:, :, 3] == np.where(np.asarray(image) == 3, 0, 255)).all()
    image.save(tmp_path / "c.tif", compression="tiff_lzw")
    assert (whole(read(tmp_path / "c.tif")) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_bitmap(tmp_path: Path, suffix: str) -> None:
    bits = pixels(1, np.uint8)[:, :, 0] > 127
    Image.fromarray(bits).save(tmp_path / f"a{suffix}")
    found = read(tmp_path / f"a{suffix}")
    assert found.colour.dtype == np.uint8
    assert (found.colour[:, :, 0] == np.where(bits, 255, 0)).all()


def test_a_bitmap_with_a_transparent_colour(tmp_path: Path) -> None:
    bits = pixels(1, np.uint8)[:, :, 0] > 127
    Image.fromarray(bits).save(tmp_path / "a.png", transparency=0)
    found = whole(read(tmp_path / "a.png"))
    white = np.where(bits, 255, 0)
    assert (found == np.stack([white, white], axis=-1)).all()


def test_transparent_colours_become_alpha(tmp_path: Path) -> None:
    """PNG's tRNS: one colour is transparent. A filtered picture could not say it that way."""
    for channels, dtype in ((1, np.uint8), (3, np.uint8), (1, np.uint16), (3, np.uint16)):
        array = pixels(channels, dtype)
        data = imagecodecs.png_encode(array)
        key = struct.pack(f">{channels}H", *map(int, array[2, 3]))
        path = tmp_path / f"{channels}{np.dtype(dtype)}.png"
        path.write_bytes(data[:33] + chunk(b"tRNS", key) + data[33:])
        found = read(path)
        assert (found.colour == array).all()
        full = np.iinfo(dtype).max
        here = (array == array[2, 3]).all(axis=2)
        assert found.alpha is not None
        assert (found.alpha[:, :, 0] == np.where(here, 0, full)).all()


TIFF_FILES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lzw": {"compression": "lzw"},
    "deflate with predictor": {"compression": "zlib", "predictor": True},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "tiles": {"tile": (16, 16)},
    "strips": {"rowsperstrip": 2},
    "big-endian": {"byteorder": ">"},
    "planar": {"planarconfig": "separate"},
    "planar tiles": {"planarconfig": "separate", "tile": (16, 16), "compression": "lzw"},
    "BigTIFF": {"bigtiff": True},
    "ImageJ": {"imagej": True},
    "OME": {"ome": True},
}


@pytest.mark.parametrize("options", TIFF_FILES.values(), ids=TIFF_FILES)
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_layouts(tmp_path: Path, options: dict[str, Any], channels: int) -> None:
    array = pixels(channels, np.uint16)
    stored = array if channels == 3 else array[:, :, 0]
    options = dict(options)
    if options.get("planarconfig"):
        if channels == 1:
            options.pop("planarconfig")
        else:
            stored = np.moveaxis(array, -1, 0)
    if options.get("imagej") and channels == 3:
        array = stored = pixels(3, np.uint8)
    kind = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=kind, **options)
    found = read(tmp_path / "a.tif").colour
    assert found.dtype.isnative
    assert (found == array).all()


def test_white_that_is_small_is_turned_round(tmp_path: Path) -> None:
    array = pixels(1, np.uint8)[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    assert (read(tmp_path / "a.tif").colour[:, :, 0] == 255 - array).all()


def test_jpeg_in_tiff(tmp_path: Path) -> None:
    y, x = np.mgrid[:32, :32]
    array = np.stack([4 * x, 4 * y, 2 * (x + y)], axis=-1).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif",
        array,
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 100},
    )
    assert np.abs(read(tmp_path / "a.tif").colour.astype(int) - array).max() <= 64 / 2 / 4


def test_premultiplied_alpha_stays_so(tmp_path: Path) -> None:
    array = pixels(4, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["ASSOCALPHA"])
    picture = read(tmp_path / "a.tif")
    images.write(tmp_path / "b.tif", picture)
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        assert tuple(tiff.pages[0].extrasamples) == (1,)
    assert (whole(read(tmp_path / "b.tif")) == array).all()


# --- files of several pictures


def several(path: Path) -> list[Array]:
    frames = [pixels(3, np.uint8, seed) for seed in range(3)]
    first, *others = (Image.fromarray(frame) for frame in frames)
    if path.suffix == ".tif":
        tifffile.imwrite(path, np.stack(frames), photometric="rgb")
    else:
        options = {"format": "MPO"} if path.suffix == ".jpg" else {}
        first.save(path, save_all=True, append_images=others, **options)
    return frames


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_pages(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frames = several(path)
    with pytest.raises(ValueError, match=r"holds 3 pictures; choose one with --page 1 to --page 3"):
        read(path)
    for page in (0, 4):
        with pytest.raises(ValueError, match=rf"has no page {page}; choose --page 1 to --page 3"):
            read(path, page=page)
    for page, frame in enumerate(frames, 1):
        found = read(path, page=page).colour
        if name == "a.jpg":
            with Image.open(path) as image:
                image.seek(page - 1)
                assert (found == np.asarray(image)).all()
        else:
            assert (found == frame).all()
