"""What every channelwise call does with ``x`` and ``out``: on the host, and on a device."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbasep import arrays, devices
from numbasep.factorise import SeparableKernel
from numbasep.plan import channelwise as planner
from numbasep.plan import checks
from numbasep.plan.spatial import BACKENDS
from numbasep.views import Device

Array = NDArray[Any]

# Bytes of weights above which hashing all of them takes longer than comparing.
LARGE = 4096

# Names of further arrays of a call, and where they are.
Others = tuple[tuple[str, Device], ...]

# Launches a plan: takes the plan, an image, a result, and what else the backend's functions take.
Work = Callable[[Any, Any, Any, dict[str, Any]], None]

# Axes of an NCHW image as NHWC, and back; of three dimensions too.
LAST = {4: (0, 2, 3, 1), 3: (1, 2, 0)}


def as_kernels_read(x: Array) -> bool:
    """Whether kernels can read a host array where it is."""
    return bool(x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative)


class Call:
    """Shapes of a call.

    shape, layout, dtype: of ``x`` as the kernels see it. batched: whether it has an N axis.
    turned: NCHW arrays that stand channels last in memory, as torch has it; the kernels see NHWC.
    copied: whether ``x`` has to be copied before the kernels can read it.
    """

    backend: str
    more: dict[str, Any]
    copied: bool = False

    def __init__(self, shape: tuple[int, ...], dtype: str, layout: Any) -> None:
        self.dtype = planner.storage_of(dtype)
        self.layout = checks.choice("layout", layout, planner.LAYOUTS)
        self.batched = len(shape) == 4
        planner.layout_of(shape, self.layout)
        self.spatial = shape[-2:] if self.layout == "NCHW" else shape[-3:-1]
        self.turned = False
        self.shape = shape

    def turn(self) -> None:
        """See an NCHW image as NHWC."""
        self.turned, self.layout = True, "NHWC"
        self.shape = tuple(self.shape[axis] for axis in LAST[len(self.shape)])

    def shapes(self, channels: int, size: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the result's shape as the kernels write it, and as the caller sees it."""
        shape = (channels, *size) if self.layout == "NCHW" else (*size, channels)
        if self.batched:
            shape = (self.shape[0], *shape)
        return shape, (*shape[:-3], shape[-1], *shape[-3:-1]) if self.turned else shape

    def module(self, name: str) -> Any:
        return _module(self.backend, name)

    def image(self) -> Any:
        """Return ``x`` as the kernels take it, four dimensions."""
        raise NotImplementedError

    def place(self, channels: int, size: tuple[int, ...], dtype: str) -> Any:
        """Return the array that the kernels write; ``out`` itself where it can be."""
        raise NotImplementedError

    def finish(self) -> Any:
        """Return the result as the caller's kind of array."""
        raise NotImplementedError

    def compute(
        self, plan: Any, channels: int, size: tuple[int, ...], dtype: str, work: Work
    ) -> Any:
        """Return the result of images: ``work`` writes that of ``plan``, or of parts of it."""
        result = self.place(channels, size, dtype)
        if result.size:
            work(plan, self.image(), result, self.more)
        return self.finish()


@cache
def _module(backend: str, name: str) -> Any:
    return importlib.import_module(f"numbasep.{backend}.{name}")


def host_backend(backend: Any, stream: Any) -> str:
    """Return where a call between host arrays runs."""
    name = "cpu" if backend is None else checks.choice("backend", backend, BACKENDS)
    if stream is not None and name == "cpu":
        raise ValueError("stream: a stream arrived and the call runs on the CPU; leave it out")
    return name


class HostCall(Call):
    """A call between host arrays, on either backend."""

    def __init__(
        self, x: Any, out: Any, layout: Any, backend: Any, stream: Any, argument: str = "x"
    ) -> None:
        self.x, self.kind = arrays.adopt(argument, x)
        self.asked = out
        self.out: Array | None = None
        if out is not None:
            devices.refuse("out", out, "and x is in host memory; pass a host array")
            self.out, place_kind = arrays.adopt("out", out)
            arrays.check_kinds(self.kind.name, place_kind.name)
        self.backend = host_backend(backend, stream)
        self.stream = stream
        self.more = {"stream": stream} if self.backend == "cuda" else {}
        super().__init__(self.x.shape, checks.name_of(self.x.dtype), layout)
        if (
            self.layout == "NCHW"
            and not self.x.flags.c_contiguous
            and np.moveaxis(self.x, -3, -1).flags.c_contiguous
        ):
            self.x = np.moveaxis(self.x, -3, -1)
            self.turn()
        self.copied = not as_kernels_read(self.x)
        self.result: Array | None = None
        self.whole = False

    def apart(self, weight: Any) -> Any:
        """Return a weight that the result does not overwrite while it is read."""
        if self.out is None or weight is None or isinstance(weight, (SeparableKernel, list, tuple)):
            return weight
        try:
            array, _ = arrays.adopt("weight", weight)
        except TypeError:
            return weight  # its function refuses it, by its name
        return array.copy() if np.may_share_memory(array, self.out) else weight

    def image(self) -> Any:
        """Return ``x`` as the kernels take it, four dimensions."""
        return self._dense(self.x)

    def companion(self, argument: str, value: Any) -> Any:
        """Return another image in the layout of ``x``, as ``image`` does."""
        array, kind = arrays.adopt(argument, value)
        check_companion(argument, kind.name, self.kind.name, checks.name_of(array.dtype), self)
        if self.out is not None and np.may_share_memory(array, self.out):
            array = array.copy()
        return self._dense(np.moveaxis(array, -3, -1) if self.turned else array)

    def _dense(self, x: Array) -> Any:
        if not as_kernels_read(x):
            x = np.require(x, x.dtype.newbyteorder("="), ("C", "A"))
        x = x if self.batched else x[None]
        if self.backend == "cpu":
            return x
        return _module("cuda", "launch").to_device(x, self.stream)

    def place(self, channels: int, size: tuple[int, ...], dtype: str) -> Any:
        """Return the array that the kernels write; ``out`` itself where it can be."""
        self.result = self._place(channels, size, dtype)
        result = self.result if self.batched else self.result[None]
        if self.backend == "cpu" or not result.size:
            return result
        self.written = _module("cuda", "launch").empty(result.shape, result.dtype, self.stream)
        return self.written

    def _place(self, channels: int, size: tuple[int, ...], dtype: str) -> Array:
        shape, seen = self.shapes(channels, size)
        place = self.direct(seen, dtype)
        if place is not None:
            return place
        return np.empty(shape, self.x.dtype.newbyteorder("=") if dtype == self.dtype else dtype)

    def direct(self, seen: tuple[int, ...], dtype: str) -> Array | None:
        """Check ``out``; return it as the kernels see it, None where they cannot write into it."""
        if self.out is None:
            arrays.check_wrap(self.kind.name, dtype)
            return None
        arrays.check_out(self.out, seen, dtype)
        place = np.moveaxis(self.out, -3, -1) if self.turned else self.out
        usable = place.flags.c_contiguous and place.flags.aligned and place.dtype.isnative
        return place if usable and not np.may_share_memory(self.x, place) else None

    def compute(
        self, plan: Any, channels: int, size: tuple[int, ...], dtype: str, work: Work
    ) -> Any:
        """Through a device in bands where the images are large."""
        if self.backend == "cpu":
            return super().compute(plan, channels, size, dtype, work)
        from numbasep.cuda import bands, transfers
        from numbasep.plan import bands as bands_planner

        def launcher(part: Any, image: Any, out: Any, stream: Any) -> None:
            work(part, image, out, {"stream": stream})

        self.result = one = self._place(channels, size, dtype)
        if one.size:
            whole = bands_planner.whole(plan, self.spatial[0])
            large = bands_planner.large(whole)
            x = self.x
            if not large:
                x = np.require(x, x.dtype.newbyteorder("="), ("C", "A"))
            images, outs = (a if self.batched else a[None] for a in (x, one))
            chosen = bands_planner.choose(whole, transfers.free()) if large else None
            bands.run(whole, images, outs, launcher, self.stream, chosen)
        return self._given(one)

    def place_whole(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Return the array that the kernels write where the result is no image."""
        self.whole = True
        arrays.check_wrap(self.kind.name, dtype)
        made = np.empty(shape, self.x.dtype.newbyteorder("="))
        if self.out is not None:
            arrays.check_out(self.out, shape, dtype)
            flags = self.out.flags
            usable = flags.c_contiguous and flags.aligned and self.out.dtype.isnative
            if usable and not np.may_share_memory(self.x, self.out):
                made = self.out
        self.result = made
        if self.backend == "cpu":
            return made
        self.written = _module("cuda", "launch").empty(shape, made.dtype, self.stream)
        return self.written

    def finish(self) -> Any:
        """Return the result as the caller's kind of array."""
        one = self.result
        assert one is not None
        if self.backend == "cuda" and one.size:
            _module("cuda", "launch").to_host(
                self.written, one if self.batched or self.whole else one[None], self.stream
            )
        return self._given(one)

    def _given(self, one: Array) -> Any:
        """Return a result in host memory as the caller's kind of array."""
        if self.turned and not self.whole:
            one = np.moveaxis(one, -1, -3)
        if self.out is None:
            return self.kind.wrap(one)
        if not np.may_share_memory(self.out, one):
            np.copyto(self.out, one)
        return self.asked


class DeviceCall(Call):
    """A call between arrays on a device; what it makes and launches is its session's.

    session: None for a call that launches nothing.
    """

    backend = "cuda"

    def __init__(
        self, session: Any, x: Device, out: Device | None, layout: Any, others: Others = ()
    ) -> None:
        self.session, self.x, self.out = session, x, out
        self.others = dict(others)
        self.more = {} if session is None else {"stream": session.stream}
        super().__init__(x.shape, x.dtype, layout)
        if self.layout == "NCHW" and not x.dense:
            last = x.transposed(LAST[len(x.shape)])
            if last.dense:
                self.x = last
                self.turn()
        self.copied = not self.x.dense

    def image(self) -> Device:
        """Return ``x`` as the kernels take it, four dimensions, copied where it is not dense."""
        return self._dense(self.x)

    def companion(self, argument: str, value: Any) -> Device:
        """Return another image, of ``others``, in the layout of ``x``, as ``image`` does."""
        found = self.others[argument]
        check_companion(argument, "", "", found.dtype, self)
        return self._dense(found.transposed(LAST[len(found.shape)]) if self.turned else found)

    def _dense(self, x: Device) -> Device:
        from numbasep.cuda import copying

        if not x.dense:
            dense: Device = self.session.empty(x.shape, x.dtype)
            copying.copy(x, dense, self.session.stream)
            x = dense
        return x if self.batched else x.reshape((1, *x.shape))

    def place(self, channels: int, size: tuple[int, ...], dtype: str) -> Device:
        """Return the array that the kernels write; ``out`` itself where it can be."""
        shape, seen = self.shapes(channels, size)
        result = self.direct(seen, dtype)
        if result is None:
            order = tuple(range(len(seen)))
            if self.turned:
                order = LAST[len(seen)]
            result = self.session.empty(seen, dtype, order)
        self.result: Device = result
        return self._seen(result).reshape(shape if self.batched else (1, *shape))

    def direct(self, seen: tuple[int, ...], dtype: str) -> Device | None:
        """Check ``out``; return it, None where the kernels cannot write into it."""
        if self.out is None:
            return None
        arrays.check_out(self.out, seen, dtype)
        apart = self.x.overlaps(self.out) or not self._seen(self.out).dense
        return None if apart else self.out

    def place_whole(self, shape: tuple[int, ...], dtype: str) -> Device:
        """Return the array that the kernels write where the result is no image."""
        result = self.out
        if result is not None:
            arrays.check_out(result, shape, dtype)
        if result is None or not result.dense:
            result = self.session.empty(shape, dtype)
        self.result = result
        return self.result

    def _seen(self, result: Device) -> Device:
        """Return the result as the kernels see it."""
        return result.transposed(LAST[len(result.shape)]) if self.turned else result

    def finish(self) -> Device:
        """Return the array that holds the result."""
        from numbasep.cuda import copying

        if self.out is None or self.result is self.out:
            return self.result
        copying.copy(self.result, self.out, self.session.stream)
        return self.out


def planned(make: Any, *seen: Any, **options: Any) -> Any:
    """Return a plan, from the cache where there is one: to make it costs as much as a small image.

    The options' types are part of the key: 1, 1.0 and True are equal, and not equally right.
    """
    values = tuple(options.values())
    try:
        return _kept(make, seen, tuple(options), values, checks.types(values))
    except TypeError:
        # Something without a hash: a list, or an option that the checks refuse.
        return make(*seen, **options)


@lru_cache(maxsize=1024)
def _kept(make: Any, seen: Any, names: Any, values: Any, kinds: Any) -> Any:
    return make(*seen, **dict(zip(names, values, strict=True)))


def run(
    function: Callable[..., Any],
    x: Any,
    weights: tuple[Any, ...],
    options: tuple[Any, ...],
    layout: Any,
    out: Any,
    backend: Any,
    stream: Any,
    argument: str = "x",
    others: tuple[tuple[str, Any], ...] = (),
) -> Any:
    """Return ``function(call, *weights, *options)``, on a device as launches that are known.

    weights: arrays, kernels or None; options: everything else on which the result depends.
    argument: the name of ``x``. others: names and arrays that stand where ``x`` does.
    """
    kind = devices.kind_of(x)
    if kind is None:
        call = HostCall(x, out, layout, backend, stream, argument)
        weights = tuple([call.apart(one) for one in weights])
        return function(call, *[value for _, value in others], *weights, *options)
    from numbasep.cuda import session

    image, place, handle = devices.arrive(kind, x, out, backend, stream)
    beside = tuple([(name, _beside(kind, name, one, image, handle)) for name, one in others])
    given = [image, *[one for _, one in beside]]
    if place is not None:
        given.append(place)

    def work(current: Any) -> Device:
        call = DeviceCall(current, image, place, layout, beside)
        made: Device = function(call, *[one for _, one in beside], *weights, *options)
        return made

    key: Any
    try:
        key = (
            function,
            layout,
            options,
            checks.types(options),
            tuple([content(one) for one in weights]),
            place is not None and (place.writable, *[one.overlaps(place) for one in given[:-1]]),
        )
        hash(key)
    except TypeError:
        # Something without a hash: a list, or an argument that the checks refuse.
        key = None
    result = session.run(key, kind, handle, given, work)
    return out if place is not None else kind.wrap(result, handle)


def _beside(kind: Any, argument: str, value: Any, image: Device, stream: int) -> Device:
    """Return where an array is that has to be on the device of ``x``."""
    found = devices.kind_of(value)
    if found is None:
        arrays.kind_of(argument, value)
        raise TypeError(
            f"{argument}: an array in host memory arrived and x is on a device; pass one there"
        )
    if found.name != kind.name:
        raise TypeError(
            f"{argument}: an array of {found.name} arrived and x is one of {kind.name}; pass that"
        )
    array = devices.adopt(argument, value, kind, stream)
    if array.device != image.device:
        raise ValueError(
            f"{argument}: an array on device {array.device} arrived and x is on device "
            f"{image.device}; pass one there"
        )
    if array.stream is not None:
        from numbasep.cuda import launch

        launch.order(array.stream, stream)
    return array


def check_companion(argument: str, mine: str, library: str, dtype: str, call: Call) -> None:
    """Refuse an image that does not go with ``x``."""
    if mine != library:
        raise TypeError(f"{argument}: an array of {mine} arrived and x is one of {library}")
    if dtype != call.dtype:
        raise TypeError(
            f"{argument}: dtype {dtype} arrived and x is {call.dtype}; convert one of them"
        )


class Large:
    """The content of a large array: hashed in part, compared in full."""

    __slots__ = ("data", "hash", "kind")

    def __init__(self, dtype: Any, shape: tuple[int, ...], data: bytes) -> None:
        self.kind, self.data = (dtype, shape), data
        self.hash = hash((self.kind, data[:: len(data) // 256]))

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Large) and (self.kind, self.data) == (other.kind, other.data)


def content(weight: Any) -> Any:
    """Return what tells weights from others."""
    if weight is None or isinstance(weight, SeparableKernel):
        return weight
    if type(weight) is np.ndarray:
        data = weight.tobytes()
        found = weight.dtype, weight.shape, data
        return found if len(data) <= LARGE else Large(*found)
    if isinstance(weight, (list, tuple)):
        if not all(isinstance(one, SeparableKernel) for one in weight):
            raise TypeError("numbers are equal that are not equally right")
        return tuple(weight)
    array, _ = arrays.adopt("weight", weight)
    return content(np.asarray(array))
