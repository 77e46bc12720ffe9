"""Parts of the report: attributes in Python, and the keys that the JSON has."""

import json

import numpy as np
import pytest

from fusecli import FuseOptions, fuse_files
from fusecli.report.inspect import inspect_file
from fusecli.report.inspect_parts import TensorStats
from fusecli.report.parts import AttentionPart, MapsPart


@pytest.fixture
def report(folder):
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.standard_normal((5, 8), np.float32))
    np.save("text.npy", rng.standard_normal((3, 8), np.float32))
    return fuse_files(FuseOptions("image.npy", "text.npy"))


def test_a_part_has_attributes_and_the_keys_of_the_json(report):
    data = json.loads(report.to_json())
    assert report.output.shape == report.output["shape"] == data["output"]["shape"] == [3, 8]
    assert report.module.weights.seed == data["module"]["weights"]["seed"] == 0
    for name in ("module", "output", "provenance", "attention"):
        part = getattr(report, name)
        assert list(part) == part.keys() == list(data[name])
        assert part == data[name]
        assert dict(part) == part
        assert part != {**data[name], "more": 1}
    assert report.inputs["text"] == data["inputs"]["text"]
    assert report.inputs["text"].sizes == {"T": 3, "D": 8}


def test_settings_of_the_module_stand_beside_its_other_keys(report):
    assert report.module["residual"] is False
    assert report.module.get("layers") is None
    assert "settings" not in report.module
    with pytest.raises(KeyError):
        report.module["settings"]


def test_keys_that_only_some_reports_have_are_left_out():
    maps = {"file": "a.npy", "key": None, "shape": [1], "axes": "T", "dtype": "float32", "bytes": 4}
    assert MapsPart(**maps, layer=None) == maps
    assert MapsPart(**maps, layer=0) == {**maps, "layer": 0}


def test_parts_of_two_kinds_are_not_equal():
    values = {"mean_entropy": 1.0, "max_entropy": 2.0, "entropy_ratio": 0.5, "samples": 1}
    assert AttentionPart(**values) == AttentionPart(**values)
    assert AttentionPart(**values) != AttentionPart(**{**values, "samples": 2})
    assert AttentionPart(**values) != TensorStats(**values)


def test_what_inspect_finds_can_be_read_by_key(report, folder):
    found = inspect_file("image.npy")
    assert found["tensors"][0]["shape"] == found.tensors[0].shape == [5, 8]
    assert "stats" not in found["tensors"][0]
    stats = inspect_file("image.npy", stats=True)["tensors"][0]["stats"]
    assert stats["rows"] == stats.rows == 5
