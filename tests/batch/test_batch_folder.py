"""What the output folder holds, and the parts of a run that share it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fusecli.batch import parse_shard
from fusecli.errors import UsageError
from tests.batch.runs import COUNT, names
from tests.batches import DI, DT, journal, outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--residual"], "--residual: false there, true now"),
        (["--seed", "1"], "--seed: 0 there, 1 now"),
        (["--out-dtype", "float16"], '--out-dtype: "float32" there, "float16" now'),
        (["--method", "sum", "--dim", "32"], '--method: "attention" there, "sum" now'),
        (["--direction", "image"], '--direction: "text" there, "image" now'),
        (["--engine", "torch"], '--engine: "numpy" there, "torch" now'),
        (["--pack"], "--pack: false there, true now"),
        (["--allow-nonfinite"], "--allow-nonfinite: false there, true now"),
    ],
)
def test_a_run_with_other_options_is_refused(cli, pairs, changed, said):
    cli("batch", "images", "texts", "-o", "out")
    before = outputs(pairs / "out")
    done = cli("batch", "images", "texts", "-o", "out", *changed)
    assert done.code == 2
    assert said in done.err
    assert "--force" in done.err
    assert done.err.count("\n") == 1
    assert outputs(pairs / "out") == before
    done = cli("batch", "images", "texts", "-o", "out", *changed, "--force")
    assert done.code == 0, done.err
    assert f"{COUNT} done" in done.err


@pytest.mark.slow
def test_a_run_with_other_weights_of_the_same_name_is_refused(cli, pairs):
    for seed in ("1", "2"):
        widths = ["--dim", str(DT), "--image-dim", str(DI), "--seed", seed]
        assert cli("init", "-o", "w.safetensors", "-f", *widths).code == 0
        done = cli("batch", "images", "texts", "-o", "out", "--weights", "w.safetensors")
    assert done.code == 2
    assert "sha256" in done.err
    shutil.copy("w.safetensors", "same.safetensors")
    again = ["batch", "images", "texts", "-o", "new", "--weights"]
    assert cli(*again, "w.safetensors").code == 0
    assert f"{COUNT} skipped" in cli(*again, "same.safetensors").err


def test_a_folder_of_something_else_is_not_written_into(cli, pairs):
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine")
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.code == 1
    assert "is not empty" in done.err
    assert os.listdir("out") == ["thesis.txt"]
    assert cli("batch", "images", "texts", "-o", "out", "--force").code == 0
    assert Path("out/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("output", ["images", ".", "images/fused"])
def test_inputs_are_never_changed(cli, pairs, output):
    before = {path: path.read_bytes() for path in Path().rglob("*.npy")}
    done = cli("batch", "images", "texts", "-o", output, "--force")
    assert done.code in (1, 2)
    assert done.err.count("\n") == 1
    assert not Path(output, ".fusecli").exists()
    if output == "images/fused":  # a later run would take the results for images
        assert done.code == 2
        assert "-o images/fused: lies in the folder of inputs images" in done.err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_manifest_cannot_name_an_input_as_its_result(cli, pairs):
    os.mkdir("out")
    shutil.copy("texts/0/0000.npy", "out/a.npy")
    Path("pairs.csv").write_text("image,text,output\nimages/0/0000.npy,out/a.npy,a.npy\n")
    before = Path("out/a.npy").read_bytes()
    done = cli("batch", "--manifest", "pairs.csv", "-o", "out", "--force")
    assert done.code == 3
    assert "a.npy: is an input of this pair" in done.err
    assert Path("out/a.npy").read_bytes() == before


def test_a_run_that_cannot_begin_leaves_nothing(cli, pairs):
    for path in Path("images").rglob("*.npy"):
        path.write_bytes(b"")
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.code == 1
    assert "none of the first pairs can be read" in done.err
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_torn_line_is_cut_off_and_its_pair_done_again(cli, pairs):
    cli("batch", "images", "texts", "-o", "out")
    whole = Path("out/journal.jsonl").read_bytes()
    for torn in (whole[:-1], whole[:-40], whole + b"\0" * 300, whole[: len(whole) // 2]):
        Path("out/journal.jsonl").write_bytes(torn)
        done = cli("batch", "images", "texts", "-o", "out")
        assert done.code == 0, done.err
        assert {line["id"] for line in journal(pairs / "out")} == set(names())
        assert f"0 done, {COUNT} skipped" in cli("batch", "images", "texts", "-o", "out").err


@pytest.mark.slow
@pytest.mark.parametrize("pack", [[], ["--pack", "--shard-size", "5k"]])
def test_shards_do_everything_once_and_the_last_writes_the_index(cli, pairs, pack):
    assert cli("batch", "images", "texts", "-o", "whole", *pack).code == 0
    for index in (2, 1, 3):
        done = cli("batch", "images", "texts", "-o", "out", "--shard", f"{index}/3", *pack)
        assert done.code == 0, done.err
        there = Path("out/fused.safetensors.index.json").exists()
        assert there == bool(pack and index == 3)
    journals = [journal(pairs / "out", f"journal-{index}-of-3.jsonl") for index in (1, 2, 3)]
    lines = [line for lines in journals for line in lines]
    assert sorted(line["id"] for line in lines) == sorted(names())
    if not pack:
        assert outputs(pairs / "out") == outputs(pairs / "whole")
    else:
        whole = json.loads(Path("whole/fused.safetensors.index.json").read_text())
        index = json.loads(Path("out/fused.safetensors.index.json").read_text())
        assert index["metadata"] == whole["metadata"]
        assert set(index["weight_map"]) == set(whole["weight_map"])
        for id, pack_name in index["weight_map"].items():
            mine = load_file(f"out/{pack_name}")[id]
            assert (mine == load_file(f"whole/{whole['weight_map'][id]}")[id]).all()
    # What the shards did counts for a run of everything.
    assert f"0 done, {COUNT} skipped" in cli("batch", "images", "texts", "-o", "out", *pack).err


def test_merge_writes_the_index_of_what_is_there(cli, pairs):
    for index in (1, 2):
        cli("batch", "images", "texts", "-o", "out", "--shard", f"{index}/3", "--pack")
    done = cli("batch", "--merge", "-o", "out")
    assert done.code == 0, done.err
    index = json.loads(Path("out/fused.safetensors.index.json").read_text())
    lines = [line for i in (1, 2) for line in journal(pairs / "out", f"journal-{i}-of-3.jsonl")]
    assert sorted(index["weight_map"]) == sorted(line["id"] for line in lines)
    assert cli("batch", "--merge", "-o", "nothing").code == 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_shards_that_cannot_be_are_refused(text):
    with pytest.raises(UsageError, match="expected I/N"):
        parse_shard(text)
