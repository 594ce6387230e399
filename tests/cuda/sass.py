"""What a compiled kernel does, read from its machine code: registers, accesses, instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

LABEL = re.compile(r"\s*(\.L_\w+):")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,5}\*/\s+(.*?)\s*;")
PREDICATED = re.compile(r"@!?U?P\w+\s+")
TARGET = re.compile(r"`\((\.L_\w+)\)")
MULTIPLY_ADDS = ("FFMA", "DFMA")


@dataclass
class Machine:
    """The machine code of one kernel."""

    text: str
    resources: dict[str, int]

    @cached_property
    def lines(self) -> list[str]:
        """Instructions and labels, in order."""
        found = []
        for line in self.text.splitlines():
            match = LABEL.match(line) or INSTRUCTION.match(line)
            if match:
                found.append(match.group(1))
        while found and found[-1].startswith(("NOP", "BRA")):
            found.pop()
        return found

    @cached_property
    def opcodes(self) -> Counter[str]:
        return Counter(opcode(line) for line in self.lines if not line.startswith("."))

    def count(self, *prefixes: str) -> int:
        return sum(n for name, n in self.opcodes.items() if name.startswith(prefixes))

    def loops(self) -> list[tuple[int, int]]:
        """Return where each loop's label and its last branch are."""
        at = {line: i for i, line in enumerate(self.lines) if line.startswith(".")}
        found = []
        for i, line in enumerate(self.lines):
            target = TARGET.search(line)
            if opcode(line).startswith("BRA") and target and at.get(target.group(1), i + 1) <= i:
                found.append((at[target.group(1)], i))
        return found

    def loop(self) -> list[str]:
        """Return the loop with the most multiply-adds, from its label to its last branch."""
        loops = [self.lines[first : last + 1] for first, last in self.loops()]
        return max(loops, key=lambda loop: (multiply_adds(loop), -len(loop)))

    def density(self) -> float:
        """Return instructions per multiply-add of the inner loop that has most of these."""
        loops = self.loops()
        inner = [
            self.lines[first : last + 1]
            for first, last in loops
            if not any(first < one and other < last for one, other in loops)
        ]
        best = max(inner, key=lambda loop: (multiply_adds(loop), -len(loop)))
        return sum(not line.startswith(".") for line in best) / multiply_adds(best)

    def interior(self) -> Counter[str]:
        """Return the instructions of one turn of that loop that does all the work.

        Of the paths through the loop with the most multiply-adds and 128-bit accesses (so, inside
        the image, aligned, a whole vector of results), the shortest.
        """
        loop = self.loop()
        at = {line: i for i, line in enumerate(loop) if line.startswith(".")}
        best: dict[int, tuple[tuple[int, int], list[str]]] = {len(loop): ((0, 0), [])}
        for i in range(len(loop) - 1, -1, -1):
            line = loop[i]
            if line.startswith("."):
                best[i] = best[i + 1]
                continue
            following = [i + 1]
            name = opcode(line)
            if name.startswith("BRA") and i < len(loop) - 1:
                label = TARGET.search(line)
                place = at.get(label.group(1), -1) if label else -1
                jump = [place] if place > i else []
                following = jump + ([i + 1] if line.startswith("@") or not jump else [])
            elif name.startswith("EXIT"):
                following = [i + 1] if line.startswith("@") else []
            choices = [best[j] for j in following if j in best]
            if not choices:
                continue
            (work, length), path = max(choices, key=lambda choice: choice[0])
            own = name.startswith((*MULTIPLY_ADDS, "IMAD.WIDE.U32")) or ".128" in name
            best[i] = ((work + own, length - 1), [name, *path])
        return Counter(best[0][1])


def opcode(line: str) -> str:
    return PREDICATED.sub("", line, count=1).split(" ", 1)[0]


def multiply_adds(lines: list[str]) -> int:
    return sum(opcode(line).startswith(MULTIPLY_ADDS) for line in lines)


def machine(kernel: Any) -> Machine:
    """Compile a ``numbasep.cuda.launch.Kernel`` as its launch would, for sm_90a, without a GPU."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from cuda.pathfinder import find_nvidia_binary_utility

    from numbasep.cuda import launch

    with launch.without_device():
        code, _ = launch.cuda.compile(
            kernel.function,
            kernel.signature(),
            device=False,
            abi="numba",
            cc=(9, 0, "a"),
            output="ltoir",
            launch_bounds=kernel.bounds,
        )
    options = LinkerOptions(arch="sm_90a", link_time_optimization=True)
    cubin = bytes(Linker(ObjectCode.from_ltoir(code), options=options).link("cubin").code)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text, usage = (
            subprocess.run(
                [find_nvidia_binary_utility(tool), option, file.name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    found = re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage.split("Function")[-1])
    resources = {name: int(value) for name, value in found}
    return Machine(text, resources)
