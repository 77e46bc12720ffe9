"""Several outputs of one job: all of them appear, or none, and older files are as before."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusecli.features import atomic
from fusecli.features.atomic import StagedFile, StagedStdout, publish_all

OUTPUTS = ("out.npy", "maps.npy", "one.json", "two.json")
JOB = (
    *("fuse", "image.npy", "text.npy", "--quiet"),
    *("-o", "out.npy", "--attention", "maps.npy"),
    *("--report", "one.json", "--report", "two.json"),
)


def contents() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in os.listdir()}


def fail_call(monkeypatch: pytest.MonkeyPatch, name: str, k: int, number: int) -> None:
    """Let the k-th call of a function of `os` fail, and no other."""
    real, count = getattr(os, name), 0

    def failing(*args: object, **options: object) -> object:
        nonlocal count
        count += 1
        if count == k:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    monkeypatch.setattr(atomic.os, name, failing)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("k", range(len(OUTPUTS)))
def test_output_that_cannot_get_its_name_takes_the_others_with_it(
    inputs: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch, k: int, older: bool
) -> None:
    force = ["--force"] if older else []
    for name in OUTPUTS if older else ():
        Path(name).write_text(f"older {name}")
    before = contents()
    with monkeypatch.context() as patch:
        fail_call(patch, "replace" if older else "link", k + 1, errno.EROFS)
        done = cli(*JOB, *force)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: {OUTPUTS[k]}: cannot be written: Read-only file system\n"
    assert contents() == before
    assert cli(*JOB, *force).code == 0
    assert set(OUTPUTS) <= set(os.listdir())
    assert len(os.listdir()) == len(OUTPUTS) + 2


def test_older_files_come_back_where_the_file_system_has_no_links(
    inputs: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out.npy").write_text("older")
    before = contents()
    with monkeypatch.context() as patch:
        fail_call(patch, "link", 1, errno.EPERM)
        fail_call(patch, "replace", 2, errno.EIO)
        assert cli(*JOB, "--force").code == 1
    assert contents() == before


def test_folder_that_cannot_be_synced_takes_the_result_back(
    inputs: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(folder: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    Path("out.npy").write_text("older")
    before = contents()
    monkeypatch.setattr(atomic, "sync_folder", failing)
    done = cli(*JOB, "--force")
    assert (done.code, done.err) == (
        1,
        "error: out.npy: cannot be written: Input/output error\n",
    )
    assert contents() == before


def test_stdout_comes_last_and_its_failure_takes_the_files_back(
    inputs: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def taking(self: StagedStdout) -> None:
        order.append(sorted(set(os.listdir()) & set(OUTPUTS)))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = contents()
    monkeypatch.setattr(StagedStdout, "take_place", taking)
    done = cli(*JOB[:4], "-o", "-", *JOB[6:])
    assert (done.code, order) == (1, [sorted(OUTPUTS[1:])])
    assert contents() == before


def test_signal_between_two_names_takes_the_first_back(folder: Path) -> None:
    Path("b").write_text("older")

    def stopped() -> None:
        raise KeyboardInterrupt

    with StagedFile("a") as a, StagedFile("b") as b:
        a.begin().write(b"1")
        b.begin().write(b"2")
        b.take_place = stopped  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            publish_all([a, b])
    assert contents() == {"b": b"older"}


def test_result_for_stdout_has_no_name_in_tmpdir(
    inputs: Path, program: Callable, tmp_path: Path
) -> None:
    """Under a fixed name anybody could put a link in its way, or a folder."""
    held = tmp_path / "held"
    held.mkdir()
    (held / "precious").write_text("precious")
    (held / "fusecli-stdout").symlink_to(held / "precious")
    done = program(
        *("fuse", "image.npy", "text.npy", "-o", "-", "--quiet"), env={"TMPDIR": str(held)}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"\x93NUMPY")
    assert (held / "precious").read_text() == "precious"
    assert sorted(os.listdir(held)) == ["fusecli-stdout", "precious"]


@pytest.mark.parametrize("command", ["fuse", "init"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_has_the_remedy_that_batch_says(
    inputs: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch, command: str, number: int
) -> None:
    before = contents()
    fail_call(monkeypatch, "fsync", 1, number)
    job = JOB if command == "fuse" else ("init", "-o", "w.safetensors", "--dim", "8")
    shown = "out.npy" if command == "fuse" else "w.safetensors"
    done = cli(*job)
    why = os.strerror(number)
    remedy = "free space and run the same command again"
    assert done.code == 1
    assert done.err == f"error: {shown}: cannot be written: {why}: {remedy}\n"
    assert contents() == before


@pytest.mark.parametrize("command", ["fuse", "init"])
def test_data_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    inputs: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Recorded calls: each file is synced after its last write, then renamed, then its folder."""
    calls: list[tuple[str, object]] = []
    fsync, link = os.fsync, os.link

    def syncing(descriptor: int) -> None:
        status = os.fstat(descriptor)
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "data"
        calls.append((kind, (status.st_ino, status.st_size)))
        fsync(descriptor)

    def naming(source: str, target: str, **options: Any) -> None:
        status = os.stat(source)
        calls.append(("name", (status.st_ino, status.st_size)))
        link(source, target, **options)

    monkeypatch.setattr(atomic.os, "fsync", syncing)
    monkeypatch.setattr(atomic.os, "link", naming)
    job = JOB if command == "fuse" else ("init", "-o", "w.safetensors", "--dim", "8")
    assert cli(*job).code == 0
    named = [index for index, (kind, _) in enumerate(calls) if kind == "name"]
    assert len(named) == (len(OUTPUTS) if command == "fuse" else 1)
    for index in named:
        # The same file at its full length: nothing was written after the sync.
        assert ("data", calls[index][1]) in calls[: named[0]]
        assert calls[index + 1][0] == "folder"
