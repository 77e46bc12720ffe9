"""`train` and `predict` change no input and follow no link in a run's folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.running import contents, run
from tests.faults.training import TRAIN

PREDICT = ("predict", "run", "images", "texts", "--quiet", "--force")


def refused(args: tuple[str, ...], says: str) -> None:
    before = contents(Path())
    done = run(*args)
    assert (done.code, done.out) == (1, ""), done
    assert done.err.startswith(f"error: {says}"), done
    assert done.err.count("\n") == 1, done
    assert contents(Path()) == before


@pytest.mark.parametrize("name", ["predictions.csv", "models/labels.csv", "split.csv"])
def test_labels_in_a_runs_folder_stay(folder_of_run: Path, name: str) -> None:
    """`--force` deletes a run, but no file that is also an input."""
    shutil.copy("labels.csv", f"run/{name}")
    args = tuple(f"run/{name}" if arg == "labels.csv" else arg for arg in TRAIN)
    refused((*args, "--seed", "5", "--force"), f"run/{name}: is also an input, and inputs are")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_features_that_a_runs_folder_leads_to_stay(folder_of_run: Path, link: Callable) -> None:
    os.unlink("run/report.md")
    link(os.path.abspath("images/00.npy"), "run/report.md")
    refused((*TRAIN, "--seed", "5", "--force"), "run/report.md: is also an input, and inputs are")


@pytest.mark.parametrize(
    "name", ["metrics.json", "weights.safetensors", "models", "checkpoints", "models/x.safetensors"]
)
def test_links_planted_in_a_runs_folder_are_not_followed(folder_of_run: Path, name: str) -> None:
    Path("victim").mkdir()
    Path("victim/precious").write_text("precious")
    path = Path("run", name)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    folder = name in ("models", "checkpoints")
    path.symlink_to(os.path.abspath("victim" if folder else "victim/precious"))
    refused(TRAIN, f"run/{name}: is a link, which is not followed in a run's folder; expected a f")
    refused((*TRAIN, "--seed", "5", "--force"), f"run/{name}: is a link, which is not followed")


@pytest.mark.parametrize("target", ["pairs.csv", "run/split.csv"])
def test_predictions_replace_no_input(folder_of_run: Path, target: str) -> None:
    rows = [f"{n:02},images/{n:02}.npy,texts/{n:02}.npy" for n in range(4)]
    Path("pairs.csv").write_text("\n".join(["id,image,text", *rows]) + "\n")
    args = ("predict", "run", "--manifest", "pairs.csv", "--quiet", "--force")
    refused((*args, "-o", target), f"{target}: is also an input, and inputs are never changed")


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("target", ["images/00.npy", "run/weights.safetensors"])
def test_predictions_go_through_no_link_to_an_input(
    folder_of_run: Path, target: str, link: Callable
) -> None:
    link(os.path.abspath(target), "new.csv")
    refused((*PREDICT, "-o", "new.csv"), "new.csv: is also an input, and inputs are never changed")


def test_predictions_into_a_folder_that_is_not_there(folder_of_run: Path) -> None:
    """Said before the pairs are read."""
    where = os.path.realpath("gone")
    refused((*PREDICT, "-o", "gone/new.csv"), f"gone/new.csv: its folder {where} does not exist: m")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_predictions_replace_no_pipe_and_no_folder(folder_of_run: Path, kind: str) -> None:
    os.mkfifo("new.csv") if kind == "pipe" else os.mkdir("new.csv")
    done = run(*PREDICT, "-o", "new.csv")
    what = "device or pipe" if kind == "pipe" else "directory"
    assert (done.code, done.err) == (1, f"error: new.csv: is a {what}, expected a file\n")
    assert not os.path.isfile("new.csv")
