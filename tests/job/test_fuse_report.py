"""The report of a job is true and its keys are stable."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fusecli.fusion.options import ModuleOptions as Switches
from tests.job.jobs import DI, DT, ENGINES, IMAGE_MASK, D, H, fuse, noise, trained

TOP = [
    "report_version",
    "inputs",
    "module",
    "plan",
    "stages",
    "attention",
    "output",
    "maps",
    "diagnoses",
    "notes",
    "provenance",
    "attention_mask",
]


INPUT = [
    "file",
    "key",
    "shape",
    "dtype",
    "axes",
    "axes_from",
    "sizes",
    "sha256",
    "mask",
]
MODULE = [
    "method",
    "embed_dim",
    "num_heads",
    "head_dim",
    "image_dim",
    "text_dim",
    "residual",
    "norm",
    "null_token",
    "gate",
    "projected",
    "alpha",
    "layers",
    "ffn_dim",
    "rank",
    "parameters",
    "weights",
]


PROVENANCE = [
    "fusecli",
    "python",
    "machine",
    "libraries",
    "engine",
    "device",
    "dtype",
    "threads",
    "seed",
]


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_the_report_s_json_has_stable_keys_and_says_what_was_done():
    module = trained()
    image, text = noise(3, 4, DI).astype(np.float16), noise(3, 5, DT, seed=1)
    _, made = fuse(image, text, reports=("r.json", "again.json"))
    report = json.loads(Path("r.json").read_text())
    assert Path("again.json").read_text() == Path("r.json").read_text() == made.to_json()
    assert list(report) == TOP
    assert report["report_version"] == 1
    assert set(report["inputs"]) == {"image", "text"}
    for side, array, letters in (("image", image, "NPD"), ("text", text, "NTD")):
        entry = report["inputs"][side]
        assert list(entry) == INPUT
        assert entry == {
            "file": f"{side}.npy",
            "key": None,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "axes": letters,
            "axes_from": "rank",
            "sizes": dict(zip(letters, array.shape, strict=True)),
            "sha256": sha256(f"{side}.npy"),
            "mask": None,
        }
    assert list(report["module"]) == MODULE
    assert report["module"]["parameters"] == sum(p.numel() for p in module.parameters())
    assert (report["module"]["embed_dim"], report["module"]["num_heads"]) == (D, H)
    assert report["module"]["head_dim"] == D // H
    assert report["module"]["weights"] == {
        "file": "w.safetensors",
        "sha256": sha256("w.safetensors"),
        "seed": None,
        "trained": None,
        "origin": "w.safetensors",
    }
    assert set(report["plan"]) == {
        "scores", "values", "multiply_adds", "plain_multiply_adds", "why", "image_asks",
    }  # fmt: skip
    assert report["output"] == {
        "file": "out.npy",
        "key": None,
        "shape": [3, 5, D],
        "axes": "NTD",
        "dtype": "float32",
        "bytes": 4 * 3 * 5 * D,
        "direction": "text",
        "pool": None,
        "tensors": [{"key": None, "shape": [3, 5, D], "axes": "NTD", "bytes": 4 * 3 * 5 * D}],
    }
    assert list(report["provenance"]) == PROVENANCE
    assert report["provenance"]["libraries"]["numpy"] == np.__version__
    assert report["provenance"]["threads"] >= 1
    assert report["diagnoses"] == report["notes"] == []


def test_untrained_weights_are_said_to_be_so():
    _, report = fuse(noise(4, DI), noise(5, DT), weights=None, switches=Switches(heads=2), seed=7)
    assert report.module["weights"] == {
        "file": None,
        "sha256": None,
        "seed": 7,
        "trained": False,
        "origin": "untrained, seed 7",
    }
    assert report.provenance["seed"] == 7


def test_files_are_hashed_only_where_somebody_asks():
    trained()
    _, report = fuse(noise(4, DI), noise(5, DT))
    assert report.inputs["image"]["sha256"] is None
    _, report = fuse(noise(4, DI), noise(5, DT), provenance=True)
    assert report.inputs["image"]["sha256"] == sha256("image.npy")
    assert report.module["weights"]["sha256"] == sha256("w.safetensors")


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize(("P", "T"), [(1, 5), (4, 5), (300, 2), (2, 60)])
def test_stages_have_the_shapes_of_the_plain_module(null_token, P, T):
    trained(null_token=null_token)
    _, report = fuse(noise(3, P, DI), noise(3, T, DT))
    keys = P + 1 if null_token else P
    assert {stage.name: stage.shape for stage in report.stages} == {
        "text features": (3, T, DT),
        "image features": (3, P, DI),
        "projected text": (3, T, D),
        "projected image": (3, P, D),
        "query, per head": (3, H, T, D // H),
        "key, per head": (3, H, keys, D // H),
        "value, per head": (3, H, keys, D // H),
        "scores": (3, H, T, keys),
        "context, per head": (3, H, T, D // H),
        "fused": (3, T, D),
    }
    formed = {stage.name: stage.formed for stage in report.stages}
    assert formed["fused"]
    assert formed["text features"]
    weighed = P > 1 or null_token
    assert formed["scores"] is weighed
    assert formed["query, per head"] is (weighed and report.plan["scores"] != "key")
    assert formed["key, per head"] is (weighed and report.plan["scores"] != "query")
    for stage in report.stages:
        assert len(stage.letters.split(", ")) == len(stage.shape)


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_entropy_is_that_of_the_plain_module_s_weights(null_token, masked, padded, engine):
    module = trained(null_token=null_token)
    image, text = noise(3, 4, DI), noise(3, 5, DT, seed=1)
    mask = IMAGE_MASK.astype(bool) if masked else np.ones((3, 4), bool)
    words = np.arange(5) < (np.array([[2], [5], [4]]) if padded else 5)
    words = np.broadcast_to(words, (3, 5))
    np.save("im.npy", mask)
    np.save("tm.npy", words)
    masks = {"image_mask": "im.npy", "text_mask": "tm.npy"}
    _, report = fuse(image, text, engine=engine, **masks)
    tokens = module.image_proj(torch.from_numpy(image).double())
    _, weights = module.attention(
        module.text_proj(torch.from_numpy(text).double()),
        tokens,
        tokens,
        key_padding_mask=torch.from_numpy(~mask),
        average_attn_weights=False,
    )
    entropy = torch.special.entr(weights.detach()).sum(-1).numpy()  # [3, H, 5]
    choices = mask.sum(1) + null_token
    some = choices > 1
    real = words & some[:, None]  # [3, 5]
    each = entropy.swapaxes(1, 2)[real]  # [rows, H]
    highest = np.log(np.repeat(choices, 5).reshape(3, 5)[real])  # [rows]
    assert report.attention["samples"] == some.sum()
    assert np.isclose(report.attention["mean_entropy"], each.mean(), rtol=1e-4)
    ratio = (each / highest[:, None]).mean()
    assert np.isclose(report.attention["entropy_ratio"], ratio, rtol=1e-4)
    assert np.isclose(report.attention["max_entropy"], highest.mean())


def test_there_is_no_entropy_of_a_single_token():
    trained()
    _, report = fuse(noise(1, DI), noise(5, DT))
    assert report.attention is None
