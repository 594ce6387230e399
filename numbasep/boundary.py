"""Index maps of the image boundary, in plain Python, compiled by both backends.

An index outside ``[0, n)`` is mapped to the element that stands there, or to ``-1`` where the fill
value does. Each map is right for any distance from the image, so a kernel may be longer than it.

========== ===================== ============================== =====================
name       image ``a b c d``     scipy                          torch padding_mode
========== ===================== ============================== =====================
fill       ``v v|a b c d|v v``   convolve2d "fill"              "zeros" (v = 0)
wrap       ``c d|a b c d|a b``   convolve2d "wrap"              "circular"
symm       ``b a|a b c d|d c``   convolve2d "symm"              -
nearest    ``a a|a b c d|d d``   ndimage "nearest"              "replicate"
mirror     ``c b|a b c d|c b``   ndimage "mirror"               "reflect"
========== ===================== ============================== =====================
"""

from __future__ import annotations

FILL, WRAP, SYMM, NEAREST, MIRROR = range(5)

NAMES = ("fill", "wrap", "symm", "nearest", "mirror")


def map_index(i: int, n: int, boundary: int) -> int:
    """Return the index in ``[0, n)`` that stands at ``i``, or -1 for the fill value."""
    if 0 <= i < n:
        return i
    if boundary == FILL or n == 0:
        return -1
    if boundary == NEAREST:
        return 0 if i < 0 else n - 1
    if boundary == WRAP:
        return i % n
    if boundary == SYMM:
        i %= 2 * n
        return i if i < n else 2 * n - 1 - i
    if n == 1:
        return 0
    i %= 2 * (n - 1)
    return i if i < n else 2 * (n - 1) - i
