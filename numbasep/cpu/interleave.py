"""Images from the phases of a stride, each an image of its own, on the CPU.

``out[o][r * down + a][i * across + b] = parts[a, b][o][r][i]``, converted to the output dtype; an
element of the last axis is one number (planes: NCHW) or all channels of a pixel (NHWC).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from numbasep.cpu import blocks, compiled, jobs, products, queues, simd
from numbasep.cpu.channels import Prepared, move_edge, move_row

zip_full = products.make_zip(masked=False)
zip_edge = products.make_zip(masked=True)

# Places of the numbers: address of the result; its rows and columns, elements of a pixel, phases
# down and across; the addresses of the parts.
OUT, HEIGHT, WIDTH, INNER, DOWN, ACROSS, PARTS = range(7)


@njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def work(numbers: int, queued: int, own: int, compute: Any, output: Any, spec: Any) -> None:
    """Take images, or planes, until there are none."""
    q = simd.as_pointer(numbers)
    parts = simd.as_pointer(numbers + 8 * PARTS)
    lanes = blocks.vector_lanes(compute)
    wide, size = simd.size_of(compute), simd.size_of(output)
    down, across, inner, width = q[DOWN], q[ACROSS], q[INNER], q[WIDTH]
    while True:
        item = queues.take(queued, own)
        if item == queues.NOTHING:
            break
        for y in range(q[HEIGHT]):
            a, r = y % down, y // down
            line = item * ((q[HEIGHT] - a + down - 1) // down) + r
            to = q[OUT] + (item * q[HEIGHT] + y) * width * inner * size
            done = 0
            if inner == 1 and across == 2:
                first = parts[2 * a] + line * ((width + 1) // 2) * wide
                second = parts[2 * a + 1] + line * (width // 2) * wide
                while done + 2 * lanes <= width:
                    at = done // 2 * wide
                    zip_full(first + at, second + at, to + done * size, 0, compute, output)
                    done += 2 * lanes
                if done < width:
                    at = done // 2 * wide
                    zip_edge(
                        first + at, second + at, to + done * size, width - done, compute, output
                    )
                continue
            for b in range(across):
                columns = (width - b + across - 1) // across
                src = parts[a * across + b] + line * columns * inner * wide
                for i in range(columns):
                    dst = to + (i * across + b) * inner * size
                    if inner == 1:
                        move_edge(src + i * wide, dst, 1, compute, compute, output, spec)
                    else:
                        move_row(src + i * inner * wide, dst, inner, compute, compute, output, spec)
        queues.finish(queued, own)


@cache
def driver(compute: str, output: str) -> Any:
    """Return ``void (numbers, queued, own, scratch)``, the kernel for ``pool.run``."""
    computed, out, spec = simd.tag(compute), simd.tag(output), blocks.number_tag(0)

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def driver(numbers: int, queued: int, own: int, scratch: int) -> None:
        work(numbers, queued, own, computed, out, spec)

    return driver


def step(
    parts: Sequence[str], out: str, shape: tuple[int, ...], down: int, across: int, layout: str,
    compute: str, output: str, threads: int,
) -> jobs.Step:  # fmt: skip
    """Return the step of a job that writes the image of ``parts``, phases down by phases across."""
    if layout == "NCHW":
        images, height, width, inner = shape[0] * shape[1], *shape[2:], 1
    else:
        images, height, width, inner = shape
    numbers = np.zeros(PARTS + len(parts), np.int64)
    numbers[HEIGHT:PARTS] = height, width, inner, down, across
    made = Prepared(numbers, images, 64, threads, ())
    places = (OUT, out), *enumerate(parts, PARTS)
    return jobs.Step(made, driver(compute, output).address, places)
