"""Pairs read one at a time: rows of stacks, masks, many threads, and what is refused."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fusecli.errors import FuseError, ShapeError, UsageError
from fusecli.features.pair_inputs import ReadOptions
from fusecli.pairs.pair import Pair, Place
from fusecli.pairs.reader import PairReader

N, P, T, DI, DT = 6, 5, 4, 8, 10
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((N, P, DI)).astype(np.float32)
TEXTS = RNG.standard_normal((N, T, DT)).astype(np.float32)


def pair(image: Place, text: Place, **masks: Place) -> Pair:
    return Pair("a", image, text, masks.get("image_mask"), masks.get("text_mask"), None)


def save(name: str, array: NDArray[np.generic], **others: NDArray[np.generic]) -> Place:
    """A stack in a file of the ending's kind; with others beside it, if the kind can."""
    if name.endswith(".npy"):
        np.save(name, array)
    elif name.endswith(".npz"):
        np.savez_compressed(name, features=array, **others)
    elif name.endswith(".pt"):
        import torch

        tensors = {"features": array, **others}
        torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, name)
    else:
        save_file({"features": array, **others}, name)
    return Place(name, None)


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "pt"])
def test_a_row_of_a_stack_is_one_sample(folder: Path, ending: str) -> None:
    save(f"i.{ending}", IMAGES)
    save(f"t.{ending}", TEXTS)
    reader = PairReader(ReadOptions())
    for image_row, text_row in ((0, 0), (5, 1), (2, 5), (0, 3)):
        given = pair(Place(f"i.{ending}", None, image_row), Place(f"t.{ending}", None, text_row))
        read = reader.read(given)
        assert np.array_equal(read.image, IMAGES[image_row])
        assert np.array_equal(read.text, TEXTS[text_row])
        assert read.image.dtype == read.text.dtype == np.float32
        assert read.image_mask is None
        assert read.text_mask is None
        shapes = reader.shapes(given)
        assert (shapes.N, shapes.P, shapes.T) == (1, P, T)
        assert (shapes.image.width, shapes.text.width) == (DI, DT)


def test_rows_of_vectors_maps_and_other_orders(folder: Path) -> None:
    """`[N, D]` is a vector a sample; axes that are named say where N is."""
    np.save("vectors.npy", IMAGES[:, 0])
    np.save("maps.npy", RNG.standard_normal((N, DI, 2, 3)).astype(np.float16))
    np.save("first.npy", np.asfortranarray(TEXTS.swapaxes(0, 1)))  # [T, N, D]
    read = PairReader(ReadOptions(text_axes="TND")).read(
        pair(Place("vectors.npy", None, 4), Place("first.npy", None, 3))
    )
    assert np.array_equal(read.image, IMAGES[4, :1])
    assert np.array_equal(read.text, TEXTS[3])
    read = PairReader(ReadOptions(text_axes="TND", image_axes="NDHW")).read(
        pair(Place("maps.npy", None, 4), Place("first.npy", None, 3))
    )
    cells = np.load("maps.npy")[4].reshape(DI, 6).T.astype(np.float32)
    assert np.array_equal(read.image, cells)


def test_a_row_of_one_side_and_a_file_of_the_other(folder: Path) -> None:
    image, text = save("i.npy", IMAGES), save("t.npy", TEXTS[0])
    read = PairReader(ReadOptions()).read(pair(Place(image.file, None, 2), text))
    assert np.array_equal(read.image, IMAGES[2])
    assert np.array_equal(read.text, TEXTS[0])


def test_masks_of_stacks_are_cut_as_their_features(folder: Path) -> None:
    mask = np.arange(P) < RNG.integers(1, P + 1, (N, 1))
    mask[3] = [True, True, False, False, False]
    words = np.arange(T) < RNG.integers(1, T + 1, (N, 1))
    save("i.npz", IMAGES, image_mask=mask)
    save("t.npy", TEXTS)
    np.save("words.npy", words.astype(np.int64))
    np.save("for_all.npy", np.arange(T) < 2)
    reader = PairReader(ReadOptions())
    for row in range(N):
        image, text = Place("i.npz", None, row), Place("t.npy", None, row)
        read = reader.read(pair(image, text, text_mask=Place("words.npy", None)))
        for found, features, marks, stack in (
            (read.image, read.image_mask, mask[row], IMAGES[row]),
            (read.text, read.text_mask, words[row], TEXTS[row]),
        ):
            assert np.array_equal(found, np.where(marks[:, None], stack, 0))
            assert (features is None) == marks.all()
            assert features is None or np.array_equal(features, marks)
        read = reader.read(pair(image, text, text_mask=Place("for_all.npy", None)))
        assert np.array_equal(read.text_mask, [True, True, False, False])
    read = PairReader(ReadOptions(image_mask=False)).read(
        pair(Place("i.npz", None, 3), Place("t.npy", None, 0))
    )
    assert np.array_equal(read.image, IMAGES[3])


def test_a_row_that_is_not_there_names_row_and_size(folder: Path) -> None:
    image, text = save("i.npy", IMAGES), save("t.npy", TEXTS)
    reader = PairReader(ReadOptions())
    good = pair(Place(image.file, None, 5), Place(text.file, None, 5))
    for _ in range(2):  # before and after the shapes are known
        with pytest.raises(ShapeError) as refused:
            reader.read(pair(Place(image.file, None, 0), Place(text.file, None, 6)))
        assert str(refused.value) == (
            "t.npy: has no text_row 6: [6, 4, 10] holds 6 samples, rows 0 to 5"
        )
        with pytest.raises(ShapeError, match="has no image_row 99"):
            reader.shapes(pair(Place(image.file, None, 99), Place(text.file, None, 0)))
        reader.read(good)


def test_a_row_of_a_file_without_samples_is_refused(folder: Path) -> None:
    image, text = save("i.npy", IMAGES[0, 0]), save("t.npy", TEXTS[0])
    with pytest.raises(UsageError, match="image_row 1 needs an axis of samples"):
        PairReader(ReadOptions()).read(pair(Place(image.file, None, 1), text))
    with pytest.raises(UsageError, match="read as TD: name it N with --text-axes"):
        PairReader(ReadOptions(text_axes="TD")).read(
            pair(Place(image.file, None), Place(text.file, None, 1))
        )


def test_only_the_row_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stack that is larger than this machine's memory, with holes for numbers."""
    rows = 1 << 36
    with open("i.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 1, DI)}
        np.lib.format.write_array_header_2_0(file, header)
        start = file.tell()
        file.truncate(start + rows * DI * 4)
        file.seek(start + 123_456_789 * DI * 4)
        file.write(np.arange(1, DI + 1, dtype="<f4").tobytes())
    np.save("t.npy", TEXTS[0])
    read = PairReader(ReadOptions()).read(
        pair(Place("i.npy", None, 123_456_789), Place("t.npy", None))
    )
    assert np.array_equal(read.image, [np.arange(1, DI + 1)])


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors"])
def test_many_threads_read_in_any_order(folder: Path, ending: str) -> None:
    images = RNG.standard_normal((200, P, DI)).astype(np.float32)
    save(f"i.{ending}", images)
    save("t.npy", TEXTS)
    reader = PairReader(ReadOptions())
    order = RNG.permutation(200).tolist() * 2

    def read(row: int) -> bool:
        got = reader.read(pair(Place(f"i.{ending}", None, row), Place("t.npy", None, row % N)))
        return np.array_equal(got.image, images[row]) and np.array_equal(got.text, TEXTS[row % N])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, order))


def test_open_files_do_not_grow_with_the_pairs(folder: Path) -> None:
    for index in range(30):
        save(f"i{index}.npy", IMAGES)
    save("t.npy", TEXTS)
    reader = PairReader(ReadOptions())
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for index in range(30):
        reader.read(pair(Place(f"i{index}.npy", None, 1), Place("t.npy", None, 1)))
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after - before < 10


def test_bad_numbers_name_the_sample_of_the_stack(folder: Path) -> None:
    images = IMAGES.copy()
    images[4, 2, 1] = np.nan
    save("i.npy", images)
    save("t.npy", TEXTS)
    with pytest.raises(FuseError, match="NaN at sample 4, token 2, column 1"):
        PairReader(ReadOptions()).read(pair(Place("i.npy", None, 4), Place("t.npy", None, 0)))


def test_a_mask_beside_a_tensor_that_a_manifest_names_is_used(folder: Path) -> None:
    mask = np.arange(P) < 3
    np.savez("i.npz", patches=IMAGES[0], other=IMAGES[1], image_mask=mask)
    save("t.npy", TEXTS[0])
    read = PairReader(ReadOptions()).read(pair(Place("i.npz", "patches"), Place("t.npy", None)))
    assert read.image_mask is not None
    assert read.image_mask.tolist() == mask.tolist()
    assert read.image_side.used_mask is not None
    assert read.image_side.used_mask.note == "i.npz[image_mask] is used as the image mask"
