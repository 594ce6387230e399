"""Whether LZW data of a TIFF can be decoded: its codes name entries that the table has by then.

imagecodecs' decoder (2026.3.6) looks up the others in memory that it has not written, which gives
other pixels in each run, or ends the process.

Codes have 9 to 12 bits, the first bit of a byte the highest, by the number of codes since the table
was cleared: code ``i`` is at most ``257 + i``, the entry that it makes itself, and the first one is
a byte (TIFF 6.0, section 13).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLEAR, END = 256, 257

# The most codes between two clearings that are looked at together, more than a table takes.
SPAN = 4096


@cache
def _schedule() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return of the codes after a clearing: the first bit, the bits, and the largest value."""
    number = np.arange(SPAN)
    width = np.full(SPAN, 9)
    for last in (511, 1023, 2047):
        width += number >= last - 257
    start = np.cumsum(width) - width
    most = np.minimum(257 + number, 4095)
    most[0] = 255
    return start, width, most


def sound(data: bytes) -> bool:
    """Return whether every code of LZW data, up to its end, is one that can be decoded."""
    if len(data) < 2 or data[0] != 0x80 or data[1] & 0x80:
        return False  # not cleared first
    start, width, most = _schedule()
    padded = np.frombuffer(data + bytes(4), np.uint8).astype(np.int64)
    place, total, full = 9, 8 * len(data), 0
    while True:
        first = place + (start if not full else 12 * np.arange(SPAN))
        bits = width if not full else np.full(SPAN, 12)
        count = int(np.searchsorted(first + bits, total, "right"))
        first, bits = first[:count], bits[:count]
        byte = first >> 3
        three = padded[byte] << 16 | padded[byte + 1] << 8 | padded[byte + 2]
        codes = three >> (24 - (first & 7) - bits) & (1 << bits) - 1
        stops = np.flatnonzero((codes == CLEAR) | (codes == END))
        stop = int(stops[0]) if len(stops) else count
        if not full and (codes[:stop] > most[:stop]).any():
            return False
        if stop == count:
            if count < SPAN:
                return True
            # A full table: every code of 12 bits has an entry.
            place, full = int(first[-1] + bits[-1]), 1
        elif codes[stop] == END:
            return True
        else:
            place, full = int(first[stop] + bits[stop]), 0
