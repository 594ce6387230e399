"""The demonstration: a photograph, two kernels, what is promised, what comes out, and when.

The photograph is one that scikit-image's wheel carries; nothing is downloaded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.signal
from rich.console import Console, Group

from numbasep import kernels
from numbasep.cli import factors, images
from numbasep.cli.files import whole
from numbasep.cli.filter import rounded
from numbasep.cli.tables import duration, percent, table, titled
from numbasep.factorise import SeparableKernel, factorise
from numbasep.spatial import separable_conv2d

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Call = Callable[[], Array]

UNIT_ROUNDOFF = 2.0**-24  # of float32

# Seconds that each contender may take, and the most that it is called.
BUDGET = 0.7
ROUNDS = 15


@dataclass(frozen=True)
class Subject:
    """A kernel of the demonstration. tol: as for ``factorise``; signed: results have both signs."""

    name: str
    text: str
    tol: float | None
    signed: bool
    words: str


SUBJECTS = (
    Subject("disk", "disk:15", 0.05, False, "the blur of a lens out of focus"),
    Subject("gabor", "gabor:0.1,60", None, True, "waves of 10 pixels, turned by 60 degrees"),
)


@dataclass(frozen=True)
class Outcome:
    """What a kernel came to.

    promised: bound of the error in every value, for this photograph, before it was filtered.
    errors, seconds: of each contender, against direct convolution in float64.
    """

    subject: Subject
    kernel: Floats
    factors: SeparableKernel
    result: Array
    promised: float
    errors: dict[str, float]
    seconds: dict[str, float]
    first: float


def photograph() -> Array:
    """Return the photograph, (H, W, 3), uint8."""
    import skimage.data

    picture: Array = skimage.data.astronaut()
    return picture


def each_channel(function: Callable[[Array], Array], image: Array) -> Array:
    """Apply a function of (H, W) arrays to an (H, W, C) image."""
    return np.stack([function(image[:, :, c]) for c in range(image.shape[2])], axis=-1)


def contenders(image: Array, kernel: Floats, given: SeparableKernel) -> dict[str, Call]:
    """Return the ways to convolve that a user has, with the image mirrored at its borders."""
    taps = kernel.astype(np.float32)
    reach = [n // 2 for n in kernel.shape]
    every = factorise(kernel)

    def ours(which: SeparableKernel) -> Call:
        return lambda: np.asarray(separable_conv2d(image, which, boundary="symm", axes=(0, 1)))

    def by_fourier(channel: Array) -> Array:
        padded = np.pad(channel, [(r, r) for r in reach], mode="symmetric")
        return np.asarray(scipy.signal.fftconvolve(padded, taps, mode="valid"))

    found = {"numbasep": ours(given)}
    if every.rank != given.rank:
        found[f"numbasep, all {every.rank} terms"] = ours(every)
    found |= {
        "scipy.signal.fftconvolve": lambda: each_channel(by_fourier, image),
        "scipy.signal.convolve2d": lambda: each_channel(
            lambda c: np.asarray(scipy.signal.convolve2d(c, taps, "same", "symm")), image
        ),
        "scipy.ndimage.convolve": lambda: each_channel(
            lambda c: np.asarray(scipy.ndimage.convolve(c, taps, mode="reflect")), image
        ),
    }
    try:
        import cv2
    except ImportError:
        return found
    flipped = np.ascontiguousarray(taps[::-1, ::-1])
    found["cv2.filter2D"] = lambda: np.asarray(
        cv2.filter2D(image, -1, flipped, borderType=cv2.BORDER_REFLECT)
    )
    return found


def medians(
    calls: Mapping[str, Call], budget: float = BUDGET, rounds: int = ROUNDS
) -> tuple[dict[str, float], dict[str, Array]]:
    """Return the median seconds of each call and what it returned; the calls take turns.

    The first call of each does not count, unless it alone takes longer than the budget.
    """
    results, seconds, turns = {}, {}, {}
    for name, call in calls.items():
        start = time.perf_counter()
        results[name] = call()
        once = time.perf_counter() - start
        seconds[name] = [once]
        turns[name] = min(rounds, int(budget / max(once, 1e-9)))
        if turns[name]:
            seconds[name] = []
    for turn in range(max(turns.values())):
        for name, call in calls.items():
            if turn < turns[name]:
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def promise(made: SeparableKernel, image: Array) -> float:
    """Bound the error of the factors and of float32 arithmetic, for an image's range.

    ``separable_conv2d``'s documentation has the second part: gamma(kh + kw + R + 1) times the
    convolution of ``|x|`` with the magnitudes of the terms.
    """
    n = sum(made.shape) + made.rank + 1
    gamma = n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)
    largest = float(np.abs(image).max())
    terms = made.growth * float(made.magnitude) * largest
    return made.output_error_bound(float(image.min()), float(image.max())) + gamma * terms


def study(subject: Subject, image: Array) -> Outcome:
    """Factorise a kernel, filter with it, compare and time."""
    kernel = kernels.named(subject.text)
    made = factorise(kernel, tol=subject.tol)
    calls = contenders(image, kernel, made)
    start = time.perf_counter()
    calls["numbasep"]()
    first = time.perf_counter() - start
    seconds, results = medians(calls)
    exact = each_channel(
        lambda c: np.asarray(scipy.ndimage.convolve(c.astype(np.float64), kernel, mode="reflect")),
        image,
    )
    errors = {name: float(np.abs(result - exact).max()) for name, result in results.items()}
    return Outcome(
        subject, kernel, made, results["numbasep"], promise(made, image), errors, seconds, first
    )


def for_viewing(outcome: Outcome) -> Array:
    """Return a result as 8-bit pixels; signed ones around middle grey, up to their 99.5 %."""
    result = outcome.result
    if not outcome.subject.signed:
        return rounded(255.0 * result, np.dtype(np.uint8))
    limit = float(np.quantile(np.abs(result), 0.995))
    return rounded(128 + 127.0 / limit * result.astype(np.float64), np.dtype(np.uint8))


def draw(before: Array, after: Array, outcome: Outcome) -> bytes:
    """Return a figure: the photograph, the result, the kernel and what its factors leave out."""
    made, subject = outcome.factors, outcome.subject
    figure = factors.new_figure(13.4, 6.3)
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 0.42))
    for column, (title, picture) in enumerate((("before", before), ("after", after))):
        ax = figure.add_subplot(grid[:, column])
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    size = " x ".join(map(str, made.shape))
    terms = f"its {made.rank} separable terms\n{made.speedup:.2g}x fewer multiply-adds"
    parts = ((f"{subject.text}, {size}", outcome.kernel), (terms, made.dense()))
    for row, (title, part) in enumerate(parts):
        factors.show_kernel(
            figure, figure.add_subplot(grid[row, 2]), title, part, outcome.kernel, bar=False
        )
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.06)
    figure.suptitle(
        f"{subject.text}, {subject.words}; error promised {percent(outcome.promised)}, "
        f"measured {percent(outcome.errors['numbasep'])} of white",
        fontsize=12,
    )
    return factors.png_of(figure)


def promises(outcomes: list[Outcome]) -> Group:
    """Return the kernels, their factors, and the error promised and measured."""
    made = table("kernel", "size", "terms", "multiply-adds", "promised", "measured")
    for outcome in outcomes:
        found = outcome.factors
        made.add_row(
            outcome.subject.text,
            " x ".join(map(str, found.shape)),
            str(found.rank),
            f"{found.speedup:.2f}x fewer",
            percent(outcome.promised),
            percent(outcome.errors["numbasep"]),
        )
    return titled(
        "Error, as a part of white: promised before filtering, measured against float64", made
    )


def times(outcome: Outcome, image: Array) -> Group:
    """Return the time and error of each contender."""
    height, width, channels = image.shape
    made = table("", "time", "numbasep is", "error")
    ours = outcome.seconds["numbasep"]
    for name, seconds in outcome.seconds.items():
        ratio = "" if name == "numbasep" else f"{seconds / ours:.3g}x as fast"
        made.add_row(name, duration(seconds), ratio, percent(outcome.errors[name]))
    threads = numba.get_num_threads()
    return titled(
        f"Time, {outcome.subject.text} on {width} x {height} x {channels} float32, median; "
        f"numbasep and OpenCV on {threads} threads, scipy on 1",
        made,
    )


def run(folder: Path, screen: Console) -> None:
    """Run the demonstration, write its pictures into a folder, print its tables."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = photograph()
    image = pixels.astype(np.float32) / 255
    outcomes = []
    written = {"photograph.png": images.encoded(images.of_array(pixels), "PNG")}
    with screen.status("") as status:
        for subject in SUBJECTS:
            screen.print(f"{subject.text}: {subject.words}")
            status.update(f"{subject.text}: filtering and timing")
            outcome = study(subject, image)
            outcomes.append(outcome)
            after = for_viewing(outcome)
            written[f"{subject.name}.png"] = images.encoded(images.of_array(after), "PNG")
            written[f"{subject.name}-before-after.png"] = draw(pixels, after, outcome)
    screen.print()
    screen.print(promises(outcomes))
    for outcome in outcomes:
        screen.print(times(outcome, image))
    screen.print(
        f"The first call took {duration(outcomes[0].first)}, compilation or loading included."
    )
    for name, data in written.items():
        with whole(folder / name, overwrite=True) as file:
            file.write(data)
    screen.print(f"Pictures: {', '.join(str(folder / name) for name in written)}")
