"""Python that advice in messages consists of: how a program reaches the tensors of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from fusecli.errors import FeatureFileError
from fusecli.features.file import FeatureFile, open_regular

PLAIN_NAME = re.compile(r"[\w./\-]+", re.ASCII)  # that needs no quotes in a shell or in Python
TORCH_ENDINGS = (".pt", ".pth", ".ckpt")
Path = tuple[str | int | float | bytes | None, ...]


def paths_in(file: FeatureFile) -> dict[str, Path]:
    """The keys and indices that lead to each tensor in what its library loads, by its key.

    In a file of PyTorch they have their types: 0 of a list or of a dict with whole numbers as
    keys, and names that the reader leaves out, such as "model".

    Args:
        file: open.

    Raises:
        FeatureFileError: the file was changed since it was opened.
    """
    if file.handle is None or os.path.splitext(file.name)[1].lower() not in TORCH_ENDINGS:
        return {key: (key,) if key else () for key in file.tensors}
    from fusecli.features.formats.torch_checkpoint import python_paths

    with open_regular(file.name) as handle:  # another thread may read through file.handle
        paths = python_paths(handle, file.name)
    if paths.keys() != file.tensors.keys():
        raise FeatureFileError(f"{file.where}: changed while it was read: run the command again")
    return paths


def indexed(path: Path) -> str:
    """A path behind the name of what it leads into: `['outputs'][0]`."""
    return "".join(f"[{part!r}]" for part in path)


def is_plain(file: str, paths: Iterable[Path]) -> bool:
    """Whether a file's name and all paths can stand in a program between double quotes."""
    texts = [file, *(part for path in paths for part in path if isinstance(part, str))]
    return all(PLAIN_NAME.fullmatch(text) for text in texts)


def program(text: str) -> str:
    """The command that runs a program."""
    return f'python -c "{text}"'
