"""`fusecli batch --verify`: results that were changed later are found and made again."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusecli.batch.store.journal import Entry
from fusecli.batch.store.packs import PackSink
from fusecli.batch.store.safe_folder import ResultFolders, open_root
from fusecli.batch.store.verify import WrittenResults
from fusecli.pairs.fingerprints import numbers_of
from tests.batches import DT, journal, make_pairs, outputs
from tests.faults.running import run

BATCH = ("batch", "images", "texts", "-o", "out", "--workers", "1")
SAID = "warning: results of earlier runs are gone or not as they were written"
JOURNAL = Path("out/journal.jsonl")
LAYOUTS = {
    "npy": (),
    "npz": ("--format", "npz", "--pool", "mean"),
    "safetensors": ("--format", "safetensors"),
    "bfloat16": ("--format", "safetensors", "--out-dtype", "bfloat16"),
    "float16": ("--out-dtype", "float16"),
    "packs": ("--pack",),
    "packs of several": ("--pack", "--pool", "mean", "--out-dtype", "float16"),
}


@pytest.fixture
def pairs(folder: Path) -> Path:
    make_pairs(folder, 3)
    return folder


def other_numbers(path: Path) -> None:
    """One number changed, in a file of the same layout, size and time."""
    status, data = path.stat(), bytearray(path.read_bytes())
    place = len(data) - 8
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file)
        arrays["fused"] = arrays["fused"].copy()
        arrays["fused"].flat[-1] += 1
        with path.open("wb") as out:
            np.savez(out, **arrays)
        data = bytearray(path.read_bytes())
    else:
        data[place] ^= 1
        path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def without_sums(journal: Path) -> None:
    """Let a journal be one of an older version, which did not say what was written."""
    data, count = re.subn(rb'"written":"[0-9a-f]{16}",', b"", journal.read_bytes())
    assert count == 3
    journal.write_bytes(data)


def tensors(folder: Path) -> dict[str, bytes]:
    """The bytes of each result; of packs only the tensors that no later pack replaces."""
    found: dict[str, bytes] = {}
    for name, data in sorted(outputs(folder).items()):
        if name.startswith("fused-"):
            found |= {key: array.tobytes() for key, array in load_file(folder / name).items()}
        elif "index" not in name:
            found[name] = data
    return found


def results(folder: Path) -> list[Path]:
    return sorted(folder / n for n in outputs(folder) if "index" not in n)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_number_that_was_changed_is_found(pairs: Path, layout: str) -> None:
    args = (*BATCH, *LAYOUTS[layout])
    assert run(*args).code == 0
    whole = tensors(Path("out"))
    done = run(*args, "--verify")
    assert (done.code, "3 skipped" in done.err) == (0, True), "everything is as it was written"
    other_numbers(results(Path("out"))[-1])
    damaged = tensors(Path("out"))
    assert damaged != whole
    assert "3 skipped" in run(*args).err
    assert tensors(Path("out")) == damaged, "believed, as is documented"
    done = run(*args, "--verify")
    assert (done.code, "1 done, 2 skipped" in done.err) == (0, True), done
    assert f"{SAID} (1 of them)" in done.err
    assert tensors(Path("out")) == whole
    assert "3 skipped" in run(*args, "--verify").err


def renamed(path: Path) -> None:
    os.replace(path, "kept")
    shutil.copy(results(Path("out"))[0], path)


def of_another_shape(path: Path) -> None:
    array = np.load(path)
    np.save(path, array.reshape(array.shape[1], array.shape[0]))


def link(path: Path) -> None:
    os.replace(path, "kept")
    path.symlink_to(Path("kept").resolve())


@pytest.mark.parametrize("change", [renamed, of_another_shape, link])
def test_file_in_the_place_of_a_result_is_found(pairs: Path, change: Callable) -> None:
    for path in sorted(Path("texts").rglob("*.npy"))[1:]:
        np.save(path, np.random.default_rng(len(str(path))).standard_normal((3, DT), np.float32))
    assert run(*BATCH).code == 0
    whole = outputs(Path("out"))
    change(results(Path("out"))[-1])
    assert run(*BATCH, "--verify").code == 0
    assert outputs(Path("out")) == whole
    assert not any(path.is_symlink() for path in results(Path("out")))


def test_results_without_a_sum_are_made_again(pairs: Path) -> None:
    """Those of older versions: nothing tells whether they are what was written."""
    assert run(*BATCH).code == 0
    whole = outputs(Path("out"))
    without_sums(JOURNAL)
    done = run(*BATCH, "--verify")
    assert (
        "note: 3 results of an older version do not say what was written: they are made again"
        in done.err
    )
    assert SAID not in done.err, "nothing is known to be wrong"
    assert outputs(Path("out")) == whole
    assert JOURNAL.read_bytes().count(b"written") == 3


@pytest.mark.parametrize("layout", ["npy", "packs"])
def test_damage_is_mended_when_only_failed_pairs_are_done(pairs: Path, layout: str) -> None:
    args = (*BATCH, *LAYOUTS[layout])
    assert run(*args).code == 0
    whole = tensors(Path("out"))
    other_numbers(results(Path("out"))[-1])
    np.save("images/new.npy", np.ones((2, 24), np.float32))
    np.save("texts/new.npy", np.ones((2, DT), np.float32))
    done = run(*args, "--retry-failed", "--verify")
    assert (done.code, "1 done, 2 skipped" in done.err) == (0, True), done
    assert f"{SAID} (1 of them)" in done.err
    assert tensors(Path("out")) == whole, "without the new pair"


def test_damaged_result_of_a_pair_that_fails_now_is_removed(pairs: Path) -> None:
    assert run(*BATCH).code == 0
    path = results(Path("out"))[-1]
    other_numbers(path)
    np.save(Path("texts", *path.parts[1:]), np.full((2, DT), np.nan, np.float32))
    assert run(*BATCH, "--verify").code == 3
    assert path not in results(Path("out"))


@pytest.mark.parametrize("damage", ["numbers", "no sum"])
@pytest.mark.parametrize("layout", ["npy", "packs"])
def test_results_of_inputs_that_are_gone_stay_known(pairs: Path, layout: str, damage: str) -> None:
    args = (*BATCH, *LAYOUTS[layout])
    assert run(*args).code == 0
    if damage == "no sum":
        without_sums(JOURNAL)
    else:
        other_numbers(results(Path("out"))[-1])
    id = journal(Path("out"))[-1]["id"]
    for side in ("images", "texts"):
        Path(side, f"{id}.npy").unlink()
    assert (
        "1 result is of inputs that are not there any more: --prune" in run(*args, "--verify").err
    )
    done = run(*args, "--verify", "--prune")
    assert "1 result is of inputs that are not there any more: removed" in done.err
    assert Path("out", f"{id}.npy") not in results(Path("out"))
    assert journal(Path("out"))[-1]["status"] == "removed"
    assert "not there any more" not in run(*args, "--verify").err


@pytest.mark.parametrize("layout", ["packs", "packs of several"])
def test_number_in_a_pack_that_a_stopped_run_left_is_found(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    args = (*BATCH, *LAYOUTS[layout])
    whole = [*args]
    whole[whole.index("out")] = "whole"
    assert run(*whole).code == 0

    def stop(sink: PackSink) -> None:
        sink.commit()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PackSink, "finish", stop)
        assert run(*args).code == 130
    (staged,) = Path("out").rglob("fused-*")
    assert ".fusecli" in staged.parts
    shutil.copytree("out", "sound")
    other_numbers(staged)
    done = run(*args, "--verify")
    assert (done.code, "1 done, 2 skipped" in done.err) == (0, True), done
    assert f"{SAID} (1 of them)" in done.err
    assert tensors(Path("out")) == tensors(Path("whole"))
    assert "3 skipped" in run(*args, "--verify").err
    shutil.rmtree("out")
    os.replace("sound", "out")
    assert "0 done, 3 skipped" in run(*args, "--verify").err, "everything is as it was written"


@pytest.mark.parametrize("layout", ["npy", "packs"])
def test_only_the_latest_result_of_a_pair_is_read(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    args = (*BATCH, *LAYOUTS[layout])
    for turn in range(3):
        np.save("texts/0/0000.npy", np.full((2, DT), turn, np.float32))
        assert run(*args).code == 0
    assert len(journal(Path("out"))) == 5
    compared: list[str] = []

    def counted(results: WrittenResults, entry: Entry) -> bool:
        compared.append(entry.id)
        return as_written(results, entry)

    as_written = WrittenResults.are_as_written
    monkeypatch.setattr(WrittenResults, "are_as_written", counted)
    assert "0 done, 3 skipped" in run(*args, "--verify").err
    assert sorted(compared) == ["0/0000", "1/0001", "2/0002"]


def test_shard_compares_its_own_pairs_and_says_nothing_of_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pairs(folder, 8)
    args = (*BATCH, "--pack")
    assert run(*args, "--shard", "1/2").code == 0

    def stop(sink: PackSink) -> None:
        sink.commit()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PackSink, "finish", stop)
        assert run(*args, "--shard", "2/2").code == 130
    own, others = (len(journal(Path("out"), f"journal-{n}-of-2.jsonl")) for n in (1, 2))
    assert own + others == 8
    assert min(own, others) > 0
    done = run(*args, "--shard", "1/2", "--verify")
    assert f"0 done, {own} skipped" in done.err
    assert SAID not in done.err, "of the pack that the other shard has not finished"
    other_numbers(next(Path("out", ".fusecli").rglob("fused-*")))
    done = run(*args, "--shard", "2/2", "--verify")
    assert f"1 done, {others - 1} skipped" in done.err
    assert f"{SAID} (1 of them)" in done.err


@pytest.mark.parametrize("output", ["../x.npy", "a/../../x.npy", "link.npy", "to/x.npy", "-"])
def test_nothing_outside_the_folder_is_read(folder: Path, output: str) -> None:
    """As journals may name it that somebody else has changed."""
    Path("out/a").mkdir(parents=True)
    rows = np.ones((2, 3), np.float32)
    for path in ("x.npy", "out/x.npy", "out/a/x.npy"):
        np.save(path, rows)
    Path("out/link.npy").symlink_to("../x.npy")
    Path("out/to").symlink_to("..")
    folders = ResultFolders(open_root("out"))
    written = WrittenResults(folders, "float32", lambda entry: None)
    try:
        for name, found in (("x.npy", True), (output, False), ("a/x.npy", True)):
            entry = Entry("x", name, {"fused": (2, 3)}, None, [], written=numbers_of([rows]))
            assert written.are_as_written(entry) is found, name
    finally:
        written.close()
        folders.close()


def test_pack_rewritten_with_other_numbers_is_found(pairs: Path) -> None:
    """Written by the format's own library: the same keys and shapes, and another header."""
    assert run(*BATCH, "--pack").code == 0
    (pack,) = results(Path("out"))
    whole = tensors(Path("out"))
    save_file({key: array + 1 for key, array in load_file(pack).items()}, pack)
    assert run(*BATCH, "--pack", "--verify").code == 0
    assert tensors(Path("out")) == whole
