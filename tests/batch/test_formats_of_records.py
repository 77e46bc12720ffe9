"""Folders of earlier versions are gone on with; records are decoded by type."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusecli.batch.store.journal import FORMAT, decode_line
from tests.batches import journal, make_pairs, outputs

COUNT = 12
OLD = Path(__file__).parent / "folders_of_0_1_0"  # made by fusecli 0.1.0, commit f97cce3
TIME = 1_700_000_000_000_000_000  # of change of its inputs


def old_inputs(folder: Path) -> None:
    make_pairs(folder, COUNT)
    for path in folder.rglob("*.npy"):
        os.utime(path, ns=(TIME, TIME))


@pytest.mark.parametrize("layout", ["files", "packs"])
def test_finished_folder_of_0_1_0_has_nothing_to_do(cli, folder, layout):
    old_inputs(folder)
    shutil.copytree(OLD / layout, "out")
    before = outputs(folder / "out")
    done = cli("batch", "images", "texts", "-o", "out", *["--pack"][: layout == "packs"])
    assert done.code == 0, done.err
    assert f"0 done, {COUNT} skipped" in done.err
    assert outputs(folder / "out") == before


@pytest.mark.parametrize("layout", ["files", "packs"])
def test_folder_of_0_1_0_is_completed(cli, folder, layout):
    old_inputs(folder)
    pack = ["--pack"][: layout == "packs"]
    shutil.copytree(OLD / layout, "out")
    np.save("texts/1/0001.npy", np.ones((3, 32), np.float32))
    done = cli("batch", "images", "texts", "-o", "out", *pack)
    assert done.code == 0, done.err
    assert "1 done, 1 of them again because their inputs changed" in done.err
    assert f"0 done, {COUNT} skipped" in cli("batch", "images", "texts", "-o", "out", *pack).err
    record = json.loads(Path("out/run.json").read_text())
    assert "format" not in record  # what 0.1.0 wrote is not rewritten
    assert [line.get("format", 1) for line in journal(folder / "out")] == [1] * COUNT + [FORMAT]


def test_version_informs_and_format_decides(cli, folder):
    make_pairs(folder, 3)
    run = ["batch", "images", "texts", "-o", "out"]
    assert cli(*run).code == 0
    path = Path("out/run.json")
    record = json.loads(path.read_text())
    assert record["format"] == FORMAT
    path.write_text(json.dumps(record | {"fusecli": "99.0"}))
    assert "0 done, 3 skipped" in cli(*run).err
    path.write_text(json.dumps(record | {"fusecli": "99.0", "format": FORMAT + 1}))
    done = cli(*run)
    assert done.code == 1
    assert f"has format {FORMAT + 1}, written by fusecli 99.0" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("module", None),
        ("module", {"embed_dim": 2**64 - 1, "num_heads": 8}),
        ("module", {"embed_dim": 32}),
        ("weights", {"sha256": 7, "seed": None}),
        ("chosen_for", {"N": 1, "T": 2}),
        ("chosen_for", {"N": 1, "T": 2, "P": 2**64}),
        ("chosen_for", {"N": 1, "T": True, "P": 1}),
        ("computing", []),
        ("reading", {"image_key": 3}),
        ("reading", {"what": None}),
        ("layout", {"pack": "yes"}),
        ("format", "2"),
        ("format", 0),
    ],
)
def test_record_that_does_not_fit_is_damaged_in_one_line(cli, folder, part, value):
    make_pairs(folder, 3)
    run = ["batch", "images", "texts", "-o", "out"]
    assert cli(*run).code == 0
    path = Path("out/run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    done = cli(*run)
    assert done.code == 1
    assert done.err.startswith("error: out/run.json: is damaged (")
    assert done.err.count("\n") == 1
    assert cli(*run, "--force").code == 0


@pytest.mark.parametrize("text", [b"[" * 100_000, b"7", b"", b"\xff", b"9" * 5000, b"[]"])
def test_record_that_is_something_else_is_one_line(cli, folder, text):
    make_pairs(folder, 3)
    run = ["batch", "images", "texts", "-o", "out"]
    assert cli(*run).code == 0
    Path("out/run.json").write_bytes(text)
    done = cli(*run)
    assert done.code == 1
    assert done.err.startswith("error: out/run.json: is ")
    assert done.err.count("\n") == 1


GOOD = {
    "id": "a",
    "output": "a.npy",
    "shape": [1, 2],
    "status": "done",
    "error": None,
    "inputs": [[1, 2], None],
    "size": 136,
    "run": 1,
    "format": FORMAT,
}
BAD = [
    {"id": 7},
    {"output": 7},
    {"output": None},
    {"shape": [-1]},
    {"shape": [2**70]},
    {"shape": [[1]]},
    {"shape": {}},
    {"shape": None},
    {"error": 7},
    {"status": "failed"},
    {"status": "odd"},
    {"inputs": None},
    {"inputs": [[1]]},
    {"inputs": [[1, "2"]]},
    {"inputs": [[True, 2]]},
    {"at": [5, 3]},
    {"at": [1]},
    {"at": "ab"},
    {"size": 2**64},
    {"size": 1.5},
    {"source": "zz"},
    {"content": 5},
    {"diagnoses": [1]},
    {"run": -1},
    {"format": FORMAT + 1},
]


def test_good_line_is_decoded():
    entry = decode_line(json.dumps(GOOD).encode())
    assert entry is not None
    assert (entry.id, entry.shapes, entry.stamps) == ("a", {"fused": (1, 2)}, [(1, 2), None])
    assert decode_line(entry.line(1)) == entry


@pytest.mark.parametrize("changed", BAD, ids=str)
def test_line_whose_fields_do_not_fit_is_damaged(changed):
    assert decode_line(json.dumps(GOOD | changed).encode()) is None


def test_line_is_of_a_run_that_computed_the_same_or_does_not_say():
    entry = replace(decode_line(json.dumps(GOOD).encode()), spec=7)
    assert [entry.is_of(spec) for spec in (7, 0, 8)] == [True, True, False]
    assert replace(entry, spec=0).is_of(8)


def test_damaged_lines_are_told_and_their_pairs_done_again(cli, folder):
    make_pairs(folder, 5)
    run = ["batch", "images", "texts", "-o", "out"]
    assert cli(*run).code == 0
    before = outputs(folder / "out")
    path = Path("out/journal.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1], lines[3] = b"[" * 50_000 + b"\n", b'{"id": 3}\n'
    path.write_bytes(b"".join(lines))
    done = cli(*run)
    assert done.code == 0
    assert "out/journal.jsonl: 2 damaged lines (2, 4) not used" in done.err
    assert "2 done, 3 skipped" in done.err
    assert outputs(folder / "out") == before
