"""The state dict of an nn.MultiheadAttention alone, without the projections in front."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.fusion.attention_alone import D, H, save_pair


@pytest.fixture(autouse=True)
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    monkeypatch.chdir(tmp_path)
    image, text = save_pair()
    for folder, tensor in (("images", image), ("texts", text)):
        Path(folder).mkdir()
        np.save(f"{folder}/0.npy", tensor.numpy())
    return image, text


def attention(**options: object) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(D, H, batch_first=True, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return module


OPTIONS = ("--weights", "w.pt", "--heads", str(H), "-f", "-o")


@pytest.mark.parametrize("prefix", ["", "module.", "model.cross_attn."])
@pytest.mark.parametrize("bias", [True, False])
def test_bare_attention_is_a_fusion_with_identity_projections(
    prefix: str, bias: bool, pair: tuple[torch.Tensor, torch.Tensor], cli: Callable
) -> None:
    module = attention(bias=bias)
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, "w.pt")
    image, text = (side[None] for side in pair)
    wanted = module(text, image, image)[0][0].detach().numpy()
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy")
    assert done.code == 0, done.err
    assert "w.pt: is an nn.MultiheadAttention alone: text_proj and image_proj are taken as the" in (
        done.err
    )
    assert "is a state dict, which cannot say whether the module was trained with" in done.err
    np.testing.assert_allclose(np.load("out.npy"), wanted, atol=1e-5)
    done = cli("batch", "images", "texts", *OPTIONS, "out")
    assert (done.code, "taken as the identity" in done.err) == (0, True), done.err
    np.testing.assert_allclose(np.load("out/0.npy"), wanted, atol=1e-5)


def test_of_several_modules_a_prefix_chooses_it(
    pair: tuple[torch.Tensor, torch.Tensor], cli: Callable
) -> None:
    module, layer = attention(), nn.TransformerDecoderLayer(D, H, 64)
    state = {f"cross.{key}": value for key, value in module.state_dict().items()}
    torch.save({**state, "head.weight": torch.ones(3, D)}, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy")
    assert (done.code, "--weights-prefix cross takes the nn.Multihead" in done.err) == (1, True)
    torch.save({**state, **{f"layer.{k}": v for k, v in layer.state_dict().items()}}, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", "--weights-prefix", "cross", *OPTIONS, "out.npy")
    assert done.code == 0, done.err
    image, text = (side[None] for side in pair)
    wanted = module(text, image, image)[0][0].detach().numpy()
    np.testing.assert_allclose(np.load("out.npy"), wanted, atol=1e-5)
    assert "layer.linear1.bias" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kdim": 32, "vdim": 32}, "with q_proj_weight [48, 48], k_proj_weight [48, 32]"),
        ({"add_bias_kv": True}, "bias_k"),
    ],
)
def test_attention_with_bias_k_or_other_extras_is_refused(
    options: dict, said: str, cli: Callable
) -> None:
    torch.save(attention(**options).state_dict(), "w.pt")
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy")
    assert (done.code, said in done.err) == (1, True), done.err


def test_a_layer_of_a_transformer_is_not_taken_for_its_attention(cli: Callable) -> None:
    torch.save(nn.TransformerEncoderLayer(D, H, 64).state_dict(), "w.pt")
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy")
    assert (done.code, "found no text_proj.weight" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("in_", "out"),
    [((3 * D, D), ()), ((3 * D, D), (D,)), ((3, 1), (200_000, 1)), ((3 * D, D), (2 * D, 2 * D))],
)
def test_shapes_of_no_attention_are_refused_before_an_identity_is_made(
    in_: tuple[int, ...], out: tuple[int, ...], cli: Callable
) -> None:
    torch.save({"in_proj_weight": torch.ones(in_), "out_proj.weight": torch.ones(out)}, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy")
    assert done.code == 1
    assert f"in_proj_weight has shape {list(in_)} and out_proj.weight {list(out)}" in done.err


def test_a_width_that_is_only_claimed_takes_no_memory(cli: Callable) -> None:
    wide, one = 200_000, torch.ones(1, 1)
    state = {
        "in_proj_weight": one.expand(3 * wide, wide),
        "out_proj.weight": one.expand(wide, wide),
    }
    torch.save(state, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy")
    assert (done.code, "w.pt[in_proj_weight]: promises [600000, 200000]" in done.err) == (1, True)


@pytest.mark.parametrize("prefix", ["", "layer."])
@pytest.mark.parametrize("beside", ["linear1.weight", "norm.weight"])
def test_what_does_more_than_attention_is_not_taken_for_it(
    prefix: str, beside: str, cli: Callable
) -> None:
    state = {**attention().state_dict(), beside: torch.ones(D)}
    torch.save({prefix + key: value for key, value in state.items()}, "w.pt")
    for chosen in ((), ("--weights-prefix", prefix)):
        done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy", *chosen)
        assert (done.code, "found no text_proj.weight" in done.err) == (1, True), done.err
        assert "--weights-prefix" not in done.err


def test_a_prefix_ends_where_a_name_does(cli: Callable) -> None:
    torch.save({f"my_{key}": value for key, value in attention().state_dict().items()}, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy")
    assert (done.code, "found no text_proj.weight" in done.err) == (1, True)


def test_the_advice_names_a_prefix_that_can_be_given(cli: Callable) -> None:
    state = attention().state_dict()
    torch.save({**state, **{f"a.{key}": value for key, value in state.items()}}, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy")
    assert (done.code, "--weights-prefix a takes the nn.Multihead" in done.err) == (1, True)
    torch.save(state, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", *OPTIONS, "out.npy", "--weights-prefix", "b")
    assert (done.code, "; without --weights-prefix its nn.Multi" in done.err) == (1, True)
