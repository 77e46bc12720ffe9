"""init, inspect, selftest and bench from the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fusecli import FuseOptions, ImageTextFusion, Switches, fuse_files, load_module
from fusecli.bench import selftest as selftest_module
from fusecli.bench.batch import bench_batch, bench_memory
from fusecli.bench.in_memory import RowOptions, bench_rows
from fusecli.bench.processes import bench_stack
from fusecli.fusion.backend.device import cores, physical_cores
from fusecli.fusion.methods import all_methods
from fusecli.report.inspect import inspect_file


def run(*args, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "fusecli", *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_init_then_fuse_equals_fuse_with_the_seed(tmp_path):
    image, text = tmp_path / "i.npy", tmp_path / "t.npy"
    rng = np.random.default_rng(0)
    np.save(image, rng.standard_normal((5, 20), np.float32))
    np.save(text, rng.standard_normal((4, 24), np.float32))
    sizes = ["--dim", "16", "--heads", "4"]
    done = run("init", "-o", tmp_path / "w.safetensors", *sizes, "--image-dim", 20, "--text-dim",
               24, "--seed", 7)  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "w.safetensors"))
    for name, how in (
        ("a", ["--weights", tmp_path / "w.safetensors"]),
        ("b", [*sizes, "--seed", 7]),
    ):
        assert run("fuse", image, text, *how, "-o", tmp_path / f"{name}.npy").returncode == 0
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.parametrize(
    ("tokens", "given", "threads"),
    [(5, {}, 1), (9_000, {}, None), (5, {"OMP_NUM_THREADS": "2"}, None)],
)
def test_a_small_job_uses_one_thread_unless_told_otherwise(
    tmp_path, program, monkeypatch, tokens, given, threads
):
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    np.save(tmp_path / "i.npy", np.ones((tokens, 16), np.float32))
    np.save(tmp_path / "t.npy", np.ones((4, 16), np.float32))
    done = program("fuse", "i.npy", "t.npy", "--json", cwd=tmp_path, env=given)
    expected = min(2, cores()) if given else physical_cores()
    assert json.loads(done.stdout)["provenance"]["threads"] == (threads or expected)


@pytest.mark.slow
def test_init_does_not_replace_a_file_without_force(tmp_path):
    target = tmp_path / "w.safetensors"
    assert run("init", "-o", target, "--dim", 16).returncode == 0
    before = target.read_bytes()
    done = run("init", "-o", target, "--dim", 8)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert target.read_bytes() == before
    assert run("init", "-o", target, "--dim", 8, "-f").returncode == 0
    assert target.read_bytes() != before


@pytest.mark.slow
def test_inspect_lists_tensors_and_how_they_would_be_read(tmp_path):
    path = tmp_path / "f.safetensors"
    save_file({"image": np.zeros((3, 5, 8), np.float16), "ids": np.arange(4)}, path)
    done = run("inspect", "--json", path)
    assert done.returncode == 0
    (found,) = json.loads(done.stdout)
    by_key = {tensor["key"]: tensor for tensor in found["tensors"]}
    assert by_key["image"]["shape"] == [3, 5, 8]
    assert by_key["image"]["dtype"] == "float16"
    assert by_key["image"]["bytes"] == 240
    assert (by_key["image"]["as_image"], by_key["image"]["as_text"]) == ("NPD", "NTD")
    assert by_key["ids"]["as_text"] == "D"
    assert found["bytes"] == path.stat().st_size
    table = run("inspect", path).stdout
    assert "[3, 5, 8]" in table
    assert "float16" in table


@pytest.mark.slow
def test_inspect_of_weights_shows_the_fusion(tmp_path):
    path = tmp_path / "w.safetensors"
    run("init", "-o", path, "--dim", 16, "--heads", 2, "--norm")
    weights = inspect_file(str(path))["weights"]
    assert (weights["embed_dim"], weights["num_heads"], weights["norm"]) == (16, 2, True)
    assert weights["trained"] is False
    assert "untrained, seed 0" in run("inspect", path).stdout
    run("init", "-o", path, "-f", "--dim", 16, "--method", "transformer", "--layers", 1)
    assert ", 1 layer, F = 64," in run("inspect", path).stdout


def test_inspect_reads_only_the_header(tmp_path):
    path = tmp_path / "huge.npy"
    shape = (1 << 16, 197, 768)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + 4 * 197 * 768 * (1 << 16))  # 40 GB of nothing
    assert inspect_file(str(path))["tensors"][0]["shape"] == list(shape)


@pytest.mark.parametrize("order", ["C", "F"])
def test_stats_count_what_is_wrong_whatever_the_chunks(tmp_path, monkeypatch, order):
    monkeypatch.setattr("fusecli.report.inspect._CHUNK_BYTES", 256)
    values = np.random.default_rng(0).standard_normal((7, 5, 6)).astype(np.float32)
    values[1, 2, 3] = np.nan
    values[2, 0, :2] = np.inf
    values[4, :3] = 0
    path = tmp_path / "x.npy"
    np.save(path, np.asarray(values, order=order))
    stats = inspect_file(str(path), stats=True)["tensors"][0]["stats"]
    finite = values[np.isfinite(values).all(axis=2)]
    norms = np.linalg.norm(finite.astype(np.float64), axis=1)
    assert (stats["rows"], stats["nan"], stats["infinite"], stats["zero_rows"]) == (35, 1, 2, 3)
    assert stats["mean_norm"] == pytest.approx(norms.mean())
    assert stats["largest_norm"] == pytest.approx(norms.max())


@pytest.mark.slow
def test_counts_of_one_are_not_plural(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((1, 6), np.float32))
    assert "numbers: 1 row, 0 NaN, 0 infinite, 1 zero row, mean" in (
        run("inspect", "--stats", path).stdout
    )
    np.save(path, np.zeros((2, 6), np.float32))
    assert "numbers: 2 rows, 0 NaN, 0 infinite, 2 zero rows, " in (
        run("inspect", "--stats", path).stdout
    )


@pytest.mark.slow
def test_selftest_passes_here():
    done = run("selftest", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["passed"]
    assert {check["where"] for check in found["checks"]} >= {"numpy", "torch cpu"}
    checked = {check["check"].split(" ")[0] for check in found["checks"]}
    assert {"gated", "concat", "sum", "bilinear", "transformer"} <= checked


@pytest.mark.slow
def test_selftest_fails_when_the_arithmetic_is_wrong(monkeypatch):
    real = selftest_module.attend

    def wrong(operands, image, text, arrays, mask=None, weights_out=None):
        # Samples mixed up, as a wrong batch_first does.
        out = real(operands, image, text, arrays, mask, weights_out)
        if len(out) > 1:
            out[0] = out[0] + 0.01 * out[1]
        return out

    monkeypatch.setattr(selftest_module, "attend", wrong)
    failed = {r.check for r in selftest_module.run_selftest() if not r.passed}
    assert "parity with the plain module" in failed
    assert "samples do not influence each other" in failed


@pytest.mark.slow
def test_selftest_fails_when_a_method_is_wrong(monkeypatch):
    monkeypatch.setattr(
        "fusecli.fusion.methods.pooled.pool_tokens", lambda rows, mask, how: rows.mean(axis=1)
    )
    failed = {r.check.split(" ")[0] for r in selftest_module.run_selftest() if not r.passed}
    assert failed == {method.name for method in all_methods() if method.pools_context}
    assert failed >= {"concat", "sum", "bilinear"}


@pytest.mark.slow
def test_bench_compares_equal_results():
    rows = list(
        bench_rows(
            RowOptions(image_tokens=(1, 3), text_tokens=(4,), dim=32, heads=4, pairs=3, turns=1),
            peak=1.0,
        )
    )
    assert [(row.P, row.T) for row in rows] == [(1, 4), (3, 4)]
    assert all(row.deviation < 1e-5 and row.rate > 0 for row in rows)


@pytest.mark.parametrize(
    "args",
    [
        ["--P", "x"],
        ["--T", "0"],
        ["--dtype", "float64"],
        ["--engine", "numpy", "--dtype", "bfloat16"],
        ["--turns", "0"],
        ["--dim", "10", "--heads", "3"],
    ],
)
def test_bench_refuses_impossible_options_in_one_line(cli, args):
    done = cli("bench", *args)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


@pytest.mark.slow
def test_bench_times_a_stack_from_file_to_file():
    made = bench_stack(pairs=5, P=3, T=2, dim=16)
    assert made.file_gb == pytest.approx((2 * 128 + 5 * (3 + 2) * 16 * 4) / 1e9)
    assert made.rate == pytest.approx(5 / made.seconds)
    assert made.resident_mb is None or made.resident_mb > 1


def test_inspect_shows_the_good_files_and_says_which_are_bad(tmp_path):
    np.save(tmp_path / "good.npy", np.zeros((3, 5)))
    (tmp_path / "bad.npy").write_bytes(b"")
    done = run("inspect", "bad.npy", "good.npy", cwd=tmp_path)
    assert done.returncode == 1
    assert "[3, 5]" in done.stdout
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: bad.npy")


def test_one_tensor_that_is_both_sides_has_its_mask_on_both(tmp_path):
    rng = np.random.default_rng(0)
    states, real = rng.standard_normal((2, 6, 8)).astype(np.float32), np.array([4, 6])
    mask = (np.arange(6) < real[:, None]).astype(np.int64)
    save_file({"last_hidden_state": states, "attention_mask": mask}, tmp_path / "x.safetensors")
    options = FuseOptions(
        tmp_path / "x.safetensors",
        tmp_path / "x.safetensors",
        tmp_path / "both.npy",
        Switches(heads=2),
    )
    report = fuse_files(options)
    assert (
        report.inputs["image"]["mask"]["padding"] == report.inputs["text"]["mask"]["padding"] == 2
    )
    np.save(tmp_path / "cropped.npy", states[0, :4])
    cropped = tmp_path / "cropped.npy"
    fuse_files(FuseOptions(cropped, cropped, tmp_path / "one.npy", Switches(heads=2)))
    both, one = np.load(tmp_path / "both.npy"), np.load(tmp_path / "one.npy")
    np.testing.assert_allclose(both[0, :4], one, atol=1e-6)


def test_heads_that_a_file_does_not_say_are_assumed_with_a_warning(tmp_path):
    torch.save(ImageTextFusion(16, 2).state_dict(), tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="8 are assumed"):
        assert load_module(str(tmp_path / "w.pt")).config.num_heads == 8
    assert load_module(str(tmp_path / "w.pt"), heads=2).config.num_heads == 2


@pytest.mark.slow
def test_bench_times_a_batch_against_the_loop_and_its_memory():
    made = bench_batch(pairs=30, turns=1)
    assert made.pairs == 30
    assert min(made.loop_rate, made.rate, made.packed_rate) > 0
    assert made.ratio == pytest.approx(made.rate / made.loop_rate)
    keyed = bench_memory(pairs=50, shard=20)
    assert keyed.rate > 0
    assert keyed.listing_s > 0
    if sys.platform == "linux":
        assert made.resident_mb > 10
        assert keyed.resident_mb > 10


@pytest.mark.slow
def test_init_says_that_its_weights_are_untrained_and_how_to_train(tmp_path):
    done = run("init", "-o", tmp_path / "w.safetensors", "--dim", 16)
    assert "this module is untrained" in done.stderr
    assert "'fusecli train'" in done.stderr
    done = run("init", "-o", tmp_path / "w.safetensors", "--dim", 16, "-f", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
