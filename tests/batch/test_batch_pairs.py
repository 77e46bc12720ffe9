"""What pairs may be: masks, keys, types, and pairs that fail alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusecli.batch import BatchOptions, ReadOptions, run_batch
from fusecli.errors import DiagnosisError, OutputError
from fusecli.pairs.open import PairOptions
from tests.batch.runs import COUNT, names, options, single
from tests.batches import DI, DT, journal, make_pairs, outputs


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
def test_a_pair_that_cannot_be_fused_fails_alone_with_a_reason(cli, pairs, array, said):
    cli("batch", "images", "texts", "-o", "clean")
    np.save("images/1/0010.npy", array)
    done = cli("batch", "images", "texts", "-o", "out")
    assert done.code == 3
    assert said in done.err
    assert f"{COUNT - 1} done, 1 failed" in done.err
    clean = outputs(pairs / "clean")
    del clean["1/0010.npy"]
    assert outputs(pairs / "out") == clean


def test_an_unusual_first_pair_does_not_decide_the_widths_of_a_run(cli, pairs):
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


@pytest.mark.slow
def test_a_resumed_run_keeps_what_its_first_start_decided(cli, pairs, monkeypatch):
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
