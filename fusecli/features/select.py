"""Choose the tensor of a file that holds the features, and note which others are not used."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from fusecli.errors import FeatureFileError, shortened
from fusecli.features.axes import Side
from fusecli.features.file import FeatureFile
from fusecli.features.mask_names import (
    ends_in_word,
    is_called_features,
    is_known_mask,
    nest_of,
    says_its_style,
    side_named,
)
from fusecli.features.tensor import StoredTensor

# The names encoders and their users give: first those that say which side they are, then
# those that say only that they are features.
_NAMES: dict[Side, tuple[str, ...]] = {
    "image": (
        *("image", "image_features", "image_embeds", "image_embeddings", "image_feat"),
        *("x_norm_patchtokens", "x_norm_clstoken"),  # DINOv2
    ),
    "text": (
        *("text", "text_features", "text_embeds", "text_embeddings", "text_feat"),
        *("token_embeddings", "sentence_embedding"),  # sentence-transformers
    ),
}
_EITHER = ("last_hidden_state", "hidden_states", "features", "embeddings", "embeds")
_PIXELS = ("pixel_values", "pixels")
_NO_FEATURES = ("scale", "scales", "zero_point", "zero_points", "labels", "label")


# What is stored beside features, and is not what a fusion takes.
_OTHER_THINGS = frozenset(
    (
        *("logits", "logits_per_image", "logits_per_text", "probs", "scores", "attentions"),
        *("attention_weights", "attn_weights", "cross_attentions", "labels", "label", "loss"),
        *("boxes", "bbox", "bboxes", "pred_boxes", "normalized_boxes", "exp_avg", "exp_avg_sq"),
    )
)


# The last parts of the names that torch gives to the parameters and buffers of a module.
_PARAMETERS = (
    *("weight", "bias", "in_proj_weight", "in_proj_bias"),
    *("running_mean", "running_var", "num_batches_tracked"),
)
_OF_A_WHOLE_MODEL = 10


def choose_tensor(
    file: FeatureFile, side: Side, key: str | None, allow_integers: bool = False
) -> StoredTensor:
    """Find the features of one side in a file.

    Args:
        file: the open file.
        side: "image" or "text".
        key: what `--image-key` / `--text-key` says, or None to go by the usual names.
        allow_integers: whole numbers without a scale are features too.

    Returns:
        The tensor; whole numbers with a scale beside them as the numbers they stand for.

    Raises:
        FeatureFileError: no such key, or several tensors and none (or more than one) with a
            usual name (the message lists the keys there are); the only tensor is named after the
            other side; whole numbers that nothing makes features.
    """
    stored = tensor_of(file, _chosen_key(file, side, key))
    stored.check_readable()
    if key is None and stored.key is not None and _base(stored.key) in _PIXELS:
        raise FeatureFileError(
            f"{stored.where}: {stored.key} are the pixels of pictures, which an encoder takes: "
            "give what it makes of them, its last_hidden_state, or say "
            f"--{side}-key {stored.key}"
        )
    if not stored.dtype.startswith(("int", "uint", "float8")):
        return stored
    from fusecli.features.quantized import dequantized

    real = dequantized(file, stored)
    if real is not None:
        return real
    if not stored.dtype.startswith("float8") and not allow_integers:
        raise FeatureFileError(_refused_integers(stored, side))
    return stored


def tensor_of(file: FeatureFile, key: str) -> StoredTensor:
    """The tensor of a key.

    Raises:
        FeatureFileError: there is none.
    """
    if key not in file.tensors:
        raise FeatureFileError(f"{file.where}: has no tensor {key!r}: {file.listed}")
    return file.tensors[key]


def file_and_key(named: str) -> tuple[str, str | None]:
    """The two parts of `FILE:KEY`; a name that is a file itself stands for that.

    Args:
        named: what an option says.
    """
    if os.path.lexists(named):
        return named, None
    path, colon, key = named.rpartition(":")
    return (path, key) if colon and os.path.lexists(path) else (named, None)


def notes_on_tensors(file: FeatureFile, used: Mapping[str, str]) -> list[str]:
    """The note about a file of several tensors: which were taken, and which were not.

    Args:
        file: the file.
        used: what each tensor is used as, by its key.
    """
    notes = []
    taken = []
    for key, role in used.items():
        stored = file.tensors.get(key)
        if stored is not None:
            taken.append(f"{shortened(key, 40)} {list(stored.shape)} is the {role}")
    left = [key for key in sorted(file.tensors) if key not in used]
    if len(file.tensors) > 1:
        shown = [f"{shortened(key, 40)} {_looks(file.tensors[key])}" for key in left[:12]]
        more = f" and {len(left) - 12} more" if len(left) > 12 else ""
        rest = f"; not used: {', '.join(shown)}{more}" if left else ""
        notes.append(f"{file.where}: {', '.join(taken)}{rest}")
    return notes


def _looks(stored: StoredTensor) -> str:
    """The shape of a tensor; of one that cannot be read what it is, such as "(a nested tensor)"."""
    problem = stored.source.problem
    if problem is None:
        return str(list(stored.shape))
    is_a = re.match(r"(?:is|holds) ([^,:]+?)(?: inside a PyTorch file)?[,:]", problem)
    return f"({is_a[1] if is_a else problem})"


def _refused_integers(stored: StoredTensor, side: Side) -> str:
    if _are_token_numbers(stored):
        return (
            f"{stored.where}: holds whole numbers ({stored.dtype} {list(stored.shape)}), which "
            f"are token numbers by their name and no {side} features: give the encoder's "
            "last_hidden_state"
        )
    bits = (
        "; bits of bfloat16 are saved as .safetensors with .view(torch.bfloat16)"
        if stored.dtype in ("uint16", "int16")
        else ""
    )
    scale = (
        "; for quantized features store beside them their scale, as scale, and their zero point, "
        "as zero_point (real = (stored - zero_point) * scale)"
        if stored.dtype in ("int8", "uint8")
        else ""
    )
    return (
        f"{stored.where}: holds whole numbers ({stored.dtype} {list(stored.shape)}), which are "
        f"usually token numbers or pixels and no {side} features: give the encoder's "
        f"last_hidden_state{bits}{scale}; say --allow-integers if they are features"
    )


def _are_token_numbers(stored: StoredTensor) -> bool:
    """Whether a key says that whole numbers are those that a tokenizer gives.

    `tokens` of 8 or 16 bits may be features that were quantized.
    """
    name = _base(stored.key or "").lower()
    wide = stored.dtype in ("int32", "int64", "uint32", "uint64")
    return name == "ids" or name.endswith("_ids") or (wide and name == "tokens")


def _chosen_key(file: FeatureFile, side: Side, key: str | None) -> str:
    if key is not None:
        return key
    names = list(file.tensors)
    if len(names) == 1:
        return _only_key(file, side, names[0])
    of_model = sum(_base(name) in _PARAMETERS for name in names)
    mostly = 2 * of_model > len(names)
    # A whole model has a few others too, such as CLIP's positional_embedding.
    if names and (of_model == len(names) or (mostly and of_model >= _OF_A_WHOLE_MODEL)):
        raise FeatureFileError(_refused_parameters(file, side))
    left = [
        name
        for name in names
        if not is_known_mask(name)
        and _side_of(name) in (side, None)
        and _side_of_nest(name) in (side, None)
    ]
    own = [name for name in left if _side_of(name) == side]
    theirs = set(own)
    either = [name for name in left if _base(name) in _EITHER and name not in theirs]
    own, either = _without_layers(own), _without_layers(either)
    for several in (own, either):
        if len(several) > 1:
            tokens = _most_tokens(file, several)
            if tokens is not None:
                return tokens
            raise FeatureFileError(
                f"{file.where}: {' and '.join(several)} could both be the {side}: "
                f"say --{side}-key {several[0]} or --{side}-key {several[1]}"
            )
        if several:
            break
    if own:
        both = any(_side_of(name) not in (side, None) for name in names)
        better = None if both or not either else _most_tokens(file, [*own, *either])
        return better or own[0]
    if either:
        return either[0]
    left = [name for name in left if not _base(name).endswith(_NO_FEATURES)]
    left = [name for name in left if file.tensors[name].source.problem is None] or left
    inside = [name for name in left if _side_of_nest(name) == side]
    for only in (left, inside):  # the second: image/x beside text/x
        if len(only) == 1 and not (mostly and _base(only[0]) in _PARAMETERS):
            return only[0]
    if mostly:
        raise FeatureFileError(_refused_parameters(file, side))
    raise FeatureFileError(
        f"{file.where}: none of its tensors is known as {side} features, "
        f"say --{side}-key{_of_a_list(file, side)}: {file.listed}"
    )


def _refused_parameters(file: FeatureFile, side: Side) -> str:
    return (
        f"{file.where}: its tensors look like the parameters of a model: give the {side} features "
        f"that the model makes, or say --{side}-key if one of them is features: {file.listed}"
    )


def _only_key(file: FeatureFile, side: Side, name: str) -> str:
    """The key of the only tensor of a file.

    Raises:
        FeatureFileError: by its name it is the other side, or no features.
    """
    other = _NAMES["text" if side == "image" else "image"]
    if _base(name) in other[1:]:
        raise FeatureFileError(
            f"{file.where}: its only tensor is called {name}, and it is given as the {side}: give "
            f"the two files in the order IMAGE TEXT, or say --{side}-key {name}"
        )
    if _base(name).lower() in _OTHER_THINGS or says_its_style(name):
        raise FeatureFileError(
            f"{file.where}: its only tensor is called {name}, which are no features: give the "
            f"encoder's last_hidden_state, or say --{side}-key {name} if they are"
        )
    return name


def _of_a_list(file: FeatureFile, side: Side) -> str:
    """What to do about a list of tensors, the middle of a sentence; "" where there is none."""
    from fusecli.features.lists import remedy_for_list

    return remedy_for_list(file, side)


def is_usual_name(key: str) -> bool:
    """Whether a tensor of this name is features, a mask or labels, and not an id of a pair."""
    if not ends_in_word(key):
        return False
    base = _base(key)
    known = base in _EITHER or base in _NAMES["image"] or base in _NAMES["text"]
    return known or is_known_mask(key) or is_called_features(key) or base in _NO_FEATURES


def _side_of(key: str) -> Side | None:
    """Whose features a name of several says that they are; None where it does not say it."""
    base = _base(key)
    for side, names in _NAMES.items():
        if base in names:
            return side
    if not is_called_features(key):
        return None
    return side_named(base) or side_named(key)  # object_labels.image_features are the image


def _side_of_nest(key: str) -> Side | None:
    """The side that what stands before a key's last part says; None where that part says one."""
    base = _base(key)
    says_a_side = any(base in names for names in _NAMES.values()) or side_named(base) is not None
    return None if says_a_side else side_named(nest_of(key))


def _most_tokens(file: FeatureFile, names: list[str]) -> str | None:
    """The one tensor that has tokens where the others are one vector a sample, if there is one.

    A pooled vector `[1, 48]` or `[N, 48]` beside tokens `[1, 50, 48]` or `[N, 50, 48]`.
    """
    most = max(names, key=lambda name: len(file.tensors[name].shape))
    shape = file.tensors[most].shape
    for name in names:
        pooled = file.tensors[name].shape
        if name == most:
            continue
        fewer = len(pooled) < len(shape) and pooled[:-1] in ((), (1,), shape[:-2])
        single = len(pooled) == len(shape) == 2 and pooled[0] == 1 < shape[0]
        if not (fewer or single):
            return None
    return most


def _without_layers(names: list[str]) -> list[str]:
    """Without what an encoder gives of all its layers, where its last layer is there too.

    `text_hidden_states` goes with `text_last_hidden_state`, and with a `last_hidden_state` in the
    same nest if that is named after the same side. Beside a `last_hidden_state` of no side,
    `image_hidden_states` is the image of a model of both (BLIP, Idefics, LLaVA).
    """
    lasts = {owner for name in names for is_last, owner in [_layers_of(name)] if is_last}
    kept = []
    for name in names:
        is_last, owner = _layers_of(name)
        nest = nest_of(name)
        own_nest = nest if side_named(nest) == _side_of(name) is not None else owner
        if is_last is not False or not lasts.intersection((owner, own_nest)):
            kept.append(name)
    return kept


def _layers_of(name: str) -> tuple[bool | None, str]:
    """Whether a name is that of the last layer or of all, and whose; None where it is neither."""
    found = re.fullmatch(r"(.*?)(last_)?hidden_states?", name)
    if found is None:
        return None, ""
    return found[2] is not None or not name.endswith("s"), found[1]


def _base(key: str) -> str:
    """The last part of a key that leads through nested dicts, `text.feats` or `text/feats`."""
    return key[max(key.rfind("."), key.rfind("/")) + 1 :]
