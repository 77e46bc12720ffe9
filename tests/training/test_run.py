"""train, evaluate and predict from the command line, from files to files."""

import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.training.runs import N, fusecli, fusecli_process, write_pairs

pytestmark = pytest.mark.slow

FAST = ("--method", "bilinear", "--epochs", "2", "--seeds", "1")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = write_pairs(tmp_path_factory.mktemp("run"))
    # In a process of its own: the killed run, which needs one, has to end with the same bytes.
    arguments = ("train", "img", "txt", "--labels", "labels.csv", "-o", "run", *FAST)
    return folder, fusecli_process(*arguments, cwd=folder)


def test_the_folder_of_a_run_holds_all_its_files(trained):
    folder, done = trained
    run = folder / "run"
    assert done.stdout == "run\n"
    assert {path.name for path in run.iterdir()} == {
        "weights.safetensors", "models", "metrics.json", "report.md", "predictions.csv",
        "split.csv", "log.jsonl", "curves.png", "comparison.png", "run.json",
    }  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["format"] == 1
    assert [model["name"] for model in metrics["models"]] == [
        "majority", "text only", "image only", "additive", "concat + MLP", "fusion",
    ]  # fmt: skip
    assert metrics["models"][0]["headline"]["value"] == 0.5
    assert set(metrics["recipes"]) == {model["name"] for model in metrics["models"][1:]}
    assert {(one["lr"], one["epochs"]) for one in metrics["recipes"].values()} == {(1e-3, 2)}
    assert set(metrics["fusion_minus"]) == {m["name"] for m in metrics["models"][:-1]}
    assert metrics["pairs"] == {"train": 36, "validation": 12, "test": 12}
    for line in metrics["verdict"]:
        assert line in done.stderr
    assert "fusecli evaluate run" in done.stderr


def test_the_table_on_screen_is_the_one_of_the_report(trained):
    folder, done = trained
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    report = (folder / "run" / "report.md").read_text()
    for row in metrics["table"]:
        assert f"| {' | '.join(row)} |" in report
        assert all(cell in done.stderr for cell in row)


def test_predictions_are_those_that_the_metrics_are_made_of(trained):
    from sklearn.metrics import roc_auc_score

    folder, _ = trained
    rows = rows_of(folder / "run" / "predictions.csv")
    assert len(rows) == N  # small data is chosen by folds: everybody is predicted from outside
    split = {row["id"]: row["split"] for row in rows_of(folder / "run" / "split.csv")}
    assert all(split[row["id"]] == row["split"] for row in rows)
    test = [row for row in rows if row["split"] == "test"]
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    for model in metrics["models"]:
        auc = roc_auc_score(
            [row["label"] == "yes" for row in test],
            [float(row[f"{model['name']}: yes"]) for row in test],
        )
        assert auc == pytest.approx(model["headline"]["value"])
        assert auc == pytest.approx(model["metrics"]["auc"])


def test_the_same_command_again_computes_nothing(trained):
    folder, _ = trained
    before = (folder / "run" / "metrics.json").read_bytes()
    done = fusecli("train", "img", "txt", "--labels", "labels.csv", "-o", "run", *FAST, cwd=folder)
    assert "is complete: nothing was computed" in done.stderr
    assert (folder / "run" / "metrics.json").read_bytes() == before


def test_other_options_are_refused(trained):
    folder, _ = trained
    arguments = ("img", "txt", "--labels", "labels.csv", "-o", "run", *FAST, "--lr", "0.01")
    done = fusecli("train", *arguments, cwd=folder, code=2)
    assert done.stderr.count("\n") == 1
    assert "lr" in done.stderr
    assert "--force" in done.stderr


def test_evaluate_leaves_out_what_was_learnt_and_takes_the_model_apart(trained):
    folder, _ = trained
    trained_on = json.loads((folder / "run" / "metrics.json").read_text())
    arguments = ("evaluate", "run", "img", "txt", "--labels", "labels.csv")
    done = fusecli(*arguments, cwd=folder)
    assert (
        "48 pairs stood in training or validation of this run: left out, 12 remain" in done.stderr
    )
    assert "without interaction (EMAP)" in done.stdout
    assert "shuffled across groups" in done.stdout
    found = json.loads(fusecli(*arguments, "--json", "--quiet", cwd=folder).stdout)
    for model, before in zip(found["models"], trained_on["models"], strict=True):
        assert model["headline"]["value"] == pytest.approx(before["headline"]["value"])
    assert found["interaction"]["exact"]


def test_predict_writes_one_row_a_pair(trained):
    folder, _ = trained
    fusecli("predict", "run", "img", "txt", "-o", "p.csv", cwd=folder)
    rows = rows_of(folder / "p.csv")
    assert {row["id"] for row in rows} == {f"p{n}" for n in range(N)}
    said = {row["id"]: float(row["p(yes)"]) for row in rows}
    for row in rows_of(folder / "run" / "predictions.csv"):
        if row["split"] == "test":
            assert said[row["id"]] == pytest.approx(float(row["fusion: yes"]), abs=1e-4)
    done = fusecli("predict", "run", "img", "txt", "-o", "p.csv", cwd=folder, code=2)
    assert "exists: say -f" in done.stderr


def test_features_of_other_widths_are_refused(trained, tmp_path):
    folder, _ = trained
    for name, width in (("img", 7), ("txt", 5)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.ones((2, width), np.float32))
    done = fusecli("predict", folder / "run", "img", "txt", cwd=tmp_path, code=1)
    assert "image features are 7 wide" in done.stderr
    assert "learnt from 6" in done.stderr


def test_an_unknown_label_is_refused(trained, tmp_path):
    folder, _ = trained
    other = write_pairs(tmp_path / "o", 20, 3, lambda n, a, b: "maybe" if n == 4 else "yes")
    done = fusecli(
        "evaluate", folder / "run", "img", "txt", "--labels", "labels.csv", cwd=other, code=1
    )
    assert "first 'maybe', pair 'p4'" in done.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    write_pairs(tmp_path / "d", 20)
    done = fusecli("predict", "img", "img", "txt", cwd=tmp_path / "d", code=2)
    assert "run.json" in done.stderr


# The command line in a process that kills itself when it has kept the states of four jobs.
KILLED = """
import os, signal, sys
from fusecli.cli.main import main
from fusecli.training.checkpoint import Checkpoints

save, kept = Checkpoints.save, []

def save_and_count(self, key, *args):
    save(self, key, *args)
    kept.append(key)
    if len(kept) == 4:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = save_and_count
main()
"""


def test_a_killed_run_goes_on_to_the_same_bytes(trained):
    folder, _ = trained
    arguments = ["train", "img", "txt", "--labels", "labels.csv", "-o", "again", *FAST]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], cwd=folder, capture_output=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    again, whole = folder / "again", folder / "run"
    assert len(list((again / "checkpoints").glob("*.safetensors"))) >= 4
    assert not (again / "metrics.json").exists()
    fusecli_process(*arguments, "--resume", cwd=folder)
    names = ("weights.safetensors", "metrics.json", "predictions.csv", "split.csv", "report.md")
    for name in names:
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name


BAD = {
    "labels equal": (lambda n, a, b: "x", [], "there is nothing to learn"),
    "one example": (lambda n, a, b: "c" if n == 5 else "ab"[n % 2], [], "one example (first 'c'"),
    "NaN": (lambda n, a, b: "nan" if n == 5 else n / 7, [], "first 'p5') is NaN"),
    "id column": (lambda n, a, b: n % 2, ["--label-column", "id"], "is no label"),
    "no column": (lambda n, a, b: n % 2, ["--label-column", "x"], "has no column x"),
    "tags": (lambda n, a, b: '"[""X"", ""Y"", ""X""]"', [], "of another length than the text"),
}


@pytest.mark.parametrize(("label", "more", "message"), BAD.values(), ids=BAD)
def test_bad_labels_are_one_line_and_leave_nothing(label, more, message, tmp_path):
    folder = write_pairs(tmp_path / "d", 30, label=label)
    done = fusecli(
        "train", "img", "txt", "--labels", "labels.csv", "-o", "run", *FAST, *more,
        cwd=folder, code=1,
    )  # fmt: skip
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "run").exists()


def test_too_few_pairs_and_one_image_are_refused(tmp_path):
    folder = write_pairs(tmp_path / "few", 19)
    done = fusecli("train", "img", "txt", "--labels", "labels.csv", "-o", "r", cwd=folder, code=1)
    assert "at least 20 pairs with labels, found 19 pairs" in done.stderr
    folder = write_pairs(tmp_path / "one", 30)
    for number in range(1, 30):
        np.save(folder / "img" / f"p{number}.npy", np.load(folder / "img" / "p0.npy"))
    done = fusecli("train", "img", "txt", "--labels", "labels.csv", "-o", "r", cwd=folder, code=1)
    assert "are in 1 group" in done.stderr


def test_tags_of_single_vectors_without_residual_are_refused(tmp_path):
    folder = write_pairs(tmp_path / "d", 30, label=lambda n, a, b: '"[""X"", ""Y""]"')
    for number in range(30):
        np.save(folder / "img" / f"p{number}.npy", np.full((1, 6), number, np.float32))
    done = fusecli(
        "train", "img", "txt", "--labels", "labels.csv", "-o", "r", "--method", "attention",
        "--no-residual", cwd=folder, code=2,
    )  # fmt: skip
    assert "cannot be learnt" in done.stderr


def test_folds_predict_everybody_once(tmp_path):
    folder = write_pairs(tmp_path / "d", 40)
    done = fusecli(
        "train", "img", "txt", "--labels", "labels.csv", "-o", "run", *FAST, "--folds", "3",
        cwd=folder,
    )  # fmt: skip
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["part"] == "out-of-fold"
    assert "with other pairs (the run has learnt from all of these)" in done.stderr
    assert len(metrics["models"][-1]["folds"]) == 3
    assert len(rows_of(folder / "run" / "predictions.csv")) == 40
    assert {row["fold"] for row in rows_of(folder / "run" / "split.csv")} == {"1", "2", "3"}
    chosen = [note.split(":")[0] for note in metrics["notes"] if "is the best by" in note]
    assert chosen  # of the fit on all pairs, not of every fold
    assert len(chosen) == len(set(chosen))


def test_labels_and_rows_of_stacks_in_a_manifest(tmp_path):
    generator = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", generator.normal(size=(15, 2, 6)).astype(np.float32))
    np.save(tmp_path / "texts.npy", generator.normal(size=(30, 2, 5)).astype(np.float32))
    lines = ["id,image,text,image_row,text_row,label"]
    lines += [f"q{n},images.npy,texts.npy,{n // 2},{n},{n % 2}" for n in range(30)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    fusecli("train", "--manifest", "pairs.csv", "-o", "run", *FAST, cwd=tmp_path)
    split = {row["id"]: row["split"] for row in rows_of(tmp_path / "run" / "split.csv")}
    # Two texts of one image stand in one part.
    assert all(split[f"q{n}"] == split[f"q{n + 1}"] for n in range(0, 30, 2))
