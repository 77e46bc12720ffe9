"""Which tensor of a file is the mask of the features: by its name, its shape and its numbers."""

from __future__ import annotations

from fusecli.errors import FeatureFileError
from fusecli.features.axes import Axes, Side, mask_shapes
from fusecli.features.file import FeatureFile
from fusecli.features.joined_samples import refuse_joined_samples
from fusecli.features.mask_names import (
    MaskMeaning,
    MaskStyle,
    base_name,
    is_known_mask,
    is_label,
    mask_meaning,
    nest_of,
    owner_named,
    side_named,
)
from fusecli.features.masks import (
    NEAR,
    fits_tokens,
    has_mask_shape,
    is_additive,
    is_counts,
    marks_of,
)
from fusecli.features.tensor import StoredTensor
from fusecli.records import open_record

# Tensors of these names are always masks: one whose shape does not fit is an error.
_KNOWN: dict[Side, tuple[str, ...]] = {
    "image": ("image_mask", "image_attention_mask"),
    "text": ("text_mask",),
}
_EITHER = "attention_mask"
# DINOv2's `masks` are those of its training, true where a patch was hidden.
_DINO = ("x_norm_", "x_prenorm")
_SEPARATORS = "._-/ "  # of the words of a name


@open_record
class MaskSearch:
    """The features whose mask is looked for, and the file that may hold it.

    Attributes:
        file: the file of the features.
        features: key of the features.
        axes: of the features, of the whole stack where rows of it are read.
        N: samples in them.
        text_only: both sides' features are in this file, as two tensors, and a bare
            `attention_mask` is the tokenizer's and so the text's.
        by_name_only: the file holds tensors of many pairs: only what is named a mask of these
            features, or of all, and has the right shape is one.
        other: key of the other side's features, where they are in this file as well.
    """

    file: FeatureFile
    features: str | None
    axes: Axes
    N: int
    text_only: bool
    by_name_only: bool = False
    other: str | None = None

    @property
    def sides(self) -> tuple[Side | None, ...]:
        """The sides that a mask's name may say; None where a name that says no side counts too."""
        side = self.axes.side
        return (side,) if self.text_only and side == "image" else (side, None)

    @property
    def usual_names(self) -> list[str]:
        """Names that always stand for a mask of these features."""
        return [*_KNOWN[self.axes.side], *([_EITHER] if None in self.sides else [])]

    def side_of(self, mask: str, meaning: MaskMeaning) -> Side | None:
        """The side that the name of a mask says, with what stands before its last part.

        Args:
            mask: its key.
            meaning: what the last part says.
        """
        own = self.features or ""
        if own and mask.startswith(own) and mask[len(own) :][:1] in _SEPARATORS:
            # The words of the features' own name, which can be the path of an image, say nothing.
            rest = mask_meaning(mask[len(own) + 1 :])
            return self.axes.side if rest is None or rest.side is None else rest.side
        if meaning.side is not None:
            return meaning.side
        nest = nest_of(mask)
        if self.by_name_only or not nest:
            return None  # before the last part stands the id of a pair, whatever words it has
        if nest != nest_of(own):
            return side_named(nest)
        return None if nest == nest_of(self.other or "") else self.axes.side


def choose_mask(search: MaskSearch, style: MaskStyle | None = None) -> StoredTensor | None:
    """Find a mask stored beside the features of one side; None where there is none.

    Args:
        search: the features and their file.
        style: the meaning of the numbers, for masks whose names do not say it.

    Raises:
        FeatureFileError: a tensor has the shape and the numbers of a mask, and neither its name
            nor the style says what they mean.
    """
    file, features = search.file, search.features
    named = _named_masks(file, features if search.by_name_only else None)
    others = [key for key in named if key != features and key not in search.usual_names]
    if features is not None and base_name(features).startswith(_DINO):
        others = [key for key in others if base_name(key) != "masks"]
    found = _named_after_the_features(search, named)
    if found is None:
        found = _of_a_usual_name(search)
    if found is None:
        found = _of_another_name(search, others)
    if found is None and not search.by_name_only and search.axes.tokens != 1:
        refuse_joined_samples(file, features, search.axes)
        found = _not_called_a_mask(search, {features, *search.usual_names, *others}, style)
    return found


def _named_masks(file: FeatureFile, by_id: str | None) -> list[str]:
    """Keys whose names say that they are masks, those of one owner one after the other.

    Computed once for each file: a file by pair id holds thousands of tensors, and every pair needs
    the keys.

    Args:
        file: that is looked at.
        by_id: key of the features, where the file holds tensors of many pairs: masks of other
            pairs are left out.
    """
    if not file.mask_names:
        found: dict[str, list[str]] = {}
        for key in file.tensors:
            if mask_meaning(key) is not None:
                found.setdefault(owner_named(key), []).append(key)
        file.mask_names.append(found)
    named = file.mask_names[0]
    if by_id is None:
        return [key for keys in named.values() for key in keys]
    return [*_masks_of(file, by_id), *named.get("", [])]


def _masks_of(file: FeatureFile, id: str) -> list[str]:
    """Keys of the masks that belong to one tensor of a file by pair id, by their names."""
    named, masks = file.mask_names[0], []
    for at, mark in enumerate(f"{id}."):
        owner = id[:at]
        # A shorter id that is one of the file's own has masks of its own.
        if mark in _SEPARATORS and owner in named and (at == len(id) or owner not in file.tensors):
            masks += named[owner]
    return masks


def _named_after_the_features(search: MaskSearch, named: list[str]) -> StoredTensor | None:
    """The mask whose name is that of the features and more: `dog_mask` of `dog`.

    Args:
        search: the features and their file; of a file by pair id names are compared elsewhere.
        named: keys whose names say that they are masks.

    Returns:
        It, also where its shape does not fit: then reading it is an error. None if there is none.
    """
    features, axes, N = search.features, search.axes, search.N
    if features is None or search.by_name_only or axes.tokens == 1:
        return None
    for key in named:
        if key == features or not key.startswith(features):
            continue  # features of the user's choice may be called a mask
        if key[len(features)] not in _SEPARATORS:
            continue
        meaning, stored = mask_meaning(key), search.file.tensors[key]
        if meaning is None or _may_count_samples(key, N):
            continue
        if search.side_of(key, meaning) not in (axes.side, None):
            continue
        if meaning.style == "lengths":
            if is_counts(stored, N):
                return stored
        elif _is_flat(stored) or fits_tokens(stored, axes, N):
            return stored
    return None


def _of_a_usual_name(search: MaskSearch) -> StoredTensor | None:
    """The mask of a usual name; reading it is an error where its shape does not fit."""
    for key in search.usual_names:
        if key in search.file.tensors and key != search.features:
            stored = search.file.tensors[key]
            if not search.by_name_only or fits_tokens(stored, search.axes, search.N):
                return stored
    return None


def _of_another_name(search: MaskSearch, masks: list[str]) -> StoredTensor | None:
    """The first tensor that is called a mask and belongs to the features.

    Names that say the side of the features come before those that say no side.

    Args:
        search: the features and their file.
        masks: keys whose names say that they are masks.
    """
    file, features = search.file, search.features
    own: list[str] = []
    if features is not None:
        if search.by_name_only:
            own = _masks_of(file, features)
        else:
            masks = _without_those_of_others(file, features, masks)
    for side in search.sides:
        for key in masks:
            meaning = mask_meaning(key)
            if meaning is None or _may_count_samples(key, search.N):
                continue
            if search.side_of(key, meaning) != side:
                continue
            if _belongs(search, file.tensors[key], meaning, key in own):
                return file.tensors[key]
    return None


def _belongs(search: MaskSearch, stored: StoredTensor, meaning: MaskMeaning, own: bool) -> bool:
    """Whether the shape of a mask is that of the features, or so near that it must be theirs.

    Reading a mask that is only near is an error, which is better than to ignore it.

    Args:
        search: the features and their file.
        stored: the mask.
        meaning: what its name says.
        own: in a file by pair id, the mask's name begins with the id of the features.
    """
    axes, N = search.axes, search.N
    if own and axes.tokens > 1 and _is_flat(stored):
        return True
    if meaning.style == "lengths":
        return is_counts(stored, N) and axes.tokens > 1
    if fits_tokens(stored, axes, N):
        return True
    if search.by_name_only:
        return False
    return _is_turned(stored, axes, N) or _is_near(stored, axes, N, meaning.side is not None)


def _not_called_a_mask(
    search: MaskSearch, looked_at: set[str | None], style: MaskStyle | None
) -> StoredTensor | None:
    """A tensor with the shape and the numbers of a mask, whatever it is called.

    Args:
        search: the features and their file.
        looked_at: keys that are not looked at again.
        style: the meaning of its numbers.

    Raises:
        FeatureFileError: its numbers may mean either, and there is no style.
    """
    file, axes, N = search.file, search.axes, search.N
    shapes = mask_shapes(axes, N)
    for key in file.tensors:
        if key in looked_at or not has_mask_shape(file.shape_of(key), axes, shapes):
            continue
        stored = file.tensors[key]
        if not _may_be_a_mask(stored, key, axes, N):
            continue
        if style is not None or is_additive(stored, stored.read()):
            return stored
        raise FeatureFileError(
            f"{stored.where}: has the shape and the numbers of a mask of the {axes.side} tokens, "
            "and its name does not say what they mean: say --mask-style keep if 1 is a real "
            f"token, --mask-style padding if 1 is padding, or --{axes.side}-mask none to leave it "
            "out"
        )
    return None


def _without_those_of_others(file: FeatureFile, features: str, masks: list[str]) -> list[str]:
    """Without masks that belong to other features by their names; those nearest by name first.

    `cat_mask` is no mask of `dog` where there is a `cat`, and `question.mask` none of
    `answer.features` where there are `question.features`. Of the beginnings of a mask's name, the
    longest one with which features begin as well counts.
    """
    if not masks:
        return []
    beginnings: set[str] = set()
    axes_count = len(file.shape_of(features))
    for key in file.tensors:
        if key == features or is_known_mask(key):
            continue
        if len(file.shape_of(key)) == axes_count and "int" not in file.tensors[key].dtype:
            beginnings.update(_beginnings(key))
    own, general = [], []
    mine = _beginnings(features)
    for mask in masks:
        parts = _beginnings(mask)
        nearest = max((len(part) for part in parts if part in mine), default=0)
        if nearest < max((len(part) for part in parts if part in beginnings), default=0):
            continue
        if nearest:
            own.append((-nearest, mask))
        else:
            general.append(mask)
    return [mask for _, mask in sorted(own, key=lambda item: item[0])] + general


def _beginnings(key: str) -> set[str]:
    """A key and its beginnings, up to each place where a word ends."""
    return {key, *(key[:at] for at, mark in enumerate(key) if mark in _SEPARATORS and at)}


def the_mask_of(file: FeatureFile, side: Side) -> StoredTensor:
    """The mask in a file given as `--image-mask` / `--text-mask`.

    Raises:
        FeatureFileError: several tensors, and none or more than one with a usual name.
    """
    if len(file.tensors) == 1:
        return next(iter(file.tensors.values()))
    said = {
        key: meaning.side or side_named(nest_of(key))
        for key in file.tensors
        if (meaning := mask_meaning(key)) is not None
    }
    usual = [name for name in (*_KNOWN[side], _EITHER, "mask") if name in file.tensors]
    for wanted in (side, None):
        found = [key for key, named in said.items() if named == wanted]
        if len(found) > 1 and not usual:
            raise FeatureFileError(
                f"{file.where}: several masks, {', '.join(sorted(found)[:4])}: say which one, as "
                f"in --{side}-mask {file.where}:{found[0]}"
            )
        usual += found
    if usual:
        return file.tensors[usual[0]]
    raise FeatureFileError(f"{file.where}: none of its tensors is called a mask: {file.listed}")


def _is_turned(stored: StoredTensor, axes: Axes, N: int) -> bool:
    """Whether a tensor has a mask's sizes in another order or with further axes of size 1.

    One that is called a mask is refused because of its shape, and not ignored.
    """
    sizes = sorted(size for size in stored.shape if size != 1)
    wanted = [sorted(size for size in shape if size != 1) for shape in mask_shapes(axes, N)]
    return axes.tokens > 1 and sizes in wanted


def _is_near(stored: StoredTensor, axes: Axes, N: int, anything: bool) -> bool:
    """Whether a tensor has a mask's shape but for the number of tokens.

    The masks of an image often count a class token that the features lack, or the other way
    round.

    Args:
        stored: the tensor.
        axes: of the features.
        N: samples in them.
        anything: any other number of tokens counts, and not just a few more or fewer.
    """
    if axes.tokens == 1 or stored.shape[:-1] not in ((), (N,)) or not stored.shape:
        return False
    tokens = stored.shape[-1]
    return tokens != axes.tokens and (anything or abs(tokens - axes.tokens) <= NEAR)


def _is_flat(stored: StoredTensor) -> bool:
    """Whether a tensor has one axis longer than 1 at most, as the mask of one sample has."""
    return sum(size != 1 for size in stored.shape) <= 1


def _may_count_samples(key: str, N: int) -> bool:
    """Whether a count may be one of samples, or a running statistic: one number that is called no
    more than a count."""
    return N == 1 and base_name(key) in ("count", "counts")


def _may_be_a_mask(stored: StoredTensor, key: str, axes: Axes, N: int) -> bool:
    """Whether a tensor of the right shape holds marks, both kinds of them."""
    if is_label(key) or stored.source.problem is not None:
        return False
    if len(stored.shape) == 1 and N > 1 and axes.tokens == N:
        return False  # one number a sample is as likely as one a token
    values = marks_of(stored, stored.read())
    if not values.any() or values.all():
        return False
    return bool(((values == 0) | (values == 1)).all() or is_additive(stored, values))
