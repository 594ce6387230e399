"""The cost of a network's layers, from a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group

from numbasep.cli.tables import quantity, size, table, titled
from numbasep.cost import LayerCost, cost

COLUMNS = ("name", "N", "C", "H", "W", "k", "stride", "pad", "dilation", "Cout")


@dataclass(frozen=True)
class Layer:
    """A line of the file."""

    name: str
    cost: LayerCost


def read_layers(path: Path, rank: int | None, dtype: str) -> list[Layer]:
    """Return the layers of a CSV file with the columns ``COLUMNS``; Cout 0 is depthwise alone.

    Raises:
        ValueError: naming the file, the line, the column, what arrived and what to do.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank: got {rank}; pass an integer of at least 1")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            layers = list(_layers(path, file, rank, dtype))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: is no CSV text: {error}") from None
    if not layers:
        raise ValueError(f"{path}: holds no layer; write lines of {','.join(COLUMNS)}")
    return layers


def _layers(path: Path, file: Iterator[str], rank: int | None, dtype: str) -> Iterator[Layer]:
    reader = csv.DictReader(file, skipinitialspace=True)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f"{path}: lacks the column {missing[0]!r}; the first line names {','.join(COLUMNS)}"
        )
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        numbers = {}
        for name in COLUMNS[1:]:
            try:
                numbers[name] = int(row[name])
            except (TypeError, ValueError):
                raise ValueError(f"{where}: {name} is {row[name]!r}, not a whole number") from None
        n, c, h, w, k, stride, pad, dilation, cout = numbers.values()
        try:
            found = cost(
                (n, c, h, w),
                cout or None,
                k,
                stride=stride,
                padding=pad,
                dilation=dilation,
                rank=None if rank is None else min(rank, max(k, 1)),  # of what there is
                dtype=dtype,
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        yield Layer(row["name"], found)


def cost_table(layers: list[Layer], rank: int | None, dtype: str) -> Group:
    """Return a line per layer and their total.

    Depthwise-separable as one launch; a layer without pointwise part is depthwise alone.
    """
    made = table(
        *("layer", "input -> output", "parameters", "separable", "multiply-adds", "separable"),
        "ratio",
        *(() if rank is None else (f"rank {rank}", "ratio")),
        *("bytes", "separable", "intermediate"),
        left=2,
    )
    for layer in layers:
        found = layer.cost
        shapes = " -> ".join("x".join(map(str, s)) for s in (found.shape, found.out_shape))
        made.add_row(layer.name, shapes, *_numbers([found], rank))
    made.add_section()
    made.add_row("total", f"{len(layers)} layers", *_numbers([x.cost for x in layers], rank))
    return titled(f"Standard against depthwise-separable convolution, {dtype}", made)


def _numbers(costs: list[LayerCost], rank: int | None) -> list[str]:
    standard = [c.standard for c in costs]
    separable = [c.separable for c in costs]
    dense = sum(c.multiply_adds for c in standard)
    fewer = sum(c.multiply_adds for c in separable)
    cells = [
        quantity(sum(c.parameters for c in standard)),
        quantity(sum(c.parameters for c in separable)),
        quantity(dense),
        quantity(fewer),
        f"{fewer / dense:.4f}",
    ]
    if rank is not None:
        low = sum(c.low_rank.multiply_adds for c in costs if c.low_rank is not None)
        cells += [quantity(low), f"{low / dense:.4f}"]
    return [
        *cells,
        size(sum(c.bytes for c in standard)),
        size(sum(c.bytes for c in separable)),
        size(sum(c.intermediate_bytes for c in costs)),
    ]
