"""The inference arithmetic: every order of products, on both engines, is the plain module."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli import FusionConfig, ImageTextFusion
from fusecli.fusion.backend.arrays import NumpyArrays, TorchArrays
from fusecli.fusion.methods.attention.operands import prepare
from fusecli.fusion.methods.attention.plan import Sizes, all_plans, choose_plan
from fusecli.fusion.methods.attention.products import attend

FLOAT32 = 1e-5  # of the output's scale
ENGINES = {"numpy": NumpyArrays, "torch": lambda: TorchArrays("cpu", "float32")}
few = settings(max_examples=25, deadline=None)  # each goes through all (up to 40) orders
many = settings(max_examples=100, deadline=None)  # each goes through one


pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Case:
    """Random weights (biases too) and inputs of one shape."""

    config: FusionConfig
    weights: dict
    image: np.ndarray
    text: np.ndarray
    mask: np.ndarray | None

    @property
    def sizes(self):
        c, (n, P, Di), (_, T, Dt) = self.config, self.image.shape, self.text.shape
        return Sizes(n, T, P, Dt, Di, c.embed_dim, c.num_heads, c.null_token, c.residual)

    def plans(self, dtype="float32"):
        return all_plans(self.sizes, dtype=dtype)

    def module(self, dtype=torch.float64):
        module = ImageTextFusion.from_config(self.config).to(dtype).eval()
        module.load_state_dict({name: torch.from_numpy(w) for name, w in self.weights.items()})
        return module

    def expected(self, dtype=torch.float64):
        """The plain module's result, by default in float64."""
        image, text = torch.from_numpy(self.image).to(dtype), torch.from_numpy(self.text).to(dtype)
        mask = None if self.mask is None else torch.from_numpy(self.mask)
        with torch.inference_mode():
            fused = self.module(dtype)(image, text, image_mask=mask, allow_empty_image=True)
        return fused.double().numpy()

    def run(self, arrays, plan, weights_out=None):
        operands = prepare(self.weights, self.config, plan, arrays)
        return self.run_prepared(operands, arrays, weights_out)

    def run_prepared(self, operands, arrays, weights_out=None):
        image, mask = self.image, None
        if self.mask is not None:  # masked tokens hold zeros, as `tokens.py` leaves them
            image = np.where(self.mask[..., None], image, np.float32(0))
            mask = arrays.load(self.mask)
        image, text = arrays.load(image), arrays.load(self.text)
        return arrays.unload(attend(operands, image, text, arrays, mask, weights_out)).copy()

    def tolerance(self, share):
        """How far a result may be off: a share of the output's scale.

        The scale is that of the terms that are added up (about 1 here), even where they
        happen to cancel. LayerNorm divides by a row's deviation, and errors grow with it.
        """
        bare = self.module()
        bare.norm = None
        plain = Case(self.config, self.weights, self.image, self.text, self.mask)
        plain.module = lambda dtype=torch.float64: bare
        rows = plain.expected()
        scale = max(1.0, np.abs(rows).max())
        if self.config.norm:
            growth = 1 / np.sqrt(rows.var(axis=-1).min() + 1e-5)
            scale = max(1.0, scale * growth * np.abs(self.weights["norm.weight"]).max())
        return share * scale


def make_case(n, T, P, Dt, Di, H, d, seed, masked=False, **switches):
    rng = np.random.default_rng(seed)
    config = FusionConfig(H * d, H, Di, Dt, **switches)
    weights = {}
    for name, shape in config.parameter_shapes().items():
        # Larger than initial weights, so that attention is far from uniform.
        spread = 1.5 / np.sqrt(shape[1]) if len(shape) > 1 else 0.7
        weights[name] = (rng.standard_normal(shape) * spread).astype(np.float32)
    image = rng.standard_normal((n, P, Di), np.float32)
    text = rng.standard_normal((n, T, Dt), np.float32)
    mask = rng.random((n, P)) < 0.6 if masked else None
    return Case(config, weights, image, text, mask)


@st.composite
def cases(draw, min_n=1, **fixed):
    sizes = {
        "n": st.integers(min_n, 4),
        "T": st.integers(1, 6),
        "P": st.integers(1, 7),
        "Dt": st.integers(1, 9),
        "Di": st.integers(1, 9),
        "H": st.integers(1, 4),
        "d": st.integers(1, 5),
        "seed": st.integers(0, 2**20),
        "masked": st.booleans(),
        "null_token": st.booleans(),
        "residual": st.booleans(),
        "norm": st.booleans(),
    }
    drawn = {name: draw(strategy) for name, strategy in sizes.items()}
    return make_case(**(drawn | fixed))


@st.composite
def cases_in_an_order(draw, **fixed):
    case = draw(cases(**fixed))
    return case, draw(st.sampled_from(list(case.plans())))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@few
@given(case=cases())
def test_every_order_is_the_plain_module(engine, case):
    expected, tolerance = case.expected(), case.tolerance(FLOAT32)
    for plan in case.plans():
        found = case.run(ENGINES[engine](), plan)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= tolerance, plan


@pytest.mark.slow
@many
@given(drawn=cases_in_an_order())
def test_both_engines_agree(drawn):
    case, plan = drawn
    numpy, torch_ = (case.run(make(), plan) for make in ENGINES.values())
    assert np.abs(numpy - torch_).max() <= case.tolerance(FLOAT32)


@pytest.mark.parametrize("switches", [{}, {"null_token": True}, {"residual": True, "norm": True}])
@pytest.mark.parametrize("shape", [(2, 7, 1, 96, 64, 8, 8), (2, 5, 50, 96, 64, 8, 8)])
@pytest.mark.parametrize("engine", ENGINES)
def test_every_order_is_the_plain_module_at_an_encoder_s_widths(engine, shape, switches):
    case = make_case(*shape, seed=1, masked=shape[2] > 1, **switches)
    expected, tolerance = case.expected(), case.tolerance(FLOAT32)
    plans = list(case.plans())
    assert len(plans) > 2
    for plan in plans:
        assert np.abs(case.run(ENGINES[engine](), plan) - expected).max() <= tolerance, plan


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_samples_without_a_real_image_token_get_the_output_bias(engine, null_token):
    case = make_case(3, 2, 4, 5, 6, 2, 3, seed=2, masked=True, null_token=null_token)
    case.mask[1] = False
    case.mask[[0, 2], 0] = True
    for plan in case.plans():
        fused = case.run(ENGINES[engine](), plan)
        assert np.array_equal(fused[1], np.tile(case.weights["attention.out_proj.bias"], (2, 1)))
        assert not np.allclose(fused[0], fused[1], atol=1e-3)


# Twice the unit roundoff of a type: the step between 1 and the next number.
NARROW = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW)
@many
@given(case=cases(norm=False, d=4))
def test_narrow_types_round_and_do_no_more(dtype, case):
    plan = choose_plan(case.sizes, dtype=dtype)
    found, expected = case.run(TorchArrays("cpu", dtype), plan), case.expected()
    # Weights, features, projections, attention weights and the result are each rounded, and
    # scores before an exponential: where that costs much, it costs the plain module as much.
    plain = np.abs(case.expected(getattr(torch, dtype)) - expected).max()
    allowed = max(8 * plain, case.tolerance(8 * NARROW[dtype]))
    assert np.abs(found - expected).max() <= allowed


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("P", [1, 50])
def test_narrow_types_are_as_good_as_the_plain_module_in_that_type(dtype, null_token, P):
    case = make_case(4, 16, P, 96, 64, 8, 8, seed=3, null_token=null_token)
    expected = case.expected()
    plain = np.abs(case.expected(getattr(torch, dtype)) - expected)
    for plan in case.plans(dtype):
        found = np.abs(case.run(TorchArrays("cpu", dtype), plan) - expected)
        assert found.mean() <= 1.5 * plain.mean(), plan
        assert found.mean() > 1e-6  # it is that type that was computed in


# What is hard to be exact with, as factors and offsets of features around 1.
HARD = {
    "usual": (1, 0, ...),
    "norms of 10,000": (1250, 0, ...),
    "tiny": (1e-6, 0, ...),
    "far from zero": (1, 100, ...),
    "one massive channel": (1, 3000, (..., 3)),
    "nearly equal tokens": (1e-3, 1, ...),
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("sharpness", [1, 3])
@pytest.mark.parametrize("kind", HARD)
def test_no_order_is_much_less_exact_than_the_plain_module(kind, sharpness, null_token, engine):
    factor, offset, where = HARD[kind]
    case = make_case(4, 16, 50, 96, 64, 8, 8, seed=1, null_token=null_token)
    for features in (case.image, case.text):
        features *= np.float32(factor)
        features[where] += np.float32(offset)
    for name, weight in case.weights.items():
        weight *= np.float32(sharpness if name.endswith("weight") else 1)
    expected = case.expected()
    plain = np.abs(case.expected(torch.float32) - expected).mean()
    for plan in case.plans():
        found = np.abs(case.run(ENGINES[engine](), plan) - expected).mean()
        assert found <= 4 * plain, plan  # the largest seen is 2.4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@many
@given(drawn=cases_in_an_order(min_n=2), data=st.data())
def test_samples_do_not_see_each_other(engine, drawn, data):
    case, plan = drawn
    changed = data.draw(st.integers(0, len(case.image) - 1))
    others = [n for n in range(len(case.image)) if n != changed]
    poison = data.draw(st.sampled_from([0.0, -3.0, 1e6, np.nan, np.inf]))
    before = case.run(ENGINES[engine](), plan)
    image, text = case.image.copy(), case.text.copy()
    image[changed] = poison
    text[changed] = -poison
    mask = case.mask
    if mask is not None:
        mask = mask.copy()
        mask[changed] = ~mask[changed]
    with np.errstate(all="ignore"):
        after = Case(case.config, case.weights, image, text, mask).run(ENGINES[engine](), plan)
    assert np.abs(after[others] - before[others]).max() <= case.tolerance(1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@many
@given(drawn=cases_in_an_order(), data=st.data())
def test_the_order_of_image_tokens_does_not_matter(engine, drawn, data):
    case, plan = drawn
    order = data.draw(st.permutations(range(case.image.shape[1])))
    mask = None if case.mask is None else case.mask[:, order]
    turned = Case(
        case.config, case.weights, np.ascontiguousarray(case.image[:, order]), case.text, mask
    )
    arrays = ENGINES[engine]()
    apart = np.abs(turned.run(arrays, plan) - case.run(arrays, plan))
    assert apart.max() <= case.tolerance(FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@many
@given(drawn=cases_in_an_order(), data=st.data())
def test_the_order_of_text_tokens_is_the_order_of_the_result(engine, drawn, data):
    case, plan = drawn
    order = data.draw(st.permutations(range(case.text.shape[1])))
    text = np.ascontiguousarray(case.text[:, order])
    turned = Case(case.config, case.weights, case.image, text, case.mask)
    arrays = ENGINES[engine]()
    straight = case.run(arrays, plan)[:, order]
    assert np.abs(turned.run(arrays, plan) - straight).max() <= case.tolerance(FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@many
@given(drawn=cases_in_an_order())
def test_asking_for_weights_does_not_change_a_bit(engine, drawn):
    case, plan = drawn
    weights = []
    with_weights = case.run(ENGINES[engine](), plan, weights)
    assert weights
    assert np.array_equal(with_weights, case.run(ENGINES[engine](), plan))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", NARROW)
@few
@given(case=cases())
def test_asking_for_weights_does_not_change_a_bit_in_narrow_types(dtype, case):
    for plan in case.plans(dtype):
        weights = []
        with_weights = case.run(TorchArrays("cpu", dtype), plan, weights)
        assert weights
        assert np.array_equal(with_weights, case.run(TorchArrays("cpu", dtype), plan)), plan


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@many
@given(drawn=cases_in_an_order())
def test_weights_are_those_of_the_plain_module(engine, drawn):
    case, plan = drawn
    module = case.module()
    image, text = torch.from_numpy(case.image).double(), torch.from_numpy(case.text).double()
    n, T, P, H = *case.text.shape[:2], case.image.shape[1], case.config.num_heads
    real = np.ones((n, P), bool) if case.mask is None else case.mask
    some_real = real.any(axis=1)  # without a real token there is nothing to weigh
    with torch.inference_mode():
        tokens = module.image_proj(image)
        padding = torch.from_numpy(~(real | ~some_real[:, None]))
        query = module.text_proj(text)
        _, expected = module.attention(
            query, tokens, tokens, key_padding_mask=padding, average_attn_weights=False
        )
    expected = expected.numpy()[..., :P]  # the null token's share comes last
    arrays, weights = ENGINES[engine](), []
    case.run(arrays, plan, weights)
    found = np.concatenate([arrays.unload(part) for part in weights])
    assert found.shape == (n, H, T, P)
    assert np.abs(found - expected)[some_real].max(initial=0) <= FLOAT32
    masked = np.broadcast_to(~real[:, None, None, :], found.shape)[some_real]
    assert not found[some_real][masked].any()
    if not case.config.null_token:  # which has its own share
        assert np.abs(found[some_real].sum(axis=-1) - 1).max(initial=0) <= FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "switches",
    [{}, {"null_token": True, "residual": True}, {"norm": True, "residual": True}],
)
@pytest.mark.parametrize("P", [1, 5])
def test_groups_of_samples_are_put_together_in_their_order(engine, switches, P, monkeypatch):
    case = make_case(7, 4, P, 6, 7, 2, 3, seed=0, masked=True, **switches)
    for plan in case.plans():
        weights, grouped_weights = [], []
        whole = case.run(ENGINES[engine](), plan, weights)
        with monkeypatch.context() as patch:
            patch.setattr("fusecli.fusion.methods.attention.products._GROUP_BYTES", 1)
            grouped = case.run(ENGINES[engine](), plan, grouped_weights)
        assert np.abs(grouped - whole).max() <= case.tolerance(1e-6), plan
        weights, grouped_weights = (
            np.concatenate([np.asarray(part) for part in parts])
            for parts in (weights, grouped_weights)
        )
        assert np.abs(grouped_weights - weights).max() <= 1e-6, plan


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "switches",
    [{}, {"null_token": True, "residual": True}, {"norm": True, "residual": True}],
)
@pytest.mark.parametrize("P", [1, 5])
def test_workspace_of_other_chunks_leaves_no_trace(engine, switches, P):
    chunks = [
        make_case(n, T, P, 6, 7, 2, 3, seed=n, masked=n % 2 == 1, **switches)
        for n, T in ((4, 5), (1, 5), (3, 2), (5, 7), (2, 5))
    ]
    weights = chunks[0].weights
    for plan in chunks[0].plans():
        arrays = ENGINES[engine]()
        operands = prepare(weights, chunks[0].config, plan, arrays)
        for chunk in chunks:
            chunk.weights = weights
            reused = chunk.run_prepared(operands, arrays)
            fresh = chunk.run(ENGINES[engine](), plan)
            assert np.abs(reused - fresh).max() <= 1e-6 * max(1, np.abs(fresh).max()), plan


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_and_weights_are_left_as_they_were(engine):
    case = make_case(2, 3, 4, 6, 6, 2, 3, seed=0, masked=True, residual=True, norm=True)
    image, text = case.image.copy(), case.text.copy()
    weights = {name: array.copy() for name, array in case.weights.items()}
    for plan in case.plans():
        case.run(ENGINES[engine](), plan)
    assert np.array_equal(case.image, image)
    assert np.array_equal(case.text, text)
    assert all(np.array_equal(case.weights[name], array) for name, array in weights.items())


def loud(case, norm):
    """The same case with feature vectors of that length."""
    for side in (case.image, case.text):
        side *= norm / np.linalg.norm(side, axis=-1, keepdims=True)
    return case


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("P", [1, 6])
def test_huge_scores_stay_finite(engine, null_token, P):
    case = loud(make_case(2, 4, P, 16, 16, 2, 8, seed=5, null_token=null_token), 1e4)
    expected = case.expected()
    for plan in case.plans():
        found = case.run(ENGINES[engine](), plan)
        assert np.isfinite(found).all(), plan
        # Scores of 1e7 make a hard choice, which float32 makes as float64 does.
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), plan


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("P", [1, 6])
def test_feature_values_of_2000_stay_finite_in_narrow_types(dtype, null_token, P):
    case = make_case(2, 4, P, 32, 32, 4, 8, seed=6, null_token=null_token)
    for side in (case.image, case.text):
        side[:] = 2000 * np.sign(side)
    for plan in case.plans(dtype):
        found = case.run(TorchArrays("cpu", dtype), plan)
        assert np.isfinite(found).all(), plan
        assert np.abs(found).max() > 100


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("switches", [{}, {"null_token": True}, {"residual": True}])
def test_numbers_that_are_not_finite_show_in_the_rows_they_belong_to(engine, bad, switches):
    case = make_case(3, 4, 5, 6, 7, 2, 3, seed=7, **switches)
    case.text[1, 2, 0] = bad
    for plan in case.plans():
        with np.errstate(all="ignore"):
            finite = np.isfinite(case.run(ENGINES[engine](), plan)).all(axis=-1)
        assert np.argwhere(~finite).tolist() == [[1, 2]], plan


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("masked", [False, True])
def test_what_overflows_a_narrow_type_is_never_a_finite_result(dtype, side, masked):
    case = make_case(2, 4, 6, 32, 32, 4, 8, seed=6, masked=masked)
    getattr(case, side)[:] *= 3e4  # fits float16, as do the norms nearly; the projections do not
    expected = case.expected()
    for plan in case.plans(dtype):
        found = case.run(TorchArrays("cpu", dtype), plan)
        apart = np.abs(found - expected).max(axis=-1)
        scale = np.abs(expected).max()
        assert (np.isnan(apart) | np.isinf(apart) | (apart <= 0.3 * scale)).all(), plan
