"""A power cut at any moment of a run, and what a file system may then hold.

A run is recorded. After each of its changes the power is cut. Of what was not synced, a file
system may have kept all, nothing, a part, or the length with zeros; and renames and new names
that no sync has brought to the disk may be missing, the later ones first. In each of these
states the promises hold: what a journal calls done is whole, a name that `fuse` gives stands
for a whole file, and the next run completes to the same bytes and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fusecli.batch.store import files
from fusecli.batch.store.layout import INDEX
from fusecli.features import atomic
from tests.batches import journal, left_behind, make_pairs
from tests.faults.batch_jobs import BATCH, LAYOUTS, results
from tests.faults.layer import Layer
from tests.faults.running import contents, owners_die, run

# Of data that was not synced; "journal": all of the journal, and of the others nothing, or zeros.
KEPT = ("all", "nothing", "half", "zeros", "journal", "journal, zeros")


@dataclass
class Disk:
    """What the changes of a run have made of a folder, and what of it is surely on the disk.

    Attributes:
        names: changes of names, in their order.
        durable_names: how many of them are surely on the disk.
        data: content of each file by its number.
        durable: the same as surely on the disk.
    """

    names: list[tuple[Any, ...]] = field(default_factory=list)
    durable_names: int = 0
    data: dict[int, bytes] = field(default_factory=dict)
    durable: dict[int, bytes] = field(default_factory=dict)

    def change(self, event: tuple[Any, ...]) -> None:
        kind = event[0]
        if kind == "data":
            self.data[event[1]] = event[2]
        elif kind == "syncfs":
            self.durable_names, self.durable = len(self.names), dict(self.data)
        elif kind == "fsync" and isinstance(event[1], int):
            if event[1] in self.data:
                self.durable[event[1]] = self.data[event[1]]
        elif kind == "fsync":  # a folder: its names are on the disk, and so are earlier ones
            for index, change in enumerate(self.names, 1):
                paths = [path for path in change[1:] if isinstance(path, str)]
                if event[1] in map(os.path.dirname, paths):
                    self.durable_names = max(self.durable_names, index)
        else:
            self.names.append(event)
            if kind == "create":
                self.data[event[2]] = self.durable[event[2]] = b""

    def content(self, number: int, kept: str) -> bytes:
        """What a file may hold after the cut."""
        now, sure = self.data[number], self.durable.get(number, b"")
        if kept == "all" or now == sure:
            return now
        if kept == "nothing":
            return sure
        if now.startswith(sure):
            more = len(now) - len(sure)
            return now[: len(sure) + more // 2] if kept == "half" else sure + bytes(more)
        middle = len(now) // 2  # written over: a part is new
        return now[:middle] + sure[middle:] if kept == "half" else sure

    def write(self, root: str, here: Path, names: int, kept: str) -> None:
        """Make the folder as it is after the cut."""
        held: dict[str, int] = {}
        folders: set[str] = set()
        for kind, *paths in self.names[:names]:
            if kind == "create":
                held[paths[0]] = paths[1]
            elif kind == "mkdir":
                folders.add(paths[0])
            elif kind == "rmdir":
                folders.discard(paths[0])
            elif kind == "unlink":
                held.pop(paths[0], None)
            elif kind == "link":
                held[paths[1]] = held[paths[0]]
            elif paths[0] in held:
                held[paths[1]] = held.pop(paths[0])
            else:  # a folder got another name
                before, after = paths
                folders = {after + f[len(before) :] if f.startswith(before) else f for f in folders}
                held = {
                    after + p[len(before) :] if p.startswith(before + "/") else p: number
                    for p, number in held.items()
                }
        for path in sorted(folders):
            (here / os.path.relpath(path, root)).mkdir(parents=True, exist_ok=True)
        for path, number in held.items():
            target = here / os.path.relpath(path, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            one = kept
            if kept.startswith("journal"):  # the others' data took longer
                one = "all" if "journal" in path else kept.partition(", ")[2] or "nothing"
            target.write_bytes(self.content(number, one))


def recorded(args: tuple[str, ...], code: int = 0) -> tuple[Layer, Disk]:
    """A run that ends with this code, and the disk before it."""
    layer, disk = Layer(Path()), Disk()
    for here, _, names in os.walk("out"):
        disk.names.append(("mkdir", os.path.join(layer.root, here)))
        for name in names:
            path = os.path.join(here, name)
            layer._next += 1
            layer._inodes[os.stat(path).st_ino] = layer._next
            disk.names.append(("create", os.path.join(layer.root, path), layer._next))
            disk.data[layer._next] = disk.durable[layer._next] = Path(path).read_bytes()
    disk.durable_names = len(disk.names)
    with layer.installed():
        done = run(*args)
    assert done.code == code, done
    return layer, disk


def at_the_end(layer: Layer, disk: Disk) -> None:
    """Make the folder as a power cut right after the run may leave it."""
    for call in layer.calls:
        if call.event is not None:
            disk.change(call.event)
    disk.write(layer.root, Path(), disk.durable_names, "nothing")


def states(layer: Layer, disk: Disk, every: int = 1) -> Iterator[tuple[Disk, int, str]]:
    """Each moment, with each number of names and each state of the data that it may leave."""
    changes = [call.event for call in layer.calls if call.event is not None]
    for moment, event in enumerate(changes):
        disk.change(event)
        if moment % every:
            continue
        for names in sorted({disk.durable_names, len(disk.names)}):
            for kept in KEPT:
                yield disk, names, kept


def check_batch(args: tuple[str, ...], every: int) -> int:
    older = results(Path("out")) if Path("out").exists() else {}
    layer, before = recorded(args)
    expected, count, seen = results(Path("out")), 0, set()
    shutil.rmtree("out")
    for disk, names, kept in states(layer, before, every):
        disk.write(layer.root, Path(), names, kept)
        state = frozenset(contents(Path("out")).items()) if Path("out").exists() else frozenset()
        if state in seen:
            shutil.rmtree("out", ignore_errors=True)
            continue
        seen.add(state)
        count += 1
        what = f"{names} of {len(disk.names)} names, {kept} of the data"
        with pytest.MonkeyPatch.context() as patch:
            owners_die(patch)
            made = {n for n, _ in state if n.endswith(".npy") and ".fusecli" not in n}
            for name in made:  # a name stands for a whole file
                assert Path("out", name).read_bytes() in (expected[name], older.get(name)), what
            done = run(*args)
        assert (done.code, done.err) == (0, ""), (what, done, sorted(n for n, _ in state))
        assert results(Path("out")) == expected, what
        assert left_behind(Path("out")) == [], what
        shutil.rmtree("out")
    return count


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_power_cut_in_a_batch(folder: Path, layout: str) -> None:
    make_pairs(folder, 4)
    assert check_batch((*BATCH, *LAYOUTS[layout]), every=3) > 10


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_power_cut_in_a_batch_that_goes_on(folder: Path, layout: str) -> None:
    make_pairs(folder, 4)
    args = (*BATCH, *LAYOUTS[layout])
    shutil.copytree("texts", "all")
    for path in sorted(Path("texts").rglob("*.npy"))[2:]:
        path.unlink()
    assert run(*args).code == 0
    shutil.rmtree("texts")
    shutil.move("all", "texts")
    assert check_batch(args, every=4) > 5


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_power_cut_in_a_batch_that_begins_anew(folder: Path, layout: str) -> None:
    make_pairs(folder, 4)
    args = (*BATCH, *LAYOUTS[layout])
    assert run(*args).code == 0
    assert check_batch((*args, "--force", "--seed", "9"), every=4) > 5


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_power_cut_at_every_moment_of_a_batch(folder: Path, layout: str) -> None:
    make_pairs(folder, 12)
    assert check_batch((*BATCH, *LAYOUTS[layout]), every=1) > 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_that_says_done_is_on_the_disk(folder: Path, layout: str) -> None:
    """After exit 0 nothing that counts may still be lost."""
    make_pairs(folder, 4)
    args = (*BATCH, *LAYOUTS[layout])
    layer, disk = recorded(args)
    expected, lines = results(Path("out")), journal(Path("out"))
    shutil.rmtree("out")
    at_the_end(layer, disk)
    assert results(Path("out")) == expected
    assert journal(Path("out")) == lines


LARGE_PACK = (*BATCH, "--pack", "--shard-size", "200k")


def make_large_pairs(folder: Path) -> None:
    """Pairs of which few fill a pack that is not copied to make its header shorter."""
    make_pairs(folder, 4)
    for path in Path("texts").rglob("*.npy"):
        np.save(path, np.random.default_rng(len(path.name)).standard_normal((150, 32), np.float32))


def test_large_pack_that_is_done_is_on_the_disk(folder: Path) -> None:
    make_large_pairs(folder)
    layer, disk = recorded(LARGE_PACK)
    assert not any(call.path.endswith(".moved") for call in layer.calls)
    expected, lines = results(Path("out")), journal(Path("out"))
    shutil.rmtree("out")
    at_the_end(layer, disk)
    assert results(Path("out")) == expected
    assert journal(Path("out")) == lines


@pytest.mark.slow
def test_power_cut_in_a_batch_of_a_large_pack(folder: Path) -> None:
    make_large_pairs(folder)
    assert check_batch(LARGE_PACK, every=2) > 10


def test_pack_that_is_closed_is_on_the_disk_before_the_next_begins(folder: Path) -> None:
    """A power cut in a long run costs no more than the pack under way."""
    make_pairs(folder, 12)
    layer, disk = recorded((*BATCH, *LAYOUTS["packs"]))
    packs = sorted(path.name for path in Path("out").glob("fused-*.safetensors"))
    assert len(packs) > 2
    done = 0
    for call in layer.calls:
        if call.event is None:
            continue
        if call.event[0] == "create" and os.path.basename(call.event[1]) in packs[1:]:
            done += 1
            shutil.rmtree("out", ignore_errors=True)
            disk.write(layer.root, Path(), disk.durable_names, "nothing")
            assert set(packs[:done]) <= set(os.listdir("out"))
        disk.change(call.event)
    assert done == len(packs) - 1


def test_shard_that_has_finished_is_so_after_a_power_cut(folder: Path) -> None:
    make_pairs(folder, 4)
    args = (*BATCH, *LAYOUTS["packs"])
    assert run(*args).code == 0
    whole = json.loads(Path("out", INDEX).read_text())["weight_map"]
    shutil.rmtree("out")
    layer, disk = recorded((*args, "--shard", "1/2"))
    shutil.rmtree("out")
    at_the_end(layer, disk)
    assert run(*args, "--shard", "2/2").code == 0
    merged = run("batch", "--merge", "-o", "out")
    assert merged.code == 0
    assert "have not finished" not in merged.err
    merged_map = json.loads(Path("out", INDEX).read_text())["weight_map"]
    assert merged_map.keys() == whole.keys()


def test_journal_has_its_name_on_the_disk_before_its_shard_counts_as_finished(
    folder: Path,
) -> None:
    """Without a journal it would be taken for a shard without pairs; here no pack has been made."""
    make_pairs(folder, 4)
    args = (*BATCH, *LAYOUTS["packs"], "--shard", "1/2")
    assert run(*args).code == 0
    of_the_shard = [line["id"] for line in journal(Path("out"), "journal-1-of-2.jsonl")]
    assert 0 < len(of_the_shard) < 4
    shutil.rmtree("out")
    for id in of_the_shard:
        Path("texts", f"{id}.npy").write_bytes(b"damaged")
    layer, _ = recorded(args, code=3)
    events = [call.event for call in layer.calls if call.event is not None]
    made = {os.path.basename(e[1]): n for n, e in enumerate(events) if e[0] == "create"}
    synced = [n for n, e in enumerate(events) if e == ("fsync", os.path.join(layer.root, "out"))]
    (named,) = (n for name, n in made.items() if name.startswith("journal"))
    (finished,) = (n for name, n in made.items() if "finished" in name)
    assert any(named < n < finished for n in synced)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_that_says_done_is_on_the_disk_of_other_systems(
    folder: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Linux brings a whole file system to the disk in one call."""
    make_pairs(folder, 4)
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="other"))
    monkeypatch.setattr(atomic, "sys", SimpleNamespace(platform="other"))
    layer, disk = recorded((*BATCH, *LAYOUTS[layout]))
    assert all(call.name != "syncfs" for call in layer.calls)
    expected, lines = results(Path("out")), journal(Path("out"))
    shutil.rmtree("out")
    at_the_end(layer, disk)
    assert results(Path("out")) == expected
    assert journal(Path("out")) == lines


@pytest.mark.slow
@pytest.mark.parametrize("older", [False, True])
def test_power_cut_in_a_job(folder: Path, older: bool) -> None:
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.standard_normal((3, 16)).astype(np.float32))
    np.save("text.npy", rng.standard_normal((5, 16)).astype(np.float32))
    args = ("fuse", "image.npy", "text.npy", "-o", "made/o.npy", "--attention", "made/a.npy", "-q")
    args = (*args, "--force")
    os.mkdir("made")
    old = {"o.npy": b"older", "a.npy": b"older"} if older else {}
    for name, data in old.items():
        Path("made", name).write_bytes(data)
    inodes = {name: os.stat(f"made/{name}").st_ino for name in old}
    layer = Layer(Path())
    disk = Disk()
    for name, number in inodes.items():  # they are on the disk already
        layer._next += 1
        layer._inodes[number] = layer._next
        disk.names.append(("create", f"{layer.root}/made/{name}", layer._next))
        disk.data[layer._next] = disk.durable[layer._next] = old[name]
    disk.durable_names = len(disk.names)
    with layer.installed():
        assert run(*args).code == 0
    complete = contents(Path("made"))
    count = 0
    for call in layer.calls:
        if call.event is None:
            continue
        disk.change(call.event)
        for names in sorted({disk.durable_names, len(disk.names)}):
            for kept in KEPT:
                shutil.rmtree("made")
                os.mkdir("made")
                disk.write(layer.root, Path(), names, kept)
                for name in complete:
                    path = Path("made", name)
                    whole = complete[name], old.get(name)
                    assert (path.read_bytes() if path.exists() else None) in whole, (name, kept)
                with pytest.MonkeyPatch.context() as patch:
                    owners_die(patch)
                    assert run(*args).code == 0
                assert contents(Path("made")) == complete
                count += 1
    assert count > 20
