"""Tables and plots from result rows.

    python -m perf.report perf/results/*.jsonl [--plots DIR] [--readme README.md]

Prints a summary; draws a roofline, speedup bars and scaling into DIR; and rewrites what stands in
the README between ``<!-- perf:NAME -->`` and ``<!-- /perf:NAME -->``, NAME one of TABLES.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from perf import costs

Row = dict[str, Any]
Cells = dict[str, float]

# Where two ways to call a peer are measured, the faster of them, per case, stands as one more peer.
FASTER = {
    "opencv_best": ("opencv", "opencv_pool"),
    "torch_best": ("torch", "torch_channels_last"),
}
PEERS = {
    "opencv": "cv2.sepFilter2D, images in a loop",
    "opencv_best": "cv2.sepFilter2D, images in threads where faster",
    "scipy": "scipy.ndimage.convolve1d, twice",
    "torch": "torch",
    "torch_channels_last": "torch, channels_last",
    "torch_best": "torch, the faster layout",
    "torch_compile": "torch.compile",
    "torch_channels_last_compile": "torch.compile, channels_last",
    "torch_tf32": "torch, tf32",
    "torch_channels_last_tf32": "torch, channels_last, tf32",
    "onnxruntime": "onnxruntime",
    "matmul": "np.matmul",
    "cublas": "cuBLAS",
    "cublas_tf32": "cuBLAS, tf32",
    "cupy": "cupyx.scipy.ndimage.convolve1d, twice",
    "cupy_sepfir2d": "cupyx.scipy.signal.sepfir2d",
    "cucim": "cuCIM convolve1d, twice",
    "opencv_cuda": "cv2.cuda separable filter",
    "jax": "jax",
    "copyto": "np.copyto of the image (the memory floor)",
    "numbasep_tf32": "numbasep, tf32",
    "numbasep_unfused": "numbasep, two launches",
}
OPS = ("separable", "depthwise", "pointwise", "fused")


def read(paths: Iterable[Path], *, rehearsed: bool = True) -> list[Row]:
    """Return the rows of JSON-lines files; a last line that was cut is left out.

    rehearsed: also the rows of a rehearsal, whose times mean nothing.
    """
    rows = []
    for path in paths:
        for text in path.read_text().splitlines():
            try:
                rows.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return rows if rehearsed else [row for row in rows if not row.get("rehearsal")]


def latest(rows: list[Row]) -> list[Row]:
    """Keep the last row of each machine, case and contender."""
    kept: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        kept[row["machine"], row["case"], row.get("contender", "")] = row
    return list(kept.values())


def ratios(rows: list[Row]) -> dict[tuple[str, str, str, str], Cells]:
    """Return (machine, op, dtype + layout, peer) -> case -> peer's time over numbasep's."""
    found: dict[tuple[str, str, str, str], Cells] = {}
    for row in latest(rows):
        if "times_numbasep" in row:
            kind = row["dtype"] + (" NHWC" if row.get("layout") == "NHWC" else "")
            key = (row["machine"], row["op"], kind, row["contender"])
            found.setdefault(key, {})[row["case"]] = row["times_numbasep"]
    for best, (first, second) in FASTER.items():
        for machine, op, kind, peer in list(found):
            if peer == second and (machine, op, kind, first) in found:
                cells = dict(found[machine, op, kind, first])
                for case, value in found[machine, op, kind, second].items():
                    cells[case] = min(value, cells.get(case, value))
                found[machine, op, kind, best] = cells
    return found


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.mean(np.log(list(values)))))


def summary(rows: list[Row], worst: int = 4) -> str:
    """Return, for each op, dtype and peer, the geometric mean and extremes of the ratio.

    A ratio is the peer's time over numbasep's: above 1, numbasep is faster.
    """
    lines = []
    for (machine, op, kind, peer), cells in sorted(ratios(rows).items()):
        ordered = sorted(cells.items(), key=lambda cell: cell[1])
        names = ", ".join(f"{name.split('/', 2)[2]} {r:.2f}" for name, r in ordered[:worst])
        lines.append(
            f"{machine} {op} {kind} {peer}: geomean {geometric_mean(cells.values()):.2f} "
            f"({ordered[0][1]:.2f} to {ordered[-1][1]:.2f}, {len(cells)} cells); lowest: {names}"
        )
    refused = [row for row in latest(rows) if "refused" in row]
    lines += [f"refused: {r['case']} {r['contender']}: {r['refused']}" for r in refused]
    disturbed = [row for row in latest(rows) if row.get("disturbed", 0) > 0.5]
    lines += [f"disturbed: {r['case']} {r['contender']}" for r in disturbed]
    commits = {row["commit"][:12] + ("+changes" if row["dirty"] else "") for row in rows}
    lines.append("commit: " + ", ".join(sorted(commits)))
    return "\n".join(lines)


# README tables -----------------------------------------------------------------------------------


def _markdown(head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in body])


def _cell(cells: Cells | None) -> str:
    if not cells:
        return "-"
    low, high = min(cells.values()), max(cells.values())
    return f"{geometric_mean(cells.values()):.2f} ({low:.2f} to {high:.2f})"


def _origin(rows: list[Row], machine: str, ops: Iterable[str]) -> str:
    used = [r for r in latest(rows) if r["machine"] == machine and r["op"] in ops]
    if not used:
        return ""
    last = used[-1]
    commits = sorted({r["commit"][:12] + (" with changes" if r["dirty"] else "") for r in used})
    where = last.get("gpu") or f"{last['cpu']}, {last['threads']} threads"
    return f"Measured on {where}; commit {', '.join(commits)}; {last['when'][:10]}."


def _ratio_table(machine: str, op: str) -> Callable[[list[Row]], str]:
    """Return a table of peers against dtypes: geometric mean (least to most) of time ratios."""

    def table(rows: list[Row]) -> str:
        found = {k[2:]: v for k, v in ratios(rows).items() if k[:2] == (machine, op)}
        if not found:
            return f"Not measured yet on a {machine.upper()}."
        kinds = sorted({kind for kind, _ in found}, key=lambda kind: ("float32" not in kind, kind))
        peers = [peer for peer in PEERS if any((kind, peer) in found for kind in kinds)]
        # A peer measured one way only needs no second line.
        for best, (first, _) in FASTER.items():
            if best in peers and all(
                found.get((k, best)) == found.get((k, first), found.get((k, best))) for k in kinds
            ):
                peers.remove(best)
        body = [[PEERS[p], *(_cell(found.get((kind, p))) for kind in kinds)] for p in peers]
        return (
            _markdown(["time over numbasep's", *kinds], body)
            + "\n\n"
            + _origin(rows, machine, [op])
        )

    return table


def _rates(machine: str) -> Callable[[list[Row]], str]:
    """Return numbasep's milliseconds and share of the copy bandwidth, by size and taps."""

    def table(rows: list[Row]) -> str:
        ours = [
            r
            for r in latest(rows)
            if r["machine"] == machine
            and r["op"] == "separable"
            and r.get("contender") == "numbasep"
            and r["dtype"] == "float32"
            and r["rank"] == 1
            and "seconds" in r
        ]
        if not ours:
            return f"Not measured yet on a {machine.upper()}."
        taps = sorted({r["taps"] for r in ours})
        shapes = sorted({tuple(r["shape"]) for r in ours}, key=lambda s: (np.prod(s), s))
        cells = {(tuple(r["shape"]), r["taps"]): r for r in ours}

        def text(shape: tuple[int, ...], k: int) -> str:
            row = cells.get((shape, k))
            if row is None:
                return "-"
            return f"{1e3 * row['seconds']['p50']:.3g} ms, {row['percent_of_copy']:.0f}%"

        body = [["x".join(map(str, s)), *(text(s, k) for k in taps)] for s in shapes]
        copy = ours[-1]["copy_gbps"]
        return (
            _markdown(["float32", *(f"{k} taps" for k in taps)], body)
            + f"\n\nPercent: of the measured copy bandwidth, {copy:.0f} GB/s read plus written; "
            "above 100 the image stays in cache."
        )

    return table


def _single(rows: list[Row], what: str) -> Row | None:
    found = [r for r in latest(rows) if r["case"] == what and r["machine"] == "cpu"]
    return found[-1] if found else None


def _startup(rows: list[Row]) -> str:
    row = _single(rows, "startup")
    if row is None:
        return "Not measured yet."
    body = [
        [
            dtype,
            *(
                f"{row[dtype][key]:.2f} s"
                for key in ("import_s", "cold_process_s", "warm_process_s")
            ),
            f"{1e3 * row[dtype]['other_taps_s']:.1f} ms",
        ]
        for dtype in ("float32", "uint8", "float64")
    ]
    head = ["", "import numbasep", "first result, nothing compiled", "first result, warm cache"]
    text = _markdown([*head, "next call, other taps"], body)
    memory = _single(rows, "memory")
    if memory is not None:
        text += (
            f"\n\nPeak additional memory of an 8192x8192 float32 call: "
            f"{memory['additional_mb']:.0f} MiB, of which the output is "
            f"{memory['output_mb']:.0f} MiB."
        )
    return text


TABLES: dict[str, Callable[[list[Row]], str]] = {
    **{f"{m}-{op}": _ratio_table(m, op) for m in ("cpu", "gpu") for op in OPS},
    "cpu-rates": _rates("cpu"),
    "gpu-rates": _rates("gpu"),
    "startup": _startup,
    "costs": lambda rows: costs.table(rows, _markdown),
}


def rewrite(text: str, rows: list[Row]) -> str:
    """Return a page with the tables between its markers made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"README: marker perf:{name} names no table; known: {list(TABLES)}")
        return f"<!-- perf:{name} -->\n{TABLES[name](rows)}\n<!-- /perf:{name} -->"

    return re.sub(r"<!-- perf:([\w-]+) -->.*?<!-- /perf:\1 -->", table, text, flags=re.DOTALL)


# Plots -------------------------------------------------------------------------------------------


def _timed(rows: list[Row], machine: str, contender: str = "numbasep") -> list[Row]:
    """Rows of cases; networks and large pictures have times and no operation count."""
    return [
        r
        for r in latest(rows)
        if r["machine"] == machine
        and r.get("contender") == contender
        and "seconds" in r
        and "flops" in r
    ]


def plots(rows: list[Row], folder: Path) -> list[Path]:
    """Draw roofline, speedup bars and scaling of each machine; return the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def save(figure: Any, name: str) -> None:
        figure.tight_layout()
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110, metadata={"Software": None})
        pyplot.close(figure)
        written.append(path)

    for machine in ("cpu", "gpu"):
        if _timed(rows, machine):
            save(_roofline(pyplot, rows, machine), f"{machine}-roofline")
        for op in OPS:
            figure = _bars(pyplot, rows, machine, op)
            if figure is not None:
                save(figure, f"{machine}-{op}-speedup")
        figure = _scaling(pyplot, rows, machine)
        if figure is not None:
            save(figure, f"{machine}-scaling")
    return written


def _roofline(pyplot: Any, rows: list[Row], machine: str) -> Any:
    figure, axes = pyplot.subplots(figsize=(7, 5))
    timed = _timed(rows, machine)
    ceilings = [r for r in latest(rows) if r["machine"] == machine and r["op"] == "ceilings"]
    marks = {"separable": "o", "depthwise": "s", "pointwise": "^", "fused": "D"}
    intensity = [r["flops"] / r["bytes"] for r in timed]
    for op, mark in marks.items():
        for dtype in sorted({r["dtype"] for r in timed if r["op"] == op}):
            mine = [r for r in timed if r["op"] == op and r["dtype"] == dtype]
            x = [r["flops"] / r["bytes"] for r in mine]
            y = [r["gflops"] for r in mine]
            axes.loglog(x, y, mark, label=f"{op} {dtype}", markersize=5, alpha=0.7)
    if ceilings:
        last = ceilings[-1]
        line = np.geomspace(min(intensity) / 2, max(intensity) * 2, 50)
        axes.loglog(line, line * last["copy_gbps"], "k-", linewidth=1, label="measured copy")
        for key in sorted(k for k in last if k.startswith("matrix_gflops")):
            if key != "matrix_gflops" or len([k for k in last if k.startswith(key)]) == 1:
                name = key.removeprefix("matrix_gflops").strip("_") or "float32"
                axes.axhline(last[key], color="grey", linewidth=0.8, linestyle="--")
                axes.text(line[0], last[key], f"matrix product, {name}", fontsize=7, va="bottom")
    axes.set_xlabel("operations per compulsory byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(_title(timed), fontsize=9)
    axes.legend(fontsize=7)
    return figure


def _title(rows: list[Row]) -> str:
    last = rows[-1]
    where = last.get("gpu") or f"{last['cpu']}, {last['threads']} threads"
    return f"{where}, commit {last['commit'][:12]}"


def _bars(pyplot: Any, rows: list[Row], machine: str, op: str) -> Any:
    found = {k[2:]: v for k, v in ratios(rows).items() if k[:2] == (machine, op)}
    bars = [(kind, peer) for peer in PEERS for kind in sorted({k for k, _ in found})]
    bars = [key for key in bars if key in found]
    if not bars:
        return None
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(bars) + 1.4))
    means = [geometric_mean(found[key].values()) for key in bars]
    # The mean of equal values may round past them.
    low = [max(0, m - min(found[key].values())) for m, key in zip(means, bars, strict=True)]
    high = [max(0, max(found[key].values()) - m) for m, key in zip(means, bars, strict=True)]
    places = np.arange(len(bars))
    # Points, not bars: on a logarithmic axis a bar's length says nothing.
    axes.errorbar(means, places, xerr=[low, high], fmt="o", capsize=3, color="tab:blue")
    axes.set_yticks(places, [f"{PEERS[peer]}  [{kind}]" for kind, peer in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="k", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("peer's time over numbasep's: geometric mean, least, most", fontsize=8)
    axes.set_title(f"{op}: {_title(_timed(rows, machine))}", fontsize=8, loc="right")
    return figure


def _scaling(pyplot: Any, rows: list[Row], machine: str) -> Any:
    timed = _timed(rows, machine)
    filters = [r for r in timed if r["op"] == "separable" and r["dtype"] == "float32"]
    layers = [r for r in timed if r["op"] != "separable" and r["dtype"] == "float32"]
    if not filters and not layers:
        return None
    first = [r for r in filters if r["rank"] == 1]
    ranks = [r for r in filters if r["taps"] in {f["taps"] for f in filters if f["rank"] > 1}]
    panels: list[tuple[list[Row], Callable[[Any, list[Row]], None]]] = [
        (first, _by_taps),
        (first, _by_size),
        (ranks, _by_rank),
        (layers, _by_batch),
    ]
    panels = [(found, draw) for found, draw in panels if found]
    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.8), squeeze=False
    )
    for axes, (found, draw) in zip(all_axes[0], panels, strict=True):
        draw(axes, found)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.suptitle(_title(timed), fontsize=9)
    return figure


def _pixels(row: Row) -> float:
    return float(np.prod(row["shape"]))


def _plain_y_ticks(axes: Any) -> None:
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-4, 5) for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.minorticks_off()
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _by_taps(axes: Any, rows: list[Row]) -> None:
    for shape in sorted({tuple(r["shape"]) for r in rows}, key=np.prod):
        mine = sorted((r for r in rows if tuple(r["shape"]) == shape), key=lambda r: r["taps"])
        y = [r["seconds"]["p50"] / _pixels(r) * 1e9 for r in mine]
        axes.loglog([r["taps"] for r in mine], y, "o-", label="x".join(map(str, shape)))
    ticks = sorted({r["taps"] for r in rows})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    _plain_y_ticks(axes)
    axes.set(xlabel="taps", ylabel="ns per pixel", title="separable float32, rank 1")


def _by_size(axes: Any, rows: list[Row]) -> None:
    for taps in sorted({r["taps"] for r in rows}):
        mine = sorted((r for r in rows if r["taps"] == taps), key=_pixels)
        y = [_pixels(r) / r["seconds"]["p50"] / 1e9 for r in mine]
        axes.loglog([_pixels(r) / 2**20 for r in mine], y, "o-", label=f"{taps} taps")
    ticks = sorted({round(_pixels(r) / 2**20, 2) for r in rows})
    axes.set_xticks(ticks, [f"{n:g}" for n in ticks], fontsize=7)
    _plain_y_ticks(axes)
    axes.set(xlabel="Mi pixels", ylabel="Gpixel/s", title="separable float32, rank 1")


def _by_rank(axes: Any, rows: list[Row]) -> None:
    shape = next(tuple(r["shape"]) for r in rows if r["rank"] > 1)
    for taps in sorted({r["taps"] for r in rows}):
        mine = [r for r in rows if r["taps"] == taps and tuple(r["shape"]) == shape]
        mine.sort(key=lambda r: r["rank"])
        y = [1e3 * r["seconds"]["p50"] for r in mine]
        axes.plot([r["rank"] for r in mine], y, "o-", label=f"{taps} taps")
    size = "x".join(map(str, shape))
    axes.set(xlabel="rank", ylabel="ms", title=f"separable float32, {size}", ylim=(0, None))


def _by_batch(axes: Any, rows: list[Row]) -> None:
    """Draw a line an op: the mean over the layers that were measured at every batch of the op."""
    for op in sorted({r["op"] for r in rows}):
        rates: dict[str, dict[int, float]] = {}
        for r in (r for r in rows if r["op"] == op):
            rates.setdefault(r["case"].rsplit("/n", 1)[0], {})[r["shape"][0]] = r["gbps"]
        most = max(map(len, rates.values()))
        scaled = [by_batch for by_batch in rates.values() if len(by_batch) == most]
        batches = sorted(set.intersection(*map(set, scaled)))
        means = [geometric_mean(by_batch[n] for by_batch in scaled) for n in batches]
        axes.semilogx(batches, means, "o-", label=op, base=2)
    axes.set(xlabel="batch", ylabel="GB/s, geometric mean", title="layers float32", ylim=(0, None))


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(
        prog="python -m perf.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("results", nargs="+", type=Path, help="JSON-lines files of perf.run")
    p.add_argument("--plots", type=Path, help="folder for the plots")
    p.add_argument("--readme", type=Path, help="page whose tables to make anew")
    p.add_argument("--table", choices=sorted(TABLES), help="print one table")
    p.add_argument("--rehearsal", action="store_true", help="rows of a rehearsal as well")
    options = p.parse_args(arguments)
    rows = read(options.results, rehearsed=options.rehearsal)
    if options.table:
        print(TABLES[options.table](rows))
        return 0
    print(summary(rows))
    if options.plots:
        for path in plots(rows, options.plots):
            print(path)
    if options.readme:
        options.readme.write_text(rewrite(options.readme.read_text(), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
