"""Pairs that must not be divided: those that share an image or a group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def join_groups(image_key: Sequence[str], group: Sequence[str] | None) -> Rows:
    """Number the sets of pairs that are connected by an image or a group.

    Args:
        image_key: one a pair, equal where the images are.
        group: one a pair, or None.

    Returns:
        int64 [n], numbered in the order in which they first appear.
    """
    _, images = np.unique(np.asarray(image_key), return_inverse=True)
    links = [images.astype(np.int64)]
    if group is not None:
        _, named = np.unique(np.asarray(group), return_inverse=True)
        links.append(named.astype(np.int64))
    return _numbered(_connected(links))


def _connected(links: list[Rows]) -> Rows:
    """The lowest label that each row reaches over any of the links; rounds until none changes."""
    labels = links[0]
    if len(links) == 1:
        return labels
    while True:
        before = labels
        for link in links:
            lowest = np.full(int(link.max()) + 1, np.iinfo(np.int64).max)
            np.minimum.at(lowest, link, labels)
            labels = lowest[link]
        if np.array_equal(labels, before):
            return labels


def _numbered(labels: Rows) -> Rows:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse.reshape(-1)]
