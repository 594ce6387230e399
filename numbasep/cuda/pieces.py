"""Where the pieces of an image are that a thread of a pointwise kernel moves to shared memory."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from numbasep.cuda.launch import device_function
from numbasep.cuda.primitives import i32, i64, unroll
from numbasep.plan.cuda_pointwise import Spread


@lru_cache
def locator(spread: Spread, size: int) -> Any:
    """Return ``locate(t, first, pixels, plane, channels, places, limits) -> (channel, pixel)``.

    It finds thread t's pieces of ``spread`` in a tile that starts at pixel ``first`` of an image of
    ``size`` bytes an element, and returns the first one's channel and pixel in the tile. Planar:
    for each of its ``bases``, ``places`` is the byte offset and ``limits`` the channels there are,
    0 outside the image. Else they are one: the offset of the first, the next ones being whole
    pixels further, and the pixels that there are from it on.
    """
    planar, piece, inner = spread.planar, spread.piece, spread.inner
    bases, next_pixel, extent = spread.bases, spread.next_pixel, spread.pixels

    def locate(
        t: int, first: int, pixels: int, plane: int, channels: int, places: Any, limits: Any
    ) -> tuple[int, int]:
        outer = i32(t // inner)
        side = i32(i32(t - outer * inner) * piece)
        if planar:
            for b in range(bases):
                unroll()
                pixel = i64(first + i64(side) + b * next_pixel)
                limits[b] = i32(channels) if pixel < pixels else i32(0)
                # Over the other channels' planes of the images before.
                place = pixel + i64(pixel // plane) * plane * i64(channels - 1)
                places[b] = i64((place + outer * plane) * size)
            return outer, side
        pixel = i64(first + i64(outer))
        places[0] = i64((pixel * channels + side) * size)
        limits[0] = i32(min(pixels - pixel, i64(extent)))
        return side, outer

    return device_function(locate)
