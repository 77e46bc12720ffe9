"""`fusecli batch`: what comes out, what is done again and what is not."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fusecli import Switches
from fusecli.batch import BatchOptions, ReadOptions, Shard, parse_shard, run_batch
from fusecli.batch.resolve import resolve
from fusecli.batch.tuning import Tuning
from fusecli.batch.worker import Fuser
from fusecli.errors import DiagnosisError, FuseError, OutputError, UsageError
from fusecli.fusion.backend import row_stable
from fusecli.fusion.methods.attention import fusion
from fusecli.pairs.open import Pair, PairOptions, open_pairs
from tests.batches import DI, DT, journal, left_behind, make_pairs, outputs

COUNT = 30


@pytest.fixture
def pairs(folder: Path) -> Path:
    """`images` and `texts` in the working directory."""
    make_pairs(folder, COUNT)
    return folder


def options(output: str = "out", **changed: object) -> BatchOptions:
    return BatchOptions(PairOptions("images", "texts"), output, **changed)


def single(cli, name: str, *more: str) -> np.ndarray:
    """What `fusecli fuse` makes of one pair."""
    done = cli("fuse", f"images/{name}.npy", f"texts/{name}.npy", "-f", "-o", "one.npy", *more)
    assert done.code == 0, done.err
    return np.load("one.npy")


def names() -> list[str]:
    return [f"{index % 3}/{index:04d}" for index in range(COUNT)]


# What comes out.


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


def test_a_transformer_and_the_image_as_the_side_that_asks(cli, pairs):
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


def test_rows_may_say_files_that_hold_what_the_usual_ones_do_not(cli, pairs):
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
def test_an_output_that_overrules_or_does_not_count_is_said(cli, pairs, more, said):
    names = ["x.safetensors", "y.npy", "z.npz", ""]
    rows = [f"images/0/000{3 * i}.npy,texts/0/000{3 * i}.npy,{x}" for i, x in enumerate(names)]
    Path("m.csv").write_text("\n".join(["image,text,output", *rows]))
    done = cli("batch", "--manifest", "m.csv", "-o", "out", *more)
    assert done.code == 0, done.err
    assert ("note: m.csv: " in done.err) == (said is not None)
    assert (said or "") in done.err


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


# One pair and its neighbours.


KINDS = {
    "numpy": {"engine": "numpy"},
    "residual": {"engine": "numpy", "switches": Switches(residual=True, norm=True)},
    "null token": {"engine": "numpy", "switches": Switches(null_token=True)},
    "both, pooled": {"engine": "numpy", "direction": "both", "pool": "mean"},
    "image": {"engine": "numpy", "direction": "image"},
    "sum": {"engine": "numpy", "switches": Switches(method="sum", dim=16)},
    "torch": {"engine": "torch"},
    "transformer": {"switches": Switches(method="transformer", layers=1)},
    "bfloat16": {"engine": "torch", "dtype": "bfloat16"},
}


@pytest.fixture(params=[True, False], ids=["joined", "alone"])
def joined(request, monkeypatch):
    """Whether numpy fuses pairs together: blocks of eight rows are row-stable with every kernel."""
    monkeypatch.setattr(row_stable, "_BLOCKS", (8,))
    if not request.param:
        monkeypatch.setattr(fusion, "is_row_stable", lambda weights: False)
    row_stable.blocks_of.cache_clear()
    yield request.param
    row_stable.blocks_of.cache_clear()


def everything(o: BatchOptions) -> tuple[Fuser, list[Pair]]:
    source = open_pairs(o.pairs)
    return Fuser(*resolve(o, source, source.total, None)), list(source)


def tensors(results) -> dict[str, list[bytes]]:
    assert all(result.error is None for result in results)
    return {r.pair.id: [t.tobytes() for t in r.tensors.values()] for r in results}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_pair_gives_does_not_depend_on_its_company(pairs, kind, joined, one_thread):
    # Some with masks, and some of odd types, among the others.
    for name in names()[3:12:3]:
        image = np.load(f"images/{name}.npy")
        np.savez(f"images/{name}.npz", image=image, image_mask=np.arange(len(image)) < 4)
        os.unlink(f"images/{name}.npy")
    np.save("texts/1/0010.npy", np.load("texts/1/0010.npy").astype(np.float16))
    fuser, every = everything(options(**KINDS[kind]))
    with fuser.undivided():
        alone = tensors([fuser.work([pair], 1 << 30)[0] for pair in every])
        together = tensors(fuser.work(every, 1 << 30))
        backwards = tensors(fuser.work(every[::-1], 1 << 30))
        parts = tensors(fuser.work(every[:7], 1 << 30) + fuser.work(every[7:], 1 << 30))
    assert alone == together == backwards == parts
    if kind == "numpy":
        assert any(fusion.row_stable for fusion in fuser._built.values()) == joined


def test_joined_pairs_get_what_each_gets_alone(pairs, joined, monkeypatch):
    fuser, every = everything(options(engine="numpy", switches=Switches(residual=True)))
    made = [result.tensors["fused"] for result in fuser.work(every, 1 << 30)]
    monkeypatch.setattr(fusion, "is_row_stable", lambda weights: False)
    fuser, every = everything(options(engine="numpy", switches=Switches(residual=True)))
    for rows, result in zip(made, fuser.work(every, 1 << 30), strict=True):
        np.testing.assert_allclose(rows, result.tensors["fused"], atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    workers=st.integers(1, 3),
    window=st.integers(1, 40),
    memory=st.sampled_from([1, 5000, 1 << 20]),
    broken=st.sets(st.integers(0, COUNT - 1), max_size=5),
    of=st.integers(1, 3),
)
def test_bytes_do_not_depend_on_how_the_run_was_cut(
    tmp_path_factory, workers, window, memory, broken, of
):
    folder = tmp_path_factory.mktemp("cut")
    make_pairs(folder, COUNT)
    here = PairOptions(str(folder / "images"), str(folder / "texts"))
    run_batch(BatchOptions(here, str(folder / "whole")))
    for index in sorted(broken):
        path = folder / f"images/{index % 3}/{index:04d}.npy"
        np.save(path, np.full_like(np.load(path), np.nan))
    for index in range(1, of + 1):
        part = Shard(index, of)
        run_batch(
            BatchOptions(here, str(folder / "cut"), shard=part, workers=workers, max_memory=memory),
            tuning=Tuning(window_pairs=window),
        )
    whole, cut = outputs(folder / "whole"), outputs(folder / "cut")
    assert len(cut) == COUNT - len(broken)
    assert all(whole[name] == content for name, content in cut.items())
    shutil.rmtree(folder)


def test_a_set_that_grew_gives_the_old_pairs_what_they_had(cli, pairs):
    shutil.copytree("images", "more/images")
    shutil.copytree("texts", "more/texts")
    shutil.rmtree("images/0")
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    before = outputs(pairs / "out")
    os.rename("images", "few")
    os.rename("more/images", "images")
    done = cli("batch", "images", "texts", "-o", "out")
    assert "10 done, 20 skipped" in done.err
    after = outputs(pairs / "out")
    assert len(after) == COUNT
    assert all(after[name] == content for name, content in before.items())


# Doing again.


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
    assert done.code == 3, done.err  # what is as wide as a text is no image here
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


def packed(folder: str) -> dict[str, np.ndarray]:
    index = json.loads(Path(folder, "fused.safetensors.index.json").read_text())
    return {id: load_file(Path(folder, pack))[id] for id, pack in index["weight_map"].items()}


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


def test_lines_of_a_pack_that_is_gone_are_not_those_of_the_next(cli, folder):
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


def test_a_journal_that_says_no_sizes_still_counts(cli, pairs):
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    lines = [{k: v for k, v in line.items() if k != "size"} for line in journal(pairs / "out")]
    Path("out/journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert f"0 done, {COUNT} skipped" in cli("batch", "images", "texts", "-o", "out").err


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


@pytest.mark.parametrize("pack", [[], ["--pack"]])
def test_failed_pairs_wait_to_be_asked_for(cli, pairs, pack):
    good = Path("images/1/0004.npy").read_bytes()
    Path("images/1/0004.npy").write_bytes(good[:200])
    assert cli("batch", "images", "texts", "-o", "out", *pack).code == 3
    mark = os.stat("images/1/0004.npy")
    done = cli("batch", "images", "texts", "-o", "out", *pack)
    assert done.code == 3
    assert f"0 done, {COUNT - 1} skipped, 1 failed before" in done.err
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


# What the folder holds.


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--residual"], "module.residual: false there, true now"),
        (["--seed", "1"], "weights.seed: 0 there, 1 now"),
        (["--out-dtype", "float16"], 'result.dtype: "float32" there, "float16" now'),
        (["--method", "sum", "--dim", "32"], 'module.method: "attention" there, "sum" now'),
        (["--direction", "image"], 'result.direction: "text" there, "image" now'),
        (["--engine", "torch"], 'computing.engine: "numpy" there, "torch" now'),
        (["--pack"], "layout.pack: false there, true now"),
        (["--allow-nonfinite"], "reading.allow_nonfinite: false there, true now"),
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


def test_a_run_with_other_weights_of_the_same_name_is_refused(cli, pairs):
    for seed in ("1", "2"):
        widths = ["--dim", str(DT), "--image-dim", str(DI), "--seed", seed]
        assert cli("init", "-o", "w.safetensors", "-f", *widths).code == 0
        done = cli("batch", "images", "texts", "-o", "out", "--weights", "w.safetensors")
    assert done.code == 2
    assert "weights.sha256" in done.err
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
def test_inputs_are_never_in_danger(cli, pairs, output):
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


def test_a_torn_line_is_cut_off_and_its_pair_done_again(cli, pairs):
    cli("batch", "images", "texts", "-o", "out")
    whole = Path("out/journal.jsonl").read_bytes()
    for torn in (whole[:-1], whole[:-40], whole + b"\0" * 300, whole[: len(whole) // 2]):
        Path("out/journal.jsonl").write_bytes(torn)
        done = cli("batch", "images", "texts", "-o", "out")
        assert done.code == 0, done.err
        assert {line["id"] for line in journal(pairs / "out")} == set(names())
        assert f"0 done, {COUNT} skipped" in cli("batch", "images", "texts", "-o", "out").err


# Parts of a run.


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


# What pairs may be.


def test_masks_of_a_manifest_and_beside_the_features_are_used(cli, folder):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((6, DI)).astype(np.float32)
    text = rng.standard_normal((5, DT)).astype(np.float32)
    real, words = np.arange(6) < 4, np.arange(5) < 3
    np.save("image.npy", image)
    np.save("text.npy", text)
    np.save("image.mask.npy", real)
    np.save("text.mask.npy", words)
    np.savez("both.npz", image=image, image_mask=real)
    Path("pairs.csv").write_text(
        "id,image,text,image_mask,text_mask\n"
        "listed,image.npy,text.npy,image.mask.npy,text.mask.npy\n"
        "beside,both.npz,text.npy,,\n"
        "none,image.npy,text.npy,,\n"
    )
    assert cli("batch", "--manifest", "pairs.csv", "-o", "out").code == 0
    made = {name: np.load(f"out/{name}.npy") for name in ("listed", "beside", "none")}
    np.save("short.npy", image[:4])
    cli("fuse", "short.npy", "text.npy", "-o", "one.npy")
    np.testing.assert_allclose(made["beside"], np.load("one.npy"), atol=1e-6)
    np.testing.assert_array_equal(made["listed"][:3], made["beside"][:3])
    assert (made["listed"][3:] == 0).all()
    assert not np.allclose(made["none"], made["beside"], atol=1e-3)
    ignored = ["--image-mask", "none", "--text-mask", "none"]
    assert cli("batch", "--manifest", "pairs.csv", "-o", "ignored", *ignored).code == 0
    for name in made:
        np.testing.assert_array_equal(np.load(f"ignored/{name}.npy"), made["none"])
    assert cli("batch", "--manifest", "pairs.csv", "-o", "x", "--image-mask", "m.npy").code == 2


def test_tensors_keyed_by_id_give_what_files_give(cli, pairs):
    for side in ("images", "texts"):
        save_file({name: np.load(f"{side}/{name}.npy") for name in names()}, f"{side}.safetensors")
    assert cli("batch", "images", "texts", "-o", "files").code == 0
    done = cli("batch", "images.safetensors", "texts.safetensors", "-o", "keyed")
    assert done.code == 0, done.err
    assert outputs(pairs / "keyed") == outputs(pairs / "files")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, ">f4"])
def test_types_may_differ_from_pair_to_pair(cli, pairs, dtype):
    name = "1/0001"
    image = (np.load(f"images/{name}.npy") * 4).astype(dtype)
    np.save(f"images/{name}.npy", image)
    np.save("texts/2/0002.npy", np.asfortranarray(np.load("texts/2/0002.npy")))
    meant = ("--allow-integers",) if dtype is np.int8 else ()  # they are refused otherwise
    assert cli("batch", "images", "texts", "-o", "out", *meant).code == 0
    for each in (name, "2/0002"):
        alone = single(cli, each, *meant)
        np.testing.assert_allclose(np.load(f"out/{each}.npy"), alone, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((2, DI), np.nan), "holds NaN at token 0, column 0"),
        (
            np.zeros((2, DI + 1)),
            "but a module as wide as most of the batch's first pairs takes 24 and 32",
        ),
        (np.zeros((2, 3, DI)), "images/1/0010.npy: [2, 3, 24] holds 2 samples, expected the"),
        (np.zeros((2, 3, 4, DI)), "can be read in two ways"),
        (np.zeros((0, DI)), "no tokens"),
        (np.array(["a"]), "holds strings"),
    ],
)
def test_a_pair_that_cannot_be_fused_says_why_and_is_alone_in_it(cli, pairs, array, said):
    cli("batch", "images", "texts", "-o", "clean")
    np.save("images/1/0010.npy", array)
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.code == 3
    assert said in done.err
    assert f"{COUNT - 1} done, 1 failed" in done.err
    clean = outputs(pairs / "clean")
    del clean["1/0010.npy"]
    assert outputs(pairs / "out") == clean


def test_an_odd_pair_that_comes_first_does_not_decide(cli, pairs):
    cli("batch", "images", "texts", "-o", "clean")
    np.save("images/0/0000.npy", np.ones((5, DI + 8), np.float32))
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.code == 3
    assert f"{COUNT - 1} done, 1 failed" in done.err


def test_the_width_a_run_began_with_is_kept(cli, pairs):
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    for name in ("0/0000", "0/0003", "2/0029"):
        os.unlink(f"out/{name}.npy")
    whole = outputs(pairs / "out")
    for index in range(COUNT - 1):  # most are of another width now, and the first
        np.save(f"images/{index % 3}/{index:04d}.npy", np.ones((2, DI + 1), np.float32))
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.code == 3
    assert f"1 done, {COUNT - 1} failed" in done.err  # and none "again"
    assert f"is {DI + 1} wide" in done.err
    assert f"takes {DI} and {DT}" in done.err
    assert "2/0029.npy" not in whole
    assert "2/0029.npy" in outputs(pairs / "out")


def test_results_that_float16_cannot_hold_fail(cli, pairs):
    np.save("images/1/0010.npy", np.full((2, DI), 1e7, np.float32))
    done = cli("batch", "images", "texts", "-o", "out", "--out-dtype", "float16")
    assert done.code == 3
    assert "written as float16: normalize the features" in done.err


def test_an_id_that_safetensors_reserves_fails_alone(cli, folder):
    for side, width in (("images", DI), ("texts", DT)):
        os.mkdir(side)
        for name in ("__metadata__", "a"):
            np.save(f"{side}/{name}.npy", np.ones((2, width), np.float32))
    done = cli("batch", "images", "texts", "-o", "out", "--pack")
    assert done.code == 3
    assert "1 done, 1 failed" in done.err
    assert "__metadata__ is no possible name" in done.err
    assert list(load_file("out/fused-00001.safetensors")) == ["a"]


def test_what_is_settled_is_kept_for_what_is_left(cli, pairs, monkeypatch):
    """The order of products goes by the run's first pairs, whatever of them is left."""
    cli("batch", "images", "texts", "-o", "whole")
    cli("batch", "images", "texts", "-o", "out")
    for index in range(3, COUNT):
        os.unlink(f"out/{index % 3}/{index:04d}.npy")
    # Only pairs with one image token are seen first now.
    for index in range(COUNT):
        if index % 3 and index < 20:
            os.unlink(f"texts/{index % 3}/{index:04d}.npy")
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    whole = outputs(pairs / "whole")
    made = outputs(pairs / "out")
    assert len(made) > 15
    assert all(whole[name] == content for name, content in made.items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["images", "texts"], "-o DIR is missing"),
        (["images", "texts", "-o", ""], "a file's name is empty (an unset shell variable?)"),
        (
            ["images", "texts", "-o", "o", "--format", "zip"],
            "'--format': 'zip' is not one of 'npy'",
        ),
        (["images", "texts", "-o", "o", "--pack", "--format", "npz"], "leave --format out"),
        (
            ["images", "texts", "-o", "o", "--pool", "sum"],
            "'--pool': 'sum' is not one of 'mean', 'max', 'first'",
        ),
        (
            ["images", "texts", "-o", "o", "--pool", "max", "--format", "npy"],
            "more than one tensor",
        ),
        (["images", "texts", "-o", "o", "--workers", "0"], "--workers must be at least 1"),
        (
            ["images", "texts", "-o", "o", "--on-error", "x"],
            "'--on-error': 'x' is not one of 'skip', 'stop'",
        ),
        (["images", "texts", "-o", "o", "--force", "--retry-failed"], "--force does every pair"),
        (["images", "texts", "-o", "o", "--force", "--shard", "1/2"], "--force begins the run"),
        (["images", "texts", "-o", "o", "--shard", "3/2"], "--shard 3/2: expected I/N"),
        (
            ["images", "texts", "-o", "o", "--pack", "--shard-size", "0"],
            "--shard-size 0: expected a size",
        ),
        (["images", "texts", "-o", "o", "--shard-size", "1M"], "is about the files of --pack"),
        (["images", "texts", "-o", "-"], "-o -: a batch writes files, name a folder"),
        ([], "expected IMAGES TEXTS -o DIR, or --manifest FILE -o DIR"),
        (["--merge", "images", "-o", "o"], "--merge takes only -o DIR"),
    ],
)
def test_wrong_options_are_one_line(cli, pairs, arguments, said):
    done = cli("batch", *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not Path("o").exists()


def test_python_gets_the_same(pairs):
    told = []
    summary = run_batch(options(reading=ReadOptions(), workers=2), told.append)
    assert (summary.done, summary.failed, summary.index) == (COUNT, 0, None)
    assert sum("untrained" in line for line in told) == 1
    with pytest.raises(OutputError, match="is not empty"):
        run_batch(options("images/0"))


def test_results_that_are_not_finite_are_counted_and_strict_fails_those_pairs(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_pairs(Path(), 3)
    image = np.load("images/0/0000.npy")
    image[..., 0] = np.nan
    np.save("images/0/0000.npy", image)
    reading = ReadOptions(allow_nonfinite=True)
    with np.errstate(all="ignore"):
        summary = run_batch(options(reading=reading))
    assert summary.done == 3
    assert summary.diagnoses["nonfinite-result"] == 1
    coded = [line for line in journal(Path("out")) if line.get("diagnoses")]
    assert any(d.startswith("nonfinite-result: ") for line in coded for d in line["diagnoses"])


def test_a_batch_says_once_that_attention_is_uniform_and_strict_refuses_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for index in range(6):
        for folder, tokens in (("images", 9), ("texts", 5)):
            Path(folder).mkdir(exist_ok=True)
            rows = 0.05 * rng.standard_normal((tokens, 16))
            np.save(f"{folder}/{index}.npy", rows.astype(np.float32))
    pairs = PairOptions("images", "texts")
    with pytest.raises(DiagnosisError, match="uniform in the first 4 pairs"):
        run_batch(BatchOptions(pairs, "o", strict=True))
    assert not Path("o/run.json").exists()
    told = []
    assert run_batch(BatchOptions(pairs, "o"), told.append).done == 6
    assert [line.split(" (")[0] for line in told] == [
        "warning: attention is close to uniform in the first 4 pairs"
    ]
