"""Names that are no files or draw on the terminal, bad numbers, and bad shapes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.features.hostile.cases import (
    CASES,
    IMAGE,
    TEXT,
    as_image,
    as_text,
    header,
    hostile,
    hostile_bytes,
    npy,
    saved,
)
from tests.features.hostile.masks_and_weights import weighted


@hostile("is a directory")
def a_directory() -> list[str]:
    os.mkdir("hostile.npy")
    return as_image("hostile.npy")


@hostile("no such file")
def nothing() -> list[str]:
    return as_image("hostile.npy")


@hostile("no such file")
def no_text() -> list[str]:
    return as_text("hostile.npy")


@hostile("no such file")
def no_weights() -> list[str]:
    return ["image.npy", "text.npy", "--weights", "hostile.safetensors"]


@hostile("no such file")
def no_mask() -> list[str]:
    return ["image.npy", "text.npy", "--image-mask", "hostile.npy"]


@hostile("cannot be opened")
def a_link_to_itself() -> list[str]:
    os.symlink("hostile.npy", "hostile.npy")
    return as_image("hostile.npy")


@hostile("no such file")
def a_link_to_nothing() -> list[str]:
    os.symlink("gone.npy", "hostile.npy")
    return as_image("hostile.npy")


@hostile("cannot be opened")
def a_file_used_as_a_folder() -> list[str]:
    return as_image("text.npy/hostile.npy")


@hostile("cannot be opened")
def a_name_too_long() -> list[str]:
    return as_image("hostile." + "x" * 300 + ".npy")


@hostile("cannot be opened")
def a_name_with_a_nul() -> list[str]:
    return as_image("hostile.\0.npy")


def named(name: str | bytes) -> list[str]:
    """A damaged image of this name."""
    path = os.fsdecode(name)
    Path(path).write_bytes(b"?")
    return as_image(path)


@hostile(r"hostile\.\\n\\r\.npy: ")
def a_name_of_two_lines() -> list[str]:
    return named("hostile.\n\r.npy")


@hostile(r"hostile\.\\x1b\[2J\.npy: ")
def a_name_that_clears_the_screen() -> list[str]:
    return named("hostile.\x1b[2J.npy")


@hostile(r"\[/red\]hostile\.npy: ")
def a_name_that_is_markup() -> list[str]:
    os.mkdir("[")
    return named("[/red]hostile.npy")


@hostile(r"hostile\.\\udcff\.npy: ")
def a_name_that_is_not_utf_8() -> list[str]:
    return named(b"hostile.\xff.npy")


@hostile(r"hostile\.\\u202e\.npy: ")
def a_name_that_turns_the_line_round() -> list[str]:
    return named("hostile.\u202e.npy")


def spoiled(value: float, dtype: type = np.float32) -> np.ndarray:
    array = IMAGE.astype(dtype)
    array[1, 3] = value
    return array


for _name, _array, _says in (
    ("nan", spoiled(np.nan), "holds NaN at token 1, column 3"),
    ("infinity", spoiled(np.inf), "holds infinity at token 1, column 3"),
    ("half_infinity", spoiled(-np.inf, np.float16), "holds infinity at token 1, column 3"),
    ("no_tokens", IMAGE[:0], "no tokens"),
    ("no_samples", IMAGE[None][:0], "no samples"),
    ("no_width", IMAGE[:, :0], "width 0"),
    ("rank_0", np.float32(3), "single number"),
    ("rank_4", np.ones((1, 2, 2, 8), np.float32), "--image-axes NDHW"),
    ("rank_5", np.ones((1, 1, 1, 3, 8), np.float32), "rank 5"),
    ("a_width_beyond_any", np.ones((1, (1 << 20) + 1), np.float16), "1,048,576|too wide"),
):
    CASES.append(pytest.param(partial(saved, _array), _says, id=f"image_of_{_name}"))


hostile_bytes("width 0", ".npy", {"image_without_end_or_width": npy(header((10**18, 0)), b"")})


@hostile("no tokens")
def a_text_of_no_tokens() -> list[str]:
    np.save("hostile.npy", TEXT[:0])
    return as_text("hostile.npy")


@hostile("rank 4")
def a_text_of_rank_4() -> list[str]:
    np.save("hostile.npy", np.ones((1, 1, 4, 8), np.float32))
    return as_text("hostile.npy")


@hostile("float32|1e\\+?300|too large")
def an_image_of_1e300() -> list[str]:
    return saved(spoiled(1e300, np.float64))


@hostile("holds NaN at token 2, column 0")
def a_text_with_nan() -> list[str]:
    text = TEXT.copy()
    text[2, 0] = np.nan
    np.save("hostile.npy", text)
    return as_text("hostile.npy")


@hostile("holds NaN at sample 1, token 2, column 5")
def a_stack_with_nan() -> list[str]:
    stack = np.stack([IMAGE, IMAGE])
    stack[1, 2, 5] = np.nan
    np.save("texts.npy", np.stack([TEXT, TEXT]))
    return [saved(stack)[0], "texts.npy"]


@hostile("not finite.*normalize")
def an_image_so_large_that_the_result_overflows() -> list[str]:
    np.save("hostile.npy", np.full((3, 8), 3e38, np.float32))
    weighted({"image_proj.weight": np.full((8, 8), 1e4, np.float32)})
    return ["hostile.npy", "text.npy", "--weights", "hostile.safetensors"]


@hostile("image has 3 samples, the text 2")
def stacks_of_different_lengths() -> list[str]:
    np.save("texts.npy", np.stack([TEXT] * 2))
    return [saved(np.stack([IMAGE] * 3))[0], "texts.npy"]
