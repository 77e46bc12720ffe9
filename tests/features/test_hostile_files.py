"""Bad files of every kind are refused in one line, cost little, and leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusecli import FuseError, FuseOptions, fuse_files
from tests.conftest import without_privileges
from tests.features.hostile import (  # noqa: F401 - each adds its cases
    arrays,
    gigabytes,
    masks_and_weights,
    names_and_numbers,
    tensors,
)
from tests.features.hostile.cases import (
    CASES,
    GIB,
    IMAGE,
    LARGE,
    NPY,
    NPZ,
    PT,
    SAFETENSORS,
    TEXT,
    write,
)

ALLOWED = GIB // 2  # memory that a refusal may take


@pytest.fixture
def inputs(folder: Path) -> Path:
    """A working directory with a sound image and a sound text."""
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)
    return folder


def everything(folder: Path) -> list[tuple[str, int, int]]:
    """Every file below a folder, hidden ones too, with its size and the time of its last change."""
    found = []
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found.append((str(path), state.st_size, state.st_mtime_ns))
    return found


def check_refusal(code: int, out: str, err: str, says: str) -> None:
    assert "Traceback" not in err
    assert code == 1
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, f"expected one line on stderr, found:\n{err}"
    assert err.startswith("error: ")
    check_sentence(err[:-1])
    assert re.search(says, err[:-1]), f"expected {says!r} in: {err}"


def check_sentence(error: str) -> None:
    assert "hostile." in error
    assert error.isprintable()
    assert len(error) < 1000, f"{len(error)} characters are not a sentence"
    name = re.search(r"\b[A-Z]\w*(Error|Exception)\b", error)
    assert name is None, f"the name of a Python exception is no sentence: {error}"


@pytest.mark.parametrize(("make", "says"), CASES)
def test_bad_file_is_refused_in_one_line(
    inputs: Path, cli: Callable, make: Callable[[], list[str]], says: str
) -> None:
    arguments = make()
    before = everything(inputs)
    done = cli("fuse", *arguments, "-o", "out.npy")
    check_refusal(done.code, done.out, done.err, says)
    assert everything(inputs) == before


LIMITED = """
import re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from fusecli.cli.main import main
try:
    main()
finally:
    with open("/proc/self/status") as status, open(sys.argv[0] + ".peak", "w") as peak:
        peak.write(re.search(r"VmHWM:\\s*(\\d+) kB", status.read())[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
@pytest.mark.parametrize(("make", "says"), LARGE)
def test_file_whose_header_claims_gigabytes_is_refused_with_little_memory(
    inputs: Path, tmp_path: Path, make: Callable[[], list[str]], says: str
) -> None:
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    arguments = make()
    before = everything(inputs)
    done = subprocess.run(
        [sys.executable, script, "fuse", *arguments, "-o", "out.npy"],
        capture_output=True,
        timeout=50,
        text=True,
    )
    check_refusal(done.returncode, done.stdout, done.stderr, says)
    assert everything(inputs) == before
    peak = int((tmp_path / "limited.py.peak").read_text()) << 10
    assert peak < ALLOWED, f"took {peak >> 20} MiB"


@pytest.mark.parametrize(("make", "says"), CASES)
def test_inspect_shows_or_refuses_a_bad_file_without_a_traceback(
    inputs: Path, cli: Callable, make: Callable[[], list[str]], says: str
) -> None:
    # The file at fault, wherever it is given to `fuse`.
    name = [argument for argument in make() if "hostile." in argument][-1]
    before = everything(inputs)
    for options in (["--stats"], ["--json"]):
        done = cli("inspect", name, *options)
        assert everything(inputs) == before
        assert "Traceback" not in done.err
        assert all(line.isprintable() for line in done.err.splitlines())
        if done.code:
            assert done.code == 1
            assert done.out == ""
            assert re.fullmatch(r"error: .*hostile\..*\n", done.err)
        elif "--json" in options:
            (found,) = json.loads(done.out)
            assert found["folder" if os.path.isdir(name) else "file"] == name
        else:
            assert done.err == ""
            shown = done.out.replace("\n", "")
            assert "hostile." in shown
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", shown)


FORMATS = {".npy": NPY, ".npz": NPZ, ".safetensors": SAFETENSORS, ".pt": PT}


def fuse_or_refuse(name: str) -> bool:
    """Whether the image was fused; a refusal must be one line that names it."""
    before = everything(Path())
    problem = None
    try:
        fuse_files(FuseOptions(name, "text.npy", "out.npy"))
    except FuseError as error:
        problem = str(error)
    if problem is not None:
        check_sentence(problem)
        assert everything(Path()) == before
        return False
    assert np.isfinite(np.load("out.npy")).all()
    os.unlink("out.npy")
    return True


@pytest.mark.parametrize("ending", FORMATS)
def test_file_cut_anywhere_is_refused(inputs: Path, ending: str) -> None:
    data = FORMATS[ending]
    for place in {0, 1, 4, 7, 8, 9, *range(10, len(data), 13), len(data) - 1}:
        (name, _) = write(ending, data[:place])
        assert not fuse_or_refuse(name), f"cut after {place} of {len(data)} bytes"


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_file_with_any_byte_changed_is_fused_or_refused_but_never_breaks(
    inputs: Path, ending: str
) -> None:
    data = FORMATS[ending]
    random = np.random.default_rng(0)
    for place in random.choice(len(data), size=min(120, len(data)), replace=False):
        changed = bytearray(data)
        changed[place] ^= random.integers(1, 256)
        (name, _) = write(ending, bytes(changed))
        fuse_or_refuse(name)


@pytest.mark.skipif(sys.platform != "linux", reason="sets aside root's privileges with prctl")
def test_file_without_permission_is_refused(inputs: Path, program: Callable) -> None:
    os.chmod("image.npy", 0)
    args = ("fuse", "image.npy", "text.npy", "-o", "out.npy")
    done = program(*args, preexec_fn=without_privileges)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: image.npy: cannot be opened: Permission denied\n"


def test_stdin_without_end_is_refused_by_its_first_bytes(inputs: Path, tmp_path: Path) -> None:
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    with open("/dev/zero", "rb") as zeros:
        done = subprocess.run(
            [sys.executable, script, "fuse", "-", "text.npy", "-o", "out.npy"],
            stdin=zeros,
            capture_output=True,
            timeout=50,
            text=True,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: stdin: is not a .npy file\n"
    assert int((tmp_path / "limited.py.peak").read_text()) << 10 < ALLOWED


def test_there_are_at_least_seventy_kinds() -> None:
    assert len(CASES) + len(LARGE) >= 70
