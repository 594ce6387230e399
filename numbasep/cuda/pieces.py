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

    It writes of thread t's places of ``spread``, in a tile that starts at pixel ``first``: the byte
    offset of the first piece in an image of ``size`` bytes an element, and how many channels there
    are, 0 for a pixel that is not in the image. It returns the first channel and pixel in the tile.
    """
    planar, piece, inner = spread.planar, spread.piece, spread.inner
    bases, next_pixel = spread.bases, spread.next_pixel

    def locate(
        t: int, first: int, pixels: int, plane: int, channels: int, places: Any, limits: Any
    ) -> tuple[int, int]:
        outer = i32(t // inner)
        side = i32(i32(t - outer * inner) * piece)
        channel, near = (outer, side) if planar else (side, outer)
        for b in range(bases):
            unroll()
            pixel = i64(first + i64(near) + b * next_pixel)
            limits[b] = i32(channels) if pixel < pixels else i32(0)
            if planar:
                # Over the other channels' planes of the images before.
                place = pixel + i64(pixel // plane) * plane * i64(channels - 1) + channel * plane
            else:
                place = pixel * channels + channel
            places[b] = i64(place * size)
        return channel, near

    return device_function(locate)
