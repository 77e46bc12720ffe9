"""A file that is rewritten while it is read, with its old size and time, is seen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusecli.errors import FeatureFileError
from fusecli.features.changes import settled_status, was_changed
from fusecli.features.file import open_features


def rewritten_in_place(path: Path) -> None:
    status = os.stat(path)
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a.npy"
    np.save(made, np.ones((3, 4), np.float32))
    os.utime(made, ns=(0, 0))
    return made


def test_rewriting_right_after_it_was_opened_is_seen(tmp_path: Path) -> None:
    """Also within the step in which the system counts time."""
    path = tmp_path / "a.npy"
    np.save(path, np.ones(1 << 20, np.float32))  # of this very moment
    for _ in range(5):
        with open_features(str(path)) as file:
            rewritten_in_place(path)
            with pytest.raises(FeatureFileError, match="changed while it was read"):
                file.refuse_changed()


@pytest.mark.parametrize("harmless", [replaced, lambda path: path.chmod(0o600)])
def test_changes_that_leave_the_content_are_no_changes(path: Path, harmless: Callable) -> None:
    with open_features(str(path)) as file:
        harmless(path)
        file.refuse_changed()


def test_reading_changes_nothing(path: Path) -> None:
    with open(path, "rb") as file:
        before = settled_status(file.fileno())
        file.read()
        assert not was_changed(before, os.fstat(file.fileno()))


def with_new_access_time(path: Path) -> None:
    os.utime(path, ns=(1, os.stat(path).st_mtime_ns))


def rewritten_with_other_rights(path: Path) -> None:
    rewritten_in_place(path)
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("change", "seen"), [(with_new_access_time, True), (rewritten_with_other_rights, False)]
)
def test_changes_that_the_times_of_a_file_do_not_show(
    path: Path, change: Callable, seen: bool
) -> None:
    """As the docstring of `was_changed` says."""
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        time.sleep(0.02)  # a step of the system's time
        change(path)
        assert was_changed(before, os.fstat(file.fileno())) is seen
