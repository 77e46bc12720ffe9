"""Python that advice in messages consists of: how a program reaches the tensors of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from fusecli.errors import FeatureFileError
from fusecli.features.file import FeatureFile, open_regular
from fusecli.features.formats.table import TORCH_ENDINGS
from fusecli.records import record

PLAIN_NAME = re.compile(r"[\w./\-]+", re.ASCII)  # that needs no quotes in a shell or in Python
# What torch.load takes with its weights_only besides torch's own.
_TAKEN = frozenset(
    (
        *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
        *("builtins.set", "__builtin__.set"),
    )
)
_NAMED = 3  # so many others are named
Path = tuple[str | int | float | bytes | None, ...]


@record
class FileInPython:
    """What a program has to know to reach the tensors of a file.

    Attributes:
        paths: the keys and indices that lead to each tensor in what its library loads, by its key.
            In a file of PyTorch they have their types: 0 of a list or of a dict with whole
            numbers as keys, and names that the reader leaves out, such as "model".
        others: what else the file holds that torch.load does not take by itself, such as
            argparse.Namespace.
    """

    paths: dict[str, Path]
    others: tuple[str, ...] = ()

    def torch_load(self, name: str) -> str:
        """The call that loads a file of PyTorch, whose name stands in quotes."""
        return f"torch.load({name}{', weights_only=False' if self.others else ''})"

    def command(self, text: str) -> str:
        """The command that runs a program, and what it needs to be trusted."""
        trust = ""
        if self.others:
            trust = (
                f" (weights_only=False since it also holds {', '.join(self.others)}, which can run "
                "code: only if you trust the file)"
            )
        return f'python -c "{text}"{trust}'


def in_python(file: FeatureFile) -> FileInPython:
    """How a program reaches the tensors of a file.

    Args:
        file: open.

    Raises:
        FeatureFileError: the file was changed since it was opened.
    """
    if file.handle is None or os.path.splitext(file.name)[1].lower() not in TORCH_ENDINGS:
        return FileInPython({key: (key,) if key else () for key in file.tensors})
    from fusecli.features.formats.torch_checkpoint import python_paths

    with open_regular(file.name) as handle:  # another thread may read through file.handle
        paths, names = python_paths(handle, file.name)
    if paths.keys() != file.tensors.keys():
        raise FeatureFileError(f"{file.where}: changed while it was read: run the command again")
    others = {
        name if PLAIN_NAME.fullmatch(name) else "another object"
        for name in names - _TAKEN
        if not name.startswith("torch.")
    }
    return FileInPython(paths, tuple(sorted(others)[:_NAMED]))


def indexed(path: Path) -> str:
    """A path behind the name of what it leads into: `['outputs'][0]`."""
    return "".join(f"[{part!r}]" for part in path)


def is_plain(file: str, paths: Iterable[Path]) -> bool:
    """Whether a file's name and all paths can stand in a program between double quotes."""
    texts = [file, *(part for path in paths for part in path if isinstance(part, str))]
    return all(PLAIN_NAME.fullmatch(text) for text in texts)
