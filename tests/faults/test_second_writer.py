"""A file that somebody else makes while a command computes is never replaced without --force.

A second writer takes the name at the last moment: after everything is computed, written and
flushed to the disk, right before the command would take the name itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusecli import ImageTextFusion, save_module
from fusecli.batch.store import safe_folder
from fusecli.errors import OutputError
from fusecli.features import atomic, new_name
from fusecli.features.new_name import rename_to_new
from tests.batches import left_behind, make_pairs
from tests.faults.running import contents, run
from tests.faults.training import TRAIN

FUSE = (
    *("fuse", "image.npy", "text.npy", "--quiet"),
    *("-o", "out.npy", "--attention", "maps.npy", "--report", "r.json"),
)
PLOT = (*FUSE, "--plot", "map.png")
INIT = ("init", "-o", "w.safetensors", "--dim", "16", "--quiet")
KINDS: dict[str, Callable[[str], None]] = {
    "a file": lambda path: Path(path).write_text("of somebody else") and None,
    "a link": lambda path: os.symlink("victim", path),
    "a folder": os.mkdir,
}


def appears(
    patch: pytest.MonkeyPatch, where: Any, name: str, make: Callable[[str], None], at: str = ""
) -> None:
    """Let somebody make a file of this name right before the command gives it to its own.

    Args:
        where: the module that gives names.
        name: as the module is told.
        make: makes it.
        at: its path, where that is another.
    """

    def naming(staged: str, path: str, *folders: int) -> None:
        if os.path.basename(path) == name and not os.path.lexists(at or path):
            make(at or path)
        rename_to_new(staged, path, *folders)

    patch.setattr(where, "rename_to_new", naming)


def no_links(patch: pytest.MonkeyPatch) -> None:
    """A file system that has none, such as FAT."""

    def link(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    patch.setattr(os, "link", link)


def no_links_between_folders(patch: pytest.MonkeyPatch) -> None:
    """One that renames between folders and does not link, such as AFS."""

    def link(*args: object, **options: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    patch.setattr(os, "link", link)


def no_function(patch: pytest.MonkeyPatch) -> None:
    """A Python that was built for a system without links."""
    patch.delattr(os, "link")


def no_renameat2(patch: pytest.MonkeyPatch) -> None:
    """One that cannot rename without replacing either, such as 9p."""

    class Library:
        def renameat2(self, *args: object) -> int:
            ctypes.set_errno(errno.EINVAL)
            return -1

    patch.setattr(new_name.ctypes, "CDLL", lambda *args, **options: Library())


@pytest.mark.parametrize(
    ("job", "name", "kind"),
    [
        *((FUSE, "out.npy", kind) for kind in KINDS),
        *((FUSE, name, "a file") for name in ("maps.npy", "r.json")),
        pytest.param(PLOT, "map.png", "a link", marks=pytest.mark.slow),
        (INIT, "w.safetensors", "a file"),
    ],
)
def test_what_appears_meanwhile_stays(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, job: tuple[str, ...], name: str, kind: str
) -> None:
    before = set(os.listdir())
    with monkeypatch.context() as patch:
        appears(patch, atomic, name, KINDS[kind])
        done = run(*job)
    assert (done.code, done.out) == (1, "")
    why = (
        "is a folder now, which somebody else has made: say another name\n"
        if kind == "a folder"
        else "somebody else has made this file meanwhile, and it stays: say another name, or "
        "--force to replace it\n"
    )
    assert done.err == f"error: {name}: {why}"
    assert set(os.listdir()) == before | {name}, "none of several outputs without the others"
    if kind == "a file":
        assert Path(name).read_text() == "of somebody else"
        assert run(*job, "--force").code == 0, "what the message says helps"
        assert Path(name).read_bytes() != b"of somebody else"
    assert left_behind(Path()) == []


def test_force_replaces_what_appears_meanwhile(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def replacing(staged: str, path: str) -> None:
        Path(path).write_text("of somebody else")
        replace(staged, path)

    monkeypatch.setattr(os, "replace", replacing)
    assert run(*FUSE, "--force").code == 0
    assert np.load("out.npy").shape == (5, 16)


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize(
    "without",
    [
        [no_links],
        [no_links_between_folders],
        [no_function],
        [no_links, no_renameat2],
    ],
)
def test_file_systems_without_hard_links(
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: list[Callable[[pytest.MonkeyPatch], None]],
    taken: bool,
) -> None:
    before = set(os.listdir())
    for lacking in without:
        lacking(monkeypatch)
    if taken:
        appears(monkeypatch, atomic, "maps.npy", KINDS["a file"])
    done = run(*FUSE)
    if taken:
        assert (done.code, Path("maps.npy").read_text()) == (1, "of somebody else")
        assert "somebody else has made this file meanwhile" in done.err
        assert set(os.listdir()) == before | {"maps.npy"}
    else:
        assert (done.code, done.err) == (0, "")
        assert set(os.listdir()) == before | {"out.npy", "maps.npy", "r.json"}
        assert np.load("out.npy").shape == (5, 16)
        assert os.stat("out.npy").st_nlink == 1


def test_name_that_cannot_be_given_after_it_was_claimed_is_free_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    Path("staged").write_text("whole")
    no_links(monkeypatch)
    no_renameat2(monkeypatch)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        rename_to_new("staged", "name")
    assert os.listdir() == ["staged"]


def test_a_name_is_given_even_if_the_file_server_repeats_the_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link was made, its answer was lost, and the request is repeated."""
    link = os.link

    def linking(*args: Any, **options: Any) -> None:
        link(*args, **options)
        link(*args, **options)

    Path("staged").write_text("whole")
    monkeypatch.setattr(os, "link", linking)
    rename_to_new("staged", "name")
    assert (os.listdir(), Path("name").read_text()) == (["name"], "whole")


def test_what_replaces_an_output_before_the_others_have_names_stays(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first output has its name, somebody replaces it, and the second fails."""

    def replaced(path: str) -> None:
        os.unlink("out.npy")
        Path("out.npy").write_text("of somebody else")
        Path(path).write_text("of somebody else")

    appears(monkeypatch, atomic, "maps.npy", replaced)
    assert run(*FUSE).code == 1
    assert Path("out.npy").read_text() == "of somebody else"


def test_save_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    appears(monkeypatch, atomic, "m.safetensors", KINDS["a file"])
    with pytest.raises(OutputError, match="has made this file meanwhile"):
        save_module(ImageTextFusion(16, 4), "m.safetensors")
    assert contents(folder) == {"m.safetensors": b"of somebody else"}
    save_module(ImageTextFusion(16, 4), "m.safetensors", force=True)


@pytest.mark.parametrize(
    ("options", "name"), [((), "0.npy"), (("--pack",), "fused-00001.safetensors")]
)
def test_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], name: str
) -> None:
    """The run ends, and once the file is moved it goes on to the same bytes."""
    make_pairs(folder, 3)
    Path("pairs.csv").write_text(
        "id,image,text\n" + "".join(f"{i},images/{i}/{i:04d}.npy,texts/{i}/{i:04d}.npy\n"
                                    for i in range(3))
    )  # fmt: skip
    batch = ("batch", "--manifest", "pairs.csv", "--quiet", "--workers", "1", *options, "-o")
    assert run(*batch, "whole").code == 0
    with monkeypatch.context() as patch:
        appears(patch, safe_folder, name, KINDS["a file"], at=f"out/{name}")
        done = run(*batch, "out")
    assert (done.code, Path("out", name).read_text()) == (1, "of somebody else")
    assert done.err == (
        f"error: out/{name}: somebody else has made this file meanwhile: move it to another "
        "folder, and run the same command again\n"
    )
    shutil.move(Path("out", name), "moved")
    assert run(*batch, "out").code == 0
    results = [n for n in contents(Path("whole")) if n.startswith(("0", "1", "2", "fused"))]
    assert len(results) > 1
    for result in results:
        assert Path("out", result).read_bytes() == Path("whole", result).read_bytes()
    assert left_behind(Path("out")) == []


@pytest.mark.slow
def test_predict(folder_of_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("predict", "run", "images", "texts", "-o", "new.csv", "--quiet")
    with monkeypatch.context() as patch:
        appears(patch, atomic, "new.csv", KINDS["a file"])
        done = run(*args)
    assert (done.code, Path("new.csv").read_text()) == (1, "of somebody else")
    assert done.err.startswith("error: new.csv: somebody else has made this file meanwhile")
    assert done.err.count("\n") == 1
    os.unlink("new.csv")
    os.symlink("nowhere", "new.csv")
    assert run(*args).code == 2, "a link to nothing has the name too"
    assert not os.path.exists("nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.safetensors", "metrics.json"])
def test_train(folder_of_run: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.rmtree("run")
    with monkeypatch.context() as patch:
        appears(patch, atomic, name, KINDS["a file"])
        done = run(*TRAIN)
    assert (done.code, Path("run", name).read_text()) == (1, "of somebody else")
    assert done.err.startswith(f"error: run/{name}: somebody else has made this file meanwhile")
    assert done.err.count("\n") == 1


def test_report_beside_weights_of_no_run_is_replaced_where_that_is_said(inputs: Path) -> None:
    assert run("init", "-o", "weights.safetensors", "--dim", "16", "--quiet").code == 0
    job = ("fuse", "image.npy", "text.npy", "-q", "--weights", "weights.safetensors")
    for name in ("run.json", "metrics.json"):
        for _ in range(2):
            done = run(*job, "-o", "out.npy", "--report", name, "--force")
            assert (done.code, done.err) == (0, "")
        Path(name).unlink()


@pytest.mark.slow
def test_records_of_a_run_are_never_replaced(folder_of_run: Path) -> None:
    before = contents(Path("run"))
    job = ("fuse", "image.npy", "text.npy", "-q", "--weights", "run")
    for name in ("run/run.json", "run/metrics.json"):
        done = run(*job, "-o", "out.npy", "--report", name, "--force")
        assert done.code == 1
        assert done.err.startswith(f"error: {name}: is also an input")
    assert contents(Path("run")) == before
