"""Small jobs of `fuse_files`, and what the plain module gives for them."""

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

from fusecli import FuseOptions, ImageTextFusion, fuse_files, save_module

ENGINES = ("numpy", "torch")
DI, DT, D, H = 10, 6, 12, 3


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def trained(path="w.safetensors", heads=H, dim=D, image_dim=DI, text_dim=DT, **switches):
    """A module with weights that are far from initial ones, biases too, and its file."""
    module = ImageTextFusion(dim, heads, image_dim=image_dim, text_dim=text_dim, **switches)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
            if parameter.dim() > 1:
                parameter.mul_(1.5 / parameter.shape[1] ** 0.5)
    save_module(module, path, force=True)
    return module.double().eval()


def expected(module, image, text, **masks):
    """What the plain module gives in float64, for one pair or a stack."""
    masks = {
        name: torch.from_numpy(mask) if isinstance(mask, np.ndarray) else mask
        for name, mask in masks.items()
    }
    with torch.inference_mode():
        fused = module(torch.from_numpy(image).double(), torch.from_numpy(text).double(), **masks)
    return fused.numpy()


def fuse(image, text, output="out.npy", **options):
    """Write the arrays, fuse the files; the result as it is on disk, and the report."""
    options = {"force": True, "weights": "w.safetensors"} | options
    for name, array in (("image.npy", image), ("text.npy", text)):
        if isinstance(array, np.ndarray):
            np.save(name, array)
    if options["weights"] is None:
        del options["weights"]
    image = "image.npy" if isinstance(image, np.ndarray) else image
    text = "text.npy" if isinstance(text, np.ndarray) else text
    report = fuse_files(FuseOptions(image, text, output, **options))
    return load(output), report


def load(path):
    if path.endswith(".npy"):
        return np.load(path, allow_pickle=False)
    if path.endswith(".npz"):
        return np.load(path, allow_pickle=False)["fused"]
    return safetensors.torch.load_file(path)["fused"].float().numpy()


def assert_close(found, wanted, share=1e-5):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= share * max(1.0, np.abs(wanted).max())


IMAGE_MASK = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]])


def stored(name, array, form):
    """Write one side's stack in a format and type; the file, and the numbers that it holds."""
    if form == "fortran":
        array = np.asfortranarray(array)
    elif form == "big-endian":
        array = array.astype(">f4")
    elif form in ("float16", "float64"):
        array = array.astype(form)
    file = f"{name}.npy"
    if form == "npz":
        file = f"{name}.npz"
        np.savez_compressed(file, **{name: array})
    elif form in ("safetensors", "bfloat16"):
        file = f"{name}.safetensors"
        tensor = torch.from_numpy(array)
        tensor = tensor.bfloat16() if form == "bfloat16" else tensor
        safetensors.torch.save_file({name: tensor}, file)
        array = tensor.float().numpy()
    elif form == "pt":
        file = f"{name}.pt"
        torch.save(torch.from_numpy(array), file)
    else:
        np.save(file, array)
    return file, array.astype(np.float32)
