"""Synthetic tasks whose truth is known by construction, and labels as a file has them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fusecli.training.examples import Examples, load_examples
from fusecli.training.labels import Labels
from fusecli.training.split import Split
from fusecli.training.targets import Targets


@dataclass
class OnePair:
    image: np.ndarray
    text: np.ndarray
    image_mask: np.ndarray | None = None
    text_mask: np.ndarray | None = None


@dataclass
class InMemory:
    """A source of pairs that lie in memory."""

    pairs: list[OnePair]
    reads: list[int] = field(default_factory=list)

    @property
    def ids(self):
        return [f"p{i:05d}" for i in range(len(self.pairs))]

    def read(self, row):
        self.reads.append(row)
        return self.pairs[row]


def examples_of(images, texts, max_memory=1 << 30) -> Examples:
    pairs = [
        OnePair(np.asarray(i, np.float32), np.asarray(t, np.float32))
        for i, t in zip(images, texts, strict=True)
    ]
    return load_examples(InMemory(pairs), max_memory)


def thirds(n: int, test: float = 0.25, validation: float = 0.15, groups=None) -> Split:
    rows = np.arange(n)
    first, second = int(n * (1 - test - validation)), int(n * (1 - test))
    groups = rows if groups is None else groups
    return Split(rows[:first], rows[first:second], rows[second:], groups)


def classes(labels, names=None) -> Targets:
    labels = np.asarray(labels, np.int64)
    names = names or tuple(f"class {c:02d}" for c in range(labels.max() + 1))
    return Targets("classify", tuple(names), labels)


def pointer(n: int, rng, patches: int = 8, width: int = 16, tokens: int = 3):
    """A text token points to a patch; the sign of that patch's first value is the label.

    Neither side alone says anything, nor do the means: the signs of an image sum to 0.
    """
    keys = rng.standard_normal((patches, width)).astype(np.float32)
    target = rng.integers(patches, size=n)
    half = np.where(np.arange(patches) < patches // 2, -1.0, 1.0)
    signs = rng.permuted(np.broadcast_to(half, (n, patches)), axis=1)
    images = np.concatenate(
        [
            np.broadcast_to(keys, (n, patches, width))
            + 0.1 * rng.standard_normal((n, patches, width)),
            np.stack([signs, 0.1 * rng.standard_normal((n, patches))], axis=-1) * 2,
        ],
        axis=-1,
    )
    texts = 0.3 * rng.standard_normal((n, tokens, width))
    place = rng.integers(tokens, size=n)
    texts[np.arange(n), place] += keys[target]
    return images, texts, (signs[np.arange(n), target] > 0).astype(np.int64)


def product(n: int, rng, width: int = 24, tokens: int = 4, patches: int = 5, noise: float = 0.5):
    """The sign of a product of two hidden values, one of each side."""
    a, b = rng.standard_normal((2, n))
    direction_text, direction_image = rng.standard_normal((2, width))
    texts = a[:, None, None] * direction_text + noise * rng.standard_normal((n, tokens, width))
    images = b[:, None, None] * direction_image + noise * rng.standard_normal((n, patches, width))
    return images, texts, (a * b > 0).astype(np.int64)


def additive(n: int, rng, width: int = 24, noise: float = 1.0):
    """The sign of a sum of two hidden values, one of each side."""
    a, b = rng.standard_normal((2, n))
    direction_text, direction_image = rng.standard_normal((2, width))
    texts = a[:, None, None] * direction_text + noise * rng.standard_normal((n, 4, width))
    images = b[:, None, None] * direction_image + noise * rng.standard_normal((n, 5, width))
    return images, texts, (a + b > 0).astype(np.int64)


def text_only(n: int, rng, width: int = 24):
    """One of a text's tokens decides; the image is noise."""
    label = rng.integers(2, size=n)
    direction = rng.standard_normal(width)
    texts = rng.standard_normal((n, 5, width))
    texts[np.arange(n), rng.integers(5, size=n)] += np.where(label, 1.5, -1.5)[:, None] * direction
    return rng.standard_normal((n, 6, width)), texts, label


def tags(n: int, rng, tokens: int = 5, width: int = 12, kinds: int = 3):
    """Each token has a kind; its tag is its kind, shifted by what the image's one patch says."""
    embeddings = rng.standard_normal((kinds, width)) * 2
    lengths = rng.integers(2, tokens + 1, size=n)
    shift = rng.integers(kinds, size=n)
    values = np.full((n, tokens), -1, np.int64)
    texts = []
    for i in range(n):
        kind = rng.integers(kinds, size=lengths[i])
        texts.append(embeddings[kind] + 0.3 * rng.standard_normal((lengths[i], width)))
        values[i, : lengths[i]] = (kind + shift[i]) % kinds
    said = rng.standard_normal((kinds, width)) * 2
    images = 0.3 * rng.standard_normal((n, 4, width))
    images[np.arange(n), rng.integers(4, size=n)] += said[shift]
    names = tuple(f"tag {k}" for k in range(kinds))
    return images, texts, Targets("tag", names, values)


def many_classes(n: int, rng, kinds: int = 30, width: int = 24):
    """Imbalanced classes; the text narrows a class down to a row, the image to a column."""
    share = 1 / np.arange(1, kinds + 1)
    label = rng.choice(kinds, size=n, p=share / share.sum())
    rows, columns = rng.standard_normal((2, kinds, width)) * 1.5
    texts = rows[label // 6][:, None] + 0.6 * rng.standard_normal((n, 3, width))
    images = columns[label % 6][:, None] + 0.6 * rng.standard_normal((n, 4, width))
    return images, texts, classes(label, tuple(f"class {k:02d}" for k in range(kinds)))


def regression(n: int, rng, width: int = 16):
    """A product of two hidden values plus a little of each, far from 0 and of a large scale."""
    a, b = rng.standard_normal((2, n))
    direction = rng.standard_normal((2, width))
    texts = a[:, None, None] * direction[0] + 0.3 * rng.standard_normal((n, 3, width))
    images = b[:, None, None] * direction[1] + 0.3 * rng.standard_normal((n, 4, width))
    values = 5000 + 300 * (a * b + 0.3 * a)
    return images, texts, Targets("regress", (), values.astype(np.float32))


def matching(n: int, rng, width: int = 16, kinds: int = 12):
    """An image belongs to a text where both show the same two of several kinds."""
    shown = np.stack([rng.choice(kinds, 2, replace=False) for _ in range(n)])
    words, parts = rng.standard_normal((2, kinds, width)) * 1.5
    texts = words[shown] + 0.3 * rng.standard_normal((n, 2, width))
    images = parts[shown] + 0.3 * rng.standard_normal((n, 2, width))
    return images, texts, Targets("match", (), np.ones(n, np.int64))


def several_labels(n: int, rng, width: int = 16):
    """Three labels: one by the text, one by the image, one by their product."""
    a, b = rng.standard_normal((2, n))
    direction = rng.standard_normal((2, width))
    texts = a[:, None, None] * direction[0] + 0.3 * rng.standard_normal((n, 3, width))
    images = b[:, None, None] * direction[1] + 0.3 * rng.standard_normal((n, 4, width))
    values = np.stack([a > 0, b > 0.5, a * b > 0], axis=1).astype(np.float32)
    return images, texts, Targets("multilabel", ("text", "image", "both"), values)


def written(*values) -> Labels:
    """Labels of a file, one a pair, in the order of the pairs."""
    ids = tuple(f"pair-{'abcdefghijklmnop'[i]}" for i in range(len(values)))
    return Labels("l.csv", "label", tuple(range(len(values))), ids, values, None, None, None)
