"""Errors: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from numbasep.cli import files
from numbasep.cli.cost import COLUMNS
from tests.cli.pictures import LAYERS, contents, photograph, run, store

PICTURE = "{folder}/a.png"
FILTER = ("filter", PICTURE, "{folder}/b.png", "--kernel")

ERRORS: dict[str, tuple[tuple[str, ...], str]] = {
    "no such command": (("filtre",), "No such command 'filtre'. Did you mean 'filter'"),
    "no such option": (("info", "--verbose"), "No such option"),
    "missing argument": (("filter",), "Missing argument 'IN'"),
    "missing kernel": (("filter", PICTURE, "{folder}/b.png"), "Missing option '--kernel'"),
    "not a number": ((*FILTER, "box:3", "--tol", "much"), "Invalid value for '--tol': "),
    "misspelt kernel": ((*FILTER, "gausian:2"), "no kernel is named 'gausian'; did you mean gauss"),
    "no kernel": ((*FILTER, ""), "no kernel is named ''"),
    "kernel without numbers": ((*FILTER, "disk"), "'disk' lacks radius; write disk:radius"),
    "vast kernel": ((*FILTER, "gaussian:1e9"), "would reach 4e+09 pixels"),
    "kernel file missing": ((*FILTER, "{folder}/k.npy"), "k.npy: No such file or directory"),
    "kernel file of another kind": ((*FILTER, PICTURE), "is a file of an unknown kind; save the k"),
    "kernel file is text": ((*FILTER, "{folder}/text.npy"), "no NumPy file"),
    "kernel file is empty": ((*FILTER, "{folder}/empty.npy"), "empty.npy: "),
    "kernel file is cut": ((*FILTER, "{folder}/cut.npy"), "cut.npy: "),
    "kernel of objects": ((*FILTER, "{folder}/objects.npy"), "holds Python objects"),
    "kernel of 3 dimensions": ((*FILTER, "{folder}/3d.npy"), "holds an array of shape (3, 3, 3)"),
    "kernel with NaN": ((*FILTER, "{folder}/nan.npy"), "kernel must be finite, got nan at (0, 1)"),
    "other npz": ((*FILTER, "{folder}/other.npz"), "lacks columns, rows"),
    "npz is text": ((*FILTER, "{folder}/text.npz"), "text.npz: "),
    "tol and rank": ((*FILTER, "disk:3", "--tol", "0.1", "--rank", "2"), "tol"),
    "rank too high": ((*FILTER, "box:3", "--rank", "9"), "rank"),
    "boundary": ((*FILTER, "box:3", "--boundary", "miror"), "did you mean 'mirror'?"),
    "fillvalue": ((*FILTER, "box:3", "--fillvalue", "3"), "fillvalue: 3 has no meaning"),
    "fill of another dtype": (
        (*FILTER, "box:3", "--boundary", "fill", "--fillvalue", "300"), "300 is not a value of",
    ),
    "fill of nothing": (
        (*FILTER, "box:3", "--boundary", "fill", "--fillvalue", "nan"), "is not a value of uint8",
    ),
    "endless scale": ((*FILTER, "box:3", "--scale", "inf"), "scale: got inf; pass a finite number"),
    "offset of nothing": ((*FILTER, "box:3", "--offset", "nan"), "offset: got nan; pass a finite"),
    "backend": ((*FILTER, "box:3", "--backend", "gpu"), "backend: 'gpu' is not one of"),
    "quality": ((*FILTER, "box:3", "--quality", "0"), "Invalid value for '--quality': "),
    "missing picture": (
        ("filter", "{folder}/no.png", "{folder}/b.png", "-k", "box:3"), "no.png: No such file",
    ),
    "a folder": (("filter", "{folder}", "{folder}/b.png", "-k", "box:3"), "Is a directory"),
    "no picture": (
        ("filter", "{folder}/text.npy", "{folder}/b.png", "-k", "box:3"), "is no PNG, JPEG or TIFF",
    ),
    "truncated": (
        ("filter", "{folder}/cut.png", "{folder}/b.png", "-k", "box:3"), "damaged or truncated",
    ),
    "too many pixels": ((*FILTER, "box:3", "--max-pixels", "9"), "31 x 23 pixels are more than 9"),
    "page": ((*FILTER, "box:3", "--page", "2"), "has no page 2"),
    "output exists": (
        ("filter", PICTURE, "{folder}/old.png", "-k", "box:3"), "exists; add --overwrite to repl",
    ),
    "output is the input": (("filter", PICTURE, PICTURE, "-k", "box:3"), "exists; add --overwrite"),
    "output is a link": (
        ("filter", PICTURE, "{folder}/link.png", "-k", "box:3"), "is a symbolic link; add --overw",
    ),
    "output is a loose link": (
        ("filter", PICTURE, "{folder}/loose.png", "-k", "box:3"), "is a symbolic link; add --overw",
    ),
    "output is a folder": (
        ("filter", PICTURE, "{folder}/folder.png", "-k", "box:3", "--overwrite"), "is not a reg",
    ),
    "output is a device": (
        ("filter", PICTURE, "{folder}/pipe.png", "-k", "box:3", "--overwrite"), "is not a reg",
    ),
    "output without a folder": (
        ("filter", PICTURE, "{folder}/no/b.png", "-k", "box:3"), "there is no folder",
    ),
    "output of no format": (
        ("filter", PICTURE, "{folder}/b.gif", "-k", "box:3"), "pictures are written as .png",
    ),
    "alpha in a JPEG": (
        ("filter", "{folder}/alpha.png", "{folder}/b.jpg", "-k", "box:3"), "JPEG cannot hold an al",
    ),
    "factors of another name": (
        ("factorise", "box:3", "--out", "{folder}/f.txt"), "is written as .npz",
    ),
    "drawing of another name": (
        ("factorise", "box:3", "--picture", "{folder}/f.jpg"), "is written as .png",
    ),
    "factors exist": (("factorise", "box:3", "--out", "{folder}/other.npz"), "exists; add --over"),
    "factorise nothing": (("factorise", "blur:3"), "no kernel is named 'blur'"),
    "demo into a file": (("demo", "--out", PICTURE), "File exists"),
    "layers missing": (("cost", "{folder}/no.csv"), "no.csv: No such file or directory"),
    "layers are a picture": (("cost", PICTURE), "is no CSV text"),
    "layers lack a column": (("cost", "{folder}/column.csv"), "lacks the column 'stride'"),
    "layers are none": (("cost", "{folder}/none.csv"), "holds no layer"),
    "layers are empty": (("cost", "{folder}/empty.npy"), "lacks the column 'name'"),
    "a layer of words": (("cost", "{folder}/words.csv"), "words.csv, line 3: k is 'three', not a"),
    "a short line": (("cost", "{folder}/short.csv"), "line 2: Cout is None, not a whole number"),
    "a layer that cannot be": (("cost", "{folder}/large.csv"), "line 2: kernel_size: kh reaches"),
    "rank 0": (("cost", str(LAYERS), "--rank", "0"), "rank: got 0"),
    "dtype": (("cost", str(LAYERS), "--dtype", "float23"), "did you mean 'float32'?"),
}  # fmt: skip


@pytest.fixture(scope="module")
def cluttered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are in the way or not what they seem."""
    folder = tmp_path_factory.mktemp("cluttered")
    store(folder / "a.png", photograph(1, np.uint8))
    store(folder / "alpha.png", photograph(4, np.uint8))
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "old.png").write_bytes(b"old")
    (folder / "link.png").symlink_to(folder / "old.png")
    (folder / "loose.png").symlink_to(folder / "nowhere.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "text.npy").write_text("words")
    (folder / "text.npz").write_text("words")
    (folder / "empty.npy").write_text("")
    np.save(folder / "3d.npy", np.ones((3, 3, 3)))
    np.save(folder / "nan.npy", np.array([[1, np.nan], [1, 1]]))
    np.save(folder / "objects.npy", np.array([[None]]), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "3d.npy").read_bytes()[:-30])
    np.savez(folder / "other.npz", x=np.ones(3))
    header = ",".join(COLUMNS) + "\n"
    (folder / "column.csv").write_text(header.replace("stride,", ""))
    (folder / "none.csv").write_text(header)
    (folder / "words.csv").write_text(header + "a,1,8,9,9,3,1,1,1,4\nb,1,8,9,9,three,1,1,1,4\n")
    (folder / "short.csv").write_text(header + "a,1,8,9,9,3,1,1,1\n")
    (folder / "large.csv").write_text(header + "a,1,8,9,9,31,1,1,1,8\n")
    return folder


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(
    cluttered: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(cluttered)
    assert run(*(a.format(folder=cluttered) for a in arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("numbasep: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert message in err
    assert contents(cluttered) == before


def test_a_folder_that_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "a.png", photograph(1, np.uint8))
    # The superuser may write anywhere: what the system would answer to others.
    monkeypatch.setattr(files.os, "access", lambda path, mode: Path(path) != tmp_path)
    assert run("filter", tmp_path / "a.png", tmp_path / "b.png", "-k", "box:3") == 2
    assert re.search(r"b\.png: the folder '.*' is not writable", capsys.readouterr().err)


def test_cuda_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from numbasep.cuda import launch

    store(tmp_path / "a.png", photograph(1, np.uint8))
    monkeypatch.setattr(launch, "available", lambda: (False, "no driver"))
    options = "-k", "box:3", "--backend", "cuda"
    assert run("filter", tmp_path / "a.png", tmp_path / "b.png", *options) == 2
    assert capsys.readouterr().err == "numbasep: --backend cuda: no driver\n"
