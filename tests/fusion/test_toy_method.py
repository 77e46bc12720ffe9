"""A new method needs one file and one name: everything that knows methods then knows it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import fusecli.fusion.methods as methods
from fusecli import FusionConfig, load_module
from fusecli.bench.selftest import TOLERANCE, _method_checks
from fusecli.errors import UsageError
from fusecli.fusion.torch_modules import build_module

DI, D = 6, 8


@pytest.fixture
def toy(monkeypatch, folder):
    """The file of the method `max`, and its name in the list of methods."""
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, "max"))
    monkeypatch.setattr(
        methods, "__path__", [*methods.__path__, f"{Path(__file__).parent}/toy_methods"]
    )
    return folder


@pytest.fixture
def pairs(toy):
    rng = np.random.default_rng(0)
    image, text = (
        rng.standard_normal((3, 5, DI), np.float32),
        rng.standard_normal((3, 4, D), np.float32),
    )
    for side, stack in (("image", image), ("text", text)):
        (toy / side).mkdir()
        for k, one in enumerate(stack):
            np.save(toy / side / f"{k}.npy", one)
    return image, text


def expected(image, text, weights):
    tokens = image.astype(np.float64) @ weights["image_proj.weight"].T + weights["image_proj.bias"]
    return text + tokens.max(axis=-2, keepdims=True)


def test_a_method_that_is_not_listed_is_unknown_everywhere(cli, folder):
    np.save("a.npy", np.zeros((2, D), np.float32))
    for command in (["fuse", "a.npy", "a.npy"], ["init", "-o", "w.safetensors"]):
        done = cli(*command, "--method", "max")
        assert done.code == 2
        assert "max" in done.err
    with pytest.raises(UsageError, match="unknown fusion method 'max': there is attention"):
        FusionConfig(8, method="max")


def test_init_fuse_batch_and_inspect_know_the_toy_method(cli, toy, pairs):
    image, text = pairs
    init = ["--method", "max", "--dim", str(D), "--image-dim", str(DI), "--seed", "3"]
    assert cli("init", "-o", "w.safetensors", *init).code == 0
    weights = load_file("w.safetensors")
    torch.manual_seed(3)
    module = build_module(FusionConfig(D, image_dim=DI, method="max"))
    for name, parameter in module.state_dict().items():
        assert np.array_equal(weights[name], parameter.numpy()), name

    done = cli(
        "fuse", "image/0.npy", "text/0.npy", "-o", "one.npy", "--weights", "w.safetensors", "--json"
    )
    assert done.code == 0, done.err
    assert np.allclose(np.load("one.npy"), expected(image[0], text[0], weights), atol=1e-5)
    report = json.loads(done.out)
    assert report["module"]["method"] == "max"
    assert report["module"]["parameters"] == DI * D + D
    assert [stage["name"] for stage in report["stages"]] == [
        "text features", "image features", "projected image", "fused",
    ]  # fmt: skip

    assert cli("batch", "image", "text", "-o", "out", "--weights", "w.safetensors").code == 0
    for k in range(3):
        assert np.allclose(np.load(f"out/{k}.npy"), expected(image[k], text[k], weights), atol=1e-5)

    inspected = json.loads(cli("inspect", "w.safetensors", "--json").out)
    described = inspected if isinstance(inspected, dict) else inspected[0]
    assert described["weights"]["method"] == "max"
    loaded = load_module("w.safetensors")
    with torch.inference_mode():
        rows = loaded(torch.from_numpy(image), torch.from_numpy(text)).numpy()
    assert np.allclose(rows, expected(image, text, weights), atol=1e-5)


def test_fuse_draws_the_initial_weights_of_the_toy_method(cli, toy, pairs):
    image, text = pairs
    cli("init", "-o", "w.safetensors", "--method", "max", "--dim", str(D), "--image-dim", str(DI))
    assert cli("fuse", "image/1.npy", "text/1.npy", "-o", "a.npy", "--method", "max").code == 0
    assert np.allclose(
        np.load("a.npy"), expected(image[1], text[1], load_file("w.safetensors")), atol=1e-5
    )


def test_methods_lists_the_toy_method_and_its_checks_are_run(cli, toy, pairs):
    rows = json.loads(cli("methods", "image/0.npy", "text/0.npy", "--json").out)["methods"]
    row = next(row for row in rows if row["options"] == "--method max")
    assert (row["width"], row["parameters"], row["multiply_adds"]) == (D, DI * D + D, 5 * DI * D)
    done = cli("fuse", "image/0.npy", "text/0.npy", "--method", "max", "--direction", "image")
    assert (done.code, done.err) == (2, "error: max fuses into the text only\n")
    done = cli("fuse", "image/0.npy", "text/0.npy", "--method", "max", "--residual")
    assert "--residual belongs to --method attention, not to max" in done.err
    done = cli("fuse", "image/0.npy", "text/0.npy", "--method", "max", "--engine", "torch")
    assert done.err == "error: --engine torch: --method max runs on numpy only\n"


@pytest.mark.slow
def test_train_trains_the_toy_method(cli, toy, folder):
    """The label is the largest value of an image channel; the features are far from 0."""
    rng = np.random.default_rng(0)
    lines = ["id,label"]
    for side in ("image", "text"):
        (toy / side).mkdir()
    for k in range(60):
        image, text = rng.normal(-20, 3, (5, DI)), rng.normal(50, 10, (4, D))
        image[:, 0] = -30
        image[rng.integers(5), 0] = -30 + 20 * (k % 2)
        np.save(f"image/{k:02d}.npy", image.astype(np.float32))
        np.save(f"text/{k:02d}.npy", text.astype(np.float32))
        lines.append(f"{k:02d},{'ab'[k % 2]}")
    Path("labels.csv").write_text("\n".join(lines) + "\n")
    done = cli(
        "train", "image", "text", "--labels", "labels.csv", "-o", "run", "--method", "max",
        "--epochs", "2", "--seeds", "1", seconds=120,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert cli("fuse", "image/03.npy", "text/03.npy", "--weights", "run", "-o", "a.npy").code == 0
    weights = load_file("run/weights.safetensors")
    image, text = np.load("image/03.npy"), np.load("text/03.npy")
    assert np.allclose(np.load("a.npy"), expected(image, text, weights), atol=1e-3)


def test_the_self_test_checks_the_toy_method(toy):
    checks = dict(_method_checks("numpy"))
    assert 0 < checks["max is what its module gives, direction text"] < TOLERANCE
