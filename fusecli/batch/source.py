"""Which files, keys and rows a pair is read from, and what was in them, in a few bytes."""

from __future__ import annotations

import os
from dataclasses import fields
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fusecli.pairs.open import Pair, Place

_WORDS = 8192  # 64-bit words that are summed up at once
_PARTS = tuple(field.name for field in fields(Place) if field.name != "file")


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


def files_of(pair: Pair) -> list[str]:
    """The files a pair is read from, each once."""
    places = (pair.image, pair.text, pair.image_mask, pair.text_mask)
    return list(dict.fromkeys(place.file for place in places if place is not None))


def source_of(pair: Pair) -> int:
    """64 bits, not 0, that tell from which files, keys and rows a pair is read.

    Files are known by their folder's real path and their name: the same files named relative to
    another folder, or through a link to their folder, are the same source.
    """
    parts: list[str] = []
    for place in (pair.image, pair.text, pair.image_mask, pair.text_mask):
        if place is None:
            parts.append("")
            continue
        folder, name = os.path.split(place.file)
        parts += [_real_folder(folder, os.getcwd()), name]
        parts += [repr(getattr(place, part)) for part in _PARTS]
    text = "\0".join(parts).encode(errors="surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") or 1


@lru_cache(4096)
def _real_folder(folder: str, working: str) -> str:
    return os.path.realpath(os.path.join(working, folder))


def content_of(features: Tokens) -> int:
    """64 bits, not 0, that tell the features of a pair, as they are fused.

    Every array is summed up in 64-bit words, each multiplied by an odd number of its place, and
    the sums are hashed: a changed word always changes its sum, and several words leave it as it
    is with a chance of about 2^-60. It is no defence against somebody who wants two inputs to
    look alike.
    """
    digest = blake2b(digest_size=8)
    for array in (features.image, features.text, features.image_mask, features.text_mask):
        if array is None:
            digest.update(b"none")
            continue
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        whole = len(data) // 8
        _add_words(digest, data[: 8 * whole].view(np.uint64))
        digest.update(data[8 * whole :].tobytes())
    return int.from_bytes(digest.digest(), "little") or 1


def _add_words(digest: Any, words: NDArray[np.uint64]) -> None:
    blocks = len(words) // _WORDS
    if blocks:
        rows = words[: blocks * _WORDS].reshape(blocks, _WORDS)
        digest.update(np.einsum("bw,w->b", rows, _factors()).tobytes())
    rest = words[blocks * _WORDS :]
    if len(rest):
        digest.update(np.einsum("w,w->", rest, _factors()[: len(rest)]).tobytes())


@lru_cache(1)
def _factors() -> NDArray[np.uint64]:
    """Odd numbers, the same in every process: splitmix64 (Steele, Lea, Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, _WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) | np.uint64(1)
