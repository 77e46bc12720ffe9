"""What a person is told of things that were assumed, or used without being asked for."""

from __future__ import annotations

from fusecli.records import record


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
