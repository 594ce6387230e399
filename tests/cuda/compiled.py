"""What the compiled CUDA kernels may cost, checked without a GPU.

    python -m tests.cuda.compiled [NAME ...]

Each module of ``tests.cuda.budgets`` lists kernels with what their machine code for sm_90a must
keep to. Prints a line a kernel; the exit status is 1 if one breaks its budget. A compile is one
thread's work: they share the processors.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from numbasep.plan.cuda_depthwise import INSTRUCTIONS_A_BYTE
from tests.cuda import budgets
from tests.cuda.sass import Machine, machine

# Registers of a multiprocessor, the most threads on it, and how many registers a warp takes.
REGISTERS, THREADS, WARP = 65536, 2048, 32
# Shared memory that a block may have without asking the driver for more; 1 KiB more is reserved.
STATIC_SHARED = 48 * 1024
RESERVED = 1024


@dataclass(frozen=True)
class Budget:
    """One kernel and its limits.

    kernel: makes the ``numbasep.cuda.launch.Kernel``.
    per_output: most instructions per output on the interior path, with how many outputs of a
        thread one turn of the main loop gives; None for kernels that are not held to it.
    per_multiply_add: most instructions per multiply-add of the innermost loop.
    occupancy: least share of a multiprocessor's threads that the registers leave room for.
    has: opcodes (beginnings) that must be there.
    moved: least bytes an output that memory moves. Where these take longer than the instructions,
        the kernel is bound by memory, and half of a multiprocessor's threads have to fit.
    """

    name: str
    kernel: Callable[[], Any]
    per_output: tuple[float, int] | None = None
    occupancy: float = 0.5
    has: tuple[str, ...] = ()
    per_multiply_add: float | None = None
    moved: float | None = None

    def findings(self, code: Machine, threads: int) -> tuple[str, list[str]]:
        """Return a line of figures, and what breaks the budget."""
        registers, stack = code.resources["REG"], code.resources["STACK"]
        shared = code.resources["SHARED"] - RESERVED
        per_warp = -(-registers * WARP // 256) * 256
        blocks = REGISTERS // per_warp // -(-threads // WARP)
        share = min(1.0, blocks * threads / THREADS)
        spills = code.count("LDL", "STL")
        text = f"{registers:3d} registers, {share:4.0%} occupancy"
        broken = []
        if stack or spills:
            broken.append(f"spills: STACK {stack}, {spills} LDL or STL")
        if shared > STATIC_SHARED:
            broken.append(f"{shared} bytes of static shared memory")
        if share < self.occupancy:
            broken.append(f"occupancy {share:.0%}, at least {self.occupancy:.0%}")
        broken += [f"no {name}" for name in self.has if not code.count(name)]
        if self.per_output is not None:
            most, outputs = self.per_output
            each = sum(code.interior().values()) / outputs
            text += f", {each:5.1f} instructions per output (at most {most:g})"
            if each > most:
                broken.append(f"{each:.1f} instructions per output, at most {most:g}")
            if self.moved is not None:
                waits = each <= INSTRUCTIONS_A_BYTE * self.moved
                text += ", bound by memory" if waits else ", bound by instructions"
                if waits and share < 0.5:
                    broken.append(f"occupancy {share:.0%} of a kernel that waits for memory")
        if self.per_multiply_add is not None:
            each = code.density()
            text += f", {each:5.2f} a multiply-add (at most {self.per_multiply_add:g})"
            if each > self.per_multiply_add:
                broken.append(f"{each:.2f} a multiply-add, at most {self.per_multiply_add:g}")
        return text, broken


def listed() -> Iterator[Budget]:
    """Yield the budgets of every module."""
    for module in pkgutil.iter_modules(budgets.__path__):
        yield from importlib.import_module(f"tests.cuda.budgets.{module.name}").budgets()


def examine(name: str) -> tuple[str, list[str]]:
    """Compile the kernel of a budget; return a line of figures, and what breaks the budget."""
    (budget,) = (one for one in listed() if one.name == name)
    kernel = budget.kernel()
    return budget.findings(machine(kernel), kernel.threads)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    p = argparse.ArgumentParser(
        prog="python -m tests.cuda.compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("names", nargs="*", help="only budgets whose name has one of these")
    wanted = p.parse_args(arguments).names
    names = [budget.name for budget in listed()]
    names = [name for name in names if not wanted or any(part in name for part in wanted)]
    failed = 0
    with ProcessPoolExecutor() as pool:
        for name, (text, broken) in zip(names, pool.map(examine, names), strict=True):
            failed += bool(broken)
            print(f"{name:<44} {text}", *(f"\n    BROKEN: {b}" for b in broken), flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
