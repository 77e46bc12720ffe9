"""Ids of pairs with the word of a side in them, and which features the masks beside them mark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

P, T = 6, 7
MODULE = ("--dim", "16", "--heads", "4")
IDS = [
    *("pair_1", "photos/1.jpg", "images/1.jpg", "captions/1.txt"),
    *("image_1", "images/2", "img.1", "pixel-1", "object_1", "regions/a", "visual.patch"),
    *("text_1", "texts/2", "caption.1", "word-1", "question_1", "sentence/a", "lang.word"),
]
PATCHES, WORDS = np.arange(P) < 4, np.arange(T) < 5


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


IMAGE, TEXT = noise(P, 48), noise(T, 32, seed=1)


def right(cli: Callable, image_mask: bool, text_mask: bool) -> np.ndarray:
    """What the pair and the masks that are named come to, each in a file of its own."""
    options: list[str] = []
    for name, array in (("image", IMAGE), ("text", TEXT)):
        np.save(f"{name}.npy", array)
    for side, marks, used in (("image", PATCHES, image_mask), ("text", WORDS, text_mask)):
        np.save(f"{side}_marks.npy", marks)
        options += [f"--{side}-mask", f"{side}_marks.npy"] if used else []
    done = cli("fuse", "image.npy", "text.npy", "-o", "right.npy", "-f", *MODULE, *options)
    assert done.code == 0, done.err
    return np.load("right.npy")


def check_batch(
    cli: Callable, image: str, text: str, right: np.ndarray, count: int = len(IDS)
) -> None:
    """Every pair of a batch comes to the same, and nothing of its files is left unused."""
    done = cli("batch", image, text, "-o", "out", "--strict-pairs", "--pack", *MODULE)
    assert done.code == 0, done.err
    (pack,) = Path("out").glob("*.safetensors")
    results = load_file(pack)
    assert len(results) == count
    for id, result in results.items():
        np.testing.assert_allclose(result, right, atol=1e-5, err_msg=id)


def test_a_mask_of_one_file_of_both_sides_is_the_text_s(cli: Callable) -> None:
    # As many patches as words, so that the shape of the mask does not tell whose it is.
    image, text, marks = IMAGE[:5], TEXT[:5], WORDS[2:]
    tensors = {"image": image, "text": text, "attention_mask": marks}
    save_file({f"{id}.{name}": tensors[name] for id in IDS for name in tensors}, "f.safetensors")
    for name, array in tensors.items():
        np.save(f"{name}.npy", array)
    files = ("image.npy", "text.npy", "-o", "right.npy")
    done = cli("fuse", *files, "--text-mask", "attention_mask.npy", *MODULE)
    assert done.code == 0, done.err
    check_batch(cli, "f.safetensors", "f.safetensors", np.load("right.npy"))


@pytest.mark.parametrize("name", ["mask", "attention_mask"])
def test_masks_named_after_the_tensors_of_a_pair_are_theirs(name: str, cli: Callable) -> None:
    tensors = {"image": IMAGE, "text": TEXT, f"image.{name}": PATCHES, f"text.{name}": WORDS}
    save_file({f"{id}.{name}": tensors[name] for id in IDS for name in tensors}, "f.safetensors")
    check_batch(cli, "f.safetensors", "f.safetensors", right(cli, True, True))


@pytest.mark.parametrize(("of_image", "of_text"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", ["{}.mask", "{}_attention_mask"])
def test_masks_of_two_files_by_id_belong_to_the_side_of_their_file(
    of_image: bool, of_text: bool, name: str, cli: Callable
) -> None:
    sides = {"a": (IMAGE, PATCHES, of_image), "b": (TEXT, WORDS, of_text)}
    # What stands before a full stop is the id, if a mask has one in its name.
    ids = [id for id in IDS if name == "{}.mask" or "." not in id]
    for file, (features, marks, used) in sides.items():
        tensors = dict.fromkeys(ids, features)
        tensors.update({name.format(id): marks for id in ids if used})
        save_file(tensors, f"{file}.safetensors")
    check_batch(cli, "a.safetensors", "b.safetensors", right(cli, of_image, of_text), len(ids))


@pytest.mark.parametrize("id", ["images/1.jpg", "captions/1.txt", "image_1", "text_1"])
def test_a_tensor_of_any_name_has_the_mask_that_is_named_after_it(id: str, cli: Callable) -> None:
    save_file({id: IMAGE, f"{id}.mask": PATCHES, "b": noise(P, 48)}, "a.safetensors")
    save_file({id: TEXT, f"{id}.mask": WORDS, "b": noise(T, 32)}, "b.safetensors")
    done = cli(
        *("fuse", "a.safetensors", "b.safetensors", "-o", "out.npy", *MODULE),
        *("--image-key", id, "--text-key", id),
    )
    assert done.code == 0, done.err
    np.testing.assert_array_equal(np.load("out.npy"), right(cli, True, True))


@pytest.mark.parametrize(
    ("image_key", "text_key", "mask", "marked"),
    [
        # In the nest of the features a mask is theirs, whatever word of a side the nest has.
        ("image", "object_labels.embeddings", "object_labels.attention_mask", "text"),
        ("caption_crops.embeddings", "text", "caption_crops.attention_mask", "image"),
        ("tower.embeddings", "bert.embeddings", "tower.attention_mask", "image"),
        ("tower.embeddings", "bert.embeddings", "bert.attention_mask", "text"),
        # The nest of both says nothing: a bare attention_mask is a tokenizer's.
        *(
            (f"{nest}.image_features", f"{nest}.text_features", f"{nest}.attention_mask", "text")
            for nest in ("question_encoder", "image_encoder", "model")
        ),
    ],
)
def test_the_nest_of_the_features_is_that_of_their_mask(
    image_key: str, text_key: str, mask: str, marked: str, cli: Callable
) -> None:
    image, text, marks = IMAGE[:5], TEXT[:5], WORDS[2:]
    save_file({image_key: image, text_key: text, mask: marks}, "f.safetensors")
    for name, array in (("image", image), ("text", text), ("marks", marks)):
        np.save(f"{name}.npy", array)
    keys = ("--image-key", image_key, "--text-key", text_key)
    done = cli("fuse", "f.safetensors", "f.safetensors", "-o", "out.npy", *keys, *MODULE)
    assert done.code == 0, done.err
    options = (f"--{marked}-mask", "marks.npy", *MODULE)
    assert cli("fuse", "image.npy", "text.npy", "-o", "right.npy", *options).code == 0
    np.testing.assert_array_equal(np.load("out.npy"), np.load("right.npy"))
