"""Notes for people: what was assumed, and what was used although no option named it."""

from __future__ import annotations

from collections.abc import Collection

from fusecli.records import record

_CASES = 8  # so many codes are counted apart, further ones only by their kind


@record
class Note:
    """Something that was assumed, or used although no option named it.

    Attributes:
        code: a stable short name of its kind, by which a batch counts notes. A colon and more
            may follow, to tell cases of one kind apart.
        message: in plain words.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return self.message

    def counted_as(self, known: Collection[str]) -> str:
        """The name under which it is counted: its code, or only the kind if there are many codes.

        Args:
            known: what has been counted so far.
        """
        if self.code in known or len(known) < _CASES:
            return self.code
        return self.code.partition(":")[0]
