"""The column `attention_mask` of a manifest: what `fuse --attention-mask` gives for every pair."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

RNG = np.random.default_rng(0)
N, T, P, DT, DI = 4, 5, 6, 16, 24
IMAGES = RNG.standard_normal((N, P, DI)).astype(np.float32)
TEXTS = RNG.standard_normal((N, T, DT)).astype(np.float32)
ALLOWED = RNG.random((N, T, P)) < 0.5
ALLOWED[..., 0] = True
ALLOWED[:, 0, :] = True
MODULE = ("--dim", "16", "--seed", "1")


@pytest.fixture(autouse=True)
def _here(folder: Path) -> None:
    np.save("images.npy", IMAGES)
    np.save("texts.npy", TEXTS)
    for row in range(N):
        np.save(f"i{row}.npy", IMAGES[row])
        np.save(f"t{row}.npy", TEXTS[row])
        np.save(f"m{row}.npy", ALLOWED[row])
    np.save("masks.npy", ALLOWED)
    np.savez("masks.npz", allowed=ALLOWED, other=~ALLOWED)


def manifest(*columns: str, row: Callable[[int], tuple[object, ...]]) -> None:
    lines = [",".join(("id", *columns))]
    lines += [",".join(map(str, (f"p{number}", *row(number)))) for number in range(N)]
    Path("m.csv").write_text("\n".join(lines) + "\n")


def pairs_with_masks() -> None:
    columns = ("image", "text", "attention_mask")
    manifest(*columns, row=lambda n: (f"i{n}.npy", f"t{n}.npy", f"m{n}.npy"))


def fused(cli: Callable, row: int, *options: str) -> np.ndarray:
    files = (f"i{row}.npy", f"t{row}.npy", "--attention-mask", f"m{row}.npy")
    done = cli("fuse", *files, "-o", "one.npy", "-f", "-q", *MODULE, *options)
    assert done.code == 0, done.err
    return np.load("one.npy")


def check(cli: Callable, *options: str) -> None:
    """A batch of the manifest gives every pair what a job of its own does."""
    done = cli("batch", "--manifest", "m.csv", "-o", "out", *MODULE, *options)
    assert done.code == 0, done.err
    for row in range(N):
        wanted = fused(cli, row, *options)
        np.testing.assert_allclose(np.load(f"out/p{row}.npy"), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "options", [(), ("--direction", "image"), ("--method", "transformer"), ("--residual",)]
)
def test_each_pair_has_an_attention_mask_of_its_own(
    options: tuple[str, ...], cli: Callable
) -> None:
    manifest(
        "image", "text", "attention_mask", row=lambda n: (f"i{n}.npy", f"t{n}.npy", f"m{n}.npy")
    )
    check(cli, *options)
    shown = np.load("out/p1.npy")
    plain = cli("fuse", "i1.npy", "t1.npy", "-o", "plain.npy", *MODULE, *options)
    assert plain.code == 0
    assert not np.allclose(shown, np.load("plain.npy"), atol=1e-3)  # the mask takes part


@pytest.mark.parametrize("mask", ["masks.npy", "masks.npz:allowed"])
def test_of_a_stack_of_masks_the_row_of_the_pair_is_taken(mask: str, cli: Callable) -> None:
    columns = ("image", "image_row", "text", "attention_mask")
    manifest(*columns, row=lambda n: ("images.npy", n, f"t{n}.npy", mask))
    check(cli)


def test_rows_of_two_stacks_that_differ_are_refused(cli: Callable) -> None:
    columns = ("image", "image_row", "text", "text_row", "attention_mask")
    manifest(*columns, row=lambda n: ("images.npy", n, "texts.npy", (n + 1) % N, "masks.npy"))
    done = cli("batch", "--manifest", "m.csv", "-o", "out", *MODULE)
    assert done.code == 3
    assert "has as many samples as both the image and the text, whose rows 0 and 1" in done.err
    manifest(*columns, row=lambda n: ("images.npy", n, "texts.npy", (n + 1) % N, "m0.npy"))
    done = cli("batch", "--manifest", "m.csv", "-o", "out", *MODULE, "--retry-failed")
    assert done.code == 0, done.err


def test_a_pair_whose_attention_mask_changed_is_fused_again(cli: Callable) -> None:
    manifest(
        "image", "text", "attention_mask", row=lambda n: (f"i{n}.npy", f"t{n}.npy", f"m{n}.npy")
    )
    done = cli("batch", "--manifest", "m.csv", "-o", "out", "--json", *MODULE)
    said = json.loads(done.out)
    assert said["notes"] == {"attention-mask-assumed": N}
    assert "m0.npy: 1 is taken for a text token that may attend" in said["first_notes"][0]
    again = json.loads(cli("batch", "--manifest", "m.csv", "-o", "out", "--json", *MODULE).out)
    assert (again["done"], again["skipped"]) == (0, N)
    ALLOWED_2 = ALLOWED[2].copy()
    ALLOWED_2[3] = True
    np.save("m2.npy", ALLOWED_2)
    os.utime("m2.npy", ns=(0, os.stat("m2.npy").st_mtime_ns + 10**9))
    before = np.load("out/p2.npy")
    again = json.loads(cli("batch", "--manifest", "m.csv", "-o", "out", "--json", *MODULE).out)
    assert (again["done"], again["changed"], again["skipped"]) == (1, 1, N - 1)
    assert not np.array_equal(np.load("out/p2.npy"), before)
    np.testing.assert_allclose(np.load("out/p2.npy"), fused(cli, 2), atol=1e-5)


@pytest.mark.slow
def test_what_cannot_be_is_refused(cli: Callable) -> None:
    manifest(
        "image", "text", "attention_mask", row=lambda n: (f"i{n}.npy", f"t{n}.npy", f"m{n}.npy")
    )
    done = cli("batch", "--manifest", "m.csv", "-o", "sum", "--method", "sum", "--dim", "16")
    assert (done.code, done.err.count("column attention_mask")) == (2, 1)  # once
    assert "m.csv: its column attention_mask needs a method with attention" in done.err
    assert not Path("sum").exists()
    none = ALLOWED[0].copy()
    none[2] = False
    np.save("m0.npy", none)
    np.save("m1.npy", ALLOWED[1].T)
    done = cli("batch", "--manifest", "m.csv", "-o", "out", *MODULE)
    assert done.code == 3
    assert "failed: p0: m0.npy: text token 2 may attend to no image token" in done.err
    assert "failed: p1: m1.npy: the attention mask has shape [6, 5], expected [5, 6]" in done.err
    assert sorted(path.name for path in Path("out").glob("*.npy")) == ["p2.npy", "p3.npy"]
    train = cli("train", "--manifest", "m.csv", "--task", "match", "-o", "run")
    assert train.code == 2
    assert "m.csv: has a column attention_mask, and training takes no attention masks" in train.err


def test_masks_of_rows_take_a_key_too(cli: Callable) -> None:
    keep = np.array([1, 1, 1, 1, 0, 0])
    np.savez("keep.npz", keep=keep, lost=1 - keep)
    manifest(
        "image", "text", "image_mask", row=lambda n: (f"i{n}.npy", f"t{n}.npy", "keep.npz:keep")
    )
    assert cli("batch", "--manifest", "m.csv", "-o", "out", *MODULE).code == 0
    cut = cli("fuse", "i1.npy", "t1.npy", "--image-mask", "keep.npz:keep", "-o", "o.npy", *MODULE)
    assert cut.code == 0
    np.testing.assert_allclose(np.load("out/p1.npy"), np.load("o.npy"), atol=1e-5)
