"""Bad .npy and .npz files, and files with the ending of another format."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.features.hostile.cases import (
    CASES,
    IMAGE,
    NPY,
    NPZ,
    PT,
    SAFETENSORS,
    as_image,
    header,
    hostile,
    hostile_bytes,
    npy,
    npz,
    saved,
    write,
)
from tests.features.hostile.gigabytes import archive_of

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
