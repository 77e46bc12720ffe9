"""Packs whose results were replaced, withdrawn, or are of inputs that are gone."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

INDEX = "packs/fused.safetensors.index.json"
MODULE = ("--dim", "16", "--heads", "4")


def noise(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(autouse=True)
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable) -> None:
    """Five pairs, fused into packs."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "texts"):
        Path(folder).mkdir()
    for number in range(5):
        np.save(f"images/p{number}x.npy", noise(6, 24, seed=number))
        np.save(f"texts/p{number}x.npy", noise(7, 16, seed=100 + number))
    assert batch(cli).code == 0


def batch(cli: Callable, *options: str) -> object:
    return cli("batch", "images", "texts", "-o", "packs", "--pack", *MODULE, *options)


def listed() -> dict[str, str]:
    return json.loads(Path(INDEX).read_text())["weight_map"]


def images_by_id() -> None:
    save_file({f"p{n}x": noise(3, 24, seed=n) for n in range(5)}, "next.safetensors")


def test_of_one_pack_only_what_the_index_names_is_taken(cli: Callable) -> None:
    np.save("images/p3x.npy", np.full((6, 24), np.nan, np.float32))
    assert batch(cli).code == 3  # the result of p3x is withdrawn
    (pack,) = set(listed().values())
    assert "p3x" in load_file(f"packs/{pack}")
    images_by_id()
    done = cli("batch", "next.safetensors", f"packs/{pack}", "-o", "chained", *MODULE)
    assert done.code == 0
    assert (
        f"1 tensor of next.safetensors and packs/{pack} not used: the index does not name it"
        in (done.err)
    )
    kept = ["p0x.npy", "p1x.npy", "p2x.npy", "p4x.npy"]
    assert sorted(path.name for path in Path("chained").glob("*.npy")) == kept
    whole = cli("batch", "next.safetensors", "packs", "-o", "whole", *MODULE)
    assert whole.code == 0
    for name in kept:
        np.testing.assert_array_equal(np.load(f"chained/{name}"), np.load(f"whole/{name}"))


def test_a_pack_without_a_result_that_counts_is_refused(cli: Callable) -> None:
    (first,) = set(listed().values())
    for number in range(5):
        np.save(f"images/p{number}x.npy", noise(6, 24, seed=50 + number))
    assert batch(cli).code == 0
    assert first not in listed().values()
    images_by_id()
    done = cli("batch", "next.safetensors", f"packs/{first}", "-o", "chained", *MODULE)
    assert done.code == 1
    assert f"packs/{first}: {INDEX} names none of its tensors" in done.err
    assert "give the folder packs" in done.err
    assert cli("batch", "next.safetensors", "packs", "-o", "chained", *MODULE).code == 0
    assert len(list(Path("chained").glob("*.npy"))) == 5


def test_a_job_with_an_earlier_result_says_so(cli: Callable) -> None:
    (first,) = set(listed().values())
    np.save("images/p2x.npy", noise(6, 24, seed=52))
    np.save("images/p3x.npy", np.full((6, 24), np.nan, np.float32))
    assert batch(cli).code == 3
    second = listed()["p2x"]
    for pack, key, said in (
        (first, "p2x", f"packs/{first}[p2x]: is an earlier result, which was replaced by the one "
                       f"in {second}, as {INDEX} says"),
        (first, "p3x", f"packs/{first}[p3x]: is an earlier result, which was withdrawn"),
        (second, "p2x", None),
    ):  # fmt: skip
        text = f"packs/{pack}"
        done = cli("fuse", "images/p0x.npy", text, "--text-key", key, "-f", "-o", "o.npy", *MODULE)
        assert done.code == 0, done.err
        assert (said or "earlier result") in done.err if said else "earlier" not in done.err


def test_shards_say_what_is_left_of_inputs_that_are_gone(cli: Callable) -> None:
    for number in (1, 4):
        os.remove(f"images/p{number}x.npy")
        os.remove(f"texts/p{number}x.npy")
    left = 0
    for shard in ("1/2", "2/2"):
        done = batch(cli, "--shard", shard)
        assert done.code == 0, done.err
        for count in (1, 2):
            verb, them = ("result is", "it") if count == 1 else ("results are", "them")
            said = (
                f"warning: {count} {verb} of inputs that are not there any more: --prune, in a "
                f"run without --shard, removes {them}"
            )
            left += count * (said in done.err)
    assert left == 2
    done = batch(cli, "--prune")
    assert (done.code, "2 results are of inputs" in done.err) == (0, True)
    assert sorted(listed()) == ["p0x", "p2x", "p3x"]


def test_one_folder_of_packs_for_both_sides_needs_names_that_tell_them(cli: Callable) -> None:
    done = cli("batch", "packs", "packs", "-o", "chained")
    assert done.code == 1
    assert "packs is given as both sides, whose tensors are called <id>.image and <id>.text" in (
        done.err
    )


def test_a_file_that_only_looks_like_a_shard_of_an_index_is_taken(cli: Callable) -> None:
    images_by_id()
    texts = {f"p{n}x": noise(7, 16, seed=n) for n in range(5)}
    for name in ("fused-2024.safetensors", "fused-mean.safetensors", "fused-a-00001.safetensors"):
        save_file(texts, f"packs/{name}")
        done = cli("batch", "next.safetensors", f"packs/{name}", "-o", name, "-q", *MODULE)
        assert done.code == 0, done.err
        assert len(list(Path(name).glob("*.npy"))) == 5
    np.save("packs/fused-mean.npy", noise(7, 16, seed=1))
    done = cli("fuse", "images/p0x.npy", "packs/fused-mean.npy", "-o", "o.npy", *MODULE)
    assert done.code == 0
    assert "earlier result" not in done.err


def test_an_index_that_cannot_be_used_does_not_stop_a_run_on_one_file(cli: Callable) -> None:
    (pack,) = set(listed().values())
    images_by_id()
    Path(INDEX).write_text("{")
    done = cli("batch", "next.safetensors", f"packs/{pack}", "-o", "chained", *MODULE)
    assert done.code == 0
    assert f"packs/{pack}: all of its tensors are taken, since its index cannot be used" in done.err
    assert len(list(Path("chained").glob("*.npy"))) == 5
