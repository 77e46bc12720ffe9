"""Diagnoses from the weights, the options and the result: what is untrained, assumed or uniform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusecli.features.axes import Side
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.stored_module import StoredModule
from fusecli.report.parts import AttentionPart
from fusecli.report.report import Diagnosis

UNIFORM = 0.99  # mean entropy over log P from which attention is called uniform
# What to do with an untrained module.
NEXT_STEP = "'fusecli train' trains one on pairs with labels"


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
