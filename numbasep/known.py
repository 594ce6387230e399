"""What calls found out, for the next one like it."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Known(Generic[T]):
    """A dictionary of the entries made last, at most ``most``.

    For any number of threads, without a lock, which a forked process could find taken for ever.
    """

    def __init__(self, most: int = 256) -> None:
        self._entries: dict[Hashable, T] = {}
        self._most = most

    def get(self, key: Hashable) -> T | None:
        return self._entries.get(key)

    def put(self, key: Hashable, entry: T) -> None:
        self._entries[key] = entry
        while len(self._entries) > self._most:
            # Another thread may have been faster, or be at it.
            with suppress(KeyError, RuntimeError):
                del self._entries[next(iter(self._entries))]
