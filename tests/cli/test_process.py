"""The process: versions, help, what is imported, interrupts, pipes, terminals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.pictures import COMMAND, HEARS, LAYERS, ROOT, photograph, run, store


def process(
    *arguments: object, code: str = COMMAND, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_version() -> None:
    done = process("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"numbasep (\d+\.\d+\S*|from a source tree)\n", done.stdout)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        assert run(*arguments) == 0
        out = capsys.readouterr().out
        for command in ("filter", "factorise", "info", "demo", "cost"):
            assert command in out


def test_info_without_a_simulator() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    done = process("info", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("numba ", "numpy", "scipy", "pillow", "processor", "cuda", "cpu backend"):
        assert word in done.stdout


@pytest.mark.parametrize("works", [True, False])
def test_info_says_where_calls_run(
    works: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from numbasep.cuda import launch

    monkeypatch.setattr(launch, "available", lambda: (works, "the reason"))
    assert run("info") == 0
    out = capsys.readouterr().out
    assert f"{'ready' if works else 'not available'}: the reason" in out


def test_info_survives_a_broken_toolkit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "numbasep.cuda.launch", None)
    monkeypatch.delattr("numbasep.cuda.launch", raising=False)
    assert run("info") == 0
    assert re.search(r"not available: (ModuleNotFound|Import)Error: ", capsys.readouterr().out)


@pytest.mark.parametrize("missing", ["typer", "rich", "PIL", "imagecodecs"])
def test_a_missing_extra_is_named(missing: str, tmp_path: Path) -> None:
    store(tmp_path / "a.png", photograph(1, np.uint8))
    hidden = f"import sys; sys.modules[{missing!r}] = None; "
    arguments = "filter", tmp_path / "a.png", tmp_path / "b.png", "-k", "sobel-x"
    done = process(*arguments, code=hidden + COMMAND)
    assert done.returncode == 2
    assert done.stderr == f"numbasep: {missing} is not installed; pip install 'numbasep[images]'\n"
    assert not (tmp_path / "b.png").exists()


def test_imports_are_light() -> None:
    """Neither the package nor the parsing of arguments loads what only some commands need."""
    heavy = (
        "PIL",
        "skimage",
        "matplotlib",
        "tifffile",
        "imagecodecs",
        "numba.cuda",
        "scipy.signal",
    )
    code = "import sys, numbasep; {}; print([m for m in {!r} if m in sys.modules])"
    package = process(code=code.format("pass", (*heavy, "typer", "rich")))
    assert (package.stdout, package.stderr) == ("[]\n", "")
    command = process(code=code.format("import numbasep.cli.arguments", heavy))
    assert (command.stdout, command.stderr) == ("[]\n", "")


def test_interrupted_by_the_keyboard(tmp_path: Path) -> None:
    # Asleep, as an interrupt in the middle of an import is not Python's best moment.
    asleep = "import time, numbasep.cli.demo as d; d.study = lambda *a: time.sleep(100); "
    started = subprocess.Popen(
        [
            sys.executable,
            "-u",
            "-c",
            HEARS + asleep + COMMAND,
            "demo",
            "--out",
            str(tmp_path / "demo"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    started.stdout.readline()
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=120)
    assert started.returncode == 130
    assert err == ""
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_reader_that_has_seen_enough() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "cost", str(LAYERS)],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode != 0


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    store(tmp_path / "a.png", photograph(1, np.uint8))
    name = tmp_path / "\N{SNOWMAN}[red].png"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = process("filter", tmp_path / "a.png", name, "-k", "sobel-x", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2603[red].png" in done.stdout
