"""Files of two runs in one folder, and two commands in one folder at the same time."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from fusecli import load_module
from fusecli.errors import FeatureFileError, OutputError, UsageError
from fusecli.features.folder_lock import folder_lock
from fusecli.fusion.run_sums import are_whole
from fusecli.training import evaluate
from fusecli.training.evaluate import LoadedRun, open_run
from fusecli.training.learnt import read_learnt
from fusecli.training.run_folder import RunFolder
from fusecli.training.source import Data, open_data
from tests.faults.running import contents, run
from tests.faults.training import TRAIN

pytestmark = pytest.mark.slow

EVALUATE = ("evaluate", "run", "images", "texts", "--labels", "labels.csv", "-q")
PREDICT = ("predict", "run", "images", "texts", "-o", "new.csv", "-q")


NAMES = ("weights.safetensors", "models/text-only.safetensors", "split.csv")


def make_other(name: str) -> None:
    """Replace a file by one that another run could have written: other numbers, another part."""
    path = Path("run", name)
    data = path.read_bytes()
    if name == "split.csv":
        path.write_bytes(data.replace(b",train", b",test", 1))
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert path.read_bytes() != data


@pytest.mark.parametrize("name", NAMES)
def test_file_of_another_run_is_refused(folder_of_run: Path, name: str) -> None:
    assert are_whole("run")
    make_other(name)
    with pytest.raises(FeatureFileError, match=f"run/{name}: is not the file that this run has w"):
        read_learnt("run/split.csv") if name == "split.csv" else open_run("run")
    assert not are_whole("run")
    if name == "weights.safetensors":
        done = run(*PREDICT)
        assert (done.code, done.out) == (1, ""), done
        assert done.err.count("\n") == 1
        assert not os.path.exists("new.csv")


@pytest.mark.slow  # three trainings
@pytest.mark.parametrize("name", NAMES)
def test_run_with_a_file_of_another_is_done_again(folder_of_run: Path, name: str) -> None:
    whole = contents(Path("run"))
    make_other(name)
    assert run(*TRAIN).code == 0
    assert contents(Path("run")) == whole


def test_missing_model_and_model_of_no_run_are_refused(folder_of_run: Path) -> None:
    shutil.copy("run/models/additive.safetensors", "run/models/fusion.seed-1.safetensors")
    with pytest.raises(FeatureFileError, match=r"run/models/fusion.seed-1.safetensors: is not the"):
        open_run("run")
    assert not are_whole("run")
    os.unlink("run/models/fusion.seed-1.safetensors")
    os.unlink("run/models/additive.safetensors")
    with pytest.raises(
        FeatureFileError, match=r"run/models/additive.safetensors: is damaged, no s"
    ):
        open_run("run")
    assert not are_whole("run")


def test_paths_in_the_sums_are_the_same_on_every_system(folder_of_run: Path) -> None:
    files = json.loads(Path("run/metrics.json").read_text())["files"]
    assert {name for name in files if "/" in name} == {
        f"models/{name}" for name in os.listdir("run/models")
    }


def test_run_without_sums_of_its_files_is_still_read(folder_of_run: Path) -> None:
    """Earlier versions wrote no sums, and a user may have copied only the models of a run."""
    metrics = json.loads(Path("run/metrics.json").read_text())
    del metrics["files"]
    Path("run/metrics.json").write_text(json.dumps(metrics))
    make_other("weights.safetensors")
    assert len(open_run("run").models) > 3
    assert are_whole("run")
    os.unlink("run/metrics.json")
    assert len(open_run("run").models) > 3


@pytest.mark.parametrize("damage", ["", "[]", '{"files": 5}', '{"files": {"a": 1}}', "[" * 99_999])
def test_damaged_sums_end_in_one_line(folder_of_run: Path, damage: str) -> None:
    Path("run/metrics.json").write_text(damage)
    done = run(*EVALUATE)
    assert done.code == 1
    assert done.err.startswith("error: run/metrics.json: is damaged: copy the run's folder again")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("force", [(), ("--force",), ("--seed", "5", "--force")])
def test_training_keeps_others_out_of_its_folder(
    folder_of_run: Path, force: tuple[str, ...]
) -> None:
    """With --force a second one would delete what the first is writing."""
    before = contents(Path("run"))
    with folder_lock("run", "exclusive") as lock:
        assert lock == "held"
        for job in ((*TRAIN, *force), EVALUATE, PREDICT):
            done = run(*job)
            assert (done.code, done.out) == (1, "")
            assert done.err.startswith("error: run: ")
            assert done.err.endswith("wait for it, or name another folder\n" * (job[0] == "train"))
            assert "working" in done.err
            assert done.err.count("\n") == 1
    assert contents(Path("run")) == before
    with folder_lock("run", "shared"):
        open_run("run")  # several may read
        assert run(*TRAIN).code == 1


def test_folder_made_for_a_training_that_cannot_begin_is_removed(folder: Path) -> None:
    with suppress(UsageError), RunFolder("new", {}).alone():
        assert os.path.isdir("new")
        raise UsageError("it cannot begin")
    assert not os.path.exists("new")


@pytest.mark.parametrize("made_by", ["the other", "this"])
def test_folder_in_which_another_training_begins_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, made_by: str
) -> None:
    """Both begin at once, and the other has the lock first: the folder is still empty."""
    real = Path.mkdir
    with ExitStack() as other:

        def mkdir(path: Path, *args: Any, **options: Any) -> None:
            if path.name != "new":
                return real(path, *args, **options)
            if made_by == "the other":
                os.mkdir(path)
            try:
                real(path, *args, **options)
            finally:
                assert other.enter_context(folder_lock("new", "exclusive")) == "held"

        monkeypatch.setattr(Path, "mkdir", mkdir)
        with pytest.raises(OutputError, match="another command"), RunFolder("new", {}).alone():
            pass
        assert os.path.isdir("new")


def test_evaluate_reads_models_and_split_from_the_same_run(
    folder_of_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may be trained in the folder once its models were read."""

    def read(path: str) -> LoadedRun:
        found = open_run(path)
        with folder_lock(path, "exclusive") as lock:
            assert lock == "others hold it"
        return found

    def opened(*args: Any, **options: Any) -> Data:
        os.unlink("run/split.csv")
        return open_data(*args, **options)

    monkeypatch.setattr(evaluate, "open_run", read)
    monkeypatch.setattr(evaluate, "open_data", opened)
    done = run(*EVALUATE)
    assert done.code == 0, done
    assert done.out.startswith("given part: 5 pairs ")  # the others were learnt from


def test_a_note_tells_of_a_file_system_without_locks(
    folder_of_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*args: object, **options: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fusecli.features.folder_lock.fcntl.flock", without)
    done = run(*(arg for arg in TRAIN if arg != "--quiet"))
    assert done.code == 0
    open_run("run")
    assert "note: run: no locks here: run no other training in this folder" in done.err


def test_report_is_the_same_without_locks(
    folder_of_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of a run would differ by the file system."""
    whole = contents(Path("run"))
    make_other("split.csv")
    monkeypatch.setattr("fusecli.features.folder_lock.fcntl", None)
    assert run(*TRAIN).code == 0
    assert contents(Path("run")) == whole


def test_weights_that_the_run_has_not_written_are_refused(folder_of_run: Path) -> None:
    """By `fuse`, `batch` and in Python, wherever the folder or the file in it is named."""
    shutil.copy("run/weights.safetensors", "alone.safetensors")
    os.mkdir("stranger")
    shutil.copy("run/weights.safetensors", "stranger/weights.safetensors")
    Path("stranger/metrics.json").write_text('["of somebody else"]')
    pair = ("fuse", "images/00.npy", "texts/00.npy", "-o", "out.npy", "-q", "-f", "--weights")
    pairs = ("batch", "images", "texts", "-o", "out", "-q", "-f", "--weights")
    for used in ("run", "run/weights.safetensors", "alone.safetensors", "stranger"):
        assert run(*pair, used).code == 0, used
    data = bytearray(Path("run/weights.safetensors").read_bytes())
    data[-2] ^= 1
    Path("run/weights.safetensors").write_bytes(data)
    for job in (pair, pairs):
        for used in ("run", "run/weights.safetensors"):
            done = run(*job, used)
            assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
            assert done.err.startswith(
                "error: run/weights.safetensors: is not the file that this run has written, by "
                "metrics.json: "
            )
    with pytest.raises(FeatureFileError, match="is not the file that this run has written"):
        load_module("run")
    shutil.copy("run/weights.safetensors", "alone.safetensors")
    assert run(*pair, "alone.safetensors").code == 0, "a lone file is used as it is"
    os.unlink("run/metrics.json")
    assert run(*pair, "run").code == 0, "nothing is known of it"


def test_folders_of_batch_and_train_are_not_taken_for_each_other(folder_of_run: Path) -> None:
    """Also with --force: the record of the other would be replaced."""
    batch = ("batch", "images", "texts", "-q", "--dim", "16", "--workers", "1", "-o")
    assert run(*batch, "out").code == 0
    before = contents(Path())
    for force in ((), ("--force",)):
        done = run(*batch, "run", *force)
        assert done.err == "error: run/run.json: is of a run of fusecli train: say another -o\n"
        assert done.code == 1
        done = run(*("out" if arg == "run" else arg for arg in TRAIN), *force)
        assert done.err == (
            "error: out/run.json: is damaged, or of no training run: name another folder\n"
        )
        assert done.code == 2
    assert contents(Path()) == before
