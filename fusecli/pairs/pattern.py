"""`--image-pattern` and `--text-pattern`: what around a name is not part of the id."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fusecli.errors import UsageError
from fusecli.features.axes import Side
from fusecli.features.formats.table import READABLE_ENDINGS

_ID = "{id}"


@dataclass(frozen=True)
class Pattern:
    """A name or a path, or a key, with an id in it.

    Attributes:
        text: as it was given.
        prefix, suffix: what stands before and after `{id}`, without a file's ending.
        ending: of the file, lower case, where the pattern ends in one; else any.
    """

    text: str
    prefix: str
    suffix: str
    ending: str | None = None

    def id_of(self, name: str) -> str | None:
        """What `{id}` stands for in a name or key; None where the pattern does not fit."""
        end = len(name) - len(self.suffix)
        if end <= len(self.prefix):  # an id is not empty
            return None
        if name.startswith(self.prefix) and name.endswith(self.suffix):
            return name[len(self.prefix) : end]
        return None

    def name_of(self, id: str) -> str:
        """The name that an id has."""
        return f"{self.prefix}{id}{self.suffix}"


def key_pattern(side: Side, text: str) -> Pattern:
    """Read a pattern of keys.

    Raises:
        UsageError: not exactly one `{id}`.
    """
    prefix, found, suffix = text.partition(_ID)
    if not found or _ID in suffix:
        raise UsageError(f"--{side}-pattern {text}: expected exactly one {{id}}")
    return Pattern(text, prefix, suffix)


def file_pattern(side: Side, text: str | None) -> Pattern:
    """Read a pattern of files: of names without a folder, or with a `/` of relative paths.

    Raises:
        UsageError: not exactly one `{id}`, an absolute path, or empty, hidden or `..` parts.
    """
    whole = key_pattern(side, _ID if text is None else text)
    if whole.prefix.startswith("/"):
        raise UsageError(f"--{side}-pattern {text}: expected a path relative to the folder")
    if any(not part or part[0] == "." for part in whole.name_of("x").split("/")):
        raise UsageError(f"--{side}-pattern {text}: no part of it may be empty or begin with a dot")
    ending = os.path.splitext(whole.text)[1]
    if ending.lower() in READABLE_ENDINGS:
        return Pattern(whole.text, whole.prefix, whole.suffix.removesuffix(ending), ending.lower())
    return whole
