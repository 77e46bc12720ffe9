"""State dicts of `nn.MultiheadAttention` alone: attention without the projections in front.

That is the fusion whose `text_proj` and `image_proj` are the identity, if both sides are as wide
as the attention.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusecli.errors import WeightsError
from fusecli.features.file import FeatureFile
from fusecli.features.tensor import InMemory, StoredTensor

_RENAMED = (
    *("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"),
    *("bias_k", "bias_v"),  # under their new name they are refused
)
_OWN_WIDTHS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_ANCHOR = "out_proj.weight"
_ALL = frozenset(_RENAMED + _OWN_WIDTHS)


def bare_prefix(file: FeatureFile, wanted: str | None) -> str | None:
    """The prefix of the parameters of an attention that is all that a file holds.

    Args:
        file: open.
        wanted: the prefix that was asked for; then the file may hold other tensors as well.

    Returns:
        None if there is none, or several.
    """
    fits = bare_prefixes(file)
    if wanted is not None:
        fits = [prefix for prefix in fits if prefix.removesuffix(".") == wanted.removesuffix(".")]
    if len(fits) != 1:
        return None
    alone = wanted is not None or all(key.startswith(fits[0]) for key in file.tensors)
    return fits[0] if alone else None


def bare_prefixes(file: FeatureFile) -> list[str]:
    """The prefixes under which a file holds an `nn.MultiheadAttention`, and nothing else.

    Other parameters there are those of a module that does more, such as a transformer's layer.
    """
    keys = file.tensors
    found = {key.removesuffix(_ANCHOR) for key in keys if key.endswith(_ANCHOR)}
    found = {prefix for prefix in found if not prefix or prefix.endswith(".")}
    more: set[str] = set()
    for key in keys if found else ():  # once for all prefixes: a file may hold very many layers
        for at in (0, *(dot + 1 for dot, mark in enumerate(key) if mark == ".")):
            if key[:at] in found and key[at:] not in _ALL:
                more.add(key[:at])
    return sorted(
        prefix
        for prefix in found - more
        if prefix + "in_proj_weight" in keys or prefix + _OWN_WIDTHS[0] in keys
    )


def with_identity(file: FeatureFile, prefix: str) -> FeatureFile:
    """The same file, with the parameters under the names of a fusion, and projections.

    Args:
        file: open.
        prefix: of the parameters of the attention.

    Raises:
        WeightsError: key and value are of another width than the query, or the shapes are not
            those of an attention.
    """
    widths = [
        f"{name} {list(file.shape_of(prefix + name))}"
        for name in _OWN_WIDTHS
        if prefix + name in file.tensors
    ]
    if widths:
        raise WeightsError(
            f"{file.where}: is an nn.MultiheadAttention alone, with {', '.join(widths)}: fusecli "
            "takes one without text_proj and image_proj only if its three matrices are as wide as "
            "its embed_dim (in_proj_weight): train a module that has these two linear layers in "
            "front (ImageTextFusion)"
        )
    D = _width(file, prefix)
    identity = dict.fromkeys(("text_proj.weight", "image_proj.weight"), np.eye(D, dtype=np.float32))
    zeros = {f"{side}_proj.bias": np.zeros(D, np.float32) for side in ("text", "image")}
    renamed = {prefix + name: f"{prefix}attention.{name}" for name in _RENAMED}
    tensors = {renamed.get(key, key): stored for key, stored in file.tensors.items()}
    for name, array in (identity | zeros).items():
        tensors[prefix + name] = StoredTensor(
            file.name, prefix + name, array.shape, "float32", array.nbytes, InMemory(array)
        )
    return replace(file, tensors=tensors)


def _width(file: FeatureFile, prefix: str) -> int:
    """D of an attention.

    An identity is made of it, so that it has to be the one that fills the matrices in the file.

    Raises:
        WeightsError: the matrices are not of one width.
        FeatureFileError: the file holds less than it promises.
    """
    in_, out = (file.shape_of(prefix + name) for name in ("in_proj_weight", _ANCHOR))
    if len(out) != 2 or in_ != (3 * out[0], out[0]) or out[0] != out[1]:
        raise WeightsError(
            f"{file.where}: {prefix}in_proj_weight has shape {list(in_)} and {prefix}{_ANCHOR} "
            f"{list(out)}, expected [3 * D, D] and [D, D], as an nn.MultiheadAttention has them: "
            "give the weights as torch stores them"
        )
    file.tensors[prefix + "in_proj_weight"].check_readable()  # a file may promise any shape
    return out[0]


def bare_note(file: str, D: int) -> str:
    """What was assumed.

    Args:
        file: the weights file.
        D: the width of the attention.
    """
    return (
        f"{file}: is an nn.MultiheadAttention alone: text_proj and image_proj are taken as the "
        f"identity, [{D}, {D}]"
    )
