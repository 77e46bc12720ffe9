"""Packed and streamed examples give the same batches; statistics are those of the real tokens."""

from __future__ import annotations

import numpy as np
import pytest

from fusecli.errors import ShapeError
from fusecli.features.pair_inputs import ReadOptions
from fusecli.pairs.pair import Pair, Place
from fusecli.training.examples import Pooled, load_examples
from fusecli.training.pair_files import PairFiles
from fusecli.training.side_index import PackedSide
from tests.training.generators import InMemory, OnePair


def pairs(rng, n=30):
    shared = rng.normal(size=(6, 3)).astype(np.float32)
    made = []
    for i in range(n):
        T, P = rng.integers(1, 6), rng.integers(1, 5)
        text = rng.normal(size=(T, 4)).astype(np.float32)
        image = shared if i % 3 == 0 else rng.normal(2, 3, size=(P, 3)).astype(np.float32)
        text_mask = image_mask = None
        if i == 4:
            text = rng.normal(size=(5, 4)).astype(np.float32)
            text_mask = np.array([True, False, True, True, False])
            text[~text_mask] = 0
        if i == 7:
            image_mask = np.zeros(len(image), bool)
            image_mask[0] = True
            image = np.where(image_mask[:, None], image, np.float32(0))
        made.append(OnePair(image, text, image_mask, text_mask))
    return made


def both(rng, n=30):
    source = InMemory(pairs(rng, n))
    packed, streamed = load_examples(source, 1 << 20), load_examples(source, 400)
    assert packed.in_memory
    assert not streamed.in_memory
    assert "--max-memory" in streamed.notes[0]
    return source, packed, streamed


def test_packed_and_streamed_examples_are_the_same():
    _, packed, streamed = both(np.random.default_rng(0))
    texts, images = np.array([4, 0, 7, 4, 29]), np.array([7, 3, 0, 1, 7])
    for pooled in (Pooled(), Pooled(text=True), Pooled(image=True), Pooled(True, True)):
        one, two = (e.batch(texts, images, pooled) for e in (packed, streamed))
        for name in ("text", "image", "text_mask", "image_mask"):
            first, second = getattr(one, name), getattr(two, name)
            assert (first is None) == (second is None), name
            if first is not None:
                np.testing.assert_array_equal(first, second)
    assert packed.image_key == streamed.image_key
    np.testing.assert_array_equal(packed.text_mask, streamed.text_mask)


def test_a_batch_holds_what_the_pairs_hold():
    source, packed, _ = both(np.random.default_rng(1))
    rows = np.array([4, 1, 7])
    found = packed.batch(rows)
    for position, row in enumerate(rows):
        pair = source.pairs[row]
        text = found.text[position][found.text_mask[position]]
        real = slice(None) if pair.text_mask is None else pair.text_mask
        np.testing.assert_array_equal(text, pair.text[real])
        real = slice(None) if pair.image_mask is None else pair.image_mask
        np.testing.assert_array_equal(
            found.image[position][found.image_mask[position]], pair.image[real]
        )
    # A text keeps the places of its tokens: tags count them.
    np.testing.assert_array_equal(found.text_mask[0][:4], [True, False, True, True])


def test_pairs_with_the_same_image_share_a_key():
    _, packed, _ = both(np.random.default_rng(2))
    assert len({packed.image_key[i] for i in range(0, 30, 3)}) == 1
    assert len(set(packed.image_key)) == 21
    assert len(set(packed.text_key)) == 30


@pytest.mark.parametrize("pooled", [False, True])
def test_statistics_are_those_of_the_distinct_real_tokens(pooled):
    source, packed, streamed = both(np.random.default_rng(3))
    rows = np.array([0, 3, 7, 1, 2])  # 0 and 3 are one image
    samples = [source.pairs[i].image for i in (0, 7, 1, 2)]
    samples[1] = samples[1][:1]
    if pooled:
        samples = [sample.mean(axis=0, keepdims=True) for sample in samples]
    tokens = np.concatenate(samples).astype(np.float64)
    for examples in (packed, streamed):
        found = examples.statistics("image", rows, pooled)
        np.testing.assert_allclose(found.mean, tokens.mean(axis=0), rtol=1e-5, atol=1e-6)
        std = tokens.std(axis=0)
        np.testing.assert_allclose(found.std, np.maximum(std, std.mean() / 10), rtol=1e-5)


def test_the_spread_of_a_constant_channel_is_floored():
    rng = np.random.default_rng(4)
    images = rng.normal(size=(20, 2, 3)).astype(np.float32)
    images[..., 1] = 5 + 1e-6 * images[..., 1]
    source = InMemory([OnePair(i, np.ones((1, 2), np.float32)) for i in images])
    examples = load_examples(source, 1 << 20)
    std = examples.statistics("image", np.arange(20)).std
    assert std[1] == pytest.approx(0.1 * (std[0] + std[2]) / 3, rel=0.01)
    # A channel that differs by rounding only is not blown up either.
    images[..., 1] = 5 + np.float32(5e-7) * rng.integers(-1, 2, images[..., 1].shape)
    source = InMemory([OnePair(i[..., 1:2], np.ones((1, 2), np.float32)) for i in images])
    assert load_examples(source, 1 << 20).statistics("image", np.arange(20)).std[0] == 1
    # A side that never varies is left as it is.
    np.testing.assert_array_equal(examples.statistics("text", np.arange(20)).std, [1, 1])


def test_features_of_another_width_name_both_pairs():
    source = InMemory(
        [OnePair(np.ones((2, 3), np.float32), np.ones((1, w), np.float32)) for w in (4, 4, 5)]
    )
    with pytest.raises(ShapeError, match=r"p00002: its text features are 5 wide.*p00000 are 4"):
        load_examples(source, 1 << 20)


def test_features_that_are_much_too_large_are_not_collected_until_the_memory_is_full(monkeypatch):
    """All would take three times the memory, which the first 200 pairs tell."""
    rng = np.random.default_rng(2)
    source = InMemory(
        [OnePair(*rng.normal(size=(2, 1, 8)).astype(np.float32)) for _ in range(2000)]
    )
    size = 2 * 2000 * 4 * 8
    numbers = np.arange(2000)
    named = {"text": numbers, "image": numbers}
    assert _most_packed(monkeypatch, source, size // 3, named) <= 201
    assert _most_packed(monkeypatch, source, 2 * size, named) == 2000


def test_what_the_first_pairs_tell_is_said_as_such():
    """201 pairs of more image tokens than the others, as where they are sorted."""
    named = {"text": np.arange(2000), "image": np.arange(2000)}
    rng = np.random.default_rng(5)

    def read(long, max_memory):
        lengths = [long] * 201 + [1] * 1799
        made = [rng.normal(size=(n + 1, 25)).astype(np.float32) for n in lengths]
        source = InMemory([OnePair(both[:-1], both[-1:]) for both in made])
        return load_examples(source, max_memory, named=named)

    # By the first pairs 2000 * 21 * 100 bytes.
    assert read(20, 1_000_000).notes == [
        "the features would take about 4.2 MB by the first 201 pairs, more than --max-memory "
        "allows: every batch is read from the files"
    ]
    # By the first pairs 1.2 MB, above the memory; it is 0.48 MB, which fits.
    assert read(5, 700_000).in_memory
    assert read(2, 400_000).notes == [
        "the features are larger than --max-memory allows: every batch is read from the files"
    ]


def test_features_that_many_pairs_share_are_packed_though_the_first_pairs_are_all_different(
    monkeypatch,
):
    """300 images and texts in 3,000 pairs, the first 300 pairs without a repetition."""
    rng = np.random.default_rng(3)
    different = [OnePair(*rng.normal(size=(2, 1, 8)).astype(np.float32)) for _ in range(300)]
    numbers = np.arange(3000) % 300
    source = InMemory([different[number] for number in numbers])
    named = {"text": numbers, "image": numbers}
    assert _most_packed(monkeypatch, source, 40_000, named) == 300


def _most_packed(monkeypatch, source, max_memory, named) -> int:
    """How many samples of a side were packed."""
    counts = {}
    add = PackedSide.add

    def counted(self, tokens):
        counts[id(self)] = counts.get(id(self), 0) + 1
        return add(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(PackedSide, "add", counted)
        examples = load_examples(source, max_memory, named=named)
    most = max(counts.values())
    assert examples.in_memory == (most == len(set(named["image"].tolist())))
    return most


def test_pairs_name_the_same_features_by_file_key_and_row():
    one, row, key = Place("a.npy", None), Place("a.npy", None, 1), Place("a.npz", "k")
    images, texts = [one, row, one, key], [key, key, one, one]
    pairs = [Pair(str(i), images[i], texts[i], None, None, None) for i in range(4)]
    named = PairFiles(pairs, ReadOptions()).named()
    assert named["image"].tolist() == [0, 1, 0, 2]
    assert named["text"].tolist() == [0, 0, 1, 1]
