"""One pair's features from its files to arrays, checked; nothing of another pair is in them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.batch.options import ReadOptions
from fusecli.batch.run_spec import FusionSpec
from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features.axes import Axes, PairShapes, match_pair, read_axes
from fusecli.features.file import FeatureFile
from fusecli.features.file_cache import Opener, loaded, raw_numbers
from fusecli.features.select import choose_mask, choose_tensor, read_mask, the_mask_of
from fusecli.features.tensor import StoredTensor
from fusecli.features.token_reader import (
    NEARLY_ZERO,
    RowStatistics,
    TokenReader,
    refuse_empty_images,
)
from fusecli.fusion.results import ResultTensor, query_sides, result_tensors
from fusecli.pairs.open import Pair, Place
from fusecli.report import diagnoses as diagnose
from fusecli.report.report import Diagnosis

# Squared norms below which nothing is to be said of them, in float32 and in narrower types.
_UNREMARKABLE, _UNREMARKABLE_NARROW = 1e38, diagnose.BFLOAT16_COARSE**2
_KEPT_SHAPES = 4096

Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Features:
    """What one pair is fused from.

    Attributes:
        image: `[P, Di]`; masked tokens are zero.
        text: `[T, Dt]`; masked tokens are zero.
        image_mask: bool `[P]`, or None if all are real.
        text_mask: bool `[T]`, or None if all are real.
        tensors: of the result, with the shapes that the axes want.
        diagnoses: what speaks against the result so far.
    """

    image: NDArray[np.float32]
    text: NDArray[np.float32]
    image_mask: Mask | None
    text_mask: Mask | None
    tensors: list[ResultTensor]
    diagnoses: list[Diagnosis]

    @property
    def nbytes(self) -> int:
        """Of the numbers."""
        return self.image.nbytes + self.text.nbytes


@dataclass(frozen=True, slots=True)
class _Agreed:
    """What follows from the shapes of both sides alone.

    Attributes:
        shapes: what the axes mean.
        flat: tokens and width of each side, where its axes are in this order already.
        tensors: of the result.
        diagnoses: what speaks against it.
    """

    shapes: PairShapes
    flat: tuple[tuple[int, int] | None, tuple[int, int] | None]
    tensors: list[ResultTensor]
    diagnoses: list[Diagnosis]


class PairReader:
    """Reads pairs; several threads may.

    Args:
        spec: what they are read for.
    """

    def __init__(self, spec: FusionSpec) -> None:
        self._spec = spec
        narrow = spec.dtype != "float32"
        self._unremarkable = _UNREMARKABLE_NARROW if narrow else _UNREMARKABLE
        self._agreed: dict[tuple[tuple[int, ...], tuple[int, ...]], _Agreed] = {}
        self._files = Opener()

    def read(self, pair: Pair) -> Features:
        """Read, convert and check both sides.

        Raises:
            FuseError: why this pair cannot be fused; names the file.
        """
        o = self._spec.reading
        with ExitStack() as stack:
            image_file = self._files.open(pair.image, stack)
            same = pair.image.file == pair.text.file
            text_file = image_file if same else self._files.open(pair.text, stack)
            image = _tensor(image_file, "image", pair.image, o.image_key)
            text = _tensor(text_file, "text", pair.text, o.text_key)
            agreed = self._agree(image, text)
            axes = agreed.shapes.image, agreed.shapes.text
            two = image_file is text_file and image.key != text.key
            masks = (
                self._mask(axes[0], pair.image_mask, image_file, pair.image, o.image_mask, two),
                self._mask(axes[1], pair.text_mask, text_file, pair.text, o.text_mask, two),
            )
            raw = raw_numbers(image), raw_numbers(text)
        diagnoses = [*agreed.diagnoses, *diagnose.empty_image(masks[0])]
        for asking in query_sides(self._spec.direction):
            asked, mask = (image, masks[0]) if asking == "text" else (text, masks[1])
            if mask is not None:
                self._look_at_asked(asked, mask, asking, agreed.shapes, diagnoses)
        image_tokens = self._tokens(image, axes[0], agreed.flat[0], masks[0], raw[0], diagnoses)
        text_tokens = self._tokens(text, axes[1], agreed.flat[1], masks[1], raw[1], diagnoses)
        image_mask, text_mask = (None if mask is None else mask[0] for mask in masks)
        return Features(image_tokens, text_tokens, image_mask, text_mask, agreed.tensors, diagnoses)

    def _look_at_asked(
        self,
        asked: StoredTensor,
        mask: Mask,
        asking: str,
        shapes: PairShapes,
        diagnoses: list[Diagnosis],
    ) -> None:
        """Refuse, or speak against, a mask that leaves no token or only one to attend to."""
        if not self._spec.reading.allow_empty_image:
            refuse_empty_images(mask, asked.where, "image" if asking == "text" else "text")
        found = diagnose.one_image_token(shapes, self._spec.config, mask, asking)
        known = {diagnosis.code for diagnosis in diagnoses}
        diagnoses += [diagnosis for diagnosis in found if diagnosis.code not in known]

    def _agree(self, image: StoredTensor, text: StoredTensor) -> _Agreed:
        key = image.shape, text.shape
        known = self._agreed.get(key)
        if known is not None:
            return known
        shapes = _shapes_of(self._spec.reading, image, text)
        self._check_widths(shapes, image.where, text.where)
        found = [
            *diagnose.transposed(shapes.image, shapes.text.width),
            *diagnose.transposed(shapes.text, shapes.image.width),
        ]
        for side in query_sides(self._spec.direction):
            found += diagnose.one_image_token(shapes, self._spec.config, None, side)
        agreed = _Agreed(
            shapes,
            (_flat(shapes.image), _flat(shapes.text)),
            result_tensors(shapes, self._spec.config, self._spec.direction, self._spec.pool),
            found,
        )
        if len(self._agreed) > _KEPT_SHAPES:
            self._agreed.clear()
        self._agreed[key] = agreed
        return agreed

    def _check_widths(self, shapes: PairShapes, image: str, text: str) -> None:
        found = shapes.image.width, shapes.text.width
        wanted = self._spec.config.image_dim, self._spec.config.text_dim
        if found != wanted:
            raise ShapeError(
                f"image {image} {list(shapes.image.shape)} is {found[0]} wide and text {text} "
                f"{list(shapes.text.shape)} is {found[1]} wide, but {self._spec.module} takes "
                f"{wanted[0]} and {wanted[1]}: pairs of other widths need a run of their own"
            )

    def _mask(
        self,
        axes: Axes,
        place: Place | None,
        file: FeatureFile,
        features: Place,
        wanted: bool,
        two_tensors: bool,
    ) -> Mask | None:
        if not wanted:
            return None
        if place is not None:
            with ExitStack() as stack:
                listed = self._files.open(place, stack)
                if place.key is None:
                    stored = the_mask_of(listed, axes.side)
                else:
                    stored = choose_tensor(listed, axes.side, place.key)
                mask = read_mask(loaded(stored), axes, 1)
        elif features.key is not None or len(file.tensors) == 1:
            return None
        else:
            beside = choose_mask(file, axes.side, two_tensors)
            if beside is None:
                return None
            stored, mask = beside, read_mask(beside, axes, 1)
        if axes.side == "text" and not mask.any():
            raise FeatureFileError(
                f"{stored.where}: masks every text token: there is nothing to fuse"
            )
        return None if mask.all() else mask

    def _tokens(
        self,
        stored: StoredTensor,
        axes: Axes,
        flat: tuple[int, int] | None,
        mask: Mask | None,
        raw: NDArray[Any],
        diagnoses: list[Diagnosis],
    ) -> NDArray[np.float32]:
        """One side as `[tokens, width]`; adds what is to be said of it."""
        if mask is None and flat is not None and stored.dtype == "float32":
            plain = self._plain_tokens(flat, raw)
            if plain is not None:
                return plain
        reader = TokenReader(stored, axes, mask, self._spec.reading.allow_nonfinite)
        tokens, norms = reader.tokens(raw, 0, 1)
        seen = RowStatistics()
        seen.add(norms)
        remedy = (
            f"store {axes.side}_mask beside the features, or list it in that column of a manifest"
        )
        diagnoses += diagnose.zero_rows(axes.side, seen, mask is not None, stored.where, remedy)
        diagnoses += diagnose.too_large_for(self._spec.dtype, axes.side, seen)
        single: NDArray[np.float32] = tokens[0]
        return single

    def _plain_tokens(self, flat: tuple[int, int], raw: NDArray[Any]) -> NDArray[np.float32] | None:
        """The same where nothing is to be converted, moved or said, in a third of the time."""
        if not raw.flags.c_contiguous:
            return None
        tokens: NDArray[np.float32] = raw.reshape(flat)
        squares = np.einsum("td,td->t", tokens, tokens)
        largest = float(squares.max())
        # Not true either where one is NaN.
        if largest < self._unremarkable and float(squares.min()) > NEARLY_ZERO**2 * largest:
            return tokens
        return None


class PairSizes:
    """Looks at headers, to decide on a module before there is one."""

    def __init__(self, reading: ReadOptions) -> None:
        self._reading, self._files = reading, Opener()

    def of(self, pair: Pair) -> PairShapes:
        """Raises:
        FuseError: the headers of a pair do not tell how it is to be read.
        """
        o = self._reading
        with ExitStack() as stack:
            image = _tensor(self._files.open(pair.image, stack), "image", pair.image, o.image_key)
            text = _tensor(self._files.open(pair.text, stack), "text", pair.text, o.text_key)
            return _shapes_of(o, image, text)


def _flat(axes: Axes) -> tuple[int, int] | None:
    return (axes.tokens, axes.width) if axes.order == tuple(range(len(axes.shape))) else None


def _shapes_of(o: ReadOptions, image: StoredTensor, text: StoredTensor) -> PairShapes:
    shapes = match_pair(
        read_axes("image", image.shape, o.image_axes, image.where),
        read_axes("text", text.shape, o.text_axes, text.where),
        image.where,
        text.where,
    )
    if shapes.N != 1:
        raise ShapeError(
            f"{text.where}: {list(text.shape)} holds {shapes.N} samples, expected the tokens "
            "of one: `fusecli fuse` takes stacks"
        )
    return shapes


def _tensor(file: FeatureFile, side: str, place: Place, named: str | None) -> StoredTensor:
    return choose_tensor(file, side, named if place.key is None else place.key)


FileStamp = tuple[int, int] | None


class FileStamps:
    """Size and time of change of files, each looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, FileStamp] = {}

    def of(self, pair: Pair) -> list[FileStamp]:
        """Of the files of a pair: image, text and masks; None for one that is not there."""
        return [self._look(name) for name in files_of(pair)]

    def _look(self, name: str) -> FileStamp:
        if name in self._known:
            return self._known[name]
        try:
            status = os.stat(name)
            stamp: FileStamp = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            stamp = None
        self._known[name] = stamp
        return stamp


def files_of(pair: Pair) -> Iterable[str]:
    """The files a pair is read from, each once."""
    places = (pair.image, pair.text, pair.image_mask, pair.text_mask)
    return dict.fromkeys(place.file for place in places if place is not None)
