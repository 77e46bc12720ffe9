"""What a file is by its content, where that is not what its name says.

Looked at only once a file could not be read: then one sentence says what it really is, and what
makes features of it.
"""

from __future__ import annotations

import os
import re
from io import BufferedReader

from fusecli.features.formats.table import FORMATS, READABLE_ENDINGS, TORCH_ENDINGS, load_format

_LOOKED_AT = 512  # bytes
_TAR_MARK = 257  # where "ustar" stands in a tar archive
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_OWN_WORDS = (".npz", *TORCH_ENDINGS)
_DOWNLOAD = "download the file again, and log in where the server asks for it"
_ENCODE = "give what an encoder makes of it"

# How files of other kinds begin, what they are, and what to do.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer",
        "fetch the file it stands for with git lfs pull",
    ),
    (b"/annex/objects/", "a git-annex pointer", "fetch the file it stands for with git annex get"),
    (b"\x1f\x8b", "packed by gzip", "unpack it: gzip -dc {file} > {unpacked}"),
    (b"BZh", "packed by bzip2", "unpack it: bzip2 -dc {file} > {unpacked}"),
    (b"\xfd7zXZ\x00", "packed by xz", "unpack it: xz -dc {file} > {unpacked}"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "unpack it: zstd -dc {file} > {unpacked}"),
    (b"\x04\x22\x4d\x18", "packed by lz4", "unpack it: lz4 -dc {file} > {unpacked}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file",
        "convert it: python -c \"import h5py, numpy; numpy.save('NEW.npy', "
        "h5py.File({file!r})['KEY'][:])\"",
    ),
    (
        b"MATLAB 7.3 MAT-file",
        "a MATLAB file",
        "convert it: python -c \"import h5py, numpy; numpy.save('NEW.npy', "
        "h5py.File({file!r})['KEY'][:].T)\"",  # MATLAB writes its arrays with their axes reversed
    ),
    (
        b"MATLAB 5.0 MAT-file",
        "a MATLAB file",
        "convert it: python -c \"import scipy.io, numpy; numpy.save('NEW.npy', "
        "scipy.io.loadmat({file!r})['KEY'])\"",
    ),
    (b"PAR1", "a Parquet file", "save the column of features with numpy.save"),
    (b"ARROW1", "an Arrow file", "save the column of features with numpy.save"),
    (b"SQLite format 3", "an SQLite data base", "save its features with numpy.save"),
    (b"\x89PNG\r\n", "a picture (PNG)", _ENCODE),
    (b"\xff\xd8\xff", "a picture (JPEG)", _ENCODE),
    (b"GIF8", "a picture (GIF)", _ENCODE),
    (b"%PDF", "a PDF", _ENCODE),
)
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|\?xml|Error)", re.I)
_NUMBERS = re.compile(rb"\s*[-+]?\d[-+.\de]*(?P<mark>[,;\t ])\s*[-+]?\d[-+.\de]*[-+.\de,;\t \r\n]*")
_JSON = re.compile(rb"\s*(?:\{\s*\"|\[\s*[\[\d{\"-])")


def other_content(handle: BufferedReader, name: str) -> str | None:
    """What an open file is and what to do about it; None where its content tells nothing.

    Args:
        handle: the open file.
        name: its path.

    Returns:
        The end of a sentence that says it is no file of its ending, such as
        "a Git LFS pointer: fetch the file it stands for with git lfs pull".
    """
    handle.seek(0)
    start = handle.read(_LOOKED_AT)
    stem, ending = os.path.splitext(name)
    for entry in FORMATS:
        handle.seek(0)
        if load_format(entry.module).recognises(handle):
            if ending.lower() in entry.endings:
                return None
            new = entry.endings[0]
            zipped = start.startswith(_ZIP)
            what = f"zip archive ({new} by its content)" if zipped else f"{new} file by its content"
            return f"a {what}: name it {stem or name}{new}"
    if ending.lower() in _OWN_WORDS and start.startswith((*_ZIP, b"\x80")):
        return None  # zip archives and pickles: the format's own error says more
    # The snippets quote names for Python inside a shell's quotes.
    plain = re.fullmatch(r"[\w./+=@,~-]+", name) is not None
    unpacked = ending if ending.lower() in READABLE_ENDINGS else os.path.splitext(stem)[1]
    return content_by_start(start, name if plain else "FILE", unpacked)


def content_by_start(start: bytes, file: str, ending: str) -> str | None:
    """The same from a file's first bytes alone.

    Args:
        start: the bytes.
        file: what commands call it.
        ending: of what is packed in it.
    """
    found = _kind(start)
    if found is None:
        return None
    what, remedy = found
    unpacked = f"NEW{ending if ending.lower() in READABLE_ENDINGS else '.npy'}"
    return f"{what}: {remedy.format(file=file, unpacked=unpacked)}"


def _kind(start: bytes) -> tuple[str, str] | None:
    for beginning, what, remedy in _BEGINNINGS:
        if start.startswith(beginning):
            return what, remedy
    if markup := _MARKUP.match(start):
        if markup[1].lower() in (b"?xml", b"error"):
            return "an XML document, as a server answers with an error", _DOWNLOAD
        return "an HTML page, as a server answers without the file", _DOWNLOAD
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a picture (WebP)", _ENCODE
    if start[_TAR_MARK : _TAR_MARK + 5] == b"ustar":
        return "a tar archive", "unpack it: tar -xf {file}"
    if start.startswith(_ZIP):
        return "a zip archive of other files", "unpack it: unzip {file}"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return (
            "a pickle, and pickles are never loaded since they can run code",
            "save its arrays with numpy.save or numpy.savez",
        )
    if numbers := _NUMBERS.fullmatch(start):
        mark = numbers["mark"].decode()
        option = "" if mark == " " else f", delimiter={mark!r}"
        return (
            "a table of numbers as text",
            "convert it: python -c \"import numpy; numpy.save('NEW.npy', "
            f'numpy.loadtxt({{file!r}}{option}, ndmin=2))"',
        )
    if _JSON.match(start) and b'"weight_map"' in start:
        return (
            "the index of a folder of tensors by id",
            "give that folder to fusecli batch, or one of its files with --image-key or --text-key",
        )
    if _JSON.match(start):
        return "JSON text", "save its numbers with numpy.save"
    if len(start) == _LOOKED_AT and not any(start):
        return (
            "zeros from its first byte on, as a copy or a download that broke off leaves it",
            "make it again",
        )
    return None
