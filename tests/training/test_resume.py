"""A run that is killed at any moment and started again ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

# Trains in a process of its own; writes `weights.safetensors`, `models/` and `logits.npy`.
TRAIN = """
import sys
import numpy as np
from fusecli.pairs.pair import PairOptions
from fusecli.training import fit as fit_module
from fusecli.training import loop
from fusecli.training.fit import fit
from fusecli.features.protected import ProtectedFiles
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.run_folder import RunFolder
from tests.training import generators

folder, n, epochs, folded = sys.argv[1], *map(int, sys.argv[2:5])
loop._CHECKPOINT_SECONDS = 0.0  # a checkpoint after every epoch
fit_module.FOLDED_ROWS = folded  # with more pairs a validation part chooses
images, texts, labels = generators.product(n, np.random.default_rng(0), width=8)
examples = generators.examples_of(images, texts)
targets = generators.classes(labels)
split = generators.thirds(n)
options = TrainOptions(
    PairOptions(), LabelOptions(), folder, epochs=epochs, patience=2, device="cpu", seeds=2
)
run = RunFolder(folder, {"n": n, "epochs": epochs})
run.check(ProtectedFiles(lambda: ()))  # as train does: files of the killed run may be replaced
run.begin()
print("begun", flush=True)
fitted = fit(examples, targets, split, options, checkpoints=run.checkpoints())
run.save_models(fitted, {"task": "classify", "names": list(targets.names)}, {})
np.save(folder + "/logits.npy", np.stack([f.logits(split.test) for f in fitted]))
run.finish()
print("done", flush=True)
"""


def start(folder, n, epochs, folded=2000):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder), str(n), str(epochs), str(folded)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def complete(folder, n, epochs, folded=2000):
    process = start(folder, n, epochs, folded)
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, "begun\ndone\n")


def finished(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("folded", [2000, 50], ids=["chosen by folds", "chosen by validation"])
def test_a_killed_run_ends_with_the_same_bytes(folded, tmp_path):
    n, epochs = 120, 4 if folded == 2000 else 12
    complete(tmp_path / "whole", n, epochs, folded)
    expected = finished(tmp_path / "whole")
    assert {"weights.safetensors", "logits.npy", "models/text-only.safetensors"} <= set(expected)
    assert not any(name.startswith("checkpoints") for name in expected)

    killed, kept = 0, tmp_path / "killed" / "checkpoints"
    left: set[tuple[str, int]] = set()  # by the killed runs; one that ends removes its own
    rng = np.random.default_rng(folded)
    while killed < 4:
        process = start(tmp_path / "killed", n, epochs, folded)
        assert process.stdout.readline() == "begun\n"
        before = states(kept)
        wanted = int(rng.integers(1, 12))
        while process.poll() is None and len(states(kept) - before) < wanted:
            time.sleep(0.005)
        over = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        if over:
            break
        killed += 1
        left |= states(kept)
    assert killed >= 2, "the run was over before it could be killed"
    assert left, "nothing was kept of the killed runs"
    complete(tmp_path / "killed", n, epochs, folded)
    found = finished(tmp_path / "killed")
    assert set(found) == set(expected)
    for name in expected:
        assert found[name] == expected[name], name


def states(folder):
    """Checkpoints as they are now; a new one of the same job counts as another."""
    found = set()
    for path in folder.glob("*.safetensors"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def test_a_damaged_checkpoint_is_not_used(tmp_path):
    from fusecli.training.checkpoint import Checkpoints, EpochRecord, JobState

    kept = Checkpoints(tmp_path, "run")
    state = JobState(epoch=1, steps=3, best=np.ones(3, np.float32), best_epoch=1, done=True)
    state.history.append(EpochRecord(1, 0.5, None, ""))
    kept.save("job", state)
    loaded = kept.load("job")
    assert loaded is not None
    assert loaded.history == state.history
    np.testing.assert_array_equal(loaded.best, state.best)
    assert kept.load("another job") is None
    assert kept.load("job", "another recipe") is None
    assert Checkpoints(tmp_path, "another run").load("job") is None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-2])
    assert kept.load("job") is None


def job(**changes):
    from fusecli.training.loop import Job, Recipe

    recipe = Recipe(**{"epochs": 2, **changes.pop("recipe", {})})
    usual = {"train": np.arange(8), "held_out": np.arange(8, 12), "seed": 0, "model": "{}"}
    build = changes.pop("build", lambda: None)
    return Job("fusion / attention / choose", build, recipe, **(usual | changes))


OTHERS = {
    "another learning rate": {"recipe": {"lr": 5e-4}},
    "another dropout": {"recipe": {"head": 0.1}},
    "other pairs": {"train": np.arange(1, 9)},
    "other held-out pairs": {"held_out": np.arange(8, 13)},
    "another length": {"stop": 1},
    "another model": {"model": '{"width": 64}'},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_recipe_is_not_taken(changes, tmp_path):
    from fusecli.training.checkpoint import Checkpoints, JobState

    kept, own, other = Checkpoints(tmp_path, "run"), job(), job(**changes)
    assert own.key == other.key
    kept.save(own.key, JobState(epoch=1, best=np.ones(3, np.float32), done=True), own.made_of())
    assert kept.load(job().key, job().made_of()) is not None
    assert kept.load(other.key, other.made_of()) is None


def test_a_job_goes_on_from_a_state_of_its_own_recipe_only(tmp_path):
    import torch

    from fusecli.pairs.pair import PairOptions
    from fusecli.training.candidates import make_candidates
    from fusecli.training.checkpoint import Checkpoints
    from fusecli.training.inference import Setting
    from fusecli.training.loop import train_model
    from fusecli.training.options import LabelOptions, TrainOptions
    from tests.training import generators

    images, texts, labels = generators.product(24, np.random.default_rng(0), width=4)
    examples, targets = generators.examples_of(images, texts), generators.classes(labels)
    options = TrainOptions(PairOptions(), LabelOptions(), "run", method="bilinear")
    spec = make_candidates(examples, targets, options, 24)[0].spec
    statistics = spec.statistics(examples, np.arange(24))
    setting = Setting(examples, targets, torch.device("cpu"), False, np.arange(24))

    def weights(lr, folder):
        wanted = job(build=lambda: spec.build(*statistics), recipe={"epochs": 1, "lr": lr})
        return train_model(wanted, setting, Checkpoints(folder)).weights

    before = weights(1e-3, tmp_path)
    np.testing.assert_array_equal(weights(1e-3, tmp_path), before)
    after = weights(5e-4, tmp_path)
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(after, weights(5e-4, None))


@pytest.mark.slow
def test_a_stored_run_gives_the_same_logits_again(tmp_path):
    import torch

    from fusecli.training.fitted import Fitted
    from fusecli.training.stored_run import load_run
    from tests.training import generators

    complete(tmp_path / "run", 120, 2)
    head, stored = load_run(str(tmp_path / "run"))
    assert head["names"] == ["class 00", "class 01"]
    images, texts, _ = generators.product(120, np.random.default_rng(0), width=8)
    examples = generators.examples_of(images, texts)
    expected = np.load(tmp_path / "run" / "logits.npy")
    names = ["majority", "text only", "image only", "additive", "concat + MLP", "fusion"]
    assert [model.name for model in stored] == names
    before = {}
    for model, logits in zip(stored, expected, strict=True):
        again = Fitted.restored(model, examples, torch.device("cpu"), before)
        before[model.name] = again
        np.testing.assert_array_equal(again.logits(generators.thirds(120).test), logits)


@pytest.mark.parametrize("leads_to", ["nowhere", "."])
def test_a_link_in_place_of_an_inner_folder_is_refused(leads_to, tmp_path):
    from fusecli.errors import OutputError
    from fusecli.training.checkpoint import Checkpoints, JobState, make_folder

    place = tmp_path / "checkpoints"
    place.symlink_to(tmp_path / leads_to)
    with pytest.raises(OutputError, match="checkpoints: is a link, which is not followed"):
        Checkpoints(place).save("job", JobState())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    (tmp_path / "models").write_text("a file")
    with pytest.raises(OutputError, match="models: cannot be made: File exists"):
        make_folder(tmp_path / "models")


@pytest.mark.parametrize("name", [".", "run", "run/", "./run//", "../d/run"])
def test_a_folder_is_gone_on_with_however_it_is_written(name, tmp_path, monkeypatch):
    from fusecli.features.protected import ProtectedFiles
    from fusecli.training.run_folder import RunFolder

    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    for again in (False, True):
        folder = RunFolder(name, {"seed": 1}, ("metrics.json",))
        with folder.alone():
            folder.check(ProtectedFiles(lambda: ()))
            assert folder.begin() == again
            (folder.path / "models").mkdir(exist_ok=True)
            for file in ("metrics.json", "weights.safetensors", "models/a.safetensors"):
                folder.write(file, [b"new" if again else b"old"])
    assert Path(name, "metrics.json").read_bytes() == b"new"
    assert Path(name, "models", "a.safetensors").read_bytes() == b"new"


def test_a_folder_of_another_run_is_refused(tmp_path):
    from fusecli.errors import UsageError
    from fusecli.training.run_folder import RunFolder

    path = str(tmp_path / "run")
    with pytest.raises(UsageError, match="holds no run to go on with"):
        RunFolder(path, {"seed": 1}).begin(resume=True)
    assert not RunFolder(path, {"seed": 1, "labels": {"hash": "a"}}).begin()
    assert RunFolder(path, {"seed": 1, "labels": {"hash": "a"}}).begin(resume=True)
    with pytest.raises(UsageError, match=r"differs in labels\.hash, seed: say --force"):
        RunFolder(path, {"seed": 2, "labels": {"hash": "b"}}).begin()
    assert not RunFolder(path, {"seed": 2}).begin(force=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["identity"] == {"seed": 2}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty and holds no run.json"):
        RunFolder(str(tmp_path / "other"), {}).begin(force=True)
