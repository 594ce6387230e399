"""Coverage-guided fuzzing: ``factorise``, the arguments of ``separable_conv2d``, picture files.

Not part of the test suite: ``pip install atheris``, then, from the repository's root,

    python -m tests.fuzz factorise -max_total_time=600
    python -m tests.fuzz separable -max_total_time=600
    python -m tests.fuzz images -max_total_time=600 -rss_limit_mb=1500

An exception other than ValueError and TypeError, one whose message is not one line that names an
argument, a result that breaks its promise, and for pictures an exception that does not name the
file, a picture larger than allowed, and memory out of proportion are findings. They are kept as
tests in ``tests/test_fuzz_findings.py``. Pictures start from those of the tests.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-not-found]

# The modules that decide in Python; what Numba compiles must keep the bytecode it has.
with atheris.instrument_imports(
    include=[
        "numbasep.factorise", "numbasep.decompose", "numbasep.integer", "numbasep.remainder",
        "numbasep.taps", "numbasep.plan", "numbasep.spatial", "numbasep.arrays", "numbasep.views",
        "numbasep.cli", "PIL", "tifffile",
    ],
    exclude=["numbasep.boundary", "numbasep.cpu"],
):  # fmt: skip
    import ml_dtypes
    import numpy as np

    import numbasep
    from tests import oracle

    if "images" in sys.argv[:2]:
        for name in ("PIL.JpegImagePlugin", "PIL.MpoImagePlugin", "PIL.PngImagePlugin", "tifffile",
                     "numbasep.cli.images", "numbasep.cli.tiff_segments"):  # fmt: skip
            importlib.import_module(name)

DTYPES: tuple[Any, ...] = (
    "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", "g", "?",
    ml_dtypes.bfloat16, ">f4", ">i2", "S2", "O", "M8[s]",
)  # fmt: skip
WORDS = (
    "same",
    "full",
    "valid",
    "sme",
    "fill",
    "wrap",
    "symm",
    "nearest",
    "mirror",
    "cpu",
    "",
    "é",
)
ARGUMENTS = (
    "x", "kernel", "mode", "boundary", "fillvalue", "stride", "dilation", "axes", "dtype", "out",
    "backend", "stream", "rank", "tol", "columns", "rows",
)  # fmt: skip


class Data:
    """Values made of the fuzzer's bytes."""

    def __init__(self, data: bytes) -> None:
        self.f = atheris.FuzzedDataProvider(data)

    def one_of(self, options: Any) -> Any:
        return options[self.f.ConsumeIntInRange(0, len(options) - 1)]

    def array(self, most: int, ranks: tuple[int, ...]) -> Any:
        f = self.f
        ndim = self.one_of(ranks)
        shape = tuple(f.ConsumeIntInRange(0, most) for _ in range(ndim))
        dtype = np.dtype(self.one_of(DTYPES))
        count = int(np.prod(shape))
        way = f.ConsumeIntInRange(0, 3)
        if dtype.kind in "SOM":
            return np.zeros(shape, dtype)
        if way == 0 and dtype.kind != "b" and dtype.itemsize <= 8:
            raw = f.ConsumeBytes(count * dtype.itemsize).ljust(count * dtype.itemsize, b"\1")
            array = np.frombuffer(raw, dtype).reshape(shape)
        else:
            small = [f.ConsumeIntInRange(-3, 3) for _ in range(count)]
            with np.errstate(all="ignore"):
                array = np.array(small, np.int64).reshape(shape).astype(dtype)
                if way == 1 and ndim:
                    array = array * array.dtype.type(self.one_of((1, 2, 100)))
        if f.ConsumeBool() and ndim > 1:
            array = array[::-1].swapaxes(0, -1)
        return array

    def scalar(self) -> Any:
        f = self.f
        return (
            lambda: f.ConsumeIntInRange(-3, 5),
            lambda: f.ConsumeInt(9),
            f.ConsumeFloat,
            lambda: self.one_of(WORDS),
            lambda: None,
            f.ConsumeBool,
            lambda: np.float32(f.ConsumeIntInRange(-2, 2)),
            lambda: complex(f.ConsumeIntInRange(-2, 2), f.ConsumeIntInRange(-1, 1)),
            lambda: b"x",
        )[f.ConsumeIntInRange(0, 8)]()

    def value(self) -> Any:
        way = self.f.ConsumeIntInRange(0, 3)
        if way < 2:
            return self.scalar()
        count = self.f.ConsumeIntInRange(0, 4) if way == 3 else 2
        items = [self.scalar() for _ in range(count)]
        return items if self.f.ConsumeBool() else tuple(items)


def refused(error: Exception) -> None:
    message = str(error)
    assert "\n" not in message, message
    assert any(word in message for word in ARGUMENTS), message


def check_factors(kernel: Any, factors: Any, tol: Any) -> None:
    assert np.isfinite(factors.columns).all()
    assert np.isfinite(factors.rows).all()
    if factors.dtype.kind == "i":
        columns, rows, residual = (
            a.astype(object) for a in (factors.columns, factors.rows, factors.residual)
        )
        left = np.asarray(kernel).astype(object) - residual
        assert (np.swapaxes(columns, -1, -2) @ rows == left).all()
        return
    wide = np.clongdouble if factors.dtype.kind == "c" else np.longdouble
    sums = np.swapaxes(factors.columns.astype(wide), -1, -2) @ factors.rows.astype(wide)
    exact = np.asarray(kernel).astype(wide)
    off, total = np.abs(exact - sums).sum((-2, -1)), np.abs(exact).sum((-2, -1))
    # The longdouble sums are rounded too, by far less than a float64's unit.
    slack = 2.0**-60 * (1 + factors.growth) * total * max(factors.rank, 1) + 2.0**-1040
    assert (off <= factors.errors * total + slack).all(), (off, factors.errors * total)
    if tol is not None:
        assert (factors.errors <= tol).all()


def fuzz_factorise(data: bytes) -> None:
    d = Data(data)
    kernel = d.array(6, (2, 2, 2, 3, 1, 0, 4))
    options: dict[str, Any] = {}
    if d.f.ConsumeBool():
        options["rank"] = d.scalar()
    if d.f.ConsumeBool():
        tol = d.scalar()
        options["tol"] = abs(tol) if isinstance(tol, float) else tol
    try:
        factors = numbasep.factorise(kernel, **options)
    except (TypeError, ValueError) as error:
        refused(error)
        return
    tol = options.get("tol")
    check_factors(kernel, factors, None if tol is None else complex(tol).real)
    repr(factors)


OPTIONS = ("mode", "boundary", "fillvalue", "stride", "dilation", "axes", "dtype", "backend")


def fuzz_separable(data: bytes) -> None:
    d = Data(data)
    x = d.array(9, (2, 2, 2, 3, 1, 0, 4))
    if d.f.ConsumeBool():
        kernel: Any = d.array(5, (2, 2, 1, 3, 0))
    elif d.f.ConsumeBool():
        kernel = (d.array(5, (1, 1, 2)), d.array(5, (1, 1, 2)))
    else:
        kernel = d.value()
    options: dict[str, Any] = {}
    for name in OPTIONS:
        if d.f.ConsumeIntInRange(0, 3) == 0:
            if name in ("mode", "boundary") and d.f.ConsumeBool():
                options[name] = d.one_of(WORDS)
            elif name in ("stride", "dilation") and d.f.ConsumeBool():
                options[name] = d.f.ConsumeIntInRange(1, 4)
            elif name == "dtype" and d.f.ConsumeBool():
                options[name] = d.one_of(DTYPES)
            else:
                options[name] = d.value()
    out = None
    if d.f.ConsumeIntInRange(0, 3) == 0:
        out = d.array(9, (2, 3))
        if out.flags.writeable is False:
            out = out.copy()
        options["out"] = out
    before = None if out is None else out.tobytes()
    if isinstance(options.get("backend"), str) and options["backend"] == "cuda":
        return
    try:
        with np.errstate(all="ignore"):
            result = numbasep.separable_conv2d(x, kernel, **options)
    except (TypeError, ValueError) as error:
        refused(error)
        assert before is None or out.tobytes() == before, "out was written"
        return
    assert before is None or result is out
    compare(x, kernel, options, result)


def compare(x: Any, kernel: Any, options: dict[str, Any], result: Any) -> None:
    """Against scipy, where both are small integers."""
    if isinstance(kernel, tuple):
        if any(np.asarray(taps).ndim != 1 or np.asarray(taps).dtype.kind not in "iu"
               for taps in kernel):  # fmt: skip
            return
        kernel = np.outer(*(np.asarray(taps).astype(np.int64) for taps in kernel))
    kernel = np.asarray(kernel)
    if x.ndim != 2 or x.dtype.kind not in "iu" or kernel.dtype.kind not in "iu":
        return
    if options.get("axes") is not None or options.get("dtype") is not None or "out" in options:
        return
    if 0 in x.shape or max(np.abs(a.astype(object)).max() for a in (x, kernel)) > 2**16:
        return
    pair = {}
    for name in ("stride", "dilation"):
        value = options.get(name, 1)
        pair[name] = tuple(map(int, value)) if np.ndim(value) else (int(value), int(value))
    expected = oracle.convolve2d(
        x.astype(np.int64),
        kernel.astype(np.int64),
        mode=options.get("mode", "same"),
        boundary=options.get("boundary", "fill"),
        fillvalue=int(complex(options.get("fillvalue", 0)).real),
        **pair,
    )
    assert result.shape == expected.shape
    assert (result == expected).all()


MOST_PIXELS = 1 << 16


def seeds(folder: Path) -> None:
    """Write the pictures of the tests, sound and refused ones."""
    from tests.cli.test_image_refusals import REFUSED, SOUND

    made = {name: make() for name, (make, _) in REFUSED.items()} | SOUND
    for number, data in enumerate(made.values()):
        if len(data) < 20_000:
            (folder / f"seed-{number}").write_bytes(data)


def image_fuzzer(folder: Path) -> Any:
    from numbasep.cli import images

    path = folder / "picture"

    def fuzz_images(data: bytes) -> None:
        path.write_bytes(data)
        try:
            picture = images.read(path, page=None, max_pixels=MOST_PIXELS)
        except ValueError as error:
            message = str(error)
            assert message.startswith(f"{path}: "), message
            assert len(message) > len(str(path)) + 10, message
            return
        height, width, channels = picture.colour.shape
        assert 0 < height * width <= MOST_PIXELS
        assert channels in (1, 3)
        assert picture.alpha is None or picture.alpha.shape == (height, width, 1)
        # What was read can be written, and is the same then.
        kind = "TIFF" if picture.colour.dtype.name not in ("uint8", "uint16") else "PNG"
        path.write_bytes(images.encoded(picture, kind))
        again = images.read(path, page=None, max_pixels=MOST_PIXELS)
        assert again.stored().tobytes() == picture.stored().tobytes()

    return fuzz_images


def main() -> None:
    """Fuzz what the first argument names; the others are libFuzzer's."""
    name = sys.argv.pop(1)
    if name == "images":
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder) / "seeds"
            corpus.mkdir()
            seeds(corpus)
            atheris.Setup([*sys.argv, str(corpus)], image_fuzzer(Path(folder)))
            atheris.Fuzz()
        return
    target = {"factorise": fuzz_factorise, "separable": fuzz_separable}[name]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
