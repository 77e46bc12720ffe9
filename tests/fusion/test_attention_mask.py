"""Attention masks: which text token may attend to which image token, token by token."""

import numpy as np
import pytest
import torch
from torch import nn

from fusecli import FusionConfig
from fusecli.errors import ShapeError, UsageError
from fusecli.fusion.backend.arrays import NumpyArrays, TorchArrays
from fusecli.fusion.methods.attention.operands import prepare
from fusecli.fusion.methods.attention.plan import all_plans
from fusecli.fusion.methods.attention.products import attend
from fusecli.fusion.torch_modules import build_module
from tests.fusion.attention_masks import (
    decoder,
    draw,
    expected_of,
    projected,
    token_by_token,
)
from tests.fusion.configs import (
    CONFIGS,
    DI,
    DT,
    D,
    H,
    assert_close,
    build,
    directions,
    engines_of,
    features,
    masked,
)
from tests.oracles import random_weights

ATTENDING = {name: c for name, c in CONFIGS.items() if c.method in ("attention", "transformer")}
ATTENDING["null token"] = FusionConfig(D, H, DI, DT, null_token=True)
POOLED = {name: c for name, c in CONFIGS.items() if name not in ATTENDING}
attending = pytest.mark.parametrize("config", ATTENDING.values(), ids=ATTENDING)

pytestmark = pytest.mark.usefixtures("one_thread")


@attending
@directions
@pytest.mark.parametrize(("n", "P", "T"), [(1, 5, 4), (3, 6, 2), (2, 1, 3)])
def test_a_token_s_row_is_what_its_own_context_gives(config, direction, n, P, T):
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, n, P, T)
    allowed = draw(n, T, P)
    expected = expected_of(config, weights, image, text, allowed, direction)
    for engine in engines_of(config):
        fusion = build(config, weights, n, P, T, direction, engine=engine)
        assert_close(fusion.fuse(image, text, attention_mask=allowed), expected)
    module = build_module(config).double().eval()
    module.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    with torch.inference_mode():
        found = module(
            torch.from_numpy(image).double(),
            torch.from_numpy(text).double(),
            attention_mask=torch.from_numpy(allowed.astype(np.int64)),
            allow_empty_image=True,
            direction=direction,
        )
    assert_close(found.numpy(), expected, 1e-9)


@attending
@directions
def test_one_mask_for_all_samples_and_one_image_for_all(config, direction):
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 3, 5, 4)
    allowed = draw(1, 4, 5, 3)
    for engine in engines_of(config):
        fusion = build(config, weights, 3, 5, 4, direction, engine=engine)
        for some, every in ((image, allowed[0]), (image[:1], allowed[0]), (image[:1], allowed)):
            whole = np.repeat(allowed, 3, axis=0)
            expected = expected_of(config, weights, some, text, whole, direction)
            assert_close(fusion.fuse(some, text, attention_mask=every), expected)
        own = draw(3, 4, 5, 4)  # each text has a mask of its own over the one image
        expected = expected_of(config, weights, image[:1], text, own, direction)
        assert_close(fusion.fuse(image[:1], text, attention_mask=own), expected)


@attending
def test_with_masks_of_the_sides_it_allows_what_all_of_them_allow(config):
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 2, 6, 4)
    allowed = draw(2, 4, 6, 5)
    patches = np.array([[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]], bool)
    words = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    cut = masked(image, patches), masked(text, words)
    for engine in engines_of(config):
        fusion = build(config, weights, 2, 6, 4, engine=engine)
        found = fusion.fuse(*cut, patches, words, attention_mask=allowed)
        for k in range(2):
            real = words[k]
            own = (allowed[k] & patches[k])[real]
            expected = token_by_token(config, weights, text[k][real], image[k], own, "text")
            assert_close(found[k][real], expected)
            assert (found[k][~real] == 0).all()


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("null_token", [False, True])
def test_every_order_of_products_gives_the_same(engine, null_token):
    config = FusionConfig(D, H, DI, DT, null_token=null_token, residual=True)
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 3, 5, 4)
    allowed = draw(3, 4, 5, 6)
    arrays = NumpyArrays() if engine == "numpy" else TorchArrays("cpu", "float32")
    results = []
    for plan in all_plans(config.sizes(3, 4, 5)):
        loaded = (arrays.load(part) for part in (image, text))
        operands = prepare(weights, config, plan, arrays)
        made = []
        fused = attend(operands, *loaded, arrays, arrays.load(allowed), made)
        results.append(arrays.unload(fused).copy())
        shares = np.concatenate([arrays.unload(part) for part in made])
        assert shares.shape == (3, H, 4, 5)
        seen = allowed.any(-1)
        assert (shares.swapaxes(1, 2)[seen][~np.repeat(allowed[seen][:, None], H, 1)] == 0).all()
    assert len(results) > 20
    for result in results[1:]:
        assert_close(result, results[0])


@pytest.mark.parametrize("direction", ["text", "image"])
def test_numbers_of_torch_s_own_mask(direction):
    # nn.MultiheadAttention and nn.TransformerDecoder take masks that are true for "may not".
    allowed = np.random.default_rng(2).random((4, 6)) < 0.6
    allowed[:, 0] = allowed[0] = True
    own = allowed if direction == "text" else allowed.T
    blocked = torch.from_numpy(~own)
    for name in ("attention", "transformer, deep"):
        config = CONFIGS[name]
        weights = random_weights(config.parameter_shapes())
        image, text = features(config, 1, 6, 4)
        sides = {"text": text[0], "image": image[0]}
        other = "image" if direction == "text" else "text"
        x, y = (projected(weights, side, sides[side]) for side in (direction, other))
        with torch.inference_mode():
            if name == "attention":
                layer = nn.MultiheadAttention(D, H, batch_first=True).double()
                layer.load_state_dict(
                    {
                        key.removeprefix("attention."): torch.from_numpy(array)
                        for key, array in weights.items()
                        if key.startswith("attention.")
                    }
                )
                expected = layer(x, y, y, attn_mask=blocked)[0]
            else:
                made = decoder(config, weights)
                expected = made(x[None], y[None], memory_mask=blocked)[0]
        for engine in engines_of(config):
            fusion = build(config, weights, 1, 6, 4, direction, engine=engine)
            found = fusion.fuse(image, text, attention_mask=allowed)
            assert_close(found, expected[None].numpy())


def test_a_method_without_attention_refuses_it():
    for config in POOLED.values():
        weights = random_weights(config.parameter_shapes())
        image, text = features(config, 1, 5, 4)
        fusion = build(config, weights, 1, 5, 4)
        message = (
            r"an attention mask needs a method with attention from text tokens to image tokens "
            rf"\(attention or transformer\); {config.method} has none"
        )
        with pytest.raises(UsageError, match=message):
            fusion.fuse(image, text, attention_mask=np.ones((4, 5), bool))
        with pytest.raises(UsageError, match=message):
            build_module(config)(
                torch.from_numpy(image),
                torch.from_numpy(text),
                attention_mask=torch.ones(4, 5),
            )


def test_the_module_refuses_other_shapes_and_tokens_that_may_see_nothing():
    module = build_module(CONFIGS["attention"])
    image, text = (torch.from_numpy(part) for part in features(CONFIGS["attention"], 2, 5, 4))
    with pytest.raises(ShapeError) as error:
        module(image, text, attention_mask=torch.ones(5, 4))
    assert str(error.value) == (
        "attention_mask has shape [5, 4], expected [4, 5] or [2, 4, 5]: text tokens, image tokens"
    )
    allowed = torch.ones(2, 4, 5)
    allowed[1, 2] = 0
    with pytest.raises(ShapeError, match="sample 1: text token 2 may attend to no image token"):
        module(image, text, attention_mask=allowed)
    words = torch.ones(2, 4)
    words[1, 2] = 0  # padding may be allowed nothing
    module(image, text, text_mask=words, attention_mask=allowed)
    allowed[0, :, 3] = 0
    with pytest.raises(ShapeError, match="sample 0: image token 3 may attend to no text token"):
        module(image, text, attention_mask=allowed, direction="image", text_mask=words)


def test_it_has_gradients_and_none_reach_what_is_not_allowed():
    for name in ("attention", "transformer"):
        module = build_module(CONFIGS[name])
        image, text = (torch.from_numpy(part) for part in features(CONFIGS[name], 1, 5, 4))
        allowed = torch.ones(4, 5)
        allowed[:, 2] = 0
        image.requires_grad_()
        fused = module(image, text, attention_mask=allowed)
        # Numbers behind a LayerNorm add up to nothing, whatever they are: weigh them.
        (fused * torch.arange(fused.shape[-1])).sum().backward()
        reached = image.grad.abs().sum(dim=-1)[0]
        assert reached[2] == 0
        assert torch.isfinite(image.grad).all()
        assert (reached[[0, 1, 3, 4]] > 0).all()


@pytest.mark.parametrize("layer", [0, 1, 2, -1])
@directions
def test_a_transformer_s_weights_are_those_of_its_layer(layer, direction):
    config = CONFIGS["transformer, deep"]
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 2, 6, 4)
    patches, words = np.arange(6) < [[5], [6]], np.arange(4) < [[3], [4]]
    image, text = masked(image, patches), masked(text, words)
    allowed = draw(2, 4, 6, 8)
    allowed[..., 0] = True
    allowed[:, 0] = True
    fusion = build(config, weights, 2, 6, 4, direction, layer=layer)
    made = []
    result = fusion.fuse(image, text, patches, words, made, allowed)
    assert np.array_equal(fusion.fuse(image, text, patches, words, None, allowed), result)
    found = np.concatenate(made)
    sides = {"text": (text, words), "image": (image, patches)}
    (x, x_real), (y, y_real) = sides[direction], sides["image" if direction == "text" else "text"]
    names = ("text", "image") if direction == "text" else ("image", "text")
    own = allowed if direction == "text" else allowed.swapaxes(1, 2)
    plain = decoder(config, weights)
    kept = []
    plain.layers[layer].multihead_attn.register_forward_pre_hook(
        lambda module, args, kwargs: kept.append((args, kwargs)), with_kwargs=True
    )
    with torch.inference_mode():
        for k in range(2):  # one pair after the other, without padding
            h = projected(weights, names[0], x[k][x_real[k]])[None]
            m = projected(weights, names[1], y[k][y_real[k]])[None]
            blocked = torch.from_numpy(~own[k][x_real[k]][:, y_real[k]])
            plain(h, m, memory_mask=blocked)
            args, kwargs = kept.pop()
            _, expected = plain.layers[layer].multihead_attn.forward(
                *args, **{**kwargs, "need_weights": True, "average_attn_weights": False}
            )
            assert_close(found[k][:, x_real[k]][:, :, y_real[k]], expected[0].numpy())
            assert (found[k][:, x_real[k]][:, :, ~y_real[k]] == 0).all()
