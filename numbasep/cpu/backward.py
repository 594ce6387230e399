"""The backward pass of a layer on the CPU as one job: all gradients that are asked for.

Each step is that of the gradient's own function, so that the bits are those of the functions one
after the other. What the forward did not keep is computed again, in memory that the thread keeps
from call to call.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from numbasep import boundary as boundaries
from numbasep.cpu import (
    channel_sums,
    depthwise,
    depthwise_gradient,
    jobs,
    pointwise,
    pointwise_gradient,
    pointwise_tiles,
    pool,
    slopes,
    turning,
)  # fmt: skip
from numbasep.cpu.channels import BIAS
from numbasep.plan import channelwise as planner
from numbasep.plan.channelwise import DepthwisePlan, PointwisePlan
from numbasep.plan.gradients import BY_RESULT

# The arrays of the jobs, in turn; those that a job does not need may be anything.
DEPTHWISE = "image", "grad", "taps", "bias", "result", "to_image", "to_taps", "to_bias"
SEPARABLE = (
    "image", "grad", "taps", "bias", "matrix", "second_bias", "result",
    "to_image", "to_taps", "to_bias", "to_matrix", "to_second_bias",
)  # fmt: skip


@dataclass(slots=True)
class _Job:
    """The steps of a job, and the bytes of what is between them.

    Steps that do the same to different arrays have the same memory for it, in turn.
    """

    threads: int
    steps: list[jobs.Step] = field(default_factory=list)
    between: dict[str, int] = field(default_factory=dict)

    def add(self, steps: list[jobs.Step], between: dict[str, int], **names: str) -> None:
        """Add steps, with these names for their arrays."""
        self.steps += jobs.renamed(steps, **names)
        for name, size in between.items():
            name = names.get(name, name)
            self.between[name] = max(size, self.between.get(name, 0))

    def convolve(self, plan: DepthwisePlan, out: str, *, biased: bool) -> None:
        """Add the depthwise convolution itself."""
        one = depthwise.step(plan, depthwise.choose(plan, self.threads))
        if not biased:
            one = jobs.with_zeros(one, BIAS, plan.filters, plan.compute)
        self.add([one], {out: bytes_of(plan)}, columns="taps", rows="taps", out=out)

    def slope(self, activation: str, of: str, grad: str, out: str, compute: str, n: int) -> None:
        """Add what an activation makes of a gradient of n elements."""
        one = slopes.step(activation, compute, n, self.threads)
        size = n * np.dtype(compute).itemsize
        self.add([one], {out: size}, grad=grad, of=of, out=out)

    def through(self, plan: DepthwisePlan, grad: str, asked: tuple[bool, bool, bool]) -> bool:
        """Add the gradients to image, taps and bias; return whether all of them have steps."""
        plan, threads = replace(plan, activation="none"), self.threads
        if asked[0]:
            found = depthwise_gradient.input_steps(plan, threads)
            if found is None:
                return False
            self.add(*found, grad=grad, weight="taps", out="to_image")
        if asked[1]:
            self.add(*depthwise_gradient.weight_steps(plan, threads), grad=grad, out="to_taps")
        if asked[2]:
            self.add(*channel_sums.steps(plan, threads), grad=grad, out="to_bias")
        return True

    def made(self, given: tuple[str, ...]) -> jobs.Job | None:
        """Return the job; None where it needs more memory than a thread keeps."""
        if not self.steps or sum(self.between.values()) > pool.BETWEEN_BYTES:
            return None
        return jobs.job(given, self.steps, self.between)


def bytes_of(plan: DepthwisePlan) -> int:
    """Return the bytes of a depthwise result of the compute dtype."""
    return elements_of(plan) * np.dtype(plan.compute).itemsize


def elements_of(plan: DepthwisePlan) -> int:
    """Return how many elements a depthwise result has."""
    return plan.batch * plan.filters * plan.y.out * plan.x.out


def _known(plan: DepthwisePlan) -> bool:
    """Whether the gradients have steps, but for some paddings."""
    return (
        plan.storage == plan.compute == plan.output
        and plan.boundary == boundaries.FILL
        and plan.multiplier == 1
        and plan.rank == 0
        and elements_of(plan) > 0
    )


@lru_cache(maxsize=512)
def of_depthwise(
    plan: DepthwisePlan, biased: bool, asked: tuple[bool, bool, bool], threads: int
) -> jobs.Job | None:
    """Return what to do with ``DEPTHWISE``; None where the functions are to be called in turn.

    plan: of the forward. biased: whether that had a bias. asked: whether for the gradients to
    image, weight and bias. The forward's result is needed for relu and relu6 only.
    """
    if not _known(plan):
        return None
    made, grad = _Job(threads), "grad"
    if plan.activation != "none":
        of, grad = "result", "sloped"
        if plan.activation not in BY_RESULT:
            of = "sums"
            made.convolve(replace(plan, activation="none"), of, biased=biased)
        made.slope(plan.activation, of, "grad", grad, plan.compute, elements_of(plan))
    return made.made(DEPTHWISE) if made.through(plan, grad, asked) else None


@lru_cache(maxsize=512)
def of_separable(
    first: DepthwisePlan,
    second: PointwisePlan,
    biased: bool,
    asked: tuple[bool, bool, bool, bool, bool],
    threads: int,
) -> jobs.Job | None:
    """Return what to do with ``SEPARABLE``; None where the functions are to be called in turn.

    As ``of_depthwise``. biased: the depthwise half. asked: whether for the gradients to image,
    depthwise weight and bias, pointwise weight and bias. The forward's result is needed for its
    last activation only.
    """
    if not (
        _known(first)
        and second.storage == second.compute == second.output
        and {first.activation, second.activation} <= {"none", *BY_RESULT}
    ):
        return None
    made, grad, compute = _Job(threads), "grad", first.compute
    if second.activation != "none":
        grad, count = "second sloped", second.batch * second.outputs * second.pixels
        made.slope(second.activation, "result", "grad", grad, compute, count)
    second, through = replace(second, activation="none"), any(asked[:3])
    if asked[3] or (through and first.activation != "none"):
        made.convolve(first, "middle", biased=biased)
    if asked[3]:
        parts = pointwise_gradient.steps(second, threads)
        made.add(*parts, image="middle", grad=grad, out="to_matrix")
    if asked[4]:
        made.add(*channel_sums.steps(_planes(second), threads), grad=grad, out="to_second_bias")
    if not through:
        return made.made(SEPARABLE)
    turn, size = turning.step(second.outputs, second.channels, compute, threads, second.outputs)
    made.add([turn], {"turned": size}, weight="matrix", turned="transposed")
    back = replace(second, channels=second.outputs, outputs=second.channels)
    mix, more = pointwise.steps(back, pointwise_tiles.choose(back, threads))
    mix[-1] = jobs.with_zeros(mix[-1], pointwise.BIAS, back.outputs, compute)
    more |= {"between": bytes_of(first)}
    made.add(mix, more, image=grad, weight="transposed", out="between")
    if first.activation != "none":
        count = elements_of(first)
        made.slope(first.activation, "middle", "between", "between", compute, count)
    return made.made(SEPARABLE) if made.through(first, "between", asked[:3]) else None


def _planes(plan: PointwisePlan) -> DepthwisePlan:
    """Return a plan whose result has the shape of a pointwise convolution's."""
    batch, outputs, pixels = plan.batch, plan.outputs, plan.pixels
    shape = (batch, outputs, 1, pixels)
    if plan.layout == "NHWC":
        shape = (batch, 1, pixels, outputs)
    return planner.depthwise(shape, plan.storage, outputs, (1, 1), 0, layout=plan.layout)
