"""Files that lie, break off or bite: one sentence, a non-zero exit code, nothing left behind.

Every case is a function that writes what it needs into the working directory and returns the
arguments of `fusecli fuse`. The file at fault is always called `hostile` with an ending.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fusecli import FuseError, FuseOptions, fuse_files
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.initial_weights import initial_weights
from tests.conftest import without_privileges

GIB = 1 << 30
ALLOWED = GIB // 2  # memory that a refusal may take
BOMB = 600 << 20
IMAGE = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)
TEXT = np.linspace(1, -1, 32, dtype=np.float32).reshape(4, 8)
CONFIG = FusionConfig(embed_dim=8, num_heads=2)

CASES: list[object] = []
LARGE: list[object] = []  # these promise gigabytes: run in a process of their own, with a limit


def hostile(says: str, large: bool = False) -> Callable[[Callable], Callable]:
    """Add a case: what the error must say, as a regular expression."""

    def add(make: Callable) -> Callable:
        (LARGE if large else CASES).append(pytest.param(make, says, id=make.__name__))
        return make

    return add


def hostile_bytes(says: str, ending: str, files: dict[str, bytes]) -> None:
    """Add cases of an image of these bytes, all refused in the same words."""
    for name, data in files.items():
        CASES.append(pytest.param(partial(write, ending, data), says, id=name))


def as_image(name: str) -> list[str]:
    return [name, "text.npy"]


def as_text(name: str) -> list[str]:
    return ["image.npy", name]


def write(ending: str, data: bytes) -> list[str]:
    """A hostile image of these bytes."""
    Path(f"hostile{ending}").write_bytes(data)
    return as_image(f"hostile{ending}")


def npy(
    header: str | bytes, data: bytes = IMAGE.tobytes(), version: int = 1, length: int | None = None
) -> bytes:
    """A .npy file with this text for a header."""
    text = header if isinstance(header, bytes) else header.encode("latin-1")
    size = 2 if version == 1 else 4
    text += b" " * (-(len(text) + 9 + size) % 64) + b"\n"
    claimed = len(text) if length is None else length
    return b"\x93NUMPY" + bytes((version, 0)) + claimed.to_bytes(size, "little") + text + data


def header(shape: object = (3, 8), descr: object = "<f4", fortran: object = False) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}, }}"


def saved(array: np.ndarray, **options: object) -> list[str]:
    """A hostile image that numpy wrote."""
    np.save("hostile.npy", array, **options)
    return as_image("hostile.npy")


def npz(compressed: bool = True) -> bytes:
    sink = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(sink, image=IMAGE)
    return sink.getvalue()


def safetensors(head: object, data: bytes = IMAGE.tobytes(), length: int | None = None) -> bytes:
    """A .safetensors file with this header, JSON or text."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: object = (3, 8), start: int = 0, stop: int = 96, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def torch_bytes(value: object, **options: object) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **options)
    return sink.getvalue()


NPY = npy(header())
NPZ = npz()
SAFETENSORS = safetensors({"image": entry()})
PT = torch_bytes(torch.from_numpy(IMAGE))


# ---------------------------------------------------------------------------------- .npy

for _name, _array, _says in (
    ("array_of_objects", np.array([{}, None], object), "Python objects"),
    ("array_of_records", np.zeros((3, 8), [("a", "<f4"), ("b", "<f4")]), "structured"),
    ("complex_numbers", IMAGE.astype(np.complex64), "complex"),
    ("text_strings", np.full((3, 8), "dog"), "strings"),
    ("byte_strings", np.full((3, 8), b"dog"), "strings"),
    ("dates", np.zeros((3, 8), "M8[D]"), "dates"),
    ("time_spans", np.zeros((3, 8), "m8[s]"), "time spans"),
    ("bfloat16_as_raw_void", IMAGE.astype(np.float16).view("V2"), r"bfloat16.*\.safetensors"),
):
    CASES.append(pytest.param(partial(saved, _array), _says, id=_name))

hostile_bytes("empty", ".npy", {"npy_of_no_bytes": b""})
hostile_bytes(r"not a \.npy file", ".npy", {"npy_that_is_text": b"0.1 0.2 0.3\n"})
hostile_bytes("pickle", ".npy", {"npy_that_is_a_pickle": pickle.dumps([1.0, 2.0])})
hostile_bytes("unknown version", ".npy", {"npy_of_a_version_to_come": npy(header(), version=9)})
hostile_bytes(
    "structured|Python objects|expected real numbers",
    ".npy",
    {
        "array_of_subarrays": npy(header((3,), ("<f4", (8,)))),
        "objects_inside_records": npy(header((3,), [("a", "<f4"), ("b", "|O")])),
        "variable_strings": npy(header((3, 8), "T"), bytes(3 * 8 * 16)),
        "endless_strings_of_width_zero": npy(header((10**18,), "|S0"), b""),
    },
)
hostile_bytes(
    "followed by something else",
    ".npy",
    {"npy_with_bytes_behind_it": NPY + b"!", "two_npy_in_one_file": NPY * 2},
)
hostile_bytes(
    "cut short",
    ".npy",
    {
        "npy_whose_header_lies_about_the_size": npy(header((30, 8))),
        "npy_that_claims_ten_to_the_eighteen": npy(header((10**18, 8))),
        "npy_whose_size_overflows_64_bits": npy(header((2**32, 2**32, 8))),
        "npy_whose_size_wraps_round_to_its_own": npy(header((2**61 + 3, 8))),
    },
)
hostile_bytes(
    "damaged .npy header",
    ".npy",
    {
        "npy_with_a_negative_size": npy(header((-3, -8))),
        "npy_with_sizes_that_are_booleans": npy(header((True, 24))),
        "npy_with_sizes_that_are_text": npy(header(("3", "8"))),
        "npy_with_fractional_sizes": npy(header((3.0, 8.0))),
        "npy_whose_shape_is_a_number": npy(header(24)),
        "npy_whose_fortran_order_is_a_word": npy(header(fortran="yes")),
        "npy_of_a_type_that_is_not": npy(header(descr="<q9")),
        "npy_with_a_key_too_many": npy(header().replace("}", "'more': 1}")),
        "npy_with_a_key_missing": npy("{'descr': '<f4', 'shape': (3, 8)}"),
        "npy_whose_header_is_a_list": npy("[1, 2, 3]"),
        "npy_whose_header_is_code": npy("__import__('os').mkdir('hacked')"),
        "npy_header_of_nested_parentheses": npy("(" * 9000),
        "npy_header_of_nested_lists": npy(header().replace("(3, 8)", "[" * 4000 + "]" * 4000)),
        "npy_header_of_minus_signs": npy(header().replace("(3", "(" + "-" * 8000 + "3")),
        "npy_header_with_a_nul": npy(header().replace("3", "3\0")),
        "npy_header_with_an_open_string": npy("{'descr': '''<f4"),
        "npy_header_of_a_number_too_long": npy(header().replace("3", "9" * 9000)),
        "npy_header_that_is_not_utf_8": npy(b"{'descr': '\xff\xfe', 'shape'", version=3),
        "npy_header_longer_than_the_file": npy(header(), version=2, length=1 << 20),
        "npy_header_of_no_length": npy(header(), length=0),
        "npy_header_of_a_megabyte_of_spaces": npy(header() + " " * (1 << 20), version=2),
    },
)
hostile_bytes("rank 3000", ".npy", {"npy_of_rank_3000": npy(header((1,) * 3000), bytes(4))})


# --------------------------------------------------------------------------- wrong endings

hostile_bytes(r"zip archive.*\.npz", ".npy", {"npz_called_npy": NPZ})
hostile_bytes(r"zip archive.*\.pt", ".npy", {"pt_called_npy": PT})
hostile_bytes(r"not a \.npy file", ".npy", {"safetensors_called_npy": SAFETENSORS})
hostile_bytes(r"not a \.npz archive", ".npz", {"npy_called_npz": NPY})
hostile_bytes("not a sound .safetensors file", ".safetensors", {"npy_called_safetensors": NPY})
hostile_bytes("not a readable .pt file", ".pt", {"npy_called_pt": NPY, "npz_called_pt": NPZ})
hostile_bytes("not a readable .pt file", ".pth", {"safetensors_called_pth": SAFETENSORS})
hostile_bytes(r"reads \.npy.*found \.csv", ".csv", {"csv": b"1,2,3\n"})
hostile_bytes("pickles are never loaded", ".pkl", {"pickle": pickle.dumps(IMAGE)})
hostile_bytes("found no ending|found \\.$", ".", {"no_ending": NPY})


# ------------------------------------------------------------------------------------ .npz


@hostile("not a .npz archive")
def npz_of_no_bytes() -> list[str]:
    return write(".npz", b"")


@hostile("holds no arrays")
def npz_without_arrays() -> list[str]:
    zipfile.ZipFile("hostile.npz", "w").close()
    return as_image("hostile.npz")


def zipped(members: dict[str, bytes], **how: object) -> list[str]:
    with zipfile.ZipFile("hostile.npz", "w", **how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return as_image("hostile.npz")


@hostile(r"hostile\.npz\[image\]: is cut short")
def npz_array_cut_short() -> list[str]:
    return zipped({"image.npy": NPY[:-1]})


@hostile(r"hostile\.npz\[image\]: is followed")
def npz_array_with_bytes_behind_it() -> list[str]:
    return zipped({"image.npy": NPY + b"!"})


@hostile(r"hostile\.npz\[image\]: is empty")
def npz_array_of_no_bytes() -> list[str]:
    return zipped({"image.npy": b""})


@hostile(r"hostile\.npz\[notes\.txt\]: is not a \.npy file")
def npz_with_a_text_file_in_it() -> list[str]:
    return zipped({"notes.txt": b"hello there"})


@hostile(r"two arrays called 'image'")
def npz_with_one_name_twice() -> list[str]:
    zipped({"image.npy": NPY, "imagE.npy": NPY})
    return write(".npz", Path("hostile.npz").read_bytes().replace(b"imagE", b"image"))


@hostile("Python objects")
def npz_of_objects() -> list[str]:
    np.savez("hostile.npz", image=np.array([{}], object))
    return as_image("hostile.npz")


@hostile("cannot be unpacked.*encrypted")
def npz_that_says_it_is_encrypted() -> list[str]:
    data = bytearray(NPZ)
    data[6] |= 1  # the flags of the member's own header, and of its entry in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return write(".npz", bytes(data))


@hostile("cannot be unpacked.*CRC")
def npz_with_a_flipped_bit() -> list[str]:
    data = bytearray(npz(compressed=False))
    data[data.index(IMAGE.tobytes()) + 40] ^= 1
    return write(".npz", bytes(data))


@hostile("cannot be unpacked")
def npz_with_damaged_compression() -> list[str]:
    data = bytearray(NPZ)
    middle = data.index(b"PK\x01\x02") // 2
    data[middle : middle + 20] = b"\xff" * 20
    return write(".npz", bytes(data))


@hostile("cannot be unpacked")
def npz_of_an_unknown_compression() -> list[str]:
    data = bytearray(NPZ)
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 77
    return write(".npz", bytes(data))


@hostile("cannot be unpacked|not a .npz archive")
def npz_whose_directory_points_nowhere() -> list[str]:
    data = bytearray(NPZ)
    start = data.index(b"PK\x01\x02") + 42
    data[start : start + 4] = b"\xff\xff\xff\x7f"
    return write(".npz", bytes(data))


@hostile(r"hostile\.npz\[\]: cannot be unpacked")
def npz_with_a_member_without_a_name() -> list[str]:
    return write(".npz", archive_of("", zlib.compress(b"notes", wbits=-15), 5))


# ---------------------------------------------------------------------------- .safetensors

hostile_bytes(r"\.safetensors file.*empty", ".safetensors", {"safetensors_of_no_bytes": b""})
hostile_bytes("holds no tensors", ".safetensors", {"safetensors_of_nothing": safetensors({}, b"")})
hostile_bytes(
    "which fusecli does not read",
    ".safetensors",
    {"safetensors_of_complex_numbers": safetensors({"image": entry((3, 4), dtype="C64")})},
)
_ONE, _TWO = (json.dumps(entry(start=start, stop=start + 96)) for start in (0, 96))
hostile_bytes(
    "not a sound .safetensors file",
    ".safetensors",
    {
        "safetensors_with_bytes_behind_it": SAFETENSORS + b"!",
        "safetensors_with_overlapping_tensors": safetensors(
            {"image": entry(), "mask": entry(start=48, stop=144)}, bytes(144)
        ),
        "safetensors_with_a_hole": safetensors(
            {"image": entry(), "more": entry(start=100, stop=196)}, bytes(196)
        ),
        "safetensors_with_one_name_twice": safetensors(
            f'{{"image": {_ONE}, "image": {_TWO}}}'.encode(), bytes(192)
        ),
        "safetensors_with_offsets_backwards": safetensors({"image": entry(start=96, stop=0)}),
        "safetensors_with_a_negative_offset": safetensors({"image": entry(start=-96, stop=0)}),
        "safetensors_of_an_unknown_type": safetensors({"image": entry(dtype="F33")}),
        "safetensors_whose_shape_is_not_its_bytes": safetensors({"image": entry((3, 9))}),
        "safetensors_whose_shape_overflows": safetensors({"image": entry((2**40, 2**40))}),
        "safetensors_with_a_negative_size": safetensors({"image": entry((-3, -8))}),
        "safetensors_with_a_fractional_size": safetensors({"image": entry((3.0, 8.0))}),
        "safetensors_header_longer_than_the_file": safetensors({"image": entry()}, length=10**6),
        "safetensors_header_of_2_to_the_63": safetensors({"image": entry()}, length=1 << 63),
        "safetensors_header_that_is_not_json": safetensors(b"{'image': 3}"),
        "safetensors_header_that_is_not_utf_8": safetensors(b'{"im\xffage": {}}'),
        "safetensors_header_nested_deeply": safetensors(b'{"image":' + b"[" * 10**5),
        "safetensors_whose_metadata_is_not_text": safetensors(
            {"__metadata__": {"fusecli": [1, 2]}, "image": entry()}
        ),
    },
)


@hostile("none of its tensors is known")
def safetensors_with_endless_names() -> list[str]:
    head = {"a" * 10**5: entry(), "b" * 10**5: entry(start=96, stop=192)}
    return write(".safetensors", safetensors(head, bytes(192)))


@hostile("none of its tensors is known")
def safetensors_with_names_that_draw_on_the_terminal() -> list[str]:
    head = {"\x1b[2J\n\r": entry(), "\u202e[/red]": entry(start=96, stop=192)}
    return write(".safetensors", safetensors(head, bytes(192)))


# -------------------------------------------------------------------------------- .pt, .pth


class Bomb:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("hacked",)


hostile_bytes(
    "could run code",
    ".pt",
    {
        "pt_that_runs_code": torch_bytes({"image": torch.from_numpy(IMAGE), "bomb": Bomb()}),
        "pt_of_the_old_format_that_runs_code": torch_bytes(
            Bomb(), _use_new_zipfile_serialization=False
        ),
        "pt_that_is_a_bare_pickle": pickle.dumps(Bomb()),
        "pt_of_a_whole_module": torch_bytes(torch.nn.Linear(2, 2)),
    },
)
hostile_bytes("empty", ".pt", {"pt_of_no_bytes": b""})
hostile_bytes(
    "not a readable .pt file",
    ".pt",
    {
        "pt_that_is_text": b"hello there, this is not a tensor\n",
        "pt_with_a_damaged_archive": bytes(200) + PT[200:],
    },
)
hostile_bytes(
    "holds no tensors",
    ".pt",
    {
        "pt_of_a_list_of_numbers": torch_bytes([3.5, [1]]),
        "pt_of_numbers": torch_bytes({"image": 3.5}),
    },
)
hostile_bytes(
    "promises.*contiguous",
    ".pt",
    {"pt_that_expands_to_terabytes": torch_bytes(torch.ones(1, 8).expand(1 << 38, 8))},
)
hostile_bytes(
    "holds complex64", ".pt", {"pt_complex": torch_bytes(torch.ones(3, 8, dtype=torch.complex64))}
)
for _name, _tensor in (
    ("sparse", torch.from_numpy(IMAGE).to_sparse()),
    ("meta", torch.empty(3, 8, device="meta")),
):
    hostile_bytes(f"{_name}.*expected a dense one", ".pt", {f"pt_{_name}": torch_bytes(_tensor)})


@hostile("not a readable .pt file")
def pt_whose_numbers_are_not_there() -> list[str]:
    with zipfile.ZipFile(io.BytesIO(PT)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile("hostile.pt", "w") as archive:
        for name, data in members.items():
            if not name.endswith("/data/0"):
                archive.writestr(name, data)
    return as_image("hostile.pt")


@hostile("quantized.*expected a dense one")
def pt_quantized() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that these types are on their way out
        tensor = torch._empty_affine_quantized([3, 8], scale=1.0, zero_point=0, dtype=torch.qint8)
        return write(".pt", torch_bytes(tensor))


# ----------------------------------------------------------------------- not files, and names


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


# ------------------------------------------------------------------------- numbers and shapes


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


# ----------------------------------------------------------------------------------- masks


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


# --------------------------------------------------------------------------------- weights


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


# ------------------------------------------------------------------------- gigabytes promised


def sparse(name: str, start: bytes, size: int) -> None:
    """A file that starts so and goes on as zeros that take no room."""
    with open(name, "wb") as file:
        file.write(start)
        file.truncate(size)


def zeros_deflated(head: bytes, size: int) -> bytes:
    """`head` and `size` MiB of zeros, packed a thousandfold without packing all of it."""
    packer = zlib.compressobj(wbits=-15)
    data = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return data + piece * size + packer.flush(zlib.Z_FINISH)


def archive_of(name: str, packed: bytes, size: int) -> bytes:
    """A zip archive of one deflated member that is said to be `size` bytes long."""
    path = name.encode()
    fields = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, 0, len(packed), size) + struct.pack(
        "<HH", len(path), 0
    )
    local = b"PK\x03\x04" + fields + path
    entry = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0)
    directory = entry + path
    start = len(local) + len(packed)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), start, 0)
    return local + packed + directory + end


@hostile("cut short", large=True)
def npy_of_three_gigabytes_in_a_small_file() -> list[str]:
    return write(".npy", npy(header((100663296, 8)), bytes(1000)))


@hostile("cut short|followed", large=True)
def npy_of_three_sparse_gigabytes_that_lies() -> list[str]:
    start = npy(header((100663296, 8)), b"")
    sparse("hostile.npy", start, len(start) + 3 * GIB - 4)
    return as_image("hostile.npy")


@hostile("header", large=True)
def npy_header_of_three_sparse_gigabytes() -> list[str]:
    sparse("hostile.npy", npy(header(), version=2, length=3 * GIB)[:100], 3 * GIB + 12)
    return as_image("hostile.npy")


@hostile("header", large=True)
def npy_header_of_four_gigabytes_in_a_small_file() -> list[str]:
    return write(".npy", npy(header(), version=2, length=(1 << 32) - 1))


@hostile("memory", large=True)
def npy_of_three_sparse_gigabytes_that_holds_them() -> list[str]:
    start = npy(header((100663296, 8)), b"")
    sparse("hostile.npy", start, len(start) + 3 * GIB)
    return as_image("hostile.npy")


@hostile("unpacks from .* bytes to .* raise the bound with FUSECLI_READ_LIMIT=", large=True)
def npz_bomb_that_holds_what_it_says() -> list[str]:
    head = npy(header((100663296, 8)), b"")
    packed = zeros_deflated(head, 3072)
    return write(".npz", archive_of("image.npy", packed, len(head) + 3 * GIB))


@hostile("followed by something else", large=True)
def npz_bomb_behind_a_small_array() -> list[str]:
    packed = zeros_deflated(NPY, 3072)
    return write(".npz", archive_of("image.npy", packed, len(NPY) + 3 * GIB))


@hostile("cut short", large=True)
def npz_that_claims_more_than_deflate_can_pack() -> list[str]:
    head = npy(header((100663296, 8)), b"")
    packed = zeros_deflated(head, 1)
    return write(".npz", archive_of("image.npy", packed, len(head) + 3 * GIB))


@hostile("header", large=True)
def npz_bomb_in_the_header() -> list[str]:
    head = npy(header(), version=2, length=BOMB)[:100]
    packed = zeros_deflated(head, BOMB >> 20)
    return write(".npz", archive_of("image.npy", packed, len(head) + BOMB))


@hostile("not a sound .safetensors file", large=True)
def safetensors_header_of_a_sparse_gigabyte() -> list[str]:
    sparse("hostile.safetensors", struct.pack("<Q", GIB), GIB + 8)
    return as_image("hostile.safetensors")


@hostile("memory", large=True)
def safetensors_of_three_sparse_gigabytes_that_holds_them() -> list[str]:
    start = safetensors({"image": entry((100663296, 8), 0, 3 * GIB)}, b"")
    sparse("hostile.safetensors", start, len(start) + 3 * GIB)
    return as_image("hostile.safetensors")


@hostile("hostile", large=True)
def pt_bomb() -> list[str]:
    sound = torch_bytes({"image": torch.from_numpy(IMAGE), "big": torch.zeros(8)})
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    # The pickle says how many numbers a storage has: K\x08 is 8, J and four bytes is more.
    for name in members:
        if name.endswith("data.pkl"):
            head, _, tail = members[name].rpartition(b"K\x08tq")
            members[name] = head + b"J" + struct.pack("<i", BOMB // 4) + b"tq" + tail
    with zipfile.ZipFile("hostile.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, bytes(BOMB) if name.endswith("/data/1") else data)
    return as_image("hostile.pt")


@hostile("not a regular file", large=True)
def dev_zero() -> list[str]:
    os.symlink("/dev/zero", "hostile.npy")
    return as_image("hostile.npy")


@hostile("not a regular file", large=True)
def a_pipe_that_nobody_writes_to() -> list[str]:
    os.mkfifo("hostile.npy")
    return as_image("hostile.npy")


@hostile("not a regular file", large=True)
def a_pipe_for_weights() -> list[str]:
    os.mkfifo("hostile.safetensors")
    return ["image.npy", "text.npy", "--weights", "hostile.safetensors"]


@hostile("not a regular file", large=True)
def a_pipe_for_a_mask() -> list[str]:
    os.mkfifo("hostile.npy")
    return ["image.npy", "text.npy", "--text-mask", "hostile.npy"]


# ----------------------------------------------------------------------------------- tests


@pytest.fixture
def inputs(folder: Path) -> Path:
    """A working directory with a sound image and a sound text."""
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)
    return folder


def everything(folder: Path) -> list[tuple[str, int, int]]:
    """Every file below a folder, hidden ones too, with its size and the time of its last change."""
    found = []
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found.append((str(path), state.st_size, state.st_mtime_ns))
    return found


def check_refusal(code: int, out: str, err: str, says: str) -> None:
    assert "Traceback" not in err
    assert code == 1
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, f"expected one line on stderr, found:\n{err}"
    assert err.startswith("error: ")
    check_sentence(err[:-1])
    assert re.search(says, err[:-1]), f"expected {says!r} in: {err}"


def check_sentence(error: str) -> None:
    assert "hostile." in error
    assert error.isprintable()
    assert len(error) < 1000, f"{len(error)} characters are not a sentence"
    name = re.search(r"\b[A-Z]\w*(Error|Exception)\b", error)
    assert name is None, f"the name of a Python exception is no sentence: {error}"


@pytest.mark.parametrize(("make", "says"), CASES)
def test_bad_file_is_refused_in_one_line(
    inputs: Path, cli: Callable, make: Callable[[], list[str]], says: str
) -> None:
    arguments = make()
    before = everything(inputs)
    done = cli("fuse", *arguments, "-o", "out.npy")
    check_refusal(done.code, done.out, done.err, says)
    assert everything(inputs) == before


LIMITED = """
import re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from fusecli.cli.main import main
try:
    main()
finally:
    with open("/proc/self/status") as status, open(sys.argv[0] + ".peak", "w") as peak:
        peak.write(re.search(r"VmHWM:\\s*(\\d+) kB", status.read())[1])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
@pytest.mark.parametrize(("make", "says"), LARGE)
def test_file_that_promises_gigabytes_is_refused_at_no_cost(
    inputs: Path, tmp_path: Path, make: Callable[[], list[str]], says: str
) -> None:
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    arguments = make()
    before = everything(inputs)
    done = subprocess.run(
        [sys.executable, script, "fuse", *arguments, "-o", "out.npy"],
        capture_output=True,
        timeout=50,
        text=True,
    )
    check_refusal(done.returncode, done.stdout, done.stderr, says)
    assert everything(inputs) == before
    peak = int((tmp_path / "limited.py.peak").read_text()) << 10
    assert peak < ALLOWED, f"took {peak >> 20} MiB"


@pytest.mark.parametrize(("make", "says"), CASES)
def test_inspect_shows_or_refuses_a_bad_file_without_a_traceback(
    inputs: Path, cli: Callable, make: Callable[[], list[str]], says: str
) -> None:
    # The file at fault, wherever it is given to `fuse`.
    name = [argument for argument in make() if "hostile." in argument][-1]
    before = everything(inputs)
    for options in (["--stats"], ["--json"]):
        done = cli("inspect", name, *options)
        assert everything(inputs) == before
        assert "Traceback" not in done.err
        assert all(line.isprintable() for line in done.err.splitlines())
        if done.code:
            assert done.code == 1
            assert done.out == ""
            assert re.fullmatch(r"error: .*hostile\..*\n", done.err)
        elif "--json" in options:
            (found,) = json.loads(done.out)
            assert found["folder" if os.path.isdir(name) else "file"] == name
        else:
            assert done.err == ""
            shown = done.out.replace("\n", "")
            assert "hostile." in shown
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", shown)


FORMATS = {".npy": NPY, ".npz": NPZ, ".safetensors": SAFETENSORS, ".pt": PT}


def fuse_or_refuse(name: str) -> bool:
    """Whether the image was fused; a refusal must be one line that names it."""
    before = everything(Path())
    problem = None
    try:
        fuse_files(FuseOptions(name, "text.npy", "out.npy"))
    except FuseError as error:
        problem = str(error)
    if problem is not None:
        check_sentence(problem)
        assert everything(Path()) == before
        return False
    assert np.isfinite(np.load("out.npy")).all()
    os.unlink("out.npy")
    return True


@pytest.mark.parametrize("ending", FORMATS)
def test_file_cut_anywhere_is_refused(inputs: Path, ending: str) -> None:
    data = FORMATS[ending]
    for place in {0, 1, 4, 7, 8, 9, *range(10, len(data), 13), len(data) - 1}:
        (name, _) = write(ending, data[:place])
        assert not fuse_or_refuse(name), f"cut after {place} of {len(data)} bytes"


@pytest.mark.parametrize("ending", FORMATS)
def test_file_with_any_byte_changed_is_fused_or_refused_but_never_breaks(
    inputs: Path, ending: str
) -> None:
    data = FORMATS[ending]
    random = np.random.default_rng(0)
    for place in random.choice(len(data), size=min(120, len(data)), replace=False):
        changed = bytearray(data)
        changed[place] ^= random.integers(1, 256)
        (name, _) = write(ending, bytes(changed))
        fuse_or_refuse(name)


@pytest.mark.skipif(sys.platform != "linux", reason="sets aside root's privileges with prctl")
def test_file_without_permission_is_refused(inputs: Path, program: Callable) -> None:
    os.chmod("image.npy", 0)
    args = ("fuse", "image.npy", "text.npy", "-o", "out.npy")
    done = program(*args, preexec_fn=without_privileges)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: image.npy: cannot be opened: Permission denied\n"


def test_stdin_without_end_is_refused_by_its_first_bytes(inputs: Path, tmp_path: Path) -> None:
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    with open("/dev/zero", "rb") as zeros:
        done = subprocess.run(
            [sys.executable, script, "fuse", "-", "text.npy", "-o", "out.npy"],
            stdin=zeros,
            capture_output=True,
            timeout=50,
            text=True,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: stdin: is not a .npy file\n"
    assert int((tmp_path / "limited.py.peak").read_text()) << 10 < ALLOWED


def test_there_are_at_least_seventy_kinds() -> None:
    assert len(CASES) + len(LARGE) >= 70
