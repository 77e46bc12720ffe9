"""The files of a run: what --force deletes and keeps, and the pictures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fusecli.errors import UsageError
from fusecli.training.checkpoint import EpochRecord
from fusecli.training.emap import MOST_PAIRS, MOST_PARTNERS, emap
from fusecli.training.fitted import FitInfo, Fitted
from fusecli.training.pictures import draw_comparison, draw_curves
from fusecli.training.run_folder import RunFolder
from tests.training.results import HELPS, result
from tests.training.runs import fusecli, write_pairs

RESULTS = ("metrics.json", "report.md")


def full_folder(path, seed):
    RunFolder(str(path), {"seed": seed}, RESULTS).begin()
    for name in (*RESULTS, "weights.safetensors", "mine.txt"):
        (path / name).write_text("x")
    for name in ("models", "checkpoints"):
        (path / name).mkdir()
        (path / name / "a.safetensors").write_text("x")


def test_force_deletes_another_run_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    full_folder(run, 1)
    with pytest.raises(UsageError, match="differs in seed: say --force"):
        RunFolder(str(run), {"seed": 2}, RESULTS).begin()
    assert len(list(run.iterdir())) == 7
    assert not RunFolder(str(run), {"seed": 2}, RESULTS).begin(force=True)
    assert {path.name for path in run.iterdir()} == {"run.json", "mine.txt"}


def test_force_leaves_a_run_of_the_same_options_as_it_is(tmp_path):
    run = tmp_path / "run"
    full_folder(run, 1)
    assert RunFolder(str(run), {"seed": 1}, RESULTS).begin(force=True)
    assert len(list(run.iterdir())) == 7


def test_a_deletion_that_is_stopped_can_be_repeated(tmp_path, monkeypatch):
    run = tmp_path / "run"
    full_folder(run, 1)

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("fusecli.training.run_folder.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(str(run), {"seed": 2}, RESULTS).begin(force=True)
    # Neither run is taken for a finished one, and the folder is still known to be a run's.
    assert not (run / "metrics.json").exists()
    assert not RunFolder(str(run), {"seed": 2}, RESULTS).begin(force=True)
    assert json.loads((run / "run.json").read_text())["identity"] == {"seed": 2}


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path):
    folder = write_pairs(tmp_path / "d")
    arguments = ("train", "img", "txt", "--labels", "labels.csv", "-o", "run", "--epochs", "90")
    process = subprocess.Popen(
        [sys.executable, "-m", "fusecli", *arguments],
        cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (folder / "run" / "checkpoints").is_dir():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in said
    assert "Traceback" not in said
    assert not (folder / "run" / "metrics.json").exists()
    done = fusecli("evaluate", "run", "img", "txt", "--labels", "labels.csv", cwd=folder, code=2)
    assert "the run is not finished: run the same fusecli train command again" in done.stderr


@pytest.mark.slow
def test_pictures_are_the_same_bytes_for_the_same_numbers():
    one = result(text_only=HELPS)
    picture = draw_comparison(one)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert draw_comparison(one) == picture
    one.models.pop()
    assert draw_comparison(one) != picture


@pytest.mark.slow
def test_curves_leave_out_what_was_not_looked_at():
    history = {"a": [EpochRecord(1, 0.9, None, ""), EpochRecord(2, 0.7, 0.6, "AUC")]}
    info = FitInfo("attention", history=history, score_name="AUC")
    nothing = np.zeros(0, np.int64), np.zeros((0, 1), np.float32)
    models = [
        Fitted(name, [], None, None, info, *nothing)  # type: ignore[arg-type]
        for name in ("text only", "fusion")
    ]
    picture = draw_curves(models)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert draw_curves([]) is not None


class Counting:
    """A model that counts what it is asked for."""

    name = "fusion"

    def __init__(self):
        self.most = self.total = 0

    def cross_logits(self, text_rows, image_rows):
        self.most = max(self.most, len(text_rows), len(image_rows))
        self.total += len(text_rows) * len(image_rows)
        return np.zeros((len(text_rows), len(image_rows), 1), np.float32)


class Table:
    def __init__(self, n):
        self.n = n
        self.ids = self.image_key = self.text_key = tuple(map(str, range(n)))
        self.text_mask = np.ones((n, 1), bool)


def test_emap_of_many_pairs_costs_no_more_than_its_sample():
    model = Counting()
    found = emap(model, Table(20_000), np.arange(20_000), seed=0)
    assert len(found.rows) == MOST_PAIRS
    assert not found.exact
    # Each measured text with a sample of images, and each measured image with one of texts.
    assert model.total <= (MOST_PAIRS + MOST_PARTNERS) * MOST_PARTNERS + MOST_PAIRS * MOST_PARTNERS
