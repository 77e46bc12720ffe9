"""An attention of linear layers query, key and value: what the refusal advises is right."""

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from tests.fusion.attention_alone import D, H, save_pair


@pytest.fixture(autouse=True)
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    monkeypatch.chdir(tmp_path)
    return save_pair()


def attended(layers: list[nn.Linear | None], image: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    """softmax(q k' / sqrt(d)) v of heads one after the other, then the layer behind, if any."""
    query, key, value, out = layers
    q, k, v = (
        layer(side).reshape(len(side), H, D // H).transpose(0, 1)
        for layer, side in ((query, text), (key, image), (value, image))
    )
    context = scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(text), D)
    return (context if out is None else out(context)).detach().numpy()


def made_by_advice(
    cli: Callable,
    weights: str,
    layers: list[nn.Linear | None],
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Follow the advice of the refusal, and compare what the attention that it made gives."""
    command = ("fuse", "image.npy", "text.npy", "-f", "-o", "out.npy", "--heads", str(H))
    done = cli(*command, "--weights", weights)
    assert done.code == 1
    program = re.search(r'python -c "(.*?)".*, and say --weights NEW.pt and --heads', done.err)
    assert program is not None, done.err
    exec(program[1], {})
    done = cli(*command, "--weights", "NEW.pt")
    assert done.code == 0, done.err
    np.testing.assert_allclose(np.load("out.npy"), attended(layers, *pair), atol=1e-5)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "names",
    [
        ("query", "key", "value", None),  # BertSelfAttention
        *(
            (f"attention.self.{q}", f"attention.self.{k}", f"attention.self.{v}", f"attention.{o}")
            for q, k, v, o in [("query", "key", "value", "output.dense")]
        ),
        ("attention.query", "attention.key", "attention.value", "output.dense"),  # ViT
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),  # CLIP
        ("to_q", "to_k", "to_v", "to_out.0"),  # diffusers
    ],
)
def test_the_advice_makes_an_attention_with_its_numbers(
    names: tuple[str | None, ...],
    ending: str,
    pair: tuple[torch.Tensor, torch.Tensor],
    cli: Callable,
) -> None:
    # Some keys have no bias, as those of Whisper and BEiT.
    layers = [None if name is None else nn.Linear(D, D, bias="key" not in name) for name in names]
    state = {
        f"{name}.{kind}": value
        for name, layer in zip(names, layers, strict=True)
        if layer is not None
        for kind, value in layer.state_dict().items()
    }
    state["norm.weight"] = torch.ones(D)
    if ending == "pt":
        torch.save({"state_dict": state, "epoch": 3}, "w.pt")
    else:
        save_file(state, "w.safetensors")
    made_by_advice(cli, f"w.{ending}", layers, pair)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        *(
            lambda state, name=name: {name: state, "epoch": 3}
            for name in ("model", "state_dict", "model_state_dict", "net", "module")
        ),
        lambda state: {"net": {"encoder": [{"norm.weight": torch.ones(D)}, state]}},
        lambda state: ({0: state}, "vit"),
        lambda state: {"model": {"vit": state}, "ema": {"vit": {"norm.weight": torch.ones(D)}}},
    ],
)
@pytest.mark.parametrize("prefix", ["", "attention."])
def test_the_advice_finds_a_state_dict_inside_of_others(
    prefix: str,
    wrap: Callable,
    old: bool,
    pair: tuple[torch.Tensor, torch.Tensor],
    cli: Callable,
) -> None:
    names = ("query", "key", "value", "out_proj")
    layers = [nn.Linear(D, D, bias=name != "key") for name in names]
    state = {
        f"{prefix}{name}.{kind}": value
        for name, layer in zip(names, layers, strict=True)
        for kind, value in layer.state_dict().items()
    }
    torch.save(wrap(state), "w.pt", _use_new_zipfile_serialization=not old)
    made_by_advice(cli, "w.pt", layers, pair)


def test_the_advice_loads_a_checkpoint_with_options_of_its_training(
    pair: tuple[torch.Tensor, torch.Tensor], cli: Callable
) -> None:
    layers = [nn.Linear(D, D) for _ in range(3)]
    state = {
        f"{name}.{kind}": value
        for name, layer in zip(("query", "key", "value"), layers, strict=True)
        for kind, value in layer.state_dict().items()
    }
    torch.save({"model": state, "args": Namespace(lr=0.1), "loss": np.float64(3)}, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", "-o", "out.npy", "--weights", "w.pt")
    assert "since it also holds argparse.Namespace, numpy" in done.err
    assert "only if you trust the file)" in done.err
    made_by_advice(cli, "w.pt", [*layers, None], pair)
    torch.save({"model": state, "epoch": 3}, "w.pt")
    done = cli("fuse", "image.npy", "text.npy", "-o", "out.npy", "--weights", "w.pt")
    assert "weights_only" not in done.err


def test_the_advice_finds_modules_of_dicts_of_their_own(
    pair: tuple[torch.Tensor, torch.Tensor], cli: Callable
) -> None:
    layers = [nn.Linear(D, D) for _ in range(4)]
    query, key, value, out = (layer.state_dict() for layer in layers)
    torch.save(
        {"block": {"self": {"query": query, "key": key, "value": value}, "out": out}}, "w.pt"
    )
    made_by_advice(cli, "w.pt", layers, pair)


@pytest.mark.parametrize(
    ("names", "width"),
    [
        (("q", "k", "v", "o"), D),  # T5, whose scores are not divided by the square root of d
        (("q_proj", "k_proj", "v_proj", "o_proj"), 12),  # Llama, with fewer heads of key and value
        (("query", "key", "value", "dense"), 32),  # an image of another width
    ],
)
def test_of_other_arithmetic_nothing_is_made(
    names: tuple[str, ...], width: int, cli: Callable
) -> None:
    shapes = [(D, D), (width, D), (width, D), (D, D)]
    torch.save(
        {f"{name}.weight": torch.ones(shape) for name, shape in zip(names, shapes, strict=True)},
        "w.pt",
    )
    done = cli("fuse", "image.npy", "text.npy", "-o", "out.npy", "--weights", "w.pt")
    assert (done.code, "found no text_proj.weight" in done.err) == (1, True)
    assert "python -c" not in done.err
