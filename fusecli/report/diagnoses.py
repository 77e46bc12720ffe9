"""What may be wrong with a result, measured while it was computed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusecli.features.axes import Axes, PairShapes, Side, is_sequence_first, is_usual_width
from fusecli.features.mask_names import side_named
from fusecli.features.pair_inputs import MaskOrigin, UsedMask
from fusecli.features.token_reader import RowStatistics
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.literals import Dtype
from fusecli.fusion.stored_module import StoredModule
from fusecli.report.parts import AttentionPart
from fusecli.report.report import Diagnosis, Note

if TYPE_CHECKING:
    from fusecli.features.attention_mask import Choices

Mask = NDArray[np.bool_]

UNIFORM = 0.99  # mean entropy over log P from which attention is called uniform
# What to do with an untrained module.
NEXT_STEP = "'fusecli train' trains one on pairs with labels"
_WIDE = 256  # more tokens than this may be a width
FLOAT16_MAX = 65504.0
# bfloat16 keeps 8 bits: from here on its rounding moves a feature by 0.5, and scores by more.
BFLOAT16_COARSE = 256.0


def of_pair(
    shapes: PairShapes,
    config: FusionConfig,
    sides: Sequence[Side],
    image_mask: Mask | None,
    text_mask: Mask | None,
    in_batch: bool = False,
) -> list[Diagnosis]:
    """All that shapes and masks tell of a pair, or of a stack of pairs.

    Args:
        shapes: of the pair.
        config: of the fusion.
        sides: the query sides.
        image_mask, text_mask: bool `[N, tokens]` or `[1, tokens]`, or None if all are real.
        in_batch: the pair is one of a batch, where some advice differs.
    """
    found: list[Diagnosis] = []
    for query in sides:
        mask = image_mask if query == "text" else text_mask
        found += one_image_token(shapes, config, mask, query)
    return [
        *found,
        *empty_image(image_mask),
        *same_row_counts(shapes.image, shapes.text, in_batch),
        *sequence_first(shapes),
        *transposed(shapes.image, shapes.text.width),
        *transposed(shapes.text, shapes.image.width),
    ]


def of_rows(
    side: Side,
    rows: RowStatistics,
    mask: MaskOrigin | None,
    where: str,
    dtype: Dtype,
    in_batch: bool = False,
) -> list[Diagnosis]:
    """All that the features of one side tell.

    Args:
        side: which side.
        rows: what was seen of its features.
        mask: how the mask was found; None where none was used.
        where: file and key, for messages.
        dtype: that the module computes in.
        in_batch: the pair is one of a batch, where some advice differs.
    """
    return [
        *inverted_mask(side, rows, mask, where),
        *zero_rows(side, rows, mask is not None, where, in_batch),
        *whole_numbers(side, rows, where),
        *too_large_for(dtype, side, rows),
    ]


def other_side_named(side: Side, key: str | None, where: str) -> list[Diagnosis]:
    """A tensor that no option chose, and whose name says that it belongs to the other side.

    Args:
        side: which side it is used as.
        key: its name; None where it has none, or where it was chosen by an option.
        where: file and key, for messages.
    """
    named = None if key is None else side_named(key)
    if named in (None, side):
        return []
    return [
        Diagnosis(
            f"{side}-misnamed",
            f"{where}: the file's tensor is called {key}, and it is used as the {side}",
            f"give the files in the order IMAGE TEXT, or say --{side}-key {key} if it is the "
            f"{side}",
        )
    ]


def swapped_names(image: str, text: str) -> list[Diagnosis]:
    """Both files or folders are named after the other side.

    Args:
        image, text: paths.
    """
    names = [os.path.basename(os.path.normpath(path)) for path in (image, text)]
    if (side_named(names[0]), side_named(names[1])) != ("text", "image"):
        return []
    return [
        Diagnosis(
            "image-misnamed",
            f"the image is read from {names[0]} and the text from {names[1]}, which sounds like "
            "the other way round",
            "give them in the order IMAGE TEXT",
        )
    ]


def used_masks(*masks: UsedMask | None) -> list[Note]:
    """Which masks are used though no option named them."""
    notes = [mask.note for mask in masks if mask is not None]
    return [Note("mask-used", note) for note in notes if note is not None]


def inverted_mask(
    side: Side, rows: RowStatistics, mask: MaskOrigin | None, where: str
) -> list[Diagnosis]:
    """A mask that is true for padding (torch's key_padding_mask) leaves only the zeros."""
    if not rows.inverted:
        return []
    remedy = "say --mask-style padding"
    if mask == "beside the features":  # whose name says that 1 is a real token
        remedy = f"call it {side}_padding_mask"
    of = f" in {rows.inverted:,} of {rows.masked:,} samples with padding" if rows.masked > 1 else ""
    return [
        Diagnosis(
            f"{side}-mask-inverted",
            f"{where}: all {side} tokens that the mask calls real are zero{of}, and tokens that "
            "it calls padding are not: the mask seems to mark padding with 1",
            f"{remedy}, or give a mask that is 1 for real tokens and 0 for padding",
        )
    ]


def one_image_token(
    shapes: PairShapes, config: FusionConfig, mask: Mask | None, query: Side = "text"
) -> list[Diagnosis]:
    """With one key the softmax is 1 for every query; with the image as query side, with one text
    token.

    Args:
        shapes: of the job.
        config: a residual, a null token or a gate mends it; other methods keep the text anyway.
        mask: of the context side, bool `[N, P]` or `[1, P]`; it may leave one token of many.
        query: the query side.
    """
    if config.method != "attention" or config.null_token or config.residual or config.gate:
        return []
    side, tokens = ("image", shapes.P) if query == "text" else ("text", shapes.T)
    single = shapes.N if tokens == 1 else 0
    if mask is not None and tokens > 1:
        single = int((mask.sum(axis=1) == 1).sum()) * (shapes.N // len(mask))
    if not single:
        return []
    which = f"one {side} token"
    if mask is not None:
        which = f"one unmasked {side} token in {single} of {shapes.N} samples"
    more = "give patch features [P, D]" if side == "image" else "give a text of several tokens"
    return [
        Diagnosis(
            f"one-{side}-token",
            f"{which}: all fused rows of such a pair are identical and hold no {query} "
            f"information (attention over a single token weighs it 1, whatever the {query})",
            f"{more if mask is None else 'check the mask'}, or say --residual (adds the "
            f"{query}) or --null-token (weighs the {side} per {query} token)",
        )
    ]


def few_choices(choices: Choices, config: FusionConfig) -> list[Diagnosis]:
    """What an attention mask leaves to the tokens of the query side: one token each, or none.

    Args:
        choices: how many tokens each of them may attend to.
        config: a residual, a null token or a gate mends it; other methods keep the text anyway.
    """
    query = choices.query
    side = "image" if query == "text" else "text"
    if choices.empty == choices.tokens:
        return [
            Diagnosis(
                "empty-image",
                f"no {query} token may attend to any {side} token: the result holds nothing of "
                f"the {side}",
                "check the attention mask and --mask-style",
            )
        ]
    if config.method != "attention" or config.null_token or config.residual or config.gate:
        return []
    if choices.single + choices.empty < choices.tokens:
        return []
    return [
        Diagnosis(
            f"one-{side}-token",
            f"by the attention mask no {query} token may attend to more than one {side} token: "
            f"the fused rows hold no {query} information (attention over a single token weighs it "
            f"1, whatever the {query})",
            f"check the mask, or say --residual (adds the {query}) or --null-token (weighs the "
            f"{side} per {query} token)",
        )
    ]


def empty_image(mask: Mask | None) -> list[Diagnosis]:
    """No image of a job has a real token, which --allow-empty-image lets pass.

    Args:
        mask: of the image, bool `[N, P]` or `[1, P]`.
    """
    if mask is None or mask.any():
        return []
    return [
        Diagnosis(
            "empty-image",
            "every image token is masked: the result holds nothing of the image",
            "check the image mask (1 is a real token, 0 is padding)",
        )
    ]


def closed_gate(gate: float | None, query: Side) -> list[Diagnosis]:
    """A gate of 0 lets nothing through.

    Args:
        gate: its value; None where there is no gate.
        query: the query side.
    """
    if gate != 0:
        return []
    other = "image" if query == "text" else "text"
    return [
        Diagnosis(
            "closed-gate",
            f"the gate is 0, as it starts: the result is the {query} unchanged and holds "
            f"nothing of the {other}",
            "train the module and its gate (load_module, save_module), and give the weights with "
            "--weights",
        )
    ]


def untrained_note(weights: str | None, seed: int, config: FusionConfig) -> str:
    """That the weights are initial ones, where they came from, and what that means.

    Args:
        weights: path of the file that holds them; None where there is none.
        seed: of the weights.
        config: of the fusion.
    """
    # A gate that is still closed has a diagnosis of its own.
    gives = "" if config.gate else ", its output is a fixed random projection"
    return f"{_initial(weights, seed)}; this module is untrained{gives}; {NEXT_STEP}"


def _initial(weights: str | None, seed: int) -> str:
    return f"{weights or 'no --weights'}: initial weights, seed {seed}"


def uniform_attention(
    entropy: float | None,
    weights: str | None,
    seed: int | None,
    query: Side = "text",
    first_pairs: int | None = None,
) -> list[Diagnosis]:
    """Attention that hardly depends on the query. If the weights are initial ones, the message
    says so.

    Args:
        entropy: mean entropy as a share of log P; None if there is nothing to weigh.
        weights: path of the weights file; None where there is none.
        seed: of initial weights; None for others.
        query: the query side.
        first_pairs: of a batch, that were looked at; None for a single job.
    """
    if entropy is None or not entropy > UNIFORM:
        return []
    other = "image" if query == "text" else "text"
    where = "" if first_pairs is None else f" in the first {first_pairs} pairs"
    if first_pairs == 1:
        where = " in the first pair"
    usual = also = ""
    if seed is not None:
        usual = f", as is usual for untrained weights ({_initial(weights, seed)})"
        also = ", and the result is a fixed random projection"
    return [
        Diagnosis(
            "uniform-attention",
            f"attention is close to uniform{where} (mean entropy {entropy:.4f} of its maximum)"
            f"{usual}: every {query} token gets nearly the mean of the {other} tokens{also}",
            "were these weights trained?"
            if seed is None
            else "train it with 'fusecli train', and give the run with --weights",
        )
    ]


def nonfinite_result(nonfinite: int, numbers: int) -> list[Diagnosis]:
    """NaN or infinity in the features, accepted with --allow-nonfinite, have spread into the
    result.

    Args:
        nonfinite: numbers of the result that are NaN or infinity.
        numbers: of the result in all.
    """
    if not nonfinite:
        return []
    return [
        Diagnosis(
            "nonfinite-result",
            f"{nonfinite:,} of {numbers:,} numbers of the result are NaN or infinity, since the "
            "features hold some (--allow-nonfinite)",
            "mend the features, or mask the tokens that hold them",
        )
    ]


def heads_assumed(assumed: bool, config: FusionConfig, weights: str | None) -> list[Diagnosis]:
    """A wrong number of heads gives wrong numbers and no error."""
    if not assumed:
        return []
    return [
        Diagnosis(
            "heads-assumed",
            f"{weights} does not say how many heads it was trained with, {config.num_heads} "
            "are assumed",
            "if that is wrong so is every number: say --heads",
        )
    ]


def guessed_grid(grid: str, tokens: int, photo: str) -> list[Diagnosis]:
    """A photo is drawn under a grid that no option named.

    Args:
        grid: rows and columns, such as 7x7.
        tokens: image tokens.
        photo: the photo's file.
    """
    return [
        Diagnosis(
            "grid-guessed",
            f"{photo} lies under a grid of {grid} that is guessed from the number of image tokens "
            f"({tokens}): if they are no patches, row by row, the places in the picture are wrong",
            f"say --grid {grid} if they are, or --boxes FILE if they are regions",
        )
    ]


def module_assumed(question: str, remedy: str, weights: str | None) -> list[Diagnosis]:
    """A state dict says nothing of what has no parameters, and that changes every number.

    Args:
        question: what the file cannot say, in words, or "".
        remedy: the options that say it.
        weights: the file.
    """
    if not question:
        return []
    return [
        Diagnosis(
            "module-assumed",
            f"{weights} is a state dict, which cannot say whether the module was trained with "
            f"{question}: it is used without",
            f"say {remedy} as it was trained, or save the module with save_module",
        )
    ]


def assumed_of_weights(stored: StoredModule | None, weights: str | None) -> list[Diagnosis]:
    """What had to be assumed about the module in a weights file.

    Args:
        stored: the module; None where there is no weights file.
        weights: the file.
    """
    if stored is None:
        return []
    return [
        *heads_assumed(stored.heads_assumed, stored.config, weights),
        *module_assumed(stored.question, stored.remedy, weights),
    ]


def zero_rows(
    side: Side, seen: RowStatistics, masked: bool, where: str, in_batch: bool = False
) -> list[Diagnosis]:
    """Padding without a mask."""
    if masked or not seen.zero_rows:
        return []
    remedy = f"pass the mask with --{side}-mask"
    if in_batch:
        remedy = f"store {side}_mask beside the features, or list it in that column of a manifest"
    return [
        Diagnosis(
            f"{side}-zero-rows",
            f"{where}: {seen.zero_rows} of {seen.rows} {side} tokens are zero or nearly so, "
            f"probably padding, which takes part as if it were {side}",
            remedy,
        )
    ]


def whole_numbers(side: Side, seen: RowStatistics, where: str) -> list[Diagnosis]:
    """Token numbers, pixels or quantized features that were stored as floating point numbers."""
    if not seen.whole:
        return []
    usual = "token numbers" if side == "text" else "pixels"
    return [
        Diagnosis(
            f"{side}-whole-numbers",
            f"{where}: its numbers are whole numbers up to {seen.whole:,.0f}, as {usual} and "
            f"quantized features are, and {side} features are not",
            "give the encoder's last_hidden_state (of quantized features multiply by their scale)",
        )
    ]


def same_row_counts(image: Axes, text: Axes, in_batch: bool = False) -> list[Diagnosis]:
    """Two rank-2 files of as many rows are almost always one vector a sample."""
    inferred = image.origin == text.origin == "rank"
    if (image.letters, text.letters) != ("PD", "TD") or not inferred:
        return []
    rows = text.shape[0]
    if image.shape[0] != rows or rows == 1:
        return []
    remedy = "say --image-axes ND --text-axes ND (or PD and TD if they are tokens)"
    if in_batch:
        remedy = (
            "fuse such files with `fusecli fuse --image-axes ND --text-axes ND`, or list their "
            "rows in a manifest with image_row and text_row (--image-axes PD --text-axes TD if "
            "they are tokens)"
        )
    return [
        Diagnosis(
            "rows-are-samples",
            f"both files have {rows} rows, read as tokens of one pair; they are probably "
            "samples, one vector each",
            remedy,
        )
    ]


def transposed(axes: Axes, other_width: int) -> list[Diagnosis]:
    """Tokens and features look swapped: not D but another axis has the size of a feature.

    Args:
        axes: of one side.
        other_width: of the other side.
    """
    tokens = axes.token_letters
    if axes.width == other_width or not tokens:
        return []
    what = f"the {axes.side} {list(axes.shape)} is read as {axes.tokens} tokens of width "
    what += f"{axes.width}"
    if axes.origin != "rank" or len(tokens) != 1:
        longest = max(size for size in axes.shape)
        odd = axes.width * 4 < longest and not is_usual_width(axes.width)
        if axes.origin != f"--{axes.side}-axes" or not odd or not is_usual_width(longest):
            return []
        remedy = f"check --{axes.side}-axes {axes.letters}: D is the axis of features"
        what += f", and another axis has {longest}, a usual width"
        return [Diagnosis(f"{axes.side}-transposed", what, remedy)]
    wide = axes.tokens >= _WIDE and axes.tokens % 8 == 0 and not is_usual_width(axes.width)
    if axes.tokens == other_width:
        what += f", but {axes.tokens} is the width of the other side"
    elif wide and axes.width * 4 < axes.tokens:
        what += f", but {axes.tokens} is the more usual width"
    else:
        return []
    named = axes.letters[:-2] + "D" + tokens
    return [
        Diagnosis(
            f"{axes.side}-transposed",
            what,
            f"if its axes are swapped say --{axes.side}-axes {named}",
        )
    ]


def sequence_first(shapes: PairShapes) -> list[Diagnosis]:
    """Stacks whose samples may lie in the second axis."""
    return sequence_first_stacks(shapes.image, shapes.text)


def sequence_first_stacks(image: Axes | None, text: Axes | None) -> list[Diagnosis]:
    """The same of stacks whose rows are read one by one; None where no row is cut from one."""
    if image is None or text is None:
        return []
    if not is_sequence_first(image, text) or image.shape[1] == 1:
        return []
    tokens = image.shape[1]
    return [
        Diagnosis(
            "sequence-first",
            f"image {list(image.shape)} and text {list(text.shape)} are read as stacks whose "
            f"samples have {tokens} tokens each; a second axis that is equal is usually that of "
            "the samples (torch's layout without batch_first)",
            "if it is, say --text-axes TND --image-axes PND (if not, NTD and NPD)",
        )
    ]


def largest_norm(dtype: Dtype) -> float:
    """The length of a feature up to which a type carries it well."""
    return {"float16": FLOAT16_MAX, "bfloat16": BFLOAT16_COARSE}.get(dtype, math.inf)


def too_large_for(dtype: Dtype, side: Side, seen: RowStatistics) -> list[Diagnosis]:
    """Features beyond what a narrow type carries."""
    if seen.largest_norm <= largest_norm(dtype):
        return []
    what = (
        "float16 ends at 65504" if dtype == "float16" else "bfloat16 rounds to steps of 1 and more"
    )
    return [
        Diagnosis(
            f"{side}-too-large",
            f"{side} features have norms up to {seen.largest_norm:.4g} and {what}",
            "say --dtype float32, or normalize the features",
        )
    ]


def attention_statistics(
    weights: NDArray[np.float32],
    query_mask: NDArray[np.bool_] | None,
    mask: NDArray[np.bool_] | None,
    null_token: bool,
    allowed: NDArray[np.bool_] | None = None,
) -> AttentionPart | None:
    """How spread the attention weights of real tokens are.

    Args:
        weights: `[n, H, T, P]`.
        query_mask: bool `[n, T]` or `[1, T]`, true for real tokens; padded ones do not count.
        mask: bool `[n, P]` or `[1, P]`, true for real tokens.
        null_token: the weights leave a share to a null token, which counts as one more.
        allowed: bool `[n, T, P]` or `[1, T, P]`, true where a token may attend; None if all may.

    Returns:
        Mean entropy in nats, its maximum (mean log of the number of tokens to choose from)
        and their ratio; None if no real token has a choice.
    """
    n, _, T, P = weights.shape
    real = np.ones((n, T), bool) if query_mask is None else np.broadcast_to(query_mask, (n, T))
    if allowed is not None:
        whole = np.broadcast_to(allowed, (n, T, P))
        choices = (whole if mask is None else whole & mask[:, None]).sum(axis=2)  # [n, T]
        real = real & (choices > 0)  # others have no weights at all
    else:
        tokens = np.full(n, P) if mask is None else np.broadcast_to(mask, (n, P)).sum(axis=1)
        choices = np.broadcast_to(tokens[:, None], (n, T))
    choices = choices + null_token
    real = real & (choices > 1)
    if not real.any():
        return None
    w = weights.swapaxes(1, 2)[real].astype(np.float64)  # [rows, H, P]
    entropy = -(w * np.log(np.where(w > 0, w, 1.0))).sum(axis=-1)  # [rows, H]
    if null_token:
        rest = np.clip(1 - w.sum(axis=-1), 0.0, 1.0)
        entropy -= rest * np.log(np.where(rest > 0, rest, 1.0))
    highest = np.log(choices[real])  # [rows]
    return AttentionPart(
        mean_entropy=float(entropy.mean()),
        max_entropy=float(highest.mean()),
        entropy_ratio=float((entropy / highest[:, None]).mean()),
        samples=int(real.any(axis=1).sum()),
    )
