"""What a training run's folder holds is read back by type: damage ends in one line, or is used.

The folder of a finished run (`evaluate`, `predict`, `fuse --weights`, and `train` again) and the
checkpoints of one that was killed.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from fusecli.errors import FuseError
from fusecli.training.checkpoint import Checkpoints, EpochRecord, JobState
from fusecli.training.encode import Tokens, make_targets, may_be_tags
from fusecli.training.label_checks import doubts, refuse_unreadable
from fusecli.training.labels import labels_of_file
from fusecli.training.learnt import read_learnt
from fusecli.training.options import LabelOptions
from fusecli.training.report import summary_lines
from fusecli.training.run_files import read_metrics
from fusecli.training.run_folder import RunFolder
from tests.faults.mutations import TURNS, bounds, check, mutated, parquet_bytes
from tests.faults.running import run
from tests.faults.training import TRAIN, N

MODELS = ("weights.safetensors", "models/text-only.safetensors", "models/majority.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_of_a_finished_run(folder_of_run: Path, name: str) -> None:
    os.unlink("run/metrics.json")  # its sums would refuse every damage at once
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


@pytest.mark.slow
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
    os.unlink("run/metrics.json")
    data, chance, said = record.read_bytes(), random.Random("split.csv"), list[str]()
    for _ in range(TURNS):
        record.write_bytes(mutated(data, chance))
        with bounds():
            try:
                read_learnt(str(record))
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_metrics_of_a_finished_run_are_whole_or_the_run_is_done_again(folder_of_run: Path) -> None:
    record = Path("run/metrics.json")
    data, chance, used = record.read_bytes(), random.Random("metrics.json"), 0
    for _ in range(TURNS):
        record.write_bytes(mutated(data, chance))
        with bounds():
            found = read_metrics(str(record))
            if found is not None:
                used += 1
                assert all(isinstance(line, str) for line in summary_lines(found))
    assert used
    for damaged in ({"table": {"": {}}}, {"table": ["ab"]}, {"verdict": "text"}, {"table": []}):
        record.write_bytes(json.dumps(json.loads(data) | damaged).encode())
        assert read_metrics(str(record)) is None, damaged
    record.write_bytes(data[: len(data) // 2])
    done = run(*TRAIN)
    assert done.code == 0, done
    assert record.read_bytes() == data
    record.unlink()
    os.mkfifo(record)
    assert read_metrics(str(record)) is None


TAGS = "id,label,group,split,weight\n" + "".join(
    f"{n:02},{'a|b' if n % 3 else 'c'},g{n // 2},{('train', 'val', 'test')[n % 3]},{n % 4}.5\n"
    for n in range(N)
)
LABELS = {
    "classes.csv": "id,label\n" + "".join(f"{n:02},{('yes', 'no')[n % 2]}\n" for n in range(N)),
    "numbers.csv": "id,label,weight\n" + "".join(f"{n:02},{n / 7},1\n" for n in range(N)),
    "several.csv": TAGS,
    "tags.jsonl": "".join(
        json.dumps({"id": f"{n:02}", "label": ["a", "bcd"[n % 3]], "group": n // 2}) + "\n"
        for n in range(N)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LABELS, "classes.parquet"])
def test_tables_of_labels(folder_of_run: Path, name: str) -> None:
    """As `train` and `evaluate` read them, and some through the command line."""
    ids = [f"{n:02}" for n in range(N)]
    if name == "classes.parquet":
        data = parquet_bytes({"id": ids, "label": [("yes", "no")[n % 2] for n in range(N)]})
    else:
        data = LABELS[name].encode()
    chance, said, used = random.Random(name), list[str](), 0
    evaluate = ("evaluate", "run", "images", "texts", "--labels", name, "--quiet")
    for turn in range(TURNS):
        damaged = mutated(data, chance)
        if turn % 50 == 0:
            check(Path(name), damaged, evaluate, (0, 1, 2))
        Path(name).write_bytes(damaged)
        with bounds():
            try:
                labels = labels_of_file(LabelOptions(name), ids, said.append)
                refuse_unreadable(labels, None)
                rows = len(labels.rows)
                tokens = None
                if may_be_tags(labels, None):
                    tokens = Tokens(np.ones((rows, 2), bool), np.full(rows, 2))
                targets = make_targets(labels, None, tokens)
                said += doubts(labels, targets.names)
                assert len(targets.values) == rows
                used += 1
            except FuseError as error:
                said.append(str(error))
    assert used
    assert said
    assert all("\n" not in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS[:2])
def test_numbers_of_a_finished_run(folder_of_run: Path, name: str) -> None:
    """Parameters and the statistics of the features: predictions are numbers, or there are none."""
    os.unlink("run/metrics.json")
    record, chance = Path("run", name), random.Random(f"numbers {name}")
    data = record.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    odd = np.array([0, -1, 1e-45, 1e-30, 1e10, 3e38, np.nan, np.inf], np.float32)
    args = ("predict", "run", "images", "texts", "-o", "said.csv", "--quiet")
    refused = 0
    for _ in range(TURNS // 10):
        Path("said.csv").unlink(missing_ok=True)
        numbers = np.frombuffer(data[start:], np.float32).copy()
        numbers[chance.randrange(len(numbers))] = chance.choice(odd)
        check(record, data[:start] + numbers.tobytes(), args, (0, 1))
        if Path("said.csv").exists():
            assert not {"nan", "inf"} & set(re.split(r"\W+", Path("said.csv").read_text()))
        else:
            refused += 1
    assert refused


def test_model_whose_numbers_overflow_says_nothing(folder_of_run: Path) -> None:
    """Finite parameters, and NaN for every pair: "no" would be the answer to all of them."""
    os.unlink("run/metrics.json")
    record = Path("run/weights.safetensors")
    data = record.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    numbers = np.frombuffer(data[start:], np.float32).copy()
    numbers[:] = np.where(np.abs(numbers) > 0, np.float32(3e38), 1)
    record.write_bytes(data[:start] + numbers.tobytes())
    done = run("predict", "run", "images", "texts", "-o", "new.csv", "--quiet")
    assert (done.code, done.out) == (1, ""), done
    assert done.err.startswith("error: run: its model 'fusion' gives NaN or infinity for 24 pairs")
    assert done.err.count("\n") == 1
    assert not os.path.exists("new.csv")
    done = run("evaluate", "run", "images", "texts", "--labels", "labels.csv", "--quiet")
    assert (done.code, done.out) == (1, ""), done
    assert "gives NaN or infinity" in done.err


@pytest.mark.parametrize("name", ["endless.csv", "endless.jsonl"])
def test_labels_without_an_end_of_line_take_no_memory(folder: Path, name: str) -> None:
    with open(name, "wb") as file:
        file.write(b"id,label")
        file.truncate(1 << 34)
    with bounds(), pytest.raises(FuseError, match="line 1: is longer than 16,777,216 bytes: this"):
        labels_of_file(LabelOptions(name), ["a"], list[str]().append)
