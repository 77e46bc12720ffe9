"""Bad masks and bad weights."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from fusecli.fusion.initial_weights import initial_weights
from tests.features.hostile.cases import CASES, CONFIG, IMAGE, TEXT, as_image, hostile


def masked(mask: np.ndarray, side: str) -> list[str]:
    np.save("hostile.npy", mask)
    return ["image.npy", "text.npy", f"--{side}-mask", "hostile.npy"]


for _name, _mask, _side, _says in (
    ("of_the_wrong_length", np.ones(2, np.int64), "image", r"shape \[2\], expected .*\[3\]"),
    ("that_is_the_text", TEXT, "text", r"shape \[4, 8\], expected .*\[4\]"),
    ("with_a_2", np.array([1, 2, 1]), "image", "found 2"),
    ("of_minus_infinity", np.array([1, -np.inf, 0]), "image", "found -inf"),
    ("of_nan", np.array([1, np.nan, 1]), "image", "found nan"),
    ("of_halves", np.array([1, 0.5, 1]), "image", r"found 0\.5"),
    ("of_words", np.array(["yes", "no", "yes"]), "image", "strings"),
    ("of_no_text", np.zeros(4, np.int64), "text", "masks every text token"),
):
    CASES.append(pytest.param(partial(masked, _mask, _side), _says, id=f"mask_{_name}"))


@hostile("every image token masked")
def an_image_all_masked() -> list[str]:
    np.savez("hostile.npz", image=IMAGE, image_mask=np.zeros(3, bool))
    return as_image("hostile.npz")


@hostile("sample 1 has every image token masked")
def one_image_of_a_stack_all_masked() -> list[str]:
    np.savez("hostile.npz", image=np.stack([IMAGE] * 2), image_mask=[[1, 1, 0], [0, 0, 0]])
    np.save("texts.npy", np.stack([TEXT] * 2))
    return ["hostile.npz", "texts.npy"]


@hostile("none of its tensors is called a mask")
def a_mask_file_without_a_mask() -> list[str]:
    np.savez("hostile.npz", a=np.ones(3), b=np.ones(3))
    return ["image.npy", "text.npy", "--image-mask", "hostile.npz"]


@hostile("found 7")
def a_bad_mask_beside_the_features() -> list[str]:
    np.savez("hostile.npz", image=IMAGE, attention_mask=[1, 7, 1])
    return as_image("hostile.npz")


def weighted(
    change: dict[str, np.ndarray | None] | None = None, metadata: str | None = None
) -> list[str]:
    """Sound weights but for these parameters (None takes one away) and this metadata."""
    arrays = initial_weights(CONFIG, 0)
    for name, array in (change or {}).items():
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
    said = json.dumps(CONFIG.to_dict()) if metadata is None else metadata
    save_file(arrays, "hostile.safetensors", {"fusecli": said})
    return ["image.npy", "text.npy", "--weights", "hostile.safetensors"]


_key_bias = np.zeros(24, np.float32)
_key_bias[8:16] = np.nan  # softmax does not see it: a plan may never read it


for _name, _parameter, _array, _says in (
    ("nan", "attention.in_proj_weight", np.full((24, 8), np.nan, np.float32), "holds NaN"),
    ("infinity", "attention.out_proj.bias", np.full(8, np.inf, np.float32), "or infinity"),
    ("nan_in_the_key_bias", "attention.in_proj_bias", _key_bias, "holds NaN"),
    ("one_missing", "attention.out_proj.weight", None, "no attention.out_proj.weight"),
    ("two_fusions", "other.text_proj.weight", TEXT, "one fusion, found several"),
    ("one_too_many", "attention.bias_k", TEXT, "attention.bias_k"),
    ("another_shape", "attention.in_proj_weight", TEXT, r"shape \[4, 8\], expected \[24, 8\]"),
    ("another_rank", "text_proj.bias", TEXT[:1], r"shape \[1, 8\], expected \[8\]"),
):
    _make = partial(weighted, {_parameter: _array})
    CASES.append(pytest.param(_make, _says, id=f"weights_with_{_name}"))


@hostile("no text_proj.weight")
def weights_of_something_else() -> list[str]:
    save_file({"fc.weight": IMAGE}, "hostile.safetensors")
    return ["image.npy", "text.npy", "--weights", "hostile.safetensors"]


@hostile("text_proj.weight .* must be matrices")
def weights_of_rank_0_that_say_nothing() -> list[str]:
    arrays = initial_weights(CONFIG, 0) | {"text_proj.weight": np.array(1.0, np.float32)}
    save_file(arrays, "hostile.safetensors")
    return ["image.npy", "text.npy", "--weights", "hostile.safetensors"]


@hostile("holds .*, which fusecli does not read|complex")
def weights_of_complex_numbers() -> list[str]:
    arrays = initial_weights(CONFIG, 0)
    np.savez("hostile.npz", **arrays | {"text_proj.bias": np.zeros(8, complex)})
    return ["image.npy", "text.npy", "--weights", "hostile.npz", "--heads", "2"]


@hostile(r"image\.wide\.npy \[2, 9\] is 9 wide and text.*, but hostile\.safetensors takes 8 and 8")
def weights_for_another_width_of_image() -> list[str]:
    np.save("image.wide.npy", np.ones((2, 9), np.float32))
    return ["image.wide.npy", *weighted()[1:]]


@hostile(r"text\.wide\.npy \[2, 9\] is 9 wide, but hostile\.safetensors takes 8 and 8")
def weights_for_another_width_of_text() -> list[str]:
    np.save("text.wide.npy", np.ones((2, 9), np.float32))
    return ["image.npy", "text.wide.npy", *weighted()[2:]]


for _name, _metadata, _says in (
    ("that_is_not_json", "{embed_dim: 8}", "metadata is not JSON"),
    ("nested_deeply", '{"embed_dim": ' + "[" * 10**5, "metadata is not"),
    ("that_is_a_list", "[8, 2]", "metadata is not a JSON object"),
    ("without_heads", '{"embed_dim": 8}', "metadata has no num_heads"),
    ("of_a_number_too_long", '{"embed_dim": ' + "9" * 9000 + "}", "metadata is"),
):
    CASES.append(pytest.param(partial(weighted, None, _metadata), _says, id=f"metadata_{_name}"))


for _name, _value, _says in (
    ("embed_dim", 10**18, "metadata is impossible.*1,048,576"),
    ("embed_dim", -8, "metadata is impossible"),
    ("embed_dim", 8.0, "embed_dim = 8.0, expected int"),
    ("embed_dim", float("nan"), "metadata is not JSON|embed_dim = nan"),
    ("embed_dim", "x" * 10**6, "embed_dim = .*, expected int"),
    ("embed_dim", None, "embed_dim = None, expected int"),
    ("num_heads", 0, "metadata is impossible"),
    ("num_heads", 3, "metadata is impossible.*does not divide"),
    ("num_heads", True, "num_heads = True, expected int"),
    ("image_dim", [8], r"image_dim = \[8\], expected int"),
    ("residual", 1, "residual = 1, expected bool"),
    ("rotary", True, "'rotary', which this version does not know"),
    ("x" * 10**6, True, "which this version does not know"),
    ("method", "magic", "unknown fusion method 'magic'"),
    ("initial_seed", "zero", "initial_seed = 'zero'"),
    ("initial_seed", True, "initial_seed = True"),
):
    _id = f"metadata_of_{_name[:20]}_{_value!r:.20}"
    _text = json.dumps(CONFIG.to_dict() | {_name: _value})
    CASES.append(pytest.param(partial(weighted, None, _text), _says, id=_id))
