"""Jobs that are repeated with other arrays: all is decided but where these are.

What a kernel is told, as it lies in memory:

    |count, arrays' objects | (place, array, offset) ... | the kernel's numbers ..................|
                                                             ^ place: the address of an array

To ask each array for its address takes Python longer than a small layer takes; the compiled code
that begins a job reads it in the array's object.

Of a job of several steps no thread begins one before all of the last is done, and no thread is sent
for twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from numbasep.cpu import atomics, compiled, pool, queues, simd
from numbasep.cpu.channels import Prepared, rounded

Array = NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """A kernel's part of a job.

    function: its address, as ``pool.run`` takes it. places: which of its numbers are the addresses
    of which arrays, by name.
    """

    made: Prepared
    function: int
    places: tuple[tuple[int, str], ...]


def step(made: Prepared, function: int, *names: str) -> Step:
    """Return the step of a kernel whose first numbers are the addresses of arrays."""
    return Step(made, function, tuple(enumerate(names)))


def renamed(steps: list[Step], **names: str) -> list[Step]:
    """Return steps with other names for their arrays."""
    return [
        replace(one, places=tuple((k, names.get(name, name)) for k, name in one.places))
        for one in steps
    ]


def with_zeros(one: Step, place: int, count: int, dtype: str) -> Step:
    """Return a step with zeros as the array at a place of its numbers."""
    zeros, numbers = np.zeros(count, dtype), one.made.numbers.copy()
    numbers[place] = pool.address(zeros)
    made = replace(one.made, numbers=numbers, owners=(one.made.owners, zeros))
    return Step(made, one.function, tuple(pair for pair in one.places if pair[0] != place))


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What calls of one kind share.

    function, items, scratch, threads, head: as ``pool.run`` takes them. numbers: what each call
    copies. between: bytes that one step leaves to the next. owners: of what the numbers address.
    """

    function: int
    numbers: Array
    head: int
    items: tuple[int, ...]
    scratch: int
    threads: int
    between: int
    owners: object

    def run(self, *arrays: Array) -> None:
        """Do it with arrays, C-contiguous."""
        if self.between:
            arrays = *arrays, pool.between(self.between)
        numbers = self.numbers.copy()
        numbers[1 : 1 + len(arrays)] = list(map(id, arrays))
        self._start(numbers, arrays)

    def run_at(self, addresses: list[int], owners: object) -> None:
        """Do it with what is at addresses; owners: of that memory."""
        if self.between:
            memory = pool.between(self.between)
            addresses = [*addresses, pool.address(memory)]
            owners = owners, memory
        numbers = self.numbers.copy()
        # In place of the arrays' objects: where the address of each would be in it.
        table = np.array(addresses, np.int64)
        first = pool.address(table) - pool.HELD
        numbers[1 : 1 + len(addresses)] = range(first, first + 8 * len(addresses), 8)
        self._start(numbers, (owners, table))

    def _start(self, numbers: Array, owners: object) -> None:
        pool.run(
            self.function, numbers, self.items, self.scratch, self.threads, (self, owners),
            self.head,
        )  # fmt: skip


@cache
def _driver() -> Any:
    """Return ``void (numbers, queued, own, scratch)``: one step after the other."""

    @compiled.cfunc("void(int64, int64, int64, int64)")
    def steps(numbers: int, queued: int, own: int, scratch: int) -> None:
        q = simd.as_pointer(numbers)
        for k in range(q[0]):
            table, items = queues.table_of(queued, k), q[3 * k + 3]
            atomics.call4(q[3 * k + 1], numbers + 8 * q[3 * k + 2], table, own, scratch)
            queues.await_done(table, items, False)

    return steps


def job(given: tuple[str, ...], steps: list[Step], between: Mapping[str, int] | None = None) -> Job:
    """Return a job; given: the names of the arrays that ``Job.run`` takes; between: bytes of more.

    What is between can be read and written a little beyond its end.
    """
    found = {name: (k, 0) for k, name in enumerate(given)}
    size = 0
    for name, count in (between or {}).items():
        found[name] = len(given), size
        size += rounded(count) + 4 * simd.VECTOR
    count = len(given) + (size > 0)
    function, at, table = steps[0].function, 0, np.zeros(0, np.int64)
    if len(steps) > 1:
        function, at = _driver().address, 1 + 3 * len(steps)
        table = np.zeros(at, np.int64)
        table[0] = len(steps)
    start = [count, *[0] * count]
    for k, one in enumerate(steps):
        if len(steps) > 1:
            table[3 * k + 1 : 3 * k + 4] = one.function, at, one.made.items
        for place, name in one.places:
            start += at + place, *found[name]
        at += len(one.made.numbers)
    made = [one.made for one in steps]
    return Job(
        function,
        np.concatenate([np.array(start, np.int64), table, *[one.numbers for one in made]]),
        len(start),
        tuple(one.items for one in made),
        max(one.scratch for one in made),
        max(one.threads for one in made),
        size,
        made,
    )


def repeated(choose: Callable[[int], T]) -> Callable[[], T]:
    """Return what returns the job that is chosen for as many threads as Numba is told of."""
    known: dict[int, T] = {}

    def found() -> T:
        threads = numba.get_num_threads()
        if threads not in known:
            known[threads] = choose(threads)
        return known[threads]

    return found
