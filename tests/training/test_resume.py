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
    assert Checkpoints(tmp_path, "another run").load("job") is None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-2])
    assert kept.load("job") is None


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
