"""Attention numbers that none of us made, put through `fusecli fuse` with weights made by hand.

Sources give query, key and value; here the query is made of the text, key and value of the
image. Where a source keeps keys and values apart, an image token is [key ; value], and the
input layer of the attention takes each from its place. Where a source has another head width
than ours, or no scale, the query's weights make up for it.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from fusecli.cli.app import make_app

pytestmark = pytest.mark.parametrize("engine", ["numpy", "torch"])


@pytest.fixture
def fuse(tmp_path, monkeypatch, engine):
    """`fuse(weights, heads, image, text, ...)`: through the command line, files and all."""
    monkeypatch.chdir(tmp_path)

    def run(weights, heads, image, text, *options):
        np.savez("weights.npz", **{name: np.asarray(w, float) for name, w in weights.items()})
        np.save("image.npy", np.asarray(image, float))
        np.save("text.npy", np.asarray(text, float))
        arguments = ["image.npy", "text.npy", "--weights", "weights.npz", "--heads", str(heads)]
        arguments += ["--engine", engine, "-o", "fused.npy", "-f", "-q", *options]
        make_app()(["fuse", *arguments], standalone_mode=False)
        return np.load("fused.npy")

    return run


def hand_made(text, image, query, key, value, out, **biases):
    """The eight parameters from matrices `[out, in]`; biases are zero unless they are given."""
    D = len(text)
    return {
        "text_proj.weight": text,
        "text_proj.bias": biases.get("text_bias", np.zeros(D)),
        "image_proj.weight": image,
        "image_proj.bias": biases.get("image_bias", np.zeros(D)),
        "attention.in_proj_weight": np.concatenate([query, key, value]),
        "attention.in_proj_bias": biases.get("in_bias", np.zeros(3 * D)),
        "attention.out_proj.weight": out,
        "attention.out_proj.bias": biases.get("out_bias", np.zeros(D)),
    }


def key_then_value(width_q, width_k, width_v, scaled_by):
    """Plain attention: text is the query, an image token is [key ; value].

    One head as wide as both together. Keys meet queries in the first columns, values leave
    through the last ones, to the first columns of the result.

    Args:
        width_q, width_k, width_v: of the source's vectors; query and key are equally wide.
        scaled_by: what the source divides its scores by.
    """
    assert width_q == width_k
    D = width_k + width_v
    text, query, key, value, out = (np.zeros((D, n)) for n in (width_q, D, D, D, D))
    text[:width_q] = np.eye(width_q)
    # We divide by the root of our head's width, the source by something else.
    query[:width_k, :width_k] = np.eye(width_k) * math.sqrt(D) / scaled_by
    key[:width_k, :width_k] = np.eye(width_k)
    value[width_k:, width_k:] = np.eye(width_v)
    out[:width_v, width_k:] = np.eye(width_v)
    return hand_made(text, np.eye(D), query, key, value, out)


# --- Keras --------------------------------------------------------------------------------


def test_keras_multi_head_attention_test_correctness(fuse):
    # keras-team/keras, keras/src/layers/attention/multi_head_attention_test.py,
    # test_correctness: two heads of width 2, identity kernels, expected to 1e-3.
    query = [[1.0, 0.0], [0.0, 1.0]]
    key, value = [[0.0, 1.0], [1.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]
    # Their kernel [in, head, d] is the identity for each head: both see the same two columns.
    # The same array as the output kernel [head, d, out] sends the sum of head 1 to the first
    # column and the sum of head 2 to the second.
    twice = np.concatenate([np.eye(2), np.eye(2)])  # [4, 2]
    nothing = np.zeros((4, 2))
    weights = hand_made(
        text=twice,
        image=np.eye(4),
        query=np.eye(4),
        key=np.concatenate([twice, nothing], axis=1),
        value=np.concatenate([nothing, twice], axis=1),
        out=[[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
    )
    fused = fuse(weights, 2, np.concatenate([key, value], axis=1), query)
    np.testing.assert_allclose(fused[:, :2], [[5.679, 5.679], [4.32, 4.32]], atol=1e-3)
    assert not fused[:, 2:].any()


# --- TensorFlow's Transformer tutorial ------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "output"),
    [
        ([[0, 10, 0]], [[10, 0]]),  # aligns with the second key: its value is returned
        ([[0, 0, 10]], [[550, 5.5]]),  # a repeated key: the mean of both values
        ([[10, 10, 0]], [[5.5, 0]]),  # the first and second key equally
        ([[0, 0, 10], [0, 10, 0], [10, 10, 0]], [[550, 5.5], [10, 0], [5.5, 0]]),
    ],
)
def test_tensorflow_tutorial_scaled_dot_product_attention(fuse, query, output):
    # tensorflow/docs, tutorials/text/transformer (2019 to 2021), "Scaled dot product
    # attention": temp_q, temp_k, temp_v and the printed results.
    key = [[10, 0, 0], [0, 10, 0], [0, 0, 10], [0, 0, 10]]
    value = [[1, 0], [10, 0], [100, 5], [1000, 6]]
    weights = key_then_value(3, 3, 2, scaled_by=math.sqrt(3))
    fused = fuse(weights, 1, np.concatenate([key, value], axis=1), query)
    np.testing.assert_allclose(fused[:, :2], output, rtol=1e-4, atol=1e-4)


# --- torchmultimodal ------------------------------------------------------------------------


def test_torchmultimodal_cross_attention_with_all_ones(fuse):
    # facebookresearch/multimodal, tests/modules/layers/test_multi_head_attention.py,
    # test_multi_head_cross_attention: every weight and bias is 1, dim_q 4, dim_kv 2, 2 heads.
    ones = np.ones((4, 4))
    text, image = [[1, 2, 3, 1], [4, 3, 2, 1], [1, 1, 1, 1]], [[3, 2], [1, 1]]
    # Their key and value layers are [4, 2]; ours pass two columns on and then do the same.
    first_two = np.concatenate([np.eye(2), np.zeros((2, 2))])
    in_two = np.concatenate([np.ones((4, 2)), np.zeros((4, 2))], axis=1)
    parts = {"text": np.eye(4), "image": first_two, "query": ones, "key": in_two}
    parts |= {"value": in_two, "out": ones}
    biases = {"in_bias": np.ones(12), "out_bias": np.ones(4)}
    fused = fuse(hand_made(**parts, **biases), 2, image, text)
    np.testing.assert_allclose(fused, np.full((3, 4), 25.0), rtol=0, atol=1e-4)
    # test_multi_head_cross_attention_without_bias: no biases on q, k, v.
    fused = fuse(hand_made(**parts, out_bias=np.ones(4)), 2, image, text)
    np.testing.assert_allclose(fused, np.full((3, 4), 21.0), rtol=0, atol=1e-4)


def test_torchmultimodal_self_attention_with_all_ones(fuse):
    # The same file, test_multi_head_self_attention.
    ones, tokens = np.ones((4, 4)), [[1, 2, 3, 1], [4, 3, 2, 1], [1, 1, 1, 1]]
    biases = {"in_bias": np.ones(12), "out_bias": np.ones(4)}
    weights = hand_made(np.eye(4), np.eye(4), ones, ones, ones, ones, **biases)
    fused = fuse(weights, 2, tokens, tokens)
    np.testing.assert_allclose(fused, np.full((3, 4), 45.0), rtol=0, atol=1e-4)


def torchmultimodal_tokens():
    torch.manual_seed(4)  # set_rng_seed(4), then q and kv of shape [1, 1, 2, 2, 2, 3]
    return torch.randn(1, 1, 2, 2, 2, 3).numpy(), torch.randn(1, 1, 2, 2, 2, 3).numpy()


def test_torchmultimodal_scaled_dot_product_attention(fuse):
    # facebookresearch/multimodal, tests/modules/layers/test_attention.py,
    # test_scaled_dot_product_attention: attention over the last axis but one, so the axes
    # before it are samples.
    q, kv = torchmultimodal_tokens()
    expected = [
        [[-0.5862, 1.7955, 1.0711], [-0.2718, 1.2177, 1.4946]],
        [[-0.0613, 0.1774, 0.4893], [0.6899, -0.0650, 0.2909]],
        [[0.2950, 1.2029, 1.7035], [0.2735, 0.5582, 0.6797]],
        [[-1.1558, 1.0143, 0.1598], [0.7875, 0.0928, -0.7952]],
    ]
    same = [np.eye(3)] * 6
    fused = fuse(hand_made(*same), 1, kv.reshape(4, 2, 3), q.reshape(4, 2, 3))
    np.testing.assert_allclose(fused, expected, rtol=0, atol=1e-4)


def test_torchmultimodal_self_attention_over_all_cells(fuse):
    # The same file, test_self_attention: the same numbers, attended to over all 8 cells.
    q, kv = torchmultimodal_tokens()
    expected = [
        [-0.4851, 1.2020, 0.7056], [0.3507, 0.3822, 0.2783], [-0.8302, 1.1415, 0.4297],
        [-0.0969, 1.0956, 0.9591], [-0.0698, 0.9357, 1.4559], [-0.7157, 1.3919, 0.5880],
        [-0.0598, 1.1194, 1.5332], [0.5494, -0.0489, -0.4454],
    ]  # fmt: skip
    same = [np.eye(3)] * 6
    fused = fuse(hand_made(*same), 1, kv.reshape(8, 3), q.reshape(8, 3))
    np.testing.assert_allclose(fused, expected, rtol=0, atol=1e-4)


# --- Sebastian Raschka, "Build a Large Language Model (From Scratch)", chapter 3 --------------

# "Your journey starts with one step", section 3.3.
JOURNEY = [
    [0.43, 0.15, 0.89],
    [0.55, 0.87, 0.66],
    [0.57, 0.85, 0.64],
    [0.22, 0.58, 0.33],
    [0.77, 0.25, 0.10],
    [0.05, 0.80, 0.55],
]


def test_raschka_simple_attention_without_weights(fuse):
    # Section 3.3.2 (rasbt/LLMs-from-scratch, ch03.ipynb): all_context_vecs, no scale at all.
    expected = [
        [0.4421, 0.5931, 0.5790], [0.4419, 0.6515, 0.5683], [0.4431, 0.6496, 0.5671],
        [0.4304, 0.6298, 0.5510], [0.4671, 0.5910, 0.5266], [0.4177, 0.6503, 0.5645],
    ]  # fmt: skip
    eye = np.eye(3)
    weights = hand_made(eye, eye, math.sqrt(3) * eye, eye, eye, eye)
    np.testing.assert_allclose(fuse(weights, 1, JOURNEY, JOURNEY), expected, rtol=0, atol=1e-4)


def test_raschka_self_attention_v1(fuse):
    # Section 3.4.2: SelfAttention_v1(3, 2) after torch.manual_seed(123).
    expected = [
        [0.2996, 0.8053], [0.3061, 0.8210], [0.3058, 0.8203],
        [0.2948, 0.7939], [0.2927, 0.7891], [0.2990, 0.8040],
    ]  # fmt: skip
    torch.manual_seed(123)
    W_query, W_key, W_value = (torch.rand(3, 2).numpy() for _ in range(3))
    # The projections are the source's own; behind them it is attention of width 2.
    weights = key_then_value(2, 2, 2, scaled_by=math.sqrt(2))
    weights["text_proj.weight"] = np.concatenate([W_query.T, np.zeros((2, 3))])
    weights["image_proj.weight"] = np.concatenate([W_key.T, W_value.T])
    fused = fuse(weights, 1, JOURNEY, JOURNEY)
    np.testing.assert_allclose(fused[:, :2], expected, rtol=0, atol=1e-4)


# --- Dive into Deep Learning ------------------------------------------------------------------


def test_d2l_dot_product_attention_with_valid_lens(fuse):
    # Zhang et al., "Dive into Deep Learning", 11.3 (d2l.ai, attention-scoring-functions):
    # all keys are 1, values are 0 to 39 in ten rows, valid_lens 2 and 6.
    expected = [[[2, 3, 4, 5]], [[10, 11, 12, 13]]]
    key, value = np.ones((2, 10, 2)), np.arange(40).reshape(1, 10, 4).repeat(2, axis=0)
    query = np.random.default_rng(0).standard_normal((2, 1, 2))
    np.save("valid.npy", np.arange(10) < np.array([[2], [6]]))
    weights = key_then_value(2, 2, 4, scaled_by=math.sqrt(2))
    image = np.concatenate([key, value], axis=2)
    fused = fuse(weights, 1, image, query, "--image-mask", "valid.npy")
    np.testing.assert_allclose(fused[..., :4], expected, rtol=1e-5)


# --- PyTorch's own functions, weights made by hand ---------------------------------------------


def made_of_sines(D, Dt, Di):
    """Weights anybody can write down again: no seed, no library."""

    def wave(start, *shape):
        return np.sin(start + 0.7 * np.arange(math.prod(shape))).reshape(shape)

    return hand_made(
        wave(0.1, D, Dt),
        wave(0.2, D, Di),
        wave(0.3, D, D),
        wave(0.4, D, D),
        wave(0.5, D, D),
        wave(0.6, D, D),
        text_bias=wave(0.7, D),
        image_bias=wave(0.8, D),
        in_bias=wave(0.9, 3 * D),
        out_bias=wave(1.0, D),
    )


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.parametrize("P", [1, 3, 20])
@pytest.mark.parametrize("zero_token", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_pytorch_multi_head_attention_forward(fuse, heads, P, zero_token, masked):
    N, T, D, Dt, Di = 2, 4, 6, 5, 7
    weights = made_of_sines(D, Dt, Di)
    p = {name: torch.from_numpy(array) for name, array in weights.items()}
    image = np.cos(np.arange(N * P * Di)).reshape(N, P, Di)
    text = np.cos(2 * np.arange(N * T * Dt)).reshape(N, T, Dt)
    padding = torch.zeros(N, P, dtype=torch.bool)
    if masked:
        padding[0, 1:] = padding[1, : P // 2] = True
    tokens = F.linear(torch.from_numpy(image), p["image_proj.weight"], p["image_proj.bias"])
    query = F.linear(torch.from_numpy(text), p["text_proj.weight"], p["text_proj.bias"])
    expected, _ = F.multi_head_attention_forward(
        query.transpose(0, 1),
        tokens.transpose(0, 1),
        tokens.transpose(0, 1),
        D,
        heads,
        p["attention.in_proj_weight"],
        p["attention.in_proj_bias"],
        bias_k=None,
        bias_v=None,
        add_zero_attn=zero_token,
        dropout_p=0.0,
        out_proj_weight=p["attention.out_proj.weight"],
        out_proj_bias=p["attention.out_proj.bias"],
        training=False,
        key_padding_mask=padding if masked else None,
        need_weights=False,
    )
    options = ["--null-token"] if zero_token else []
    if masked:
        np.save("real.npy", (~padding).numpy())
        options += ["--image-mask", "real.npy"]
    fused = fuse(weights, heads, image, text, *options)
    expected = expected.transpose(0, 1).numpy()
    np.testing.assert_allclose(fused, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_pytorch_scaled_dot_product_attention(fuse):
    q, k = np.cos(np.arange(12)).reshape(4, 3), np.cos(3 * np.arange(15)).reshape(5, 3)
    v = np.cos(5 * np.arange(10)).reshape(5, 2)
    expected = F.scaled_dot_product_attention(*(torch.from_numpy(x)[None] for x in (q, k, v)))
    weights = key_then_value(3, 3, 2, scaled_by=math.sqrt(3))
    fused = fuse(weights, 1, np.concatenate([k, v], axis=1), q)
    np.testing.assert_allclose(fused[:, :2], expected[0].numpy(), rtol=0, atol=1e-6)


def test_pytorch_layer_norm_after_the_residual(fuse):
    eye = np.eye(4)
    weights = hand_made(*[eye] * 6) | {
        "norm.weight": np.array([1.0, -2.0, 0.5, 3.0]),
        "norm.bias": np.array([0.0, 1.0, -1.0, 0.5]),
    }
    image, text = np.cos(np.arange(12)).reshape(3, 4), np.cos(2 * np.arange(8)).reshape(2, 4)
    x, y = torch.from_numpy(text), torch.from_numpy(image)
    attended = F.scaled_dot_product_attention(x[None], y[None], y[None])[0]
    norm = (torch.from_numpy(weights[f"norm.{name}"]) for name in ("weight", "bias"))
    expected = F.layer_norm(attended + x, (4,), *norm)
    fused = fuse(weights, 1, image, text, "--residual")
    np.testing.assert_allclose(fused, expected.numpy(), rtol=0, atol=1e-5)


# --- Closed forms, derived by hand ------------------------------------------------------------


def test_two_orthogonal_tokens(fuse):
    # D = 2, one head, identities. q = e1 scores 1/sqrt(2) with e1 and 0 with e2, so the
    # weights are softmax([1/sqrt(2), 0]) and the context is those weights themselves.
    fused = fuse(hand_made(*[np.eye(2)] * 6), 1, np.eye(2), np.eye(2))
    a = 1 / (1 + math.exp(-1 / math.sqrt(2)))  # 0.669761...
    assert a == pytest.approx(0.6697615493266569)
    np.testing.assert_allclose(fused, [[a, 1 - a], [1 - a, a]], rtol=1e-6)


def test_two_heads_of_width_one_choose_for_themselves(fuse):
    # d = 1, no scale. Head 1 sees the first column: scores 1 and -1. Head 2 the second:
    # scores ln 3 and 0, so its weights are 3/4 and 1/4.
    image = [[1.0, 1.0], [-1.0, 0.0]]
    fused = fuse(hand_made(*[np.eye(2)] * 6), 2, image, [[1.0, math.log(3)]])
    np.testing.assert_allclose(fused, [[math.tanh(1), 0.75]], rtol=1e-6)


def test_a_null_token_makes_a_single_image_token_a_sigmoid(fuse):
    # Scores: 2 * 3 / sqrt(1) against 0, so the context is sigmoid(s) * v, per text token.
    eye = np.eye(1)
    weights = hand_made(*[eye] * 6, in_bias=[0.5, -1.0, 2.0], out_bias=[10.0])
    image, text = [[3.0]], [[2.0], [-1.0], [-0.5]]
    q, k, v = np.array(text)[:, 0] + 0.5, 3.0 - 1.0, 3.0 + 2.0
    expected = v / (1 + np.exp(-q * k)) + 10
    np.testing.assert_allclose(
        fuse(weights, 1, image, text, "--text-axes", "TD", "--null-token")[:, 0],
        expected,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        fuse(weights, 1, image, text, "--text-axes", "TD")[:, 0], v + 10, rtol=1e-6
    )


def test_one_image_token_is_a_chain_of_linear_layers(fuse):
    weights = made_of_sines(6, 5, 7)
    image, text = np.cos(np.arange(7))[None], np.cos(np.arange(20)).reshape(4, 5)
    i = weights["image_proj.weight"] @ image[0] + weights["image_proj.bias"]
    v = weights["attention.in_proj_weight"][12:] @ i + weights["attention.in_proj_bias"][12:]
    row = weights["attention.out_proj.weight"] @ v + weights["attention.out_proj.bias"]
    fused = fuse(weights, 3, image, text)
    np.testing.assert_allclose(fused, np.tile(row, (4, 1)), rtol=0, atol=1e-5 * abs(row).max())


def test_a_query_of_zero_weighs_all_tokens_alike(fuse):
    # And a bias on the keys changes nothing, however large.
    eye = np.eye(3)
    weights = hand_made(eye, eye, np.zeros((3, 3)), eye, eye, eye)
    weights["attention.in_proj_bias"][3:6] = 100.0
    image = np.arange(12.0).reshape(4, 3)
    fused = fuse(weights, 1, image, np.ones((2, 3)))
    np.testing.assert_allclose(fused, [[4.5, 5.5, 6.5]] * 2, rtol=1e-6)
