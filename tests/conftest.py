"""Backends, hypothesis profiles and the choice between Numba's CUDA simulator and a real device."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import HealthCheck, Phase, settings

# Without Numba: the simulator must be chosen before that is imported.
from perf.machine import gpu_answers

PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
CI_EXAMPLES = {"cpu": 1000, "cuda": 300}
LOCAL_EXAMPLES = {"cpu": 100, "cuda": 25}
COUNTS = dict(CI_EXAMPLES if os.environ.get("CI") else LOCAL_EXAMPLES)

for name, counts in (("default", LOCAL_EXAMPLES), ("ci", CI_EXAMPLES)):
    settings.register_profile(
        name,
        max_examples=counts["cpu"],
        # Times vary with compilation and with the machine's other work; none is asserted.
        deadline=None,
        phases=PHASES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        derandomize=name == "ci",
        database=None,
    )
settings.load_profile("ci" if os.environ.get("CI") else "default")


def examples(backend: str, parts: int = 1) -> int:
    """Return the number of hypothesis examples that a property takes on a backend.

    parts: into so many a slow property divides it; one is always left.
    """
    return max(1, COUNTS[backend] // parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda",
        choices=("auto", "device", "simulator"),
        default="auto",
        help="where CUDA kernels run: a device, Numba's simulator, or a device if there is one",
    )
    parser.addoption(
        "--examples",
        type=int,
        help="hypothesis examples of each property on each backend, in place of the profile's",
    )


def pytest_configure(config: pytest.Config) -> None:
    if count := config.getoption("--examples"):
        COUNTS.update(dict.fromkeys(COUNTS, count))
    choice = config.getoption("--cuda")
    if choice == "auto":
        choice = "device" if gpu_answers() else "simulator"
    if choice == "simulator":
        if "numba" in sys.modules and os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
            raise pytest.UsageError("numba was imported before the simulator could be chosen")
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
        from tests.cuda import simulator

        simulator.install()
    config.stash[CUDA] = choice


CUDA = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def cuda_runs_on(request: pytest.FixtureRequest) -> str:
    """``device`` or ``simulator``."""
    return request.config.stash[CUDA]


@pytest.fixture(params=["cpu", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each test that takes this runs once on each backend."""
    return str(request.param)
