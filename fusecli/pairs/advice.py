"""Why the names of two sides do not match, and the options with which they do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice, product

from fusecli.features.formats.table import READABLE_ENDINGS
from fusecli.features.mask_names import mask_meaning
from fusecli.pairs.ids import fold, loose_id
from fusecli.pairs.pair import PairOptions, Unmatched, UnmatchedKind
from fusecli.pairs.shards import looks_keyed
from fusecli.records import record

LOOKED_AT = 2048  # names of each side
_MARKS = "._-"
_NUMBERED = re.compile(r"[#._-]\d{1,3}$")  # behind the id of an image: the number of its text
_IMAGES = "image images img imgs photo pixel visual vision patches regions"
_TEXTS = "text texts txt caption captions question questions sentence"
_IMAGE_WORDS, _TEXT_WORDS = frozenset(_IMAGES.split()), frozenset(_TEXTS.split())
_SIDE_WORDS = _IMAGE_WORDS | _TEXT_WORDS | frozenset(("jpg", "jpeg", "png", "webp", "json"))


@record
class _Around:
    """What stands around the id in all names of a side."""

    prefix: str
    suffix: str

    @property
    def pattern(self) -> str:
        return f"{self.prefix}{{id}}{self.suffix}"

    def ids(self, names: Iterable[str]) -> set[str]:
        end = -len(self.suffix) or None
        return {name[len(self.prefix) : end] for name in names}


def advice(o: PairOptions, unmatched: Unmatched, keyed: bool) -> str:
    """The options with which names match, as the end of a sentence; "" where none is known.

    Args:
        o: where pairs were looked for.
        unmatched: what has no partner; as many as `LOOKED_AT` of each side are looked at.
        keyed: they are tensors by id, not files.
    """
    if o.images is None:
        return ""
    images, texts = (_names(o, unmatched, side, keyed) for side in ("image", "text"))
    odd = _names(o, unmatched, "tensor", keyed) + _names(o, unmatched, "file", keyed)
    if (o.image_pattern is None) != (o.text_pattern is None):
        given, other = ("image", "text") if o.text_pattern is None else ("text", "image")
        whole = "key" if keyed else "name without the ending"
        return (
            f"; --{given}-pattern is given and --{other}-pattern is not, so the id of a {other} is "
            f"its whole {whole}"
        )
    if o.image_pattern is not None:
        return ""
    if not keyed and o.keyed is False:
        for folder in (o.images, o.texts):
            if folder is not None and looks_keyed(folder):
                return f"; {folder} holds tensors by id: leave --no-keyed out"
    if not (images and texts):
        return _of_one_side(o, images, texts, odd, keyed)
    if not o.loose_ids and not set(map(loose_id, images)).isdisjoint(map(loose_id, texts)):
        return f"; their names differ in {_difference(images, texts)}: say --loose-ids"
    if patterns := _patterns(images, texts):
        return f"; their names end differently: say {patterns}"
    if not o.loose_ids and (patterns := _patterns(images, texts, loose=True)):
        return f"; their names end differently: say {patterns} --loose-ids"
    if not keyed and (folder := _other_folder(o, images, texts)):
        return folder
    for several, names, ids in (("texts", texts, images), ("images", images, texts)):
        if {_NUMBERED.sub("", name) for name in names} & set(ids):
            one = "image" if several == "texts" else "text"
            return (
                f"; they look like several {several} of one {one}: list every pair in a manifest "
                "with the columns image,text"
            )
    return ""


def of_masks(unmatched: Unmatched) -> str:
    """What to do about files that look like masks, as the end of a sentence; "" for no such."""
    for side, name in unmatched.first:
        folder, file = os.path.split(name)
        names = os.path.basename(folder), os.path.splitext(file)[0]
        if side in ("image", "text", "file") and any(map(mask_meaning, filter(None, names))):
            return (
                f"; {name} looks like a mask: masks in files of their own are used where a "
                "manifest lists them (columns image_mask and text_mask)"
            )
    return ""


def _names(o: PairOptions, unmatched: Unmatched, side: UnmatchedKind, keyed: bool) -> list[str]:
    """Names of one side as an id without a pattern would be: a path without the ending, a key."""
    root = o.texts if side == "text" and o.texts is not None else o.images
    found = [name for at, name in unmatched.first if at == side]
    if keyed:
        return [name.partition(".safetensors[")[2].removesuffix("]") for name in found]
    assert root is not None
    return [os.path.splitext(os.path.relpath(name, root))[0].replace(os.sep, "/") for name in found]


def _difference(images: Sequence[str], texts: Sequence[str]) -> str:
    """What `--loose-ids` does not look at and is different."""
    by_id = {loose_id(name): name for name in texts}
    image = next(name for name in images if loose_id(name) in by_id)
    text = by_id[loose_id(image)]
    if fold(image) != fold(text):
        return "leading zeros"
    return "case" if image.lower() == text.lower() else "their Unicode form"


def _patterns(images: Sequence[str], texts: Sequence[str], loose: bool = False) -> str:
    """The two patterns with which most names match; "" where none do."""
    best, most = "", 0
    for image, text in product(_arounds(images), _arounds(texts)):
        if _is_side_of(image, _TEXT_WORDS) or _is_side_of(text, _IMAGE_WORDS):
            continue
        ids = image.ids(images), text.ids(texts)
        if loose:
            ids = set(map(loose_id, ids[0])), set(map(loose_id, ids[1]))
        both = len(ids[0] & ids[1])
        if both > most:
            most = both
            best = f"--image-pattern '{image.pattern}' --text-pattern '{text.pattern}'"
    return best


def _is_side_of(around: _Around, words: frozenset[str]) -> bool:
    other = _IMAGE_WORDS if words is _TEXT_WORDS else _TEXT_WORDS
    found = set(re.split(r"[._\-/]+", f"{around.prefix.lower()}/{around.suffix.lower()}"))
    return bool(found & words) and not found & other


def _arounds(names: Sequence[str]) -> list[_Around]:
    """What all of some names may have around the id, the least of it first."""
    common = _common_start(names)
    starts = ["", *(common[: i + 1] for i, c in enumerate(common) if c in _MARKS)]
    common = _common_start([name[::-1] for name in names])[::-1]
    ends = ["", *(common[i:] for i, c in reversed(list(enumerate(common))) if c in _MARKS)]
    if len(names) == 1:
        # Of a single name nothing tells the id: only what is known to name a side.
        starts = [s for s in starts if not s or s.lower().strip(_MARKS) in _SIDE_WORDS]
        # A name has one inner ending at most.
        ends = ends[:2]
    shortest = min(map(len, names))
    return [
        _Around(start, end)
        for start, end in islice(product(starts[:4], ends[:4]), 16)
        if len(start) + len(end) < shortest
    ]


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)  # what these two share all between them share
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[:same] if same is not None else min(first, last, key=len)


def _of_one_side(
    o: PairOptions, images: list[str], texts: list[str], odd: list[str], keyed: bool
) -> str:
    """Where nothing is known of one side, or where one source holds both."""
    shared = o.texts is None or (o.images is not None and os.path.samefile(o.images, o.texts))
    if shared and odd:
        if patterns := _patterns_in_one(odd + images + texts):
            return f"; say {patterns}"
        return ""
    if keyed or not (images or texts):
        return ""
    without = o.texts if images else o.images
    return f"; there are no feature files ({', '.join(READABLE_ENDINGS)}) in {without}"


def _patterns_in_one(names: list[str]) -> str:
    """Patterns for names of both sides in one place, which say what they are: a_image, a_text."""
    for side in (0, -1):
        parts: dict[str, set[str]] = {}
        for name in names:
            marks = [i for i, c in enumerate(name) if c in _MARKS]
            if not marks:
                continue
            at = marks[side]
            around, id = (name[: at + 1], name[at + 1 :]) if side == 0 else (name[at:], name[:at])
            parts.setdefault(around, set()).add(id)
        found: dict[bool, str] = {}
        for around in parts:
            word = around.lower().strip(_MARKS)
            for is_image, words in ((True, _IMAGE_WORDS), (False, _TEXT_WORDS)):
                if word in words:
                    found.setdefault(is_image, around)
        if len(found) == 2 and parts[found[True]] & parts[found[False]]:
            image, text = (
                f"{found[key]}{{id}}" if side == 0 else f"{{id}}{found[key]}"
                for key in (True, False)
            )
            return f"--image-pattern '{image}' --text-pattern '{text}'"
    return ""


def _other_folder(o: PairOptions, images: list[str], texts: list[str]) -> str:
    """Names that match once one side begins in a folder further down."""
    for names, others, root in ((images, texts, o.images), (texts, images, o.texts)):
        below = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])
        while below:
            ids = {os.path.relpath(name, below) for name in names}
            if ids & set(others):
                return f"; their folders differ: give {os.path.join(str(root), below)} instead"
            below = os.path.dirname(below)
    below, other = (
        os.path.commonpath([os.path.dirname(name) for name in names]) for names in (images, texts)
    )
    if below and other:
        ours = {os.path.relpath(name, below) for name in images}
        if ours & {os.path.relpath(name, other) for name in texts}:
            folders = os.path.join(str(o.images), below), os.path.join(str(o.texts), other)
            return f"; their folders differ: give {folders[0]} and {folders[1]} instead"
    return ""
