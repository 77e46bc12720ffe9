"""Files that promise gigabytes, and files without an end."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib

import torch

from tests.features.hostile.cases import (
    BOMB,
    GIB,
    IMAGE,
    NPY,
    as_image,
    entry,
    header,
    hostile,
    npy,
    safetensors,
    torch_bytes,
    write,
)


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
