"""Safetensors files keyed by id: which files, and which keys they hold."""

from __future__ import annotations

import json
import os
import re
from itertools import count

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FuseError, PairsError, shortened
from fusecli.features.file import open_regular
from fusecli.features.formats.base import one_line
from fusecli.features.formats.safetensors_header import read_header

_ENDING = ".safetensors"
_INDEX = ".safetensors.index.json"
# fused-00001.safetensors, model-00001-of-00042.safetensors
_SHARD = re.compile(r"(.+?)-\d{5,}(?:-of-\d{5,})?\.safetensors", re.IGNORECASE)
_OF_MANY = re.compile(r"(.+-)(\d{5,})-of-(\d{5,})\.safetensors", re.IGNORECASE)

# Reading an index takes about six times its size in memory.
_LARGEST_INDEX = 32 << 20


def looks_keyed(path: str) -> bool:
    """Whether a file or folder is read as one that holds tensors by id.

    A .safetensors file and an index always are. A folder is if it has an index, or if all its
    safetensors files are called `...-00001-of-00042.safetensors`, as Hugging Face names shards.
    """
    if not os.path.isdir(path):
        return path.lower().endswith((_ENDING, _INDEX))
    names = _names(path)
    shards = [name for name in names if name.lower().endswith(_ENDING)]
    return any(name.endswith(_INDEX) for name in names) or (
        bool(shards) and all(map(_OF_MANY.fullmatch, shards))
    )


class ListedTensors:
    """Which tensors of which files are used, as the indexes of their folders say.

    A tensor that was written again lies in two files, and a deleted one still lies in one: only
    the index says which of them to use. An index with `metadata.total_size`, as fusecli and the
    Hugging Face Hub write it, is complete: tensors that it does not name are not used. Holds 16
    bytes a tensor.

    Attributes:
        left_out: how many tensors of files with an index are not in it.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, NDArray[np.int64]] = {}  # by file, sorted
        self._elsewhere: dict[str, NDArray[np.int64]] = {}  # by file: all of an incomplete index
        self._left_out: dict[str, int] = {}
        self._complete: set[str] = set()

    def add(self, index: str, files: dict[str, str], complete: bool) -> None:
        """Note what an index says.

        Args:
            index: its path.
            files: the file's name of every key.
            complete: tensors that it does not name are not used.
        """
        if complete:
            self._complete.add(index)
        every = np.sort(np.fromiter(map(hash, files), np.int64, len(files)))
        keys: dict[str, list[int]] = {}
        for key, name in files.items():
            keys.setdefault(name, []).append(hash(key))
        for name, hashes in keys.items():
            path = os.path.join(os.path.dirname(index), name)
            self._hashes[path] = np.sort(np.array(hashes, np.int64))
            if not complete:
                self._elsewhere[path] = every

    def keys_of(self, file: str) -> list[str]:
        """The keys of one file that are used, sorted; all keys of a file without an index.

        Raises:
            FeatureFileError: the file is missing or damaged.
            PairsError: it does not hold all tensors that the index says it does.
        """
        keys = keys_of(file)
        listed = self._hashes.get(file)
        if listed is None:
            return keys
        hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
        counts = np.isin(hashes, listed)
        if (held := int(counts.sum())) != len(listed):
            raise PairsError(
                f"{file}: holds {held:,} of the {len(listed):,} tensors that its folder's "
                "index says it holds: complete the file, or remove the index"
            )
        if file in self._elsewhere:
            counts |= ~np.isin(hashes, self._elsewhere[file])
        found = [key for key, counted in zip(keys, counts.tolist(), strict=True) if counted]
        self._left_out[file] = len(keys) - len(found)
        return found

    def is_complete(self, index: str) -> bool:
        """Whether an index that was added claims to name all tensors of its folder."""
        return index in self._complete

    @property
    def left_out(self) -> int:
        """How many tensors are not used, in all files that were looked at."""
        return sum(self._left_out.values())


def shards_of(path: str, notes: list[str], tensors: ListedTensors) -> list[str]:
    """The safetensors files of one side, sorted by name.

    Args:
        path: a file, a folder, or an index file.
        notes: receives what is assumed about the folder.
        tensors: receives which tensors are used, where there is an index.

    Raises:
        PairsError: there are no such files; one is missing, since their names say how many there
            are; or an index is damaged or names files of another folder.
    """
    if not os.path.isdir(path):
        return (
            _listed(path, tensors)
            if path.lower().endswith(_INDEX)
            else _alone(path, notes, tensors)
        )
    names = _names(path)
    shards = [os.path.join(path, name) for name in names if name.lower().endswith(_ENDING)]
    indexes = [os.path.join(path, name) for name in names if name.endswith(_INDEX)]
    if len(indexes) > 1:
        raise PairsError(
            f"{path}: holds several sets of shards: name one by its index, such as {indexes[0]}"
        )
    if indexes and os.path.getsize(indexes[0]) <= _LARGEST_INDEX:
        return _listed(indexes[0], tensors)
    if indexes:
        notes.append(
            f"{indexes[0]}: is larger than {_LARGEST_INDEX >> 20} MB and not read: every "
            f"{_ENDING} file of its folder is taken"
        )
    if not shards:
        raise PairsError(f"{path}: holds no {_ENDING} files")
    _refuse_missing(path, names)
    return shards


def _alone(file: str, notes: list[str], tensors: ListedTensors) -> list[str]:
    """One file, which may be a shard: then the index of its folder says which tensors count.

    Raises:
        PairsError: the index claims to be complete, and names no tensor of the file.
    """
    folder, name = os.path.split(file)
    shard = _SHARD.fullmatch(name)
    if shard is None:
        return [file]
    index = os.path.join(folder, f"{shard[1]}{_INDEX}")
    if not os.path.isfile(index) or os.path.getsize(index) > _LARGEST_INDEX:
        return [file]
    try:
        listed = _listed(index, tensors)
    except FuseError as error:
        notes.append(
            f"{file}: all of its tensors are taken, since its index cannot be used: {error}"
        )
        return [file]
    if file not in listed and tensors.is_complete(index):
        raise PairsError(
            f"{file}: {index} names none of its tensors, which were replaced or withdrawn: give "
            f"the folder {folder or '.'}, or copy the file to another folder to use it as it is"
        )
    return [file]


def keys_of(file: str) -> list[str]:
    """The keys of one file, sorted.

    Raises:
        FeatureFileError: the file is missing or damaged.
    """
    with open_regular(file) as handle:
        return sorted(read_header(handle, file)[0])


def _names(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name[0] != ".")
    except OSError as error:
        raise PairsError(f"{folder}: cannot be listed: {error.strerror}") from None


def _refuse_missing(folder: str, names: list[str]) -> None:
    """Raises:
    PairsError: names say how many shards there are, and not all are there.
    """
    found: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, map(_OF_MANY.fullmatch, names)):
        found.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, of), numbers in found.items():
        if len(numbers) < of:
            first = 0 if 0 in numbers else 1  # some count from 0
            lost = next(n for n in count(first) if n not in numbers)
            raise PairsError(
                f"{folder}: holds {len(numbers):,} of {of:,} shards, "
                f"{stem}{lost:05}-of-{of:05}{_ENDING} is missing: complete the folder, or give "
                "an index of those to take"
            )


def _listed(index: str, tensors: ListedTensors) -> list[str]:
    with open_regular(index) as handle:
        size = os.fstat(handle.fileno()).st_size
        if size > _LARGEST_INDEX:
            raise PairsError(
                f"{index}: is larger than {_LARGEST_INDEX >> 20} MB: give its folder instead"
            )
        try:
            read = json.loads(handle.read())
        except (ValueError, RecursionError) as error:
            raise PairsError(f"{index}: is not JSON: {one_line(error)}") from None
    files = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(files, dict) or not files:
        raise PairsError(f"{index}: has no 'weight_map' that says which file holds which tensor")
    names = set(map(str, files.values()))
    for name in names:
        if os.path.basename(name) != name or not name.lower().endswith(_ENDING):
            raise PairsError(
                f"{index}: names the shard {shortened(name)!r}, expected a {_ENDING} file "
                "of its own folder"
            )
    metadata = read.get("metadata")
    complete = isinstance(metadata, dict) and "total_size" in metadata
    tensors.add(index, {key: str(name) for key, name in files.items()}, complete)
    return [os.path.join(os.path.dirname(index), name) for name in sorted(names)]
