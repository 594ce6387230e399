"""How a time is taken: interleaved on the host, with events on a GPU; and when it counts.

On the host, contenders take turns in random order, so that a slow minute of the machine falls on
all of them. Every visit starts with one untimed call. A visit in which this process's threads
waited for a processor (the kernel's own count, /proc/self/task/*/schedstat) is repeated, and the
fraction that never came clean is reported. On a GPU, each call is timed by two events, with the L2
cache flushed before it by reading a large buffer (reading leaves no dirty lines whose write-back
would be charged to the call).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds a call, one value a round (NaN where the round skipped it), and what disturbed them.

    ``disturbed``: the fraction of rounds in which the threads waited for a processor to the end.
    """

    seconds: np.ndarray[Any, np.dtype[np.float64]]
    disturbed: float = 0.0
    calls: int = 1

    def spread(self) -> dict[str, float]:
        """Return p20, p50, p80 and the number of rounds."""
        p20, p50, p80 = np.nanpercentile(self.seconds, (20, 50, 80))
        rounds = int(np.isfinite(self.seconds).sum())
        return {"p20": float(p20), "p50": float(p50), "p80": float(p80), "rounds": rounds}


def ratio(peer: Times, ours: Times) -> float:
    """Return the median over rounds of peer / ours; above 1 ours is faster.

    Rounds pair: both ran within the same second or so.
    """
    if len(peer.seconds) == len(ours.seconds):
        pairs = peer.seconds / ours.seconds
        if np.isfinite(pairs).any():
            return float(np.nanmedian(pairs))
    return float(np.nanmedian(peer.seconds) / np.nanmedian(ours.seconds))


def waited() -> float:
    """Return the seconds that this process's threads have waited for a processor so far."""
    total = 0
    for stat in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(stat.read_text().split()[1])
        except (OSError, IndexError):  # the thread ended, or the kernel does not count
            continue
    return total / 1e9


@dataclass
class Interleaved:
    """Host timer. Seconds throughout.

    rounds: visits to each contender; ``slow_rounds`` for those slower than ``slow`` a call.
    budget: a visit repeats the call to last about this long. pause: sleeps before a visit, until
    the last contender's threads stop spinning (those of OpenBLAS take 30 to 100 ms). tolerance:
    the waited share of a visit above which it is repeated, at most ``tries`` times.
    """

    rounds: int = 9
    budget: float = 0.02
    pause: float = 0.003
    tolerance: float = 0.03
    tries: int = 6
    slow: float = 0.4
    slow_rounds: int = 3
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    waited: Callable[[], float] = waited
    used: Callable[[], float] = time.process_time
    order: random.Random = field(default_factory=lambda: random.Random(0))

    def __call__(self, calls: Mapping[str, Call]) -> dict[str, Times]:
        """Time every call; return name to times."""
        single = {name: self._once(call) for name, call in calls.items()}
        repeats = {n: max(1, min(500, int(self.budget / d))) for n, d in single.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        disturbed = dict.fromkeys(calls, 0)
        for turn in range(self.rounds):
            names = list(calls)
            self.order.shuffle(names)
            for name in names:
                slow = single[name] > self.slow
                if slow and turn >= self.slow_rounds:
                    seconds[name].append(np.nan)
                    continue
                # A call with more threads than processors never comes clean: do not insist.
                tries = 1 if turn >= 2 and disturbed[name] == turn else self.tries
                share, value = self._visit(calls[name], repeats[name], tries, warm=not slow)
                disturbed[name] += share >= self.tolerance
                seconds[name].append(value)
        return {
            name: Times(
                np.array(values), disturbed[name] / np.isfinite(values).sum(), repeats[name]
            )
            for name, values in seconds.items()
        }

    def _once(self, call: Call) -> float:
        call()
        start = self.clock()
        call()
        return max(self.clock() - start, 1e-9)

    def _settle(self) -> None:
        """Sleep until no thread of this process uses a processor, for 60 pauses at most."""
        for _ in range(60):
            before = self.used()
            self.sleep(self.pause)
            if self.used() - before < self.pause / 10:
                return

    def _visit(self, call: Call, repeats: int, tries: int, *, warm: bool) -> tuple[float, float]:
        best = (np.inf, np.inf)
        for attempt in range(tries):
            self._settle()
            if warm:
                call()
            waiting, start = self.waited(), self.clock()
            for _ in range(repeats):
                call()
            elapsed = max(self.clock() - start, 1e-9)
            best = min(best, ((self.waited() - waiting) / elapsed, elapsed / repeats))
            if best[0] < self.tolerance or elapsed > 1.5:
                break
            self.sleep(0.05 * attempt)
        return best


@dataclass(frozen=True)
class Verdict:
    """Whether an output may be timed.

    worst: the largest error as a share of its bound (1 or less passes); reason: why not.
    """

    passed: bool
    worst: float
    reason: str = ""


def verdict(
    result: np.ndarray[Any, Any],
    reference: np.ndarray[Any, np.dtype[np.float64]],
    bound: np.ndarray[Any, np.dtype[np.float64]],
) -> Verdict:
    """Compare a result with its float64 reference, elementwise against ``bound``.

    An element that was never written (poisoned with NaN, or with an integer's largest value)
    fails as any other wrong element does.
    """
    if result.shape != reference.shape:
        return Verdict(False, np.inf, f"shape {result.shape}, expected {reference.shape}")
    values = result.astype(np.float64)
    error = np.abs(values - reference)
    if not np.isfinite(error).all():
        missing = int((~np.isfinite(error)).sum())
        return Verdict(False, np.inf, f"{missing} of {error.size} elements are not finite")
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / bound)
    worst = float(share.max(initial=0.0))
    if worst > 1:
        wrong = int((share > 1).sum())
        return Verdict(
            False, worst, f"{wrong} of {error.size} elements past the bound, {worst:.3g} of it"
        )
    return Verdict(True, worst)


UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "tf32_truncated": 2.0**-10,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}


def gamma(n: int, dtype: str) -> float:
    """Return n u / (1 - n u), u the unit roundoff (Higham, section 3.1)."""
    u = UNIT_ROUNDOFF[dtype]
    return n * u / (1 - n * u)


def poison(array: np.ndarray[Any, Any]) -> None:
    """Fill with NaN, or an integer's largest value, so that an unwritten element shows."""
    kind = array.dtype.kind
    array[...] = np.iinfo(array.dtype).max if kind in "iu" else np.nan
