"""Views of attention, and the axes and weights that they are made from."""

import numpy as np

from fusecli.features.axes import read_axes
from fusecli.maps.selection import Drawing, Grid, choose_grid
from fusecli.maps.view import view_of

WORDS = [
    "the", "Donaudampfschifffahrtsgesellschaft", "$x_1$", "##ing", "</w>", "猫が好き", "\u202e\x07",
    "WWWWWWWWWWWWWWWWWWWWWWWW", ".", "", "naïve", "😀", "_hidden", "\\frac{1}{2}", "iiiiiiiii" * 9,
    "مرحبا", "नमस्ते", "e\u0301", "\ud800", "a b",
]  # fmt: skip


def image_axes(shape, named=None):
    return read_axes("image", shape, named, "image.npy")


def peaked(H, T, P, seed=0):
    scores = np.random.default_rng(seed).standard_normal((H, T, P)) * 3
    weights = np.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


def make(T, P, grid=None, sharp=True, real=None, photo=None, words=WORDS, leave_out=0):
    weights = peaked(2, T, P) if sharp else np.full((2, T, P), 1 / P)
    real = np.ones(P, bool) if real is None else real
    weights = np.where(real, weights, 0)
    labels = [words[index % len(words)] for index in range(T)]
    chosen = grid if isinstance(grid, Grid) else choose_grid(grid, image_axes((P, 3)))
    plan = Drawing(0, labels, np.arange(T - leave_out), real, chosen, photo)
    names = ("i" * 60 + ".npy", "text_features.safetensors")
    return view_of(weights.astype(np.float32), plan, names, 1, False, "untrained, seed 0")
