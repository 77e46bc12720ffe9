"""Which image belongs to which text: folders, keyed files and manifests, as one stream of pairs."""

from __future__ import annotations

import os

from fusecli.errors import PairsError, UsageError, counted
from fusecli.features.formats.table import READABLE_ENDINGS
from fusecli.pairs.folders import Folders
from fusecli.pairs.ids import fold, relative_path
from fusecli.pairs.keyed import Keyed
from fusecli.pairs.manifest import Manifest
from fusecli.pairs.pair import Listing, Pair, PairOptions, Place, Unmatched
from fusecli.pairs.pattern import file_pattern, key_pattern
from fusecli.pairs.shards import ListedTensors, looks_keyed, shards_of
from fusecli.pairs.source import PairSource

__all__ = [
    "Pair",
    "PairOptions",
    "PairSource",
    "Place",
    "Unmatched",
    "fold",
    "open_pairs",
    "relative_path",
]


def open_pairs(options: PairOptions) -> PairSource:
    """Find the pairs that the options name, and go through them once.

    Args:
        options: folders, files or a manifest.

    Raises:
        UsageError: the options contradict each other.
        PairsError: a source is missing, damaged or ambiguous, it has no pair, or (strict) not
            everything in it has a partner.
    """
    source = PairSource(_listing(options), options.ending)
    if not source.total:
        raise PairsError(f"no pairs: {_nothing(options, source.unmatched)}")
    if options.strict_pairs and source.unmatched.total:
        raise PairsError(f"--strict-pairs: {source.unmatched}")
    return source


def _listing(o: PairOptions) -> Listing:
    if o.manifest is not None:
        given = (o.images, o.texts, o.image_pattern, o.text_pattern, o.keyed)
        if any(option is not None for option in given):
            raise UsageError("--manifest names the files: leave folders, patterns and --keyed out")
        return Manifest(o)
    if o.images is None:
        raise UsageError("expected a folder of images and one of texts, keyed files, or --manifest")
    texts = o.images if o.texts is None else o.texts
    for path in (o.images, texts):
        if not os.path.exists(path):
            raise PairsError(f"{path}: no such file or folder")
    keyed = [_is_keyed(path, o.keyed) for path in (o.images, texts)]
    if keyed[0] != keyed[1]:
        raise UsageError(
            f"{(o.images, texts)[keyed[1]]}: holds tensors by id and {(o.images, texts)[keyed[0]]} "
            "is a folder of one file a sample: give two of a kind, or say --keyed or --no-keyed"
        )
    return _keyed(o, o.images, texts) if keyed[0] else _folders(o, o.images, texts)


def _is_keyed(path: str, said: bool | None) -> bool:
    if os.path.isdir(path):
        return looks_keyed(path) if said is None else said
    if not looks_keyed(path):
        raise PairsError(
            f"{path}: expected a folder, or a .safetensors file that holds tensors by id "
            "(for one pair of files: fusecli fuse)"
        )
    return True


def _keyed(o: PairOptions, images: str, texts: str) -> Keyed:
    notes: list[str] = []
    shared = os.path.samefile(images, texts)
    tensors = ListedTensors()
    image_files = shards_of(images, notes, tensors)
    listing = Keyed(
        image_files,
        image_files if shared else shards_of(texts, notes, tensors),
        key_pattern("image", o.image_pattern or ("{id}.image" if shared else "{id}")),
        key_pattern("text", o.text_pattern or ("{id}.text" if shared else "{id}")),
        tensors.keys_of,
    )
    if tensors.left_out:
        notes.append(
            f"{counted(tensors.left_out, 'tensor')} of {images} and {texts} not used: the index "
            "does not name them"
        )
    listing.notes += notes
    return listing


def _folders(o: PairOptions, images: str, texts: str) -> Folders:
    if os.path.samefile(images, texts) and (o.image_pattern or "{id}") == (
        o.text_pattern or "{id}"
    ):
        raise UsageError(
            f"{images}: is the only folder: tell images from texts by --image-pattern and "
            "--text-pattern, such as '{id}_image' and '{id}_text'"
        )
    return Folders(
        images,
        texts,
        file_pattern("image", o.image_pattern),
        file_pattern("text", o.text_pattern),
        o.output,
    )


def _nothing(o: PairOptions, unmatched: Unmatched) -> str:
    if unmatched.total:
        return f"{unmatched}{_remedy(o, unmatched)}"
    if o.manifest is not None:
        return f"{o.manifest} has no rows"
    return f"there are no feature files ({', '.join(READABLE_ENDINGS)}) in {o.images} and {o.texts}"


def _remedy(o: PairOptions, unmatched: Unmatched) -> str:
    """The options with which names that end differently match; "" where none is known."""
    if o.images is None or not os.path.isdir(o.images):
        return ""
    if (o.image_pattern is None) != (o.text_pattern is None):
        given, other = ("image", "text") if o.text_pattern is None else ("text", "image")
        return (
            f"; --{given}-pattern is given and --{other}-pattern is not, so the id of a {other} is "
            "its whole name without the ending"
        )
    if o.image_pattern is not None:
        return ""
    stems = {
        side: [os.path.splitext(os.path.basename(p))[0] for at, p in unmatched.first if at == side]
        for side in ("image", "text")
    }
    for image_end in _ends(stems["image"]):
        for text_end in _ends(stems["text"]):
            images = {stem.removesuffix(image_end) for stem in stems["image"]}
            if images & {stem.removesuffix(text_end) for stem in stems["text"]}:
                patterns = f"--image-pattern '{{id}}{image_end}' --text-pattern '{{id}}{text_end}'"
                return f"; their names end differently: say {patterns}"
    return ""


def _ends(stems: list[str]) -> list[str]:
    """What all of some names may end in besides the id: nothing, or `.jpg`, `_img`, `-text`."""
    ends = set()
    for stem in stems:
        cut = max(stem.rfind(mark) for mark in "._-")
        ends.add(stem[cut:] if cut > 0 else "")
    return ["", *(ends if len(ends) == 1 and ends != {""} else ())]
