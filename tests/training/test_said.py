"""A training says of its pairs what a batch says: one line a kind, with a count."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusecli.errors import FeatureFileError, PairsError
from fusecli.features.pair_inputs import ReadOptions
from fusecli.pairs.open import open_pairs
from fusecli.pairs.pair import PairOptions
from fusecli.training import evaluate
from fusecli.training.fit_progress import Quiet
from fusecli.training.learnt import Learnt
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.pair_files import PairFiles
from fusecli.training.source import Data, SourceOptions, open_data
from fusecli.training.train import run_training

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("texts").mkdir()


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def write(count: int, image: dict[str, np.ndarray], T: int = 5) -> None:
    lines = ["id,label"]
    for index in range(count):
        tensors = {key: value.copy() for key, value in image.items()}
        save_file(tensors, f"images/{index}.safetensors")
        np.save(f"texts/{index}.npy", noise(T, 16))
        lines.append(f"{index},{'yes' if index % 2 else 'no'}")
    Path("labels.csv").write_text("\n".join(lines) + "\n")


def opened(images: str = "images", texts: str = "texts") -> tuple[Data, list[str]]:
    said: list[str] = []
    pairs = PairOptions(images, texts)
    source = SourceOptions(pairs, LabelOptions(file="labels.csv"), ReadOptions())
    data = open_data(source, said.append, lambda done, total: None, said=False)
    return data, said


def test_masks_chosen_tensors_and_those_not_used_are_said() -> None:
    hidden = noise(6, 24)
    padding = np.arange(6) >= 4
    tensors = {"last_hidden_state": hidden, "pooler_output": noise(24), "padding_mask": padding}
    write(4, tensors)
    data, said = opened()
    assert said == [
        "note: 4 pairs: images/0.safetensors[padding_mask] is used as the image mask "
        "(1 is padding)",
        "note: 4 pairs: images/0.safetensors: last_hidden_state [6, 24] is the image, "
        "padding_mask [6] is the image mask; not used: pooler_output [24]",
    ]
    tokens, mask = data.examples.side("image", np.arange(4))
    assert mask is None
    assert np.array_equal(tokens, np.stack([hidden[:4]] * 4))


def test_what_may_be_wrong_with_the_features_is_a_warning() -> None:
    spoiled = noise(5, 24)
    spoiled[:2] = 0
    write(4, {"image": spoiled})
    _, said = opened()
    assert len(said) == 2
    assert said[0].startswith("warning: 4 pairs: both files have 5 rows, read as tokens of one")
    assert said[1].startswith(
        "warning: 4 pairs: images/0.safetensors[image]: 2 of 5 image tokens are zero or nearly so"
    )


def test_nothing_is_said_of_plain_pairs() -> None:
    write(4, {"image": noise(6, 24)})
    assert opened()[1] == []


def test_folders_named_after_the_other_side_are_told() -> None:
    write(4, {"image": noise(6, 24)})
    _, said = opened("texts", "images")
    assert said[0].startswith("warning: the image is read from texts and the text from images")


def test_a_link_other_rights_or_another_name_are_no_change() -> None:
    write(2, {"image": noise(6, 24)})
    files = PairFiles(list(open_pairs(PairOptions("images", "texts"))), ReadOptions())
    first = files.read(0)
    os.link("texts/0.npy", "linked.npy")
    os.chmod("images/0.safetensors", 0o600)
    assert np.array_equal(files.read(0).text, first.text)
    shutil.copy2("texts/0.npy", "copy.npy")
    os.replace("copy.npy", "texts/0.npy")
    assert np.array_equal(files.read(0).text, first.text)


@pytest.mark.parametrize("renamed", [False, True])
def test_other_numbers_with_the_same_size_and_time_are_a_change(renamed: bool) -> None:
    write(2, {"image": noise(6, 24)})
    files = PairFiles(list(open_pairs(PairOptions("images", "texts"))), ReadOptions())
    found = os.stat("texts/0.npy")
    numbers = files.read(0).text.copy()
    numbers[0, 0] += 1
    time.sleep(0.02)  # clocks of file systems are coarse
    np.save("new.npy" if renamed else "texts/0.npy", numbers)
    if renamed:
        os.replace("new.npy", "texts/0.npy")
    os.utime("texts/0.npy", ns=(found.st_atime_ns, found.st_mtime_ns))
    assert os.stat("texts/0.npy").st_size == found.st_size
    for _ in range(2):
        with pytest.raises(FeatureFileError, match=r"pair '0': .* changed while the run reads it"):
            files.read(0)


def test_a_file_that_is_changed_between_two_readings_is_an_error() -> None:
    write(2, {"image": noise(6, 24)})
    pairs = list(open_pairs(PairOptions("images", "texts")))
    files = PairFiles(pairs, ReadOptions())
    first = files.read(0)
    assert np.array_equal(files.read(0).image, first.image)
    np.save("texts/0.npy", noise(5, 16))
    os.utime("texts/0.npy", ns=(0, time.time_ns() + 10**9))  # clocks of file systems are coarse
    with pytest.raises(FeatureFileError, match=r"pair '0': .* changed while the run reads it"):
        files.read(0)
    files.read(1)


def manifest_of_19(*columns: str) -> PairOptions:
    """A manifest of 19 pairs, which are too few to be learnt from, with the columns."""
    lines = [",".join(("image", "text", *columns))]
    for index in range(19):
        np.save(f"images/{index}.npy", noise(1, 4))
        np.save(f"texts/{index}.npy", noise(1, 4))
        values = {"label": "ab"[index % 2], "split": "train" if index < 12 else "test"}
        row = [f"images/{index}.npy", f"texts/{index}.npy", *(values[name] for name in columns)]
        lines.append(",".join(row))
    Path("pairs.csv").write_text("\n".join(lines) + "\n")
    return PairOptions(manifest="pairs.csv")


class Silent(Quiet):
    def reading(self, done: int, total: int) -> None: ...


@pytest.mark.parametrize("columns", [("label", "split"), ("split",)], ids=["classes", "match"])
@pytest.mark.parametrize("folds", [None, 3], ids=["one part", "folds"])
def test_the_column_split_is_said_where_it_is_used(columns, folds) -> None:
    pairs, said = manifest_of_19(*columns), list[str]()
    options = TrainOptions(pairs, LabelOptions(), "run", folds=folds, device="cpu")
    with pytest.raises(PairsError, match="at least 20 pairs with labels, found 19"):
        run_training(options, said.append, Silent())
    found = [line for line in said if "split" in line]
    if folds:
        assert found == ["note: the column split is not used: --folds holds out every pair once"]
    else:
        assert [line.split(": ", 2)[-1] for line in found] == ["column split: 12 train, 7 test"]


@pytest.mark.parametrize("task", ["classify", "match"])
def test_evaluate_says_of_the_column_split_only_what_it_uses(task, monkeypatch) -> None:
    def stop(*_args: object) -> None:
        raise FeatureFileError("stop")

    columns = ("split",) if task == "match" else ("label", "split")
    names = () if task == "match" else ("a", "b")
    monkeypatch.setattr(evaluate, "open_run", lambda path: evaluate.LoadedRun(task, names, []))
    monkeypatch.setattr(evaluate, "read_learnt", lambda path: Learnt(frozenset(), frozenset()))
    monkeypatch.setattr(evaluate, "refuse_other_widths", stop)
    said: list[str] = []
    options = evaluate.RunOptions("run", manifest_of_19(*columns))
    with pytest.raises(FeatureFileError, match="stop"):
        evaluate.evaluate_run(options, said.append, Silent())
    assert [line for line in said if "split" in line] == []
