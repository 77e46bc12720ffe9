"""Delete a previous run's files: only those that its own records name, and no input."""

from __future__ import annotations

import errno
import os
import stat

from fusecli.batch.store import layout
from fusecli.batch.store.journal import Entry, read_entries
from fusecli.batch.store.safe_folder import ResultFolders, SafeFolder
from fusecli.errors import OutputError
from fusecli.features.formats.table import WRITABLE_ENDINGS
from fusecli.features.protected import ProtectedFiles


def delete_results(
    root: SafeFolder,
    results: ResultFolders,
    journals: list[str],
    protected: ProtectedFiles,
) -> None:
    """Delete the results and packs that journals name.

    A journal may have been changed by others. Paths outside the folder, protected files and
    anything but regular files stay.

    Raises:
        OSError: a file cannot be removed.
    """
    packs: set[str] = set()
    for journal in journals:
        for entry in read_entries(root, journal):
            if entry.at is not None and layout.is_pack_name(str(entry.output)):
                packs.add(str(entry.output))
            elif entry.at is None:
                delete_result(results, entry, protected)
    for name in packs:
        _delete(root, name, protected)


def delete_result(results: ResultFolders, entry: Entry, protected: ProtectedFiles) -> None:
    """Delete the file of a single pair that a line of a journal names.

    Raises:
        OSError: it cannot be removed.
    """
    if entry.output is None or not _may_be_result(entry.output):
        return
    try:
        folder, name = results.parent(entry.output, make=False)
        _delete(folder, name, protected)
    except (OutputError, ValueError):
        pass  # below a link or a file, or a name that no file can have
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise


def delete_staged(hidden: SafeFolder, name: str, kept: str | None = None) -> None:
    """Delete the unfinished files in one staging folder of a process that is gone.

    Args:
        hidden: the hidden folder.
        name: of the staging folder; its lock is held by the caller.
        kept: a file that stays, and with it the folder.

    Raises:
        OutputError: the staging folder is a link.
        OSError: a file cannot be removed.
    """
    try:
        staging = hidden.folder(name)
    except FileNotFoundError:
        return
    try:
        for file in staging.names():
            ours = file.isdigit() or layout.is_pack_name(file.removesuffix(".moved"))
            if ours and file != kept:
                staging.unlink(file)
    finally:
        staging.close()


def _delete(folder: SafeFolder, name: str, protected: ProtectedFiles) -> None:
    status = folder.status(name)
    if status is None or not stat.S_ISREG(status.st_mode) or protected.holds(status):
        return
    folder.unlink(name)


def _may_be_result(output: str) -> bool:
    """Whether a path is of the kind that results have: relative, nothing hidden, an ending."""
    if "\0" in output:
        return False
    parts = output.split("/")
    ending = os.path.splitext(output)[1].lower()
    return ending in WRITABLE_ENDINGS and all(part and part[0] != "." for part in parts)
