"""What fuzzing found (``tests/fuzz.py``)."""

from __future__ import annotations

import io
import time
from fractions import Fraction
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from numbasep import depthwise_conv2d, factorise, separable_conv2d
from numbasep.cli import lzw
from tests.cli.picture_files import read, replaced, saved


def test_factorise_ends() -> None:
    """Steps of one between terms whose coefficients differ by 2**30 took for ever."""
    small = np.array(
        [
            [0, 0, 3, 0, -3, -1],
            [2, 3, -3, 0, 0, 0],
            [3, 0, -3, -1, -1, -1],
            [-1, -1, -3, -3, -3, -3],
            [-3, -3, -3, -3, -3, -3],
        ]
    )
    for kernel in (np.where(small < 0, small + 2**30, small), small.astype(np.uint64)):
        factors = factorise(kernel)
        columns, rows = (np.vectorize(Fraction)(taps) for taps in (factors.columns, factors.rows))
        off = np.abs(kernel.astype(object) - columns.T @ rows).sum()
        assert off <= Fraction(factors.error) * sum(map(int, kernel.flat))
        assert factors.error < 1e-14


def test_factorise_does_not_search_where_no_integer_factors_can_be_kept() -> None:
    """A 24 x 24 kernel of unsigned integers near 2**64 took a quarter of a minute."""
    rng = np.random.default_rng(0)
    kernel = rng.integers(-3, 4, (24, 24)).astype(np.uint64)
    kernel[rng.random((24, 24)) < 0.7] = 0
    begin = time.process_time()
    factors = factorise(kernel)
    assert factors.dtype == np.float64
    assert factors.error < 1e-13
    assert time.process_time() - begin < 5


def lzw_of(codes: list[int], order: str = "big") -> bytes:
    """Codes of 9 bits, as TIFF packs them: the highest bit first, or as before 1992 the lowest."""
    if order == "big":
        bits = "".join(f"{code:09b}" for code in codes)
        return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    whole = sum(code << 9 * i for i, code in enumerate(codes))
    return whole.to_bytes(-(-9 * len(codes) // 8), "little")


@pytest.mark.parametrize(
    "data",
    [
        lzw_of([256, 300, 1, 257]),  # the first code of a table is a byte
        lzw_of([256, 1, 260, 257]),  # 258 would be the one that is being made
        lzw_of([256, 1, 258, 3, 262, 257]),
        lzw_of([1, 2, 257]),  # never cleared
        lzw_of([256, 317, 1, 257], "little"),  # ended the process
        lzw_of([256, 1, 2, 257], "little"),
        b"\x80",
    ],
)
def test_lzw_codes_without_an_entry(data: bytes, tmp_path: Path) -> None:
    """imagecodecs looked them up in memory that it had not written: a crash, or other pixels."""
    assert not lzw.sound(data)
    path = tmp_path / "a.tif"
    path.write_bytes(replaced("lzw", data))
    with pytest.raises(ValueError, match=r"a\.tif: the file is damaged or truncated: "):
        read(path)


@pytest.mark.parametrize("most", [1, 2, 40, 256])
def test_sound_lzw_codes(most: int) -> None:
    """Of tables that are never, once and often full, by two encoders; cut anywhere."""
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 255, 256, 1000, 20_000):
        values = rng.integers(0, most, size).astype(np.uint8)
        data = bytes(imagecodecs.lzw_encode(values.tobytes()))
        assert lzw.sound(data)
        assert all(lzw.sound(data[:end]) for end in range(2, len(data), 1 + len(data) // 40))
    with io.BytesIO(
        saved("TIFF", Image.fromarray(values.reshape(100, 200)), compression="tiff_lzw")
    ) as file:
        page = tifffile.TiffFile(file).pages[0]
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        raw = file.getvalue()
    assert parts
    assert all(lzw.sound(raw[start : start + count]) for start, count in parts)


@pytest.mark.parametrize("huge", [2**40, 2**70])
def test_steps_of_any_size(huge: int) -> None:
    """Numbers beyond 64 bits were an OverflowError; a table of 2**40 positions is no plan."""
    x, three = np.arange(12.0).reshape(3, 4), np.ones(3)
    first = separable_conv2d(x, (three, three), stride=huge)
    np.testing.assert_array_equal(first, [[x[:2, :2].sum()]])
    single = separable_conv2d(x, ([2], [3]), dilation=huge)
    np.testing.assert_array_equal(single, 6 * x)
    with pytest.raises(ValueError, match=rf"dilation: 3 taps at dilation {huge} span .* at most"):
        separable_conv2d(x, (three, three), dilation=huge)
    image, weight = x[None], np.ones((1, 1, 3, 3))
    step = depthwise_conv2d(image, weight, stride=huge, padding=1)
    np.testing.assert_array_equal(step, first[None])
    pixel = depthwise_conv2d(image, 2 * np.ones((1, 1, 1, 1)), dilation=huge)
    np.testing.assert_array_equal(pixel, 2 * image)
    with pytest.raises(ValueError, match=rf"dilation: 3 taps at dilation {huge} span .* at most"):
        depthwise_conv2d(image, weight, dilation=huge, padding="same")
    with pytest.raises(ValueError, match=rf"padding: got {huge}; pass at most"):
        depthwise_conv2d(image, weight, padding=huge)
    with pytest.raises(ValueError, match=rf"padding: got {huge}; pass at most"):
        depthwise_conv2d(image, weight, padding=(0, huge, 0, 0))
