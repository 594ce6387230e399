"""Run the cases and write one JSON line per contender and case.

    python -m perf.run separable --machine cpu --out perf/results/NAME.jsonl
    python -m perf.run depthwise pointwise fused --machine gpu --out DIR/channelwise.jsonl
    python -m perf.run startup | memory | ceilings | overhead

A contender whose output, poisoned before the call, does not agree with the float64 reference gets
no time: its row says "refused" and why. Rows are flushed as they come: a run that is cut keeps
them, and ``--resume`` goes on after the last whole case.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from perf import cases, contenders, machine, report, startup
from perf.cases import Case
from perf.contenders import Contender, Refused
from perf.timing import Interleaved, Times, ratio

GROUPS = ("separable", "depthwise", "pointwise", "fused")
SINGLE = ("startup", "memory", "ceilings", "overhead")
Row = dict[str, Any]


def rates(case: Case, contender: str, seconds: float, ceilings: Row) -> Row:
    """Return GB/s, GFLOP/s and their shares of the measured ceilings, in percent."""
    row = {"gbps": case.bytes / seconds / 1e9, "gflops": case.flops / seconds / 1e9}
    copy, matrix = ceilings.get("copy_gbps"), ceilings.get("matrix_gflops")
    # On a GPU a matrix rate is measured in each precision: a contender is held to its own.
    precision = "tf32" if contender.endswith("_tf32") else case.dtype
    matrix = ceilings.get(f"matrix_gflops_{precision}", matrix)
    if copy:
        row["percent_of_copy"] = 100 * row["gbps"] / copy
    if matrix:
        row["percent_of_matrix"] = 100 * row["gflops"] / matrix
    return row


def measure_host(case: Case, timer: Interleaved, only: list[str]) -> Iterator[Row]:
    """Check and time every contender of a host case; yield rows without the common columns."""
    expected, found = contenders.expected(case), contenders.of(case)
    timed: list[Contender] = []
    verdicts: dict[str, Row] = {}
    for contender in found:
        if only and contender.name not in only:
            continue
        if isinstance(contender, Refused):
            yield {"contender": contender.name, "absent": contender.reason}
            continue
        if contender.floor:
            verdicts[contender.name] = {}
            timed.append(contender)
            continue
        try:
            result = contenders.check(case, contender, expected)
        except Exception as error:
            yield {"contender": contender.name, "refused": f"{type(error).__name__}: {error}"}
            continue
        if not result.passed:
            yield {"contender": contender.name, "refused": result.reason}
            continue
        verdicts[contender.name] = {"error_of_bound": result.worst, "levels": contender.levels}
        timed.append(contender)
    del expected
    times = timer({contender.name: contender.call for contender in timed})
    yield from timed_rows(times, verdicts)


def timed_rows(times: dict[str, Times], extra: dict[str, Row]) -> Iterator[Row]:
    """Yield a row per contender: spread, how disturbed, and the ratio to numbasep."""
    for name, taken in times.items():
        row: Row = {
            "contender": name,
            "seconds": taken.spread(),
            "calls": taken.calls,
            "disturbed": taken.disturbed,
            **extra.get(name, {}),
        }
        if "numbasep" in times and name != "numbasep":
            row["times_numbasep"] = ratio(taken, times["numbasep"])
        yield row


def done(path: Path) -> set[str]:
    """Return the names of the cases whose rows a file holds to the end."""
    if not path.exists():
        return set()
    rows = report.read([path])
    return {row["case"] for row in rows if row.get("last")}


def line(row: Row) -> str:
    """Return a row as one line of JSON, floats to six digits."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: short(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [short(v) for v in value]
        if isinstance(value, (float, np.floating)):
            return float(f"{float(value):.6g}")
        return value

    return json.dumps(short(row))


def say(row: Row) -> str:
    """Return a row in one line for people."""
    head = f"  {row['contender']:<22}"
    for key in ("absent", "refused"):
        if key in row:
            return f"{head} {key}: {row[key]}"
    seconds = row["seconds"]
    text = (
        f"{head} {1e3 * seconds['p50']:9.4f} ms ({1e3 * seconds['p20']:.4f} to "
        f"{1e3 * seconds['p80']:.4f})  {row['gbps']:7.1f} GB/s"
    )
    if "percent_of_copy" in row:
        text += f" {row['percent_of_copy']:4.0f}% of copy"
    text += f"  {row['gflops']:8.1f} GFLOP/s"
    if "times_numbasep" in row:
        text += f"  {row['times_numbasep']:6.2f}x numbasep"
    if row["disturbed"]:
        text += f"  disturbed {row['disturbed']:.2f}"
    return text


def run_cases(options: argparse.Namespace, out: TextIO | None, started: float) -> None:
    """Measure every selected case of the asked groups."""
    gpu: Any = None
    if options.machine == "gpu":
        from perf import gpu
    common = machine.host() | (gpu.device() if gpu else {})
    common["machine"] = options.machine
    ceilings = gpu.ceilings() if gpu else host_ceilings()
    emit(out, common | {"case": "ceilings", "op": "ceilings", **ceilings, "last": True})
    print("ceilings:", line(ceilings), flush=True)
    timer = Interleaved(rounds=options.rounds, budget=options.budget)
    finished = done(Path(options.out)) if options.resume and options.out else set()
    measure: Callable[..., Iterator[Row]] = gpu.measure if gpu else measure_host
    for group in options.what:
        for case in cases.select(cases.cases(group, options.machine), options.select):
            case = cases.small(case) if options.rehearse else case
            if case.name in finished:
                continue
            if time.monotonic() - started > options.deadline:
                print(f"stopped at the deadline of {options.deadline:.0f} s", flush=True)
                return
            print(case.name, flush=True)
            rows = []
            for row in measure(case, timer, options.contenders):
                if "seconds" in row:
                    row |= rates(case, row["contender"], row["seconds"]["p50"], ceilings)
                rows.append(row)
                print(say(row), flush=True)
            for i, row in enumerate(rows):
                columns = cases.describe(case) | {"copy_gbps": ceilings.get("copy_gbps")}
                emit(out, common | columns | row | ({"last": True} if i + 1 == len(rows) else {}))


def emit(out: TextIO | None, row: Row) -> None:
    """Write a row and flush it."""
    if out is not None:
        print(line(row), file=out, flush=True)


def host_ceilings() -> Row:
    """Return the host's measured copy bandwidth and matrix rate."""
    return {"copy_gbps": machine.copy_rate(), "matrix_gflops": machine.matrix_rate()}


def run_single(what: str, options: argparse.Namespace, out: TextIO | None) -> None:
    """Measure start-up, memory, ceilings or the call's own overhead."""
    gpu: Any = None
    if options.machine == "gpu":
        from perf import gpu
    common = machine.host() | (gpu.device() if gpu else {}) | {"machine": options.machine}
    if what == "startup":
        found = startup.startup()
    elif what == "memory":
        found = startup.memory()
    elif what == "ceilings":
        found = gpu.ceilings() if gpu else host_ceilings()
    else:
        found = gpu.overhead() if gpu else startup.overhead()
    row = {"case": what, "op": what, **found, "last": True}
    emit(out, common | row)
    print(json.dumps(row, indent=1), flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    p = argparse.ArgumentParser(
        prog="python -m perf.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("what", nargs="+", choices=(*GROUPS, *SINGLE), help="groups of cases, or one")
    p.add_argument("--machine", choices=("cpu", "gpu"), default="cpu")
    p.add_argument("--select", nargs="*", default=[], help="shell patterns of case names")
    p.add_argument("--contenders", nargs="*", default=[], help="only these")
    p.add_argument("--out", help="JSON lines are appended here")
    p.add_argument("--resume", action="store_true", help="skip the cases that --out already has")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--budget", type=float, default=0.02, help="seconds a visit lasts")
    p.add_argument("--deadline", type=float, default=float("inf"), help="seconds, then stop")
    p.add_argument("--rehearse", action="store_true", help="shrunken shapes: times mean nothing")
    p.add_argument("--list", action="store_true", help="print the cases and stop")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(arguments)
    started = time.monotonic()
    groups = [what for what in options.what if what in GROUPS]
    if options.list:
        for group in groups:
            for case in cases.select(cases.cases(group, options.machine), options.select):
                print(case.name, f"{case.bytes / 1e6:.1f} MB {case.flops / 1e9:.2f} GFLOP")
        return 0
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    with open(options.out, "a") if options.out else nullcontext() as out:
        for what in options.what:
            if what in SINGLE:
                run_single(what, options, out)
        if groups:
            options.what = groups
            run_cases(options, out, started)
    if options.out and groups:
        print(report.summary(report.read([Path(options.out)])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
