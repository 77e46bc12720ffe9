"""What is in a feature or weights file: from its header, and on request from its numbers."""

from __future__ import annotations

import contextlib
import math
import os

import numpy as np

from fusecli.errors import FeatureFileError, FuseError
from fusecli.features.axes import Side, read_axes
from fusecli.features.file import FeatureFile, open_features
from fusecli.features.formats.table import READABLE_ENDINGS
from fusecli.features.mask_names import is_known_mask
from fusecli.features.select import is_usual_name
from fusecli.features.tensor import StoredTensor
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.stored_module import module_of
from fusecli.fusion.weights_file import weights_in, weights_path
from fusecli.report.inspect_parts import (
    InspectedFile,
    InspectedFolder,
    InspectedIds,
    InspectedTensor,
    InspectedWeights,
    TensorStats,
)

_CHUNK_BYTES = 16 << 20
_FIRST_FILES = 3  # of a folder, that are described
_FEWEST_IDS = 3  # tensors of one kind that are taken for a file by pair id


def inspect_file(name: str, stats: bool = False, most: int | None = None) -> InspectedFile:
    """Describe a file as plain data.

    Args:
        name: the path, the folder of a training run, or "-" for .npy on stdin.
        stats: also read all numbers, in chunks, for NaN, infinities, zero rows and norms.
        most: tensors that are described; None for all of them. A file may hold a million.

    Returns:
        `file`, `bytes`, `weights` (a fusion's config with the keys of tensors that are no part of
        it as `unused`, or None), `by_id` (where its keys are ids of pairs) and `tensors`, each
        with `key`, `shape`, `dtype`, `bytes`, `as_image`, `as_text` (the axes it would be read
        as, or None), `problem` (why it would not be read, or None) and, if asked, `stats`.

    Raises:
        FeatureFileError: the file is missing or damaged.
    """
    with open_features(weights_path(name)) as file:
        weights = _weights(file)
        tensors = [
            _describe(key, file.tensors[key], stats, weights is not None)
            for key in sorted(file.tensors)[:most]
        ]
        by_id = None if weights is not None else _by_id(file)
        left_out = len(file.tensors) - len(tensors)
    return InspectedFile(
        file=file.name,
        bytes=file.size,
        weights=weights,
        by_id=by_id,
        tensors=tensors,
        left_out=left_out,
    )


def inspect_folder(name: str, stats: bool = False, most: int | None = None) -> InspectedFolder:
    """Describe a folder: how many feature files it holds, and what is in the first of them.

    Args:
        name: the path.
        stats, most: as in `inspect_file`, of the first files.

    Raises:
        FeatureFileError: it cannot be listed.
    """
    counts: dict[str, int] = {}
    paths: list[str] = []
    folders = others = size = 0
    for folder, inner, names in os.walk(name, onerror=_refuse_listing):
        inner[:] = sorted(each for each in inner if not each.startswith("."))
        folders += 1
        for each in sorted(names):
            ending = os.path.splitext(each)[1].lower()
            if each.startswith("."):
                continue
            if ending not in READABLE_ENDINGS:
                others += 1
                continue
            counts[ending] = counts.get(ending, 0) + 1
            path = os.path.join(folder, each)
            with contextlib.suppress(OSError):  # removed since, or a link to nothing
                size += os.stat(path).st_size
            if len(paths) < _FIRST_FILES:
                paths.append(path)
    first, problems = [], []
    for path in paths:
        try:
            first.append(inspect_file(path, stats, most))
        except FuseError as error:
            problems.append(str(error))
    return InspectedFolder(
        folder=name,
        folders=folders,
        files=dict(sorted(counts.items())),
        other_files=others,
        bytes=size,
        first=first,
        problems=problems,
    )


def _refuse_listing(error: OSError) -> None:
    raise FeatureFileError(f"{error.filename}: cannot be listed: {error.strerror}") from None


def _by_id(file: FeatureFile) -> InspectedIds | None:
    """What the keys are as ids: `ID.image` and `ID.text`, or one tensor an id."""
    keys = [key for key in file.tensors if not key.endswith((".image_mask", ".text_mask"))]
    sides = [
        {key.removesuffix(end) for key in keys if key.endswith(end) and key != end}
        for end in (".image", ".text")
    ]
    if sides[0] and sides[1]:
        return InspectedIds(ids=len(sides[0] | sides[1]), pairs=len(sides[0] & sides[1]))
    shapes = {(len(shape), shape[-1:]) for shape in map(file.shape_of, keys)}
    if len(keys) < _FEWEST_IDS or len(shapes) > 1 or any(map(is_usual_name, keys)):
        return None
    return InspectedIds(ids=len(keys), pairs=None)


def _describe(key: str, stored: StoredTensor, stats: bool, of_module: bool) -> InspectedTensor:
    problem = stored.source.problem
    no_features = bool(problem) or of_module or is_known_mask(key)
    return InspectedTensor(
        key=key or None,
        shape=list(stored.shape),
        dtype=stored.dtype,
        bytes=stored.nbytes,
        as_image=None if no_features else _letters("image", stored),
        as_text=None if no_features else _letters("text", stored),
        problem=problem,
        stats=tensor_stats(stored) if stats and not problem else None,
    )


def tensor_stats(stored: StoredTensor) -> TensorStats:
    """Count what matters in a tensor's rows (vectors along its last axis), in chunks.

    Returns:
        `rows`, `nan`, `infinite` (numbers), `zero_rows`, `mean_norm`, `largest_norm` (over
        rows without NaN and infinity; None if there are none).
    """
    width = stored.shape[-1] if stored.shape else 1
    flat = stored.as_rows()
    counts = {"rows": math.prod(stored.shape[:-1]), "nan": 0, "infinite": 0, "zero_rows": 0}
    norm_sum, finite_rows, largest = 0.0, 0, 0.0
    length = (flat.shape[0] if flat.shape else 1) if math.prod(flat.shape) else 0
    step = max(1, _CHUNK_BYTES // max(1, 4 * math.prod(flat.shape[1:])))
    for start in range(0, length, step):
        values = flat.part(0, start, min(start + step, length)) if flat.shape else flat.read()
        rows = values.reshape(-1, width) if width else values.reshape(0, 1)
        counts["nan"] += int(np.isnan(rows).sum())
        counts["infinite"] += int(np.isinf(rows).sum())
        finite = np.isfinite(rows).all(axis=1)
        norms = np.sqrt(np.einsum("rd,rd->r", rows, rows, dtype=np.float64))[finite]
        counts["zero_rows"] += int((norms == 0).sum())
        norm_sum += float(norms.sum())
        finite_rows += norms.size
        largest = max(largest, float(norms.max(initial=0.0)))
    known = finite_rows > 0
    return TensorStats(
        **counts,
        mean_norm=norm_sum / finite_rows if known else None,
        largest_norm=largest if known else None,
    )


def _letters(side: Side, stored: StoredTensor) -> str | None:
    try:
        return read_axes(side, stored.shape, None, stored.where).letters
    except FuseError:
        return None


def _weights(file: FeatureFile) -> InspectedWeights | None:
    """A fusion's config if the file holds one, with where it comes from."""
    try:
        weights = weights_in(file)
        found = module_of(weights, ModuleOptions())
    except FuseError:
        return None
    config = found.config
    known = config.has_heads and not found.heads_assumed
    return InspectedWeights(
        config=config,
        num_heads=config.num_heads if known else None,
        trained=None if weights.seed is None else False,
        initial_seed=weights.seed,
        unused=list(found.unused),
    )
