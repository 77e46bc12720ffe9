"""Quantized features: whole numbers with a scale, and maybe a zero point, beside them in the
file."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError
from fusecli.features.dtypes import to_float32
from fusecli.features.file import FeatureFile
from fusecli.features.mask_names import base_name, side_named
from fusecli.features.tensor import Buffer, StoredTensor
from fusecli.records import record

_SCALES = ("scale", "scales")
_ZERO_POINTS = ("zero_point", "zero_points", "zero", "zp")
_FEW = 64  # tensors of a file of one pair; one by pair id holds scales of other pairs
_ITEM_BYTES = {"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4}


@record
class Dequantized:
    """(stored - zero point) * scale, as float32.

    Attributes:
        stored: the whole numbers.
        scale, zero_point: float32, of as many axes, each as long as the tensor's or 1.
        keys: where they lie, for notes.
    """

    stored: StoredTensor
    scale: NDArray[np.float32]
    zero_point: NDArray[np.float32] | None
    keys: tuple[str, ...]

    problem: None = None
    c_ordered = False

    def raw(self, shape: tuple[int, ...]) -> NDArray[Any]:
        return self._real(self.stored.raw(), (slice(None),) * len(shape))

    def raw_part(
        self, shape: tuple[int, ...], axis: int, start: int, stop: int, buffer: Buffer | None
    ) -> NDArray[Any]:
        cut = (slice(None),) * axis + (slice(start, stop),)
        return self._real(self.stored.raw_part(axis, start, stop), cut)

    def _real(self, whole: NDArray[Any], cut: tuple[slice, ...]) -> NDArray[np.float32]:
        # A copy of its own: whole numbers and float8 are never float32 already.
        values = to_float32(whole, self.stored.dtype)
        if self.zero_point is not None:
            values -= _cut(self.zero_point, cut)
        values *= _cut(self.scale, cut)
        return values


def _cut(numbers: NDArray[np.float32], cut: tuple[slice, ...]) -> NDArray[np.float32]:
    """The part that belongs to a slice of the tensor; axes of length 1 hold for all of it."""
    return numbers[
        tuple(part if numbers.shape[axis] > 1 else slice(None) for axis, part in enumerate(cut))
    ]


def dequantized(file: FeatureFile, stored: StoredTensor) -> StoredTensor | None:
    """A tensor of whole numbers with its scale; None where no scale is beside it.

    Args:
        file: which holds it.
        stored: the whole numbers.

    Raises:
        FeatureFileError: a scale or zero point that does not fit, or an offset, which is
            subtracted before the scale by some and added after it by others.
    """
    if stored.key is None:
        return None
    scale = _beside(file, stored.key, _SCALES)
    if scale is None:
        if stored.dtype.startswith("float8"):
            _refuse_other_scales(file, stored)
        return None
    _refuse_packed(file, stored)
    zero = _beside(file, stored.key, _ZERO_POINTS)
    offset = _beside(file, stored.key, ("offset", "offsets", "bias", "min"))
    if offset is not None and zero is None:
        raise FeatureFileError(
            f"{offset.where}: lies beside {stored.where} and its scale, and does not say whether "
            "it is subtracted before the scale or added after it: store it as zero_point (real = "
            "(stored - zero_point) * scale), or store real numbers"
        )
    used = [each for each in (scale, zero) if each is not None]
    parts = [_aligned(each, stored) for each in used]
    source = Dequantized(
        stored, parts[0], parts[1] if zero is not None else None, tuple(str(e.key) for e in used)
    )
    nbytes = 4 * math.prod(stored.shape)
    return replace(stored, dtype="float32", nbytes=nbytes, source=source)


def note_on_scale(stored: StoredTensor) -> list[str]:
    """The note about features that were whole numbers with a scale."""
    source = stored.source
    if not isinstance(source, Dequantized):
        return []
    return [f"{stored.where}: {source.stored.dtype} dequantized with {' and '.join(source.keys)}"]


def scale_keys(stored: StoredTensor) -> tuple[str, ...]:
    """Keys of the scale and the zero point that a tensor was dequantized with."""
    return stored.source.keys if isinstance(stored.source, Dequantized) else ()


def is_scale_name(key: str) -> bool:
    """Whether a key ends as those of scales and zero points do."""
    return key.rpartition(".")[2].endswith(_SCALES + _ZERO_POINTS)


def keys_of_scales(file: FeatureFile) -> set[str]:
    """Keys of all scales and zero points that tensors of a file are dequantized with."""
    found: set[str] = set()
    for key, stored in file.tensors.items():
        if stored.dtype in _ITEM_BYTES or stored.dtype.startswith("float8"):
            scale = _beside(file, key, _SCALES)
            zero = None if scale is None else _beside(file, key, _ZERO_POINTS)
            found.update(str(part.key) for part in (scale, zero) if part is not None)
    return found


def _beside(file: FeatureFile, key: str, names: tuple[str, ...]) -> StoredTensor | None:
    first = key.split("_")[0]
    nest = "".join(key.rpartition(".")[:2])  # of a dict in a dict: `image.int_repr`, `image.scale`
    before = (f"{key}_", f"{key}.", f"{first}_", nest, "features_", "feature_", "quant_", "")
    for start in before:
        for name in names:
            if start + name in file.tensors and start + name != key:
                return file.tensors[start + name]
    return None


def _refuse_packed(file: FeatureFile, stored: StoredTensor) -> None:
    """Raises:
    FeatureFileError: a number beside the whole numbers says that a byte holds several of them.
    """
    bits = _beside(file, stored.key or "", ("bits", "nbits", "n_bits", "num_bits", "bit_width"))
    if bits is not None and bits.source.problem is None:
        values = bits.read().reshape(-1)
        if values.size != 1 or values[0] != 8 * _ITEM_BYTES.get(stored.dtype, 1):
            number = f"{values[0]:g}" if values.size == 1 else "several"
            raise FeatureFileError(
                f"{bits.where}: says that {stored.where} ({stored.dtype}) is packed, with numbers "
                f"of {number} bits: unpack it, or store real numbers"
            )


def _refuse_other_scales(file: FeatureFile, stored: StoredTensor) -> None:
    """Raises:
    FeatureFileError: a scale whose name does not say whether it multiplies or divides.
    """
    unclear = ("scale_inv", "inv_scale", "scales_inv", "amax", "absmax")
    scale = _beside(file, stored.key or "", unclear)
    if scale is None and len(file.tensors) <= _FEW:  # weight_scale, dequant_scale
        named = (key for key in file.tensors if key.lower().endswith(_SCALES))
        scale = next((file.tensors[key] for key in named if _may_scale(file, key, stored)), None)
    if scale is not None:
        raise FeatureFileError(
            f"{scale.where}: lies beside {stored.where} ({stored.dtype}), and its name does not "
            "say whether it multiplies or divides these numbers: store it as scale (real = stored "
            "* scale), or store real numbers"
        )


def _may_scale(file: FeatureFile, key: str, stored: StoredTensor) -> bool:
    """Whether a tensor that is called a scale may be one of these numbers, by name and shape."""
    if base_name(key) == "logit_scale":
        return False  # CLIP's, by which similarities are multiplied
    sides = {side_named(key), side_named(stored.key or "")}
    if sides == {"image", "text"}:
        return False
    found, shape = file.shape_of(key), stored.shape
    return bool(_alignments(found, shape)) or _groups(found, shape) > 0


def _aligned(numbers: StoredTensor, stored: StoredTensor) -> NDArray[np.float32]:
    """One number, one a row, one a channel or one a sample, with axes to match the tensor.

    Raises:
        FeatureFileError: its shape is none of these, or two of them.
    """
    shape, rank = stored.shape, len(stored.shape)
    found = numbers.shape
    possible = _alignments(found, shape)
    ones = (1,) * rank
    if len(possible) != 1:
        why = (
            "could be one a row or one a channel" if possible else "fits neither rows nor channels"
        )
        groups = _groups(found, shape)
        size = shape[-1] // groups if groups else 0
        remedy = (
            f"for one a group of {size} columns store numpy.repeat(scale, {size}, axis=-1)"
            if groups
            else f"store it with as many axes, such as {[*shape[:-1], 1]} or "
            f"{[*ones[1:], shape[-1]]}"
        )
        raise FeatureFileError(
            f"{numbers.where}: {list(found)} {why} of {stored.where} {list(shape)}: {remedy}"
        )
    (aligned,) = possible
    return numbers.read().reshape(aligned)


def _alignments(found: tuple[int, ...], shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The shapes, of as many axes as a tensor's, that its scale of shape `found` may mean."""
    rank = len(shape)
    ones = (1,) * rank
    if math.prod(found) == 1:
        return {ones}
    possible = set()
    if found == shape[:-1]:
        possible.add((*shape[:-1], 1))
    if found == shape[-1:]:
        possible.add((*ones[1:], shape[-1]))
    if found == shape[:1] and rank > 1:
        possible.add((shape[0], *ones[1:]))
    if len(found) == rank and all(f in (1, s) for f, s in zip(found, shape, strict=True)):
        possible.add(found)
    return possible


def _groups(found: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many groups of columns a scale of shape `found` has a number for; 0 if it is none."""
    groups = found[-1] if found and len(found) == len(shape) and found[:-1] == shape[:-1] else 0
    return groups if groups > 0 and shape[-1] % groups == 0 else 0
