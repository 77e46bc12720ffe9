"""A pack that is being written: it can be continued, gets its header, is read back, and then gets
its name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

from fusecli.batch.store.journal import Entry, Shapes
from fusecli.batch.store.pack_headers import DamagedPackError, keyed_by, read_header
from fusecli.batch.store.safe_folder import SafeFolder, appeared
from fusecli.errors import OutputError
from fusecli.features.dtypes import storage_type
from fusecli.features.formats.safetensors import header_entry
from fusecli.features.literals import OutDtype

_COPIED = 16 << 20  # bytes at once

WriteAll = Callable[[int, Sequence[bytes | memoryview]], int]


class OpenPack:
    """A pack that is being written.

    Args:
        name: it will have.
        staging: the folder it lies in until then, under the same name.
        descriptor: of the open file.
        room: bytes left for the header.
        dtype: of the numbers.
        write_all: writes buffers to a descriptor.

    Attributes:
        places: of each id that an earlier run wrote, first byte and last plus one.
        end: bytes of numbers so far.
    """

    def __init__(
        self,
        name: str,
        staging: SafeFolder,
        descriptor: int,
        room: int,
        dtype: OutDtype,
        write_all: WriteAll,
    ) -> None:
        self.name, self.descriptor = name, descriptor
        self._staging, self._room, self._write_all = staging, room, write_all
        self._dtype, self._itemsize = dtype, storage_type(dtype).itemsize
        self._entries = bytearray()  # of the header, each behind a comma
        # Of an earlier run, until `cut`: id, place, and where its entry begins.
        self._taken: list[tuple[str, tuple[int, int], int]] = []
        self.end = 0
        self.places: dict[str, tuple[int, int]] = {}
        os.lseek(descriptor, room, os.SEEK_SET)

    def append(self, id: str, shapes: Shapes, data: list[memoryview]) -> tuple[int, int]:
        """Write the tensors of a pair; gives where their numbers are."""
        at = self.end, self.end + self._write_all(self.descriptor, data)
        self._entries += self.header_of(id, shapes)
        self.end = at[1]
        return at

    def take(self, entry: Entry) -> None:
        """Note tensors whose numbers an earlier run wrote, from one line of its journal.

        Lines come in their order. A repeated line counts once. A line whose numbers do not follow
        those before it is left out: a line between them is damaged. A line that begins earlier
        was written after the pack had been cut there, and replaces what followed.
        """
        assert entry.at is not None
        if entry.shapes is None or self.places.get(entry.id) == entry.at:
            return
        begin, end = entry.at
        numbers = sum(math.prod(shape) for shape in entry.shapes.values())
        if end - begin != numbers * self._itemsize or begin > self.end:
            return
        while self._taken and self._taken[-1][1][0] >= begin:
            dropped, (self.end, _), start = self._taken.pop()
            del self.places[dropped], self._entries[start:]
        if begin == self.end and entry.id not in self.places:
            self._taken.append((entry.id, entry.at, len(self._entries)))
            self._entries += self.header_of(entry.id, entry.shapes)
            self.places[entry.id] = entry.at
            self.end = end

    def stored(self, entry: Entry) -> bytes:
        """The bytes of numbers at the place that a line of the journal names.

        Raises:
            OSError: they cannot be read.
        """
        assert entry.at is not None
        begin, end = entry.at
        return os.pread(self.descriptor, end - begin, self._room + begin)

    def header_of(self, id: str, shapes: Shapes) -> bytes:
        """What the next tensors add to the header."""
        begin, added = self.end, b""
        for key, shape in keyed_by(id, shapes).items():
            end = begin + math.prod(shape) * self._itemsize
            added += b"," + header_entry(key, self._dtype, shape, begin, end)
            begin = end
        return added

    @property
    def header_bytes(self) -> int:
        """Bytes of the entries."""
        return len(self._entries)

    def cut(self) -> None:
        """Cut off numbers that the journal does not know, and continue after the others."""
        self._taken.clear()
        os.ftruncate(self.descriptor, self._room + self.end)
        os.lseek(self.descriptor, self._room + self.end, os.SEEK_SET)

    def sync(self) -> None:
        """Flush the numbers to the disk."""
        os.fsync(self.descriptor)

    def close(self, first: bytes, root: SafeFolder) -> None:
        """Write the header, read it back, and give the file its name.

        Args:
            first: the header's beginning.
            root: the output folder.

        Raises:
            OutputError: what was read back is not what was written.
            OSError: the disk does not take it.
        """
        header = first + self._entries + b"}"
        header += b" " * (-len(header) % 8)
        if 8 + len(header) > self._room or self.end < 16 * self._room:
            self._move(header, root)  # otherwise a small file would be mostly spaces
            return
        header += b" " * (self._room - 8 - len(header))
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self._write_all(self.descriptor, [len(header).to_bytes(8, "little"), header])
        self._check(self.descriptor, header)
        os.fsync(self.descriptor)
        os.close(self.descriptor)
        self._publish(self.name, root)

    def _move(self, header: bytes, root: SafeFolder) -> None:
        """The same with a copy in which the numbers follow the header at once."""
        name = f"{self.name}.moved"
        self._staging.unlink(name)
        target = self._staging.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            self._write_all(target, [len(header).to_bytes(8, "little"), header])
            for start in range(0, self.end, _COPIED):
                length = min(_COPIED, self.end - start)
                data = os.pread(self.descriptor, length, self._room + start)
                if len(data) != length:
                    raise OutputError(f"{self._staging.join(self.name)}: was cut by somebody else")
                self._write_all(target, [data])
            self._check(target, header)
            os.fsync(target)
        finally:
            os.close(target)
        self._publish(name, root)
        os.close(self.descriptor)
        self._staging.unlink(self.name)

    def _publish(self, staged: str, root: SafeFolder) -> None:
        try:
            self._staging.move_to_new(staged, root, self.name)
        except FileExistsError:
            raise appeared(root.join(self.name)) from None
        root.sync()

    def _check(self, descriptor: int, header: bytes) -> None:
        """Read the header back, entry by entry, as a reader of the file would.

        Raises:
            OutputError: it is not what was written, or no reader would take it.
        """
        try:
            for _ in read_header(descriptor):
                pass
            sound = os.pread(descriptor, len(header), 8) == header
        except DamagedPackError:
            sound = False
        if not sound:
            raise OutputError(
                f"{self._staging.join(self.name)}: its header was not read back as it was written: "
                "check the disk, and run the same command with --force"
            )

    def leave(self) -> None:
        """Close the file as it is."""
        os.close(self.descriptor)
