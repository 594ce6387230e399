"""The GPU's timer, ceilings and checks, on PyTorch's memory, events and default stream.

Each timed call stands between two events on the legacy default stream, which PyTorch, CuPy, OpenCV
and numbasep share. Before it the L2 cache is flushed by reading a buffer several times its size,
and the device is kept busy for longer than the host needs to enqueue the call, so that the events
enclose device work alone; what the call costs the host is measured apart ("launch_s"). JAX runs on
streams of its own and is timed on the host over many calls.

Where PyTorch sees no GPU the same code runs on the host with host clocks and no flush: a rehearsal
of every line, whose times mean nothing (rows carry "rehearsal": true).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch

from perf import gpu_contenders, reference
from perf.cases import Case, Channelwise, Separable
from perf.contenders import Contender, Refused, optional
from perf.gpu_contenders import DEVICE
from perf.timing import UNIT_ROUNDOFF, Interleaved, Times, Verdict

Row = dict[str, Any]
FLUSH_BYTES = 256 * 2**20
# Of float64 references on the device: past this, each contender's check computes them again.
KEPT_BYTES = 8 * 2**30
ON_GPU = DEVICE == "cuda"


def device() -> Row:
    """Return the columns that say which GPU, driver and libraries."""
    row: Row = {"rehearsal": not ON_GPU}
    if not ON_GPU:
        return row | {"gpu": None}
    found = torch.cuda.get_device_properties(0)
    return row | {
        "gpu": found.name,
        "gpu_multiprocessors": found.multi_processor_count,
        "gpu_memory_gb": round(found.total_memory / 1e9, 1),
        "gpu_l2_mb": round(getattr(found, "L2_cache_size", 0) / 2**20, 1),
        "gpu_driver": _driver(),
        "cudnn": torch.backends.cudnn.version(),
        "torch_cuda": torch.version.cuda,
    }


def _driver() -> str:
    import subprocess

    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def synchronise() -> None:
    """Wait for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


# The timer ---------------------------------------------------------------------------------------


class Events:
    """Times calls by events, in rounds of random order.

    budget: seconds of device work per contender. cycles_per_s: of the device's clock, an upper
    guess; a longer delay than needed only costs time.
    """

    def __init__(self, rounds: int = 3, budget: float = 0.08, cycles_per_s: float = 2.0e9) -> None:
        self.rounds, self.budget, self.cycles_per_s = rounds, budget, cycles_per_s
        self.order = random.Random(0)
        size = FLUSH_BYTES if ON_GPU else 4096
        self.flushed = torch.ones(size // 4, dtype=torch.float32, device=DEVICE)

    def __call__(self, calls: dict[str, Callable[[], Any]]) -> dict[str, tuple[Times, float]]:
        """Return each call's times and the seconds it keeps the host."""
        hosts = {name: self._host(call) for name, call in calls.items()}
        counts = {
            name: int(min(40, max(5, self.budget / self.rounds / max(self._one(call, 0.0), 1e-6))))
            for name, call in calls.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.rounds):
            names = list(calls)
            self.order.shuffle(names)
            for name in names:
                for _ in range(counts[name]):
                    seconds[name].append(self._one(calls[name], hosts[name]))
        return {name: (Times(np.array(v)), hosts[name]) for name, v in seconds.items()}

    def _host(self, call: Callable[[], Any]) -> float:
        """Return the seconds until the call returns, with the device idle before it."""
        call()
        taken = []
        for _ in range(5):
            synchronise()
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        synchronise()
        return float(np.median(taken))

    def _one(self, call: Callable[[], Any], host_seconds: float) -> float:
        if not ON_GPU:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        start_event = torch.cuda.Event(enable_timing=True)
        end_event = torch.cuda.Event(enable_timing=True)
        # A call that waits for the device itself would only wait longer: cap the delay.
        delay = min(2.0 * host_seconds + 50e-6, 3e-3)
        torch.cuda._sleep(int(delay * self.cycles_per_s))
        self.flushed.sum()
        start_event.record()
        call()
        end_event.record()
        end_event.synchronize()
        return start_event.elapsed_time(end_event) / 1e3


def host_clock(call: Callable[[], Any], rounds: int = 5, budget: float = 0.05) -> Times:
    """Time a call that ends with the device idle, on the host, many calls a round."""
    call()
    start = time.perf_counter()
    call()
    repeats = max(1, min(200, int(budget / max(time.perf_counter() - start, 1e-6))))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        seconds.append((time.perf_counter() - start) / repeats)
    return Times(np.array(seconds), calls=repeats)


# The check ---------------------------------------------------------------------------------------


def _separable_reference(
    image: Any, columns: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], border: str
) -> Any:
    """Return the separable convolution of a (planes, H, W) float64 tensor.

    border: "reflect" or "symmetric", as in ``np.pad``.
    """
    taps = rows.shape[1]

    def widened(values: Any, axis: int) -> Any:
        # The anchor of a convolution: (taps - 1) // 2 elements of the taps lie ahead.
        around = taps - 1 - (taps - 1) // 2, (taps - 1) // 2
        indices = np.arange(values.shape[axis])
        # The mode is a word of the call's, not a literal.
        places = np.pad(indices, around, mode=border)  # type: ignore[call-overload]  # a str
        return values.index_select(axis, torch.from_numpy(places).to(DEVICE))

    total = torch.zeros_like(image)
    height, width = image.shape[-2:]
    for column, row in zip(columns, rows, strict=True):
        wide = widened(image, 2)
        inner = torch.zeros_like(image)
        for k in range(taps):
            inner.add_(wide[:, :, k : k + width], alpha=float(row[taps - 1 - k]))
        tall = widened(inner, 1)
        for k in range(taps):
            total.add_(tall[:, k : k + height], alpha=float(column[taps - 1 - k]))
    return total


def _layer_reference(case: Channelwise, image: Any, taps: Any, mix: Any) -> Any:
    """Return a layer of a (1, C, H, W) float64 tensor, a sum over taps of shifted images."""
    if taps is not None:
        pad, step, spread = case.padding, case.stride, case.dilation
        padded = torch.nn.functional.pad(image, (pad,) * 4)
        height, width = case.spatial
        total = torch.zeros((*image.shape[:2], height, width), dtype=image.dtype, device=DEVICE)
        for i in range(taps.shape[1]):
            for j in range(taps.shape[2]):
                window = padded[
                    :,
                    :,
                    i * spread : i * spread + (height - 1) * step + 1 : step,
                    j * spread : j * spread + (width - 1) * step + 1 : step,
                ]
                total.addcmul_(window, taps[:, i, j].reshape(1, -1, 1, 1))
        image = total
    if mix is not None:
        n, c, height, width = image.shape
        image = torch.matmul(mix, image.reshape(n, c, -1)).reshape(n, -1, height, width)
    return image


def _compare(case: Case, contender: Contender, result: Any, exact: Any, scale: Any) -> Verdict:
    """Compare on the device; the bound is that of ``reference.bound``."""
    allowed = reference.relative_bound(case, contender.precision, contender.intermediate) * scale
    if case.dtype == "uint8":
        allowed = allowed + 0.5 + contender.levels
    else:
        allowed = allowed + UNIT_ROUNDOFF[case.dtype] * (exact.abs() + allowed)
        allowed = allowed + {"float16": 2.0**-25}.get(case.dtype, 0.0)
    error = (result.double() - exact).abs()
    finite = torch.isfinite(error)
    if not bool(finite.all()):
        return Verdict(False, np.inf, f"{int((~finite).sum())} elements are not finite")
    share = torch.where(error == 0, torch.zeros_like(error), error / allowed)
    worst = float(share.max())
    if worst > 1:
        wrong = int((share > 1).sum())
        return Verdict(
            False, worst, f"{wrong} of {error.numel()} elements past the bound, {worst:.3g} of it"
        )
    return Verdict(True, worst)


class Reference:
    """The float64 result of a case and its bound's scale, an image at a time.

    Those of all images are kept for the next contender where they are not too large.
    """

    def __init__(self, case: Case, data: gpu_contenders.Data) -> None:
        self.case, self.data = case, data
        self.keeps = 16 * prod(data.out_shape) <= KEPT_BYTES
        self.kept: dict[tuple[int, str], tuple[Any, Any]] = {}

    def image(self, i: int, border: str) -> tuple[Any, Any]:
        """Return both of image ``i``, float64 tensors (1, C, H, W)."""
        if (i, border) in self.kept:
            return self.kept[i, border]
        case, data = self.case, self.data
        image = data.image[i : i + 1].double()
        if isinstance(case, Separable):
            columns, rows = data.columns, data.rows
            exact = _separable_reference(image[0], columns, rows, border)[None]
            scale = _separable_reference(image[0].abs(), abs(columns), abs(rows), border)[None]
        else:
            taps = None if data.taps is None else data.taps.double()
            mix = None if data.mix is None else data.mix.double()
            exact = _layer_reference(case, image, taps, mix)
            taps = None if taps is None else taps.abs()
            mix = None if mix is None else mix.abs()
            scale = _layer_reference(case, image.abs(), taps, mix)
        if self.keeps:
            self.kept[i, border] = exact, scale
        return exact, scale


def check(
    case: Case, contender: Contender, data: gpu_contenders.Data, expected: Reference
) -> Verdict:
    """Run a contender on a poisoned output; compare every element, an image at a time."""
    if contender.out is not None:
        contender.out.fill_(255 if case.dtype == "uint8" else float("nan"))
    result = contender.read(contender.call())
    synchronise()
    if tuple(result.shape) != data.out_shape:
        return Verdict(False, np.inf, f"shape {tuple(result.shape)}, expected {data.out_shape}")
    worst = Verdict(True, 0.0)
    for i in range(data.image.shape[0]):
        exact, scale = expected.image(i, contender.border)
        found = _compare(case, contender, result[i : i + 1], exact, scale)
        if not found.passed:
            return Verdict(False, found.worst, f"image {i}: {found.reason}")
        worst = max(worst, found, key=lambda v: v.worst)
    return worst


# Cases -------------------------------------------------------------------------------------------


def measure(case: Case, timer: Interleaved, only: list[str]) -> Iterator[Row]:
    """Check and time every contender of a GPU case; yield rows without the common columns."""
    data = gpu_contenders.data(case)
    expected = Reference(case, data)
    verdicts: dict[str, Row] = {}
    ready: list[Contender] = []
    for contender in gpu_contenders.of(case, data):
        if only and contender.name not in only:
            continue
        if isinstance(contender, Refused):
            yield {"contender": contender.name, "absent": contender.reason}
            continue
        try:
            result = check(case, contender, data, expected)
        except Exception as error:
            text = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {text[0] if text else ''}"
            yield {"contender": contender.name, "refused": reason[:300]}
            continue
        if not result.passed:
            yield {"contender": contender.name, "refused": result.reason}
            continue
        verdicts[contender.name] = {"error_of_bound": result.worst, "levels": contender.levels}
        ready.append(contender)
    del expected
    taken = Events()({c.name: c.call for c in ready if not c.host_timed})
    clocks = {c.name: host_clock(c.call) for c in ready if c.host_timed}
    ours = taken.get("numbasep")
    for name, (times, launch) in taken.items():
        row: Row = {
            "contender": name,
            "seconds": times.spread(),
            "launch_s": launch,
            "timer": "events" if ON_GPU else "host",
            "disturbed": 0.0,
            **verdicts[name],
        }
        if ours is not None and name != "numbasep":
            row["times_numbasep"] = float(np.median(times.seconds) / np.median(ours[0].seconds))
        yield row
    for name, times in clocks.items():
        row = {"contender": name, "seconds": times.spread(), "timer": "host", "disturbed": 0.0}
        if ours is not None:
            row["times_numbasep"] = float(np.median(times.seconds) / np.median(ours[0].seconds))
        yield row | verdicts[name]
    del ready, data
    if ON_GPU:
        torch.cuda.empty_cache()
        cupy = optional("cupy")
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()


def ceilings() -> Row:
    """Return the measured copy bandwidth (read plus written) and matrix rates."""
    elements = 2**29 if ON_GPU else 2**16  # 2 GiB of float32
    source = torch.ones(elements, dtype=torch.float32, device=DEVICE)
    target = torch.empty_like(source)
    events = Events(rounds=3, budget=0.3)
    times, _ = events({"copy": lambda a=target, b=source: a.copy_(b)})["copy"]
    row: Row = {"copy_gbps": 8 * elements / times.spread()["p50"] / 1e9}
    del source, target
    size = 8192 if ON_GPU else 64
    kinds = [("float16", torch.float16, False), ("bfloat16", torch.bfloat16, False)]
    kinds += [("float32", torch.float32, False), ("tf32", torch.float32, True)]
    for name, dtype, tf32 in kinds:
        gpu_contenders.allow_tf32(tf32)
        a = torch.randn(size, size, device=DEVICE).to(dtype)
        b = torch.randn(size, size, device=DEVICE).to(dtype)
        product = partial(torch.matmul, a, b)
        times, _ = events({"product": product})["product"]
        row[f"matrix_gflops_{name}"] = 2 * size**3 / times.spread()["p50"] / 1e9
    gpu_contenders.allow_tf32(False)
    row["matrix_gflops"] = row["matrix_gflops_float32"]
    return row


def overhead(calls: int = 500) -> Row:
    """Return the seconds from call to return on small device arrays, and from event to event."""
    events = Events(rounds=3)
    found: Row = {}
    small = Channelwise("small", "depthwise", (1, 8, 32, 32), (3, 3), 1, 1, 1, 8)
    for case in (Separable((64, 64), "float32", 5), small):
        data = gpu_contenders.data(case)
        for contender in gpu_contenders.of(case, data):
            if isinstance(contender, Refused) or contender.host_timed:
                continue
            if contender.name not in ("numbasep", "torch", "cupy"):
                continue
            contender.call()
            synchronise()
            taken = []
            for i in range(calls if ON_GPU else 5):
                start = time.perf_counter()
                contender.call()
                taken.append(time.perf_counter() - start)
                if i % 50 == 49:  # never fill the launch queue
                    synchronise()
            times, _ = events({"call": contender.call})["call"]
            found[f"{case.op} {contender.name}"] = {
                "host_s": float(np.median(taken)),
                "device_s": times.spread()["p50"],
            }
    return found
