"""A pair whose two sides are given in the wrong order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.job.jobs import DI, DT, noise, trained

PATCHES, WORDS = noise(7, DI), noise(5, DT, seed=1)


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    for folder, array in (("images", PATCHES), ("texts", WORDS)):
        Path(folder).mkdir()
        np.save(f"{folder}/p000.npy", array)


def test_exchanged_widths_are_told_with_the_order_and_others_are_not(cli: Callable) -> None:
    trained()
    done = cli("fuse", "texts/p000.npy", "images/p000.npy", "--weights", "w.safetensors")
    assert done.code == 1
    assert done.err.endswith("are exchanged: give the two files in the order IMAGE TEXT\n")
    assert "leave --weights out" not in done.err
    right = cli("fuse", "images/p000.npy", "texts/p000.npy", "--weights", "w.safetensors")
    assert right.code == 0, right.err
    for image in ("images/p000.npy", "wide.npy"):  # one width wrong; both wrong
        np.save("wide.npy", noise(4, DI + 1))
        done = cli("fuse", image, "images/p000.npy", "--weights", "w.safetensors")
        assert done.code == 1
        assert "exchanged" not in done.err
        assert "leave --weights out" in done.err


def test_exchanged_widths_of_one_file_are_told_with_the_keys(cli: Callable) -> None:
    trained()
    np.savez("both.npz", image_features=WORDS, text_features=PATCHES)
    pair = ("fuse", "both.npz", "both.npz", "--weights", "w.safetensors")
    done = cli(*pair)
    keys = "--image-key text_features --text-key image_features"
    assert done.err.endswith(f"the two widths are exchanged: say {keys}\n")
    done = cli(*pair, *keys.split())
    assert done.code == 0, done.err


def test_a_batch_tells_the_order_of_its_folders_and_columns(cli: Callable) -> None:
    trained()
    done = cli("batch", "texts", "images", "-o", "out", "--weights", "w.safetensors")
    assert done.code == 3
    assert "the two widths are exchanged: give the two folders or files in the order" in done.err
    Path("pairs.csv").write_text("image,text\ntexts/p000.npy,images/p000.npy\n")
    source = ("--manifest", "pairs.csv")
    done = cli("batch", *source, "-o", "rows", "--weights", "w.safetensors")
    assert done.code == 3
    assert "exchange the columns image and text of the manifest" in done.err


@pytest.mark.parametrize(
    ("image", "text", "warned"),
    [
        ("texts/p000.npy", "images/p000.npy", True),
        ("./texts/p000.npy", "x/../images/p000.npy", True),
        ("texts/p000.npy", "image.npy", True),
        ("images/p000.npy", "texts/p000.npy", False),
        ("texts/p000.npy", "texts/p001.npy", False),
        ("texts/p000.npy", "./texts/image.npy", False),  # one folder
        ("texts/p000.npy", "other/p000.npy", False),
        ("texts/val/p000.npy", "images/val/p000.npy", False),  # folders far above
        ("texts/image.npy", "images/text.npy", False),  # the files' own names say it
    ],
)
def test_files_in_folders_of_the_other_side_are_diagnosed(
    image: str, text: str, warned: bool, cli: Callable
) -> None:
    Path("x").mkdir()
    for name, array in ((image, noise(7, 16)), (text, noise(5, 8))):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        np.save(name, array)
    done = cli("fuse", image, text)
    assert done.code == 0, done.err
    assert ("sounds like the other way round" in done.err) is warned, done.err
    assert ("give them in the order IMAGE TEXT" in done.err) is warned


def test_one_tensor_given_twice_is_not_said_to_be_samples(cli: Callable) -> None:
    np.save("photo.npy", noise(7, 16))
    done = cli("fuse", "photo.npy", "photo.npy")
    assert done.code == 0, done.err
    assert "tokens attend to themselves" in done.err
    assert "probably samples" not in done.err
    np.save("other.npy", noise(7, 16, seed=1))
    assert "probably samples" in cli("fuse", "photo.npy", "other.npy").err
