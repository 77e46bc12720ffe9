"""What the names of tensors say: a mask, and how it marks tokens; whose features."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import NamedTuple

from fusecli.features.literals import MaskStyle as MaskStyle
from fusecli.features.literals import Side

_IMAGE_WORDS = """
    image images img pixel pixels vision visual region regions patch patches box boxes bbox bboxes
    object objects obj objs roi rois detection detections
"""
_TEXT_WORDS = """
    text texts txt caption captions question questions input word words sentence language lang
"""
# What a count counts: tokens. (num_images and num_captions count something else.)
_TOKEN_WORDS = """
    token tokens tok toks feature features feats frames valid patch patches region regions box boxes
    bbox bboxes object objects obj objs roi rois detection detections proposals word words subwords
    pieces
"""
# Words in the name of a length, besides those of its side. (max_length and focal_length are none.)
_LENGTH_WORDS = """
    seq seqs sequence sequences num n of valid real actual true source src target tgt memory
    attention attn encoder
"""
# What the name of a mask is made of, besides the name of what it belongs to.
_MASK_WORDS = """
    mask masks atts attn att extended additive cross self key query pad padding padded paddings is
    no non not un bool
"""
_NO_MASK_NAMES = """
    token_type_ids special_tokens_mask global_attention_mask bool_masked_pos causal_mask loss_mask
    label_mask labels_mask segmentation_mask segmentation_masks
"""
_LABELS = """
    label labels target targets y class classes id ids index indices split answer answers score
    scores correct truth
"""
_FEATURES = """
    feature features feat feats embed embeds embedding embeddings emb embs state states tokens
    patches regions
"""
_SIDE_WORDS: dict[Side, frozenset[str]] = {
    "image": frozenset(_IMAGE_WORDS.split()),
    "text": frozenset(_TEXT_WORDS.split()),
}
_COUNTED = frozenset(_TOKEN_WORDS.split())
_OF_LENGTHS = frozenset((_IMAGE_WORDS + _TEXT_WORDS + _TOKEN_WORDS + _LENGTH_WORDS).split())
_COUNTS = frozenset(("num", "count", "counts", "number"))
_LENGTHS = frozenset(("length", "lengths", "len", "lens", "seqlen", "seqlens", "doclens"))
_OF_MASKS = _OF_LENGTHS | frozenset(_MASK_WORDS.split()) | _COUNTS | _LENGTHS
_PADDING = frozenset(("pad", "padding", "padded", "paddings"))
_MASKS = ("mask", "masks", "atts")
# The name of a mask ends in one of these, or has something behind "per".
_ENDS = tuple({*_MASKS, *_PADDING, *_COUNTED, *_COUNTS, *_LENGTHS}.union(*_SIDE_WORDS.values()))
_KEPT = 4096  # names, since every file of a batch has the same few
_LONGEST_PADDING = 2  # words of a name such as is_padding or image_pad
# Words by which a mask marks what is left out; and words of which nobody knows what they mark.
_LEFT_OUT = frozenset(("ignore", "ignored", "invalid", "exclude", "excluded", "missing"))
_UNCLEAR = frozenset(("masked", "drop", "dropped", "mlm", "mae", "random"))
# Tensors of 0 and 1 that a tokenizer or a data set puts beside features and that mask nothing.
NO_MASKS = frozenset(_NO_MASK_NAMES.split())
_NO_NAMES = (None, "", "arr_0")
_LABEL_WORDS = frozenset(_LABELS.split())
_FEATURE_WORDS = frozenset(_FEATURES.split())


class MaskMeaning(NamedTuple):
    """What a tensor's name says about it.

    Attributes:
        side: whose tokens it marks; None if the name does not say.
        style: what its numbers mean.
    """

    side: Side | None
    style: MaskStyle


def mask_meaning(key: str) -> MaskMeaning | None:
    """What kind of mask a tensor of this name is; None if the name does not say it is one.

    The last part of the key alone counts. What stands before it can be the id of a pair, and ids
    often hold the word of a side (`image_1.attention_mask`).
    """
    if not ends_in_word(key):
        return None
    name = base_name(key)  # of `0001.image` and `0002.image` it is one
    # A file may hold hundreds of thousands of ids that are words, each asked about once.
    return _mask_meaning(name) if name.endswith(_ENDS) or "per" in name else None


def meaning_of(key: str | None, file: str) -> MaskMeaning | None:
    """What the name of a mask says; of a tensor without a name that of its file.

    Args:
        key: of the tensor; None, "" or numpy's `arr_0` where nobody named it.
        file: its path.
    """
    if key in _NO_NAMES:
        key = _without_padded(os.path.splitext(os.path.basename(file))[0])
    return mask_meaning(key or "")


def _without_padded(name: str) -> str:
    """The last part of a file's name without the words for what was filled up to one length.

    `attention_mask_padded.npy` and `captions_pad.npy` are what their other words say, of samples
    that were padded. In `is_padded`, `pad_mask` and `key_padding_mask` the word says what 1 marks.
    """
    while name:
        words = _words(base_name(name))
        kept = []
        for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
            filled_up = word == "padded" or (word == "pad" and after not in _MASKS)
            if not filled_up or before == "is":
                kept.append(word)
        if any(kept):
            return "_".join(kept)
        name = nest_of(name)[:-1]  # padding_mask.padded.npy
    return ""


@lru_cache(_KEPT)
def _mask_meaning(name: str) -> MaskMeaning | None:
    words = _words(name)
    name = "_".join(words)  # key-padding-mask
    if name in NO_MASKS or name.endswith("attn_mask") or _UNCLEAR.intersection(words):
        return None  # torch's attn_mask has another meaning in each of two functions
    side: Side | None = None
    for each, known in _SIDE_WORDS.items():
        if known.intersection(words):
            side = each
    if len(words) > 1 and side is not None and words[-1] in _SIDE_WORDS[side]:
        last = mask_meaning("_".join(words[:-1]))  # mask_text, attention_mask_image
        if last is not None and (last.style != "lengths" or words[0] in _LENGTHS):
            return MaskMeaning(side, last.style)
    real = re.search(r"(^|_)(no|non|not|un)_?pad", name)  # as in non_pad_mask
    if words[-1] in _MASKS or re.search(r"pad(ding)?masks?$", name):
        padded = re.search(r"pad(ding|ded)?_?masks?$", name) or _LEFT_OUT.intersection(words)
        return MaskMeaning(side, "padding" if padded and not real else "keep")
    if words[-1] in _PADDING and len(words) <= _LONGEST_PADDING:
        return MaskMeaning(side, "keep" if real else "padding")
    if words[-2:-1] == ["per"]:  # num_regions_per_image
        words = words[:-2] or words
    counts = words[0] in ("num", "n", "nb", "number") and words[-1] in _COUNTED
    counts = counts or (words[-1] in _COUNTS and words[-2:-1] != [] and words[-2] in _COUNTED)
    counts = counts or (name[0:1] == "n" and name[1:] in _COUNTED)  # nwords, nboxes
    counts = counts or name in ("count", "counts")
    if counts or (words[-1] in _LENGTHS and _OF_LENGTHS.issuperset(words[:-1])):
        return MaskMeaning(side, "lengths")
    return None


@lru_cache(_KEPT)
def owner_named(key: str) -> str:
    """What a mask's name says it belongs to: "a" of `a.image_mask` and of `a_mask`.

    "" of `image_mask`, which is of all that its file holds.
    """
    owner, dot, _ = key.rpartition(".")
    if dot:
        return owner
    parts = re.split(r"([_\-\s]+)", key)
    while parts and parts[-1].lower() in _OF_MASKS:
        parts = parts[:-2]
    return "".join(parts)


def says_its_style(key: str) -> bool:
    """Whether a name tells what the numbers of a mask mean: `attention_mask`, but not `mask`."""
    return base_name(key) not in ("mask", "masks") and mask_meaning(key) is not None


def is_known_mask(key: str) -> bool:
    """Whether a tensor of this name is never features."""
    if not ends_in_word(key):
        return False
    name = base_name(key)
    return mask_meaning(key) is not None or name in NO_MASKS or name.endswith("attn_mask")


def is_label(key: str) -> bool:
    """Whether a tensor of this name is labels or numbers, also where it has a mask's shape."""
    name = base_name(key)
    return name in NO_MASKS or not _LABEL_WORDS.isdisjoint(_words(name))


@lru_cache(_KEPT)
def side_named(key: str) -> Side | None:
    """The side whose name stands anywhere in a key, such as "text" in `text_model.embeds`.

    None where it names neither side, or both.
    """
    words = set(_words(key.lower())) - {"input"}  # input_features of audio
    sides = [side for side, known in _SIDE_WORDS.items() if not known.isdisjoint(words)]
    return sides[0] if len(sides) == 1 else None


def is_called_features(key: str) -> bool:
    """Whether the last word of a key is what features are called."""
    return ends_in_word(key) and _is_called_features(key)


@lru_cache(_KEPT)
def _is_called_features(key: str) -> bool:
    return _words(base_name(key))[-1] in _FEATURE_WORDS


def ends_in_word(key: str) -> bool:
    """Whether a key's last part ends in a letter, as the names of masks and features all do.

    The ids of pairs, of which a file may hold hundreds of thousands, mostly end in a digit.
    """
    return key[-1:].isalpha()


def nest_of(key: str) -> str:
    """A key without its last part, with the mark at its end: "text/" of `text/mask`."""
    return key[: max(key.rfind("."), key.rfind("/")) + 1]


def base_name(key: str) -> str:
    """The last part of a key that leads through nested dicts, `text.mask` or `text/mask`."""
    return key[max(key.rfind("."), key.rfind("/")) + 1 :].lower()


def _words(name: str) -> list[str]:
    return re.split(r"[_\-./\s]+", name)
