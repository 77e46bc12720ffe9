"""Fingerprints of a pair: of the files, keys and rows it is read from, and of its features."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.pairs.open import Pair

_WORDS = 8192  # 64-bit words that are summed up at once


class Tokens(Protocol):
    """The features of a pair, `[P, Di]` and `[T, Dt]`, and their masks."""

    @property
    def image(self) -> NDArray[np.float32]: ...
    @property
    def text(self) -> NDArray[np.float32]: ...
    @property
    def image_mask(self) -> NDArray[np.bool_] | None: ...
    @property
    def text_mask(self) -> NDArray[np.bool_] | None: ...


def source_of(pair: Pair) -> int:
    """64 bits, not 0, that tell from which files, keys and rows a pair is read.

    Files are known by their folder's real path and their name: the same files named relative to
    another folder, or through a link to their folder, are the same source.
    """
    text = ""
    for place in pair.places:
        if place is None:
            text += "\0\0"
            continue
        folder, slash, name = place.file.rpartition("/")
        text += f"{_real_folder(folder + slash)}\0{name}\0{place.key}\0{place.row}\0"
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


@lru_cache(4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def forget_folders() -> None:
    """Forget the real paths of folders: a new run may begin in another folder."""
    _real_folder.cache_clear()


def content_of(features: Tokens, attention_mask: NDArray[np.bool_] | None = None) -> int:
    """64 bits, not 0, that tell the features of a pair, as they are fused.

    Every array is summed up in 64-bit words, each multiplied by an odd number of its place, and
    the sums are hashed: a changed word always changes its sum, and several words leave it as it
    is with a chance of about 2^-60. It is no defence against somebody who wants two inputs to
    look alike.

    Args:
        features: as they are fused.
        attention_mask: `[T, P]`, where the pair has one.
    """
    parts = [features.image, features.text, features.image_mask, features.text_mask]
    if attention_mask is not None:
        parts.append(attention_mask)
    text = ";".join(["none" if part is None else _summed(part) for part in parts])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def numbers_of(arrays: Iterable[NDArray[Any]]) -> int:
    """64 bits, not 0, that tell arrays apart in the way of `content_of`."""
    text = ";".join(map(_summed, arrays))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def _summed(array: NDArray[Any]) -> str:
    """Type, shape, sums of the words, and the bytes behind the last whole word."""
    data = (array if array.flags.c_contiguous else np.ascontiguousarray(array)).reshape(-1)
    rest = b""
    if data.nbytes % 8:
        data = data.view(np.uint8)
        rest = data[-(data.nbytes % 8) :].tobytes()
        data = data[: -len(rest)]
    words = data.view(np.uint64)
    sums: list[int] = []
    for start in range(0, len(words), _WORDS):
        block = words[start : start + _WORDS]
        sums.append(int(np.dot(block, _FACTORS[: len(block)])))
    return f"{array.dtype.str}{array.shape}{sums}{rest.hex()}"


def _factors() -> NDArray[np.uint64]:
    """Odd numbers, the same in every process: splitmix64 (Steele, Lea, Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, _WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) | np.uint64(1)


_FACTORS = _factors()
