"""Outputs are written whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from numbasep.cli import files, main
from tests.cli.pictures import contents, photograph, store


def fail_disk(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


def terminate(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def crash(*arguments: object) -> None:
    raise RuntimeError("a bug,\nof two lines")


FAILURES: dict[str, tuple[Callable[..., None], int, str]] = {
    "disk full": (fail_disk, 2, "numbasep: No space left on device\n"),
    "interrupted": (interrupt, 130, ""),
    "terminated": (terminate, 143, ""),
    "a bug": (crash, 2, "numbasep: RuntimeError: a bug, of two lines\n"),
}


@pytest.mark.parametrize("point", ["fsync", "replace", "link"])
@pytest.mark.parametrize("existing", [True, False], ids=["existing", "new"])
@pytest.mark.parametrize(("failure", "code", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failed_write_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    point: str,
    existing: bool,
    failure: Callable[..., None],
    code: int,
    message: str,
) -> None:
    if point == ("link" if existing else "replace"):
        # Replaced by renaming, created by linking: the other is not called.
        point = "fsync"
    store(tmp_path / "a.png", photograph(1, np.uint8))
    target = tmp_path / "b.png"
    if existing:
        target.write_bytes(b"old")
    before = contents(tmp_path)
    arguments = ["filter", str(tmp_path / "a.png"), str(target), "-k", "sobel-x"]
    arguments += ["--overwrite"] if existing else []
    with monkeypatch.context() as patch:
        patch.setattr(files.os, point, failure)
        if point == "link" and failure is fail_disk:
            # Links may be what is missing: the file is renamed then, which fails as well.
            patch.setattr(files.os, "replace", failure)
        if code == 143:
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == 143
        else:
            assert main(arguments) == code
    assert capsys.readouterr() == ("", message)
    assert contents(tmp_path) == before
    assert main(arguments) == 0


def test_without_links_a_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "link", fail_disk)
    with files.whole(tmp_path / "a", overwrite=False) as file:
        file.write(b"new")
    assert contents(tmp_path) == {"a": b"new"}
    with (
        pytest.raises(ValueError, match="exists; add --overwrite"),
        files.whole(tmp_path / "a", overwrite=False),
    ):
        pass


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    opened = files.whole(tmp_path / "a", overwrite=False)
    opened.__enter__().write(b"new")
    (tmp_path / "a").write_bytes(b"other")
    with pytest.raises(ValueError, match="exists by now; add --overwrite"):
        opened.__exit__(None, None, None)
    assert contents(tmp_path) == {"a": b"other"}


def test_permissions_are_the_users(tmp_path: Path) -> None:
    kept = os.umask(0o027)
    try:
        with files.whole(tmp_path / "a", overwrite=False) as file:
            file.write(b"new")
    finally:
        os.umask(kept)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
