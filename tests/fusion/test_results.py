"""From files to files in every direction, pooled or not: which tensors, whole or not at all."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli import FuseOptions, FusionConfig, Switches, fuse_files, load_module, save_module
from fusecli.errors import DiagnosisError, OutputError, ShapeError, UsageError
from fusecli.features.formats.base import OutputContents
from fusecli.features.writer import FeatureWriter
from fusecli.fusion.literals import POOLS
from fusecli.fusion.pooling import pool_tokens
from fusecli.fusion.torch_modules import build_module
from fusecli.fusion.weights import write_weights
from tests.oracles import each_pair, oracle, random_weights

DI, DT, D, H = 10, 6, 12, 3
CONFIGS = {
    "attention": FusionConfig(D, H, DI, DT),
    "gate": FusionConfig(D, H, D, D, gate=True),
    "concat": FusionConfig(D, 8, DI, DT, method="concat", projected=True),
    "sum": FusionConfig(D, 8, DI, DT, method="sum", projected=True, alpha=0.8),
    "bilinear": FusionConfig(D, 8, DI, DT, method="bilinear", rank=7),
    "transformer": FusionConfig(D, H, DI, DT, method="transformer", ffn_dim=16),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def fuse(image, text, output="out.safetensors", **options):
    """Write the arrays, fuse the files; what is in the result, and the report."""
    np.save("image.npy", image)
    np.save("text.npy", text)
    report = fuse_files(FuseOptions("image.npy", "text.npy", output, force=True, **options))
    return load(output), report


def load(path):
    if path.endswith(".npy"):
        return {"": np.load(path)}
    if path.endswith(".npz"):
        with np.load(path) as archive:
            return dict(archive)
    return {k: t.float().numpy() for k, t in safetensors.torch.load_file(path).items()}


def assert_close(found, expected, share=1e-5):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= share * max(1.0, np.abs(expected).max())


def pooled(rows, mask, how):
    """Sample by sample, over what is real."""
    made = []
    for row, real in zip(rows, np.broadcast_to(mask, rows.shape[:2]), strict=True):
        tokens = row[real].astype(np.float64)
        if not len(tokens):
            made.append(np.zeros(rows.shape[2]))
        else:
            how_of = {"mean": tokens.mean(0), "max": tokens.max(0), "first": tokens[0]}
            made.append(how_of[how])
    return np.stack(made)


# --- pooling ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data(), how=st.sampled_from(POOLS), seed=st.integers(0, 99))
def test_pooling_is_over_real_tokens_only(data, how, seed):
    n, T = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, T, 3), np.float32)
    mask = rng.random((data.draw(st.sampled_from([1, n])), T)) < 0.6
    expected = pooled(rows, mask, how)
    stored = np.where(mask[..., None], rows, np.float32(np.nan))
    found = pool_tokens(stored, mask, how)
    assert found.dtype == np.float32
    assert_close(found, expected)
    assert_close(pool_tokens(rows, None, how), pooled(rows, np.ones((1, T), bool), how))


def test_pooling_published_by_others():
    # inference4j, SentenceTransformerTest.meanPooling_averagesAcrossTokensWeightedByMask
    tokens = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4)
    mask = np.array([[True, True, False]])
    assert pool_tokens(tokens, mask, "mean").tolist() == [[3, 4, 5, 6]]


@configs
@pytest.mark.parametrize("how", POOLS)
@pytest.mark.parametrize("output", ["out.safetensors", "out.npz"])
def test_pooled_rows_stand_beside_the_fused_ones(config, how, output):
    weights = random_weights(config.parameter_shapes())
    write_weights("w.safetensors", config, weights)
    image, text = noise(4, 5, config.image_dim), noise(4, 6, config.text_dim, seed=1)
    words = np.arange(6) >= np.array([[0], [2], [5], [6]])  # padded on the left, the last wholly
    np.save("words.npy", words)
    made, report = fuse(
        image, text, output, weights="w.safetensors", text_mask="words.npy", pool=how
    )
    rows = each_pair(oracle(config, weights), image, text, None, words)
    assert set(made) == {"fused", "pooled"}
    assert_close(made["fused"], rows)
    assert_close(made["pooled"], pooled(rows, words, how))
    assert not made["pooled"][3].any()
    assert [(t["key"], t["shape"], t["axes"]) for t in report.output["tensors"]] == [
        ("fused", [4, 6, D], "NTD"),
        ("pooled", [4, D], "ND"),
    ]
    assert (report.output["pool"], report.output["key"]) == (how, "fused")
    assert report.output["bytes"] == sum(t["bytes"] for t in report.output["tensors"])


def test_pooled_rows_of_one_pair_are_one_vector():
    made, report = fuse(noise(5, D), noise(3, D), switches=Switches(heads=H), pool="mean")
    assert made["pooled"].shape == (D,)
    assert_close(made["pooled"], made["fused"].mean(0))
    assert report.output["tensors"][1]["axes"] == "D"


# --- directions ------------------------------------------------------------------------------


@configs
@pytest.mark.parametrize("output", ["out.safetensors", "out.npz"])
@pytest.mark.parametrize("max_memory", [None, 1])
def test_direction_both_writes_one_tensor_for_each_query_side(config, output, max_memory):
    weights = random_weights(config.parameter_shapes())
    write_weights("w.safetensors", config, weights)
    image, text = noise(4, 5, config.image_dim), noise(4, 6, config.text_dim, seed=1)
    patches, words = np.arange(5) < [[5], [1], [3], [2]], np.arange(6) < [[2], [6], [1], [5]]
    np.save("patches.npy", patches)
    np.save("words.npy", words)
    options = {
        "weights": "w.safetensors",
        "image_mask": "patches.npy",
        "text_mask": "words.npy",
        "max_memory": max_memory,  # one byte: every sample is a chunk
    }
    made, report = fuse(image, text, output, direction="both", pool="max", **options)
    expected = {}
    for side, mask in (("text", words), ("image", patches)):
        rows = each_pair(oracle(config, weights, side), image, text, patches, words, side)
        expected |= {f"fused_{side}": rows, f"pooled_{side}": pooled(rows, mask, "max")}
    assert set(made) == set(expected)
    for key, array in expected.items():
        assert_close(made[key], array)
    assert [t["key"] for t in report.output["tensors"]] == list(expected)
    alone, report = fuse(image, text, "alone.npy", direction="image", **options)
    assert_close(alone[""], expected["fused_image"])
    assert (report.output["axes"], report.output["direction"]) == ("NPD", "image")


@pytest.mark.parametrize(
    ("image", "text", "axes", "shape", "letters"),
    [
        ((5, D), (3, D), {}, [5, D], "PD"),
        ((D,), (3, D), {}, [D], "D"),
        ((1, 5, D), (3, D), {}, [1, 5, D], "NPD"),
        ((5, D), (1, 3, D), {"image_axes": "PD"}, [1, 5, D], "NPD"),
        ((4, 5, D), (4, 3, D), {}, [4, 5, D], "NPD"),
        ((4, D), (4, 3, D), {}, [4, D], "ND"),
        ((5, D), (4, 3, D), {"image_axes": "PD"}, [4, 5, D], "NPD"),
        ((D, 2, 3), (3, D), {"image_axes": "DHW"}, [6, D], "PD"),
        ((4, 2, 3, D), (4, 3, D), {"image_axes": "NHWD"}, [4, 6, D], "NPD"),
    ],
)
def test_a_fused_image_has_the_image_s_axes(image, text, axes, shape, letters):
    config = CONFIGS["gate"]
    write_weights("w.safetensors", config, random_weights(config.parameter_shapes()))
    made, report = fuse(
        noise(*image), noise(*text), weights="w.safetensors", direction="image", **axes
    )
    assert list(made["fused"].shape) == shape
    assert (report.output["shape"], report.output["axes"]) == (shape, letters)


@pytest.mark.parametrize("masked", [False, True])
@configs
def test_one_image_is_the_query_side_of_many_texts(config, masked):
    weights = random_weights(config.parameter_shapes())
    write_weights("w.safetensors", config, weights)
    image, text = noise(1, 5, config.image_dim), noise(40, 3, config.text_dim, seed=1)
    options, mask = {}, None
    if masked:  # of each text another part of the one image
        mask = np.random.default_rng(0).random((40, 5)) < 0.7
        mask[:, 0] = True
        np.save("mask.npy", mask)
        options = {"image_mask": "mask.npy"}
    made, report = fuse(
        image, text, weights="w.safetensors", direction="both", max_memory=1 << 14, **options
    )
    for side in ("text", "image"):
        expected = each_pair(oracle(config, weights, side), image, text, mask, None, side)
        assert_close(made[f"fused_{side}"], expected)
    assert report.notes == ["one image is shared by all 40 text samples"]


def test_a_text_without_a_real_token_is_refused_where_the_image_is_the_query_side():
    np.save("words.npy", np.arange(3) < [[2], [0]])
    options = {"text_mask": "words.npy", "switches": Switches(heads=H)}
    image, text = noise(2, 5, D), noise(2, 3, D)
    fuse(image, text, **options)
    for direction in ("image", "both"):
        with pytest.raises(ShapeError, match=r"text.npy: sample 1 has every text token masked"):
            fuse(image, text, direction=direction, **options)
        made, _ = fuse(image, text, direction=direction, allow_empty_image=True, **options)
        assert all(np.isfinite(array).all() for array in made.values())


def test_attention_of_one_pair_is_that_of_the_query_side_over_real_tokens():
    config = CONFIGS["attention"]
    weights = random_weights(config.parameter_shapes())
    write_weights("w.safetensors", config, weights)
    image, text = noise(5, DI), noise(4, DT, seed=1)
    np.save("words.npy", np.array([True, True, False, False]))
    np.save("patches.npy", np.array([True, True, True, False, False]))
    options = {
        "weights": "w.safetensors", "text_mask": "words.npy", "image_mask": "patches.npy",
    }  # fmt: skip
    for direction, choices in (("text", 3), ("image", 2), ("both", 3)):
        made, report = fuse(image, text, direction=direction, **options)
        assert report.attention["max_entropy"] == pytest.approx(np.log(choices))
        assert 0 < report.attention["entropy_ratio"] < 1
    assert made["fused_image"].shape == (5, D)


@pytest.mark.parametrize("direction", ["text", "image", "both"])
@pytest.mark.parametrize("N", [1, 3])
def test_padding_of_the_query_side_does_not_count_in_the_entropy(direction, N):
    config = CONFIGS["attention"]
    write_weights("w.safetensors", config, random_weights(config.parameter_shapes()))
    image, text = noise(N, 5, DI), noise(N, 4, DT, seed=1)
    _, cropped = fuse(image, text, direction=direction, weights="w.safetensors")
    padding = ((0, 0), (0, 40), (0, 0))
    np.save("words.npy", np.arange(44) < 4)
    np.save("patches.npy", np.arange(45) < 5)
    masks = {"text_mask": "words.npy", "image_mask": "patches.npy"}
    image, text = np.pad(image, padding), np.pad(text, padding)
    _, padded = fuse(image, text, direction=direction, weights="w.safetensors", **masks)
    assert padded.attention == pytest.approx(cropped.attention, rel=1e-5)


def test_one_image_s_texts_of_one_token_need_no_scores():
    _, report = fuse(noise(1, 5, 16), noise(7, 1, 16), direction="both")
    assert report.plan["scores"] != "none"
    assert report.plan["image_asks"]["scores"] == "none"


# --- what may be wrong with a result ----------------------------------------------------------


def codes(report):
    return [diagnosis.code for diagnosis in report.diagnoses]


def test_one_token_is_diagnosed_only_where_nothing_else_keeps_the_query_side():
    image, text = noise(1, 16), noise(3, 16)
    for switches in (
        Switches(method="concat"),
        Switches(method="sum"),
        Switches(method="transformer"),
        Switches(residual=True),
        Switches(null_token=True),
    ):
        assert "one-image-token" not in codes(fuse(image, text, switches=switches)[1])
    assert codes(fuse(image, text)[1]) == ["one-image-token"]
    _, report = fuse(noise(5, 16), noise(1, 16), direction="image")
    assert codes(report) == ["one-text-token"]
    assert "hold no image information" in str(report.diagnoses[0])


def test_a_method_without_weights_says_nothing_about_weights():
    for method in ("concat", "sum"):
        image, text = noise(5, 16), noise(3, 16, seed=1)
        _, report = fuse(image, text, switches=Switches(method=method))
        assert report.diagnoses == report.notes == []
        assert report.plan is report.attention is None
        assert report.module["parameters"] == 0
        assert report.module["weights"] == {
            "file": None, "sha256": None, "seed": None, "trained": None, "origin": "none needed",
        }  # fmt: skip
        assert report.provenance["engine"] == "numpy"
        assert report.provenance["seed"] is None


def test_a_closed_gate_is_diagnosed_before_any_work_and_an_open_one_is_not():
    image, text = noise(5, 16), noise(3, 16, seed=1)
    made, report = fuse(image, text, switches=Switches(gate=True))
    assert np.array_equal(made["fused"], text)
    assert codes(report) == ["closed-gate"]
    assert report.notes == [
        "no --weights: initial weights, seed 0; this module is untrained; "
        "'fusecli train' trains one on pairs with labels"
    ]
    os.remove("out.safetensors")
    with pytest.raises(DiagnosisError, match="the gate is 0, as it starts: the result is the text"):
        fuse(image, text, switches=Switches(gate=True), strict=True)
    assert not Path("out.safetensors").exists()
    config = FusionConfig(16, 8, gate=True)
    write_weights("w.safetensors", config, random_weights(config.parameter_shapes()))
    assert codes(fuse(image, text, weights="w.safetensors")[1]) == []


# --- weights ---------------------------------------------------------------------------------


@configs
def test_a_module_goes_to_a_file_and_comes_back(config):
    torch.manual_seed(1)
    module = build_module(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    save_module(module, "w.safetensors")
    back = load_module("w.safetensors")
    assert type(back) is type(module)
    assert back.config == config
    for name, array in module.state_dict().items():
        assert torch.equal(back.state_dict()[name], array), name
    image, text = noise(5, config.image_dim), noise(3, config.text_dim, seed=1)
    made, report = fuse(image, text, weights="w.safetensors")
    with torch.inference_mode():
        expected = module.double().eval()(
            torch.from_numpy(image).double(), torch.from_numpy(text).double()
        )
    assert_close(made["fused"], expected.numpy())
    assert report.module["method"] == config.method
    with safetensors.safe_open("out.safetensors", "np") as file:
        written = json.loads(file.metadata()["fusecli"])
    assert written == config.to_dict()


@pytest.mark.parametrize(
    ("method", "switches", "message"),
    [
        (
            "sum",
            Switches(method="concat"),
            "--method concat contradicts w.safetensors, which has",
        ),
        (
            "transformer",
            Switches(layers=3),
            "--layers 3 contradicts w.safetensors, which has 2",
        ),
        (
            "transformer",
            Switches(ffn_dim=3),
            "--ffn-dim 3 contradicts w.safetensors, which has 16",
        ),
        ("transformer", Switches(heads=2), "--heads 2 contradicts w.safetensors, which has 3"),
        (
            "sum",
            Switches(heads=8),
            "--heads belongs to --method attention or transformer, not to s",
        ),
        ("sum", Switches(layers=2), "--layers belongs to --method transformer, not to sum"),
        (
            "attention",
            Switches(layers=3),
            "--layers belongs to --method transformer, not to atten",
        ),
        (
            "attention",
            Switches(alpha=0.5),
            "--alpha belongs to --method sum, not to attention",
        ),
        ("concat", Switches(norm=True), "--norm belongs to --method attention, not to concat"),
        (
            "concat",
            Switches(residual=True),
            "--residual belongs to --method attention, not to con",
        ),
        (
            "gate",
            Switches(residual=True),
            "--gate keeps the text and --residual adds the projecte",
        ),
        ("sum", Switches(alpha=2.0), "--alpha must be from 0 to 1, found 2"),
    ],
)
def test_options_that_contradict_a_file_are_refused(method, switches, message):
    config = CONFIGS[method]
    write_weights("w.safetensors", config, random_weights(config.parameter_shapes()))
    with pytest.raises(UsageError) as caught:
        fuse(
            noise(5, config.image_dim),
            noise(3, config.text_dim),
            weights="w.safetensors",
            switches=switches,
        )
    assert message in str(caught.value)


def test_a_state_dict_alone_is_attention_s_gate_and_all():
    module = build_module(CONFIGS["gate"])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    torch.save(module.state_dict(), "w.pt")
    image, text = noise(2, 5, D), noise(2, 3, D)
    made, report = fuse(image, text, weights="w.pt", switches=Switches(heads=H))
    assert report.module["gate"]
    with torch.inference_mode():
        assert_close(made["fused"], module(torch.from_numpy(image), torch.from_numpy(text)).numpy())
    torch.manual_seed(0)
    module = build_module(CONFIGS["transformer"]).eval()
    torch.save(module.state_dict(), "t.pt")
    image, text = noise(2, 5, DI), noise(2, 3, DT)
    heads = CONFIGS["transformer"].num_heads
    made, report = fuse(image, text, weights="t.pt", switches=Switches(heads=heads))
    assert report.module["method"] == "transformer"
    with torch.inference_mode():
        assert_close(made["fused"], module(torch.from_numpy(image), torch.from_numpy(text)).numpy())


def test_alpha_and_the_gate_can_be_set_aside_from_a_file():
    config = CONFIGS["sum"]
    weights = random_weights(config.parameter_shapes())
    write_weights("w.safetensors", config, weights)
    image, text = noise(2, 5, DI), noise(2, 3, DT)
    made, _ = fuse(image, text, weights="w.safetensors", switches=Switches(alpha=1.0))
    proj = (
        torch.from_numpy(weights["text_proj.weight"]),
        torch.from_numpy(weights["text_proj.bias"]),
    )
    expected = torch.nn.functional.linear(torch.from_numpy(text), *proj)
    assert_close(made["fused"], expected.numpy())
    config = CONFIGS["gate"]
    weights = random_weights(config.parameter_shapes())
    write_weights("g.safetensors", config, weights)
    image, text = noise(2, 5, D), noise(2, 3, D)
    made, _ = fuse(image, text, weights="g.safetensors", switches=Switches(gate=False))
    assert_close(made["fused"], each_pair(oracle(FusionConfig(D, H), weights), image, text))


# --- files: whole or not at all --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"direction": "both"},
            "out.npy: --direction both gives more than one tensor, and .npy",
        ),
        ({"pool": "mean"}, "out.npy: --pool mean gives more than one tensor, and .npy holds one: "),
        ({"direction": "up"}, "--direction up: expected text, image, both"),
        ({"pool": "median"}, "--pool median: expected mean, max, first"),
        (
            {"switches": Switches(method="sum"), "seed": 1},
            "--seed 1: --method sum has no weights",
        ),
    ],
)
def test_impossible_options_are_refused_before_any_work(options, message):
    with pytest.raises(UsageError) as caught:
        fuse(noise(5, 16), noise(3, 16), "out.npy", **options)
    assert message in str(caught.value)
    assert sorted(os.listdir()) == ["image.npy", "text.npy"]


def test_the_table_says_whose_attention_was_measured_with_direction_both(cli):
    np.save("image.npy", noise(5, 16))
    np.save("text.npy", noise(4, 16, seed=1))
    pair = "fuse", "image.npy", "text.npy", "--report", "-f"
    assert "\nattention: mean entropy" in cli(*pair).err
    assert "\nattention, text asks: mean entropy" in cli(*pair, "--direction", "both").err


def test_several_tensors_go_to_safetensors_by_default(cli):
    np.save("image.npy", noise(5, 16))
    np.save("text.npy", noise(3, 16))
    done = cli("fuse", "image.npy", "text.npy", "--pool", "mean", "-q")
    assert (done.code, done.out) == (0, "text.fused.safetensors\n")
    assert set(load("text.fused.safetensors")) == {"fused", "pooled"}
    done = cli("fuse", "image.npy", "text.npy", "-q")
    assert (done.code, done.out) == (0, "text.fused.npy\n")


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_tensors_of_one_file_are_written_side_by_side(tmp_path_factory, ending, dtype, cuts):
    path = str(tmp_path_factory.mktemp("side by side") / f"a{ending}")
    N = sum(cuts)
    arrays = {"fused": noise(N, 3, 2), "pooled": noise(N, 2, seed=1), "third": noise(N, 1, 5)}
    shapes = {key: array.shape for key, array in arrays.items()}
    contents = []
    for parts in (cuts, [N]):  # the same bytes, whatever the chunks
        to_hold = OutputContents(shapes, dtype, {"a": 1})
        with FeatureWriter(path, to_hold, replace=True).begin() as writer:
            start = 0
            for cut in parts:
                writer.append(*(array[start : start + cut] for array in arrays.values()))
                start += cut
            writer.finish()
            assert not os.path.exists(path) or len(contents) == 1
            writer.publish()
        contents.append(Path(path).read_bytes())
    assert contents[0] == contents[1]
    found = load(path)
    assert set(found) == set(arrays)
    for key, array in arrays.items():
        assert np.array_equal(found[key], array.astype(dtype).astype(np.float32))
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_several_tensors_that_are_given_up_leave_nothing(ending):
    contents = OutputContents({"fused": (4, 3), "pooled": (4, 2)}, "float32", {})
    with FeatureWriter(f"a{ending}", contents).begin() as writer:
        writer.append(noise(2, 3), noise(2, 2))
        assert len(os.listdir()) == 1
    assert os.listdir() == []


def test_a_number_beyond_float16_in_any_tensor_is_an_error():
    rows = np.ones((1, 1), np.float32)
    contents = OutputContents({"fused": (1, 1), "b": (1, 1)}, "float16", {})
    with (
        FeatureWriter("a.npz", contents).begin() as writer,
        pytest.raises(OutputError, match=r"reach 1e\+06 and float16 ends at 65504"),
    ):
        writer.append(rows, rows * np.float32(1e6))
    assert os.listdir() == []


def test_same_job_same_bytes():
    for output in ("a.npz", "a.safetensors"):
        contents = []
        for _ in range(2):
            fuse(noise(3, 5, 16), noise(3, 2, 16), output, direction="both", pool="first")
            contents.append(Path(output).read_bytes())
        assert contents[0] == contents[1]
    with zipfile.ZipFile("a.npz") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_report_of_both_sides_names_the_stages_of_each():
    _, report = fuse(noise(2, 5, 16), noise(2, 3, 16), direction="both")
    named = {(stage.name, stage.letters): list(stage.shape) for stage in report.stages}
    names = [stage.name for stage in report.stages]
    assert names[:4] == ["text features", "image features", "projected text", "projected image"]
    assert names[names.index("fused text") + 1 :][:2] == ["projected text", "projected image"]
    assert named["projected text", "N, T, D"] == [2, 3, 16]
    assert named["scores", "N, H, T, P"] == [2, 8, 3, 5]
    assert named["scores", "N, H, P, T"] == [2, 8, 5, 3]
    assert named["fused text", "N, T, D"] == [2, 3, 16]
    assert named["fused image", "N, P, D"] == [2, 5, 16]
    assert report.plan["image_asks"]["image_asks"] is None
    assert report.plan["image_asks"]["plain_multiply_adds"] > 0


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        (Switches(method="concat"), {"mean image": [2, 16], "fused": [2, 3, 32]}),
        (Switches(method="concat", dim=4), {"text and image": [2, 3, 32], "fused": [2, 3, 4]}),
        (Switches(method="sum", dim=4), {"projected mean image": [2, 4], "fused": [2, 3, 4]}),
        (
            Switches(method="transformer", layers=1),
            {
                "self-attention scores": [2, 8, 3, 3],
                "cross-attention scores": [2, 8, 3, 5],
                "feed-forward": [2, 3, 64],
                "fused": [2, 3, 16],
            },
        ),
    ],
)
def test_a_report_names_the_stages_of_each_method(switches, expected):
    _, report = fuse(noise(2, 5, 16), noise(2, 3, 16), switches=switches)
    named = {stage.name: list(stage.shape) for stage in report.stages}
    assert (named["text features"], named["image features"]) == ([2, 3, 16], [2, 5, 16])
    assert expected.items() <= named.items()
