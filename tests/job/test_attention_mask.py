"""`--attention-mask`: read in every convention, held to torch's numbers, refused in one line."""

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fusecli import FuseOptions, FusionConfig, ImageTextFusion, fuse_files, save_module
from fusecli.errors import FeatureFileError, FuseError, ShapeError, UsageError
from fusecli.features.attention_mask import read_attention_mask
from fusecli.features.axes import read_axes
from fusecli.features.file import open_features
from fusecli.features.pair_shapes import match_pair
from fusecli.fusion.options import ModuleOptions
from fusecli.fusion.weights import write_weights
from fusecli.maps.writer import MapOptions
from tests.oracles import random_weights

N, T, P, DI, DT, D, H = 3, 4, 6, 10, 8, 12, 3

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(folder):
    """A folder with a stack of pairs, a pair, and weights."""
    rng = np.random.default_rng(0)
    np.save("images.npy", rng.standard_normal((N, P, DI), np.float32))
    np.save("texts.npy", rng.standard_normal((N, T, DT), np.float32))
    np.save("image.npy", np.load("images.npy")[1])
    np.save("text.npy", np.load("texts.npy")[1])
    for name, config in (
        ("attention", FusionConfig(D, H, DI, DT)),
        ("transformer", FusionConfig(D, H, DI, DT, method="transformer")),
    ):
        write_weights(f"{name}.safetensors", config, random_weights(config.parameter_shapes()))


def allowed(*shape, seed=0):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask[..., 0] = mask[..., 0, :] = True
    return mask


def fuse(mask, pair=("image.npy", "text.npy"), weights="attention", **options):
    """The rows that the files give, and the report."""
    if isinstance(mask, np.ndarray):
        np.save("am.npy", mask)
        mask = "am.npy"
    options = {"weights": f"{weights}.safetensors", "force": True} | options
    report = fuse_files(FuseOptions(*pair, "out.npy", attention_mask=mask, **options))
    return np.load("out.npy"), report


def torchs_rows(mask, pair=("image.npy", "text.npy"), direction="text"):
    """`nn.MultiheadAttention` with `attn_mask`, pair by pair, float64."""
    from fusecli import load_module

    module = load_module("attention.safetensors").double().eval()
    image, text = (torch.from_numpy(np.load(name)).double() for name in pair)
    image, text = image.reshape(-1, P, DI), text.reshape(-1, T, DT)
    whole = np.broadcast_to(mask, (len(text), T, P))
    rows = []
    with torch.inference_mode():
        for k in range(len(text)):
            x, y, own = module.text_proj(text[k]), module.image_proj(image[k]), whole[k]
            if direction == "image":
                x, y, own = module.image_proj(image[k]), module.text_proj(text[k]), own.T
            blocked = torch.from_numpy(~own.copy())
            rows.append(module.attention(x, y, y, attn_mask=blocked)[0].numpy())
    return np.stack(rows)


def written(mask, how):
    """A mask in one of its forms: the file, and the style to say."""
    forms = {
        "bool": (mask, None),
        "0 and 1": (mask.astype(np.int64), None),
        "floats 0 and 1": (mask.astype(np.float32), None),
        "additive": (np.where(mask, 0, -np.inf).astype(np.float32), None),
        "additive, float16": (np.where(mask, 0, -6e4).astype(np.float16), None),
        "additive, whole numbers": (np.where(mask, 0, -10_000), None),
        "0 and 255": (mask.astype(np.uint8) * np.uint8(255), None),
        "padding": (~mask, "padding"),
        "scores": (np.where(mask, 0, -1e9)[..., None, :, :].astype(np.float32), None),
    }
    return forms[how]


FORMS = (
    "bool", "0 and 1", "floats 0 and 1", "additive", "additive, float16",
    "additive, whole numbers", "padding", "0 and 255",
)  # fmt: skip


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("how", FORMS)
def test_every_form_of_a_mask_gives_what_torch_s_mask_gives(how, engine):
    mask = allowed(T, P)
    expected = torchs_rows(mask)[0]
    array, style = written(mask, how)
    found, report = fuse(array, engine=engine, mask_style=style)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(found - torchs_rows(np.ones((T, P), bool))[0]).max() > 0.1
    described = report.attention_mask
    assert described["allowed"] == mask.sum()
    assert described["not_allowed"] == (~mask).sum()
    assert (described["file"], described["shape"]) == ("am.npy", [T, P])
    named = style is not None or "additive" in how
    assert described["style"] == (style or ("additive" if "additive" in how else "keep"))
    # What nothing says is said.
    assert described["style_assumed"] == (not named)
    assert any("1 is taken for a text token that may attend" in n for n in report.notes) != named


@pytest.mark.parametrize("how", [*FORMS, "scores"])
@pytest.mark.parametrize("one", [True, False])
def test_stacks_with_a_mask_for_all_or_for_each(how, one):
    mask = allowed(*(() if one else (N,)), T, P, seed=1)
    if one and how == "scores":
        mask = mask[None]
    pair = "images.npy", "texts.npy"
    expected = torchs_rows(mask, pair)
    array, style = written(mask, how)
    for memory in (None, 1):  # in chunks of one pair, too
        found, _ = fuse(array, pair, mask_style=style, max_memory=memory)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_one_image_for_all_texts_with_a_mask_for_each():
    mask = allowed(N, T, P, seed=2)
    found, _ = fuse(mask, ("image.npy", "texts.npy"), image_axes="PD")
    np.save("repeated.npy", np.repeat(np.load("image.npy")[None], N, axis=0))
    expected = torchs_rows(mask, ("repeated.npy", "texts.npy"))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_image_as_query_side_takes_the_mask_transposed():
    mask = allowed(N, T, P, seed=3)
    pair = "images.npy", "texts.npy"
    expected = torchs_rows(mask, pair, "image")
    found, _ = fuse(mask, pair, direction="image")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.save("am.npy", mask)
    both = FuseOptions(
        *pair, "o.npz", attention_mask="am.npy", weights="attention.safetensors", direction="both"
    )
    fuse_files(both)
    with np.load("o.npz") as tensors:
        assert np.array_equal(tensors["fused_image"], found)
        np.testing.assert_allclose(tensors["fused_text"], torchs_rows(mask, pair), atol=1e-4)


def test_a_transformer_takes_it_as_torch_s_memory_mask():
    from fusecli import load_module

    mask = allowed(T, P, seed=4)
    module = load_module("transformer.safetensors").double().eval()
    image, text = (torch.from_numpy(np.load(f"{name}.npy")).double() for name in ("image", "text"))
    with torch.inference_mode():
        expected = module.decoder(
            module.text_proj(text)[None],
            module.image_proj(image)[None],
            memory_mask=torch.from_numpy(~mask),
        )[0].numpy()
    found, report = fuse(mask, weights="transformer")
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert report.attention_mask["allowed"] == mask.sum()


def test_a_token_that_may_see_nothing_is_an_error_unless_allowed():
    mask = allowed(N, T, P)
    mask[2, 1] = mask[2, 3] = False
    pair = "images.npy", "texts.npy"
    with pytest.raises(ShapeError) as error:
        fuse(mask, pair)
    assert str(error.value) == (
        "am.npy: sample 2, text token 1 (and 1 more) may attend to no image token: check "
        "--mask-style, or say --allow-empty-image, which gives it a context of zero"
    )
    found, _ = fuse(mask, pair, allow_empty_image=True)
    # A context of zero, as of an image of nothing but padding: the output layer's bias.
    bias = random_weights(FusionConfig(D, H, DI, DT).parameter_shapes())["attention.out_proj.bias"]
    np.testing.assert_allclose(found[2, [1, 3]], np.tile(bias, (2, 1)), atol=1e-6)
    seen = mask.any(-1)
    expected = torchs_rows(mask, pair)[seen]
    np.testing.assert_allclose(found[seen], expected, atol=1e-5 * np.abs(expected).max())
    # Padding may be allowed nothing.
    words = np.ones((N, T), bool)
    words[2, [1, 3]] = False
    np.save("tm.npy", words)
    found, _ = fuse(mask, pair, text_mask="tm.npy")
    assert (found[2, [1, 3]] == 0).all()
    # What the mask leaves must be real: here the image's mask takes it away.
    patches = np.ones((N, P), bool)
    patches[0, 0] = False
    np.save("im.npy", patches)
    mask[0, 2] = [True] + [False] * (P - 1)
    with pytest.raises(ShapeError, match=r"sample 0, text token 2 .*may attend to no image"):
        fuse(mask, pair, text_mask="tm.npy", image_mask="im.npy")
    mask[:, :, 4] = False
    with pytest.raises(ShapeError, match=r"sample 0, image token 4 .* may attend to no text token"):
        fuse(mask, pair, direction="image")


def test_an_inverted_attention_mask_is_suspected_where_it_leaves_no_token():
    mask = allowed(T, P)  # its first row is all true, so the opposite has an empty one
    with pytest.raises(ShapeError, match="text token 0 may attend to no image token: check --mask"):
        fuse(~mask)


def test_maps_are_zero_where_nothing_may_be_seen():
    mask = allowed(N, T, P)
    mask[1, 2] = False
    maps = MapOptions("map.npy", show=True, sample=1)
    shown = []
    np.save("am.npy", mask)
    o = FuseOptions(
        "images.npy",
        "texts.npy",
        "out.npy",
        weights="attention.safetensors",
        attention_mask="am.npy",
        allow_empty_image=True,
        maps=maps,
    )
    report = fuse_files(o, show=shown.append)
    found = np.load("map.npy")
    assert (found[~mask] == 0).all()
    assert (found[mask] > 0).all()
    seen = mask.any(-1)
    np.testing.assert_allclose(found.sum(-1)[seen], 1, atol=1e-5)
    view = shown[0]
    assert np.array_equal(np.isfinite(view.times), mask[1])
    # Weights are multiples of the uniform one, which is each token's own.
    counts = mask[1].sum(-1)
    np.testing.assert_allclose(
        view.times[mask[1]], (found[1] * counts[:, None])[mask[1]], rtol=1e-5
    )
    assert view.tokens == (counts[counts > 0].min(), counts.max())
    assert view.unit.startswith("1/n, n the ")
    assert "What the attention mask does not allow is hatched." in view.places
    assert report.attention["max_entropy"] < np.log(P)


def test_the_entropy_is_that_of_the_tokens_that_may_be_seen():
    mask = np.zeros((T, P), bool)
    mask[:, :2] = True
    write_weights(
        "flat.safetensors",
        FusionConfig(D, H, DI, DT),
        {
            name: array * (0 if name.startswith("attention.in") else 1)
            for name, array in random_weights(FusionConfig(D, H, DI, DT).parameter_shapes()).items()
        },
    )
    _, report = fuse(mask, weights="flat")
    assert report.attention["max_entropy"] == pytest.approx(np.log(2))
    assert report.attention["entropy_ratio"] == pytest.approx(1)
    assert "uniform-attention" in [d.code for d in report.diagnoses]


def test_diagnoses_of_a_mask_that_leaves_one_token_or_none():
    one = np.zeros((T, P), bool)
    one[range(T), range(T)] = True
    _, report = fuse(one)
    assert [d.code for d in report.diagnoses] == ["one-image-token"]
    assert "by the attention mask no text token may attend to more than one image token" in str(
        report.diagnoses[0]
    )
    _, report = fuse(one, switches=ModuleOptions(residual=True))
    assert report.diagnoses == []
    _, report = fuse(np.zeros((T, P), bool), allow_empty_image=True)
    assert [d.code for d in report.diagnoses] == ["empty-image"]
    assert "no text token may attend to any image token" in str(report.diagnoses[0])


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((P, T), "has shape [6, 4], expected [4, 6] (text tokens, image tokens): are its axes"),
        ((T,), "has shape [4], expected [4, 6] (text tokens, image tokens)"),
        ((2, T, P), "has shape [2, 4, 6], expected [4, 6] (text tokens, image tokens)"),
        ((H, T, P), "has shape [3, 4, 6], expected [4, 6] (text tokens, image tokens)"),
    ],
    ids=str,
)
def test_other_shapes_are_refused_in_one_line(shape, says, cli):
    np.save("am.npy", np.ones(shape, bool))
    pair = ("fuse", "image.npy", "text.npy", "--weights", "attention.safetensors")
    done = cli(*pair, "--attention-mask", "am.npy")
    assert done.code == 1
    assert done.err.startswith(f"error: am.npy: the attention mask {says}")
    assert done.err.count("\n") == 1
    assert not os.path.exists("text.fused.npy")
    np.save("am.npy", np.ones((2, T, P), bool))
    stacks = ("fuse", "images.npy", "texts.npy", "--weights", "attention.safetensors")
    done = cli(*stacks, "--attention-mask", "am.npy")
    assert "has shape [2, 4, 6], expected [4, 6] or [3, 4, 6]" in done.err


@pytest.mark.parametrize(
    ("values", "style", "error", "says"),
    [
        ([0.5], None, FeatureFileError, "holds 0.5 at [2, 3], and an attention mask holds 0 and 1"),
        ([np.nan], None, FeatureFileError, "holds nan at [2, 3]"),
        ([-3.0], None, FeatureFileError, "holds -3 at [2, 3]"),
        ([-3.0], "additive", FeatureFileError, "holds -3 at [2, 3], and an attention mask holds 0"),
        ([1.0], "lengths", UsageError, "--mask-style lengths: am.npy has a mark for each text"),
    ],
    ids=str,
)
def test_numbers_that_are_no_marks_are_refused(values, style, error, says):
    mask = np.zeros((T, P), np.float32) if style == "additive" else np.ones((T, P), np.float32)
    mask[2, 3] = values[0]
    with pytest.raises(error) as raised:
        fuse(mask, mask_style=style)
    assert says in str(raised.value)


def test_a_key_of_a_file_of_several_and_names_that_say_what_they_mean():
    mask = allowed(T, P)
    expected, _ = fuse(mask)
    save_file({"a": mask, "b": np.ones((T, P), bool)}, "m.safetensors")
    found, report = fuse("m.safetensors:a")
    assert np.array_equal(found, expected)
    assert report.attention_mask["key"] == "a"
    with pytest.raises(FeatureFileError) as error:
        fuse("m.safetensors")
    assert "say --attention-mask m.safetensors:KEY; there are a [4, 6], b [4, 6]" in str(
        error.value
    )
    save_file({"cross_attention_mask": mask, "b": np.ones((T, P), bool)}, "m.safetensors")
    found, report = fuse("m.safetensors")
    assert np.array_equal(found, expected)
    assert not report.attention_mask["style_assumed"]
    save_file({"attn_mask": ~mask}, "m.safetensors")
    with pytest.raises(UsageError, match="say --mask-style padding or --mask-style keep"):
        fuse("m.safetensors")
    found, _ = fuse("m.safetensors", mask_style="padding")
    assert np.array_equal(found, expected)
    added = np.where(mask, 0, -1e9).astype(np.float32)
    save_file({"attn_mask": added}, "m.safetensors")  # which cannot be mistaken
    assert np.array_equal(fuse("m.safetensors")[0], expected)
    with pytest.raises(FeatureFileError, match="has no tensor 'c'"):
        fuse("m.safetensors:c")


def test_zeros_alone_are_scores_in_float_and_marks_in_whole_numbers():
    _, report = fuse(np.zeros((T, P), np.float32))
    assert (report.attention_mask["style"], report.attention_mask["allowed"]) == ("additive", T * P)
    with pytest.raises(
        ShapeError, match=r"text token 0 \(and 3 more\) may attend to no image token"
    ):
        fuse(np.zeros((T, P), np.int64))


def test_an_attention_mask_beside_the_text_is_refused_and_the_advice_works():
    mask = allowed(T, P)
    expected, _ = fuse(mask)
    save_file({"text": np.load("text.npy"), "attention_mask": mask}, "both.safetensors")
    pair = "image.npy", "both.safetensors"
    with pytest.raises(ShapeError) as error:
        fuse(None, pair)
    assert "is given with --attention-mask (fusecli fuse), and --text-mask none" in str(error.value)
    found, _ = fuse("both.safetensors:attention_mask", pair, text_mask="none")
    assert np.array_equal(found, expected)


def test_a_feature_map_takes_a_mask_of_rows_and_columns():
    np.save("map.npy", np.random.default_rng(0).standard_normal((DI, 2, 3), np.float32))
    mask = allowed(T, P)
    flat, _ = fuse(mask, ("map.npy", "text.npy"), image_axes="DHW")
    found, _ = fuse(mask.reshape(T, 2, 3), ("map.npy", "text.npy"), image_axes="DHW")
    assert np.array_equal(found, flat)


def test_the_command_line_says_what_it_did(cli):
    np.save("am.npy", allowed(T, P))
    pair = ("fuse", "image.npy", "text.npy", "--weights", "attention.safetensors")
    done = cli(*pair, "--attention-mask", "am.npy", "--json")
    assert done.code == 0, done.err
    described = json.loads(done.out)["attention_mask"]
    assert described["style"] == "keep"
    assert len(described["sha256"]) == 64
    assert done.err == (
        "note: am.npy: 1 is taken for a text token that may attend to an image token; for a mask "
        "that is 1 where it may not (nn.MultiheadAttention's attn_mask) say --mask-style padding\n"
    )
    done = cli(*pair, "--attention-mask", "am.npy", "--mask-style", "keep", "-f", "--report")
    assert done.code == 0
    assert "attention mask" in done.err
    assert f"{int(allowed(T, P).sum())} of {T * P} allowed" in done.err
    for method in ("concat", "sum", "bilinear"):
        done = cli(*pair[:3], "--method", method, "--dim", "8", "--attention-mask", "am.npy", "-f")
        assert (done.code, done.err) == (
            2,
            "error: --attention-mask needs a method with attention from text tokens to image "
            f"tokens (attention or transformer); {method} has none\n",
        )
    # The output may not be the mask.
    done = cli(*pair, "--attention-mask", "am.npy", "-o", "am.npy", "-f")
    assert done.code != 0
    assert "am.npy" in done.err


def test_a_large_attention_mask_is_held_in_one_bit_a_mark():
    n, t, p = 200, 33, 65
    shapes = match_pair(
        read_axes("image", (n, p, 8), None, "i"), read_axes("text", (n, t, 8), None, "t"), "i", "t"
    )
    mask = np.random.default_rng(0).random((n, t, p)) < 0.5
    np.save("am.npy", mask)
    with open_features("am.npy") as file:
        read = read_attention_mask(file, None, shapes, None)
    assert read.packed.nbytes == n * t * 9
    assert np.array_equal(read.rows(0, n), mask)
    assert np.array_equal(read.rows(17, 40), mask[17:40])
    assert read.allowed == mask.sum()


def test_every_slice_of_a_stack_is_looked_at(monkeypatch):
    from fusecli.features import attention_mask

    monkeypatch.setattr(attention_mask, "_SLICE", 2 * T * P)
    pair = "images.npy", "texts.npy"
    mask = np.where(allowed(N, T, P), 0, -1e9).astype(np.float32)
    expected, _ = fuse(mask, pair)
    assert np.array_equal(fuse(allowed(N, T, P), pair)[0], expected)
    mask[2, 3, 5] = 0.25
    with pytest.raises(FuseError, match=r"holds 0.25 at \[2, 3, 5\]"):
        fuse(mask, pair)
    last = allowed(N, T, P)
    last[2, 1] = False
    with pytest.raises(ShapeError, match="sample 2, text token 1 may attend to no image token"):
        fuse(last, pair)


def test_a_module_of_one_head_and_one_image_token():
    module = ImageTextFusion(D, 1, image_dim=DI, text_dim=DT)
    save_module(module, "one.safetensors")
    np.save("global.npy", np.ones((1, DI), np.float32))
    mask = np.ones((T, 1), bool)
    plain, _ = fuse(mask, ("global.npy", "text.npy"), weights="one")
    assert np.ptp(plain, axis=0).max() == 0
    mask[2] = False
    found, _ = fuse(mask, ("global.npy", "text.npy"), weights="one", allow_empty_image=True)
    assert np.array_equal(found[[0, 1, 3]], plain[[0, 1, 3]])
    bias = module.attention.out_proj.bias.detach().numpy()
    np.testing.assert_allclose(found[2], bias, atol=1e-7)


@pytest.mark.parametrize("weights", ["attention", "transformer"])
@pytest.mark.parametrize("direction", ["text", "image"])
def test_one_text_for_many_images(weights, direction):
    mask = allowed(N, T, P, seed=5)
    np.save("repeated.npy", np.repeat(np.load("text.npy")[None], N, axis=0))
    options = {"weights": weights, "direction": direction}
    expected, _ = fuse(mask, ("images.npy", "repeated.npy"), **options)
    found, _ = fuse(mask, ("images.npy", "text.npy"), **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    one, _ = fuse(mask[0], ("images.npy", "text.npy"), **options)
    np.testing.assert_allclose(one[0], expected[0], atol=1e-6)


def test_the_mask_that_was_read_is_hashed_and_one_that_is_changed_meanwhile_is_an_error(folder):
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.standard_normal((2, 4, 8), np.float32))
    np.save("text.npy", rng.standard_normal((2, 3, 8), np.float32))
    np.save("am.npy", np.ones((3, 4), bool))
    first = hashlib.sha256(Path("am.npy").read_bytes()).hexdigest()

    def replace_it(done, total):
        np.save("new.npy", np.zeros((3, 4), bool))
        os.replace("new.npy", "am.npy")

    options = FuseOptions(
        "image.npy", "text.npy", "out.npy", attention_mask="am.npy", provenance=True
    )
    report = fuse_files(options, progress=replace_it)
    assert report.attention_mask.sha256 == first

    np.save("am.npy", np.ones((3, 4), bool))

    def change_it(done, total):
        data = bytearray(Path("am.npy").read_bytes())
        data[-1:] = b"\0"
        with open("am.npy", "r+b") as file:
            file.write(data)
        os.utime("am.npy", ns=(0, time.time_ns() + 10**9))  # clocks of file systems are coarse

    with pytest.raises(FeatureFileError, match=r"am.npy: changed while it was read"):
        fuse_files(dataclasses.replace(options, force=True), progress=change_it)
