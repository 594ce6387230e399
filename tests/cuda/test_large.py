"""The spatial CUDA kernels on many tiles, and on arrays whose offsets need 64 bits."""

from __future__ import annotations

import mmap
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from numbasep.cuda import general as general_module
from numbasep.cuda import launch
from numbasep.cuda import stream as stream_module
from numbasep.cuda import tile as tile_module
from numbasep.cuda.separable import run_separable
from numbasep.plan.cuda_tiles import CudaTile, general, stream, stream_shape, tile, tile_shape
from numbasep.plan.geometry import Axis, SpatialPlan
from tests.by_hand import correlate

Array = NDArray[Any]

VARIANTS = ("general", "stream", "tile")
MODULES = {"general": general_module, "stream": stream_module, "tile": tile_module}


def planned(planes: int, variant: str) -> tuple[SpatialPlan, CudaTile]:
    """Return a plan of small uint8 images and a small tile."""
    y, x = Axis(3, 3, 2, origin=-1), Axis(5, 5, 3, origin=-1)
    plan = SpatialPlan(planes, 1, y, x, 1, False, 4, 0, "uint8", "float32", "uint8")
    tiles = {
        "general": general(plan, 2, 2),
        "stream": stream(plan, stream_shape(plan, 1, 4, 12), 1),
        "tile": tile(plan, tile_shape(plan, 9, 2, 8), 2),
    }
    found = tiles[variant]
    assert found is not None
    assert found.variant == variant
    return plan, found


COLUMNS, ROWS = np.float32([[1, 2]]), np.float32([[1, 0, 3]])


def expected(plan: SpatialPlan, image: Array) -> Array:
    return correlate(plan, image, COLUMNS.T @ ROWS).real.astype(np.uint8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_tiles_than_a_grid_is_wide_in_two_dimensions(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, found = planned(70_000, variant)
    image = (np.arange(70_000 * 15) % 5).astype(np.uint8).reshape(70_000, 3, 5, 1)
    device_image = launch.to_device(image)
    out = launch.to_device(np.full_like(image, 77))
    last = 69_995
    if launch.SIMULATOR:
        # The simulator runs the blocks of the last planes alone: planes are slowest.
        from tests.cuda.simulator import Block

        first = last * -(-3 // found.height) * -(-5 // found.width)
        assert first > 65535
        run = Block.run

        def run_last(self: Any, index: Any, *args: Any) -> None:
            if index[0] >= first:
                run(self, index, *args)

        monkeypatch.setattr(Block, "run", run_last)
    run_separable(plan, device_image, out, COLUMNS, ROWS, tile=found)
    result = np.empty_like(image)
    launch.to_host(out, result)
    few = planned(5, variant)[0]
    assert np.array_equal(result[last:], expected(few, image[last:]))


def checked(least: int, most: int) -> Any:
    """Return a conversion that refuses what the device's would cut off."""

    def convert(value: Any) -> int:
        assert least <= value <= most
        return int(value)

    return convert


class Sparse:
    """A uint8 array of few elements that lie far apart, over memory that only they take up."""

    def __init__(self, values: Array, strides: tuple[int, ...]) -> None:
        size = sum((n - 1) * step for n, step in zip(values.shape, strides, strict=True)) + 1
        if launch.SIMULATOR:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self.memory: Any = np.frombuffer(mmap.mmap(-1, size, flags), np.uint8)
        else:
            self.memory = launch.empty((size,), np.uint8)
        self.rows = {
            index: sum(i * step for i, step in zip(index, strides, strict=False))
            for index in np.ndindex(values.shape[:2])
        }
        self.shape, self.strides = values.shape, strides
        for index, at in self.rows.items():
            row = values[index].reshape(-1)
            if launch.SIMULATOR:
                self.memory[at : at + row.size] = row
            else:
                self.memory[at : at + row.size].copy_to_device(row)

    @property
    def array(self) -> Any:
        """Rows from the last to the first."""
        plane, row, *dense = self.strides
        start = (self.shape[1] - 1) * row
        if launch.SIMULATOR:
            view = self.memory[start:]
            return as_strided(view, self.shape, (plane, -row, *dense))
        address = self.memory.__cuda_array_interface__["data"][0]
        self.__cuda_array_interface__ = {
            "data": (address + start, False),
            "shape": self.shape,
            "strides": (plane, -row, *dense),
            "typestr": "|u1",
            "version": 3,
        }
        return self

    def fetch(self) -> Array:
        result = np.empty(self.shape, np.uint8)
        length = self.shape[2] * self.shape[3]
        for index, at in self.rows.items():
            row = self.memory[at : at + length]
            row = row if launch.SIMULATOR else row.copy_to_host()
            result[index] = row.reshape(self.shape[2:])
        return result[:, ::-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_offsets_past_32_bits(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, found = planned(2, variant)
    module: ModuleType = MODULES[variant]
    if launch.SIMULATOR:
        # Python's integers do not overflow; these say where a device's would.
        monkeypatch.setattr(module, "i32", checked(-(2**31), 2**31 - 1))
        if hasattr(module, "u32"):
            monkeypatch.setattr(module, "u32", checked(0, 2**32 - 1))
    image = (np.arange(30) % 5).astype(np.uint8).reshape(2, 3, 5, 1)
    # Rows 1.2 GiB apart; the second plane lies past 2**31 elements.
    strides = (2**31 + 64, 5 * 2**28 - 32, 1, 1)
    source = Sparse(image, strides)
    out = Sparse(np.full((2, 3, 5, 1), 77, np.uint8), strides)
    run_separable(plan, source.array, out.array, COLUMNS, ROWS, tile=found)
    assert np.array_equal(out.fetch(), expected(plan, image[:, ::-1]))
