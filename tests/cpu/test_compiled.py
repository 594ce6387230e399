"""Compiled code on disk: filled by processes at once, damaged, or with nowhere to be."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from numba.core import config
from numba.core.caching import _CacheLocator

from numbasep.cpu import compiled, passes, pixels

ROOT = Path(__file__).parents[2]

# Functions that differ in what they close over, as those of the package do in dtypes.
MODULE = """
import ctypes
from numbasep.cpu import compiled, passes, pixels

def constant(number):
    @compiled.cfunc("int64()")
    def function():
        return number
    return function

def value(number):
    return ctypes.CFUNCTYPE(ctypes.c_int64)(constant(number).address)()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "constants.py").write_text(MODULE)
    return tmp_path


def start(folder: Path, code: str, **variables: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "HOME")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str], sent: str = "") -> str:
    out, error = process.communicate(sent, timeout=300)
    assert process.returncode == 0, error
    return out


def test_processes_that_fill_it_at_once_get_their_own_code(folder: Path) -> None:
    """Numba's index can name one file for two keys, and then gives a third process wrong code."""
    cache = folder / "cache"
    code = """
        import sys, constants
        print("ready", flush=True)
        numbers = eval(sys.stdin.readline())
        print([constants.value(n) for n in numbers])
    """
    halves = [list(range(0, 12, 2)), list(range(1, 12, 2))]
    processes = [start(folder, code, NUMBA_CACHE_DIR=str(cache)) for _ in halves]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(2) as both:
        results = list(both.map(output, processes, [f"{half}\n" for half in halves]))
    assert results == [f"{half}\n" for half in halves]
    files = list(cache.rglob("constants*.nbc"))
    assert len(files) == 12  # nothing lost
    again = output(start(folder, code, NUMBA_CACHE_DIR=str(cache)), f"{list(range(12))}\n")
    assert again == f"ready\n{list(range(12))}\n"
    assert sorted(cache.rglob("constants*.nbc")) == sorted(files)


@pytest.fixture
def constant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``constant(number)`` of the module above, in this process, with an empty cache."""
    monkeypatch.setattr(config, "CACHE_DIR", str(folder / "cache"))
    spec = importlib.util.spec_from_file_location("constants", folder / "constants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # What is loaded from a cache may import the module that it is of.
    monkeypatch.setitem(sys.modules, "constants", module)
    spec.loader.exec_module(module)
    return module.constant


def result(function: Any) -> int:
    value: int = ctypes.CFUNCTYPE(ctypes.c_int64)(function.address)()
    return value


def test_a_damaged_file_is_compiled_again(constant: Any, folder: Path) -> None:
    assert result(constant(7)) == 7
    (file,) = folder.rglob("cache/**/*.nbc")
    whole = file.read_bytes()
    assert constant(7).cache_hits == 1
    flipped = bytearray(whole)
    flipped[whole.index(b"\x7fELF") + 80] ^= 0xFF  # machine code
    for damaged in (b"", whole[:20], whole[:-100], os.urandom(len(whole)), bytes(flipped)):
        file.write_bytes(damaged)
        function = constant(7)
        assert function.cache_hits == 0
        assert result(function) == 7
        assert constant(7).cache_hits == 1  # and kept again


def test_a_full_disk_and_a_folder_that_went_away(
    constant: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def full(self: Any, path: str) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device", path)

        patch.setattr(compiled._Files, "_open_for_write", full)
        assert result(constant(1)) == 1
    assert not list(folder.rglob("cache/**/*.nbc"))
    # Found when the function was made, gone when it is compiled.
    ensure = _CacheLocator.ensure_cache_path
    calls = []

    def gone(self: Any) -> None:
        calls.append(self)
        if len(calls) % 2 == 0:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        ensure(self)

    monkeypatch.setattr(_CacheLocator, "ensure_cache_path", gone)
    assert result(constant(2)) == 2
    assert len(calls) == 2


def test_without_a_writable_folder(folder: Path) -> None:
    """A folder below a file cannot be made, by root neither."""
    (folder / "__pycache__").write_text("")
    home = folder / "home"
    home.write_text("")
    code = """
        import warnings
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            import constants
            print(constants.value(5), constants.value(6))
        print([str(one.message).split(",")[0] for one in said])
    """
    assert output(start(folder, code, HOME=str(home), XDG_CACHE_HOME=str(home / "cache"))) == (
        "5 6\n['numbasep: no folder for compiled code is writable']\n"
    )


def test_what_processes_compiled_apart_is_told_apart(folder: Path) -> None:
    """Numba's symbols count the functions of a process: these two are the first of theirs."""
    call = """
        import numpy, numbasep
        x = numpy.arange(4, dtype="f").reshape(2, 1, 2, 1)
        weight = numpy.full((1, 1, 1, 1), -1, "f")
        print(numbasep.depthwise_conv2d(x, weight, layout="NHWC", backend="cpu").ravel().tolist())
    """
    cache = str(folder / "cache")
    for code in (
        "import numbasep.cpu.pool",
        "from numbasep.cpu import pixels; pixels.pixels_of('float32', 0)",
        "from numbasep.cpu import pixels; pixels.pointed_of('float32', 0)",
    ):
        assert output(start(folder, code, NUMBA_CACHE_DIR=cache)) == ""
    assert output(start(folder, call, NUMBA_CACHE_DIR=cache)) == "[0.0, -1.0, -2.0, -3.0]\n"


def test_functions_of_the_package_that_close_over_something_have_names_of_their_own() -> None:
    names = [
        made._wrapper_name.split("12_3clocals_3e")[1].split("B2v")[0]
        for made in (
            passes.converter("uint8", "float32"),
            passes.converter("int16", "float32"),
            passes.converter("int16", "float64"),
        )
    ]
    assert len(set(names)) == 3
    filters = pixels.filter_pixels, pixels.filter_pointed
    assert len({one.py_func.__qualname__ for one in filters}) == 2


def test_a_function_cannot_close_over_another() -> None:
    def caller() -> str:
        return str(start)  # of the module: no part of the function

    compiled._named(caller)
    other = caller

    def closing() -> str:
        return other()

    with pytest.raises(TypeError, match="closes over"):
        compiled._named(closing)
