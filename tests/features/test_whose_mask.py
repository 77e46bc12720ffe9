"""A mask that carries the name of other features is not taken for those that were chosen."""

import numpy as np
import pytest

from fusecli import FuseOptions, fuse_files
from fusecli.features import mask_names

WIDTH, TOKENS = 16, 9


def marks(real: int, tokens: int = TOKENS) -> np.ndarray:
    return (np.arange(tokens) < real).astype(np.int64)


def rows(seed: int, tokens: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("key", "tensors", "real"),
    [
        ("caption2", "caption1 caption1_mask:4 caption2 caption2_mask:7", 7),
        ("caption1", "caption2 caption2_mask:7 caption1 caption1_mask:4", 4),
        ("caption2", "caption1 caption1_mask:4 caption2", TOKENS),
        ("answer.features", "question.features question.mask:3 answer.features answer.mask:6", 6),
        ("answer", "question question_attention_mask:3 answer answer_attention_mask:6", 6),
        ("question", "caption caption_mask:3 question question_mask:6", 6),
        ("p2.text", "p1.text p1.text_mask:4 p2.text p2.text_mask:8", 8),
        ("p2.text", "p1.text p1.text_mask:4 p2.text", TOKENS),
        ("d_states", "e_states e_attention_mask:3 d_states d_attention_mask:6", 6),
        # Masks of the chosen features, though they do not carry their name.
        ("hidden", "other hidden attention_mask:5", 5),
        ("hidden", "other other_mask:3 hidden attention_mask:5", 5),
        ("text_embeds", "image_embeds image_mask:3 text_embeds text_mask:5", 5),
    ],
)
def test_the_mask_of_the_chosen_tensor_is_used(tmp_path, key, tensors, real):
    arrays = {}
    for number, part in enumerate(tensors.split()):
        name, _, count = part.partition(":")
        arrays[name] = marks(int(count)) if count else rows(number)
    assert real_rows(tmp_path, key, arrays) == [True] * real + [False] * (TOKENS - real)


@pytest.mark.parametrize(
    "beside",
    [{"bert_pooled": rows(0)[0], "bert_attention_mask": marks(5)},
     {"text": np.arange(TOKENS), "text_mask": marks(5)}],
)  # fmt: skip
def test_tensors_without_tokens_have_no_mask_of_their_own(tmp_path, beside):
    found = real_rows(tmp_path, "last_hidden_state", {"last_hidden_state": rows(1), **beside})
    assert found == [True] * 5 + [False] * 4


@pytest.mark.parametrize(("beside", "real"), [({}, TOKENS), ({"ski_mask_mask": marks(4)}, 4)])
def test_chosen_features_may_be_called_a_mask(tmp_path, beside, real):
    found = real_rows(tmp_path, "ski_mask", {"ski": rows(2), "ski_mask": rows(1), **beside})
    assert found == [True] * real + [False] * (TOKENS - real)


def real_rows(folder, key: str, tensors: dict[str, np.ndarray]) -> list[bool]:
    """Which rows of the text are fused, and not zero as those of padding are."""
    np.savez(folder / "text.npz", **tensors)
    np.save(folder / "image.npy", rows(7, 5))
    out = str(folder / "o.npy")
    fuse_files(FuseOptions(str(folder / "image.npy"), str(folder / "text.npz"), out, text_key=key))
    fused: list[bool] = (np.abs(np.load(out)).sum(-1) > 0).tolist()
    return fused


def test_each_side_of_one_file_gets_the_mask_of_its_name(tmp_path):
    path, out = str(tmp_path / "both.npz"), str(tmp_path / "o.npy")
    vit, bert = rows(0), rows(1)
    np.savez(path, vit=vit, bert=bert, vit_mask=marks(3), bert_mask=marks(7))
    sides = {"image_key": "vit", "text_key": "bert", "image_axes": "PD", "text_axes": "TD"}
    fuse_files(FuseOptions(path, path, out, **sides))
    parts = [str(tmp_path / name) for name in ("i.npy", "t.npy", "im.npy", "tm.npy", "e.npy")]
    for name, array in zip(parts, (vit, bert, marks(3), marks(7)), strict=False):
        np.save(name, array)
    given = {"image_mask": parts[2], "text_mask": parts[3], "image_axes": "PD", "text_axes": "TD"}
    fuse_files(FuseOptions(parts[0], parts[1], parts[4], **given))
    np.testing.assert_array_equal(np.load(out), np.load(parts[4]))


def test_a_mask_file_with_several_masks_has_to_say_which_one(tmp_path, cli):
    np.save(tmp_path / "i.npy", rows(7, 5))
    np.save(tmp_path / "t.npy", rows(1))
    np.savez(tmp_path / "m.npz", first_mask=marks(4), second_mask=marks(6))
    pair = [str(tmp_path / name) for name in ("i.npy", "t.npy")]
    masks, out = str(tmp_path / "m.npz"), str(tmp_path / "o.npy")
    refused = cli("fuse", *pair, "--text-mask", masks, "-o", out)
    assert refused.code == 1
    advice = f"say which one, as in --text-mask {masks}:first_mask"
    assert f"several masks, first_mask, second_mask: {advice}" in refused.err
    assert cli("fuse", *pair, "--text-mask", f"{masks}:second_mask", "-o", out).code == 0
    assert (np.abs(np.load(out)).sum(-1) > 0).sum() == 6


def test_a_name_whose_last_word_no_mask_has_is_not_taken_apart():
    mask_names._mask_meaning.cache_clear()
    for number in range(5000):  # more than are kept
        word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        assert mask_names.mask_meaning(word) is None
        assert mask_names.mask_meaning(f"{number}.image") is None
    assert mask_names._mask_meaning.cache_info().misses == 1


def test_the_quick_test_of_names_misses_no_mask():
    words = sorted(mask_names._OF_MASKS | mask_names._COUNTED | {"per", "nb", "dog"})
    names = [f"{a}{mark}{b}" for a in words for b in words for mark in ("_", "")]
    names += [f"num_{a}_per_{b}" for a in words for b in words[:9]]
    found = [mask_names._mask_meaning.__wrapped__(name) for name in names]
    assert [mask_names.mask_meaning(name) for name in names] == found
    assert sum(meaning is not None for meaning in found) > 999
