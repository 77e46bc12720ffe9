"""Names and files of every odd kind in every place: one line at once, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusecli.batch.store import files
from tests.conftest import Outcome
from tests.faults.running import run

pytestmark = pytest.mark.slow

FUSE = ("fuse", "image.npy", "text.npy", "-q", "--dim", "8")
PLOT = (*FUSE, "-o", "o.npy", "--plot", "p.png", "--grid", "2x2")
BATCH = ("batch", "images", "texts", "-q", "--workers", "1", "--dim", "8")
TRAIN = ("train", "images", "texts", "--labels", "labels.csv", "-q", "--epochs", "1", "--method",
         "bilinear", "--seeds", "1", "--dim", "8")  # fmt: skip
EVALUATE = ("evaluate", "run", "images", "texts", "--labels", "labels.csv", "-q")
PREDICT = ("predict", "run", "images", "texts", "-q")

# A command and the name of the odd file: "X" and an ending, or the place of a file that is there.
# fmt: off
PLACES: dict[str, tuple[tuple[str, ...], str]] = {
    "fuse image": (("fuse", "X.npy", "text.npy", "-q", "--dim", "8", "-o", "o.npy"), "X.npy"),
    "fuse text": (("fuse", "image.npy", "X.npz", "-q", "--dim", "8", "-o", "o.npy"), "X.npz"),
    "fuse packed": (("fuse", "X.safetensors", "text.npy", "-q", "--dim", "8", "-o", "o.npy"),
        "X.safetensors"),
    "fuse torch": (("fuse", "X.pt", "text.npy", "-q", "--dim", "8", "-o", "o.npy"), "X.pt"),
    "fuse image mask": ((*FUSE, "-o", "o.npy", "--image-mask", "X.npy"), "X.npy"),
    "fuse text mask": ((*FUSE, "-o", "o.npy", "--text-mask", "X.npy"), "X.npy"),
    "fuse attention mask": ((*FUSE, "-o", "o.npy", "--attention-mask", "X.npy"), "X.npy"),
    "fuse weights": ((*FUSE, "-o", "o.npy", "--weights", "X.safetensors"), "X.safetensors"),
    "fuse weights of a run": ((*FUSE, "-o", "o.npy", "--weights", "X"), "X"),
    "fuse output": ((*FUSE, "-f", "-o", "X.npy"), "X.npy"),
    "fuse maps": ((*FUSE, "-f", "-o", "o.npy", "--attention", "X.npy"), "X.npy"),
    "fuse report": ((*FUSE, "-f", "-o", "o.npy", "--report", "X.json"), "X.json"),
    "fuse plot": ((*FUSE, "-f", "-o", "o.npy", "--plot", "X.png", "--grid", "2x2"), "X.png"),
    "fuse photo": ((*PLOT, "--image-file", "X.png"), "X.png"),
    "fuse boxes": ((*PLOT[:-2], "--boxes", "X.npy"), "X.npy"),
    "fuse tokens": ((*PLOT, "--tokens", "X.txt"), "X.txt"),
    "batch images": (("batch", "X", "texts", "-q", "--dim", "8", "-o", "out"), "X"),
    "batch texts": (("batch", "image.safetensors", "X.safetensors", "-q", "-o", "out"),
        "X.safetensors"),
    "batch index": (("batch", "image.safetensors", "X.safetensors.index.json", "-q", "-o", "out"),
                    "X.safetensors.index.json"),
    "batch manifest": (("batch", "--manifest", "X.csv", "-q", "--dim", "8", "-o", "out"), "X.csv"),
    "batch lines": (("batch", "--manifest", "X.jsonl", "-q", "--dim", "8", "-o", "out"), "X.jsonl"),
    "batch table": (("batch", "--manifest", "X.parquet", "-q", "--dim", "8", "-o", "out"),
        "X.parquet"),
    "batch weights": ((*BATCH, "-o", "out", "--weights", "X.safetensors"), "X.safetensors"),
    "batch output": ((*BATCH, "-o", "X"), "X"),
    "batch pair": ((*BATCH, "-o", "out"), "images/00.npy"),
    "batch record": ((*BATCH, "-o", "whole"), "whole/run.json"),
    "batch journal": ((*BATCH, "-o", "whole"), "whole/journal.jsonl"),
    "batch hidden": ((*BATCH, "-o", "whole"), "whole/.fusecli"),
    "batch result": ((*BATCH, "-o", "whole"), "whole/00.npy"),
    "train labels": ((*TRAIN[:4], "X.csv", *TRAIN[5:], "-o", "new"), "X.csv"),
    "train lines": ((*TRAIN[:4], "X.jsonl", *TRAIN[5:], "-o", "new"), "X.jsonl"),
    "train manifest": (("train", "--manifest", "X.csv", "-q", "-o", "new"), "X.csv"),
    "train images": (("train", "X", *TRAIN[2:], "-o", "new"), "X"),
    "train output": ((*TRAIN, "-o", "X"), "X"),
    "train record": ((*TRAIN, "-o", "run"), "run/run.json"),
    "evaluate run": (("evaluate", "X", *EVALUATE[2:]), "X"),
    "evaluate labels": ((*EVALUATE[:5], "X.csv", "-q"), "X.csv"),
    "evaluate split": (EVALUATE, "run/split.csv"),
    "predict weights": ((*PREDICT, "-o", "said.csv", "-f"), "run/weights.safetensors"),
    "predict model": ((*PREDICT, "-o", "said.csv", "-f"), "run/models/text-only.safetensors"),
    "predict models": ((*PREDICT, "-o", "said.csv", "-f"), "run/models"),
    "predict output": ((*PREDICT, "-f", "-o", "X.csv"), "X.csv"),
    "init output": (("init", "-f", "-q", "-o", "X.safetensors", "--dim", "8"), "X.safetensors"),
    "inspect": (("inspect", "X.npy"), "X.npy"),
    "inspect table": (("inspect", "X.safetensors"), "X.safetensors"),
}
# fmt: on
KINDS: tuple[str, ...] = ("pipe", "socket", "device", "loop")
if "FUSECLI_FUZZ" in os.environ:
    KINDS += ("folder", "dangling", "empty", "link to pipe")
ALARM = 20  # seconds; what waits for ever is ended


class WaitsForEverError(BaseException):
    """Not an Exception, so that nothing on the way takes it for an error of its own."""


@contextmanager
def alarm() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise WaitsForEverError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(ALARM)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def make(kind: str, name: str) -> None:
    """A file that is none."""
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "socket":
        made = socket.socket(socket.AF_UNIX)
        made.bind(name)
        made.close()
    elif kind == "device":  # of its own: a test that fails must not replace a system's
        try:
            os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # as /dev/zero
        except PermissionError:  # it may make none, and replace none either
            os.symlink("/dev/zero", name)
    elif kind == "folder":
        os.mkdir(name)
    elif kind == "dangling":
        os.symlink("nowhere/at/all", name)
    elif kind == "loop":
        os.symlink(os.path.basename(name), name)
    elif kind == "link to pipe":
        os.mkfifo("the-pipe")
        os.symlink(os.path.abspath("the-pipe"), name)
    else:
        Path(name).touch()


def contents() -> dict[str, bytes]:
    """Every regular file of both sides."""
    paths = [*Path("images").iterdir(), *Path("texts").iterdir()]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def check(done: Outcome) -> None:
    """One line in any case."""
    assert done.code in (0, 1, 2, 3), done
    assert all(c.isprintable() or c == "\n" for c in done.err), done
    assert "Traceback" not in done.err, done
    if done.code in (1, 2):
        assert done.err.startswith("error: "), done
        assert done.err.count("\n") == 1, done
        assert done.out == "", done
    left = [path for path in Path().rglob(".fusecli-*") if path.name.endswith(".part")]
    assert left == []


@pytest.fixture
def here(folder_of_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.standard_normal((4, 6)).astype(np.float32))
    np.save("text.npy", rng.standard_normal((2, 6)).astype(np.float32))
    rows = {f"{n:02}": np.ones((2, 6), np.float32) for n in range(3)}
    save_file(rows, "image.safetensors")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(files, "bring_to_disk", lambda folder, names: None)
    assert run(*BATCH, "-o", "whole").code == 0
    return folder_of_run


@pytest.mark.parametrize("place", PLACES)
def test_odd_file_in_the_place_of(here: Path, place: str) -> None:
    """Nothing waits for ever, whatever stands under the name; and no input is changed."""
    args, name = PLACES[place]
    inputs = contents()
    inputs.pop(name, None)
    for kind in KINDS:
        shutil.copytree(here, here.parent / kind)
        os.chdir(here.parent / kind)
        if os.path.isdir(name):
            shutil.rmtree(name)
        elif os.path.exists(name):
            os.unlink(name)
        make(kind, name)
        with alarm():
            done = run(*args)
        check(done)
        is_output = place.split()[-1] in ("output", "maps", "report", "plot", "result")
        if kind in ("pipe", "socket", "device"):
            assert done.code, (kind, done)
            assert not os.path.isfile(name), kind
        elif not is_output and kind in ("loop", "link to pipe"):
            assert done.code, (kind, done)
        assert inputs.items() <= contents().items()


NAMES = {
    "not UTF-8": os.fsdecode(b"caf\xe9"),
    "two lines": "a\nb",
    "escape": "a\x1b[31mred\x1b[0m\r",
    "blank": " ",
    "dash": "-x",
    "surrogate": "\udcff\udcfe",
    "long": "n" * 240,
}


@pytest.mark.slow
@pytest.mark.parametrize("called", NAMES)
def test_odd_name_of(here: Path, called: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Files of any name are read and written; no name reaches stderr as it is."""
    name = NAMES[called]
    shutil.copy("image.npy", f"./{name}.npy")
    shutil.copy("labels.csv", f"./{name}.csv")
    shutil.copytree("images", f"./{name}")
    shutil.copytree("run", f"./{name}run")
    jobs = (
        ("fuse", f"./{name}.npy", "text.npy", "-o", f"./{name}.made.npy", "--dim", "8"),
        (
            "fuse",
            "image.npy",
            "text.npy",
            "-o",
            "o.npy",
            "--dim",
            "8",
            "--report",
            f"./{name}.json",
        ),
        ("inspect", f"./{name}.npy", f"./{name}"),
        ("batch", f"./{name}", "texts", "-o", f"./{name}out", "--dim", "8", "--workers", "1"),
        ("batch", f"./{name}", "texts", "-o", f"./{name}packs", "--dim", "8", "--pack"),
        ("evaluate", f"./{name}run", "images", "texts", "--labels", f"./{name}.csv"),
        ("predict", f"./{name}run", f"./{name}", "texts", "-o", f"./{name}.said.csv"),
        ("init", "-o", f"./{name}.safetensors", "--dim", "8"),
    )
    for job in jobs:
        with alarm():
            done = run(*job)
        assert done.code == 0, (job, done)
        assert all(c.isprintable() or c == "\n" for c in done.err), done
    for job in (("fuse", f"./{name}gone.npy", "text.npy"), ("predict", f"./{name}gone", "a", "b")):
        check(run(*job))


TOO_LONG = {"name": "n" * 300, "path": "d/" * 3000 + "n"}


@pytest.mark.slow
@pytest.mark.parametrize("called", TOO_LONG)
def test_path_that_no_file_can_have(here: Path, called: str) -> None:
    for place, (args, name) in PLACES.items():
        if name.startswith("X"):
            bad = TOO_LONG[called]
            job = [arg.replace("X", bad, 1) if arg.startswith("X") else arg for arg in args]
            with alarm():
                done = run(*job)
            check(done)
            assert done.code, place


SIZES = ("9" * 400, "-1", "1e400", "0", "nan", "1" * 30 + "T", "")
NUMBERS = {
    ("fuse", "image.npy", "text.npy", "-q", "-o", "o.npy"): (
        "--max-memory",
        "--dim",
        "--heads",
        "--seed",
        "--layers",
        "--ffn-dim",
        "--rank",
        "--alpha",
        "--sample",
        "--layer",
        "--grid",
    ),
    ("batch", "images", "texts", "-q", "-o", "out"): (
        "--max-memory",
        "--shard-size",
        "--workers",
        "--dim",
        "--heads",
        "--seed",
        "--shard",
    ),
    (*TRAIN, "-o", "new"): (
        "--max-memory",
        "--epochs",
        "--batch-size",
        "--lr",
        "--weight-decay",
        "--dropout",
        "--patience",
        "--seeds",
        "--folds",
        "--val-fraction",
        "--test-fraction",
    ),
    EVALUATE: ("--max-memory", "--seed"),
    ("predict", "run", "images", "texts", "-q", "-o", "said.csv"): ("--max-memory",),
    ("init", "-o", "w.safetensors", "-q"): (
        "--dim",
        "--heads",
        "--layers",
        "--ffn-dim",
        "--rank",
        "--image-dim",
        "--text-dim",
    ),
}


@pytest.mark.slow  # some of the numbers are possible, and a training takes its time
@pytest.mark.parametrize("args", NUMBERS, ids=lambda args: args[0])
def test_numbers_of_options(here: Path, args: tuple[str, ...]) -> None:
    for option in NUMBERS[args]:
        for number in SIZES:
            if args[0] == "train" and option in ("--epochs", "--seeds") and number == "0":
                continue
            with alarm():
                done = run(*args, option, number)
            check(done)
            shutil.rmtree("out", ignore_errors=True)
            shutil.rmtree("new", ignore_errors=True)
            for made in ("o.npy", "said.csv", "w.safetensors"):
                Path(made).unlink(missing_ok=True)
