"""Ids, and the relative paths that are made of them: inside the output folder whatever they hold.

An id made of ordinary names is its own path. In others what a file system could take amiss is
written as `%` and hexadecimal digits, so that no two ids have one path, and none leaves the
folder, on any system. Ids that differ only by case or by their Unicode form (`fold` makes them
equal) would be one file on macOS and Windows, and are refused where pairs are listed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array

import numpy as np
from numpy.typing import NDArray

from fusecli.features.formats.table import WRITABLE_ENDINGS

# Most file systems end at 255 bytes a name and 4,096 a path, which ending and folder share.
_LONGEST_NAME = 200
_LONGEST_PATH = 1024

_BLOCK = 1 << 15

LONGEST_ID = 1024  # characters; ids are held and written often

_ORDINARY = re.compile(r"\w[\w+=@,~-]*(?:\.[\w+=@,~-]+)*", re.ASCII)
_ESCAPED = re.compile('[%<>:"|?*\\\\\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?=\.|$|\s)", re.I)


def relative_path(id: str, ending: str = "") -> str:
    """The path of an id inside a folder; no two ids have the same.

    Args:
        id: any text; `/` separates folders.
        ending: of the file, such as ".npy".

    Returns:
        A path with `/` between its parts, of which none is empty, hidden, `..`, reserved on
        Windows or longer than file systems allow.
    """
    *folders, name = id.split("/")
    parts = [*map(_folder, folders), _part(name)]
    path = "/".join(parts) + ending
    if len(path) * 4 > _LONGEST_PATH and len(path.encode()) > _LONGEST_PATH:
        return _digest(id) + ending
    return path


def fold(path: str) -> str:
    """What paths that are one file to a system without case or Unicode forms have in common.

    Source: canonical caseless matching, The Unicode Standard, section 3.13, D145.
    """
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def loose_id(name: str) -> str:
    """What names have in common that differ in case, Unicode form or leading zeros of numbers."""
    return _ZEROS.sub("", unicodedata.normalize("NFC", fold(name)))


class Hashes:
    """Python's hashes of many texts, 8 bytes each, in blocks that never move.

    One array that grows would be copied again and again, and leave holes of eight times its size
    in the process's memory.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.int64]] = []
        self._last = array("q")

    def add(self, text: str) -> None:
        """Keep the hash of one more text."""
        self._last.append(hash(text))
        if len(self._last) == _BLOCK:
            self._close()

    def all(self) -> NDArray[np.int64]:
        """All of them in the order in which they came; they are kept no longer."""
        self._close()
        joined = np.concatenate(self._blocks)
        self._blocks.clear()
        return joined

    def _close(self) -> None:
        self._blocks.append(np.array(self._last, np.int64))
        self._last = array("q")


def repeated(hashes: NDArray[np.int64]) -> set[int]:
    """The values that occur more than once in a sorted array."""
    return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def _folder(part: str) -> str:
    """A folder's name; never that of a file, `a.npy` and `a.npy/b.npy` cannot both be."""
    safe = _part(part)
    stem, dot, ending = safe.rpartition(".")
    return f"{stem}%2E{ending}" if dot and f".{ending.lower()}" in WRITABLE_ENDINGS else safe


def _part(part: str) -> str:
    if not part:
        return "%"
    safe = part
    if not _ORDINARY.fullmatch(part):
        safe = _ESCAPED.sub(_escape, part)
        if safe[0] == ".":  # hidden, `.`, `..`
            safe = f"%2E{safe[1:]}"
        if safe[-1] in ". ":  # Windows drops them
            safe = f"{safe[:-1]}%{ord(safe[-1]):02X}"
    if _DEVICES.match(safe):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}"
    if len(safe) * 4 > _LONGEST_NAME and len(safe.encode()) > _LONGEST_NAME:
        start = safe.encode()[: _LONGEST_NAME // 2].decode(errors="ignore")
        return f"{start}{_digest(part)}"
    return safe


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"%{code:02X}" if code < 256 else f"%u{code:04X}"


def _digest(text: str) -> str:
    return f"%~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:32]}"
