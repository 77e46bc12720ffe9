"""EMAP: the best additive approximation of a model, and so what interaction is worth in it.

For logits f of texts t and images v of an evaluation part (Hessel & Lee, EMNLP 2020,
arXiv:2010.06572, eq. 4):

    emap(t_i, v_j) = mean_v f(t_i, v) + mean_t f(t, v_j) - mean_t,v f(t, v)

A model without interaction is its own EMAP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusecli.training.model_protocol import Model, PairTable

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_PARTNERS = 256  # images and texts that means are taken over; above it they are sampled
MOST_PAIRS = 1024  # that are approximated; above it they are sampled
_CHUNK = 1 << 23  # logits in memory at a time


@dataclass(frozen=True)
class Emap:
    """The additive approximation of some pairs.

    Attributes:
        rows: int64 [m], the pairs, ascending.
        logits: float64 [m, C], for `tag` [m, Tmax, C].
        exact: whether means were taken over all images and texts of the part.
    """

    rows: Rows
    logits: Floats
    exact: bool


def emap(
    model: Model,
    table: PairTable,
    rows: Rows,
    seed: int,
    per_token: bool = False,
    most: int = MOST_PARTNERS,
    pairs: int = MOST_PAIRS,
) -> Emap:
    """The additive approximation of a model on a part.

    Args:
        model: what is approximated.
        table: the features' keys; equal images and texts are computed once.
        rows: int64 [n], the part.
        seed: of the samples.
        per_token: `tag`: every position of a text is a function of its own, and its mean is
            taken over the texts that have this position.
        most: images and texts that means are taken over.
        pairs: that are approximated.
    """
    generator = np.random.default_rng([seed, 49979687])
    rows = np.sort(rows)
    texts, text_of, text_count = _distinct(table.text_key, rows)
    images, image_of, image_count = _distinct(table.image_key, rows)
    exact = len(texts) <= most and len(images) <= most
    measured = _sample(np.arange(len(rows)), pairs, generator)
    texts_wanted, images_wanted = np.unique(text_of[measured]), np.unique(image_of[measured])
    text_partners = _sample(np.arange(len(texts)), most, generator, text_count)
    image_partners = _sample(np.arange(len(images)), most, generator, image_count)
    # A sample is drawn by count already: its members then weigh the same.
    text_weight = text_count[text_partners] if len(texts) <= most else np.ones(most)
    image_weight = image_count[image_partners] if len(images) <= most else np.ones(most)

    both = np.union1d(texts_wanted, text_partners)
    of_text = _means_over_images(model, texts[both], images[image_partners], image_weight)
    real = _real(table, texts[text_partners], of_text) if per_token else None
    of_image = _means_over_texts(
        model, texts[text_partners], images[images_wanted], text_weight, real
    )
    in_both = np.searchsorted(both, text_partners)
    overall = _weighted(of_text[in_both], text_weight, real)

    text_place = np.searchsorted(both, text_of[measured])
    image_place = np.searchsorted(images_wanted, image_of[measured])
    return Emap(rows[measured], of_text[text_place] + of_image[image_place] - overall, exact)


def _distinct(keys: Sequence[str], rows: Rows) -> tuple[Rows, Rows, Floats]:
    """The first row of each distinct key, which of them each row has, and how many have it."""
    values = np.asarray([keys[row] for row in rows.tolist()])
    _, first, inverse, count = np.unique(
        values, return_index=True, return_inverse=True, return_counts=True
    )
    return rows[first], inverse.reshape(-1).astype(np.int64), count.astype(np.float64)


def _sample(
    items: Rows, most: int, generator: np.random.Generator, count: Floats | None = None
) -> Rows:
    """Some of the items, ascending; more often those that count more. All where they are few."""
    if len(items) <= most:
        return items
    share = None if count is None else count / count.sum()
    return np.sort(generator.choice(items, most, replace=False, p=share))


def _real(table: PairTable, texts: Rows, like: Floats) -> NDArray[np.bool_]:
    """Which positions the texts have. [b, Tmax]"""
    longest = like.shape[1]
    real: NDArray[np.bool_] = table.text_mask[texts][:, :longest]
    return real


def _means_over_images(model: Model, texts: Rows, images: Rows, weight: Floats) -> Floats:
    """mean_v f(t, v) of each text. [a, ..., C]"""
    share = weight / weight.sum()
    return np.concatenate(
        [
            np.tensordot(share, logits, axes=(0, 1))
            for logits in _chunks(model, texts, images, by_text=True)
        ]
    )


def _means_over_texts(
    model: Model, texts: Rows, images: Rows, weight: Floats, real: NDArray[np.bool_] | None
) -> Floats:
    """mean_t f(t, v) of each image. [b, ..., C]"""
    parts = []
    for logits in _chunks(model, texts, images, by_text=False):
        parts.append(np.stack([_weighted(one, weight, real) for one in logits.swapaxes(0, 1)]))
    return np.concatenate(parts)


def _weighted(values: Floats, weight: Floats, real: NDArray[np.bool_] | None) -> Floats:
    """Mean over texts; of each position over the texts that have it. [a, ..., C] to [..., C]"""
    if real is None:
        mean: Floats = np.tensordot(weight / weight.sum(), values, axes=(0, 0))
        return mean
    counts = weight[:, None] * real  # [a, Tmax]
    total = np.einsum("at,atc->tc", counts, values)
    of_positions: Floats = total / np.maximum(counts.sum(axis=0), 1e-300)[:, None]
    return of_positions


def _chunks(model: Model, texts: Rows, images: Rows, by_text: bool) -> Iterator[Floats]:
    """Logits of all texts with all images, some texts (or some images) at a time."""
    along, others = (texts, images) if by_text else (images, texts)
    step = 1
    start = 0
    while start < len(along):
        part = along[start : start + step]
        logits = model.cross_logits(part, others) if by_text else model.cross_logits(others, part)
        start += step
        yield logits.astype(np.float64)
        step = max(1, _CHUNK * step // max(logits.size, 1))
