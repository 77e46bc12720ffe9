"""Headers of packs: read back, and asked whether they hold what a journal says.

Source of the format: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.store.journal import Entry, Shapes
from fusecli.batch.store.safe_folder import InTheWayError, SafeFolder
from fusecli.errors import OutputError
from fusecli.features.formats.safetensors import WRITTEN_ENTRY, WRITTEN_START

LARGEST_ROOM = 8 << 20  # of a header: a longer one takes every reader long to parse

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One entry of a header: key, code of the type, shape, first byte and last plus one."""

    key: str
    code: str
    shape: tuple[int, ...]
    place: Place


class DamagedPackError(ValueError):
    """A pack's header is not what this package writes."""


def keyed_by(id: str, shapes: Shapes) -> Shapes:
    """The tensors of a pair under their keys in a pack: the id, with the name if there are more."""
    if len(shapes) == 1:
        return {id: next(iter(shapes.values()))}
    return {f"{id}.{name}": shape for name, shape in shapes.items()}


def read_header(descriptor: int) -> Iterator[PackedTensor]:
    """The tensors of an open pack, in the order of their numbers.

    Sound means: as this package writes it, with keys of Unicode text, each once, and numbers that
    follow each other from the header to the end of the file. Reading it piece by piece takes a
    tenth of the memory of a JSON parser.

    Raises:
        DamagedPackError: it is not sound.
        OSError: it cannot be read.
    """
    size = os.fstat(descriptor).st_size
    content = _content(descriptor, size)
    begin = WRITTEN_START.match(content)
    if begin is None:
        raise DamagedPackError
    position, last = begin.end(), 0
    keys = array("q")
    while (match := WRITTEN_ENTRY.match(content, position)) is not None:
        place = int(match[4]), int(match[5])
        if place[0] != last or place[1] < last:
            raise DamagedPackError
        key = _key(match[1])
        keys.append(hash(key))
        shape = tuple(int(part) for part in match[3].split(b",")) if match[3] else ()
        yield PackedTensor(key, match[2].decode(), shape, place)
        position, last = match.end(), place[1]
    hashes = np.array(keys, np.int64)
    hashes.sort()
    rest = content[position:].rstrip(b" ")
    if rest != b"}" or 8 + len(content) + last != size or (hashes[1:] == hashes[:-1]).any():
        raise DamagedPackError


def _content(descriptor: int, size: int) -> bytes:
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if not 2 <= length <= min(2 * LARGEST_ROOM, size - 8):
        raise DamagedPackError
    content = b""
    while len(content) < length:
        part = os.pread(descriptor, length - len(content), 8 + len(content))
        if not part:
            raise DamagedPackError
        content += part
    return content


def _key(text: bytes) -> str:
    """Raises DamagedPackError for what is no Unicode text."""
    try:
        key = text.decode() if b"\\" not in text else json.loads(b'"' + text + b'"')
        key.encode()
    except ValueError:
        raise DamagedPackError from None
    return str(key)


class PackHeaders:
    """Which tensors the packs of a folder hold; the header read last is kept, 32 bytes a tensor.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: SafeFolder) -> None:
        self._folder = folder
        self._name = ""
        self._keys: NDArray[np.int64] = np.zeros(0, np.int64)  # hashes, sorted
        self._rest: NDArray[np.int64] = np.zeros((0, 3), np.int64)  # place, and hash of the shape

    def holds(self, entry: Entry) -> bool:
        """Whether a pack holds the tensors of a line of the journal, where the line says.

        Raises:
            OutputError: the pack is there and cannot be read.
        """
        if entry.output is None or entry.at is None or entry.shapes is None:
            return False
        if entry.output != self._name:
            self._name = entry.output
            self._read(entry.output)
        begin = entry.at[0]
        for key, shape in keyed_by(entry.id, entry.shapes).items():
            wanted = np.int64(hash(key))
            index = int(np.searchsorted(self._keys, wanted))
            if index == len(self._keys) or self._keys[index] != wanted:
                return False
            first, end, shaped = self._rest[index].tolist()
            if first != begin or shaped != hash(shape):
                return False
            begin = end
        return begin == entry.at[1]

    def _read(self, name: str) -> None:
        self._keys, self._rest = np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
        if "/" in name or "\0" in name:
            return
        try:
            descriptor = self._folder.open(name, os.O_RDONLY)
        except (FileNotFoundError, InTheWayError, ValueError):
            return
        except OSError as error:
            raise self._unreadable(name, error) from None
        keys, rest = array("q"), array("q")
        try:
            for tensor in read_header(descriptor):
                keys.append(hash(tensor.key))
                rest.extend((*tensor.place, hash(tensor.shape)))
        except DamagedPackError:
            return
        except OSError as error:
            raise self._unreadable(name, error) from None
        finally:
            os.close(descriptor)
        found = np.array(keys, np.int64)
        order = np.argsort(found)
        self._keys = found[order]
        self._rest = np.array(rest, np.int64).reshape(-1, 3)[order]

    def _unreadable(self, name: str, error: OSError) -> OutputError:
        """A pack that cannot be read now is not missing: its results must not be forgotten."""
        return OutputError(f"{self._folder.join(name)}: cannot be read: {error.strerror or error}")
