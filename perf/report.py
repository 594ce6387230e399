"""Tables and plots from result rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def read(paths: Iterable[Path]) -> list[Row]:
    """Return the rows of JSON-lines files; a last line that was cut is left out."""
    rows = []
    for path in paths:
        for text in path.read_text().splitlines():
            try:
                rows.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return rows


def latest(rows: list[Row]) -> list[Row]:
    """Keep the last row of each machine, case and contender."""
    kept: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        kept[row["machine"], row["case"], row.get("contender", "")] = row
    return list(kept.values())


def ratios(rows: list[Row]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return (op, dtype, peer) -> case -> peer's time over numbasep's."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in latest(rows):
        if "times_numbasep" in row:
            key = (row["op"], row["dtype"], row["contender"])
            found.setdefault(key, {})[row["case"]] = row["times_numbasep"]
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(list(values)))))


def summary(rows: list[Row], worst: int = 4) -> str:
    """Return, for each op, dtype and peer, the geometric mean and extremes of the ratio.

    A ratio is the peer's time over numbasep's: above 1, numbasep is faster.
    """
    lines = []
    for (op, dtype, peer), cells in sorted(ratios(rows).items()):
        ordered = sorted(cells.items(), key=lambda cell: cell[1])
        names = ", ".join(f"{name.split('/', 2)[2]} {r:.2f}" for name, r in ordered[:worst])
        lines.append(
            f"{op} {dtype} {peer}: geomean {geometric_mean(cells.values()):.2f} "
            f"({ordered[0][1]:.2f} to {ordered[-1][1]:.2f}, {len(cells)} cells); lowest: {names}"
        )
    refused = [row for row in latest(rows) if "refused" in row]
    lines += [f"refused: {r['case']} {r['contender']}: {r['refused']}" for r in refused]
    dirty = {row["commit"][:12] + ("+changes" if row["dirty"] else "") for row in rows}
    lines.append("commit: " + ", ".join(sorted(dirty)))
    return "\n".join(lines)
