"""What calls of the channelwise functions would do; see ``explain``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from numbasep import calls, channelwise, devices
from numbasep.explanation import Explanation, Launch, Way, described
from numbasep.factorise import SeparableKernel
from numbasep.plan import bands, bound, cuda_depthwise, cuda_fused, cuda_pointwise, traffic
from numbasep.plan.channelwise import ITEMSIZE, DepthwisePlan, FusedPlan, PointwisePlan
from numbasep.views import Device


class ShapeCall(calls.Call):
    """A call whose ``x`` is known by its shape alone: C-ordered, of any library."""

    def __init__(
        self, shape: tuple[int, ...], dtype: str, out: Any, layout: Any, backend: Any, stream: Any
    ) -> None:
        if out is not None:
            raise ValueError(
                f"out: {type(out).__name__} arrived and x is a shape; pass x as an array too, or "
                "leave it out"
            )
        self.backend = calls.host_backend(backend, stream)
        super().__init__(shape, dtype, layout)

    def direct(self, seen: tuple[int, ...], dtype: str) -> Any:
        """Return that there is no ``out``."""
        return None


Call = ShapeCall | calls.HostCall | calls.DeviceCall


def _call(x: Any, out: Any, layout: Any, backend: Any, stream: Any) -> Call:
    found = described("x", x, "float32")
    if found is not None:
        return ShapeCall(*found, out, layout, backend, stream)
    kind = devices.kind_of(x)
    if kind is None:
        return calls.HostCall(x, out, layout, backend, stream)
    devices.check_backend(backend)
    image = devices.adopt("x", x, kind)
    place = None if out is None else devices.check_place(kind, out, image)
    return calls.DeviceCall(None, image, place, layout)


def _weight(argument: str, value: Any, dtype: str) -> Any:
    """Return a weight, or, for the shape of one, an array without elements of its own."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tuple)
    sizes = value[0] if pair and not isinstance(value[1], (tuple, list)) else value
    if not (isinstance(sizes, tuple) and sizes and all(isinstance(one, int) for one in sizes)):
        return value
    found = described(argument, value, dtype)
    assert found is not None
    shape, name = found
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401  NumPy learns the name
    return np.broadcast_to(np.zeros((), name), shape)


def _given(op: Callable[..., Any], x: Any, args: Any, options: Any) -> tuple[Call, dict[str, Any]]:
    """Return the call, and all other arguments of ``op`` by name."""
    bound_to = inspect.signature(op).bind(x, *args, **options)
    bound_to.apply_defaults()
    given = dict(bound_to.arguments)
    where = [given.pop(name) for name in ("x", "out", "layout", "backend", "stream")]
    call = _call(*where)
    for name in [name for name in given if name.endswith("weight")]:
        given[name] = _weight(name, given[name], call.dtype)
    return call, given


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call runs. image, out: addresses as far as known; 0 is aligned to anything."""

    backend: str
    machine: bound.Machine
    threads: int
    image: int
    out: int


def _place(call: Call, seen: tuple[int, ...], dtype: str) -> tuple[Place, list[str]]:
    """Check ``out``; return where the call runs, and notes on copies."""
    target = call.direct(seen, dtype)
    notes = []
    if call.turned:
        notes.append("x stands channels last in memory: so it is computed, and returned")
    if call.copied:
        notes.append("x is copied first: the kernels cannot read its memory layout in place")
    if not isinstance(call, ShapeCall) and call.out is not None and target is None:
        notes.append("the result is computed apart, then copied into out: its layout is another")
    if call.backend == "cpu":
        import numba

        from numbasep.cpu import simd

        threads = numba.get_num_threads()
        return Place("cpu", bound.cores(threads, simd.VECTOR), threads, 0, 0), notes
    image = out = 0
    if isinstance(call, calls.DeviceCall):
        image = 0 if call.copied else call.x.address
        out = target.address if isinstance(target, Device) else 0
    elif isinstance(call, calls.HostCall):
        notes.append("x is copied to the device, and the result back")
    return Place("cuda", bound.H200, 0, image, out), notes


def _depthwise_launch(plan: DepthwisePlan, place: Place, bias: bool) -> tuple[Launch, str]:
    """Return the launch of a depthwise convolution, and the reason for its kernel."""
    y, x = plan.y, plan.x
    planes, width, why = plan.batch * plan.channels, x.out, ""
    tile: Any
    if place.backend == "cpu":
        from numbasep.cpu import depthwise as cpu

        tile = cpu.choose(plan, place.threads)
        variant = "planes" if plan.layout == "NCHW" else "pixels"
        read = planes * traffic.spanned(y, tile.band) * traffic.spanned(x, x.out)
    else:
        aligned = cuda_depthwise.alignment(place.image), cuda_depthwise.alignment(place.out)
        tile = cuda_depthwise.choose(plan, aligned)
        if isinstance(tile, cuda_depthwise.Rows):
            variant = "rows"
            across = tile.threads * tile.shape.vector
            read = planes * plan.multiplier
            read *= traffic.phased(y, tile.height) * traffic.spanned(x, across)
        elif isinstance(tile, cuda_depthwise.Pixels):
            variant = "pixels"
            across = tile.shape.threads // tile.lanes * tile.shape.pixels
            read = planes * traffic.phased(y, tile.height) * traffic.spanned(x, across)
        else:
            variant, width = "tile", tile.width
            terms = -(-plan.rank // tile.terms)
            down = (
                terms * traffic.spanned(y, tile.height)
                if plan.rank
                else traffic.parted(y, tile.height, tile.terms)
            )
            read = planes * down * traffic.parted(x, width, tile.taps)
            why = (
                "the tile kernel takes any case; those in registers take up to 7 x 7 taps and "
                "strides up to 3, dense, in NHWC with one filter a channel"
            )
    outputs = plan.batch * plan.filters * y.out * x.out
    multiply_adds = outputs * y.taps * x.taps
    if plan.rank:
        variant += ", low-rank"
        # The column pass is done for the columns of the halo too.
        summed = plan.batch * plan.filters * y.out * traffic.spanned(x, width, beyond=True)
        multiply_adds = plan.rank * (summed * y.taps + outputs * x.taps)
    size, wide = ITEMSIZE[plan.storage], ITEMSIZE[plan.compute]
    written, taps = outputs * ITEMSIZE[plan.output], _taps(plan)
    least = planes * traffic.needed(y) * traffic.needed(x) + taps + (plan.filters if bias else 0)
    return _launch(
        place, "depthwise", variant, tile,
        read * size + written + (taps + plan.filters) * wide,
        least * size + written,
        {plan.compute: multiply_adds},
    ), why  # fmt: skip


def _taps(plan: DepthwisePlan) -> int:
    y, x = plan.y, plan.x
    return plan.filters * (plan.rank * (y.taps + x.taps) if plan.rank else y.taps * x.taps)


def _pointwise_launch(plan: PointwisePlan, place: Place, bias: bool) -> tuple[Launch, str]:
    """Return the launch of a pointwise convolution, and the reason for its kernel."""
    why = ""
    kind, wide = plan.compute, ITEMSIZE[plan.compute]
    pixels = plan.batch * plan.pixels
    if place.backend == "cpu":
        from numbasep.cpu import pointwise_tiles as cpu

        found = cpu.choose(plan, place.threads)
        variant, tile = "blocks", str(found)
        planar = plan.layout == "NCHW"
        images, each = (plan.batch, plan.pixels) if planar else (1, pixels)
        across = images * -(-each // found.pixels)
        down = -(-plan.outputs // found.share)
    else:
        chosen = cuda_pointwise.choose(
            plan, *cuda_pointwise.alignments(plan, place.image, place.out), _tensor_cores(plan)
        )
        tile = str(chosen)
        if isinstance(chosen, cuda_pointwise.MmaTile):
            kind, wide = chosen.operand, chosen.size
            variant = f"tensor cores, {kind}"
        else:
            variant = f"{kind} multiply-adds"
            if plan.storage == "float32":
                why = "tensor cores would round to tf32; pass precision='tf32' for them"
            elif plan.storage != plan.weights and plan.storage in cuda_fused.HALVES:
                why = f"{plan.weights} weights are not exact in {plan.storage} for tensor cores"
        across, down = -(-pixels // chosen.pixels), -(-plan.outputs // chosen.outputs)
    size, weights = ITEMSIZE[plan.storage], plan.outputs * plan.channels
    read, written = pixels * plan.channels, pixels * plan.outputs * ITEMSIZE[plan.output]
    return _launch(
        place, "pointwise", variant, tile,
        read * down * size + written + weights * across * wide
        + plan.outputs * ITEMSIZE[plan.compute],
        (read + weights + (plan.outputs if bias else 0)) * size + written,
        {kind: pixels * weights},
    ), why  # fmt: skip


def _tensor_cores(plan: PointwisePlan) -> bool:
    """Return whether the device has tensor cores; without a device, as an H200."""
    if cuda_pointwise.operand(plan) is None:
        return False
    from numbasep.cuda import launch

    return not launch.available()[0] or launch.tensor_cores()


def _fused_launch(plan: FusedPlan, place: Place, biases: int) -> Launch:
    first, second = plan.depthwise, plan.pointwise
    y, x = first.y, first.x
    planes, pixels = first.batch * first.channels, second.batch * second.pixels
    size, wide = ITEMSIZE[first.storage], ITEMSIZE[first.compute]
    outputs, taps = pixels * first.filters, _taps(first)
    weights = second.outputs * second.channels
    multiply_adds = outputs * y.taps * x.taps
    kinds = {first.compute: multiply_adds}
    if place.backend == "cpu":
        from numbasep.cpu import fused as cpu

        found = cpu.choose(plan, place.threads)
        variant, tile = "fused", str(found)
        read = traffic.spanned(y, found.band) * traffic.spanned(x, x.out)
        again, taps_again = first.batch * -(-y.out // found.band) * wide, wide
        kind = second.compute
        if first.rank:
            summed = first.batch * first.filters * y.out * traffic.spanned(x, x.out, beyond=True)
            kinds = {first.compute: first.rank * (summed * y.taps + outputs * x.taps)}
    else:
        chosen = cuda_fused.choose(first, second)
        assert chosen is not None
        chosen = cuda_fused.placed(first, chosen, place.image)
        kind = chosen.shape.multiply
        variant, tile = f"fused, {kind}", str(chosen)
        read = traffic.copied(y, chosen.height, 1)
        read *= traffic.copied(x, chosen.width, max(chosen.shape.unit, 1))
        tiles = first.batch * cuda_fused.tiles_of(first, chosen)
        # What stays in shared memory each block reads once.
        again = min(tiles, chosen.grid) if chosen.resident else tiles
        taps_again, again = again * wide, again * ITEMSIZE[second.storage]
        kind = first.compute if kind == "fma" else kind
    kinds[kind] = kinds.get(kind, 0) + pixels * weights
    written = pixels * second.outputs * ITEMSIZE[second.output]
    least = planes * traffic.needed(y) * traffic.needed(x) + taps + weights + biases
    moved = planes * read * size + written + weights * again
    moved += (taps + first.filters) * taps_again + second.outputs * wide
    return _launch(
        place, "depthwise and pointwise", variant, tile, moved, least * size + written, kinds
    )


def _launch(
    place: Place, function: str, variant: str, tile: Any, moved: int, least: int,
    multiply_adds: dict[str, int],
) -> Launch:  # fmt: skip
    binds, seconds = bound.bound(place.machine, least, multiply_adds)
    total = sum(multiply_adds.values())
    return Launch(function, variant, str(tile), moved, least, total, binds, seconds)


def _explained(
    function: str, place: Place, output: str, seen: tuple[int, ...], ways: tuple[Way, ...],
    dense: int, rank: int, error: float, notes: list[str],
) -> Explanation:  # fmt: skip
    """ways: none where the result is empty."""
    launches = next((way.launches for way in ways if way.chosen), ())
    return Explanation(
        function=function,
        backend=place.backend,
        variant=", then ".join(one.variant for one in launches) or "none",
        tile=", then ".join(one.tile for one in launches) or "none",
        launches=len(launches),
        rank=rank,
        shape=seen,
        dtype=output,
        bytes_moved=sum(one.bytes_moved for one in launches),
        bytes_least=sum(one.bytes_least for one in launches),
        multiply_adds=sum(one.multiply_adds for one in launches),
        multiply_adds_dense=dense,
        promised_error=error,
        notes=tuple(note for note in notes if note),
        ways=ways,
    )


def _error(weight: Any) -> float:
    """Return what the factors of a weight promise; none of those that are dense."""
    kernels = weight if isinstance(weight, (list, tuple)) else (weight,)
    return max((one.error for one in kernels if isinstance(one, SeparableKernel)), default=0.0)


def _bands(call: Call, plan: bands.Plan) -> list[str]:
    """Return what is to be said of host arrays that go through a device."""
    if call.backend == "cpu" or isinstance(call, calls.DeviceCall):
        return []
    return bands.notes(bands.whole(plan, call.spatial[0]))


def depthwise(x: Any, *args: Any, **options: Any) -> Explanation:
    """Explain a call of ``depthwise_conv2d``."""
    call, given = _given(channelwise.depthwise_conv2d, x, args, options)
    plan, taps, _ = channelwise.plan_depthwise(call, **given)
    _, seen = call.shapes(plan.filters, (plan.y.out, plan.x.out))
    place, notes = _place(call, seen, plan.output)
    ways: tuple[Way, ...] = ()
    if 0 not in seen:
        launch, why = _depthwise_launch(plan, place, given["bias"] is not None)
        ways = (Way("one launch", True, (launch,), place.machine.name, why),)
        notes += [why, *_bands(call, plan)]
    dense = prod(seen) * plan.y.taps * plan.x.taps
    return _explained(
        "depthwise_conv2d", place, plan.output, seen, ways, dense, taps.rank,
        _error(given["weight"]), notes,
    )  # fmt: skip


def pointwise(x: Any, *args: Any, **options: Any) -> Explanation:
    """Explain a call of ``pointwise_conv2d``."""
    call, given = _given(channelwise.pointwise_conv2d, x, args, options)
    plan, *_ = channelwise.plan_pointwise(call, **given)
    _, seen = call.shapes(plan.outputs, call.spatial)
    place, notes = _place(call, seen, plan.output)
    ways: tuple[Way, ...] = ()
    if 0 not in seen:
        launch, why = _pointwise_launch(plan, place, given["bias"] is not None)
        ways = (Way("one launch", True, (launch,), place.machine.name, why),)
        notes += [why, *_bands(call, plan)]
    dense = prod(seen) * plan.channels
    return _explained("pointwise_conv2d", place, plan.output, seen, ways, dense, 0, 0.0, notes)


def separable(x: Any, *args: Any, **options: Any) -> Explanation:
    """Explain a call of ``depthwise_separable_conv2d``: as it is planned, and the other way."""
    call, given = _given(channelwise.depthwise_separable_conv2d, x, args, options)
    both = channelwise.plan_separable(call, **given)
    first, second = both.first, both.second
    _, seen = call.shapes(second.outputs, (first.y.out, first.x.out))
    place, notes = _place(call, seen, second.output)
    biased = given["depthwise_bias"] is not None, given["pointwise_bias"] is not None
    ways: tuple[Way, ...] = ()
    if 0 not in seen:
        ways, reasons = _ways(both, place, biased)
        plan = both.planned(place.backend)
        notes += [*reasons, *_bands(call, plan)]
    dense = prod(seen) * first.channels * first.y.taps * first.x.taps
    return _explained(
        "depthwise_separable_conv2d", place, second.output, seen, ways, dense, both.taps.rank,
        _error(given["depthwise_weight"]), notes,
    )  # fmt: skip


def _ways(
    both: channelwise.Both, place: Place, biased: tuple[bool, bool]
) -> tuple[tuple[Way, ...], list[str]]:
    """Return one launch and two, and reasons for what is chosen."""
    first, second = both.first, both.second
    plan = both.planned(place.backend)
    one = plan if plan.fused else both.planned(place.backend, fuse=True)
    biases = biased[0] * first.filters + biased[1] * second.outputs
    fused = (_fused_launch(one, place, biases),) if one.fused else ()
    # Between them is a fresh array.
    filtered, reason = _depthwise_launch(first, replace(place, out=0), biased[0])
    mixed, other = _pointwise_launch(second, replace(place, image=0), biased[1])
    name = place.machine.name
    ways = (
        Way("one launch", plan.fused, fused, name, one.why),
        Way("two launches", not plan.fused, (filtered, mixed), name, plan.why),
    )
    return ways, [plan.why] if plan.fused else [plan.why, reason, other]
