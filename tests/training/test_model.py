"""The models: exact rearrangements, the fold of the standardisation, what a head sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusecli.fusion.config import METHODS as CONFIG_METHODS
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.torch_modules import ImageTextFusion, build_module
from fusecli.pairs.pair import PairOptions
from fusecli.training import fit as fit_module
from fusecli.training.baselines import AdditiveModel, ConcatMLP
from fusecli.training.candidates import make_candidates
from fusecli.training.examples import Batch, ChannelStatistics
from fusecli.training.head import FusionHead, Noise, pool_tokens
from fusecli.training.model import FusionModel, ModelShape, TorchBatch, attend
from fusecli.training.options import LabelOptions, TrainOptions
from fusecli.training.split import all_for_training, make_folds
from fusecli.training.standardise import fold_fusion, fold_linear, unit_statistics
from tests.training import generators


def statistics(width, rng):
    return ChannelStatistics(
        rng.normal(0, 3, width).astype(np.float32), rng.uniform(0.2, 4, width).astype(np.float32)
    )


def random_bias(module):
    """Biases start at zero in nn.MultiheadAttention: a test would never see one forgotten."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.dim() == 1:
                p.uniform_(0.3, 1.2) if "norm.weight" in name else p.normal_()
    return module


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("T", "P"), [(2, 40), (30, 3), (1, 1), (5, 1)])
def test_attend_computes_what_the_module_computes(T, P, norm, masked):
    torch.manual_seed(3)
    fusion = ImageTextFusion(32, 4, image_dim=7, text_dim=5, residual=True, norm=norm)
    fusion = random_bias(fusion).double()
    text, image = torch.randn(6, T, 5).double(), torch.randn(6, P, 7).double()
    mask = None
    if masked:
        mask = torch.rand(6, P) > 0.4
        mask[:, 0] = True
    expected = fusion(image, text, image_mask=mask)
    y = image if mask is None else image.masked_fill(~mask.unsqueeze(-1), 0.0)
    found = attend(fusion, fusion.text_proj(text), fusion.image_proj(y), mask)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_folding_a_linear_layer_is_exact():
    rng = np.random.default_rng(0)
    found = statistics(9, rng)
    weight, bias = rng.normal(size=(4, 9)).astype(np.float32), np.float32([1, 2, 3, 4])
    x = rng.normal(0, 5, (50, 9)).astype(np.float32)
    folded_weight, folded_bias = fold_linear(weight, bias, found)
    standardised = (x.astype(np.float64) - found.mean) / found.std
    expected = standardised @ weight.T + bias
    np.testing.assert_allclose(x @ folded_weight.T + folded_bias, expected, atol=1e-5)


METHODS = [
    {"method": "attention", "num_heads": 4, "residual": True, "norm": True},
    {"method": "attention", "num_heads": 4, "null_token": True},
    {"method": "concat", "projected": True},
    {"method": "sum", "projected": True},
    {"method": "transformer", "num_heads": 4, "layers": 1},
    *([{"method": "bilinear"}] if "bilinear" in CONFIG_METHODS else []),
]


@pytest.mark.parametrize("fields", METHODS, ids=lambda f: f["method"])
def test_a_folded_fusion_takes_raw_features(fields):
    """Relative to the largest value of the result, within 1e-6."""
    rng = np.random.default_rng(1)
    config = FusionConfig(embed_dim=16, image_dim=6, text_dim=5, **fields)
    torch.manual_seed(0)
    module = random_bias(build_module(config)).eval()
    arrays = {n: p.detach().numpy() for n, p in module.named_parameters()}
    text, image = statistics(5, rng), statistics(6, rng)
    x = rng.normal(0, 3, (3, 4, 5)).astype(np.float32)
    y = rng.normal(0, 3, (3, 7, 6)).astype(np.float32)
    standard_x, standard_y = (x - text.mean) / text.std, (y - image.mean) / image.std
    with torch.inference_mode():
        expected = module(torch.from_numpy(standard_y), torch.from_numpy(standard_x))
        folded = fold_fusion(config, arrays, text, image)
        module.load_state_dict({n: torch.from_numpy(a) for n, a in folded.items()}, strict=False)
        found = module(torch.from_numpy(y), torch.from_numpy(x))
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6


def batch(rng, N=5, T=4, P=6, Dt=5, Di=3):
    text = rng.normal(size=(N, T, Dt)).astype(np.float32)
    image = rng.normal(size=(N, P, Di)).astype(np.float32)
    text_mask, image_mask = np.ones((N, T), bool), np.ones((N, P), bool)
    text_mask[1, 2:] = False
    image_mask[2, 4:] = False
    return Batch(text, image, text_mask, image_mask)


def models(tag):
    shape = ModelShape(16, 3, tag, unit_statistics(5), unit_statistics(3))
    config = FusionConfig(16, 4, 3, 5, residual=True, norm=True)
    concat = FusionConfig(16, image_dim=3, text_dim=5, method="concat", projected=True)
    both = ("text", "image")
    return {
        "attention": FusionModel(config, shape),
        "concat": FusionModel(concat, shape),
        "additive": AdditiveModel(False, both, shape),
        "image only": AdditiveModel(False, ("image",), shape),
        "text only": AdditiveModel(False, ("text",), shape),
        "concat + MLP": ConcatMLP(shape),
    }


@pytest.mark.parametrize("tag", [False, True])
@pytest.mark.parametrize("name", ["attention", "additive", "text only", "image only"])
def test_what_is_stored_in_padding_changes_nothing(name, tag):
    torch.manual_seed(0)
    model = models(tag)[name]
    if name != "attention":  # learned pooling that is not the mean
        for net in model.nets.values():
            if net.score is not None:
                torch.nn.init.normal_(net.score)
    given = batch(np.random.default_rng(0))
    device = torch.device("cpu")
    with torch.inference_mode():
        before = model(TorchBatch.of(given, device)).numpy()
        given.text[1, 2:] = 7e3
        given.image[2, 4:] = -7e3
        after = model(TorchBatch.of(given, device)).numpy()
    real = given.text_mask if tag else slice(None)
    np.testing.assert_allclose(after[real], before[real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tag", [False, True])
def test_a_model_of_one_side_does_not_see_the_other(tag):
    given = batch(np.random.default_rng(0))
    device = torch.device("cpu")
    for name, side in (("text only", "image"), ("image only", "text")):
        model = models(tag)[name]
        with torch.inference_mode():
            before = model(TorchBatch.of(given, device))
            getattr(given, side)[:] += 1
            assert torch.equal(model(TorchBatch.of(given, device)), before)


def test_the_pooling_of_a_new_head_is_the_mean_of_the_real_tokens():
    torch.manual_seed(0)
    head = FusionHead(4, 8, 3, pooled=True)
    fused, tokens = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True]])
    z = torch.cat((fused, tokens, fused * tokens), dim=-1)
    means = torch.stack([z[0].mean(dim=0), z[1][mask[1]].mean(dim=0)])
    assert torch.allclose(head(fused, tokens, mask), head.mlp(means), atol=1e-6)
    assert torch.allclose(pool_tokens(z, torch.zeros(2, 5), mask), means, atol=1e-6)


def test_one_draw_of_channel_dropout_for_all_tokens_of_a_pair():
    noise = Noise(torch.Generator().manual_seed(0), channels=0.4, patches=0, head=0)
    scale = noise.channel_scale(torch.ones(500, 7, 11))
    assert scale.shape == (500, 1, 11)
    assert {round(float(v), 4) for v in scale.unique()} == {0.0, round(1 / 0.6, 4)}
    assert abs(float((scale == 0).float().mean()) - 0.4) < 0.03


def test_patch_dropout_leaves_a_real_token_and_never_adds_one():
    noise = Noise(torch.Generator().manual_seed(0), channels=0, patches=0.9, head=0)
    mask = torch.zeros(400, 3, dtype=torch.bool)
    mask[:, :2] = True
    kept = noise.patch_mask(torch.ones(400, 3, 2), mask)
    assert bool(kept.any(dim=1).all())
    assert not bool((kept & ~mask).any())
    assert bool((kept.sum(dim=1) == 1).any())


def spec_candidates(n, image, text, **options):
    """What is trained for n pairs of features of such shapes, by family and name."""
    rng = np.random.default_rng(0)
    examples = generators.examples_of(rng.normal(size=(4, *image)), rng.normal(size=(4, *text)))
    told = TrainOptions(PairOptions(), LabelOptions(), "run", device="cpu", **options)
    found = make_candidates(examples, generators.classes([0, 1, 0, 1]), told, n)
    return {(one.family, one.name): one for one in found}


def test_few_pairs_of_wide_vectors_have_fewer_candidates_and_larger_batches():
    few = spec_candidates(300, (1, 64), (1, 64))
    assert [name for family, name in few if family == "fusion"] == ["attention", "bilinear"]
    assert {one.recipe.batch_size for one in few.values()} == {64}
    many = spec_candidates(1001, (1, 64), (1, 64))
    names = [f"{name}{more}" for name in ("attention", "bilinear", "concat")
             for more in ("", ", no input dropout")]  # fmt: skip
    assert [name for family, name in many if family == "fusion"] == names
    assert {one.recipe.batch_size for one in many.values()} == {32}
    narrow = spec_candidates(300, (1, 63), (1, 64))
    assert ("fusion", "concat") in narrow
    tokens = spec_candidates(300, (5, 64), (1, 64))
    assert {one.recipe.batch_size for one in tokens.values()} == {32}
    said = spec_candidates(300, (1, 64), (1, 64), batch_size=16)
    assert {one.recipe.batch_size for one in said.values()} == {16}


@pytest.mark.parametrize("masked", [False, True])
def test_a_side_is_pooled_as_if_every_token_were_projected(masked):
    torch.manual_seed(1)
    shape = ModelShape(16, 3, False, unit_statistics(5), unit_statistics(7))
    net = AdditiveModel(False, ("image",), shape).double().nets["image"]
    with torch.no_grad():
        net.score.normal_()
    random_bias(net)
    x = torch.randn(4, 6, 7).double()
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [5]]) if masked else None
    projected = x @ net.proj.weight.T + net.proj.bias
    scores = projected @ net.score
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    expected = net.mlp((torch.softmax(scores, 1).unsqueeze(2) * projected).sum(1))
    assert torch.allclose(net(x, mask, None), expected, rtol=0, atol=1e-12)


def test_folds_and_the_weights_have_one_recipe(monkeypatch):
    n = 1200  # of which 900 are learnt from in a fold: one number calls for 1e-3, one for 5e-4
    rng = np.random.default_rng(0)
    examples = generators.examples_of(rng.normal(size=(n, 1, 64)), rng.normal(size=(n, 1, 64)))
    targets = generators.classes([0, 1] * (n // 2))
    options = TrainOptions(PairOptions(), LabelOptions(), "run", folds=4, device="cpu")
    found = []

    def stop_at(*args):
        found.append(make_candidates(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "make_candidates", stop_at)
    splits = make_folds(targets, np.arange(n), 4, 0)
    assert {len(split.train) + len(split.validation) for split in splits} == {900}
    for split in (*splits, all_for_training(targets, np.arange(n), 0)):
        with pytest.raises(KeyboardInterrupt):
            fit_module.fit(examples, targets, split, options)
    assert {one.recipe.lr for one in found[0]} == {5e-4}
    assert all(candidates == found[0] for candidates in found)


def test_many_pairs_of_wide_features_have_half_the_learning_rate():
    def rate(n, width, **given):
        rng = np.random.default_rng(0)
        images, texts = (list(rng.normal(size=(30, 2, width)).astype(np.float32)) for _ in range(2))
        options = TrainOptions(PairOptions(), LabelOptions(), "run", **given)
        examples = generators.examples_of(images, texts)
        found = make_candidates(examples, generators.classes([0, 1] * 15), options, n)
        assert len({candidate.recipe.lr for candidate in found}) == 1
        return found[0].recipe.lr

    assert (rate(300, 64), rate(1001, 64), rate(30_000, 63)) == (1e-3, 5e-4, 1e-3)
    assert rate(3000, 64, lr=0.01) == 0.01
