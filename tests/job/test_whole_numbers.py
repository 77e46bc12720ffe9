"""Floating point numbers that are all whole: token numbers, pixels, quantized features."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((6, 48)).astype(np.float32)
TEXT = RNG.standard_normal((7, 32)).astype(np.float32)
TOKEN_NUMBERS = RNG.integers(0, 30_000, (5, 64))
PIXELS = RNG.integers(0, 256, (6, 48))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("texts").mkdir()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("masked", [False, True])
def test_whole_numbers_are_diagnosed_and_strict_fails(
    side: str, dtype: str, masked: bool, cli: Callable
) -> None:
    pair = {"image": IMAGE, "text": TEXT}
    pair[side] = (PIXELS if side == "image" else TOKEN_NUMBERS).astype(dtype)
    for name, array in pair.items():
        np.save(f"{name}.npy", array)
        np.save(f"{name}s/0.npy", array)
    options = []
    if masked:
        np.save("mask.npy", np.arange(len(pair[side])) < 4)
        options = [f"--{side}-mask", "mask.npy"]
    done = cli("fuse", "image.npy", "text.npy", *options)
    assert done.code == 0
    assert f"warning: {side}.npy: its numbers are whole numbers up to " in done.err
    assert "give the encoder's last_hidden_state" in done.err
    strict = cli("fuse", "image.npy", "text.npy", "-f", "--strict", *options)
    assert (strict.code, "whole numbers" in strict.err) == (1, True)
    done = cli("batch", "images", "texts", "-o", "out")
    assert f"{side}s/0.npy: its numbers are whole numbers up to " in done.err
    assert cli("batch", "images", "texts", "-o", "strict", "--strict").code == 3


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        np.eye(7, 32, dtype=np.float32),  # one-hot
        RNG.integers(0, 5, (7, 32)).astype(np.float32),  # counts of words
        np.where(np.arange(7)[:, None] < 1, np.float32(40), TEXT),  # one whole row
    ],
)
def test_other_features_are_not(text: np.ndarray, cli: Callable) -> None:
    np.save("image.npy", IMAGE)
    np.save("text.npy", text)
    done = cli("fuse", "image.npy", "text.npy")
    assert (done.code, "whole numbers" in done.err) == (0, False)


def test_whole_numbers_that_an_option_calls_features_are_not(cli: Callable) -> None:
    np.save("image.npy", IMAGE)
    np.save("text.npy", TOKEN_NUMBERS)
    done = cli("fuse", "image.npy", "text.npy", "--allow-integers")
    assert (done.code, "whole numbers" in done.err) == (0, False)


def test_large_features_are_not_whole_numbers(cli: Callable) -> None:
    np.save("image.npy", IMAGE * np.float32(1e30))
    np.save("text.npy", TEXT)
    done = cli("fuse", "image.npy", "text.npy")
    assert (done.code, "whole numbers" in done.err) == (0, False)


@pytest.mark.parametrize(
    ("key", "dtype", "offered"),
    [
        ("input_ids", "int64", False),
        ("ids", "int32", False),
        ("batch.token_type_ids", "int64", False),
        ("tokens", "int64", False),
        ("tokens", "int8", True),  # may be quantized features
        ("feats", "int64", True),
    ],
)
def test_integers_named_as_token_numbers_are_not_offered_as_features(
    key: str, dtype: str, offered: bool, cli: Callable
) -> None:
    np.save("image.npy", IMAGE)
    np.savez("text.npz", **{key: np.arange(40).reshape(5, 8).astype(dtype)})
    done = cli("fuse", "image.npy", "text.npz")
    assert done.code == 1
    assert "give the encoder's last_hidden_state" in done.err
    assert ("--allow-integers" in done.err) is offered
    assert cli("fuse", "image.npy", "text.npz", "--allow-integers").code == 0
