"""What a training run's folder holds is read back by type: damage ends in one line, or is used.

The folder of a finished run (`evaluate`, `predict`, `fuse --weights`, and `train` again) and the
checkpoints of one that was killed.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from fusecli.errors import FuseError
from fusecli.training.checkpoint import Checkpoints, EpochRecord, JobState
from fusecli.training.evaluate import _learnt
from fusecli.training.run_folder import RunFolder
from fusecli.training.train import _read, stored_lines
from tests.faults.running import run
from tests.faults.test_fuzz import TURNS, bounds, check, mutated
from tests.faults.training import TRAIN

MODELS = ("weights.safetensors", "models/text-only.safetensors", "models/majority.safetensors")


@pytest.mark.parametrize("name", MODELS)
def test_models_of_a_finished_run(folder_of_run: Path, name: str) -> None:
    record = Path("run", name)
    data, chance = record.read_bytes(), random.Random(name)
    there = {*os.listdir(), "mutation", "said.csv"}
    inside = sorted(os.listdir("run")), sorted(os.listdir("run/models"))
    for turn in range(TURNS // 3):
        Path("said.csv").unlink(missing_ok=True)
        args = ("predict", "run", "images", "texts", "-o", "said.csv", "--quiet")
        if name == "weights.safetensors" and turn % 4 == 0:
            args = ("inspect", "run/weights.safetensors")
        check(record, mutated(data, chance), args, (0, 1, 2))
        assert set(os.listdir()) <= there
        assert (sorted(os.listdir("run")), sorted(os.listdir("run/models"))) == inside


def test_what_a_run_was_begun_with(folder_of_run: Path) -> None:
    record = Path("run/run.json")
    data, chance = record.read_bytes(), random.Random("run.json")
    identity = json.loads(data)["identity"]
    same, said = 0, list[str]()
    for _ in range(TURNS):
        damaged = mutated(data, chance)
        record.write_bytes(damaged)
        with bounds():
            try:
                goes_on = RunFolder("run", identity).begin()
            except FuseError as error:
                said.append(str(error))
            else:
                assert goes_on
                same += json.loads(damaged)["identity"] == identity
        assert record.read_bytes() == damaged
    assert same
    assert all("\n" not in line for line in said)


def test_list_of_pairs_that_a_run_has_learnt_from(folder_of_run: Path) -> None:
    """Without it, numbers on pairs that were learnt from would be taken for numbers on others."""
    record = Path("run/split.csv")
    data, chance, said = record.read_bytes(), random.Random("split.csv"), list[str]()
    for _ in range(TURNS):
        record.write_bytes(mutated(data, chance))
        with bounds():
            try:
                _learnt(str(record))
            except FuseError as error:
                said.append(str(error))
    assert said
    assert all("\n" not in line for line in said)
    evaluate = ("evaluate", "run", "images", "texts", "--labels", "labels.csv", "--quiet")
    record.write_text("id,split\n00,train\n")
    done = run(*evaluate)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: run/split.csv: is damaged, a row has not the columns id, ")
    record.unlink()
    done = run(*evaluate)
    assert (done.code, done.out, done.err) == (1, "", "error: run/split.csv: no such file\n")
    os.mkfifo(record)
    assert run(*evaluate).err.startswith("error: run/split.csv: is not a regular file")


def test_checkpoint_is_whole_or_not_used(folder: Path) -> None:
    rng = np.random.default_rng(0)
    state = JobState(3, 12, *(rng.standard_normal(40).astype(np.float32) for _ in range(4)))
    state.history = [EpochRecord(1, 0.5, None, "AUC"), EpochRecord(2, 0.25, 0.75, "AUC")]
    state.held_out = {2: rng.standard_normal((4, 2)).astype(np.float32)}
    kept = Checkpoints(folder, "run")
    kept.save("job", state)
    (path,) = folder.iterdir()
    data, chance, used = path.read_bytes(), random.Random("checkpoint"), 0
    for _ in range(TURNS):
        path.write_bytes(mutated(data, chance))
        with bounds():
            found = kept.load("job")
        if found is not None:
            used += 1
            assert repr(found) == repr(state)
    assert used < TURNS // 3
    path.unlink()
    os.mkfifo(path)
    assert kept.load("job") is None


def test_metrics_of_a_finished_run_are_whole_or_the_run_is_done_again(folder_of_run: Path) -> None:
    record = Path("run/metrics.json")
    data, chance, used = record.read_bytes(), random.Random("metrics.json"), 0
    for _ in range(TURNS):
        record.write_bytes(mutated(data, chance))
        with bounds():
            found = _read(str(record))
            if found is not None:
                used += 1
                assert all(isinstance(line, str) for line in stored_lines(found))
    assert used
    record.write_bytes(data[: len(data) // 2])
    done = run(*TRAIN)
    assert done.code == 0, done
    assert record.read_bytes() == data
    record.unlink()
    os.mkfifo(record)
    assert _read(str(record)) is None
