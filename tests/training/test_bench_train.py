"""`fusecli bench --train`: what is measured, and what is printed of it."""

from __future__ import annotations

import json

import pytest

from fusecli.bench import train as bench
from fusecli.bench.train import TrainResult, bench_train, write_pairs
from fusecli.cli.commands.bench import _bench_train


def test_bench_train_prints_its_result(monkeypatch, capsys):
    result = TrainResult(10_000, {0: 500.0, 2: 800.0}, 4.2, 1700.0, 2400.0, 3.0, 240.0, 950.0)
    monkeypatch.setattr(bench, "bench_train", lambda *_: result)
    _bench_train(10_000, table=True, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "10,000 pairs [49, 384] with [4..16, 384] in .npy files",
        "a PyTorch loop: 500 with 0 workers, 800 with 2 workers (pairs/s of an epoch)",
        "fusecli: 1700 pairs/s one model on one thread, 2400 two side by side: 3.00 times the "
        "loop; 4.2 s to read the files once",
        "from files to all models of the table: 240 s",
        "950 MB resident at most",
    ]
    _bench_train(10_000, table=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["ratio"] == 3.0


@pytest.mark.slow
def test_bench_train_measures_the_loop_and_the_fit(monkeypatch):
    fitted = []

    def fit(examples, targets, split, options, progress):
        fitted.append((examples.n, len(split.train), len(split.validation), options.method))

    monkeypatch.setattr("fusecli.training.fit.fit", fit)
    rates = {0: 40.0, 2: 50.0}
    monkeypatch.setattr(bench, "_plain_rate", lambda folder, workers: rates[workers])
    told = []
    result = bench_train(30, True, 1 << 30, told.append)
    assert fitted == [(30, 27, 3, "auto")]
    assert result.plain_rates == rates
    assert result.rate > 0
    assert result.ratio == pytest.approx(result.side_by_side_rate / 50)
    assert result.table_seconds is not None
    assert result.table_seconds > result.read_seconds
    assert told[-1] == "all models of the table"
    assert bench_train(30, False, 1 << 30, told.append).table_seconds is None


@pytest.mark.slow
def test_the_plain_loop_runs(tmp_path):
    write_pairs(tmp_path, 40)
    assert bench._plain_rate(str(tmp_path), workers=0) > 0
