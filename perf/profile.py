"""One case under the profilers a user has.

    python -m perf.profile fused/float32/NCHW/mbv2_b3 --backend cuda          prints both lines
    python -m perf.profile CASE --backend cuda --tool nsys --run              and runs one

The process that the profiler starts warms up, then makes the calls inside the NVTX range
"numbasep.profile" of the domain "numbasep": the capture range. Each public call has a range of its
own inside it, "numbasep.<function>", where the nvtx package is installed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from perf import cases, contenders
from perf.cases import Case
from perf.contenders import Refused

CAPTURE = "numbasep.profile"


def find(name: str) -> Case:
    """Return the one case that a name, or the beginning of one, means."""
    found: dict[str, Case] = {}
    for machine in ("gpu", "cpu"):
        for group in ("separable", "depthwise", "pointwise", "fused"):
            found |= {case.name: case for case in cases.cases(group, machine)}
    matching = [case for key, case in found.items() if name in key]
    if name in found:
        return found[name]
    if not matching:
        raise SystemExit(f"no case has {name!r} in its name; python -m perf.run separable --list")
    if len(matching) > 1:
        print(f"{len(matching)} cases match, the first is taken: {matching[0].name}")
    return matching[0]


def lines(case: Case, backend: str, calls: int, output: str) -> dict[str, list[str]]:
    """Return the command of each profiler.

    nsys records calls, kernels and copies on a time line; ncu replays each kernel and reads the
    hardware counters. Neither changes the GPU's clocks.
    """
    child = [
        *(sys.executable, "-m", "perf.profile", case.name, "--child"),
        *("--backend", backend, "--calls", str(calls)),
    ]
    trace = "cuda,nvtx" if backend == "cuda" else "nvtx"
    nsys = [
        *("nsys", "profile", f"--trace={trace}", "--sample=none", "--cpuctxsw=none"),
        *("--capture-range=nvtx", f"--nvtx-capture={CAPTURE}@numbasep"),
        *("--capture-range-end=stop", "--force-overwrite=true", f"--output={output}"),
    ]
    ncu = [
        *("ncu", "--nvtx", "--nvtx-include", f"numbasep@{CAPTURE}/", "--set", "full"),
        *("--clock-control", "none", "--force-overwrite", "--export", output),
    ]
    return {"nsys": [*nsys, *child], "ncu": [*ncu, *child]}


def call_of(case: Case, backend: str) -> tuple[Callable[[], Any], Callable[[], None]]:
    """Return numbasep's call on a case, and what waits for the device."""
    if backend == "cpu":
        contender = contenders.numbasep_alone(case, "cpu")
        wait: Callable[[], None] = lambda: None  # noqa: E731 (typed)
    else:
        from perf import gpu, gpu_contenders

        contender = next(gpu_contenders.of(case, gpu_contenders.data(case)))
        wait = gpu.synchronise
    if isinstance(contender, Refused):
        raise SystemExit(f"numbasep: {contender.reason}")
    return contender.call, wait


def child(case: Case, backend: str, calls: int) -> None:
    """Warm up, then make the calls inside the capture range."""
    try:
        import nvtx
    except ImportError:
        raise SystemExit("the capture range needs the nvtx package: pip install nvtx") from None
    call, wait = call_of(case, backend)
    for _ in range(3):
        call()
    wait()
    with nvtx.annotate(CAPTURE, domain="numbasep"):
        for _ in range(calls):
            call()
        wait()


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(
        prog="python -m perf.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("case", help="a case's name or a part of it (python -m perf.run GROUP --list)")
    p.add_argument("--backend", choices=("cpu", "cuda"), default="cuda")
    p.add_argument("--calls", type=int, default=20)
    p.add_argument("--tool", choices=("nsys", "ncu"), help="only this profiler")
    p.add_argument("--output", default="numbasep-profile", help="the report's name")
    p.add_argument("--run", action="store_true", help="run the line of --tool")
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = p.parse_args(arguments)
    case = find(options.case)
    if options.child:
        child(case, options.backend, options.calls)
        return 0
    if options.run and not options.tool:
        p.error("--run needs --tool")
    commands = lines(case, options.backend, options.calls, options.output)
    for tool in [options.tool] if options.tool else commands:
        if tool == "ncu" and options.backend == "cpu":
            continue
        print(shlex.join(commands[tool]))
    if options.tool == "nsys" or options.tool is None:
        print(f"nsys stats --report nvtx_sum,cuda_gpu_kern_sum {options.output}.nsys-rep")
    if options.run:
        return subprocess.run(commands[options.tool]).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
