"""Every method in every direction, on both engines, against torch's own layers pair by pair."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli import FusionConfig
from fusecli.errors import ShapeError, UsageError
from fusecli.fusion.literals import SIDES
from fusecli.fusion.torch_modules import build_module
from tests.fusion.configs import (
    CASES,
    CONFIGS,
    DI,
    SHAPES,
    D,
    H,
    assert_close,
    build,
    cases,
    directions,
    engines_of,
    features,
    masked,
    takes,
)
from tests.oracles import each_pair, oracle, random_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_config_has_a_direction():
    assert {name.partition("-")[2] for name in CASES} == set(CONFIGS)
    gate_over_text = FusionConfig(D, H, DI, D, gate=True)
    assert [side for side in SIDES if takes(gate_over_text, side)] == ["text"]


@cases
@pytest.mark.parametrize(("n", "P", "T"), SHAPES)
def test_what_torch_s_own_layers_give(config, direction, n, P, T):
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, n, P, T)
    expected = each_pair(oracle(config, weights, direction), image, text, direction=direction)
    assert expected.shape == (n, T if direction == "text" else P, config.embed_dim)
    for engine in engines_of(config):
        fusion = build(config, weights, n, P, T, direction, engine=engine)
        assert (fusion.engine, fusion.direction, fusion.config) == (engine, direction, config)
        assert_close(fusion.fuse(image, text), expected)


@cases
@settings(max_examples=15, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_masked_is_cropped_and_samples_do_not_see_each_other(config, direction, data, seed):
    n, P, T = (data.draw(st.integers(1, 5)) for _ in range(3))
    rng = np.random.default_rng(seed)
    image_mask, text_mask = rng.random((n, P)) < 0.6, rng.random((n, T)) < 0.6
    weights = random_weights(config.parameter_shapes(), seed)
    image, text = features(config, n, P, T, seed)
    expected = each_pair(
        oracle(config, weights, direction), image, text, image_mask, text_mask, direction
    )
    for engine in engines_of(config):
        fusion = build(config, weights, n, P, T, direction, engine=engine)
        fused = fusion.fuse(
            masked(image, image_mask), masked(text, text_mask), image_mask, text_mask
        )
        assert_close(fused, np.broadcast_to(expected, fused.shape))


@cases
@pytest.mark.parametrize("P", [1, 4])
def test_one_image_for_all_is_that_image_repeated(config, direction, P):
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 3, P, 5)
    words = np.arange(5) < np.array([[5], [2], [4]])
    text = masked(text, words)
    for engine in engines_of(config):
        fusion = build(config, weights, 3, P, 5, direction, engine=engine)
        shared = fusion.fuse(image[:1], text, None, words).copy()
        repeated = fusion.fuse(np.repeat(image[:1], 3, axis=0), text, None, words)
        assert_close(shared, repeated)
        one_mask = np.arange(P) < max(1, P - 1)
        cut = masked(image[:1], one_mask[None])
        shared = fusion.fuse(cut, text, one_mask[None], words).copy()
        expected = each_pair(
            oracle(config, weights, direction), image[:1], text, one_mask[None], words, direction
        )
        assert_close(shared, expected)


@cases
def test_results_are_memory_of_their_own(config, direction):
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 2, 3, 4)
    for engine in engines_of(config):
        fusion = build(config, weights, 2, 3, 4, direction, engine=engine)
        first = fusion.fuse(image, text)
        kept, before = first.copy(), (image.copy(), text.copy())
        fusion.fuse(image + 1, text - 1)
        assert np.array_equal(first, kept)
        assert np.array_equal(image, before[0])
        assert np.array_equal(text, before[1])


@cases
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_as_exact_as_they_can_be(config, direction, dtype):
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 3, 5, 4)
    expected = each_pair(oracle(config, weights, direction), image, text, direction=direction)
    fusion = build(config, weights, 3, 5, 4, direction, dtype=dtype)
    assert fusion.engine == "torch"
    assert_close(fusion.fuse(image, text), expected, 0.06 if dtype == "bfloat16" else 0.008)


@cases
def test_the_module_says_the_same(config, direction):
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 4, 5, 3)
    rng = np.random.default_rng(3)
    image_mask, text_mask = rng.random((4, 5)) < 0.7, rng.random((4, 3)) < 0.7
    image_mask[0] = text_mask[1] = False  # nothing to attend to, nothing to ask with
    expected = each_pair(
        oracle(config, weights, direction), image, text, image_mask, text_mask, direction
    )
    module = build_module(config).double().eval()
    state = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    module.load_state_dict(state, strict=True)
    found = module(
        torch.from_numpy(image).double(),
        torch.from_numpy(text).double(),
        image_mask=torch.from_numpy(image_mask),
        text_mask=torch.from_numpy(text_mask),
        allow_empty_image=True,
        direction=direction,
    )
    assert_close(found.detach().numpy(), expected, 1e-12)
    side, sample = ("image", 0) if direction == "text" else ("text", 1)
    with pytest.raises(ShapeError, match=f"sample {sample}: every {side} token is masked"):
        module(
            torch.from_numpy(image).double(),
            torch.from_numpy(text).double(),
            image_mask=torch.from_numpy(image_mask),
            text_mask=torch.from_numpy(text_mask),
            direction=direction,
        )


@cases
def test_padding_gets_no_gradient_and_gives_no_nan(config, direction):
    module, sides = train_on_padding(config, direction)
    for tensor, mask in sides:
        assert torch.isfinite(tensor.grad).all()
        assert not tensor.grad[mask == 0].any()
    for name, parameter in module.named_parameters():
        if parameter.grad is None:  # then this direction does not read it
            torch.nn.init.constant_(parameter, torch.nan)
        else:
            assert torch.isfinite(parameter.grad).all(), name
    (image, image_mask), (text, text_mask) = sides
    masks = {"image_mask": image_mask, "text_mask": text_mask}
    fused = module(image, text, **masks, allow_empty_image=True, direction=direction)
    assert torch.isfinite(fused).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_is_trained_in_a_direction(config):
    """A method may have layers of its own for each direction."""
    trained, names = set(), set()
    for direction in SIDES:
        if takes(config, direction):
            parameters = dict(train_on_padding(config, direction)[0].named_parameters())
            names |= set(parameters)
            trained |= {name for name, one in parameters.items() if one.grad is not None}
    assert trained == names


def train_on_padding(config, direction):
    """Gradients of a fusion of padded pairs, some of which are NaN where they are masked."""
    module = build_module(config).train()
    image, text = (torch.from_numpy(a) for a in features(config, 3, 4, 5))
    image.requires_grad_(), text.requires_grad_()
    image_mask, text_mask = torch.ones(3, 4), torch.ones(3, 5)
    image_mask[0], text_mask[1], image_mask[2, 2:], text_mask[2, 1:] = 0, 0, 0, 0
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        image[2, 3], text[2, 4] = torch.nan, torch.nan
    fused = module(
        image,
        text,
        image_mask=image_mask,
        text_mask=text_mask,
        allow_empty_image=True,
        direction=direction,
    )
    fused.square().sum().backward()
    return module, ((image, image_mask), (text, text_mask))


# --- the gate --------------------------------------------------------------------------------


@directions
@pytest.mark.parametrize(
    ("engine", "dtype"), [("numpy", "float32"), ("torch", "float32"), ("torch", "bfloat16")]
)
def test_a_closed_gate_returns_the_query_side_bit_for_bit(direction, engine, dtype):
    config = CONFIGS["gate"]
    weights = random_weights(config.parameter_shapes()) | {"gate": np.zeros(1, np.float32)}
    image, text = features(config, 3, 5, 4)
    fusion = build(config, weights, 3, 5, 4, direction, engine=engine, dtype=dtype)
    assert np.array_equal(fusion.fuse(image, text), text if direction == "text" else image)


def test_an_open_gate_lets_the_tanh_of_it_through():
    config = CONFIGS["gate"]
    weights = random_weights(config.parameter_shapes())
    image, text = features(config, 2, 5, 4)
    plain = FusionConfig(D, H)
    without = {name: array for name, array in weights.items() if name != "gate"}
    attended = build(plain, without, 2, 5, 4).fuse(image, text)
    for value in (0.5, -2.0, 30.0):
        gated = build(config, weights | {"gate": np.full(1, value, np.float32)}, 2, 5, 4)
        assert_close(gated.fuse(image, text) - text, np.tanh(value) * attended)


@pytest.mark.slow
def test_the_gate_can_be_trained_open():
    torch.manual_seed(0)
    module = build_module(CONFIGS["gate"])
    image, text = (torch.from_numpy(a) for a in features(CONFIGS["gate"], 8, 5, 4))
    assert torch.equal(module(image, text), text)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (module(image, text) - text - image.mean(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert module.gate.item() != 0
    assert losses[-1] < 0.5 * losses[0]


def test_a_gate_can_be_over_one_side_only():
    config = FusionConfig(D, H, DI, D, gate=True)  # the text is D wide, the image is not
    weights = random_weights(config.parameter_shapes())
    build(config, weights, 1, 3, 4)
    message = rf"--gate adds attention to the image itself, which is {DI} wide.* use --dim {DI}"
    with pytest.raises(UsageError, match=message):
        build(config, weights, 1, 3, 4, "image")
    with pytest.raises(UsageError, match=message):
        build_module(config)(torch.zeros(3, DI), torch.zeros(4, D), direction="image")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (("--direction", "both"), "one width (5 and 16): use --direction text or image"),
        (("--direction", "image"), "which is 5 wide, and the module is 16: use --dim 5"),
        (
            ("--direction", "both", "--weights", "g.safetensors"),
            "one width (5 and 16): use --direction text",
        ),
        (
            ("--direction", "image", "--weights", "g.safetensors"),
            "which is 5 wide, and g.safetensors is 16: use --direction text, or give weights made "
            "with --dim 5",
        ),
    ],
)
def test_a_gate_over_one_side_only_names_what_can_be_said_instead(cli, folder, said, message):
    np.save("image.npy", np.ones((3, 5), np.float32))
    np.save("text.npy", np.ones((4, 16), np.float32))
    pair = "fuse", "image.npy", "text.npy", "-q"
    assert cli("init", "-o", "g.safetensors", "--dim", "16", "--image-dim", "5", "--gate").code == 0
    gate = () if "--weights" in said else ("--gate",)
    done = cli(*pair, *gate, *said)
    assert done.code == 2
    assert done.err.endswith(f"{message}\n")
    assert cli(*pair, *gate, *said, "--direction", "text").code == 0


# --- engines ---------------------------------------------------------------------------------


def test_the_transformer_does_not_run_on_numpy():
    config = CONFIGS["transformer"]
    with pytest.raises(UsageError, match="--engine numpy: --method transformer runs on torch only"):
        build(config, random_weights(config.parameter_shapes()), 1, 2, 3, engine="numpy")


def test_attention_has_an_order_of_products_and_weights_to_hand_out_a_transformer_weights():
    image, text = features(CONFIGS["attention"], 2, 3, 4)
    for name, config in CONFIGS.items():
        if config.image_dim != DI:
            continue
        fusion = build(config, random_weights(config.parameter_shapes()), 2, 3, 4)
        weights = []
        without = fusion.fuse(image, text)
        assert np.array_equal(fusion.fuse(image, text, None, None, weights), without)
        attention = name.startswith("attention")
        assert (fusion.plan is not None) == attention
        attends = attention or name.startswith("transformer")
        assert bool(weights) == fusion.gives_weights == config.how.gives_weights == attends


@directions
def test_attention_weights_come_with_the_query_side_first(direction):
    config = CONFIGS["attention"]
    fusion = build(config, random_weights(config.parameter_shapes()), 2, 3, 5, direction)
    weights = []
    fusion.fuse(*features(config, 2, 3, 5), None, None, weights)
    shape = (2, H, 5, 3) if direction == "text" else (2, H, 3, 5)
    assert np.concatenate(weights).shape == shape
    assert np.allclose(np.concatenate(weights).sum(-1), 1, atol=1e-5)


def test_a_direction_there_is_not_is_refused():
    config = CONFIGS["sum"]
    with pytest.raises(UsageError, match="direction 'both': expected text, image"):
        build(config, {}, 1, 2, 3, "both")
