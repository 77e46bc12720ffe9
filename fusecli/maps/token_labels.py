"""The text's tokens as words, from a file: what names the rows of an attention map."""

from __future__ import annotations

import json
import os
from typing import Any

from fusecli.errors import (
    FeatureFileError,
    ShapeError,
    counted,
    refuse_empty_name,
    shortened,
)
from fusecli.features.file import open_regular

_LARGEST = 64 << 20  # bytes; far beyond any list of tokens that can be drawn
_ENDINGS = (".txt", ".json")


def read_labels(named: str, text: str, sample: int, N: int) -> list[str]:
    """Read the tokens of one text.

    A .txt file has one token a line. A .json file is a list of tokens, a list of such lists
    (one for each sample of a stack), or an object of such lists by name, each as it is or under
    the key "tokens" (as `sample_features/tokens.json`). Of an object, `FILE.json:NAME` says
    which; without it the name is the text file's (astronaut.text.npy: astronaut).

    Args:
        named: the file, or `FILE.json:NAME`.
        text: the text features' file.
        sample: which sample is meant.
        N: samples of the stack; 1 for one pair.

    Raises:
        FeatureFileError: missing, not UTF-8, not such a file, or the name is not in it.
        ShapeError: a list for each sample, but not N of them.
        UsageError: the name is empty.
    """
    refuse_empty_name(named)
    path, name = file_of(named), None
    if path != named:
        name = named[len(path) + 1 :]
    ending = os.path.splitext(path)[1].lower()
    if ending not in _ENDINGS:
        raise FeatureFileError(
            f"{path}: tokens are read from .txt (one a line) or .json (a list), "
            f"found {ending or 'no ending'}"
        )
    content = _read(path)
    if ending == ".txt":
        lines = content.split("\n")
        return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FeatureFileError(f"{path}: is not sound JSON: {shortened(str(error))}") from None
    if isinstance(data, dict):
        data = _entry(data, name, text, path)
    elif name is not None:
        raise FeatureFileError(f"{path}: holds a list, and a list has nothing called {name!r}")
    if isinstance(data, list) and data and all(isinstance(one, list) for one in data):
        if len(data) != N:
            texts = counted(len(data), "text")
            raise ShapeError(f"{named}: holds the tokens of {texts}, expected {N}")
        data = data[sample]
    return _strings(data, named)


def file_of(named: str) -> str:
    """The file in `FILE.json:NAME`; a name that is a file itself stands for that."""
    if os.path.lexists(named):
        return named
    path, colon, _ = named.rpartition(":")
    return path if colon and path.lower().endswith(".json") else named


def _read(path: str) -> str:
    with open_regular(path) as handle:
        data = handle.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise FeatureFileError(f"{path}: is larger than any list of tokens ({_LARGEST:,} bytes)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FeatureFileError(f"{path}: is not UTF-8 text: {error.reason}") from None


def _entry(data: dict[str, Any], name: str | None, text: str, path: str) -> Any:
    """The entry of an object under a name; without a name, under that of the text file."""
    if name is None and isinstance(data.get("tokens"), list):
        return data["tokens"]
    stem = os.path.basename(text)
    names = [name] if name is not None else []
    while name is None and "." in stem:
        stem = stem.rpartition(".")[0]
        names.append(stem)
    for one in names:
        if one in data:
            found = data[one]
            return found.get("tokens") if isinstance(found, dict) else found
    there = ", ".join(shortened(key, 40) for key in sorted(data)[:12])
    wanted = f"has nothing called {shortened(names[-1])!r}" if names else "holds several texts"
    raise FeatureFileError(f"{path}: {wanted}: say --tokens {path}:NAME; there are {there}")


def _strings(data: Any, named: str) -> list[str]:
    if not isinstance(data, list):
        raise FeatureFileError(f"{named}: expected a list of tokens, found {_kind(data)}")
    for index, one in enumerate(data):
        if not isinstance(one, str):
            raise FeatureFileError(f"{named}: token {index} is {_kind(one)}, expected a string")
    return data


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")
