"""Products in which no row's bits depend on the others."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli.fusion.backend import row_stable
from fusecli.fusion.backend.arrays import NumpyArrays
from fusecli.fusion.backend.device import one_thread_a_product
from fusecli.fusion.backend.row_stable import RowStableArrays, blocks_of, is_row_stable


@pytest.fixture(params=[(8,), (24, 8), row_stable._BLOCKS])
def blocks(request, monkeypatch):
    """Numbers of rows to try; products of eight are row-stable with every kernel there is here."""
    monkeypatch.setattr(row_stable, "_BLOCKS", request.param)
    blocks_of.cache_clear()
    with one_thread_a_product():
        yield request.param
    blocks_of.cache_clear()


SHAPES = [(96, 64), (40, 33), (4, 24, 32), (4, 32, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 31, 200])
def test_row_stable_products_equal_plain_ones(blocks, shape, count):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape, np.float32)
    bias = rng.standard_normal(shape[0], np.float32)
    if not blocks_of(shape):
        pytest.skip("this machine's library has none of them")
    if len(shape) == 2:
        rows = rng.standard_normal((count, shape[1]), np.float32)
        given = ("name", rows, weight, bias)
        made, plain = RowStableArrays().linear(*given), NumpyArrays().linear(*given)
    else:
        rows = rng.standard_normal((count, *shape[:2]), np.float32)
        given = ("name", rows, weight)
        made, plain = RowStableArrays().per_head(*given), NumpyArrays().per_head(*given)
    np.testing.assert_allclose(made, plain, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(96, 64), (768, 96), (8, 96, 64)]),
    count=st.integers(1, 300),
    data=st.data(),
)
def test_a_row_comes_out_the_same_wherever_it_is(shape, count, data):
    kept = row_stable._BLOCKS
    for tried in ((8,), kept):
        row_stable._BLOCKS = tried
        blocks_of.cache_clear()
        try:
            with one_thread_a_product():
                if not blocks_of(shape):
                    continue
                _same_anywhere(shape, count, data.draw(st.integers(0, count - 1)))
        finally:
            row_stable._BLOCKS = kept
            blocks_of.cache_clear()


def _same_anywhere(shape, count, place):
    rng = np.random.default_rng(count)
    weight = rng.standard_normal(shape, np.float32)
    width = shape[1:] if len(shape) == 2 else shape[:2]
    rows = rng.standard_normal((count, *width), np.float32)
    arrays = RowStableArrays()

    def product(rows):
        if len(shape) == 2:
            return arrays.linear("name", rows, weight, None).copy()
        return arrays.per_head("name", rows, weight).copy()

    together, alone = product(rows), product(rows[place : place + 1])
    assert together[place].tobytes() == alone[0].tobytes()


def test_a_library_whose_rows_depend_on_their_position_is_detected(monkeypatch):
    def minding(rows, weight):
        made = rows @ weight.T
        made[-1] += made[-1] * np.float32(1e-7)
        return made

    monkeypatch.setattr(row_stable, "_linear", minding)
    blocks_of.cache_clear()
    assert blocks_of((96, 64)) == ()
    assert not is_row_stable([np.zeros((96, 64), np.float32)])
    blocks_of.cache_clear()


def test_weights_with_one_axis_need_no_block_size():
    assert is_row_stable([np.zeros(5, np.float32)])


COMPANY = """
import sys
import os
import subprocess
import sys

import numpy as np
from fusecli.batch import BatchOptions, run_batch
from fusecli.pairs.open import PairOptions

run_batch(BatchOptions(PairOptions("image", "text"), "out"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["Haswell", "Zen", None])
@pytest.mark.parametrize(("P", "T", "D"), [(49, 8, 768), (5, 7, 96), (1, 3, 64)])
def test_copies_of_one_pair_come_out_alike_with_every_kernel(folder, kernel, P, T, D):
    rng = np.random.default_rng(0)
    pair = {"image": rng.standard_normal((P, D), np.float32)}
    pair["text"] = rng.standard_normal((T, D), np.float32)
    for side, array in pair.items():
        (folder / side).mkdir()
        for k in range(9):
            np.save(folder / side / f"{k}.npy", array)
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    if kernel is not None:
        env["OPENBLAS_CORETYPE"] = kernel
    done = subprocess.run(
        [sys.executable, "-c", COMPANY], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len({(folder / "out" / f"{k}.npy").read_bytes() for k in range(9)}) == 1
