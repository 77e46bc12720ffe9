"""Results as one file a pair: complete under its final name, or not there.

Files are written under temporary names in a folder of the output folder, many of them. Then all
are brought to the disk at once, each gets its name, and the journal its line, in this order: a
process that is killed leaves no partial file under a final name, nor does a power cut, and the
journal never says more than is there.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from fusecli.batch.pair_inputs import files_of
from fusecli.batch.store.encode import Encoder
from fusecli.batch.store.folder import OutputFolder
from fusecli.batch.store.journal import Entry
from fusecli.batch.worker import Result
from fusecli.features.atomic import bring_to_disk, not_written, write_all
from fusecli.pairs.open import Pair, relative_path

# What waits for its name: enough that bringing it to the disk is worth a call.
_EVERY_S = 0.5
_MOST_BYTES = 256 << 20
_MOST_FILES = 4096
_KNOWN_FOLDERS = 10_000


class FileSink:
    """Writes a file a pair.

    Args:
        folder: the output folder, begun.
        encoder: makes the files.
        ending: of the files of pairs whose source names none.
    """

    def __init__(self, folder: OutputFolder, encoder: Encoder, ending: str) -> None:
        self._folder, self._encoder, self._ending = folder, encoder, ending
        self._staged: list[tuple[str, str]] = []  # temporary and final path
        self._entries: list[Entry] = []
        self._bytes = self._count = 0
        self._committed = time.monotonic()
        self._there: set[str] = set()
        for name in os.listdir(folder.staging):  # of a run that was killed
            os.unlink(os.path.join(folder.staging, name))

    def output_of(self, pair: Pair) -> str:
        """Path of a pair's file, relative to the output folder, with `/`."""
        return relative_path(pair.id, self._ending) if pair.output is None else pair.output

    def counts(self, entry: Entry) -> bool:
        """Whether a line of an earlier run may count; files are looked for one by one."""
        return True

    def there(self, pair: Pair, size: int) -> bool:
        """Whether a pair's file is there, as long as the journal says (0: it does not say)."""
        try:
            status = os.stat(self._folder.inside(self.output_of(pair)))
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == (size or status.st_size)

    def withdraw(self, pair: Pair) -> None:
        """Remove the file that an earlier run made of a pair which has no result any more.

        Raises:
            OutputError: the folder does not allow it.
        """
        output = self.output_of(pair)
        if not self._is_input(pair, output):
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._folder.inside(output))
            except OSError as error:
                raise self._folder.failed(error) from None

    def put(self, results: list[Result]) -> None:
        """Take results; they may appear later.

        Raises:
            OutputError: the folder or the disk does not take them.
        """
        for result in results:
            if result.tensors is None:
                self._entries.append(Entry(result.pair.id, None, None, result.error, result.stamps))
                continue
            output = self.output_of(result.pair)
            if self._is_input(result.pair, output):
                result.error = f"{output}: is an input of this pair, and inputs are never changed"
                result.tensors = None
                self._entries.append(_failed(result))
                continue
            size = self._stage(output, result)
            self._bytes += size
            self._entries.append(
                Entry(result.pair.id, output, result.shapes, None, result.stamps, size=size)
            )
        waited = time.monotonic() - self._committed
        if waited > _EVERY_S or self._bytes > _MOST_BYTES or len(self._entries) > _MOST_FILES:
            self.commit()

    def commit(self) -> None:
        """Let everything that was put appear, and write it down.

        Raises:
            OutputError: the folder or the disk does not take it.
        """
        assert self._folder.journal is not None
        try:
            if self._staged:
                bring_to_disk(self._folder.staging, [path for path, _ in self._staged])
            while self._staged:
                staged, final = self._staged[-1]
                self._make_folder(os.path.dirname(final))
                os.replace(staged, final)
                self._staged.pop()
        except OSError as error:
            raise self._folder.failed(error) from None
        self._folder.journal.append(self._entries)
        self._entries.clear()
        self._bytes, self._committed = 0, time.monotonic()

    def finish(self) -> None:
        """Let the last results appear.

        Raises:
            OutputError: the folder or the disk does not take them.
        """
        self.commit()

    def abandon(self) -> None:
        """Remove what has not appeared."""
        for staged, _ in self._staged:
            with contextlib.suppress(OSError):
                os.unlink(staged)
        self._staged.clear()

    def _stage(self, output: str, result: Result) -> int:
        """Write a file under a temporary name; gives its size."""
        assert result.tensors is not None
        self._count += 1
        staged = os.path.join(self._folder.staging, str(self._count))
        ending = os.path.splitext(output)[1].lower()
        self._staged.append((staged, self._folder.inside(output)))
        try:
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                return write_all(descriptor, self._encoder.encode(result.tensors, ending))
            finally:
                os.close(descriptor)
        except OSError as error:
            where = self._folder.inside(output)
            raise not_written(where, error) from None

    def _is_input(self, pair: Pair, output: str) -> bool:
        """A manifest may name a file that lies in the output folder."""
        final = self._folder.inside(output)
        return os.path.exists(final) and any(
            os.path.exists(name) and os.path.samefile(name, final) for name in files_of(pair)
        )

    def _make_folder(self, path: str) -> None:
        if path in self._there:
            return
        if len(self._there) > _KNOWN_FOLDERS:
            self._there.clear()
        os.makedirs(path, exist_ok=True)
        self._there.add(path)


def _failed(result: Result) -> Entry:
    return Entry(result.pair.id, None, None, result.error, result.stamps)
