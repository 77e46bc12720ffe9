"""What comes out of a batch: what `fuse` gives for every pair, in files and packs."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from fusecli.batch import run_batch
from fusecli.batch.tuning import Tuning
from tests.batch.runs import COUNT, names, options, single
from tests.batches import DI, DT, journal, left_behind, outputs


@pytest.mark.slow
def test_every_pair_gets_what_fuse_gives(cli, pairs):
    done = cli("batch", "images", "texts", "-o", "out")
    assert (done.code, done.out) == (0, "out\n")
    assert f"{COUNT} done" in done.err
    assert sorted(outputs(pairs / "out")) == sorted(f"{name}.npy" for name in names())
    for name in names():
        made = np.load(f"out/{name}.npy")
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, single(cli, name), atol=1e-6)
    assert left_behind(pairs / "out") == []


@pytest.mark.parametrize("switches", [("--residual", "--norm"), ("--null-token",), ("--dim", "16")])
def test_switches_reach_the_module(cli, pairs, switches):
    assert cli("batch", "images", "texts", "-o", "out", *switches).code == 0
    for name in names()[:6]:
        np.testing.assert_allclose(
            np.load(f"out/{name}.npy"), single(cli, name, *switches), atol=1e-5
        )


@pytest.mark.parametrize("method", [["--method", "concat"], ["--method", "sum", "--dim", "16"]])
@pytest.mark.parametrize("more", [["--direction", "both"], ["--pool", "mean"]])
def test_several_tensors_of_other_methods_are_what_fuse_gives(cli, pairs, method, more):
    assert cli("batch", "images", "texts", "-o", "out", *method, *more).code == 0
    assert cli("batch", "images", "texts", "-o", "packs", "--pack", *method, *more).code == 0
    index = json.loads(Path("packs/fused.safetensors.index.json").read_text())
    packed = load_file("packs/fused-00001.safetensors")
    assert set(index["weight_map"]) == set(packed)
    for name in names()[:6]:
        files = f"images/{name}.npy", f"texts/{name}.npy"
        single = cli("fuse", *files, "-f", "-o", "one.safetensors", *method, *more)
        assert single.code == 0, single.err
        theirs, mine = load_file("one.safetensors"), load_file(f"out/{name}.safetensors")
        assert list(mine) == list(theirs)
        assert len(mine) == 2
        for key in mine:
            np.testing.assert_allclose(mine[key], theirs[key], atol=1e-5)
            np.testing.assert_array_equal(packed[f"{name}.{key}"], mine[key])
    (first, *_) = journal(pairs / "out")
    assert {key: tuple(shape) for key, shape in first["shape"].items()} == {
        key: array.shape for key, array in load_file(f"out/{first['id']}.safetensors").items()
    }


@pytest.mark.slow
def test_a_transformer_with_the_image_as_the_query_side(cli, pairs):
    for more in (["--method", "transformer", "--layers", "1"], ["--direction", "image"]):
        out = f"out{len(more)}"
        assert cli("batch", "images", "texts", "-o", out, *more).code == 0
        for name in names()[:3]:
            np.testing.assert_allclose(
                np.load(f"{out}/{name}.npy"), single(cli, name, *more), atol=1e-5
            )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("format", ["npy", "npz", "safetensors"])
def test_files_are_those_that_fuse_writes(cli, pairs, format, dtype):
    if dtype == "bfloat16" and format != "safetensors":
        done = cli("batch", "images", "texts", "-o", "out", "--out-dtype", dtype)
        assert done.code == 2
        assert "--out-dtype bfloat16 needs" in done.err
        return
    done = cli("batch", "images", "texts", "-o", "out", "--format", format, "--out-dtype", dtype)
    assert done.code == 0, done.err
    name = "0/0000"
    one = cli(
        "fuse", f"images/{name}.npy", f"texts/{name}.npy", "-o", f"one.{format}", "--out-dtype",
        dtype, "--engine", "numpy",
    )  # fmt: skip
    assert one.code == 0
    mine, theirs = Path(f"out/{name}.{format}").read_bytes(), Path(f"one.{format}").read_bytes()
    assert len(mine) == len(theirs)
    if format == "safetensors":
        with safe_open(f"out/{name}.{format}", "pt") as a, safe_open(f"one.{format}", "pt") as b:
            assert a.metadata() == b.metadata()
            assert a.get_tensor("fused").dtype == b.get_tensor("fused").dtype
    elif format == "npy":
        assert mine[:128] == theirs[:128]
    else:
        a, b = (zipfile.ZipFile(path).infolist() for path in (f"out/{name}.npz", "one.npz"))
        assert [(m.filename, m.date_time) for m in a] == [(m.filename, m.date_time) for m in b]


@pytest.mark.parametrize(
    ("output", "more", "said"),
    [
        ("y.npy", ["--direction", "both"], "--direction both gives more than one tensor a pair"),
        ("y.NPY", ["--pool", "mean", "--format", "npz"], "--pool mean gives more than one tensor"),
        ("y.npz", ["--out-dtype", "bfloat16", "--format", "safetensors"], ".npy has no bfloat16"),
        ("", ["--out-dtype", "bfloat16"], "has no output, and --out-dtype bfloat16 needs"),
    ],
)
def test_a_row_whose_file_cannot_hold_the_result_is_refused(cli, pairs, output, more, said):
    rows = "x.safetensors,images/0/0000.npy,texts/0/0000.npy\n"
    rows += f"{output},images/1/0001.npy,texts/1/0001.npy\n"
    Path("m.csv").write_text(f"output,image,text\n{rows}")
    done = cli("batch", "--manifest", "m.csv", "-o", "out", *more)
    assert done.code == 1
    assert "m.csv: line 3: " in done.err
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not Path("out").exists()
    assert cli("batch", "--manifest", "m.csv", "-o", "packs", "--pack", *more[:2]).code == 0


def test_a_new_run_lists_folders_twice_and_looks_at_a_file_before_and_after_reading_it(
    pairs, monkeypatch
):
    """Each further look at every input is felt in a run of small pairs."""
    looks: Counter[str] = Counter()

    def counted(look):
        def looking(path=".", *given, **named):
            if not isinstance(path, int):
                looks[f"{look.__name__} {os.fspath(path)}"] += 1
            return look(path, *given, **named)

        return looking

    with monkeypatch.context() as patch:
        for name in ("scandir", "listdir", "stat", "lstat"):
            patch.setattr(os, name, counted(getattr(os, name)))
        # A window that ends early, on a slow machine, reads its last pairs again.
        run_batch(options(), tuning=Tuning(window_seconds=1e9))
    for folder in ("images", "texts"):
        assert looks[f"scandir {folder}"] == looks[f"scandir {folder}/1"] == 2
        files = list(Path(folder).rglob("*.npy"))
        assert len(files) == COUNT
        for file in files:
            assert (looks[f"stat {file}"], looks[f"lstat {file}"]) == (2, 0), file


def test_a_row_of_a_manifest_may_name_a_format_that_can_hold_its_result(cli, pairs):
    Path("m.csv").write_text(
        "output,image,text\nx.safetensors,images/0/0000.npy,texts/0/0000.npy\n"
    )
    done = cli("batch", "--manifest", "m.csv", "-o", "out", "--out-dtype", "bfloat16")
    assert done.code == 0, done.err
    with safe_open("out/x.safetensors", "pt") as file:
        assert str(file.get_tensor("fused").dtype) == "torch.bfloat16"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--format", "npz"], "output says another format than --format in 2 rows"),
        (["--pack"], "not used: output, which only names files of single pairs"),
        ([], None),
    ],
)
def test_a_note_says_which_of_option_and_manifest_decides_the_output(cli, pairs, more, said):
    names = ["x.safetensors", "y.npy", "z.npz", ""]
    rows = [f"images/0/000{3 * i}.npy,texts/0/000{3 * i}.npy,{x}" for i, x in enumerate(names)]
    Path("m.csv").write_text("\n".join(["image,text,output", *rows]))
    done = cli("batch", "--manifest", "m.csv", "-o", "out", *more)
    assert done.code == 0, done.err
    assert ("note: m.csv: " in done.err) == (said is not None)
    assert (said or "") in done.err


@pytest.mark.slow
def test_packs_hold_every_pair_under_its_id(cli, pairs):
    assert cli("batch", "images", "texts", "-o", "plain").code == 0
    done = cli("batch", "images", "texts", "-o", "out", "--pack", "--shard-size", "8k", "--json")
    assert done.code == 0, done.err
    index = json.loads(Path("out/fused.safetensors.index.json").read_text())
    assert json.loads(done.out)["index"] == "out/fused.safetensors.index.json"
    assert list(index["weight_map"]) == sorted(names())
    assert len(set(index["weight_map"].values())) > 3
    total = 0
    for id, pack in index["weight_map"].items():
        with safe_open(f"out/{pack}", "np") as file:
            made = file.get_tensor(id)
        assert (made == np.load(f"plain/{id}.npy")).all()
        total += made.nbytes
    assert index["metadata"]["total_size"] == total
    for pack in set(index["weight_map"].values()):
        assert sum(tensor.nbytes for tensor in load_file(f"out/{pack}").values()) <= 8192
    assert left_behind(pairs / "out") == []


def test_a_tensor_larger_than_a_pack_has_one_for_itself(cli, pairs):
    assert cli("batch", "images", "texts", "-o", "out", "--pack", "--shard-size", "100").code == 0
    index = json.loads(Path("out/fused.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == COUNT


def test_a_long_pack_keeps_the_room_in_front_and_is_sound(cli, folder):
    rng = np.random.default_rng(0)
    for side, tokens, width in (("images", 2, DI), ("texts", 40, DT)):
        os.mkdir(side)
        for index in range(60):
            rows = rng.standard_normal((tokens, width)).astype(np.float32)
            np.save(f"{side}/{index:03d}.npy", rows)
    cli("batch", "images", "texts", "-o", "plain")
    assert cli("batch", "images", "texts", "-o", "out", "--pack", "--shard-size", "300k").code == 0
    first, *others = sorted(Path("out").glob("fused-*.safetensors"))
    assert others
    content = first.read_bytes()
    assert int.from_bytes(content[:8], "little") + 8 == 4096
    assert content[4000:4096] == b" " * 96 or len(load_file(first)) > 35  # full, or padded
    for path in (first, *others):
        for id, made in load_file(path).items():
            assert (made == np.load(f"plain/{id}.npy")).all()


def test_the_journal_has_a_line_a_pair(cli, pairs):
    Path("images/1/0004.npy").write_bytes(b"nonsense")
    assert cli("batch", "images", "texts", "-o", "out").code == 3
    lines = journal(pairs / "out")
    assert [line["id"] for line in lines] == sorted(names())
    for line in lines:
        if line["id"] == "1/0004":
            assert line["status"] == "failed"
            assert line["output"] is line["shape"] is None
            assert line["error"].startswith("images/1/0004.npy: is not a .npy file")
            continue
        assert line["status"] == "done"
        assert line["error"] is None
        assert line["output"] == f"{line['id']}.npy"
        assert tuple(line["shape"]) == np.load(f"out/{line['output']}").shape
        status = os.stat(f"images/{line['id']}.npy")
        assert line["inputs"][0] == [status.st_size, status.st_mtime_ns]


def test_the_summary_counts_diagnoses_and_does_not_repeat_them(cli, pairs):
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.err.count("one image token") == 1
    assert "warning: 10 pairs: one image token" in done.err
    done = cli("batch", "images", "texts", "-o", "json", "--json", "-q")
    summary = json.loads(done.out)
    assert done.err == ""
    equal = sum(P == T > 1 for P, T in (((1, 5, 9)[i % 3], 1 + i * 7 % 12) for i in range(COUNT)))
    assert equal == 5  # pairs whose image and text have the same number of rows
    assert summary["diagnoses"] == {"one-image-token": 10, "rows-are-samples": equal}
    assert (summary["done"], summary["skipped"], summary["failed"]) == (COUNT, 0, 0)


def test_undeclared_padding_is_told_with_what_a_batch_takes(cli, pairs):
    np.save("texts/0/0000.npy", np.eye(6, DT, dtype=np.float32) * [[1], [1], [1], [0], [0], [0]])
    done = cli("batch", "images", "texts", "-o", "out")
    assert "3 of 6 text tokens are zero" in done.err
    assert "store text_mask beside the features, or list it" in done.err
    assert "--text-mask" not in done.err


def test_an_output_that_is_a_file_is_refused_as_one(cli, pairs):
    Path("out").write_text("mine")
    done = cli("batch", "images", "texts", "-o", "out")
    assert (done.code, done.err) == (
        1, "error: out: is a file, expected a folder: say another -o\n"
    )  # fmt: skip
    assert Path("out").read_text() == "mine"


def test_pairs_whose_image_is_all_padding_are_counted_where_they_are_allowed(cli, folder):
    os.makedirs("images")
    os.makedirs("texts")
    for index in range(3):
        image = np.ones((5, 16), np.float32)
        np.savez(f"images/{index}.npz", image=image, image_mask=np.arange(5) < 2 * index)
        np.save(f"texts/{index}.npy", np.ones((3, 16), np.float32) * np.arange(1, 17))
    done = cli("batch", "images", "texts", "-o", "out", "--allow-empty-image", "--json")
    assert done.code == 0
    assert json.loads(done.out)["diagnoses"]["empty-image"] == 1
    assert "1 pair: every image token is masked: the result holds nothing of the image" in done.err


def test_a_gate_over_one_side_only_is_refused_before_any_pair(cli, folder):
    os.makedirs("images")
    os.makedirs("texts")
    np.save("images/a.npy", np.ones((5, 8), np.float32))
    np.save("texts/a.npy", np.ones((3, 16), np.float32))
    done = cli("batch", "images", "texts", "-o", "out", "--gate", "--direction", "both")
    assert (done.code, done.out) == (2, "")
    assert "one width (8 and 16): use --direction text or image\n" in done.err
    assert not os.path.exists("out")


def test_what_has_no_partner_is_counted(cli, pairs):
    os.unlink("texts/0/0000.npy")
    done = cli("batch", "images", "texts", "-o", "out", "--json")
    assert done.code == 0
    assert json.loads(done.out)["unmatched"] == {"image": 1}
    assert "1 image without a partner: image images/0/0000.npy" in done.err
