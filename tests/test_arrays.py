"""Arrays in, the same kind out: host libraries, and arrays on a device, where they are."""

from __future__ import annotations

import array as standard
import sys
from types import SimpleNamespace
from typing import Any

import array_api_strict
import jax
import jax.numpy
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import numbasep
from numbasep import devices, spatial
from numbasep.cuda import launch, session
from tests import devices as doubles
from tests.conftest import examples
from tests.devices import CudaTensor, CupyArray, Exposed, Library, exposed
from tests.test_spatial import COMPLEXES, FLOATS, INTEGERS, Case, cases, of, poisoned

Array = NDArray[Any]
IMAGE = np.arange(30, dtype=np.float32).reshape(5, 6)
TAPS = np.array([1.0, 2.0, -1.0]), np.array([1.0, 3.0])
EXPECTED = numbasep.separable_conv2d(IMAGE, TAPS, backend="cpu")


@pytest.fixture(scope="module")
def libraries(cuda_runs_on: str) -> list[Library]:
    return doubles.libraries(cuda_runs_on)


@pytest.fixture(autouse=True)
def _stand_ins(cuda_runs_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if cuda_runs_on == "simulator":
        doubles.stand_in(monkeypatch)


def whole(case: Case) -> Case:
    """A case whose sums are small integers, exact in every dtype."""
    values = np.random.default_rng(case.seed).integers(0, 3, case.image.shape)
    image = np.empty_like(case.image, of(case.image.dtype.name))
    image[...] = values
    case.image = image
    rng = np.random.default_rng(case.seed + 1)
    case.columns = rng.integers(-1, 2, case.columns.shape)
    case.rows = rng.integers(-1, 2, case.rows.shape)
    if "fillvalue" in case.options:
        case.options["fillvalue"] = 1
    return case


def bits(array: Array) -> Array:
    return np.ascontiguousarray(array).astype(np.complex128)


def test_device_arrays_give_what_host_arrays_give(libraries: list[Library]) -> None:
    """Every kind, dtype, layout, option and ``out``; the second call repeats launches."""
    dtypes = INTEGERS[:6] + FLOATS + COMPLEXES

    @settings(max_examples=examples("cuda"))
    @given(library=st.sampled_from(libraries), case=cases("cuda", dtypes, "i"))
    def check(library: Library, case: Case) -> None:
        if case.image.dtype.name == "bfloat16" and library.name not in ("cupy", "torch"):
            # Type strings have no name for it, nor has NumPy's DLPack.
            case.image = case.image.astype(np.float16)
        case = whole(case)
        for turn in range(2):
            image = doubles.aligned(case.image)
            if turn:
                image.flags.writeable = True
                image[...] = np.flip(case.image)
                image.flags.writeable = case.image.flags.writeable
            expected = numbasep.separable_conv2d(
                np.ascontiguousarray(image), case.kernel(), axes=case.axes, backend="cpu",
                **case.options,
            )  # fmt: skip
            x = library.put(image)
            place = poisoned(expected.shape, expected.dtype, case.out)
            out = None if place is None else library.put(doubles.aligned(place))
            result = numbasep.separable_conv2d(
                x, case.kernel(), axes=case.axes, out=out, **case.options
            )
            assert library.is_own(result) if out is None else result is out
            found = library.get(result)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(bits(found), bits(expected))
            np.testing.assert_array_equal(bits(library.get(x)), bits(image))

    check()


@pytest.mark.parametrize("overlap", ["same", "shifted", "reversed"])
def test_out_may_overlap_x(libraries: list[Library], cuda_runs_on: str, overlap: str) -> None:
    """Views of one memory: computed apart, then copied."""
    for turn in range(2):
        memory = np.random.default_rng(turn).integers(-100, 100, (13, 11)).astype(np.int32)
        expected = numbasep.separable_conv2d(memory[:-1], ([1, 2, -1], [3, 1]), backend="cpu")
        base = doubles._exposed_on_device(memory) if cuda_runs_on == "device" else exposed(memory)
        address, row = base.interface["data"][0], memory.strides[0]
        x = view(base, address, (12, 11), memory.strides)
        out = {
            "same": x,
            "shifted": view(base, address + row, (12, 11), memory.strides),
            "reversed": view(base, address + 12 * row, (12, 11), (-row, memory.strides[1])),
        }[overlap]
        numbasep.separable_conv2d(x, ([1, 2, -1], [3, 1]), out=out, dtype="int32")
        written = doubles._from_device(base) if cuda_runs_on == "device" else memory
        found = {"same": written[:-1], "shifted": written[1:], "reversed": written[:0:-1]}[overlap]
        np.testing.assert_array_equal(found, expected)


def view(base: Exposed, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Exposed:
    return Exposed(base.interface, base.owner, shape=shape, strides=strides, data=(address, False))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_arrays(libraries: list[Library], shape: tuple[int, ...]) -> None:
    for library in libraries:
        result = numbasep.separable_conv2d(library.put(np.zeros(shape, "f4")), TAPS)
        assert tuple(library.get(result).shape) == shape


def test_zero_kernel_writes_zeros(libraries: list[Library]) -> None:
    for library in libraries:
        for dtype in ("float32", "int16", "complex128"):
            x = library.put(np.full((3, 4), 7, dtype))
            result = numbasep.separable_conv2d(x, np.zeros((3, 3)), dtype=dtype)
            np.testing.assert_array_equal(library.get(result), np.zeros((3, 4)))


def test_booleans_count(libraries: list[Library]) -> None:
    image = IMAGE % 3 == 0
    expected = numbasep.separable_conv2d(image, ([1, 1], [1, 1]), backend="cpu")
    for library in libraries:
        result = numbasep.separable_conv2d(library.put(image), ([1, 1], [1, 1]))
        np.testing.assert_array_equal(library.get(result), expected)


# Repeated calls ----------------------------------------------------------------------------------


def test_a_repeated_call_plans_nothing(
    libraries: list[Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    session.calls.clear()
    images = doubles.aligned(IMAGE), doubles.aligned(IMAGE + 1)
    expected = numbasep.separable_conv2d(IMAGE + 1, TAPS, backend="cpu")
    for library in libraries:
        numbasep.separable_conv2d(library.put(images[0]), TAPS)

    def refused(*arguments: Any, **options: Any) -> None:
        raise AssertionError("planned again")

    monkeypatch.setattr(spatial, "prepare", refused)
    for library in libraries:
        other = numbasep.separable_conv2d(library.put(images[1]), (TAPS[0].copy(), TAPS[1]))
        np.testing.assert_array_equal(library.get(other), expected)
    image = images[0]
    changed: list[tuple[Array, Any, dict[str, Any]]] = [
        (image[:4], TAPS, {}),
        (doubles.aligned(image.astype(np.float64)), TAPS, {}),
        (image, (TAPS[0] + 1, TAPS[1]), {}),
        (image, (TAPS[0].astype(int), TAPS[1]), {}),
        (image, TAPS, {"boundary": "wrap"}),
        (image, TAPS, {"stride": 2}),
        (image, TAPS, {"stride": 1.0}),
        (image, TAPS, {"stride": True}),
        (image, TAPS, {"dilation": (1.0, 1)}),
        (image, TAPS, {"dtype": "float64"}),
        (image, TAPS, {"stream": 2}),
    ]
    for library in libraries:
        for image, kernel, options in changed:
            with pytest.raises(AssertionError, match="planned again"):
                numbasep.separable_conv2d(library.put(image), kernel, **options)


def test_known_calls_are_bounded() -> None:
    calls = session.Calls(capacity=2)
    recording = session.Recording((), (), (), 0, ())
    for key in range(5):
        calls.put(key, recording)
    assert [key for key in range(5) if calls.get(key)] == [3, 4]
    # Three of 40 bytes: two fit.
    calls = session.Calls(size=100)
    kept = launch.View(0, (10,), (4,), None, 4)
    recording = session.Recording((), (), (), 0, (kept,))
    for key in (0, 1, 1, 2):
        calls.put(key, recording)
    assert [key for key in range(3) if calls.get(key)] == [1, 2]
    calls.clear()
    calls.put(0, session.Recording((), (), (), 0, (kept, kept, kept)))
    assert calls.get(0) is None


def test_launches_into_unknown_memory_are_not_repeated() -> None:
    """A pointer into neither an array of the call nor one that is kept."""
    image = devices.INTERFACE.describe(exposed(IMAGE), None)
    other = np.zeros(30, np.float32)
    kernel = launch.Kernel(_nothing, [launch.types.CPointer(launch.types.float32)], 1)
    for memory, repeatable in ((IMAGE, True), (other, False)):
        with session.Session(devices.INTERFACE, 0, 0, [image]) as made:
            pointer: Any = memory.ctypes.data
            if launch.SIMULATOR:
                pointer = SimpleNamespace(address=pointer)
            made.launched(kernel, (None, None), [pointer])
        assert (made.recording(image) is not None) == repeatable


def _nothing(pointer: Any) -> None:
    pass


def test_a_failed_call_leaves_the_next_one_right(libraries: list[Library]) -> None:
    for library in libraries:
        x = library.put(IMAGE)
        with pytest.raises(ValueError, match="mode"):
            numbasep.separable_conv2d(x, TAPS, mode="sme")
        result = numbasep.separable_conv2d(x, TAPS)
        np.testing.assert_array_equal(library.get(result), EXPECTED)


def test_explain_takes_device_arrays(libraries: list[Library]) -> None:
    for library in libraries:
        found = numbasep.explain(numbasep.separable_conv2d, library.put(IMAGE), TAPS)
        assert found.backend == "cuda"
        assert not any("copied first" in note for note in found.notes)
    spread = np.zeros((10, 12), np.float32)[::2, ::2]
    found = numbasep.explain(numbasep.separable_conv2d, exposed(spread), TAPS, out=exposed(spread))
    assert [note.split(":")[0] for note in found.notes[:2]] == [
        "x is copied first",
        "the result is computed apart, then copied into out",
    ]


# Streams -----------------------------------------------------------------------------------------


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[tuple[int, int]]]:
    """Streams of launches, and pairs of streams of which the second waits for the first."""
    launched: list[int] = []
    pairs: list[tuple[int, int]] = []
    start = launch.start

    def noted(prepared: Any, stream: int, arguments: Any) -> None:
        launched.append(stream)
        start(prepared, 0, arguments)

    def order(first: int, then: int) -> None:
        if first != then:
            pairs.append((first, then))

    monkeypatch.setattr(launch, "start", noted)
    monkeypatch.setattr(launch, "order", order)
    return launched, pairs


class Stream:
    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 21


@pytest.mark.parametrize(
    ("stream", "handle"),
    [(None, None), (1, 1), (2, 2), (20, 20), (Stream(), 21), (SimpleNamespace(ptr=22), 22),
     (SimpleNamespace(cuda_stream=23), 23), (SimpleNamespace(handle=24), 24)],
)  # fmt: skip
def test_work_goes_to_the_callers_stream(
    ordered: tuple[list[int], list[tuple[int, int]]], stream: Any, handle: int | None
) -> None:
    launched, pairs = ordered
    arrays: list[tuple[Any, int | None]] = [
        (exposed(IMAGE), None),
        (exposed(IMAGE, stream=9), 9),
        (CupyArray(IMAGE), doubles.CUPY_STREAM),
        (CudaTensor(torch.from_numpy(IMAGE)), doubles.TORCH_STREAM),
    ]
    for x, own in arrays:
        for _ in range(2):
            launched.clear()
            pairs.clear()
            numbasep.separable_conv2d(x, TAPS, stream=stream)
            asked = (own or 0) if handle is None else handle
            assert launched == [asked]
            # An array that names no stream has nothing pending.
            assert pairs == ([] if own in (None, asked) else [(own, asked)])


@pytest.mark.parametrize(("stream", "asked"), [(None, 1), (0, 1), (2, 2), (20, 20)])
def test_dlpack_is_told_our_stream(
    ordered: tuple[list[int], list[tuple[int, int]]], stream: Any, asked: int
) -> None:
    """1 is its word for the legacy default stream."""
    launched, _ = ordered
    x = doubles.Exchanged(IMAGE)
    numbasep.separable_conv2d(x, TAPS, stream=stream)
    assert x.streams == [asked]
    assert launched == [stream or 0]


def test_work_waits_for_the_stream_of_out(
    ordered: tuple[list[int], list[tuple[int, int]]],
) -> None:
    launched, pairs = ordered
    out = np.empty_like(IMAGE)
    numbasep.separable_conv2d(exposed(IMAGE, stream=9), TAPS, out=exposed(out, stream=8))
    assert launched == [9]
    assert pairs == [(8, 9)]
    np.testing.assert_array_equal(out, EXPECTED)


# Refusals ----------------------------------------------------------------------------------------


def masked() -> Exposed:
    return exposed(IMAGE, mask=exposed(IMAGE > 3))


def read_only() -> Exposed:
    return exposed(IMAGE, data=(IMAGE.ctypes.data, True))


def gradient() -> CudaTensor:
    return CudaTensor(torch.from_numpy(IMAGE).clone().requires_grad_())


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "x masked": (masked, {}, TypeError, ("x:", "mask", "fill")),
    "x gradient": (gradient, {}, TypeError, ("x:", "torch", "gradient", ".detach()")),
    "x sparse": (
        lambda: CudaTensor(torch.eye(3).to_sparse()), {}, TypeError,
        ("x:", "sparse", ".to_dense()"),
    ),
    "x in another byte order": (
        lambda: exposed(IMAGE.astype(">f4")), {}, TypeError, ("x:", ">f4", "convert"),
    ),
    "x of no dtype of ours": (
        lambda: exposed(np.zeros((2, 2), "V3")), {}, TypeError, ("x:", "convert"),
    ),
    "x flat": (lambda: exposed(IMAGE[0]), {}, ValueError, ("x:", "(6,)", "two dimensions")),
    "x past 64 bits": (
        lambda: exposed(np.ones((3, 3), np.int64)), {}, ValueError,
        ("x:", "int64", "not looked at", "float64"),
    ),
    "backend cpu": (lambda: exposed(IMAGE), {"backend": "cpu"}, ValueError, ("backend:", "'cpu'")),
    "backend unknown": (
        lambda: exposed(IMAGE), {"backend": "gpu"}, ValueError, ("backend:", "'gpu'"),
    ),
    "stream string": (lambda: exposed(IMAGE), {"stream": "s"}, TypeError, ("stream:", "'s'")),
    "stream negative": (lambda: exposed(IMAGE), {"stream": -1}, TypeError, ("stream:", "-1")),
    "stream bool": (lambda: exposed(IMAGE), {"stream": True}, TypeError, ("stream:", "True")),
    "out on the host": (
        lambda: exposed(IMAGE), {"out": IMAGE.copy()}, TypeError, ("out:", "host", "x's device"),
    ),
    "out list": (lambda: exposed(IMAGE), {"out": [1]}, TypeError, ("out:", "list")),
    "out of another library": (
        lambda: exposed(IMAGE), {"out": CupyArray(IMAGE.copy())}, TypeError,
        ("out:", "cupy", "numba"),
    ),
    "out on another device": (
        lambda: CupyArray(IMAGE), {"out": CupyArray(IMAGE.copy(), device=1)}, ValueError,
        ("out:", "device 1", "device 0"),
    ),
    "out read-only": (
        lambda: exposed(IMAGE.copy()), {"out": read_only()}, ValueError, ("out:", "read-only"),
    ),
    "out shape": (
        lambda: exposed(IMAGE), {"out": exposed(IMAGE[1:].copy())}, ValueError,
        ("out:", "(4, 6)", "(5, 6)"),
    ),
    "out dtype": (
        lambda: exposed(IMAGE), {"out": exposed(IMAGE.astype("f8")), "dtype": "f4"}, ValueError,
        ("out:", "float64"),
    ),
    "out broadcast": (
        lambda: exposed(IMAGE),
        {"out": exposed(np.lib.stride_tricks.as_strided(np.empty(6, "f4"), (5, 6), (0, 4)))},
        ValueError, ("out:", "share memory"),
    ),
    "x on the host, out on a device": (
        lambda: IMAGE, {"out": exposed(IMAGE.copy())}, TypeError, ("out:", "device", "host array"),
    ),
    "kernel on a device": (
        lambda: IMAGE, {"kernel": exposed(np.ones((3, 3)))}, TypeError,
        ("kernel:", "device", "host array"),
    ),
    "taps on a device": (
        lambda: exposed(IMAGE), {"kernel": (TAPS[0], CupyArray(TAPS[1]))}, TypeError,
        ("kernel:", "cupy", "host array"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, options, exception, parts = REFUSED[name]
    options = dict(options)
    kernel = options.pop("kernel", ([1, 2, 1], [1, 3]) if "64" in name else TAPS)
    with pytest.raises(exception) as caught:
        numbasep.separable_conv2d(make(), kernel, **options)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message
    assert type(caught.value) is exception


# Host arrays -------------------------------------------------------------------------------------

HOST: dict[str, tuple[Any, Any]] = {
    "numpy": (np.asarray, np.ndarray),
    "numpy subclass": (lambda a: a.view(type("Sub", (np.ndarray,), {})), np.ndarray),
    "torch": (torch.from_numpy, torch.Tensor),
    "jax": (jax.numpy.asarray, jax.Array),
    "array API": (array_api_strict.asarray, type(array_api_strict.asarray(0))),
}


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "complex64"])
def test_host_arrays_give_their_own_kind(name: str, dtype: str) -> None:
    make, kind = HOST[name]
    image = IMAGE.astype(dtype)
    result = numbasep.separable_conv2d(make(image), TAPS)
    assert isinstance(result, kind)
    expected = numbasep.separable_conv2d(image, TAPS)
    np.testing.assert_array_equal(np.from_dlpack(result) if name != "numpy" else result, expected)


def test_bfloat16_tensors_on_the_host() -> None:
    tensor = torch.arange(30).reshape(5, 6).to(torch.bfloat16)
    result = numbasep.separable_conv2d(tensor, TAPS)
    assert result.dtype == torch.bfloat16
    expected = numbasep.separable_conv2d(IMAGE.astype(ml_dtypes.bfloat16), TAPS)
    np.testing.assert_array_equal(result.to(torch.float32).numpy(), expected.astype(np.float32))


def test_torch_writes_into_out() -> None:
    out = torch.full((5, 6), torch.nan)
    assert numbasep.separable_conv2d(torch.from_numpy(IMAGE), TAPS, out=out) is out
    np.testing.assert_array_equal(out.numpy(), EXPECTED)


def test_conjugated_tensors() -> None:
    tensor = torch.from_numpy(IMAGE + 1j * IMAGE[::-1]).conj()
    result = numbasep.separable_conv2d(tensor, TAPS)
    expected = numbasep.separable_conv2d(tensor.resolve_conj().numpy(), TAPS)
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize(
    "value", [memoryview(IMAGE), standard.array("f", [1, 2]), b"12", IMAGE.tolist()]
)
def test_what_is_no_array_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"x: expected an array, got \w+; pass numpy.asarray"):
        numbasep.separable_conv2d(value, TAPS)


def test_traced_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match=r"x: jax: a traced array .* outside jax.jit"):
        jax.jit(lambda x: numbasep.separable_conv2d(x, TAPS))(jax.numpy.asarray(IMAGE))


def test_jax_narrows_nothing_silently() -> None:
    with jax.enable_x64(True):
        # Known now, and yet checked when JAX would narrow the next one.
        assert numbasep.separable_conv2d(jax.numpy.asarray(IMAGE), TAPS, dtype="float64").dtype == (
            "float64"
        )
    with pytest.raises(TypeError, match=r"x: the result is float64, which JAX narrows"):
        numbasep.separable_conv2d(jax.numpy.asarray(IMAGE), TAPS, dtype="float64")


def test_out_of_another_library_is_refused() -> None:
    with pytest.raises(TypeError, match="out: an array of numpy arrived and x is one of torch"):
        numbasep.separable_conv2d(torch.from_numpy(IMAGE), TAPS, out=IMAGE.copy())


def test_no_library_is_imported() -> None:
    """A fresh interpreter that filters a NumPy array has loaded none of them."""
    import subprocess

    code = (
        "import sys, numpy, numbasep; numbasep.separable_conv2d(numpy.zeros((3, 3), 'f4'), "
        "([1.0], [1.0])); assert not {'torch', 'jax', 'cupy', 'dask', 'cuda.core'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
