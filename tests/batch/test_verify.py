"""`fusecli batch --verify`: results that were changed later are found and made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.batches import DT, make_pairs, outputs
from tests.faults.running import run

BATCH = ("batch", "images", "texts", "-o", "out", "--workers", "1")
SAID = "warning: results of earlier runs are gone or not as they were written"
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
    journal = Path("out/journal.jsonl")
    lines = [line.partition(b'"written"') for line in journal.read_bytes().splitlines()]
    journal.write_bytes(
        b"".join(a + c[c.index(b",") + 1 :] + b"\n" for a, _, c in lines)  # the rest of the line
    )
    assert b"written" not in journal.read_bytes()
    assert f"{SAID} (3 of them)" in run(*BATCH, "--verify").err
    assert outputs(Path("out")) == whole
    assert journal.read_bytes().count(b"written") == 3


def test_pack_rewritten_with_other_numbers_is_found(pairs: Path) -> None:
    """Written by the format's own library: the same keys and shapes, and another header."""
    assert run(*BATCH, "--pack").code == 0
    (pack,) = results(Path("out"))
    whole = tensors(Path("out"))
    save_file({key: array + 1 for key, array in load_file(pack).items()}, pack)
    assert run(*BATCH, "--pack", "--verify").code == 0
    assert tensors(Path("out")) == whole
