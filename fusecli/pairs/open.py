"""Which image belongs to which text: folders, keyed files and manifests, as one stream of pairs."""

from __future__ import annotations

import os

from fusecli.errors import PairsError, UsageError, counted
from fusecli.features.formats.table import READABLE_ENDINGS
from fusecli.pairs.advice import LOOKED_AT, advice, of_masks
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
    listing = _listing(options)
    source = PairSource(listing, options.ending)
    _advise(options, source, listing)
    if not source.total:
        raise PairsError(f"no pairs: {_nothing(options, source.unmatched)}")
    if options.strict_pairs and source.unmatched.total:
        raise PairsError(f"--strict-pairs: {source.unmatched}")
    return source


def _advise(options: PairOptions, source: PairSource, listing: Listing) -> None:
    """Say how names would match, where most have no partner."""
    unmatched = source.unmatched
    unmatched.advice = of_masks(unmatched)
    both = min(unmatched.counts.get("image", 0), unmatched.counts.get("text", 0))
    if not unmatched.total or source.total > both or unmatched.advice:
        return
    first = unmatched
    if len(unmatched.first) < unmatched.total:
        first = Unmatched(kept=LOOKED_AT)
        for _ in listing.pairs(first):
            pass
    unmatched.advice = advice(options, first, isinstance(listing, Keyed))


def _listing(o: PairOptions) -> Listing:
    if o.manifest is not None:
        given = (o.images, o.texts, o.image_pattern, o.text_pattern, o.keyed)
        if any(option is not None for option in given) or o.loose_ids:
            raise UsageError(
                "--manifest names the files: leave folders, patterns, --keyed and --loose-ids out"
            )
        return Manifest(o)
    if o.images is None:
        raise UsageError("expected a folder of images and one of texts, keyed files, or --manifest")
    texts = o.images if o.texts is None else o.texts
    for path in (o.images, texts):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise PairsError(f"{path}: no such file or folder") from None
        except (OSError, ValueError) as error:  # a folder above it is closed to this user, say
            why = getattr(error, "strerror", None) or error
            raise PairsError(f"{path}: cannot be opened: {why}") from None
    keyed = [_is_keyed(path, o.keyed) for path in (o.images, texts)]
    if keyed[0] != keyed[1]:
        side = "text" if keyed[1] else "image"
        raise UsageError(
            f"{(o.images, texts)[keyed[1]]}: holds tensors by id and {(o.images, texts)[keyed[0]]} "
            f"is a folder of one file a sample: list the pairs in a manifest with the columns "
            f"image,text,{side}_key, or give two of a kind (--keyed and --no-keyed say which)"
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
        o.loose_ids,
    )
    if tensors.left_out:
        notes.append(
            f"{counted(tensors.left_out, 'tensor')} of {images} and {texts} not used: the index "
            f"does not name {'it' if tensors.left_out == 1 else 'them'}"
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
        o.loose_ids,
    )


def _nothing(o: PairOptions, unmatched: Unmatched) -> str:
    if unmatched.total and o.images == o.texts and o.manifest is None and not o.image_pattern:
        return (
            f"{unmatched}; {o.images} is given as both sides, whose tensors are called <id>.image "
            "and <id>.text (--image-pattern and --text-pattern say other names)"
        )
    if unmatched.total:
        return str(unmatched)
    if o.manifest is not None:
        return f"{o.manifest} has no rows"
    return f"there are no feature files ({', '.join(READABLE_ENDINGS)}) in {o.images} and {o.texts}"
