"""Files that hold all layers of an encoder, or a list or dict of samples; advice is followed."""

import os
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

MODULE = ("--dim", "16", "--heads", "4")
WORDS = np.array([[1, 1, 1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def fused(cli: Callable, image: str, text: str, *options: str) -> np.ndarray:
    done = cli("fuse", image, text, "-o", "out.npy", "-f", *MODULE, *options)
    assert done.code == 0, done.err
    return np.load("out.npy")


def follow(message: str) -> None:
    """Run the program that a message advises."""
    program = re.search(r'python -c "(.*?)"', message)
    assert program is not None, message
    exec(program[1], {})


def write(name: str, **tensors: np.ndarray) -> None:
    if name.endswith(".npz"):
        np.savez(name, **tensors)
    elif name.endswith(".safetensors"):
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, name)
    else:
        torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, name)


@pytest.mark.parametrize("name", ["text.npz", "text.safetensors", "text.pt"])
@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (key, shape)
        for key in ("hidden_states", "text_hidden_states", "encoder_hidden_states")
        for shape in ((13, 7, 32), (13, 1, 7, 32), (24, 7, 32))
        # Of three axes, diffusers' encoder_hidden_states are one layer.
        if key != "encoder_hidden_states" or len(shape) == 4
    ],
)
def test_all_layers_are_no_samples(
    name: str, shape: tuple[int, ...], key: str, cli: Callable
) -> None:
    layers = noise(*shape)
    np.save("image.npy", noise(shape[0], 6, 48, seed=1))  # as many samples, by chance
    write(name, **{key: layers, "attention_mask": WORDS})
    done = cli("fuse", "image.npy", name, "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert f"{name}[{key}]: {list(shape)} looks like the hidden states of {shape[0]} layers" in (
        done.err
    )
    assert not Path("out.npy").exists()
    follow(done.err)
    np.save("image.npy", noise(6, 48, seed=1))
    np.save("last.npy", layers[-1])
    np.save("words.npy", WORDS[0])
    right = fused(cli, "image.npy", "last.npy", "--text-mask", "words.npy")
    made = fused(cli, "image.npy", "NEW" + os.path.splitext(name)[1])
    np.testing.assert_array_equal(made, right)


def test_a_file_may_be_called_hidden_states(cli: Callable) -> None:
    layers = noise(25, 7, 32)
    np.save("image.npy", noise(6, 48, seed=1))
    np.save("hidden_states.npy", layers)
    done = cli("fuse", "image.npy", "hidden_states.npy", "-o", "out.npy", *MODULE)
    assert done.code == 1
    follow(done.err)
    np.testing.assert_array_equal(np.load("NEW.npy"), layers[-1])
    assert fused(cli, "image.npy", "NEW.npy").shape == (7, 16)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("count", [7, 13, 25, 33, 37, 41, 49])
def test_samples_that_are_as_many_as_layers_are_taken_when_told(
    count: int, side: str, cli: Callable
) -> None:
    files = {"image": "image.npy", "text": "text.npy"}
    arrays = {"image": noise(count, 6, 48), "text": noise(count, 8, 32, seed=1)}
    other = "text" if side == "image" else "image"
    arrays[other] = arrays[other][:1]
    for name, array in arrays.items():
        np.save(files[name], array)
    right = fused(cli, *files.values())
    files[side] = "states.npz"
    np.savez("states.npz", hidden_states=arrays[side])
    done = cli("fuse", *files.values(), "-o", "out2.npy", *MODULE)
    axes = "NPD" if side == "image" else "NTD"
    told = f"{count} layers: if they are {count} samples say --{side}-axes {axes}; if they are"
    assert (done.code, told in done.err) == (1, True)
    np.testing.assert_array_equal(fused(cli, *files.values(), f"--{side}-axes", axes), right)
    # Fewer than any encoder has layers are samples.
    np.savez("states.npz", hidden_states=arrays[side][:5])
    np.testing.assert_allclose(fused(cli, *files.values()), right[:5], atol=1e-5)


@pytest.mark.parametrize("count", [12, 13, 16, 24, 25, 32, 40, 48])
@pytest.mark.parametrize("name", ["text.npz", "text.pt"])
def test_hidden_states_beside_a_mask_of_each_sample_are_samples(
    name: str, count: int, cli: Callable
) -> None:
    text = noise(count, 9, 32)
    words = np.ones((count, 9), int)
    words[1, 5:] = 0
    for key, marks in (
        ("attention_mask", words),
        ("attention_mask", np.where(words, 0, -1e4).astype("f4")[:, None, None]),
        ("lengths", words.sum(1)),
    ):
        write(name, hidden_states=text, **{key: marks})
        for image in (noise(count, 6, 48, seed=1), noise(1, 6, 48, seed=2)):
            np.save("image.npy", image)
            np.save("text.npy", text)
            np.save("words.npy", words)
            right = fused(cli, "image.npy", "text.npy", "--text-mask", "words.npy")
            done = cli("fuse", "image.npy", name, "-f", "-o", "out.npy", *MODULE)
            assert (done.code, "layers" in done.err) == (0, False), done.err
            np.testing.assert_array_equal(np.load("out.npy"), right)


def test_a_mask_of_equal_rows_does_not_tell_samples_from_layers(cli: Callable) -> None:
    np.save("image.npy", noise(6, 48, seed=1))
    np.savez(
        "text.npz", hidden_states=noise(13, 9, 32), attention_mask=np.tile([1] * 8 + [0], (13, 1))
    )
    done = cli("fuse", "image.npy", "text.npz", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert "if they are 13 samples say --text-axes NTD; if they are layers" in done.err


@pytest.mark.parametrize("count", [12, 13, 16, 24, 25, 32, 40, 48])
@pytest.mark.parametrize(
    ("image_key", "text_key", "told"),
    [
        ("image_hidden_states", "text", "image"),
        ("image", "text_hidden_states", "text"),
        ("image", "encoder_hidden_states", None),
        ("image_hidden_states", "encoder_hidden_states", "image"),
    ],
)
def test_as_many_samples_on_the_other_side_are_samples(
    image_key: str, text_key: str, told: str | None, count: int, cli: Callable
) -> None:
    image, text = noise(count, 6, 48), noise(count, 9, 32, seed=1)
    np.save("image.npy", image)
    np.save("text.npy", text)
    right = fused(cli, "image.npy", "text.npy")
    np.savez("image.npz", **{image_key: image})
    np.savez("text.npz", **{text_key: text})
    done = cli("fuse", "image.npz", "text.npz", "-f", "-o", "out.npy", *MODULE)
    assert done.code == 0, done.err
    np.testing.assert_array_equal(np.load("out.npy"), right)
    said = re.findall(r"note: (\w+)\.npz\S* .* is read as (\d+) samples; if", done.err)
    # So many layers have encoders with their embeddings.
    assert said == ([(told, str(count))] if told and count in (13, 25) else [])


def test_encoder_hidden_states_of_many_samples_share_an_image(cli: Callable) -> None:
    np.save("image.npy", noise(1, 6, 48))
    np.save("text.npy", noise(13, 9, 32, seed=1))
    right = fused(cli, "image.npy", "text.npy")
    write("text.safetensors", encoder_hidden_states=np.load("text.npy"))
    np.testing.assert_array_equal(fused(cli, "image.npy", "text.safetensors"), right)


@pytest.mark.parametrize("nest", ["", "text/", "out.text_"])
@pytest.mark.parametrize("shape", [(13, 9, 32), (13, 1, 9, 32), (24, 9, 32)])
def test_the_last_layer_beside_all_layers_is_named(
    shape: tuple[int, ...], nest: str, cli: Callable
) -> None:
    last = noise(9, 32, seed=2)  # behind a layer norm, and so not the last of the others
    np.save("image.npy", noise(1, 6, 48))
    np.save("last.npy", last)
    key = f"{nest}hidden_states"
    np.savez("text.npz", **{key: noise(*shape, seed=1), f"{nest}last_hidden_state": last})
    done = cli("fuse", "image.npy", "text.npz", "--text-key", key, "-o", "out.npy", *MODULE)
    advised = re.search(r"--text-key (\S+), which is the last", done.err)
    assert advised is not None, done.err
    made = fused(cli, "image.npy", "text.npz", "--text-key", advised[1])
    np.testing.assert_array_equal(made, fused(cli, "image.npy", "last.npy"))


@pytest.mark.parametrize("side", ["image", "text"])
def test_of_several_for_each_sample_none_is_thrown_away(side: str, cli: Callable) -> None:
    several = noise(3, 5, 9, 32)
    files = {"image": "image.npy", "text": "text.npy"}
    for number, name in enumerate(files.values()):
        np.save(name, noise(15, 6, 48, seed=number))
    files[side] = "several.npz"
    np.savez("several.npz", hidden_states=several)
    done = cli("fuse", *files.values(), "-o", "out.npy", *MODULE)
    assert done.code == 1
    # What is no layers stands before the layers.
    samples, layers = done.err.split("; for layers, of which the features are one, save the last")
    assert f"for 5 {side}s of each of 3 samples give them as [15, 9, 32]" in samples
    assert "with [:, -1] instead of [-1] if the second axis, of 5, is the layers" in layers
    np.savez("several.npz", hidden_states=several.reshape(15, 9, 32))
    stack = fused(cli, *files.values())
    assert stack.shape[0] == 15


def test_what_may_be_layers_and_is_taken_for_samples_is_said(cli: Callable) -> None:
    np.save("image.npy", noise(1, 6, 48))
    np.save("my_hidden_states.npy", noise(32, 9, 32, seed=1))
    done = cli("fuse", "image.npy", "my_hidden_states.npy", "-o", "out.npy", *MODULE)
    assert (done.code, np.load("out.npy").shape) == (0, (32, 9, 16))
    assert "is read as 32 samples; if these are the hidden states of 32 layers, save" in done.err
    follow(done.err)
    np.testing.assert_array_equal(np.load("NEW.npy"), np.load("my_hidden_states.npy")[-1])


def test_all_layers_of_two_encoders_are_no_samples(cli: Callable) -> None:
    np.savez("image.npz", hidden_states=noise(13, 6, 48))
    np.savez("text.npz", hidden_states=noise(13, 9, 32, seed=1))
    done = cli("fuse", "image.npz", "text.npz", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert "image.npz[hidden_states]: [13, 6, 48] looks like the hidden states of 13 layers" in (
        done.err
    )


@pytest.mark.parametrize("ending", ["pt", "pth", "ckpt"])
@pytest.mark.parametrize("shape", [(13, 7, 32), (3, 13, 7, 32)])
def test_one_tensor_of_all_layers_in_a_file_of_torch(
    shape: tuple[int, ...], ending: str, cli: Callable
) -> None:
    layers = noise(*shape)
    last = layers[-1] if len(shape) == 3 else layers[:, -1]
    np.save("image.npy", noise(1, 6, 48, seed=1))
    torch.save(torch.from_numpy(layers), f"hidden_states.{ending}")
    done = cli("fuse", "image.npy", f"hidden_states.{ending}", "-o", "out.npy", *MODULE)
    assert done.code == 1
    follow(done.err)
    np.save("last.npy", last)
    right = fused(cli, "image.npy", "last.npy")
    np.testing.assert_array_equal(fused(cli, "image.npy", "NEW.pt"), right)


def inside_of_a_list(tensors: dict[str, object]) -> object:
    return {"outputs": [tensors, {"name": "bert"}]}


def by_number(tensors: dict[str, object]) -> object:
    return {0: tensors, 1: "bert"}


def by_number_inside_of_a_tuple(tensors: dict[str, object]) -> object:
    return ({2: {"out": tensors}},)


def in_a_dict_that_the_reader_leaves_out(tensors: dict[str, object]) -> object:
    return {"model": {"text.0": tensors}, "epoch": 3}


def beside_options(tensors: dict[str, object]) -> object:
    return tensors | {"args": Namespace(model="bert"), "path": Path("dog.txt")}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "nest",
    [
        inside_of_a_list,
        by_number,
        by_number_inside_of_a_tuple,
        in_a_dict_that_the_reader_leaves_out,
        beside_options,
    ],
)
def test_the_last_layer_is_saved_where_all_were(nest: Callable, old: bool, cli: Callable) -> None:
    layers = noise(13, 7, 32)
    tensors = {
        "hidden_states": torch.from_numpy(layers),
        "attention_mask": torch.from_numpy(WORDS),
    }
    torch.save(nest(tensors), "text.pt", _use_new_zipfile_serialization=not old)
    np.save("image.npy", noise(6, 48, seed=1))
    done = cli("fuse", "image.npy", "text.pt", "-o", "out.npy", *MODULE)
    assert done.code == 1
    follow(done.err)
    np.save("last.npy", layers[-1])
    np.save("words.npy", WORDS[0])
    right = fused(cli, "image.npy", "last.npy", "--text-mask", "words.npy")
    np.testing.assert_array_equal(fused(cli, "image.npy", "NEW.pt"), right)


def test_the_last_layer_beside_all_layers_is_taken(cli: Callable) -> None:
    last, image = noise(1, 7, 32), noise(6, 48, seed=1)
    np.save("image.npy", image)
    np.save("last.npy", last[0])
    np.savez("text.npz", last_hidden_state=last, hidden_states=noise(13, 1, 7, 32, seed=2))
    made = fused(cli, "image.npy", "text.npz")
    np.testing.assert_array_equal(made.reshape(7, 16), fused(cli, "image.npy", "last.npy"))


def test_of_a_tuple_of_layers_the_last_is_named(cli: Callable) -> None:
    layers = [torch.from_numpy(noise(1, 7, 32, seed=layer)) for layer in range(13)]
    np.save("image.npy", noise(6, 48, seed=1))
    torch.save({"hidden_states": tuple(layers)}, "text.pt")
    done = cli("fuse", "image.npy", "text.pt", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert (
        "say --text-key hidden_states.12 (of the hidden states of 13 layers the last)" in done.err
    )
    made = fused(cli, "image.npy", "text.pt", "--text-key", "hidden_states.12")
    np.save("last.npy", layers[12].numpy())
    np.testing.assert_array_equal(made, fused(cli, "image.npy", "last.npy"))


@pytest.mark.parametrize(
    "kind",
    [
        *("list", "dict of a list", "dict", "nested dict", "model", "dict with a text"),
        *("list with a text", "one memory", "dict with options"),
    ],
)
def test_samples_in_one_file_of_torch_become_one_for_a_batch(kind: str, cli: Callable) -> None:
    is_named = kind in ("dict", "model", "dict with a text", "dict with options")
    samples = {f"{k}.jpg" if is_named else str(k): noise(6, 48, seed=k) for k in range(3)}
    if kind == "one memory":
        samples = dict.fromkeys(samples, samples["0"])
    tensors = {key: torch.from_numpy(value) for key, value in samples.items()}
    listed = list(tensors.values())
    torch.save(
        {
            "list": listed,
            "dict of a list": {"image_features": listed, "names": ["a", "b", "c"]},
            "dict": tensors,
            "model": {"model": tensors},
            "dict with a text": tensors | {"model": "clip", "labels": torch.arange(3)},
            "dict with options": tensors | {"args": Namespace(model="clip")},
            "list with a text": [*listed, "clip"],
            "one memory": [listed[0]] * 3,
            "nested dict": {"features": {int(key[0]): value for key, value in tensors.items()}},
        }[kind],
        "image.pt",
    )
    np.save("text.npy", noise(7, 32))
    done = cli("fuse", "image.pt", "text.npy", "-o", "out.npy", *MODULE)
    assert done.code == 1
    one = re.search(r"--image-key (\S+) for one of them", done.err)
    assert one is not None
    follow(done.err)
    made = load_file("NEW.safetensors")
    assert made.keys() - {"labels"} == samples.keys()
    for key, value in samples.items():
        np.testing.assert_array_equal(made[key], value)
    save_file({key: noise(7, 32) for key in samples}, "text.safetensors")
    assert cli("batch", "NEW.safetensors", "text.safetensors", "-o", "many", *MODULE).code == 0
    first = fused(cli, "image.pt", "text.npy", "--image-key", one[1])
    np.testing.assert_allclose(np.load(f"many/{next(iter(samples))}.npy"), first, atol=1e-5)


def test_lists_of_numbers_are_no_tensors(cli: Callable) -> None:
    torch.save({"image_features": noise(6, 48).tolist()}, "image.pt")
    np.save("text.npy", noise(7, 32))
    done = cli("fuse", "image.pt", "text.npy", "-o", "out.npy")
    assert done.code == 1
    assert "its lists of numbers are no tensors: save each as torch.tensor(LIST)" in done.err


@pytest.mark.parametrize("key", [None, "samples"])
def test_an_array_of_dicts_becomes_a_file_a_sample(key: str | None, cli: Callable) -> None:
    samples = [
        {"image_features": noise(6, 48, seed=k), "path": f"{k}.jpg", "id": k} for k in range(2)
    ]
    array = np.array(samples, dtype=object)
    if key is None:
        np.save("image.npy", array, allow_pickle=True)
    else:
        np.savez("image.npz", **{key: array})
    name = "image.npy" if key is None else "image.npz"
    np.save("text.npy", noise(7, 32))
    done = cli("fuse", name, "text.npy", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert "it is a dict for each sample (makes a file for each): python -c" in done.err
    follow(done.err)
    assert sorted(os.listdir("NEW")) == ["0.npz", "1.npz"]
    for number, sample in enumerate(samples):
        np.save("one.npy", sample["image_features"])
        right = fused(cli, "one.npy", "text.npy")
        np.testing.assert_array_equal(fused(cli, f"NEW/{number}.npz", "text.npy"), right)


@pytest.mark.parametrize(
    ("image_key", "text_key"),
    [
        ("image/last_hidden_state", "text/last_hidden_state"),
        ("clip/vision/tokens", "bert/text/tokens"),
        ("image/x", "text/x"),
        ("vision_model.hidden", "text_model.hidden"),
    ],
)
@pytest.mark.parametrize("mask", [None, "mask", "attention_mask"])
def test_the_prefix_of_a_key_names_its_side(
    image_key: str, text_key: str, mask: str | None, cli: Callable
) -> None:
    image, text = noise(3, 6, 48), noise(3, 7, 32, seed=1)
    patches, words = np.ones((3, 6), int), np.ones((3, 7), int)
    patches[1, 4:] = words[2, 5:] = 0
    tensors = {image_key: image, text_key: text}
    options: list[str] = []
    if mask is not None:
        for key, marks, side in ((image_key, patches, "image"), (text_key, words, "text")):
            tensors[re.sub(r"\w+$", mask, key)] = marks
            np.save(f"{side}_marks.npy", marks)
            options += [f"--{side}-mask", f"{side}_marks.npy"]
    np.savez("both.npz", **tensors)
    np.save("image.npy", image)
    np.save("text.npy", text)
    right = fused(cli, "image.npy", "text.npy", *options)
    np.testing.assert_array_equal(fused(cli, "both.npz", "both.npz"), right)


def test_the_other_side_s_pooled_vector_is_not_taken(cli: Callable) -> None:
    np.savez(
        "i.npz", **{"text/last_hidden_state": noise(3, 7, 32), "text/pooler_output": noise(3, 32)}
    )
    np.save("text.npy", noise(3, 7, 32))
    done = cli("fuse", "i.npz", "text.npy", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert "none of its tensors is known as image features" in done.err


def test_layers_in_the_second_axis_are_cut_there(cli: Callable) -> None:
    layers, image = noise(3, 13, 7, 32), noise(3, 6, 48, seed=1)
    np.save("image.npy", image)
    np.savez("text.npz", hidden_states=layers)
    done = cli("fuse", "image.npy", "text.npz", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert "looks like the hidden states of 13 layers" in done.err
    follow(done.err)
    np.save("last.npy", layers[:, -1])
    right = fused(cli, "image.npy", "last.npy")
    np.testing.assert_array_equal(fused(cli, "image.npy", "NEW.npz"), right)


@pytest.mark.parametrize("shape", [(13, 13, 7, 32), (3, 5, 7, 32)])
def test_where_two_axes_may_be_the_layers_both_are_named(
    shape: tuple[int, ...], cli: Callable
) -> None:
    np.save("image.npy", noise(3, 6, 48, seed=1))
    np.savez("text.npz", hidden_states=noise(*shape))
    done = cli("fuse", "image.npy", "text.npz", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert f"with [:, -1] instead of [-1] if the second axis, of {shape[1]}, is the layers" in (
        done.err
    )


def test_several_captions_of_each_image_become_a_stack(cli: Callable) -> None:
    images, captions = noise(3, 6, 48), noise(3, 5, 7, 32, seed=1)
    np.save("image.npy", images)
    np.save("text.npy", captions)
    done = cli("fuse", "image.npy", "text.npy", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert "for 5 texts of each of 3 images give them as [15, 7, 32] (text.reshape)" in done.err
    np.save("stack.npy", captions.reshape(15, 7, 32))
    np.save("images.npy", np.repeat(images, 5, axis=0))
    stack = fused(cli, "images.npy", "stack.npy")
    np.save("one.npy", images[1])
    np.save("caption.npy", captions[1, 2])
    np.testing.assert_allclose(stack[7], fused(cli, "one.npy", "caption.npy"), atol=1e-5)


def test_one_tensor_as_both_sides_is_said(cli: Callable) -> None:
    np.save("text.npy", noise(7, 32))
    done = cli("fuse", "text.npy", "text.npy", "-o", "out.npy", *MODULE)
    assert done.code == 0
    assert "note: text.npy is given as the image and as the text: tokens attend to" in done.err
    np.savez("both.npz", image=noise(7, 32), text=noise(7, 32, seed=1))
    done = cli("fuse", "both.npz", "both.npz", "-f", "-o", "out.npy", *MODULE)
    assert "as the image and as the text" not in done.err


def test_numbers_alone_under_another_name_say_how_to_read_them(cli: Callable) -> None:
    image = noise(6, 48)
    image.tofile("image.npy")
    np.save("text.npy", noise(7, 32))
    done = cli("fuse", "image.npy", "text.npy", "-o", "out.npy", *MODULE)
    assert done.code == 1
    assert "use numpy.fromfile(FILE, DTYPE).reshape(ROWS, WIDTH) and numpy.save" in done.err
    np.save("NEW.npy", np.fromfile("image.npy", "f4").reshape(6, 48))
    np.testing.assert_array_equal(np.load("NEW.npy"), image)
