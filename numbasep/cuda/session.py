"""Calls between device arrays, and the same calls again.

The first call of its kind runs the launchers and keeps the launches they made. Later calls, whose
arrays have the same shapes, strides, dtypes and alignment, make the same launches with the pointers
exchanged: no checks, no plan, no packing of arguments.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from numbasep.cuda import launch
from numbasep.cuda.launch import View, types, view
from numbasep.devices import Interface
from numbasep.views import Device

# What launchers decide from an address is its alignment, up to this.
ALIGNMENT = 128


@dataclass(frozen=True, slots=True)
class Fresh:
    """An array that a call makes for itself."""

    shape: tuple[int, ...]
    dtype: str
    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A launch: ``places`` are positions of arguments that point into an array of the call."""

    prepared: tuple[Any, Any]
    arguments: tuple[Any, ...]
    places: tuple[tuple[int, int], ...]


class Session:
    """One call on a device, while it runs for the first time.

    arrays: those given, then those made.
    """

    def __init__(self, kind: Interface, device: int, stream: int, given: Sequence[Device]) -> None:
        self.kind, self.device, self.stream = kind, device, stream
        self.arrays = list(given)
        self.fresh: list[Fresh] = []
        self.steps: list[Step] = []
        self.kept: list[View] = []
        self.repeatable = True

    def __enter__(self) -> Session:
        launch._local.session = self
        return self

    def __exit__(self, *error: object) -> None:
        launch._local.session = None

    def empty(
        self, shape: tuple[int, ...], dtype: str, order: tuple[int, ...] | None = None
    ) -> Device:
        """Return a fresh array of the caller's library, its axes in memory in ``order``."""
        fresh = Fresh(shape, dtype, tuple(range(len(shape))) if order is None else order)
        made = make(self.kind, fresh, self.device, self.stream)
        self.fresh.append(fresh)
        self.arrays.append(made)
        return made

    def uploaded(self, array: Any) -> None:
        """Keep what launches read and no call changes."""
        self.kept.append(view(array))

    def launched(
        self, kernel: launch.Kernel, prepared: tuple[Any, Any], arguments: Sequence[Any]
    ) -> None:
        """Keep a launch."""
        places = []
        position = 0
        for kind in kernel.arguments:
            if isinstance(kind, types.CPointer):
                pointer = arguments[position]
                found = self._array_at(getattr(pointer, "address", pointer))
                if found is None:
                    # Into memory that this call knows nothing of: never repeated blindly.
                    self.repeatable = False
                elif found >= 0:
                    places.append((position, found))
            position += kind.count if isinstance(kind, types.UniTuple) else 1
        self.steps.append(Step(prepared, tuple(arguments), tuple(places)))

    def _array_at(self, address: int) -> int | None:
        """Return the array into which an address points, -1 for one that is kept."""
        for index, array in enumerate(self.arrays):
            if array.form.low <= address - array.address < array.form.high:
                return index
        for kept in self.kept:
            if kept.address <= address < kept.address + prod(kept.shape) * kept.itemsize:
                return -1
        return None

    def recording(self, result: Device) -> Recording | None:
        """Return the call to be made again; ``result`` is one of its arrays."""
        if not self.repeatable:
            return None
        return Recording(
            tuple(self.steps),
            tuple(array.address for array in self.arrays),
            tuple(self.fresh),
            next(i for i, array in enumerate(self.arrays) if array is result),
            tuple(self.kept),
        )


@dataclass(frozen=True, slots=True)
class Recording:
    """A call's launches.

    bases: addresses that the arrays, given and then fresh, had when it was recorded.
    result: which array is the result.
    """

    steps: tuple[Step, ...]
    bases: tuple[int, ...]
    fresh: tuple[Fresh, ...]
    result: int
    kept: tuple[View, ...]

    @property
    def size(self) -> int:
        """Bytes on the device that are kept."""
        return sum(prod(view.shape) * view.itemsize for view in self.kept)

    def __call__(
        self, kind: Interface, device: int, stream: int, given: list[Device]
    ) -> Device | None:
        """Make the launches again, between other arrays; return the result.

        None, and nothing is launched, where fresh arrays are not as aligned as they were.
        """
        arrays, bases = given[:], self.bases
        for fresh in self.fresh:
            made = make(kind, fresh, device, stream)
            if (made.address ^ bases[len(arrays)]) & (ALIGNMENT - 1):
                return None
            arrays.append(made)
        for step in self.steps:
            arguments = list(step.arguments)
            for position, index in step.places:
                array = arrays[index]
                distance = array.address - bases[index]
                pointer = arguments[position]
                arguments[position] = (
                    pointer.moved(distance, array.owner) if launch.SIMULATOR else pointer + distance
                )
            launch.start(step.prepared, stream, arguments)
        return arrays[self.result]


def make(kind: Interface, fresh: Fresh, device: int, stream: int) -> Device:
    """Return a fresh array of a library."""
    made = kind.empty(fresh.shape, fresh.dtype, fresh.order, device, stream)
    return kind.place(made, fresh.dtype)


class Calls:
    """Recorded calls, found again by what made them.

    capacity, size: calls that are kept, and bytes that they keep on the device; the latest made.
    """

    def __init__(self, capacity: int = 512, size: int = 256 << 20) -> None:
        self._found: dict[Hashable, Recording] = {}
        self._capacity, self._size = capacity, size
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Recording | None:
        return self._found.get(key)

    def put(self, key: Hashable, recording: Recording) -> None:
        with self._lock:
            replaced = self._found.pop(key, None)
            self._bytes += recording.size - (replaced.size if replaced else 0)
            self._found[key] = recording
            while len(self._found) > self._capacity or self._bytes > self._size:
                self._bytes -= self._found.pop(next(iter(self._found))).size

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._found.clear()
            self._bytes = 0


calls = Calls()


def run(
    key: Hashable,
    kind: Interface,
    stream: int,
    given: list[Device],
    work: Callable[[Session], Device],
) -> Device:
    """Do a call's work between device arrays, or the launches that it is known to make.

    key: everything on which the launches depend but for the arrays' places and the stream; None
        where it cannot be found again.
    given: the arrays of the call; the first is its image.
    work: launches everything and returns the array of the result.
    """
    device = given[0].device
    whole = (
        key,
        kind.name,
        stream,
        device,
        *[(array.form, array.address & (ALIGNMENT - 1)) for array in given],
    )
    with launch.active(device):
        recording = None if key is None else calls.get(whole)
        if recording is not None:
            again = recording(kind, device, stream, given)
            if again is not None:
                return again
        with Session(kind, device, stream, given) as session:
            result = work(session)
        found = session.recording(result)
        if found is not None and key is not None:
            calls.put(whole, found)
        return result


class Held:
    """Arrays whose library may reuse their memory before our work on it is done."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Any, Any]] = deque()

    def hold(self, owners: list[Any], stream: int) -> None:
        """Keep arrays until a stream has done its work so far; let earlier ones go."""
        while self._pending and self._pending[0][0].query():
            self._pending.popleft()
        if not launch.SIMULATOR and not launch.capturing(stream):
            event = launch.cuda.event(timing=False)
            event.record(launch._numba_stream(stream))
            self._pending.append((event, owners))


held = Held()
