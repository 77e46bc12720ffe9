"""What lies in a weights file is used, or named as not used, or refused."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from fusecli import (
    FuseOptions,
    FusionConfig,
    ImageTextFusion,
    build_module,
    fuse_files,
    load_module,
    save_module,
)
from fusecli.cli.main import main as run_main
from fusecli.errors import OutputError, UsageError, WeightsError
from fusecli.features.file import sha256_of
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.stored_module import module_of
from fusecli.fusion.weights_file import open_weights
from tests.fusion.configs import CONFIGS
from tests.fusion.states import as_numpy, plain_state, randomize

IMAGE = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
TEXT = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)


def main(argv):
    with pytest.raises(SystemExit) as ended:
        run_main(argv)
    return ended.value.code


def fused(**options):
    fuse_files(FuseOptions("image.npy", "text.npy", "out.npy", force=True, **options))
    return np.load("out.npy")


def forward(module):
    return module.eval()(torch.from_numpy(IMAGE), torch.from_numpy(TEXT)).detach().numpy()


def assert_near(found, expected):
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def opened(path, prefix=None, **options):
    weights = open_weights(str(path), prefix)
    with weights.file:
        return module_of(weights, ModuleOptions(**options))


def with_head(state, **tensors):
    return state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


HEADS = with_head(
    plain_state(8, 2),
    head__weight=torch.ones(3, 8),
    head__bias=torch.ones(3),
    classifier__0__weight=torch.ones(3, 8),
    logit_scale=torch.ones(()),
    temperature=torch.ones(1, dtype=torch.int64),
    out_proj__weight=torch.ones(2, 2),
)


@pytest.mark.parametrize("ending", ["safetensors", "pt", "npz"])
@pytest.mark.parametrize("nest", ["", "net.fusion."])
def test_tensors_of_a_head_are_named_and_not_used(ending, nest, folder, capsys):
    state = {nest + name: tensor for name, tensor in HEADS.items()}
    path = f"w.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(state, path)
    elif ending == "pt":
        torch.save(state, path)
    else:
        np.savez(path, **as_numpy(state))
    assert (
        main(["fuse", "image.npy", "text.npy", "-o", "out.npy", "--weights", path, "--heads", "2"])
        == 0
    )
    note = " ".join(capsys.readouterr().err.split())
    for name in ("classifier.0.weight", "head.bias", "head.weight", "logit_scale"):
        assert nest + name in note
    assert "and 1 more tensor are no part of the fusion and are not used" in note
    module = ImageTextFusion(8, 2)
    module.load_state_dict(plain_state(8, 2))
    assert_near(np.load("out.npy"), forward(module))
    assert_near(forward(load_module(path, heads=2)), forward(module))


def test_inspect_names_the_tensors_that_are_not_used(folder, capsys):
    safetensors.torch.save_file(
        with_head(plain_state(8, 2), head__bias=torch.ones(3)), "w.safetensors"
    )
    assert main(["inspect", "w.safetensors", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["weights"]["unused"] == ["head.bias"]
    assert main(["inspect", "w.safetensors"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "head.bias is no part of the fusion and is not used" in shown


@pytest.mark.parametrize(
    "name",
    ["attention.bias_k", "text_proj.weight_scale", "image_proj.lora_A", "attention.out_proj.zero"],
)
def test_tensors_that_would_change_the_arithmetic_are_refused(name, tmp_path):
    torch.save(plain_state(8, 2) | {name: torch.ones(1, 1, 8)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=f"holds {name} besides a fusion's parameters"):
        opened(tmp_path / "w.pt", heads=2)


def test_a_norm_that_an_option_switches_off_is_not_named(tmp_path):
    torch.save(randomize(ImageTextFusion(8, 2, norm=True)).state_dict(), tmp_path / "w.pt")
    assert opened(tmp_path / "w.pt", heads=2, norm=False).unused == ()


@pytest.fixture
def two_modules(folder):
    one, other = plain_state(8, 2), plain_state(8, 2, seed=1)
    state = {f"model.{n}": t for n, t in one.items()} | {f"ema.{n}": t for n, t in other.items()}
    safetensors.torch.save_file(state, "two.safetensors")
    torch.save({"model": one, "state_dict_ema": other}, "two.pt")
    return one, other


def test_of_two_modules_in_a_file_one_is_chosen(two_modules):
    for prefix, state in zip(("model", "ema."), two_modules, strict=True):
        module = ImageTextFusion(8, 2)
        module.load_state_dict(state)
        options = ModuleOptions(heads=2, weights_prefix=prefix)
        assert_near(fused(weights="two.safetensors", switches=options), forward(module))
        assert_near(
            forward(load_module("two.safetensors", heads=2, prefix=prefix)), forward(module)
        )
    for prefix, state in zip(("model", "state_dict_ema"), two_modules, strict=True):
        module = ImageTextFusion(8, 2)
        module.load_state_dict(state)
        options = ModuleOptions(heads=2, weights_prefix=prefix)
        assert_near(fused(weights="two.pt", switches=options), forward(module))


def test_of_two_modules_none_is_taken_by_itself(two_modules):
    with pytest.raises(WeightsError, match=r"found several, under 'ema\.', 'model\.': choose one"):
        open_weights("two.safetensors")
    with pytest.raises(WeightsError, match="choose one with --weights-prefix"):
        open_weights("two.pt")
    with pytest.raises(WeightsError, match=r"--weights-prefix emma: no fusion.* 'ema\.', 'model"):
        open_weights("two.safetensors", "emma")
    with pytest.raises(WeightsError, match="--weights-prefix emma: no fusion"):
        open_weights("two.pt", "emma")


def train(path):
    """A run of few epochs on few pairs."""
    from fusecli.pairs.pair import PairOptions
    from fusecli.training.fit import fit
    from fusecli.training.options import LabelOptions, TrainOptions
    from fusecli.training.run_folder import RunFolder
    from tests.training import generators

    images, texts, labels = generators.product(24, np.random.default_rng(0), width=8)
    targets = generators.classes(labels)
    options = TrainOptions(PairOptions(), LabelOptions(), path, epochs=2, device="cpu")
    run = RunFolder(path, {})
    run.begin()
    examples = generators.examples_of(images, texts)
    fitted = fit(examples, targets, generators.thirds(24), options)
    run.save_models(fitted, {"task": "classify", "names": list(targets.names)}, {})
    run.finish()


@pytest.mark.slow
def test_the_folder_of_a_training_run_is_taken_as_weights(folder, capsys):
    train("run")
    assert main(["fuse", "image.npy", "text.npy", "-o", "out.npy", "--weights", "run"]) == 0
    note = " ".join(capsys.readouterr().err.split())
    assert "run/weights.safetensors: the head of the training run (head.*, " in note
    assert "is not used here" in note
    stored = safetensors.torch.load_file("run/weights.safetensors")
    with safetensors.safe_open("run/weights.safetensors", "np") as file:
        config = FusionConfig.from_dict(json.loads(file.metadata()["fusecli"]), "run")
    module = build_module(config)
    module.load_state_dict({n: t for n, t in stored.items() if not n.startswith("head.")})
    assert_near(np.load("out.npy"), forward(module))
    assert_near(forward(load_module("run")), forward(module))
    assert main(["inspect", "run", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["file"] == os.path.join("run", "weights.safetensors")
    assert found["weights"]["embed_dim"] == config.embed_dim
    # The weights are an input, which no option replaces.
    with pytest.raises(OutputError, match=r"run/weights\.safetensors"):
        fuse_files(FuseOptions("image.npy", "text.npy", found["file"], force=True, weights="run"))


@pytest.mark.slow
def test_a_batch_takes_the_folder_and_says_what_it_does_not_use(two_modules, capsys):
    train("run")
    for side, rows in (("images", IMAGE), ("texts", TEXT)):
        Path(side).mkdir()
        np.save(f"{side}/a.npy", rows)
    expected = fused(weights="run")
    arguments = ["batch", "images", "texts", "-o"]
    assert main([*arguments, "out", "--weights", "run"]) == 0
    note = " ".join(capsys.readouterr().err.split())
    assert "run/weights.safetensors: the head of the training run (head.*, " in note
    assert "makes answers of the fused rows and is not used here" in note
    assert_near(np.load("out/a.npy"), expected)
    module = ImageTextFusion(8, 2)
    module.load_state_dict(two_modules[1])
    given = ["--weights", "two.safetensors", "--weights-prefix", "ema", "--heads", "2"]
    assert main([*arguments, "ema", *given]) == 0
    assert_near(np.load("ema/a.npy"), forward(module))


def test_a_folder_that_is_no_finished_run_is_refused(folder):
    Path("some").mkdir()
    with pytest.raises(WeightsError, match=r"some: is a folder without weights\.safetensors"):
        open_weights("some")
    Path("some/run.json").write_text("{}")
    with pytest.raises(WeightsError, match="the training run in it is not finished"):
        open_weights("some")


def test_a_batch_does_not_go_on_with_another_module_of_the_file(two_modules, capsys):
    for side, rows in (("images", IMAGE), ("texts", TEXT)):
        Path(side).mkdir()
        np.save(f"{side}/a.npy", rows)
    arguments = ["batch", "images", "texts", "-o", "out", "--weights", "two.safetensors"]
    arguments += ["--heads", "2", "--weights-prefix"]
    assert main([*arguments, "ema"]) == 0
    assert main([*arguments, "ema"]) == 0
    capsys.readouterr()
    assert main([*arguments, "model"]) == 2
    assert "prefix" in capsys.readouterr().err


def test_what_is_hashed_is_the_open_file(folder):
    path = Path("w.safetensors")
    safetensors.torch.save_file(plain_state(8, 2), path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = open_weights(str(path))
    with weights.file:
        safetensors.torch.save_file(plain_state(8, 2, seed=1), "new.safetensors")
        os.replace("new.safetensors", path)
        assert sha256_of(weights.file) == expected


OTHER = {
    "dim": 24,
    "heads": 6,
    "layers": 4,
    "ffn_dim": 9,
    "rank": 4,
    "alpha": 0.25,
    "method": "concat",
}


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.has_weights])
@pytest.mark.parametrize(
    "option", [f.name for f in dataclasses.fields(ModuleOptions) if f.name != "weights_prefix"]
)
def test_no_option_beside_a_weights_file_is_left_out(tmp_path, option, name):
    """It takes the place of what the file says, or is an error."""
    config = CONFIGS[name]
    field = {"dim": "embed_dim", "heads": "num_heads"}.get(option, option)
    value = OTHER.get(option, not getattr(config, field))
    if option == "method" and config.method == value:
        value = "sum"
    assert value != getattr(config, field)
    file = str(tmp_path / "w.safetensors")
    save_module(build_module(config), file)
    weights = open_weights(file)
    said = ""
    try:
        stored = module_of(weights, ModuleOptions(**{option: value}))
    except (UsageError, WeightsError) as error:
        said = str(error)
    finally:
        weights.file.close()
    assert f"--{option.replace('_', '-')}" in said or getattr(stored.config, field) == value
