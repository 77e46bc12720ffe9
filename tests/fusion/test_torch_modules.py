"""The torch module: a drop-in for the published one, and right in everything it adds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fusecli import ImageTextFusion
from fusecli.errors import ShapeError, UsageError
from tests.reference import PlainImageTextFusion

PUBLISHED = [(768, 8, 0), (64, 4, 1), (12, 1, 7), (24, 24, 123456), (6, 3, 2**32 - 1), (1, 1, 3)]
SWITCHES = [
    {},
    {"residual": True},
    {"norm": True},
    {"null_token": True},
    {"residual": True, "norm": True, "null_token": True},
]
few = settings(max_examples=25, deadline=None)


pytestmark = pytest.mark.usefixtures("one_thread")


def randomize(module, seed):
    """Weights that make attention far from uniform, and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
            if parameter.dim() > 1:
                parameter.mul_(1.5 / parameter.shape[1] ** 0.5)
    return module.eval()


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(module, image, text, null_token=False):
    """One pair in float64, head by head and token by token, as the formulas say it."""
    p = {name: array.detach().double().numpy() for name, array in module.state_dict().items()}
    image, text = image.double().numpy(), text.double().numpy()
    D, H = p["text_proj.weight"].shape[0], module.attention.num_heads
    d = D // H
    t = text @ p["text_proj.weight"].T + p["text_proj.bias"]
    i = image @ p["image_proj.weight"].T + p["image_proj.bias"]
    W, b = p["attention.in_proj_weight"], p["attention.in_proj_bias"]
    rows = []
    for token in t:
        context = np.zeros(D)
        for h in range(H):
            cut = slice(h * d, (h + 1) * d)
            q = (W[:D] @ token + b[:D])[cut]
            k = (i @ W[D : 2 * D].T + b[D : 2 * D])[:, cut]
            v = (i @ W[2 * D :].T + b[2 * D :])[:, cut]
            e = np.exp(k @ q / d**0.5)
            context[cut] = e @ v / (e.sum() + (1 if null_token else 0))  # exp(0) is 1
        rows.append(p["attention.out_proj.weight"] @ context + p["attention.out_proj.bias"])
    return torch.from_numpy(np.array(rows)), torch.from_numpy(t)


def assert_close(found, expected, tolerance=1e-6):
    scale = max(1.0, expected.detach().abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("dim", "heads", "seed"), PUBLISHED)
def test_a_seed_gives_the_published_parameters_bit_for_bit(dim, heads, seed):
    torch.manual_seed(seed)
    plain = PlainImageTextFusion(dim, heads).state_dict()
    torch.manual_seed(seed)
    ours = ImageTextFusion(dim, heads).state_dict()
    assert list(ours) == list(plain)
    for name, expected in plain.items():
        assert torch.equal(ours[name], expected), name
    assert any(array.any() for array in ours.values())


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "heads", "seed"), PUBLISHED)
@pytest.mark.parametrize("P", [1, 5])
def test_output_is_that_of_the_published_module(dim, heads, seed, P):
    torch.manual_seed(seed)
    plain = PlainImageTextFusion(dim, heads)
    torch.manual_seed(seed)
    ours = ImageTextFusion(dim, heads)
    image, text = features(P, dim, seed=1), features(8, dim, seed=2)
    assert_close(ours(image, text), plain(image, text))


def test_forward_returns_one_tensor_with_the_text_s_shape():
    fused = ImageTextFusion(16, 4)(features(1, 16), features(5, 16))
    assert isinstance(fused, torch.Tensor)
    assert fused.shape == (5, 16)


@pytest.mark.slow
@pytest.mark.parametrize("P", [1, 4])
def test_state_dict_loads_both_ways(P):
    image, text = features(P, 24), features(6, 24, seed=1)
    plain = randomize(PlainImageTextFusion(24, 3), 5)
    ours = ImageTextFusion(24, 3).eval()
    ours.load_state_dict(plain.state_dict(), strict=True)
    assert_close(ours(image, text), plain(image, text))
    back = PlainImageTextFusion(24, 3).eval()
    back.load_state_dict(randomize(ours, 6).state_dict(), strict=True)
    assert_close(back(image, text), ours(image, text))


def test_initial_output_bias_is_zero_so_that_the_other_tests_need_random_ones():
    module = ImageTextFusion(24, 3)
    assert not module.attention.out_proj.bias.any()
    assert randomize(module, 0).attention.out_proj.bias.all()


@pytest.mark.parametrize(
    ("dim", "heads", "image_dim", "text_dim"),
    [(12, 3, 7, 5), (8, 8, 8, 20), (8, 1, 3, 8), (4, 2, 1, 1), (6, 2, None, 9), (6, 2, 9, None)],
)
@pytest.mark.parametrize("P", [1, 4])
def test_widths_may_differ(dim, heads, image_dim, text_dim, P):
    module = randomize(ImageTextFusion(dim, heads, image_dim=image_dim, text_dim=text_dim), 3)
    image, text = features(P, image_dim or dim), features(5, text_dim or dim, seed=1)
    expected, _ = by_hand(module, image, text)
    assert_close(module(image, text).double(), expected, 1e-5)


def test_one_global_vector_may_come_without_a_token_axis():
    module = randomize(ImageTextFusion(12, 3), 0)
    image, text = features(12), features(4, 12, seed=1)
    assert torch.equal(module(image, text), module(image[None], text))


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("P", [1, 5])
def test_a_batch_is_a_loop_over_its_samples(switches, P):
    module = randomize(ImageTextFusion(12, 3, image_dim=7, text_dim=9, **switches), 1)
    image, text = features(4, P, 7), features(4, 6, 9, seed=1)
    alone = torch.stack([module(i, t) for i, t in zip(image, text, strict=True)])
    assert_close(module(image, text), alone)


@few
@given(
    N=st.integers(2, 5),
    T=st.integers(1, 5),
    P=st.integers(1, 5),
    heads=st.sampled_from([1, 2, 3]),
    switches=st.sampled_from(SWITCHES),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_changing_one_sample_leaves_the_others(N, T, P, heads, switches, seed, data):
    module = randomize(ImageTextFusion(6, heads, **switches), seed)
    image, text = features(N, P, 6, seed=seed), features(N, T, 6, seed=seed + 1)
    before = module(image, text)
    changed = data.draw(st.integers(0, N - 1))
    others = [n for n in range(N) if n != changed]
    image[changed] = 3 * image[changed] + 1
    text[changed] = 5 - 2 * text[changed]
    after = module(image, text)
    assert_close(after[others], before[others])
    if P > 1 and not switches.get("norm"):
        assert not torch.allclose(after[changed], before[changed])


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_masked_image_tokens_are_as_good_as_cropped(switches, kind):
    module = randomize(ImageTextFusion(12, 3, **switches), 2)
    image, text = features(3, 5, 12), features(3, 4, 12, seed=1)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
    image[mask == 0] = 1e6
    fused = module(image, text, image_mask=mask.to(kind))
    for n in range(3):
        assert_close(fused[n], module(image[n, mask[n] == 1], text[n]))


def test_masked_text_rows_are_zero_and_the_rest_as_if_cropped():
    module = randomize(ImageTextFusion(12, 3, residual=True, norm=True), 2)
    image, text = features(2, 5, 12), features(2, 4, 12, seed=1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]])
    text[mask == 0] = torch.nan
    fused = module(image, text, text_mask=mask)
    assert not fused[mask == 0].any()
    for n in range(2):
        assert_close(fused[n, mask[n] == 1], module(image[n], text[n, mask[n] == 1]))


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_what_is_stored_in_a_masked_row_does_not_reach_the_result(switches, poison):
    module = randomize(ImageTextFusion(12, 3, **switches), 4)
    image, text = features(2, 5, 12), features(2, 4, 12, seed=1)
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 0]])
    clean = module(image, text, image_mask=mask)
    image[mask == 0] = poison
    assert torch.equal(module(image, text, image_mask=mask), clean)
    assert clean.isfinite().all()


def test_gradients_stay_finite_with_nan_in_a_masked_row():
    module = randomize(ImageTextFusion(12, 3), 4)
    image, text = features(2, 5, 12), features(2, 4, 12, seed=1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3] = False
    image[0, 3] = torch.nan
    module(image, text, image_mask=mask).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_stay_finite_with_an_empty_image(null_token, training):
    module = randomize(ImageTextFusion(12, 3, null_token=null_token), 4).train(training)
    image, text = features(2, 5, 12).requires_grad_(), features(2, 4, 12, seed=1).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]])
    fused = module(image, text, image_mask=mask, allow_empty_image=True)
    fused.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert image.grad.isfinite().all()
    assert not image.grad[mask == 0].any()


@pytest.mark.parametrize("null_token", [False, True])
def test_an_all_masked_image_is_an_error_that_names_the_sample(null_token):
    module = ImageTextFusion(12, 3, null_token=null_token)
    mask = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0]])
    with pytest.raises(ShapeError, match="sample 2: every image token is masked"):
        module(features(3, 3, 12), features(3, 4, 12), image_mask=mask)


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("P", [1, 3])
def test_an_empty_image_gives_the_output_bias(null_token, residual, P):
    module = randomize(ImageTextFusion(12, 3, null_token=null_token, residual=residual), 5)
    image, text = features(2, P, 12), features(2, 4, 12, seed=1)
    image[1] = torch.nan
    mask = torch.ones(2, P)
    mask[1] = 0
    fused = module(image, text, image_mask=mask, allow_empty_image=True)
    expected = module.attention.out_proj.bias.expand(4, 12)
    if residual:
        expected = expected + module.text_proj(text[1])
    assert_close(fused[1], expected)
    assert_close(fused[0], module(image[0], text[0]))


@pytest.mark.parametrize("P", [1, 4])
def test_null_token_is_pytorch_s_add_zero_attn(P):
    module = randomize(ImageTextFusion(12, 3, null_token=True), 6)
    plain = nn.MultiheadAttention(12, 3, add_zero_attn=True)
    plain.load_state_dict(module.attention.state_dict(), strict=True)
    image, text = features(P, 12), features(5, 12, seed=1)
    query, tokens = module.text_proj(text), module.image_proj(image)
    expected, _ = plain(query, tokens, tokens)
    assert_close(module(image, text), expected)
    without = randomize(ImageTextFusion(12, 3), 6)
    assert not torch.allclose(module(image, text), without(image, text), atol=1e-3)
    formula, _ = by_hand(module, image, text, null_token=True)
    assert_close(module(image, text).double(), formula, 1e-5)


def test_one_image_token_gives_equal_rows_unless_a_null_token_weighs_it():
    image, text = features(1, 12), features(5, 12, seed=1)
    plain = randomize(ImageTextFusion(12, 3), 6)(image, text)
    assert_close(plain, plain[:1].expand_as(plain))
    weighed = randomize(ImageTextFusion(12, 3, null_token=True), 6)(image, text)
    assert (weighed - weighed[:1]).abs().max() > 0.01


def test_residual_adds_the_projected_text():
    module = randomize(ImageTextFusion(12, 3, text_dim=7, residual=True), 7)
    image, text = features(4, 12), features(5, 7, seed=1)
    attended, projected = by_hand(module, image, text)
    assert_close(module(image, text).double(), attended + projected, 1e-5)


def test_norm_comes_last():
    module = randomize(ImageTextFusion(12, 3, residual=True, norm=True), 8)
    image, text = features(4, 12), features(5, 12, seed=1)
    attended, projected = by_hand(module, image, text)
    rows = (attended + projected).numpy()
    normed = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    weight, bias = (p.detach().double().numpy() for p in module.norm.parameters())
    assert_close(module(image, text).double(), torch.from_numpy(normed * weight + bias), 1e-5)


def test_norm_is_in_the_state_dict_only_where_it_is_asked_for():
    assert "norm.weight" in ImageTextFusion(8, 2, norm=True).state_dict()
    assert "norm.weight" not in ImageTextFusion(8, 2, residual=True).state_dict()


@pytest.mark.parametrize("switches", SWITCHES)
def test_gradients_reach_every_parameter(switches):
    module = randomize(ImageTextFusion(12, 3, image_dim=7, text_dim=9, **switches), 9)
    image, text = features(2, 4, 7).requires_grad_(), features(2, 5, 9, seed=1).requires_grad_()
    target = features(2, 5, 12, seed=2)
    (module(image, text) - target).square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name
    thirds = module.attention.in_proj_weight.grad.chunk(3)
    assert all(third.abs().max() > 1e-6 for third in thirds)
    assert image.grad.abs().amax(dim=2).min() > 1e-6
    assert text.grad.abs().amax(dim=2).min() > 1e-6


@pytest.mark.slow
def test_training_lowers_the_loss():
    torch.manual_seed(0)
    module = ImageTextFusion(12, 3, residual=True)
    image, text, target = features(8, 4, 12), features(8, 5, 12, seed=1), features(8, 5, 12, seed=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (module(image, text) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_switches_are_keywords_only():
    with pytest.raises(TypeError):
        ImageTextFusion(8, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            (768, 7),
            "--heads 7 does not divide the width D, 768: head counts that do are 1, 2, 3, 4",
        ),
        ((8, 0), "--heads must be from 1"),
        ((0, 1), "--dim must be from 1"),
        ((-8, 2), "--dim must be from 1"),
    ],
)
def test_impossible_sizes_are_refused(arguments, sentence):
    with pytest.raises(UsageError, match=sentence):
        ImageTextFusion(*arguments)


@pytest.mark.parametrize(
    ("image", "text", "sentence"),
    [
        ((2, 7), (3, 5), r"expected widths Di = 6 and Dt = 5"),
        ((2, 6), (3, 6), r"expected widths Di = 6 and Dt = 5"),
        ((2, 4, 6), (3, 5), r"expected \[P, Di\] with \[T, Dt\]"),
        ((4, 6), (2, 3, 5), r"expected \[P, Di\] with \[T, Dt\]"),
        ((4, 6), (5,), r"expected \[P, Di\] with \[T, Dt\]"),
        ((2, 4, 6), (3, 4, 5), "the numbers of samples differ"),
        ((1, 4, 6), (3, 4, 5), "the numbers of samples differ"),
        ((2, 0, 6), (2, 3, 5), "nothing to fuse"),
        ((4, 6), (0, 5), "nothing to fuse"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(image, text, sentence):
    module = ImageTextFusion(12, 3, image_dim=6, text_dim=5)
    with pytest.raises(ShapeError, match=sentence) as caught:
        module(features(*image), features(*text))
    assert str(list(image)) in str(caught.value)
    assert str(list(text)) in str(caught.value)
