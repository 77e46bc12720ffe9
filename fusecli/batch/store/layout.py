"""What lies where in an output folder.

run.json                 what the run computes; written first
journal.jsonl            a line a pair; journal-1-of-8.jsonl for a shard
fused-00001.safetensors  packs; fused-1-of-8-00001.safetensors for a shard
fused.safetensors.index.json   which pack holds which tensor
.fusecli/lock            held by whoever works here: shared by shards; never removed
.fusecli/staging*/       files on their way; gone when a run ends
.fusecli/finished-*      a shard that has nothing left to do
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HIDDEN = ".fusecli"
LOCK = "lock"
INDEX = "fused.safetensors.index.json"

_OF_SHARD = r"(?:-(\d{1,6})-of-(\d{1,6}))?"
_JOURNAL = re.compile(rf"journal{_OF_SHARD}\.jsonl")
_PACK = re.compile(rf"fused{_OF_SHARD}-(\d{{5,18}})\.safetensors")
_STAGING = re.compile(rf"staging{_OF_SHARD}")
_FINISHED = re.compile(rf"finished{_OF_SHARD}")


@dataclass(frozen=True)
class Shard:
    """One job of a job array: the pairs whose ids fall to it.

    Attributes:
        index: from 1.
        of: how many there are.
    """

    index: int
    of: int

    @property
    def suffix(self) -> str:
        """What tells the files of one shard from those of another."""
        return f"-{self.index}-of-{self.of}"


def journal_name(suffix: str) -> str:
    """The journal of a shard, by its suffix; of a whole run for ""."""
    return f"journal{suffix}.jsonl"


def staging_name(suffix: str) -> str:
    """The folder of a shard's unfinished files, below the hidden folder."""
    return f"staging{suffix}"


def finished_name(suffix: str) -> str:
    """The file that says that a shard has finished, below the hidden folder."""
    return f"finished{suffix}"


def pack_name(suffix: str, number: int) -> str:
    """A pack of a shard."""
    return f"fused{suffix}-{number:05d}.safetensors"


def is_journal_name(name: str) -> bool:
    """Whether a journal may be called so."""
    return _JOURNAL.fullmatch(name) is not None


def is_staging_name(name: str) -> bool:
    """Whether a folder of unfinished files may be called so."""
    return _STAGING.fullmatch(name) is not None


def is_finished_name(name: str) -> bool:
    """Whether the mark of a finished shard may be called so."""
    return _FINISHED.fullmatch(name) is not None


def is_pack_name(name: str) -> bool:
    """Whether a pack may be called so."""
    return _PACK.fullmatch(name) is not None


def pack_number(name: str, suffix: str) -> int:
    """The number of a pack of one shard; 0 for any other name."""
    match = _PACK.fullmatch(name)
    return int(match[3]) if match and name == pack_name(suffix, int(match[3])) else 0


def shard_of(journal: str) -> tuple[int, int] | None:
    """Which shard of how many a journal is of; None for a whole run or another name."""
    match = _JOURNAL.fullmatch(journal)
    return (int(match[1]), int(match[2])) if match and match[1] else None


def shard_suffix(index: int, of: int) -> str:
    """What tells the files of one shard from those of another."""
    return f"-{index}-of-{of}"
