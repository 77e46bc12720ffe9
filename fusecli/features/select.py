"""Which tensor of a file is meant, and which is its mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusecli.errors import FeatureFileError, ShapeError, shortened
from fusecli.features.axes import Axes, mask_shapes
from fusecli.features.file import FeatureFile
from fusecli.features.tensor import StoredTensor

# The names encoders and their users give: first those that say which side they are, then
# those that say only that they are features.
_NAMES = {
    "image": ("image", "image_features", "image_embeds", "image_embeddings", "image_feat"),
    "text": ("text", "text_features", "text_embeds", "text_embeddings", "text_feat"),
}
_EITHER = ("last_hidden_state", "hidden_states", "features", "embeddings", "embeds")
_MASKS = {"image": ("image_mask", "image_attention_mask"), "text": ("text_mask",)}
_EITHER_MASK = "attention_mask"
_ALL_MASKS = (*_MASKS["image"], *_MASKS["text"], _EITHER_MASK)


def choose_tensor(file: FeatureFile, side: str, key: str | None) -> StoredTensor:
    """Find the features of one side in a file.

    Args:
        file: the open file.
        side: "image" or "text".
        key: what `--image-key` / `--text-key` says, or None to go by the usual names.

    Raises:
        FeatureFileError: no such key, or several tensors and none (or more than one) with a
            usual name; the message lists the keys there are.
    """
    chosen = file.tensors.get(_chosen_key(file, side, key))
    if chosen is None:
        raise FeatureFileError(f"{file.where}: has no tensor {key!r}: {_keys(file)}")
    chosen.check_readable()
    return chosen


def choose_mask(file: FeatureFile, side: str, text_only: bool) -> StoredTensor | None:
    """Find a mask stored beside the features of one side; None where there is none.

    Args:
        file: the file of the features.
        side: "image" or "text".
        text_only: both sides' features are in this file, as two tensors, and a bare
            `attention_mask` is the tokenizer's and so the text's.
    """
    names = [name for name in _MASKS[side] if name in file.tensors]
    if _EITHER_MASK in file.tensors and not (text_only and side == "image"):
        names.append(_EITHER_MASK)
    return file.tensors[names[0]] if names else None


def the_mask_of(file: FeatureFile, side: str) -> StoredTensor:
    """The mask in a file given as `--image-mask` / `--text-mask`.

    Raises:
        FeatureFileError: several tensors and none with a usual name.
    """
    if len(file.tensors) == 1:
        return next(iter(file.tensors.values()))
    for name in (*_MASKS[side], _EITHER_MASK, "mask"):
        if name in file.tensors:
            return file.tensors[name]
    raise FeatureFileError(f"{file.where}: none of its tensors is called a mask: {_keys(file)}")


def read_mask(stored: StoredTensor, axes: Axes, N: int) -> NDArray[np.bool_]:
    """Read a mask and bring it to one row of tokens a sample.

    Args:
        stored: the mask; 1 or true is a real token, 0 is padding.
        axes: of the features it belongs to.
        N: samples of the job.

    Returns:
        bool `[N, tokens]`, or `[1, tokens]` where one row holds for all samples.

    Raises:
        ShapeError: its shape is not that of the tokens.
        FeatureFileError: it holds something other than 0 and 1.
    """
    allowed = mask_shapes(axes, N)
    if stored.shape not in allowed:
        wanted = " or ".join(str(list(shape)) for shape in allowed)
        raise ShapeError(
            f"{stored.where}: the {axes.side} mask has shape {list(stored.shape)}, "
            f"expected {wanted} for features {list(axes.shape)} (read as {axes.letters}); "
            f"--{axes.side}-mask none ignores a stored mask"
        )
    values = stored.read()
    other = np.argwhere((values != 0) & (values != 1))
    if len(other):
        place = other[0].tolist()
        raise FeatureFileError(
            f"{stored.where}: a mask holds 1 for a real token and 0 for padding, found "
            f"{values[tuple(place)]:g} at {place}"
        )
    return values.reshape(-1, axes.tokens).astype(bool)


def _chosen_key(file: FeatureFile, side: str, key: str | None) -> str:
    if key is not None:
        return key
    names = list(file.tensors)
    if len(names) == 1:
        return names[0]
    other = _NAMES["text" if side == "image" else "image"]
    left = [name for name in names if name not in _ALL_MASKS and name not in other]
    for usual in (_NAMES[side], _EITHER):
        found = [name for name in left if name in usual]
        if len(found) == 1:
            return found[0]
        if found:
            raise FeatureFileError(
                f"{file.where}: {' and '.join(found)} could both be the {side}: "
                f"say --{side}-key {found[0]} or --{side}-key {found[1]}"
            )
    if len(left) == 1:
        return left[0]
    raise FeatureFileError(
        f"{file.where}: none of its tensors is known as {side} features, "
        f"say --{side}-key: {_keys(file)}"
    )


def _keys(file: FeatureFile) -> str:
    if list(file.tensors) == [""]:
        return "it holds one tensor, without a name"
    shown = [
        f"{shortened(key, 40)} {list(tensor.shape)}" for key, tensor in sorted(file.tensors.items())
    ]
    more = f", and {len(shown) - 12} more" if len(shown) > 12 else ""
    return "there are " + ", ".join(shown[:12]) + more
