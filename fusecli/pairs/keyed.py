"""Safetensors files that hold features by id, walked shard by shard.

Only the keys of one shard of the images are in memory. Texts and masks may lie in any shard, so
all of them are kept, each as a hash and the number of its shard (12 bytes).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import PairsError, shortened
from fusecli.features.mask_names import mask_meaning, owner_named
from fusecli.pairs.companions import companions
from fusecli.pairs.ids import LONGEST_ID, loose_id, repeated
from fusecli.pairs.pair import Pair, Place, Unmatched, UnmatchedKind
from fusecli.pairs.pattern import Pattern
from fusecli.pairs.shards import keys_of

_KEPT_FILES = 4

# A mask lies beside the features, under the id and this.
_MASKS = (".image_mask", ".text_mask")

Keys = Callable[[str], list[str]]


class Keyed:
    """Pairs of tensors with one id, in the order of the images' shards, the texts', and the ids.

    Args:
        images, texts: the files of each side; the same where one set holds both.
        image_pattern, text_pattern: what of a key is the id.
        keys: gives the keys of a file that count.
        loose: ids that differ in case, Unicode form or leading zeros are one.

    Raises:
        PairsError: two files hold one tensor.
        FeatureFileError: a file is missing or damaged.
    """

    def __init__(
        self,
        images: list[str],
        texts: list[str],
        image_pattern: Pattern,
        text_pattern: Pattern,
        keys: Keys = keys_of,
        loose: bool = False,
    ) -> None:
        self.notes: list[str] = []
        self.made_of = ""
        self._keys = keys
        self._kept: dict[str, frozenset[str]] = {}  # the companions in the files looked up last
        keys = self._keys_of_roles
        self._image = _Role("image", images, image_pattern, keys, loose)
        self._text = _Role("text", texts, text_pattern, keys, loose)
        self._image_mask = _Role("image mask", images, Pattern("", "", _MASKS[0]), keys, loose)
        self._text_mask = _Role("text mask", texts, Pattern("", "", _MASKS[1]), keys, loose)
        self._indexed = (self._text, self._image_mask, self._text_mask)
        # Files by the roles that their tensors can have.
        self._odd: list[tuple[str, tuple[_Role, ...]]] = []
        self._learn()

    def pairs(self, unmatched: Unmatched) -> Iterator[Pair]:
        """The pairs, ordered so that neighbours lie in the same two files as far as possible."""
        used = [np.zeros(len(role.hashes), bool) for role in self._indexed]
        for number in range(len(self._image.files)):
            ids = self._image.ids(number)
            hashes = _hashes(ids)
            # For each id, the number of the file that holds its text and of those with its masks;
            # -1 for none.
            texts, image_masks, text_masks = (
                role.find(hashes, seen) for role, seen in zip(self._indexed, used, strict=True)
            )
            for i in np.argsort(texts, kind="stable").tolist():
                id = ids[i]
                image = self._image.place(id, number)
                text = self._text.place_found(id, texts[i])
                if text is None:
                    if not self._goes_with_features(image):
                        unmatched.add("image", _where(image))
                    continue
                image_mask = self._image_mask.place_found(id, image_masks[i])
                text_mask = self._text_mask.place_found(id, text_masks[i])
                yield Pair(id, image, text, image_mask, text_mask, None)
        # A mask belongs to its own features, also if these have no partner.
        if len(self._text_mask.hashes):
            used[2] |= np.isin(self._text_mask.hashes, self._text.hashes)
        for role, seen in zip(self._indexed, used, strict=True):
            for place in role.unused(seen):
                if role is not self._text or not self._goes_with_features(place):
                    unmatched.add(role.name, _where(place))
        for place in self._strangers():
            unmatched.add("tensor", _where(place))

    def where(self, pair: Pair) -> str:
        """The image's file and key."""
        return _where(pair.image)

    def _learn(self) -> None:
        image, text = (self._image, self._image_mask), (self._text, self._text_mask)
        sides: list[tuple[_Role, ...]] = [image, text]
        if self._image.files == self._text.files:
            sides = [(*image, *text)]
        for roles in sides:
            for number, file in enumerate(roles[0].files):
                every = self._keys(file)
                keys = self._of_roles(file, every)
                if sum(role.learn(number, keys) for role in roles) != len(every):
                    self._odd.append((file, roles))
        for role in self._indexed:
            role.sort()

    def _strangers(self) -> Iterator[Place]:
        """Tensors that have no role, by the patterns."""
        for file, roles in self._odd:
            every = self._keys(file)
            with_a_role = set(self._of_roles(file, every))
            for key in every:
                place = Place(file, key)
                if key in with_a_role and any(role.id_of(key) is not None for role in roles):
                    continue
                if not self._goes_with_features(place):
                    yield place

    def _keys_of_roles(self, file: str) -> list[str]:
        """The keys of a file that may be features, or masks named after an id."""
        return self._of_roles(file, self._keys(file))

    def _of_roles(self, file: str, keys: list[str]) -> list[str]:
        others = self._companions(file, keys)
        return [key for key in keys if key not in others or key.endswith(_MASKS)]

    def _companions(self, file: str, keys: list[str] | None = None) -> frozenset[str]:
        if file not in self._kept:
            while len(self._kept) >= _KEPT_FILES:
                del self._kept[next(iter(self._kept))]
            self._kept[file] = companions(file, self._keys(file) if keys is None else keys)
        return self._kept[file]

    def _goes_with_features(self, place: Place) -> bool:
        """Whether a tensor is a mask or a scale of features in its file.

        It is used, or refused, when these features are read.
        """
        key = str(place.key)
        if key not in self._companions(place.file):
            return False
        owner = owner_named(key)  # an id, which may have the word of a side in it
        meaning = mask_meaning(key[len(owner) + 1 :] if owner else key)
        if meaning is None or meaning.side is None or self._image.files == self._text.files:
            return True
        return place.file in (self._image if meaning.side == "image" else self._text).files


class _Role:
    """The tensors of one kind: images, texts, or the masks of either.

    Args:
        name: for messages and counts.
        files: where they are.
        pattern: of their keys.
        keys: gives the keys of a file that count.
        loose: ids that differ in case, Unicode form or leading zeros are one.

    Attributes:
        hashes: of all ids, sorted, after `sort`.
    """

    def __init__(
        self, name: UnmatchedKind, files: list[str], pattern: Pattern, keys: Keys, loose: bool
    ) -> None:
        self.name, self.files, self._pattern, self._keys = name, files, pattern, keys
        self._loose = loose
        self._key_of: tuple[int, dict[str, str]] = (-1, {})  # of the file that was looked up last
        self._learned: list[NDArray[np.int64]] = []  # hashes of the ids of a file

    def id_of(self, key: str) -> str | None:
        """The id in a key; None for a tensor of another kind."""
        if key.endswith(_MASKS) and self._pattern.suffix not in _MASKS:
            return None
        id = self._pattern.id_of(key)
        return loose_id(id) if self._loose and id is not None else id

    def ids(self, number: int, keys: list[str] | None = None) -> list[str]:
        """The ids of this kind in one file, in the order of its keys."""
        keys = self._keys(self.files[number]) if keys is None else keys
        return [id for id in map(self.id_of, keys) if id is not None]

    def learn(self, number: int, keys: list[str]) -> int:
        """Keep which ids a file holds, and return how many.

        Raises:
            PairsError: an id is too long.
        """
        ids = self.ids(number, keys)
        longest = max(ids, key=len, default="")
        if len(longest) > LONGEST_ID:
            raise PairsError(
                f"{self.files[number]}: has an id of {len(longest):,} characters, at most "
                f"{LONGEST_ID:,} serve: {shortened(longest)!r}"
            )
        if self._loose and len(set(ids)) < len(ids):
            twice = next(id for id, count in Counter(ids).items() if count > 1)
            raise PairsError(
                f"{self.files[number]}: holds two tensors that are the {self.name} of {twice!r} "
                "with --loose-ids: rename one"
            )
        self._learned.append(_hashes(ids))
        return len(ids)

    def sort(self) -> None:
        """Sort the collected ids for `find`.

        Raises:
            PairsError: two files hold one id.
        """
        counts = [len(hashes) for hashes in self._learned]
        self.hashes = np.concatenate(self._learned)
        self._learned.clear()
        order = np.argsort(self.hashes)
        self.hashes = self.hashes[order]
        self._numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
        self._refuse_two(repeated(self.hashes))

    def find(self, hashes: NDArray[np.int64], seen: NDArray[np.bool_]) -> list[int]:
        """The number of the file for every hash, -1 where none is known; marks those seen."""
        if not len(self.hashes):
            return [-1] * len(hashes)
        place = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        known = self.hashes[place] == hashes
        seen[place[known]] = True
        numbers: list[int] = np.where(known, self._numbers[place], -1).tolist()
        return numbers

    def place(self, id: str, number: int) -> Place:
        """Where the tensor of an id lies, given the number of its file."""
        if not self._loose:
            return Place(self.files[number], self._pattern.name_of(id))
        if self._key_of[0] != number:
            keys = self._keys(self.files[number])
            self._key_of = number, {found: key for key in keys if (found := self.id_of(key))}
        return Place(self.files[number], self._key_of[1][id])

    def place_found(self, id: str, number: int) -> Place | None:
        """The same for a number that `find` gave; None for -1."""
        return None if number < 0 else self.place(id, number)

    def unused(self, seen: NDArray[np.bool_]) -> Iterator[Place]:
        """The tensors that were not seen."""
        for number in np.unique(self._numbers[~seen]).tolist():
            ids = self.ids(number)
            places = np.searchsorted(self.hashes, _hashes(ids))
            for id, was_seen in zip(ids, seen[places].tolist(), strict=True):
                if not was_seen:
                    yield self.place(id, number)

    def _refuse_two(self, hashes: set[int]) -> None:
        earlier: dict[str, str] = {}
        for number, file in enumerate(self.files if hashes else ()):
            for id in self.ids(number):
                if hash(id) in hashes and earlier.setdefault(id, file) != file:
                    raise PairsError(
                        f"{file}: holds the {self.name} of {shortened(id)!r}, and so does "
                        f"{earlier[id]}"
                    )


def _where(place: Place) -> str:
    return f"{place.file}[{place.key}]"


def _hashes(ids: list[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, ids), np.int64, len(ids))
