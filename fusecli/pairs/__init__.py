"""Which image belongs to which text: folders, keyed files and manifests, as one stream of pairs."""

from __future__ import annotations

import os

from fusecli.errors import PairsError, UsageError
from fusecli.features import ENDINGS
from fusecli.pairs.folders import Folders
from fusecli.pairs.ids import fold, relative_path
from fusecli.pairs.pair import Listing, Pair, PairOptions, Place, Unmatched
from fusecli.pairs.pattern import file_pattern
from fusecli.pairs.survey import PairSource

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
    if o.images is None or o.texts is None:
        raise UsageError("expected a folder of images and a folder of texts")
    for folder in (o.images, o.texts):
        if not os.path.isdir(folder):
            raise PairsError(f"{folder}: no such folder")
    return Folders(
        o.images,
        o.texts,
        file_pattern("image", o.image_pattern),
        file_pattern("text", o.text_pattern),
        o.output,
    )


def _nothing(o: PairOptions, unmatched: Unmatched) -> str:
    if unmatched.total:
        return str(unmatched)
    return f"there are no feature files ({', '.join(ENDINGS)}) in {o.images} and {o.texts}"
