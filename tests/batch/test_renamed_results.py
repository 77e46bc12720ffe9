"""Manifests whose column `output` names other files than in an earlier run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.batches import DI, DT, outputs
from tests.faults.running import run


@pytest.fixture
def whole(folder: Path) -> dict[str, bytes]:
    """The results of three pairs of the same shapes, fused before."""
    rng = np.random.default_rng(0)
    for id in "abc":
        np.save(f"i{id}.npy", rng.standard_normal((5, DI), np.float32))
        np.save(f"t{id}.npy", rng.standard_normal((3, DT), np.float32))
    assert fuse(a="x", b="y", c="z").code == 0
    return {id: outputs(Path("out"))[f"{name}.npy"] for id, name in zip("abc", "xyz", strict=True)}


def fuse(*options: str, **names: str):
    rows = [f"{id},i{id}.npy,t{id}.npy,{name}.npy\n" for id, name in names.items()]
    Path("m.csv").write_text("id,image,text,output\n" + "".join(rows))
    return run("batch", "--manifest", "m.csv", "-o", "out", "--workers", "1", *options)


@pytest.mark.parametrize("options", [(), ("--verify",)])
def test_results_that_exchange_their_names_are_made_again(
    whole: dict[str, bytes], options: tuple[str, ...]
) -> None:
    done = fuse(*options, a="y", b="x", c="z")
    assert (done.code, "2 done, 1 skipped" in done.err) == (0, True), done
    assert "inputs changed" not in done.err
    made = outputs(Path("out"))
    assert made == {"x.npy": whole["b"], "y.npy": whole["a"], "z.npy": whole["c"]}
    assert "0 done, 3 skipped" in fuse(*options, a="y", b="x", c="z").err


@pytest.mark.parametrize("options", [(), ("--verify",)])
def test_result_with_the_name_of_one_that_is_pruned_stays(
    whole: dict[str, bytes], options: tuple[str, ...]
) -> None:
    done = fuse("--prune", *options, a="y", c="z")
    assert (done.code, "1 result is of inputs that are not there" in done.err) == (0, True), done
    made = outputs(Path("out"))
    assert (made["y.npy"], made["z.npy"]) == (whole["a"], whole["c"])
    assert "0 done, 2 skipped" in fuse("--prune", *options, a="y", c="z").err
