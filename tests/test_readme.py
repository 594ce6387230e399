"""The README's snippets run, and print what it says they print."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"

# A python block, and the block of its output where one follows.
SNIPPETS = re.findall(
    r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", README.read_text(), re.DOTALL | re.MULTILINE
)

# What depends on the machine: the size of its caches, its number of processors.
MACHINES = ("tile", "bytes moved", "multiply-adds")


def stable(text: str) -> list[str]:
    """Return the lines, of those that differ between machines only what they are about."""
    lines = []
    for line in text.splitlines():
        name = next((name for name in MACHINES if line.startswith(name)), None)
        lines.append(name or line)
    return lines


def test_there_are_snippets_with_outputs() -> None:
    assert sum(bool(output) for _, output in SNIPPETS) >= 1


@pytest.mark.parametrize(("code", "output"), SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippets(code: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    if output:
        assert stable(printed.getvalue()) == stable(output)


def test_the_snippet_with_timm() -> None:
    """Which no extra of the package installs: where it is not there, this only compiles."""
    (text,) = re.findall(r"^```py\n(.*?)^```\n", README.read_text(), re.DOTALL | re.MULTILINE)
    code = compile(text, "README.md", "exec")
    if importlib.util.find_spec("timm"):
        exec(code, {"__name__": "__main__"})
