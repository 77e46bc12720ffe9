"""What a person is told of things that were assumed, or used without being asked for."""

from __future__ import annotations

from collections.abc import Collection

from fusecli.records import record

_CASES = 8  # of notes that are counted apart


@record
class Note:
    """Something that was assumed, or used without being asked for.

    Attributes:
        code: a stable short name, by which a batch counts notes of a kind; what follows a colon
            in it tells cases of one kind apart.
        message: in plain words.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return self.message

    def counted_as(self, known: Collection[str]) -> str:
        """What a count of notes takes it for: its code, or only its kind if there are many codes.

        Args:
            known: what has been counted so far.
        """
        if self.code in known or len(known) < _CASES:
            return self.code
        return self.code.partition(":")[0]
