"""What a pair is, and what every source of pairs can be asked. Plain data, no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

# What can have no partner.
UnmatchedKind = Literal["image", "text", "image mask", "text mask", "tensor", "file"]
# Of what has no partner, as many are named as a person reads.
_FIRST = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor lies.

    Attributes:
        file: a path.
        key: the tensor's key, or None: the usual names, or the only tensor.
        row: the sample of a stack that belongs to the pair, or None: the whole tensor.
    """

    file: str
    key: str | None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """One image and one text that belong together.

    Attributes:
        id: unique in the run; any characters may be in it, so that a path is made of it with
            `relative_path(id)` and never by joining it to a folder.
        image, text: where the features lie; whether they are there is known when they are read.
        image_mask, text_mask: where their masks lie; None if the source names none.
        output: relative path inside the output folder, where a manifest says one.
        extra: what a manifest says in the columns of `PairOptions.extra_columns`, in their
            order; "" where a row says nothing.
        attention_mask: where it lies which text token may attend to which image token, or None.
    """

    id: str
    image: Place
    text: Place
    image_mask: Place | None
    text_mask: Place | None
    output: str | None
    extra: tuple[str, ...] = ()
    attention_mask: Place | None = None

    @property
    def places(self) -> tuple[Place | None, ...]:
        """Where everything lies that the pair is read from; None for masks that it has not."""
        four = (self.image, self.text, self.image_mask, self.text_mask)
        return four if self.attention_mask is None else (*four, self.attention_mask)

    @property
    def files(self) -> list[str]:
        """The files that it is read from, each once."""
        return list(dict.fromkeys(place.file for place in self.places if place is not None))


@dataclass(frozen=True)
class PairOptions:
    """Where pairs come from; the meanings are those of the options of that name.

    Attributes:
        images: a folder, a .safetensors file, or a folder of shards; None with a manifest.
        texts: the same; None where `images` holds both sides, or with a manifest.
        manifest: a .csv, .jsonl or .parquet file.
        image_pattern, text_pattern: names with `{id}` in them.
        loose_ids: names that differ in case, Unicode form or leading zeros are one id.
        extra_columns: further columns of a manifest that are handed on with each pair.
        strict_pairs: what has no partner is an error.
        keyed: folders hold shards keyed by id (true), a file a sample (false); None: by names.
        output: the output folder, which is not looked into where it lies inside an input.
        ending: of the output files, so that two pairs of one file name are found; "" where
            results are packed and only ids need to differ.
        ending_said: that ending was asked for, and is not just the usual one.
        refused: endings of files that cannot hold a result, and why.
    """

    images: str | None = None
    texts: str | None = None
    manifest: str | None = None
    image_pattern: str | None = None
    text_pattern: str | None = None
    loose_ids: bool = False
    extra_columns: tuple[str, ...] = ()
    strict_pairs: bool = False
    keyed: bool | None = None
    output: str | None = None
    ending: str = ".npy"
    ending_said: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Unmatched:
    """What has no partner: counted exactly, the first few by name.

    Attributes:
        counts: by kind.
        first: kind and path (or id) of the first of each kind.
        kept: how many of each kind are named at most.
        advice: how they would match, as the end of a sentence; "" where that is not known.
    """

    counts: dict[UnmatchedKind, int] = field(default_factory=dict)
    first: list[tuple[UnmatchedKind, str]] = field(default_factory=list)
    kept: int = _FIRST
    advice: str = ""

    def add(self, kind: UnmatchedKind, name: str) -> None:
        """Count one more, and keep its name if it is one of the first."""
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        if count <= self.kept:
            self.first.append((kind, name))

    @property
    def total(self) -> int:
        """Of all sides."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        """`2 images and 1 text without a partner: image a.npy, image b.npy, text c.npy`."""
        counted = " and ".join(
            f"{count:,} {side}{'' if count == 1 else 's'}" for side, count in self.counts.items()
        )
        named = ", ".join(f"{side} {name}" for side, name in self.first)
        more = ", ..." if self.total > len(self.first) else ""
        return f"{counted} without a partner: {named}{more}{self.advice}"


class Listing(Protocol):
    """One kind of source: what lists the pairs of folders, keyed files or a manifest.

    Attributes:
        notes: what was assumed or is not used, for people.
        made_of: while `pairs` stands at a pair, what its id was made of for want of one: "output",
            "text", or "" where that goes without saying.
    """

    notes: list[str]
    made_of: str

    def pairs(self, unmatched: Unmatched) -> Iterator[Pair]:
        """The pairs in their order, from the first, made as they are asked for.

        Args:
            unmatched: receives what has no partner on the way.

        Raises:
            FuseError: the source cannot be read, or says two things at once.
        """
        ...

    def where(self, pair: Pair) -> str:
        """Where the pair comes from, for messages, asked while `pairs` stands at it."""
        ...
