"""The hidden states of all layers of an encoder in one tensor, which look like those of samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fusecli.errors import ShapeError
from fusecli.features.axes import Axes, Side
from fusecli.features.file import FeatureFile
from fusecli.features.formats.table import TORCH_ENDINGS
from fusecli.features.mask_names import is_known_mask, side_named
from fusecli.features.python_path import Path, in_python, indexed, is_plain
from fusecli.features.tensor import StoredTensor

_ALL_LAYERS = "hidden_states"
_ONE_LAYER = "encoder_hidden_states"  # what diffusers calls the text that an image attends to
# Encoders give the embeddings and then each layer: DistilBERT 7, BERT and ViT base 13, large 25,
# and so on.
_COUNTS = frozenset((7, 13, 25, 33, 37, 41, 49))
# Where the embeddings are left out, and of a few encoders. Batches often have so many samples.
_DOUBTFUL = _COUNTS | {6, 12, 16, 17, 18, 19, 24, 28, 29, 32, 36, 40, 48}


class InputAxes(NamedTuple):
    """One side of a pair, and what its axes were taken for."""

    file: FeatureFile
    stored: StoredTensor
    axes: Axes


def refuse_layers(side: Side, file: FeatureFile, stored: StoredTensor) -> None:
    """Of four axes, which no features of this name have, one is the layers.

    Args:
        side: "image" or "text"; nobody named its axes.
        file: open.
        stored: its features.

    Raises:
        ShapeError: the tensor is called `hidden_states` and has `[L, N, T, D]` or `[N, L, T, D]`.
    """
    shape = stored.shape
    if len(shape) != 4 or not _name(stored).endswith(_ALL_LAYERS):
        return
    first, second = shape[0] in _DOUBTFUL, shape[1] in _DOUBTFUL
    axis = 1 if second and not first else 0
    samples = "" if side == "text" else "for feature maps say --image-axes NDHW or NHWD; "
    looks = f"looks like the hidden states of {shape[axis]} layers"
    if not first and not second:
        looks = "has one axis more than samples have, as the hidden states of all layers"
        joined = [shape[0] * shape[1], *shape[2:]]
        samples += f"for {shape[1]} {side}s of each of {shape[0]} samples give them as {joined}; "
    save = _save(side, file, stored, axis)
    other = _other_axis(shape, first == second) if save.startswith("save") else ""
    raise ShapeError(
        f"{stored.where}: {list(shape)} {looks}: {samples}for layers, of which the features are "
        f"one, {save}{other}"
    )


def notes_on_layers(sides: Sequence[InputAxes]) -> list[str]:
    """Of three axes of tensors called `hidden_states`, the first may be samples or layers.

    They are samples where the other side has as many, or where masks or whole numbers for as many
    different samples lie beside them.

    Args:
        sides: the image and the text.

    Returns:
        What was taken for samples although it may be layers.

    Raises:
        ShapeError: nothing says that there are so many samples, and encoders have so many layers.
    """
    notes = []
    doubtful = [_may_be_layers(each) for each in sides]
    for each, other, doubt, of_other in zip(
        sides, sides[::-1], doubtful, doubtful[::-1], strict=True
    ):
        if not doubt:
            continue
        stored, L = each.stored, each.axes.shape[0]
        # Two encoders may well have as many layers, so one doubtful side says nothing of the other.
        agreed = not of_other and _may_be_samples(other.axes, L)
        save = _save(each.axes.side, each.file, stored, 0)
        if (L in _COUNTS and not agreed) or _one_row_beside(each):
            raise ShapeError(
                f"{stored.where}: {list(stored.shape)} looks like the hidden states of {L} layers: "
                f"if they are {L} samples say --{each.axes.side}-axes {each.axes.letters}; if they "
                f"are layers, of which the features are one, {save}"
            )
        if agreed and L not in _COUNTS:
            continue
        notes.append(
            f"{stored.where} {list(stored.shape)} is read as {L} samples; if these are the hidden "
            f"states of {L} layers, {save}"
        )
    return notes


def _name(stored: StoredTensor) -> str:
    return stored.key or os.path.splitext(os.path.basename(stored.file))[0]


def _may_be_layers(given: InputAxes) -> bool:
    name, axes = _name(given.stored), given.axes
    if not name.endswith(_ALL_LAYERS) or name.endswith(_ONE_LAYER) or axes.origin != "rank":
        return False
    return len(axes.shape) == 3 and axes.shape[0] in _DOUBTFUL and not _samples_beside(given)


def _may_be_samples(axes: Axes, N: int) -> bool:
    """Whether a side has N samples, or so many rows that may be a vector for each of them."""
    rows = axes.origin == "rank" and len(axes.shape) == 2
    return axes.samples == N or (rows and axes.shape[0] == N)


def _samples_beside(given: InputAxes) -> bool:
    """Whether a mask or whole numbers lie beside a tensor that differ from sample to sample.

    Of what an encoder takes there is a row for each sample, and none for each layer.
    """
    N, tokens = given.axes.shape[:2]
    if tokens == N:
        return False  # what has N rows may have one for each token
    for other in _marks_beside(given):
        if other.shape[:1] == (N,) and len(other.shape) <= 4:
            rows = other.read().reshape(N, -1)
            if bool((rows != rows[:1]).any()):
                return True
    return False


def _one_row_beside(given: InputAxes) -> bool:
    """Whether a mask or whole numbers of one sample lie beside a tensor, `[1, T]`."""
    wanted = (1, given.axes.shape[1])
    return any(other.shape == wanted for other in _marks_beside(given))


def _marks_beside(given: InputAxes) -> Iterator[StoredTensor]:
    """Masks and whole numbers in the file of features that may belong to these."""
    for key, other in given.file.tensors.items():
        if key == (given.stored.key or "") or other.source.problem is not None:
            continue
        marks = is_known_mask(key) or other.dtype.startswith(("int", "uint", "bool"))
        if marks and side_named(key) in (given.axes.side, None) and "layer" not in key.lower():
            yield other


def _other_axis(shape: tuple[int, ...], unclear: bool) -> str:
    """Of four axes, two of which may be the layers, as the middle of a sentence."""
    if not unclear:
        return ""
    return f", with [:, -1] instead of [-1] if the second axis, of {shape[1]}, is the layers"


def _save(side: Side, file: FeatureFile, stored: StoredTensor, axis: int) -> str:
    """How to give the last layer: by its key, where it lies beside all layers, or saved.

    Args:
        side: of the features.
        file: open.
        stored: all layers.
        axis: of the layers, the first or the second.
    """
    last = (stored.key or "").removesuffix(_ALL_LAYERS) + "last_hidden_state"
    if stored.key and last in file.tensors:
        return f"say --{side}-key {last}, which is the last"
    return f"save the last with {_command(file, stored, axis)}"


def _command(file: FeatureFile, stored: StoredTensor, axis: int) -> str:
    """A command that saves the last layer beside what else is in the file.

    Args:
        file: open.
        stored: all layers.
        axis: of the layers, the first or the second.
    """
    last = "[-1]" if axis == 0 else "[:, -1]"
    ending = os.path.splitext(stored.file)[1].lower()
    known = in_python(file)
    path = known.paths[stored.key or ""]
    plain = is_plain(stored.file, [path])
    name = repr(stored.file if plain else "FILE")
    if not path:
        if ending in TORCH_ENDINGS:
            text = f"import torch; torch.save({known.torch_load(name)}{last}.clone(), 'NEW.pt')"
        else:
            text = f"import numpy as n; n.save('NEW.npy', n.load({name}){last})"
        return known.command(text)
    inside, old, new = ("", "KEY", "last_hidden_state") if not plain else _renamed(path)
    change = f"d{inside}[{new!r}] = d{inside}.pop({old!r}){last}"
    if ending == ".npz":
        return known.command(
            f"import numpy as n; d = dict(n.load({name})); {change}; n.savez('NEW.npz', **d)"
        )
    if ending == ".safetensors":
        return known.command(
            f"from safetensors.torch import load_file, save_file; d = load_file({name}); "
            f"{change}.clone(); save_file(d, 'NEW.safetensors')"
        )
    return known.command(
        f"import torch; d = {known.torch_load(name)}; {change}.clone(); torch.save(d, 'NEW.pt')"
    )


def _renamed(path: Path) -> tuple[str, str, str]:
    """What leads to the dict of all layers, their name in it, and that of the last layer."""
    old = str(path[-1])
    nest = old[: max(old.rfind("."), old.rfind("/")) + 1]
    new = nest + "last_hidden_state"
    if side_named(old) is not None and not side_named(nest):
        new = old.removesuffix(_ALL_LAYERS) + "last_hidden_state"
    return indexed(path[:-1]), old, new
