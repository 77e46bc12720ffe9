"""State dicts without metadata: recognised by their names, with the numbers of their module."""

import numpy as np
import pytest
import torch
from torch import nn

from fusecli import FuseOptions, FusionConfig, ModuleOptions, build_module, fuse_files, load_module
from fusecli.errors import FeatureFileError, UsageError, WeightsError
from tests.fusion.states import plain_state, randomize

N, P, T, Di, Dt = 3, 5, 4, 12, 8
IMAGE = np.random.default_rng(0).standard_normal((N, P, Di)).astype(np.float32)
TEXT = np.random.default_rng(1).standard_normal((N, T, Dt)).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)


def fuse(state, engine="auto", **options):
    torch.save(state, "w.pt")
    computing = {"engine": engine} if engine != "auto" else {}
    given = ModuleOptions(**options)
    report = fuse_files(
        FuseOptions(
            "image.npy",
            "text.npy",
            "o.npy",
            weights="w.pt",
            switches=given,
            force=True,
            **computing,
        )
    )
    return np.load("o.npy"), {d.code: str(d) for d in report.diagnoses}, report


def forward(module, image=IMAGE):
    with torch.no_grad():
        return module.eval()(torch.from_numpy(image), torch.from_numpy(TEXT)).numpy()


def assert_near(found, expected):
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


OTHERS = {
    "transformer": (
        FusionConfig(8, 2, Di, Dt, method="transformer", layers=3, ffn_dim=20),
        {"heads": 2},
        "norm_first=False",
    ),
    "concat": (FusionConfig(6, 8, Di, Dt, method="concat", projected=True), {}, "the image in fr"),
    "sum": (
        FusionConfig(6, 8, Di, Dt, method="sum", projected=True, alpha=0.25),
        {"alpha": 0.25},
        "layers that are not in the file",
    ),
    "bilinear": (FusionConfig(6, 8, Di, Dt, method="bilinear", rank=7), {}, "an activation"),
}


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("prefix", ["", "module.", "net.", "state_dict_ema."])
def test_other_methods_are_recognised_by_their_names(method, prefix):
    config, options, question = OTHERS[method]
    module = randomize(build_module(config))
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    rows, found, _ = fuse(state, **options)
    assert_near(rows, forward(module))
    assert question in found["module-assumed"]
    assert f"--method {method}" in found["module-assumed"]
    # What the remedy says, when followed, leaves no question and the same numbers.
    again, found, _ = fuse(state, method=method, **options)
    assert "module-assumed" not in found
    assert np.array_equal(again, rows)


def test_an_alpha_that_the_file_does_not_say_is_asked_for():
    module = randomize(build_module(OTHERS["sum"][0]))
    _, found, _ = fuse(module.state_dict(), method="sum")
    assert "alpha" in found["module-assumed"]
    assert "--alpha" in found["module-assumed"]


def test_a_method_whose_parameters_are_not_there_is_refused():
    with pytest.raises(WeightsError, match="its tensors are not known as those of a transformer"):
        fuse(randomize(build_module(OTHERS["sum"][0])).state_dict(), method="transformer")
    torch.save(randomize(build_module(OTHERS["concat"][0])).state_dict(), "w.pt")
    with pytest.raises(WeightsError, match="does not say how wide the image and the text"):
        load_module("w.pt")


def test_switches_without_parameters_are_a_question_until_they_are_given():
    module = randomize(build_module(FusionConfig(8, 2, Di, Dt, residual=True)))
    plain, found, _ = fuse(module.state_dict(), heads=2)
    assert (
        "--residual or --no-residual, and --null-token or --no-null-token"
        in (found["module-assumed"])
    )
    assert "heads-assumed" not in found
    rows, found, _ = fuse(module.state_dict(), heads=2, residual=True, null_token=False)
    assert found == {}
    assert_near(rows, forward(module))
    assert np.abs(rows - plain).max() > 0.1


class Published(nn.Module):
    """A module of somebody else: matrices of its own for query, key and value."""

    def __init__(self, width, bias=True):
        super().__init__()
        self.text_proj = nn.Linear(Dt, 8, bias=bias)
        self.image_proj = nn.Linear(Di, width, bias=bias)
        self.attention = nn.MultiheadAttention(
            8, 2, kdim=width, vdim=width, bias=bias, batch_first=True
        )

    def forward(self, image, text):
        context = self.image_proj(image)
        return self.attention(self.text_proj(text), context, context)[0]


@pytest.mark.parametrize("width", [5, 8, 11, 30])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_kdim_and_vdim_and_layers_without_biases(width, bias, engine):
    module = randomize(Published(width, bias))
    rows, _, report = fuse(module.state_dict(), engine, heads=2)
    assert_near(rows, forward(module))
    note = "attention.in_proj_bias, attention.out_proj.bias: taken as zero"
    assert any(note in line for line in report.notes) is not bias
    loaded = load_module("w.pt", heads=2)
    assert_near(forward(loaded), forward(module))


@pytest.mark.parametrize("width", [5, 30])
def test_one_image_token_and_kdim(width):
    module = randomize(Published(width))
    np.save("image.npy", IMAGE[:, :1])
    rows, _, _ = fuse(module.state_dict(), heads=2)
    assert_near(rows, forward(module, IMAGE[:, :1]))


def test_three_matrices_of_the_usual_width_are_one():
    module = randomize(build_module(FusionConfig(8, 2, Di, Dt)))
    state = dict(module.state_dict())
    matrices = state.pop("attention.in_proj_weight").chunk(3)
    state |= {f"attention.{n}_proj_weight": m for n, m in zip("qkv", matrices, strict=True)}
    rows, _, report = fuse(state, heads=2)
    assert_near(rows, forward(module))
    assert not any("not used" in note for note in report.notes)


def test_an_image_of_another_width_cannot_be_the_query_side():
    torch.save(randomize(Published(5)).state_dict(), "w.pt")
    with pytest.raises(UsageError, match="only --direction text is possible"):
        fuse_files(
            FuseOptions(
                "image.npy",
                "text.npy",
                "o.npy",
                weights="w.pt",
                switches=ModuleOptions(heads=2),
                direction="image",
            )
        )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_weights_that_are_whole_numbers_are_refused(dtype):
    state = plain_state(8, 2) | {"attention.in_proj_weight": torch.ones(24, 8).to(dtype)}
    torch.save(state, "w.pt")
    with pytest.raises(FeatureFileError, match=r"w.pt\[attention.in_proj_weight\]: holds \w+"):
        load_module("w.pt", heads=2)


@pytest.mark.parametrize("layer", ["attn", "cross.attn"])
def test_an_attention_under_another_name_is_not_left_out_and_the_advice_works(layer):
    module = randomize(build_module(FusionConfig(8, 2, Di, Dt)))
    state = module.state_dict()
    renamed = {key.replace("attention.", f"{layer}."): value for key, value in state.items()}
    for options in ({}, {"heads": 2}):
        with pytest.raises(WeightsError, match=rf"call that layer attention \(now {layer}\)"):
            fuse(renamed, **options)
    assert_near(fuse(state, heads=2)[0], forward(module))
    with pytest.raises(UsageError, match="--heads"):
        fuse(renamed, method="sum", heads=2)
    assert "attn.in_proj_weight" in " ".join(fuse(renamed, method="sum")[2].notes)
