"""One pair's features from its files to arrays, checked; nothing of another pair is in them."""

from __future__ import annotations

import io
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli import diagnose
from fusecli.batch.options import Reading
from fusecli.batch.spec import FusionSpec
from fusecli.errors import FeatureFileError, ShapeError
from fusecli.features import FeatureFile, open_features
from fusecli.features.npy import open_npy
from fusecli.features.select import choose_mask, choose_tensor, read_mask, the_mask_of
from fusecli.features.stored import Span, StoredTensor
from fusecli.pairs import Pair, Place
from fusecli.report import Diagnosis
from fusecli.results import ResultTensor, asking_sides, result_tensors
from fusecli.shapes import Axes, PairShapes, match_pair, read_axes
from fusecli.tokens import NEARLY_ZERO, Seen, TokenReader, refuse_empty_images

# np.save writes headers of this length for shapes of few digits: one read takes it all.
_HEADER = 128
_LARGEST_AT_ONCE = 64 << 20  # a larger file has its header looked at before it is read
# Squared norms below which nothing is to be said of them, in float32 and in narrower types.
_UNREMARKABLE, _UNREMARKABLE_NARROW = 1e38, diagnose.BFLOAT16_COARSE**2
_KEPT_SHAPES = 4096
_KEPT_FILES = 4  # open shards of keyed tensors

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
        self._headers: dict[bytes, StoredTensor] = {}
        self._shards = OpenShards()

    def read(self, pair: Pair) -> Features:
        """Read, convert and check both sides.

        Raises:
            FuseError: why this pair cannot be fused; names the file.
        """
        o = self._spec.reading
        with ExitStack() as undo:
            image_file = self._open(pair.image, undo)
            same = pair.image.file == pair.text.file
            text_file = image_file if same else self._open(pair.text, undo)
            image = _tensor(image_file, "image", pair.image, o.image_key)
            text = _tensor(text_file, "text", pair.text, o.text_key)
            agreed = self._agree(image, text)
            axes = agreed.shapes.image, agreed.shapes.text
            two = image_file is text_file and image.key != text.key
            masks = (
                self._mask(axes[0], pair.image_mask, image_file, pair.image, o.image_mask, two),
                self._mask(axes[1], pair.text_mask, text_file, pair.text, o.text_mask, two),
            )
            raw = _raw(image), _raw(text)
        diagnoses = list(agreed.diagnoses)
        for asking in asking_sides(self._spec.direction):
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

    def _open(self, place: Place, undo: ExitStack) -> FeatureFile:
        if place.file.endswith(".npy"):
            stored = self._whole_npy(place.file)
            if stored is not None:
                return FeatureFile(place.file, {"": stored})
        return _open(place, self._shards, undo)

    def _whole_npy(self, name: str) -> StoredTensor | None:
        """A .npy file read in one go; None where the usual way is to say what is there.

        Parsing its header takes numpy longer than reading it takes the system, and most of a
        run's headers are the same few.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, ValueError):
            return None
        try:
            status = os.fstat(descriptor)
            size = status.st_size - _HEADER
            if not stat.S_ISREG(status.st_mode) or not 0 < size <= _LARGEST_AT_ONCE:
                return None
            header, numbers = bytearray(_HEADER), np.empty(size, np.uint8)
            if os.readv(descriptor, [header, numbers.data]) != status.st_size:
                return None
        except OSError:
            return None
        finally:
            os.close(descriptor)
        key = bytes(header)
        known = self._headers.get(key)
        if known is None:
            known = open_npy(io.BytesIO(key), status.st_size, name)
            if not isinstance(known.source, Span) or known.source.offset != _HEADER:
                return None
            if len(self._headers) > _KEPT_SHAPES:
                self._headers.clear()
            self._headers[key] = known
        if known.nbytes != size:
            return None
        span = known.source
        assert isinstance(span, Span)
        array: NDArray[Any] = numbers.view(span.storage)
        if span.fortran_order:
            array = array.reshape(known.shape[::-1]).T
        else:
            array = array.reshape(known.shape)
        return StoredTensor(name, None, known.shape, known.dtype, size, array)

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
        for side in asking_sides(self._spec.direction):
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
            with ExitStack() as undo:
                listed = self._open(place, undo)
                if place.key is None:
                    stored = the_mask_of(listed, axes.side)
                else:
                    stored = choose_tensor(listed, axes.side, place.key)
                mask = read_mask(_loaded(stored), axes, 1)
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
        seen = Seen()
        seen.add(norms)
        diagnoses += diagnose.zero_rows(axes.side, seen, mask is not None, stored.where)
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

    def __init__(self, reading: Reading) -> None:
        self._reading, self._shards = reading, OpenShards()

    def of(self, pair: Pair) -> PairShapes:
        """Raises:
        FuseError: the headers of a pair do not tell how it is to be read.
        """
        o = self._reading
        with ExitStack() as undo:
            image = _tensor(_open(pair.image, self._shards, undo), "image", pair.image, o.image_key)
            text = _tensor(_open(pair.text, self._shards, undo), "text", pair.text, o.text_key)
            return _shapes_of(o, image, text)


def _flat(axes: Axes) -> tuple[int, int] | None:
    return (axes.tokens, axes.width) if axes.order == tuple(range(len(axes.shape))) else None


def _shapes_of(o: Reading, image: StoredTensor, text: StoredTensor) -> PairShapes:
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


def _open(place: Place, shards: OpenShards, undo: ExitStack) -> FeatureFile:
    if place.key is not None and place.file.lower().endswith(".safetensors"):
        return shards.open(place.file, undo)
    return undo.enter_context(open_features(place.file))


def _loaded(stored: StoredTensor) -> StoredTensor:
    return StoredTensor(
        stored.file, stored.key, stored.shape, stored.dtype, stored.nbytes, _raw(stored)
    )


def _raw(stored: StoredTensor) -> NDArray[Any]:
    """All numbers as they are stored, without moving the place in a file that others read."""
    span = stored.source
    if not isinstance(span, Span) or not span.mappable or span.fortran_order:
        return stored.raw()
    data = os.pread(span.handle.fileno(), stored.nbytes, span.offset)  # type: ignore[attr-defined]
    if len(data) != stored.nbytes:
        return stored.raw()  # which says so, or reads on where a read ended early
    return np.frombuffer(data, span.storage).reshape(stored.shape)


class _Shard:
    """An open file of many tensors, closed when the last that uses it lets go."""

    def __init__(self, name: str) -> None:
        self.file = open_features(name)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.__exit__()


class OpenShards:
    """The files of many tensors that were used last, each opened once for all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[str, tuple[tuple[int, ...], _Shard]] = OrderedDict()

    def open(self, name: str, undo: ExitStack) -> FeatureFile:
        """The file, which stays open for as long as `undo` lasts.

        Raises:
            FeatureFileError: it is missing or damaged.
        """
        identity: tuple[int, ...] = ()
        try:
            status = os.stat(name)
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            pass  # opening it says why
        with self._lock:
            known = self._open.get(name)
            if known is None or known[0] != identity or not identity:
                known = identity, _Shard(name)
                self._open[name] = known
            self._open.move_to_end(name)
            while len(self._open) > _KEPT_FILES:
                self._open.popitem(last=False)
        undo.callback(_let_go, known[1])
        return known[1].file


def _let_go(shard: _Shard) -> None:
    """Its reference was what kept the file open."""


Stamp = tuple[int, int] | None


class Stamps:
    """Size and time of change of files, each looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, Stamp] = {}

    def of(self, pair: Pair) -> list[Stamp]:
        """Of the files of a pair: image, text and masks; None for one that is not there."""
        return [self._look(name) for name in files_of(pair)]

    def _look(self, name: str) -> Stamp:
        if name in self._known:
            return self._known[name]
        try:
            status = os.stat(name)
            stamp: Stamp = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):
            stamp = None
        self._known[name] = stamp
        return stamp


def files_of(pair: Pair) -> Iterable[str]:
    """The files a pair is read from, each once."""
    places = (pair.image, pair.text, pair.image_mask, pair.text_mask)
    return dict.fromkeys(place.file for place in places if place is not None)
