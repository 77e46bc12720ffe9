"""The hidden states of all layers of an encoder in one tensor, which look like those of samples."""

from __future__ import annotations

import os
import re

from fusecli.errors import ShapeError
from fusecli.features.mask_names import side_named
from fusecli.features.tensor import StoredTensor

_ALL_LAYERS = "hidden_states"
# Layers of usual encoders: DistilBERT, BERT and ViT base, large, and larger ones. Their
# `hidden_states` begin with the embeddings, which some leave out.
_LAYERS = (6, 12, 16, 18, 24, 28, 32, 36, 40, 48)
_COUNTS = frozenset(count + more for count in _LAYERS for more in (0, 1))
PLAIN_NAME = re.compile(r"[\w./\-]+", re.ASCII)  # that needs no quotes in a shell or in Python


def refuse_layers(side: str, stored: StoredTensor) -> None:
    """A tensor that is called `hidden_states` and may have an axis of layers in front.

    Args:
        side: "image" or "text"; nobody named its axes.
        stored: its features.

    Raises:
        ShapeError: it has `[L, N, T, D]`, or `[L, T, D]` with as many L as encoders have layers.
    """
    name = stored.key or os.path.splitext(os.path.basename(stored.file))[0]
    shape = stored.shape
    if not name.endswith(_ALL_LAYERS) or not 3 <= len(shape) <= 4:
        return
    if len(shape) == 3 and shape[0] not in _COUNTS:
        return
    first, second = shape[0] in _COUNTS, len(shape) == 4 and shape[1] in _COUNTS
    axis = 1 if second and not first else 0
    axes = "NTD" if side == "text" else "NPD"
    otherwise = f"; if they are {shape[0]} samples say --{side}-axes {axes}"
    if len(shape) == 4:
        otherwise = "" if side == "text" else "; feature maps say --image-axes NDHW or NHWD"
    raise ShapeError(
        f"{stored.where}: {list(shape)} looks like the hidden states of {shape[axis]} layers, "
        f"and the features are those of one: save the last with {_command(stored, axis)}"
        f"{_other_axis(shape, first == second)}{otherwise}"
    )


def _other_axis(shape: tuple[int, ...], unclear: bool) -> str:
    """Of four axes, two of which may be the layers, as the middle of a sentence."""
    if len(shape) < 4 or not unclear:
        return ""
    return f", with [:, -1] instead of [-1] if the second axis, of {shape[1]}, is the layers"


def _command(stored: StoredTensor, axis: int) -> str:
    """A command that saves the last layer beside what else is in the file.

    Args:
        stored: all layers.
        axis: of the layers, the first or the second.
    """
    last = "[-1]" if axis == 0 else "[:, -1]"
    ending = os.path.splitext(stored.file)[1].lower()
    key = stored.key or ""
    plain = PLAIN_NAME.fullmatch(stored.file + key) is not None
    file = repr(stored.file if plain else "FILE")
    if not key:
        return _python(f"import numpy as n; n.save('NEW.npy', n.load({file}){last})")
    parts = key.split(".") if ending not in (".npz", ".safetensors") else [key]
    where = "d" + "".join(f"[{part!r}]" for part in parts[:-1])
    old = parts[-1]
    nest = old[: max(old.rfind("."), old.rfind("/")) + 1]
    new = nest + "last_hidden_state"
    if side_named(old) is not None and not side_named(nest):
        new = old.removesuffix(_ALL_LAYERS) + "last_hidden_state"
    if not plain:
        old, new = "KEY", "last_hidden_state"
    change = f"{where}[{new!r}] = {where}.pop({old!r}){last}"
    if ending == ".npz":
        return _python(
            f"import numpy as n; d = dict(n.load({file})); {change}; n.savez('NEW.npz', **d)"
        )
    if ending == ".safetensors":
        return _python(
            f"from safetensors.torch import load_file, save_file; d = load_file({file}); "
            f"{change}.clone(); save_file(d, 'NEW.safetensors')"
        )
    return _python(
        f"import torch; d = torch.load({file}); {change}.clone(); torch.save(d, 'NEW.pt')"
    )


def _python(program: str) -> str:
    return f'python -c "{program}"'
