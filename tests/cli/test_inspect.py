"""`fusecli inspect`: weights, files by pair id, folders; tables on narrow terminals."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.numpy import save_file

from fusecli.cli.tables import _table, print_table
from fusecli.report.inspect import inspect_file

X, T = np.ones((5, 8), np.float32), np.ones((3, 4), np.float32)


def test_parameters_of_a_module_are_not_shown_as_features(folder: Path, cli: Callable) -> None:
    assert cli("init", "-o", "w.safetensors", "--dim", "16", "--heads", "2").code == 0
    shown = cli("inspect", "w.safetensors").out
    assert "weights of a fusion: D = 16" in shown
    assert "text_proj.weight" in shown
    assert "as image" not in shown
    tensors = inspect_file("w.safetensors").to_dict()["tensors"]
    assert {tensor["as_image"] for tensor in tensors} == {None}


def test_a_mask_is_not_shown_as_features(folder: Path) -> None:
    np.savez("a.npz", image=X, padding_mask=np.zeros(5, bool))
    found = {t["key"]: t for t in inspect_file("a.npz").to_dict()["tensors"]}
    assert (found["image"]["as_image"], found["padding_mask"]["as_image"]) == ("PD", None)


def test_files_by_pair_id_say_how_many_pairs(folder: Path, cli: Callable) -> None:
    save_file({f"{i}": X for i in range(50)}, "one.safetensors")
    shown = cli("inspect", "one.safetensors").out
    assert "features of 50 pairs by id" in shown
    assert "not shown: 30 more tensors" in shown
    both = {f"{i}.image": X for i in range(6)} | {f"{i}.text": T for i in range(1, 8)}
    save_file(both | {"1.image_mask": np.ones(5, bool)}, "both.safetensors")
    assert "for fusecli batch: 5 pairs by id, of 8 ids" in cli("inspect", "both.safetensors").out
    (found,) = json.loads(cli("inspect", "both.safetensors", "--json").out)
    assert found["by_id"] == {"ids": 8, "pairs": 5}
    done = cli("batch", "both.safetensors", "-o", "out", "--heads", "1", "--json")
    assert json.loads(done.out)["done"] == 5


def test_files_of_one_pair_are_not_taken_for_files_by_id(folder: Path) -> None:
    tensors = {"last_hidden_state": X, "image_embeds": X, "attention_mask": X, "labels": X}
    save_file(tensors, "a.safetensors")
    assert inspect_file("a.safetensors").to_dict()["by_id"] is None


def test_a_folder_says_what_it_holds(folder: Path, cli: Callable) -> None:
    Path("d/sub").mkdir(parents=True)
    for index in range(4):
        np.save(f"d/{index}.npy", X)
    save_file({"image": X}, "d/sub/a.safetensors")
    Path("d/notes.txt").touch()
    Path("d/.hidden.npy").touch()
    Path("d/0.npy").write_bytes(b"")
    done = cli("inspect", "d")
    assert done.code == 0
    first = done.out.splitlines()[0]
    assert first.startswith("d: 5 feature files (4 .npy, 1 .safetensors), ")
    assert first.endswith(" bytes, 1 other file, in 2 folders")
    assert "d/1.npy: 288 bytes" in done.out
    assert "problem: d/0.npy: is empty (0 bytes)" in done.out
    assert "not shown: 2 more files" in done.out
    (found,) = json.loads(cli("inspect", "d", "--json").out)
    assert found["files"] == {".npy": 4, ".safetensors": 1}
    assert [file["file"] for file in found["first"]] == ["d/1.npy", "d/2.npy"]
    assert found["problems"] == ["d/0.npy: is empty (0 bytes)"]


def test_an_empty_folder_and_one_that_is_not_there(folder: Path, cli: Callable) -> None:
    Path("d").mkdir()
    assert cli("inspect", "d").out == "d: 0 feature files\n"
    done = cli("inspect", "none")
    assert done.code == 1
    assert "none" in done.err


def test_a_torch_file_is_inspected_by_its_header(folder: Path) -> None:
    torch.save({"image": torch.zeros(5, 8), "nested": {"x": torch.ones(2)}}, "a.pt")
    found = inspect_file("a.pt").to_dict()["tensors"]
    assert [(t["key"], t["shape"]) for t in found] == [("image", [5, 8]), ("nested.x", [2])]


def test_a_table_on_a_narrow_terminal_breaks_no_word() -> None:
    table = _table("key", "shape", "type", "bytes")
    table.add_row("attention.out_proj.weight", "[384, 384]", "float32", "589,824")
    table.add_row("text_proj.bias", "[384]", "float32", "1,536")
    narrow, wide = io.StringIO(), io.StringIO()
    print_table(Console(file=narrow, width=40, force_terminal=True, no_color=True), table)
    print_table(Console(file=wide, width=100, force_terminal=True, no_color=True), table)
    words = ["attention.out_proj.weight", "[384, 384]", "float32", "589,824", "text_proj.bias"]
    lines = [re.sub(r"\x1b\[\d*m", "", line) for line in narrow.getvalue().splitlines()]
    assert max(map(len, lines)) <= 40
    assert all(word in "\n".join(lines) for word in words)
    assert "  shape: [384, 384]" in [line.rstrip() for line in lines]
    assert len(wide.getvalue().splitlines()) == 3
