"""Every record that the tool reads back, damaged in hundreds of ways.

Whatever a record holds, a run ends within a second of computing and with little memory: it
succeeds, or says in one line what is wrong; nothing is left behind. `FUSECLI_FUZZ` sets the
number of mutations of each record; `make fuzz` takes 20,000.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.batches import left_behind, make_pairs
from tests.faults.batch_jobs import BATCH, LAYOUTS
from tests.faults.mutations import TURNS, bounds, check, mutated, parquet_bytes
from tests.faults.running import run


@pytest.fixture
def pairs(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    make_pairs(folder, 3)
    np.save("image.npy", rng.standard_normal((3, 16)).astype(np.float32))
    np.save("text.npy", rng.standard_normal((5, 16)).astype(np.float32))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["journal.jsonl", "run.json"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_of_an_output_folder(pairs: Path, layout: str, name: str) -> None:
    args = (*BATCH, *LAYOUTS[layout])
    assert run(*args).code == 0
    shutil.move("out", "whole")
    data = (Path("whole") / name).read_bytes()
    chance = random.Random(f"{layout} {name}")
    for turn in range(TURNS):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("whole", "out")
        command = args if turn % 4 else ("batch", "--merge", "-o", "out", "--quiet")
        check(Path("out", name), mutated(data, chance), command, (0, 1, 2, 3))
        assert left_behind(Path("out")) == []


@pytest.mark.slow
def test_index_of_packs(pairs: Path) -> None:
    assert run(*BATCH, "--pack").code == 0
    index = Path("out/fused.safetensors.index.json")
    data, chance = index.read_bytes(), random.Random("index")
    shutil.copytree("out", "texts-of-packs")
    texts = "texts-of-packs/fused.safetensors.index.json"
    args = ("batch", str(index), texts, "-o", "second", "--quiet", "--workers", "1")
    assert run(*args).code == 0, "the undamaged index is used"
    for _ in range(TURNS):
        shutil.rmtree("second", ignore_errors=True)
        check(index, mutated(data, chance), args, (0, 1, 2, 3))
        assert not Path("second").exists() or left_behind(Path("second")) == []


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_manifest(pairs: Path, ending: str) -> None:
    rows = [(f"{i}", f"images/{i}/{i:04d}.npy", f"texts/{i}/{i:04d}.npy") for i in range(3)]
    manifest = Path(f"pairs.{ending}")
    if ending == "csv":
        data = "\n".join(map(",".join, [("id", "image", "text"), *rows])).encode()
    elif ending == "parquet":
        data = parquet_bytes(
            dict(zip(("id", "image", "text"), zip(*rows, strict=True), strict=True))
        )
    else:
        lines = [json.dumps(dict(zip(("id", "image", "text"), row, strict=True))) for row in rows]
        data = "\n".join(lines).encode()
    manifest.write_bytes(data)
    args = ("batch", "--manifest", str(manifest), "-o", "out", "--quiet", "--workers", "1")
    done = run(*args)
    assert done.code == 0, done
    chance = random.Random(ending)
    for _ in range(TURNS // 5 if ending == "parquet" else TURNS):  # all of that is pyarrow's
        shutil.rmtree("out", ignore_errors=True)
        check(manifest, mutated(data, chance), args, (0, 1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("w.safetensors", "--weights"),
        ("image.npy", None),
        ("image.safetensors", None),
        ("image.npz", None),
    ],
)
def test_files_of_a_job(pairs: Path, name: str, option: str | None) -> None:
    assert run("init", "-o", "w.safetensors", "--dim", "16").code == 0
    image = np.load("image.npy")
    np.savez("image.npz", image=image)
    from safetensors.numpy import save_file

    save_file({"image": image}, "image.safetensors")
    record = Path(name)
    data, chance = record.read_bytes(), random.Random(name)
    there = sorted([*os.listdir(), "mutation"])
    job = ("fuse", "image.npy", "text.npy", "-o", "out.npy", "--quiet", option or "", name)
    if option is None:
        job = ("fuse", name, "text.npy", "-o", "out.npy", "--quiet")
    for turn in range(TURNS):
        Path("out.npy").unlink(missing_ok=True)
        command = job if turn % 3 else ("inspect", name)
        check(record, mutated(data, chance), command, (0, 1, 2))
        assert set(os.listdir()) <= {*there, "out.npy"}


def header_of(entries: str, numbers: bytes = b"") -> bytes:
    """A safetensors file with these entries in its header."""
    header = ("{" + entries + "}").encode()
    return len(header).to_bytes(8, "little") + header + numbers


def many(count: int, entry: str = '"dtype":"F32","shape":[0],"data_offsets":[0,0]') -> bytes:
    return header_of(",".join(f'"k{n}":{{{entry}}}' for n in range(count)))


LARGE_HEADERS = {
    "usual": many(20_000),
    "unusual": many(5_000, '"shape":[0],"dtype":"F32","data_offsets":[0,0]'),
    "named_alike": header_of(
        ",".join(
            f'"a{n}.{end}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
            for n in range(5_000)
            for end in ("image_features", "features", "mask")
        )
    ),
    "axes": many(
        50, f'"dtype":"F32","shape":[{"9223372036854775807," * 2500}0],"data_offsets":[0,0]'
    ),
    "out_of_order": header_of(
        ",".join(
            f'"k{n}":{{"dtype":"U8","shape":[1],"data_offsets":[{n},{n + 1}]}}'
            for n in reversed(range(20_000))
        ),
        bytes(20_000),
    ),
    "backslashes": header_of('"__metadata__":{"a":"' + "\\\\" * 500_000 + '"}'),
    "quotation_marks": header_of('"__metadata__":{"a":"' + '\\"' * 500_000 + '"}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_HEADERS)
def test_large_header(pairs: Path, name: str) -> None:
    """A header of a megabyte is read, or refused, in a second and little memory."""
    Path("h.safetensors").write_bytes(LARGE_HEADERS[name])
    for args in (("inspect",), ("fuse", "text.npy")):
        job = (args[0], "h.safetensors", *args[1:])
        with bounds():
            done = run(*job)
        assert done.code == (args[0] == "fuse" or name in ("backslashes", "quotation_marks")), done
        assert done.err.count("\n") == done.code
        assert len(done.out) < 200_000
