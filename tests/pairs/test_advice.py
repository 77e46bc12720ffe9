"""Names that do not match: the error says what mends it, and what it says works."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusecli.errors import FeatureFileError, PairsError, UsageError
from fusecli.features.file import open_features
from fusecli.pairs.open import PairOptions, open_pairs

X = np.ones((1, 2), np.float32)
OPTIONS = {
    "--image-pattern": "image_pattern",
    "--text-pattern": "text_pattern",
    "--loose-ids": "loose_ids",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(folder: str, *names: str) -> None:
    for name in names:
        path = Path(folder, f"{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def refusal(options: PairOptions) -> str:
    with pytest.raises(PairsError) as refused:
        open_pairs(options)
    return str(refused.value)


def followed(message: str) -> dict[str, object]:
    """The options that a message tells to say."""
    words = shlex.split(message.rpartition(": say ")[2] or message)
    options: dict[str, object] = {}
    for index, word in enumerate(words):
        if word in OPTIONS:
            options[OPTIONS[word]] = True if word == "--loose-ids" else words[index + 1]
    return options


@pytest.mark.parametrize(
    ("images", "texts", "why", "ids"),
    [
        (["a.jpg", "b.jpg"], ["a.txt", "b.txt"], "end differently", ["a", "b"]),
        (["a.jpg"], ["a.txt"], "end differently", ["a"]),
        (["a.clip.vit", "b.clip.vit"], ["a", "b"], "end differently", ["a", "b"]),
        (["img_1", "img_2"], ["txt_1", "txt_2"], "end differently", ["1", "2"]),
        (["img_1"], ["txt_1"], "end differently", ["1"]),
        (["x/1_vis", "x/2_vis"], ["x/1-cap", "x/2-cap"], "end differently", ["x/1", "x/2"]),
        (["001", "002", "010"], ["1", "2", "10"], "leading zeros", ["1", "2", "10"]),
        (["img7"], ["img007"], "leading zeros", ["img7"]),
        (["Cat", "Dog"], ["cat", "dog"], "case", ["cat", "dog"]),
        (["A/x", "B/x"], ["a/X", "b/X"], "case", ["a/x", "b/x"]),
        (["img_001", "img_002"], ["1", "2"], "end differently", ["1", "2"]),
    ],
)
def test_the_options_that_the_error_names_match_the_files(
    images: list[str], texts: list[str], why: str, ids: list[str]
) -> None:
    files("images", *images)
    files("texts", *texts)
    message = refusal(PairOptions("images", "texts"))
    assert why in message, message
    options = followed(message)
    assert options, message
    source = open_pairs(PairOptions("images", "texts", **options))
    assert sorted(pair.id for pair in source) == sorted(ids)
    assert source.unmatched.total == 0


def test_unicode_forms_match_with_loose_ids() -> None:
    name = "caf\u00e9"
    files("images", unicodedata.normalize("NFD", name))
    files("texts", unicodedata.normalize("NFC", name))
    message = refusal(PairOptions("images", "texts"))
    assert "differ in their Unicode form: say --loose-ids" in message
    (pair,) = open_pairs(PairOptions("images", "texts", loose_ids=True))
    assert pair.id == name
    assert Path(pair.image.file).exists()
    assert Path(pair.text.file).exists()


def test_many_names_of_which_the_first_ones_have_nothing_in_common() -> None:
    files("images", *(f"{number:04}" for number in range(2, 120)))
    files("texts", *(str(number) for number in range(2, 120)))
    message = refusal(PairOptions("images", "texts"))
    assert "118 images and 118 texts without a partner" in message
    assert message.endswith("differ in leading zeros: say --loose-ids")
    assert open_pairs(PairOptions("images", "texts", loose_ids=True)).total == 118


def test_most_names_do_not_match_and_some_do() -> None:
    files("images", "same", *(f"{number}_img" for number in range(9)))
    files("texts", "same", *map(str, range(9)))
    source = open_pairs(PairOptions("images", "texts"))
    assert source.total == 1
    said = str(source.unmatched)
    assert "9 images" in said
    assert said.endswith("say --image-pattern '{id}_img' --text-pattern '{id}'")


def test_few_names_without_a_partner_get_no_advice() -> None:
    files("images", "a", "b", "c", "Odd")
    files("texts", "a", "b", "c", "odd")
    source = open_pairs(PairOptions("images", "texts"))
    assert source.total == 3
    assert "--loose-ids" not in str(source.unmatched)


def test_loose_ids_refuse_two_files_of_one_id() -> None:
    files("images", "001", "1")
    files("texts", "1")
    message = refusal(PairOptions("images", "texts", loose_ids=True))
    assert "is the image of '1', and so is" in message


def test_loose_ids_refuse_two_folders_of_one_id() -> None:
    files("images", "A/1", "a/2")
    files("texts", "a/1", "a/2")
    message = refusal(PairOptions("images", "texts", loose_ids=True))
    assert "images/a: with --loose-ids this is the same folder as images/A" in message


def test_a_folder_further_down_is_named() -> None:
    files("images", "train/a", "train/b")
    files("texts", "a", "b")
    message = refusal(PairOptions("images", "texts"))
    assert message.endswith("their folders differ: give images/train instead")
    assert open_pairs(PairOptions("images/train", "texts")).total == 2


def test_a_folder_without_feature_files_is_named() -> None:
    files("images", "a")
    Path("texts").mkdir()
    Path("texts/a.txt").touch()
    message = refusal(PairOptions("images", "texts"))
    assert message.endswith(
        "there are no feature files (.npy, .npz, .safetensors, .pt, .pth, .ckpt) in texts"
    )


@pytest.mark.parametrize(
    ("images", "texts", "ids"),
    [
        (["a.image", "b.image"], ["a.text", "b.text"], ["a", "b"]),
        (["a_img", "b_img"], ["a", "b"], ["a", "b"]),
        (["001", "002"], ["1", "2"], ["1", "2"]),
        (["A"], ["a"], ["a"]),
    ],
)
def test_keys_match_as_the_error_advises(
    images: list[str], texts: list[str], ids: list[str]
) -> None:
    save_file(dict.fromkeys(images, X), "i.safetensors")
    save_file(dict.fromkeys(texts, X), "t.safetensors")
    options = followed(refusal(PairOptions("i.safetensors", "t.safetensors")))
    source = open_pairs(PairOptions("i.safetensors", "t.safetensors", **options))
    pairs = list(source)
    assert sorted(pair.id for pair in pairs) == ids
    assert sorted(str(pair.image.key) for pair in pairs) == sorted(images)
    assert sorted(str(pair.text.key) for pair in pairs) == sorted(texts)


def test_one_file_of_both_sides_matches_as_the_error_advises() -> None:
    save_file(dict.fromkeys(("a_img", "a_txt", "b_img", "b_txt"), X), "both.safetensors")
    options = followed(refusal(PairOptions("both.safetensors")))
    source = open_pairs(PairOptions("both.safetensors", **options))
    assert [pair.id for pair in source] == ["a", "b"]


def test_loose_ids_of_keys_that_are_one_are_refused() -> None:
    save_file({"A": X, "a": X}, "i.safetensors")
    save_file({"a": X}, "t.safetensors")
    message = refusal(PairOptions("i.safetensors", "t.safetensors", loose_ids=True))
    assert "holds two tensors that are the image of 'a' with --loose-ids" in message


def test_backslashes_are_named() -> None:
    with pytest.raises(FeatureFileError, match="holds backslashes, write it with /"):
        open_features("images\\a.npy")
    with pytest.raises(FeatureFileError, match=r"no such file$"):
        open_features("images/a.npy")


def test_folders_whose_last_parts_differ_are_both_named() -> None:
    files("a", "val/1", "val/2")
    files("b", "test/1", "test/2")
    said = refusal(PairOptions("a", "b"))
    assert said.endswith("; their folders differ: give a/val and b/test instead")
    assert [pair.id for pair in open_pairs(PairOptions("a/val", "b/test"))] == ["1", "2"]


def test_several_texts_of_an_image_need_a_manifest_which_works() -> None:
    files("a", "1", "2")
    files("b", "1#0", "1#1", "2#0")
    said = refusal(PairOptions("a", "b"))
    assert said.endswith("they look like several texts of one image: list every pair in a manifest"
                         " with the columns image,text")  # fmt: skip
    Path("m.csv").write_text("image,text\n" + "".join(
        f"a/{name[0]}.npy,b/{name}.npy\n" for name in ("1#0", "1#1", "2#0")))  # fmt: skip
    assert open_pairs(PairOptions(manifest="m.csv")).total == 3


def test_files_of_masks_in_a_folder_of_features_are_told_apart() -> None:
    files("a", "1", "2", "1_mask", "masks/2")
    files("b", "1", "2")
    source = open_pairs(PairOptions("a", "b"))
    assert source.total == 2
    assert "a/1_mask.npy looks like a mask: masks in files of their own are used where a" in str(
        source.unmatched
    )
    files("c", "1", "2", "3")
    assert "looks like a mask" not in str(open_pairs(PairOptions("c", "b")).unmatched)


def test_a_folder_of_tensors_by_id_is_not_matched_by_its_file_names() -> None:
    Path("packs").mkdir()
    files("a", "1", "2")
    save_file({"1": X, "2": X}, "packs/fused-00001.safetensors")
    index = '{"weight_map": {"1": "fused-00001.safetensors", "2": "fused-00001.safetensors"}}'
    Path("packs/fused.safetensors.index.json").write_text(index)
    said = refusal(PairOptions("a", "packs", keyed=False))
    assert said.endswith("; packs holds tensors by id: leave --no-keyed out")
    with pytest.raises(UsageError, match="in a manifest with the columns image,text,text_key"):
        open_pairs(PairOptions("a", "packs"))
    rows = "".join(f"a/{id}.npy,packs/fused-00001.safetensors,{id}\n" for id in "12")
    Path("m.csv").write_text("image,text,text_key\n" + rows)
    assert open_pairs(PairOptions(manifest="m.csv")).total == 2
    with pytest.raises(FeatureFileError, match="it is the index of a folder of tensors by id: gi"):
        open_features("packs/fused.safetensors.index.json")
