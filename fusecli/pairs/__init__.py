"""Which image belongs to which text: folders, keyed files and manifests, as one stream of pairs."""

from __future__ import annotations

from fusecli.pairs.ids import fold, relative_path
from fusecli.pairs.pair import Pair, PairOptions, PairSource, Place, Unmatched

__all__ = [
    "Pair",
    "PairOptions",
    "PairSource",
    "Place",
    "Unmatched",
    "fold",
    "relative_path",
]
