"""Weights files: fusecli's own, the published module's, and those that are neither."""

import json
import os
from contextlib import contextmanager

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from fusecli import FusionConfig, ImageTextFusion, load_module, save_module
from fusecli.errors import FeatureFileError, OutputError, UsageError, WeightsError
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.methods.attention.operands import needed_parameters
from fusecli.fusion.methods.attention.plan import Sizes, choose_plan
from fusecli.fusion.options import ModuleOptions as Switches
from fusecli.fusion.stored_module import module_of
from fusecli.fusion.weights import write_weights
from fusecli.fusion.weights_file import open_weights, read_weights
from tests.fusion.states import as_numpy, plain_state, randomize
from tests.reference import PlainImageTextFusion

CONFIGS = [
    FusionConfig(12, 3),
    FusionConfig(12, 4, 7, 5, residual=True),
    FusionConfig(8, 1, 3, 8, norm=True, null_token=True),
]


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def write_with_metadata(path, metadata, state=None):
    safetensors.torch.save_file(state or plain_state(), path, {"fusecli": metadata})
    return str(path)


@contextmanager
def opened(path):
    weights = open_weights(str(path))
    with weights.file:
        yield weights


def config_of(weights, switches):
    """The config of a file's module, and whether H had to be assumed."""
    found = module_of(weights, switches)
    return found.config, found.heads_assumed


def config_from(path, **switches):
    with opened(path) as weights:
        return config_of(weights, Switches(**switches))[0]


def assert_same_state(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_saved_module_is_loaded_as_it_was(config, tmp_path):
    module = randomize(ImageTextFusion.from_config(config))
    path = str(tmp_path / "trained.safetensors")
    save_module(module, path)
    loaded = load_module(path)
    assert loaded.config == config
    assert_same_state(loaded.state_dict(), module.state_dict())
    image, text = features(2, 4, config.image_dim), features(2, 3, config.text_dim, seed=1)
    assert torch.equal(loaded.eval()(image, text), module.eval()(image, text))


def save_pt(state, path):
    torch.save(state, path)


def save_npz(state, path):
    np.savez(path, **as_numpy(state))


def save_packed_npz(state, path):
    np.savez_compressed(path, **as_numpy(state))


def save_fortran_npz(state, path):
    np.savez(path, **{name: np.asfortranarray(array) for name, array in as_numpy(state).items()})


PUBLISHED_FORMS = {
    "safetensors": ("w.safetensors", safetensors.torch.save_file),
    "pt": ("w.pt", save_pt),
    "pth": ("w.pth", save_pt),
    "npz": ("w.npz", save_npz),
    "packed npz": ("w.npz", save_packed_npz),
    "fortran npz": ("w.npz", save_fortran_npz),
    "nested": ("w.pt", lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path)),
    "trainer": ("w.pt", lambda state, path: torch.save({"model_state_dict": state}, path)),
    "ddp": (
        "w.pt",
        lambda state, path: torch.save({f"module.{n}": t for n, t in state.items()}, path),
    ),
    **{
        key: ("w.pt", lambda state, path, key=key: torch.save({key: state, "epoch": 3}, path))
        for key in ("module", "net", "state_dict_ema")
    },
    "model.state_dict": (
        "w.ckpt",
        lambda state, path: torch.save({"model": {"state_dict": state}, "optimizer": {}}, path),
    ),
    "compiled": (
        "w.pt",
        lambda state, path: torch.save({f"_orig_mod.{n}": t for n, t in state.items()}, path),
    ),
    "part of a model": (
        "w.safetensors",
        lambda state, path: safetensors.torch.save_file(
            {f"net.fusion.{n}": t for n, t in state.items()} | {"net.head.weight": torch.ones(3)},
            path,
        ),
    ),
}


@pytest.mark.parametrize("form", PUBLISHED_FORMS)
@pytest.mark.parametrize("heads", [1, 3, 4])
def test_files_of_the_published_module_load_with_heads(form, heads, tmp_path):
    name, save = PUBLISHED_FORMS[form]
    state = plain_state(12, heads)
    save(state, tmp_path / name)
    module = load_module(str(tmp_path / name), heads=heads).eval()
    assert_same_state(module.state_dict(), state)
    plain = PlainImageTextFusion(12, heads).eval()
    plain.load_state_dict(state)
    image, text = features(4, 12), features(5, 12, seed=1)
    expected = plain(image, text).detach()
    allowed = 1e-5 * expected.abs().max()
    assert (module(image, text) - expected).abs().max() <= allowed


def test_a_file_loads_back_into_the_published_module(tmp_path):
    module = randomize(ImageTextFusion(12, 3))
    path = str(tmp_path / "w.safetensors")
    save_module(module, path)
    plain = PlainImageTextFusion(12, 3)
    plain.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert_same_state(plain.state_dict(), module.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_read_as_float32(dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in plain_state().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = load_module(str(tmp_path / "w.safetensors"), heads=3).state_dict()
    assert_same_state(loaded, {name: tensor.float() for name, tensor in state.items()})


def test_eight_heads_are_assumed_where_nothing_says_how_many(tmp_path):
    safetensors.torch.save_file(plain_state(16, 2), tmp_path / "w.safetensors")
    with opened(tmp_path / "w.safetensors") as weights:
        assert config_of(weights, Switches()) == (FusionConfig(16, 8), True)
        assert config_of(weights, Switches(heads=2)) == (FusionConfig(16, 2), False)
        assert config_of(weights, Switches(heads=8)) == (FusionConfig(16, 8), False)
    save_module(ImageTextFusion(16, 2), str(tmp_path / "own.safetensors"))
    with opened(tmp_path / "own.safetensors") as weights:
        assert config_of(weights, Switches()) == (FusionConfig(16, 2), False)


def test_shapes_tell_the_widths_and_the_norm(tmp_path):
    module = randomize(ImageTextFusion(12, 3, image_dim=7, text_dim=5, norm=True))
    path = tmp_path / "w.pt"
    torch.save(module.state_dict(), path)
    assert config_from(path, heads=3) == FusionConfig(12, 3, 7, 5, norm=True)
    assert config_from(path, heads=3, norm=False) == FusionConfig(12, 3, 7, 5)
    assert load_module(str(path), heads=3).norm is not None


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("seed", [None, 0, 2**32 - 1])
def test_the_file_says_what_it_holds(config, seed, tmp_path):
    path = str(tmp_path / "w.safetensors")
    arrays = initial_weights(config, 1)
    nbytes = write_weights(path, config, arrays, seed)
    assert nbytes == os.path.getsize(path)
    with opened(path) as weights:
        assert weights.config == config
        assert weights.seed == seed
        assert weights.prefix == ""
        rows = dict.fromkeys(config.parameter_shapes(), slice(None))
        read = read_weights(weights, rows)
    for name, array in arrays.items():
        assert np.array_equal(read[name], array)
    with safetensors.safe_open(path, "np") as file:
        said = json.loads(file.metadata()["fusecli"])
    assert said == config.to_dict() | ({} if seed is None else {"initial_seed": seed})


def test_options_switch_what_holds_no_weights(tmp_path):
    path = str(tmp_path / "w.safetensors")
    save_module(ImageTextFusion(12, 3, residual=True, norm=True), path)
    assert config_from(path).residual
    assert not config_from(path, residual=False).residual
    assert config_from(path, null_token=True).null_token
    assert not config_from(path, norm=False).norm
    assert config_from(path, dim=12, heads=3) == config_from(path)


@pytest.mark.parametrize(
    ("switches", "sentence"),
    [
        ({"dim": 16}, "--dim 16 contradicts .*w.safetensors, which has 12"),
        ({"heads": 4}, "--heads 4 contradicts .*w.safetensors, which has 3"),
    ],
)
def test_options_that_contradict_the_file_are_refused(switches, sentence, tmp_path):
    path = str(tmp_path / "w.safetensors")
    save_module(ImageTextFusion(12, 3), path)
    with pytest.raises(UsageError, match=sentence):
        config_from(path, **switches)


def test_heads_that_do_not_divide_the_file_s_width_are_refused(tmp_path):
    torch.save(plain_state(12, 3), tmp_path / "w.pt")
    with pytest.raises(UsageError, match="--heads 5 does not divide the width D, 12"):
        config_from(tmp_path / "w.pt", heads=5)
    with pytest.raises(UsageError, match="the width D, 12: head counts that do are 1, 2"):
        load_module(str(tmp_path / "w.pt"))  # 8 assumed


def test_norm_needs_weights_made_with_it(tmp_path):
    path = str(tmp_path / "w.safetensors")
    save_module(ImageTextFusion(12, 3), path)
    with pytest.raises(WeightsError, match=r"has no norm.weight: --norm needs weights made with"):
        config_from(path, norm=True)


def without(name):
    return {key: tensor for key, tensor in plain_state().items() if key != name}


def changed(**tensors):
    return plain_state() | {name.replace("__", "."): t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"weight": torch.ones(2, 2)}, "expected the weights of one fusion, found no text_proj"),
        (
            {f"a.{n}": t for n, t in plain_state().items()}
            | {f"b.{n}": t.clone() for n, t in plain_state().items()},
            r"found several, under 'a\.', 'b\.': choose one with --weights-prefix",
        ),
        (without("image_proj.weight"), r"have no image_proj.weight; there are attention\.in_proj"),
        (without("attention.in_proj_bias"), "these weights have no attention.in_proj_bias"),
        (without("attention.out_proj.weight"), "these weights have no attention.out_proj.weight"),
        (
            changed(text_proj__weight=torch.ones(12)),
            r"text_proj.weight \[12\] and image_proj.weight \[12, 12\] must be matrices",
        ),
        (
            changed(image_proj__weight=torch.ones(12, 0)),
            r"image_proj.weight \[12, 0\] must be matrices",
        ),
        (
            changed(text_proj__bias=torch.ones(11)),
            r"text_proj.bias has shape \[11\], expected \[12\] beside text_proj.weight \[12, 12\]",
        ),
        (
            changed(attention__in_proj_weight=torch.ones(24, 12)),
            r"attention.in_proj_weight has shape \[24, 12\], expected \[36, 12\]",
        ),
        (
            changed(attention__bias_k=torch.ones(1, 1, 12)),
            "holds attention.bias_k besides a fusion's parameters, which would be left out",
        ),
        (
            changed(norm__weight=torch.ones(12)),
            "has norm.weight and no norm.bias, as an RMSNorm has",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_that_do_not_make_a_fusion_are_refused(state, sentence, ending, tmp_path):
    path = tmp_path / f"w.{ending}"
    save = safetensors.torch.save_file if ending == "safetensors" else save_pt
    save({name: tensor.contiguous() for name, tensor in state.items()}, path)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_module(str(path), heads=3)
    assert str(path) in str(caught.value)


def test_parameters_that_were_renamed_for_other_widths_are_refused(tmp_path):
    # nn.MultiheadAttention(kdim=...) keeps three matrices instead of one.
    attention = nn.MultiheadAttention(12, 3, kdim=7, vdim=7).state_dict()
    state = without("attention.in_proj_weight")
    state |= {f"attention.{name}": tensor for name, tensor in attention.items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        WeightsError, match=r"image_proj.weight has shape \[12, 12\], expected \[7,"
    ):
        load_module(str(tmp_path / "w.pt"), heads=3)


GOOD = FusionConfig(12, 3).to_dict()


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ("{", "its fusecli metadata is not JSON"),
        ("[" * 100_000, "its fusecli metadata is not JSON"),
        ("[1, 2]", "its fusecli metadata is not a JSON object"),
        ("null", "its fusecli metadata is not a JSON object"),
        (json.dumps(GOOD | {"initial_seed": "0"}), "its fusecli metadata says initial_seed = '0'"),
        (json.dumps(GOOD | {"initial_seed": True}), "metadata says initial_seed = True"),
        (json.dumps(GOOD | {"depth": 3}), "has 'depth', which this version does not know"),
        (json.dumps(GOOD | {"num_heads": "3"}), "says num_heads = '3', expected int"),
        (json.dumps(GOOD | {"num_heads": 3.0}), "says num_heads = 3.0, expected int"),
        (json.dumps(GOOD | {"residual": 1}), "says residual = 1, expected bool"),
        (json.dumps(GOOD | {"embed_dim": True}), "says embed_dim = True, expected int"),
        (json.dumps({"embed_dim": 12}), "its fusecli metadata has no num_heads"),
        (json.dumps({"num_heads": 3}), "its fusecli metadata has no embed_dim"),
        (json.dumps(GOOD | {"num_heads": 5}), "metadata is impossible: --heads 5 does not divide"),
        (json.dumps(GOOD | {"embed_dim": -12}), "metadata is impossible: --dim must be from 1"),
        (json.dumps(GOOD | {"method": "magic"}), "impossible: unknown fusion method 'magic'"),
        (json.dumps(GOOD | {"embed_dim": 24, "num_heads": 3}), r"has shape \[12, 12\], expected"),
        (json.dumps(GOOD | {"image_dim": 7}), r"image_proj.weight has shape \[12, 12\], expected"),
        (json.dumps(GOOD | {"norm": True}), "these weights have no norm.weight"),
    ],
)
def test_metadata_that_cannot_be_is_refused(metadata, sentence, tmp_path):
    path = write_with_metadata(tmp_path / "w.safetensors", metadata)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_module(path)
    assert path in str(caught.value)


def test_metadata_of_somebody_else_is_no_config(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(plain_state(), path, {"format": "pt"})
    assert config_from(path, heads=3) == FusionConfig(12, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["image_proj.weight", "attention.in_proj_bias"])
def test_weights_that_are_not_finite_are_refused(bad, name, tmp_path):
    state = plain_state()
    state[name].view(-1)[5] = bad
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"\[{name}\]: holds NaN or infinity"):
        load_module(str(tmp_path / "w.pt"), heads=3)


def test_a_parameter_that_is_no_numbers_is_refused(tmp_path):
    arrays = as_numpy(plain_state()) | {"text_proj.bias": np.array(["a"] * 12)}
    path = write_npz(tmp_path / "w.npz", **arrays)
    with pytest.raises(FeatureFileError, match=r"\[text_proj.bias\]: holds strings"):
        load_module(path, heads=3)


def test_weights_do_not_come_from_stdin():
    with pytest.raises(UsageError, match="--weights cannot be read from stdin: give a file"):
        open_weights("-")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FeatureFileError, match=r"nowhere.safetensors: no such file"):
        load_module(str(tmp_path / "nowhere.safetensors"))


def test_parameters_that_are_not_contiguous_are_written_right(tmp_path):
    config = FusionConfig(4, 2, 3, 5)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }
    twisted = dict(arrays)
    twisted["text_proj.weight"] = np.asfortranarray(arrays["text_proj.weight"])
    twisted["image_proj.weight"] = np.repeat(arrays["image_proj.weight"], 2, axis=1)[:, ::2]
    twisted["text_proj.bias"] = arrays["text_proj.bias"][::-1].copy()[::-1]
    twisted["attention.in_proj_weight"] = arrays["attention.in_proj_weight"].astype(np.float64)
    assert not any(twisted[n].flags.c_contiguous for n in ("text_proj.weight", "image_proj.weight"))
    write_weights(str(tmp_path / "w.safetensors"), config, twisted)
    read = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    for name, array in arrays.items():
        assert np.array_equal(read[name], array), name


def test_a_module_with_transposed_parameters_is_saved_right(tmp_path):
    module = randomize(ImageTextFusion(4, 2, image_dim=3))
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weight = module.image_proj.weight
    weight.data = weight.data.t().contiguous().t()
    assert not weight.is_contiguous()
    save_module(module, str(tmp_path / "w.safetensors"))
    assert_same_state(load_module(str(tmp_path / "w.safetensors")).state_dict(), expected)


def test_the_same_weights_are_the_same_bytes(tmp_path):
    config = FusionConfig(12, 3, norm=True)
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.safetensors"
        arrays = initial_weights(config, seed)
        write_weights(str(path), config, dict(sorted(arrays.items(), reverse=name == "b")), 1)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_an_existing_file_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"mine")
    module = ImageTextFusion(4, 2)
    with pytest.raises(OutputError, match="exists already: say --force to replace it"):
        save_module(module, str(path))
    assert path.read_bytes() == b"mine"
    save_module(module, str(path), force=True)
    assert load_module(str(path)).config == FusionConfig(4, 2)
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_weights_are_written_as_safetensors_only(tmp_path):
    with pytest.raises(UsageError, match=r"an output ends in \.safetensors, found \.pt"):
        save_module(ImageTextFusion(4, 2), str(tmp_path / "w.pt"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("residual", [False, True])
def test_one_image_token_needs_the_value_rows_only(residual, tmp_path):
    config = FusionConfig(12, 3, 7, 5, residual=residual)
    plan = choose_plan(Sizes(1, 4, 1, 5, 7, 12, 3, residual=residual))
    rows = needed_parameters(config, plan, config.parameter_shapes())
    assert rows["attention.in_proj_weight"] == slice(24, 36)
    assert rows["attention.in_proj_bias"] == slice(24, 36)
    assert ("text_proj.weight" in rows) is ("text_proj.bias" in rows) is residual
    # What is not needed is not read either: NaN there is never seen.
    state = as_numpy(randomize(ImageTextFusion.from_config(config)).state_dict())
    state["attention.in_proj_weight"][:24] = np.nan
    write_weights(str(tmp_path / "w.safetensors"), config, state)
    with opened(tmp_path / "w.safetensors") as weights:
        read = read_weights(weights, rows)
        with pytest.raises(WeightsError, match="NaN"):
            read_weights(weights, dict.fromkeys(rows, slice(None)))
    assert set(read) == set(rows)
    for name, part in rows.items():
        assert np.array_equal(read[name], state[name][part])


def test_more_image_tokens_need_every_parameter():
    config = FusionConfig(12, 3, norm=True)
    for sizes in (Sizes(1, 4, 5, 12, 12, 12, 3), Sizes(1, 4, 1, 12, 12, 12, 3, null_token=True)):
        rows = needed_parameters(config, choose_plan(sizes), config.parameter_shapes())
        assert rows == dict.fromkeys(config.parameter_shapes(), slice(None))


def test_seeded_weights_are_those_rows_of_the_initial_ones():
    config = FusionConfig(12, 3, 7, 5, norm=True)
    whole = initial_weights(config, 9)
    rows = {"attention.in_proj_weight": slice(24, 36), "image_proj.bias": slice(None)}
    rows |= {"norm.weight": slice(None)}
    seeded = initial_weights(config, 9, rows)
    assert set(seeded) == set(rows)
    for name, part in rows.items():
        assert np.array_equal(seeded[name], whole[name][part])


def test_a_module_and_its_ema_in_one_file_are_told_apart_by_a_prefix(tmp_path):
    state = plain_state(12, 3)
    ema = {name: 2 * tensor for name, tensor in state.items()}
    path = str(tmp_path / "w.pt")
    torch.save({"state_dict": state, "state_dict_ema": ema}, path)
    with pytest.raises(WeightsError, match="choose one with --weights-prefix"):
        open_weights(path)
    for prefix, wanted in (("", state), ("state_dict_ema.", ema)):
        weights = open_weights(path, prefix)
        with weights.file:
            arrays = read_weights(weights, {"text_proj.weight": slice(None)})
            np.testing.assert_array_equal(arrays["text_proj.weight"], wanted["text_proj.weight"])


def test_a_norm_without_bias_may_be_another_norm_and_is_mended_by_zeros(tmp_path):
    module = randomize(ImageTextFusion(12, 3, norm=True))
    state = module.state_dict() | {"norm.bias": torch.zeros(12)}
    path = str(tmp_path / "w.pt")
    torch.save({name: t for name, t in state.items() if name != "norm.bias"}, path)
    with pytest.raises(
        WeightsError, match=r"no norm.bias, as an RMSNorm has.*store norm.bias as z"
    ):
        load_module(path, heads=3)
    torch.save(state, path)
    assert_same_state(load_module(path, heads=3).state_dict(), state)
