"""Two folders of feature files, matched by relative path without the ending.

Both trees are walked at once, in the order of their ids, so that only the names in the open
folders are in memory. Hidden files and folders (temporary files too), files with other endings,
and the output folder are skipped. Links are followed; a link to a folder that contains it is
skipped. Links that lead to one folder in very many ways are refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fusecli.errors import PairsError, UsageError
from fusecli.features.formats.table import READABLE_ENDINGS
from fusecli.features.literals import Side
from fusecli.pairs.ids import loose_id
from fusecli.pairs.pair import Pair, Place, Unmatched, UnmatchedKind
from fusecli.pairs.pattern import Pattern

# Below every character of a file's name: `a`, then what is in the folder `a`, then `a-b`.
_BELOW = "\0"
_FILE, _FOLDER, _LINK = "\0", "\1", "\2"
# Ways that lead to one folder over two links or more; two links in each of n folders are 2^n ways.
MOST_WAYS = 1000


class Folders:
    """Pairs of files that have the same place in two folders.

    Args:
        images, texts: the folders; one folder twice where patterns tell the sides apart.
        image_pattern, text_pattern: what of a name is the id.
        output: the output folder.
        loose: names that differ in case, Unicode form or leading zeros are one id.

    Raises:
        UsageError: the output folder is one of the two.
    """

    def __init__(
        self,
        images: str,
        texts: str,
        image_pattern: Pattern,
        text_pattern: Pattern,
        output: str | None,
        loose: bool = False,
    ) -> None:
        self.notes: list[str] = []
        self.made_of = ""
        skipped = _identity(output) if output is not None and os.path.isdir(output) else None
        for side, folder in (("images", images), ("texts", texts)):
            if _identity(folder) == skipped:
                raise UsageError(f"{folder}: is both the folder of the {side} and the output's")
        shared = os.path.samefile(images, texts)
        self._images = Walk("image", images, image_pattern, skipped, loose)
        self._texts = Walk("text", texts, text_pattern, skipped, loose)
        if shared:
            self._images.other, self._images.odd, self._texts.odd = text_pattern, "file", None

    def pairs(self, unmatched: Unmatched) -> Iterator[Pair]:
        """The pairs in the order of their ids."""
        images, texts = self._images.files(unmatched), self._texts.files(unmatched)
        image, text = next(images, None), next(texts, None)
        while image is not None and text is not None:
            if image[0] == text[0]:
                id = _id(image[0])
                yield Pair(id, Place(image[1], None), Place(text[1], None), None, None, None)
                image, text = next(images, None), next(texts, None)
            elif image[0] < text[0]:
                unmatched.add("image", image[1])
                image = next(images, None)
            else:
                unmatched.add("text", text[1])
                text = next(texts, None)
        while image is not None:
            unmatched.add("image", image[1])
            image = next(images, None)
        while text is not None:
            unmatched.add("text", text[1])
            text = next(texts, None)

    def where(self, pair: Pair) -> str:
        """The image's path."""
        return pair.image.file


@dataclass
class _Opened:
    """A folder that is being walked.

    Attributes:
        left: what is left in it.
        path: where it is.
        key: its part of the ids below it.
        identity: device and inode.
        links: how many links lead to it.
    """

    left: Iterator[str]
    path: str
    key: str
    identity: tuple[int, int]
    links: int


class Walk:
    """The files of one side in the order of their ids.

    Args:
        side: "image" or "text".
        root: the folder.
        pattern: what of a name is the id.
        skipped: identity of the output folder.
        loose: names that differ in case, Unicode form or leading zeros are one id.

    A pattern without a `/` is about the file's name, and the folders around it belong to the id.
    One with a `/` is about the path: `base` is the folders before `{id}`, `tail` the way from
    the folder that ends the id to the file.
    """

    def __init__(
        self,
        side: Side,
        root: str,
        pattern: Pattern,
        skipped: tuple[int, int] | None,
        loose: bool = False,
    ) -> None:
        self._id_of = loose_id if loose else str
        self._side, self._root, self._pattern, self._skipped = side, root, pattern, skipped
        base, slash, first = pattern.prefix.rpartition("/")
        self._suffix, below, tail = pattern.suffix.partition("/")
        by_path = bool(slash or below)
        self._base, self._tail = base, below + tail
        # What begins the first part of an id, and what begins every file's name.
        self._first, self._lead = (first, "") if by_path else ("", first)
        self._ways: Counter[tuple[int, int]] = Counter()  # to folders behind several links
        self._endings = READABLE_ENDINGS if pattern.ending is None else (pattern.ending,)
        # What a file that does not fit is called, None to leave it to the other side; and the
        # pattern that may be meant for it.
        self.odd: UnmatchedKind | None = side
        self.other: Pattern | None = None

    def files(self, unmatched: Unmatched) -> Iterator[tuple[str, str]]:
        """Id (with NUL for `/`, which sorts as folders do) and path of every file.

        Args:
            unmatched: receives feature files that the pattern does not fit.

        Raises:
            PairsError: a folder cannot be listed, two files have one id, or links multiply.
        """
        start = os.path.join(self._root, self._base) if self._base else self._root
        if not os.path.isdir(start):
            return
        last, earlier = "", ""
        opened = [self._open(start, "", unmatched, [], 0)]
        while opened:
            here = opened[-1]
            entry = next(here.left, None)
            if entry is None:
                opened.pop()
                continue
            part, _, rest = entry.partition(_BELOW)
            below = os.path.join(here.path, rest[1:])
            if rest[0] == _FILE:
                if here.key + part == last:
                    raise PairsError(
                        f"{below}: is the {self._side} of {_id(last)!r}, and so is {earlier}: "
                        "keep one of them"
                    )
                last, earlier = here.key + part, below
                yield last, below
                continue
            links = here.links + (rest[0] == _LINK)
            key = f"{here.key}{part}{_BELOW}"
            opened.append(self._open(below, key, unmatched, opened, links))

    def _open(
        self, folder: str, key: str, unmatched: Unmatched, above: list[_Opened], links: int
    ) -> _Opened:
        """A folder and its contents; empty if it is the output folder or contains itself through a
        link."""
        try:
            identity = _identity(folder)
            passed = identity == self._skipped or any(identity == a.identity for a in above)
            if links > 1 and not passed:
                self._count_way(folder, identity)
            listed = [] if passed else self._list(folder, not key, unmatched)
        except OSError as error:
            raise PairsError(f"{folder}: cannot be listed: {error.strerror}") from None
        listed.sort()
        if self._id_of is loose_id:
            _refuse_two_folders(listed, folder)
        return _Opened(iter(listed), folder, key, identity, links)

    def _count_way(self, folder: str, identity: tuple[int, int]) -> None:
        self._ways[identity] += 1
        if self._ways[identity] > MOST_WAYS:
            raise PairsError(
                f"{folder}: links upon links lead to this folder in more than {MOST_WAYS:,} ways: "
                "remove links, or say the files in a --manifest"
            )

    def _list(self, folder: str, top: bool, unmatched: Unmatched) -> list[str]:
        """What is in a folder: its part of the id, kind and name, in one string each.

        In one string, since a folder may hold a million files.
        """
        found: list[str] = []
        odd: list[str] = []
        start = self._first if top else ""
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                fits = len(name) > len(start) and name.startswith(start)
                part = name[len(start) :]
                if _is_folder(entry):
                    if fits:
                        kind = _LINK if entry.is_symlink() else _FOLDER
                        found.append(f"{self._id_of(part)}{_BELOW}{kind}{name}")
                        found += self._files_under(folder, name, part)
                    continue
                stem, ending = os.path.splitext(part)
                end = len(stem) - len(self._suffix)
                if (
                    fits
                    and not self._tail
                    and ending.lower() in self._endings
                    and end > len(self._lead)
                    and stem.startswith(self._lead)
                    and stem.endswith(self._suffix)
                ):
                    id = self._id_of(stem[len(self._lead) : end])
                    found.append(f"{id}{_BELOW}{_FILE}{name}")
                elif ending.lower() in READABLE_ENDINGS and not self._is_other(name):
                    odd.append(name)
        if self.odd is not None:
            for name in sorted(odd):
                unmatched.add(self.odd, os.path.join(folder, name))
        return found

    def _files_under(self, folder: str, name: str, part: str) -> list[str]:
        """The file that a pattern with a tail finds under one folder."""
        if not self._tail or not part.endswith(self._suffix) or part == self._suffix:
            return []
        part = self._id_of(part.removesuffix(self._suffix))
        names = [f"{name}{self._tail}{ending}" for ending in self._endings]
        return [
            f"{part}{_BELOW}{_FILE}{below}"
            for below in names
            if os.path.lexists(os.path.join(folder, below))
        ]

    def _is_other(self, name: str) -> bool:
        """Whether a file may belong to the other side, if both sides lie in one folder."""
        if self.other is None:
            return False
        by_path = "/" in self.other.text or "/" in self._pattern.text
        return by_path or self.other.id_of(os.path.splitext(name)[0]) is not None


def _refuse_two_folders(listed: list[str], folder: str) -> None:
    """Raises:
    PairsError: two folders have the same place among the ids, so that their files have no order.
    """
    last, earlier = "", ""
    for entry in listed:
        part, _, rest = entry.partition(_BELOW)
        if rest[0] == _FILE:
            continue
        if part == last:
            raise PairsError(
                f"{os.path.join(folder, rest[1:])}: with --loose-ids this is the same folder as "
                f"{earlier}: rename one"
            )
        last, earlier = part, os.path.join(folder, rest[1:])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    """Device and inode of a folder, which are the same through any link."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _id(key: str) -> str:
    return key.replace(_BELOW, "/")
