"""Bad .safetensors, .pt and .pth files."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile

import torch

from tests.features.hostile.cases import (
    IMAGE,
    PT,
    SAFETENSORS,
    as_image,
    entry,
    hostile,
    hostile_bytes,
    safetensors,
    torch_bytes,
    write,
)

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
