"""What a pair gives depends neither on its neighbours nor on how a run was cut."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli import Switches
from fusecli.batch import BatchOptions, Shard, run_batch
from fusecli.batch.resolve import resolve
from fusecli.batch.tuning import Tuning
from fusecli.batch.worker import Fuser
from fusecli.fusion.backend import row_stable
from fusecli.fusion.methods.attention import fusion
from fusecli.pairs.open import Pair, PairOptions, open_pairs
from tests.batch.runs import COUNT, names, options
from tests.batches import make_pairs, outputs

KINDS = {
    "numpy": {"engine": "numpy"},
    "residual": {"engine": "numpy", "switches": Switches(residual=True, norm=True)},
    "null token": {"engine": "numpy", "switches": Switches(null_token=True)},
    "both, pooled": {"engine": "numpy", "direction": "both", "pool": "mean"},
    "image": {"engine": "numpy", "direction": "image"},
    "sum": {"engine": "numpy", "switches": Switches(method="sum", dim=16)},
    "torch": {"engine": "torch"},
    "transformer": {"switches": Switches(method="transformer", layers=1)},
    "bfloat16": {"engine": "torch", "dtype": "bfloat16"},
}


@pytest.fixture(params=[True, False], ids=["joined", "alone"])
def joined(request, monkeypatch):
    """Whether numpy fuses pairs together: blocks of eight rows are row-stable with every kernel."""
    monkeypatch.setattr(row_stable, "_BLOCKS", (8,))
    if not request.param:
        monkeypatch.setattr(fusion, "is_row_stable", lambda weights: False)
    row_stable.blocks_of.cache_clear()
    yield request.param
    row_stable.blocks_of.cache_clear()


def everything(o: BatchOptions) -> tuple[Fuser, list[Pair]]:
    source = open_pairs(o.pairs)
    return Fuser(*resolve(o, source, None)), list(source)


def tensors(results) -> dict[str, list[bytes]]:
    assert all(result.error is None for result in results)
    return {r.pair.id: [t.tobytes() for t in r.tensors.values()] for r in results}


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_of_a_pair_does_not_depend_on_other_pairs(pairs, kind, joined, one_thread):
    # Some with masks, and some of odd types, among the others.
    for name in names()[3:12:3]:
        image = np.load(f"images/{name}.npy")
        np.savez(f"images/{name}.npz", image=image, image_mask=np.arange(len(image)) < 4)
        os.unlink(f"images/{name}.npy")
    np.save("texts/1/0010.npy", np.load("texts/1/0010.npy").astype(np.float16))
    fuser, every = everything(options(**KINDS[kind]))
    with fuser.undivided():
        alone = tensors([fuser.work([pair], 1 << 30)[0] for pair in every])
        together = tensors(fuser.work(every, 1 << 30))
        backwards = tensors(fuser.work(every[::-1], 1 << 30))
        parts = tensors(fuser.work(every[:7], 1 << 30) + fuser.work(every[7:], 1 << 30))
    assert alone == together == backwards == parts
    if kind == "numpy":
        assert any(fusion.row_stable for fusion in fuser._built.values()) == joined


def test_pairs_fused_together_get_the_same_results_as_alone(pairs, joined, monkeypatch):
    fuser, every = everything(options(engine="numpy", switches=Switches(residual=True)))
    made = [result.tensors["fused"] for result in fuser.work(every, 1 << 30)]
    monkeypatch.setattr(fusion, "is_row_stable", lambda weights: False)
    fuser, every = everything(options(engine="numpy", switches=Switches(residual=True)))
    for rows, result in zip(made, fuser.work(every, 1 << 30), strict=True):
        np.testing.assert_allclose(rows, result.tensors["fused"], atol=1e-6)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    workers=st.integers(1, 3),
    window=st.integers(1, 40),
    memory=st.sampled_from([1, 5000, 1 << 20]),
    broken=st.sets(st.integers(0, COUNT - 1), max_size=5),
    of=st.integers(1, 3),
)
def test_bytes_do_not_depend_on_how_the_run_was_cut(
    tmp_path_factory, workers, window, memory, broken, of
):
    folder = tmp_path_factory.mktemp("cut")
    make_pairs(folder, COUNT)
    here = PairOptions(str(folder / "images"), str(folder / "texts"))
    run_batch(BatchOptions(here, str(folder / "whole")))
    for index in sorted(broken):
        path = folder / f"images/{index % 3}/{index:04d}.npy"
        np.save(path, np.full_like(np.load(path), np.nan))
    for index in range(1, of + 1):
        part = Shard(index, of)
        run_batch(
            BatchOptions(here, str(folder / "cut"), shard=part, workers=workers, max_memory=memory),
            tuning=Tuning(window_pairs=window),
        )
    whole, cut = outputs(folder / "whole"), outputs(folder / "cut")
    assert len(cut) == COUNT - len(broken)
    assert all(whole[name] == content for name, content in cut.items())
    shutil.rmtree(folder)


def test_old_pairs_keep_their_results_when_new_ones_are_added(cli, pairs):
    shutil.copytree("images", "more/images")
    shutil.copytree("texts", "more/texts")
    shutil.rmtree("images/0")
    assert cli("batch", "images", "texts", "-o", "out").code == 0
    before = outputs(pairs / "out")
    os.rename("images", "few")
    os.rename("more/images", "images")
    done = cli("batch", "images", "texts", "-o", "out")
    assert "10 done, 20 skipped" in done.err
    after = outputs(pairs / "out")
    assert len(after) == COUNT
    assert all(after[name] == content for name, content in before.items())
