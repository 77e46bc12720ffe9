"""Files that hold all layers of an encoder, or a list or dict of samples; advice is followed."""

import os
import re
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
@pytest.mark.parametrize("shape", [(13, 7, 32), (13, 1, 7, 32), (24, 7, 32)])
@pytest.mark.parametrize("key", ["hidden_states", "text_hidden_states", "encoder_hidden_states"])
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
def test_samples_that_are_as_many_as_layers_are_taken_when_told(side: str, cli: Callable) -> None:
    files = {"image": "image.npy", "text": "text.npy"}
    arrays = {"image": noise(13, 6, 48), "text": noise(13, 7, 32, seed=1)}
    for name, array in arrays.items():
        np.save(files[name], array)
    right = fused(cli, *files.values())
    files[side] = "states.npz"
    np.savez("states.npz", hidden_states=arrays[side])
    done = cli("fuse", *files.values(), "-o", "out2.npy", *MODULE)
    axes = "NPD" if side == "image" else "NTD"
    assert done.err.rstrip().endswith(f"if they are 13 samples say --{side}-axes {axes}")
    told = fused(cli, *files.values(), f"--{side}-axes", axes)
    np.testing.assert_array_equal(told, right)
    # Fewer than any encoder has layers, and the last layer alone, are what they were.
    np.savez("states.npz", hidden_states=arrays[side][:5])
    other = "text" if side == "image" else "image"
    np.save(files[other], arrays[other][:5])
    assert fused(cli, *files.values()).shape == (5, 7, 16)


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


@pytest.mark.parametrize("kind", ["list", "dict of a list", "dict", "nested dict"])
def test_samples_in_one_file_of_torch_become_one_for_a_batch(kind: str, cli: Callable) -> None:
    samples = {f"{k}.jpg" if kind == "dict" else str(k): noise(6, 48, seed=k) for k in range(3)}
    tensors = {key: torch.from_numpy(value) for key, value in samples.items()}
    listed = list(tensors.values())
    torch.save(
        {
            "list": listed,
            "dict of a list": {"image_features": listed, "names": ["a", "b", "c"]},
            "dict": tensors,
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
    assert made.keys() == samples.keys()
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
