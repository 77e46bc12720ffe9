"""A run that is started again does what is missing, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fusecli.batch import run_batch
from fusecli.errors import FuseError
from tests.batch.runs import COUNT, names, options, packed
from tests.batches import DT, journal, left_behind, make_pairs, outputs


def test_a_second_run_has_nothing_to_do(cli, pairs):
    cli("batch", "images", "texts", "-o", "out")
    marks = {name: os.stat(f"out/{name}").st_mtime_ns for name in outputs(pairs / "out")}
    lines = journal(pairs / "out")
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.code == 0
    assert f"0 done, {COUNT} skipped" in done.err
    assert marks == {name: os.stat(f"out/{name}").st_mtime_ns for name in outputs(pairs / "out")}
    assert journal(pairs / "out") == lines


def test_only_what_is_missing_is_done(cli, pairs):
    cli("batch", "images", "texts", "-o", "out")
    before = outputs(pairs / "out")
    os.unlink("out/1/0001.npy")
    assert f"1 done, {COUNT - 1} skipped" in cli("batch", "images", "texts", "-o", "out").err
    assert outputs(pairs / "out") == before


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--seed", "9"], ["--format", "npz"], ["--pack"]])
def test_force_leaves_no_result_of_the_run_before(cli, pairs, more):
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    Path("out/0/mine.npy").write_bytes(b"mine")
    Path("images/1/0001.npy").write_bytes(b"")
    for _ in range(2):  # the second after a run of the same kind
        assert cli("batch", "images", "texts", "-o", "out", "--force", *more).code == 3
        left = outputs(pairs / "out")
        assert left.pop("0/mine.npy") == b"mine"
    assert cli("batch", "images", "texts", "-o", "new", *more).code == 3
    assert left == outputs(pairs / "new")


def test_force_removes_only_what_is_in_the_folder_and_no_input(cli, pairs):
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    Path("elsewhere").mkdir()
    mine = [Path("elsewhere/a.npy"), Path("b.npy"), Path("out/.c.npy"), Path("out/notes.txt")]
    for path in mine:
        path.write_bytes(b"mine")
    os.symlink("../elsewhere", "out/link")
    os.unlink("images/0/0000.npy")
    os.symlink("../../out/0/0003.npy", "images/0/0000.npy")  # a result that is now an input
    named = ["link/a.npy", "../b.npy", str(Path("b.npy").absolute()), ".c.npy", "notes.txt", 7]
    with open("out/journal.jsonl", "a") as file:
        for output in [*named, "0/0006.npy/x.npy", "gone.npy", "\0.npy"]:
            line = {"id": "x", "output": output, "shape": [1, 1], "error": None, "inputs": []}
            file.write(json.dumps(line) + "\n")
    before = Path("out/0/0003.npy").read_bytes()
    done = cli("batch", "images", "texts", "-o", "out", "--force", "--format", "npz")
    assert done.code == 3, done.err  # a result is as wide as a text, so as an image it fails
    assert f"{COUNT - 1} done, 1 failed" in done.err
    assert all(path.read_bytes() == b"mine" for path in mine)
    assert Path("out/0/0003.npy").read_bytes() == before
    assert [str(path) for path in Path("out").rglob("*.npy")] == ["out/.c.npy", "out/0/0003.npy"]


def test_force_that_cannot_begin_leaves_what_was_there(cli, pairs):
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    before = outputs(pairs / "out")
    done = cli("batch", "images", "texts", "-o", "out", "--force", "--heads", "7")
    assert done.code != 0
    assert outputs(pairs / "out") == before
    assert f"0 done, {COUNT} skipped" in cli("batch", "images", "texts", "-o", "out").err


@pytest.mark.slow
def test_a_result_whose_inputs_fail_now_is_removed(cli, pairs):
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    assert cli("batch", "images", "texts", "-o", "packs", "--pack").code == 0
    Path("images/1/0004.npy").write_bytes(b"")
    assert cli("batch", "images", "texts", "-o", "out").code == 3
    assert sorted(outputs(pairs / "out")) == sorted({f"{n}.npy" for n in names()} - {"1/0004.npy"})
    assert cli("batch", "images", "texts", "-o", "packs", "--pack").code == 3
    index = json.loads(Path("packs/fused.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(names()) - {"1/0004"}


@pytest.mark.parametrize("length", [0, 100, -1, 1])
@pytest.mark.parametrize("format", ["npy", "npz", "safetensors"])
def test_a_result_of_another_size_is_made_again(cli, pairs, format, length):
    run = ["batch", "images", "texts", "-o", "out", "--format", format]
    assert cli(*run).code == 0
    before = outputs(pairs / "out")
    path = f"out/1/0001.{format}"
    os.truncate(path, length if length in (0, 100) else os.path.getsize(path) + length)
    assert f"1 done, {COUNT - 1} skipped" in cli(*run).err
    assert outputs(pairs / "out") == before
    assert f"0 done, {COUNT} skipped" in cli(*run).err


@pytest.mark.parametrize("which", [1, 2, -1])
@pytest.mark.parametrize("length", [None, 0, 4, 500, -1, 1])
def test_what_was_in_a_damaged_pack_is_made_again(cli, pairs, which, length):
    run = ["batch", "images", "texts", "-o", "out", "--pack", "--shard-size", "8k"]
    assert cli(*run).code == 0
    whole = packed("out")
    path = sorted(Path("out").glob("fused-*.safetensors"))[which]
    held = len(load_file(path))
    if length is None:
        path.unlink()
    else:
        os.truncate(path, length if length in (0, 4, 500) else path.stat().st_size + length)
    done = cli(*run)
    assert f"{held} done, {COUNT - held} skipped" in done.err
    made = packed("out")
    assert made.keys() == whole.keys()
    assert all((made[id] == whole[id]).all() for id in whole)
    assert f"0 done, {COUNT} skipped" in cli(*run).err


def test_journal_lines_of_a_deleted_pack_do_not_count_for_the_next_pack(cli, folder):
    make_pairs(folder, 6)
    run_batch(options("whole", pack=True))
    run_batch(options(pack=True))
    os.unlink("out/fused-00001.safetensors")
    good = Path("images/2/0005.npy").read_bytes()
    Path("images/2/0005.npy").write_bytes(b"")
    Path("images/0/0000.npy").rename("kept.npy")
    with pytest.raises(FuseError, match="on-error stop"):
        run_batch(options(pack=True, on_error="stop"))
    Path("images/2/0005.npy").write_bytes(good)
    Path("kept.npy").rename("images/0/0000.npy")
    assert run_batch(options(pack=True)).failed == 0
    whole, made = packed("whole"), packed("out")
    assert made.keys() == whole.keys()
    assert all((made[id] == whole[id]).all() for id in whole)


def test_a_journal_without_sizes_is_still_used(cli, pairs):
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    lines = [{k: v for k, v in line.items() if k != "size"} for line in journal(pairs / "out")]
    Path("out/journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert f"0 done, {COUNT} skipped" in cli("batch", "images", "texts", "-o", "out").err


@pytest.mark.slow
@pytest.mark.parametrize("pack", [[], ["--pack", "--shard-size", "9k"]])
def test_a_result_of_an_input_that_changed_is_made_again(cli, pairs, pack):
    cli("batch", "images", "texts", "-o", "out", *pack)
    np.save("texts/1/0001.npy", np.ones((3, DT), np.float32))
    done = cli("batch", "images", "texts", "-o", "out", *pack)
    assert "1 done, 1 of them again because their inputs changed" in done.err
    assert cli("batch", "images", "texts", "-o", "new", *pack).code == 0
    if not pack:
        assert outputs(pairs / "out") == outputs(pairs / "new")
        return
    for folder in ("out", "new"):
        index = json.loads(Path(folder, "fused.safetensors.index.json").read_text())
        found = load_file(Path(folder, index["weight_map"]["1/0001"]))["1/0001"]
        assert found.shape == (3, DT)
        assert len(index["weight_map"]) == COUNT


def test_a_pair_whose_pack_was_open_is_made_again_in_another(folder):
    make_pairs(folder, 6)
    shutil.copytree("images", "kept")
    np.save("images/2/0005.npy", np.zeros((1, 3)))
    with pytest.raises(FuseError, match="on-error stop"):
        run_batch(options(pack=True, on_error="stop"))
    shutil.copytree("kept", "images", dirs_exist_ok=True)
    np.save("texts/0/0000.npy", np.ones((3, DT), np.float32))
    run_batch(options(pack=True))
    index = json.loads(Path("out/fused.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 6
    for id, pack in index["weight_map"].items():
        assert len(load_file(f"out/{pack}")[id]) == len(np.load(f"texts/{id}.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("pack", [[], ["--pack"]])
def test_failed_pairs_are_tried_again_only_when_asked_for(cli, pairs, pack):
    good = Path("images/1/0004.npy").read_bytes()
    Path("images/1/0004.npy").write_bytes(good[:200])
    assert cli("batch", "images", "texts", "-o", "out", *pack).code == 3
    mark = os.stat("images/1/0004.npy")
    done = cli("batch", "images", "texts", "-o", "out", *pack)
    assert done.code == 3
    assert f"0 done, {COUNT - 1} skipped, 1 failed before" in done.err
    assert "failed before: 1/0004: the journal in out says why" in done.err
    told = json.loads(cli("batch", "images", "texts", "-o", "out", *pack, "--json").out)
    assert told["failures_before"] == ["1/0004"]
    # Mended so that its size and time tell nothing: as a file server that was away would be.
    Path("images/1/0004.npy").write_bytes(good[:200])
    os.utime("images/1/0004.npy", ns=(mark.st_mtime_ns, mark.st_mtime_ns))
    os.unlink("out/2/0002.npy") if not pack else None
    done = cli("batch", "images", "texts", "-o", "out", "--retry-failed", *pack)
    assert done.code == 3
    assert " skipped, 1 failed, " in done.err
    Path("images/1/0004.npy").write_bytes(good)
    done = cli("batch", "images", "texts", "-o", "out", "--retry-failed", *pack)
    assert done.code == 0
    assert "1 done," in done.err
    assert Path("out/2/0002.npy").exists() is False


def test_a_failed_pair_that_was_mended_is_done_without_asking(cli, pairs):
    good = Path("images/1/0004.npy").read_bytes()
    Path("images/1/0004.npy").unlink()
    Path("images/1/0004.npy").write_bytes(b"")
    assert cli("batch", "images", "texts", "-o", "out").code == 3
    Path("images/1/0004.npy").write_bytes(good)
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.code == 0
    assert f"1 done, {COUNT - 1} skipped" in done.err


def test_on_error_stop_ends_with_the_reason(cli, pairs):
    Path("images/1/0004.npy").write_bytes(b"")
    done = cli("batch", "images", "texts", "-o", "out", "--on-error", "stop")
    assert (done.code, done.out) == (1, "")
    assert "1/0004: images/1/0004.npy: is empty" in done.err
    assert done.err.count("\n") == 1
    assert left_behind(pairs / "out") == []
