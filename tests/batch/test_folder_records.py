"""What the folder's records hold: packs, sources of results, failures, the order of writes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from safetensors.numpy import load_file

from fusecli.batch import BatchOptions, Shard, run_batch
from fusecli.batch.store import safe_folder
from fusecli.batch.store.run_record import RunRecord, _option, spec_of
from fusecli.batch.tuning import Tuning
from fusecli.batch.worker import Fuser
from fusecli.errors import FuseError, OutputError
from tests.batch.nine_pairs import COUNT, INDEX, RUN, names, options
from tests.batches import DI, DT, journal, make_pairs, outputs


@pytest.fixture
def pairs(folder: Path) -> Path:
    make_pairs(folder, COUNT)
    return folder


def test_name_that_is_not_utf_8_fails_alone_in_a_pack_and_has_a_file(cli, pairs):
    for side in ("images", "texts"):
        os.rename(f"{side}/0/0000.npy", os.fsencode(f"{side}/0/caf") + b"\xe9.npy")
    done = cli(*RUN, "--pack")
    assert done.code == 3
    assert "is not Unicode text, and keys of a safetensors file are" in done.err
    assert f"{COUNT - 1} done, 1 failed" in done.err
    assert len(load_file("out/fused-00001.safetensors")) == COUNT - 1
    assert cli("batch", "images", "texts", "-o", "files").code == 0


def test_pack_whose_header_does_not_come_back_gets_no_name(pairs, monkeypatch):
    def lossy(descriptor: int, buffers: list[bytes]) -> int:
        data = b"".join(buffers)
        os.write(descriptor, data.replace(b"F32", b"F16") if b"__metadata__" in data else data)
        return len(data)

    with pytest.raises(OutputError, match="header was not read back as it was written"):
        run_batch(options(pack=True), tuning=Tuning(write_all=lossy))
    assert not list(Path("out").glob("fused-*"))


def interrupt_at(id: str, o: BatchOptions) -> None:
    """Run until a pair has its turn."""
    work = Fuser.work

    def stopping(self: Fuser, pairs: list, *more: object) -> list:
        if any(pair.id == id for pair in pairs):
            raise KeyboardInterrupt
        return work(self, pairs, *more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Fuser, "work", stopping)
        tuning = Tuning(window_pairs=1, commit_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            run_batch(o, tuning=tuning)


@pytest.mark.parametrize("damage", ["torn", "doubled", "gone", "swapped"])
def test_damage_in_the_journal_of_a_pack_under_way_is_seen(pairs, damage):
    run_batch(options("whole", pack=True))
    whole = Path("whole/fused-00001.safetensors").read_bytes()
    interrupt_at("2/0008", options(pack=True))
    assert len(journal(Path("out"))) == COUNT - 1
    path = Path("out/journal.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "torn":
        lines[3] = lines[3][:20] + b"\n"
    elif damage == "doubled":
        lines.insert(3, lines[2])
    elif damage == "gone":
        del lines[3]
    else:
        lines[2], lines[3] = lines[3], lines[2]
    path.write_bytes(b"".join(lines))
    run_batch(options(pack=True))
    assert Path("out/fused-00001.safetensors").read_bytes() == whole
    assert run_batch(options(pack=True)).skipped == COUNT


@pytest.mark.slow
def test_merge_counts_what_is_finished_and_names_the_rest(cli, pairs):
    ids = {}
    for index in (1, 2, 3):
        assert cli(*RUN, "--pack", "--shard", f"{index}/3").code == 0
        ids[index] = [line["id"] for line in journal(pairs / "out", f"journal-{index}-of-3.jsonl")]
    shutil.rmtree("out")
    stopped, finished, missing = sorted(ids, key=lambda index: -len(ids[index]))
    assert len(ids[stopped]) > 1
    assert cli(*RUN, "--pack", "--shard", f"{finished}/3").code == 0
    interrupt_at(ids[stopped][-1], options(pack=True, shard=Shard(stopped, 3)))
    done = cli("batch", "--merge", "-o", "out", "--json")
    assert done.code == 0
    assert json.loads(done.out)["skipped"] == len(ids[finished])
    assert set(json.loads(Path(INDEX).read_text())["weight_map"]) == set(ids[finished])
    first, second = sorted((stopped, missing))
    assert f"2 of 3 shards have not finished: {first}/3, {second}/3; " in done.err
    assert f"{len(ids[stopped]) - 1} results that the journals name are not finished" in done.err


def test_counter_and_not_the_time_of_the_files_decides(cli, pairs):
    for index in (1, 2):
        assert cli(*RUN, "--pack", "--shard", f"{index}/2").code == 0
    np.save("texts/1/0001.npy", np.ones((3, DT), np.float32))
    assert cli(*RUN, "--pack").code == 0
    os.utime("out/journal.jsonl", ns=(1, 1))  # as a copy may have it
    assert cli("batch", "--merge", "-o", "out").code == 0
    pack = json.loads(Path(INDEX).read_text())["weight_map"]["1/0001"]
    assert load_file(f"out/{pack}")["1/0001"].shape == (3, DT)


def test_chaining_uses_what_the_index_names(cli, pairs):
    run = ["--pack", "--shard-size", "4k"]
    assert cli(*RUN, *run).code == 0
    np.save("texts/1/0001.npy", np.ones((3, DT), np.float32))  # made again
    Path("images/2/0002.npy").write_bytes(b"")  # withdrawn
    assert cli(*RUN, *run).code == 3
    texts = {name: np.load(f"texts/{name}.npy") for name in names()}
    from safetensors.numpy import save_file

    save_file(texts, "texts.safetensors")
    done = cli("batch", "out", "texts.safetensors", "-o", "chained")
    assert done.code == 0, done.err
    assert "2 tensors of out and texts.safetensors not used: the index does not" in done.err
    left = {f"{name}.npy" for name in names()} - {"2/0002.npy"}
    assert set(outputs(Path("chained"))) == left
    assert np.load("chained/1/0001.npy").shape == (3, DT)


def test_same_id_from_another_source_is_done_again(cli, pairs):
    assert cli(*RUN).code == 0
    shutil.copytree("texts", "other")
    for path in Path("other").rglob("*.npy"):
        status = path.stat()
        np.save(path, np.load(path) + 1)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    for path in Path("texts").rglob("*.npy"):
        twin = Path("other", path.relative_to("texts"))
        os.utime(twin, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
    done = cli("batch", "images", "other", "-o", "out")
    assert f"{COUNT} done, {COUNT} of them again because their inputs changed" in done.err
    assert cli("batch", "images", "other", "-o", "new").code == 0
    assert outputs(Path("out")) == outputs(Path("new"))


def test_same_content_under_another_name_is_not_done_again(cli, pairs):
    assert cli(*RUN).code == 0
    os.rename("texts", "moved")
    assert f"0 done, {COUNT} skipped" in cli("batch", "images", "moved", "-o", "out").err
    os.symlink("moved", "link")
    assert f"0 done, {COUNT} skipped" in cli("batch", "images", "link", "-o", "out").err


def test_verify_finds_what_size_and_time_do_not_tell(cli, pairs):
    assert cli(*RUN).code == 0
    path = Path("texts/1/0001.npy")
    status = path.stat()
    np.save(path, np.load(path) * 2)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert f"0 done, {COUNT} skipped" in cli(*RUN).err
    done = cli(*RUN, "--verify")
    assert f"1 done, 1 of them again because their inputs changed, {COUNT - 1} skipped" in done.err
    assert f"0 done, {COUNT} skipped" in cli(*RUN, "--verify").err


@pytest.mark.slow
@pytest.mark.parametrize("pack", [[], ["--pack"]])
def test_results_of_removed_inputs_are_told_and_pruned(cli, pairs, pack):
    assert cli(*RUN, *pack).code == 0
    os.unlink("images/1/0004.npy")
    done = cli(*RUN, *pack)
    assert "1 result is of inputs that are not there any more: --prune removes it" in done.err
    assert "--prune removes" in cli(*RUN, *pack).err
    done = cli(*RUN, *pack, "--prune", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["pruned"] == 1
    if pack:
        assert set(json.loads(Path(INDEX).read_text())["weight_map"]) == set(names()) - {"1/0004"}
    else:
        assert not Path("out/1/0004.npy").exists()
    assert "any more" not in cli(*RUN, *pack).err


def test_weights_that_are_replaced_meanwhile_are_not_used(pairs, cli, monkeypatch):
    widths = ["--dim", str(DT), "--image-dim", str(DI), "--seed"]
    for name, seed in (("w", "1"), ("other", "2")):
        assert cli("init", "-o", f"{name}.safetensors", *widths, seed).code == 0
    run_batch(options("expected", weights="w.safetensors"))
    work = Fuser.work

    def replacing(self: Fuser, *given: object) -> object:
        if os.path.exists("other.safetensors"):
            os.replace("other.safetensors", "w.safetensors")
        return work(self, *given)

    monkeypatch.setattr(Fuser, "work", replacing)
    run_batch(options(weights="w.safetensors"))
    assert outputs(Path("out")) == outputs(Path("expected"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_read_that_fails_fails_its_pair_alone(pairs, monkeypatch, number):
    from fusecli.batch.pair_inputs import PairChecks

    read = PairChecks.read

    def failing(self: PairChecks, pair: object) -> object:
        if pair.id == "1/0004":
            raise OSError(number, os.strerror(number), pair.text.file)
        return read(self, pair)

    monkeypatch.setattr(PairChecks, "read", failing)
    summary = run_batch(options())
    assert (summary.done, summary.failed) == (COUNT - 1, 1)
    why = f"texts/1/0004.npy: cannot be read: {os.strerror(number)}"
    assert summary.failures == [("1/0004", why)]


def test_pair_too_large_for_memory_fails_alone_before_it_is_computed(pairs, monkeypatch):
    from fusecli.batch import pair_features

    np.save("images/1/0004.npy", np.ones((400, DI), np.float32))
    np.save("texts/1/0004.npy", np.ones((400, DT), np.float32) * np.arange(1, DT + 1))
    monkeypatch.setattr(pair_features, "bytes_left", lambda: 1 << 20)
    fused: list[int] = []
    fuse_group = Fuser._fuse_group

    def noted(self: Fuser, T: int, group: list) -> list:
        fused.append(T)
        return fuse_group(self, T, group)

    monkeypatch.setattr(Fuser, "_fuse_group", noted)
    summary = run_batch(options(), tuning=Tuning(large_pair_bytes=1 << 20))
    assert (summary.done, summary.failed) == (COUNT - 1, 1)
    ((id, why),) = summary.failures
    assert id == "1/0004"
    assert "400 image tokens and 400 text tokens take at least" in why
    assert 400 not in fused


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_pair_that_finds_no_memory_fails_alone(pairs, monkeypatch, error):
    fuse_group = Fuser._fuse_group

    def failing(self: Fuser, T: int, group: list) -> list:
        if any(len(features.image) == 9 for features in group):
            raise error
        return fuse_group(self, T, group)

    monkeypatch.setattr(Fuser, "_fuse_group", failing)
    summary = run_batch(options())
    assert (summary.done, summary.failed) == (6, 3)
    assert all("takes more memory than there is" in why for _, why in summary.failures)


def test_strict_fails_pairs_with_a_diagnosis_and_those_of_an_earlier_run(cli, pairs):
    # Of this width attention is not uniform, which would speak against the whole run.
    run = [*RUN, "--dim", "16", "--heads", "4"]
    assert cli(*run).code == 0
    told = {line["id"]: line.get("diagnoses", []) for line in journal(Path("out"))}
    one_token = {name for index, name in enumerate(names()) if index % 3 == 0}
    told_so = {id for id, d in told.items() if any(t.startswith("one-image-token: ") for t in d)}
    assert told_so == one_token
    diagnosed = {id for id, diagnoses in told.items() if diagnoses}
    done = cli(*run, "--strict")
    assert done.code == 3
    assert f"0 done, {COUNT - len(diagnosed)} skipped, {len(diagnosed)} failed" in done.err
    assert sorted(outputs(Path("out"))) == sorted(f"{n}.npy" for n in set(names()) - diagnosed)


def test_window_ends_after_a_while_and_a_signal_throws_nothing_away(pairs, monkeypatch):
    from fusecli.batch.pair_inputs import PairChecks

    read, seen = PairChecks.read, []

    def counting(self: PairChecks, pair: object) -> object:
        seen.append(pair.id)
        return read(self, pair)

    monkeypatch.setattr(PairChecks, "read", counting)
    tuning = Tuning(window_seconds=0.0)
    whole = run_batch(options("whole"), tuning=tuning)
    # Before the work, the first few pairs are read to see how uniform attention is.
    assert (whole.done, sorted(seen[-COUNT:])) == (COUNT, names_in_order())

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(options(), progress=stop, tuning=tuning)
    written = [line["id"] for line in journal(Path("out"))]
    assert written
    assert written == names_in_order()[: len(written)]
    assert run_batch(options(), tuning=tuning).skipped == len(written)
    assert outputs(Path("out")) == outputs(Path("whole"))


def names_in_order() -> list[str]:
    return sorted(names())


@pytest.mark.parametrize("layout", ["files", "packs"])
def test_data_then_name_then_journal(pairs, monkeypatch, layout):
    from fusecli.batch.store import files
    from fusecli.batch.store.journal import Journal
    from fusecli.batch.store.open_pack import OpenPack

    calls: list[str] = []

    def recorded(owner: object, name: str, label: str) -> None:
        real = getattr(owner, name)

        def call(*given: object, **named: object) -> object:
            calls.append(label)
            return real(*given, **named)

        monkeypatch.setattr(owner, name, call)

    recorded(files, "bring_to_disk", "data")
    recorded(OpenPack, "sync", "data")
    recorded(safe_folder.SafeFolder, "move", "name")
    recorded(safe_folder.SafeFolder, "move_to_new", "name")
    recorded(safe_folder.SafeFolder, "sync", "names")
    recorded(Journal, "append", "journal")
    recorded(Journal, "sync", "journal synced")
    recorded(os, "fsync", "fsync")
    run_batch(options(pack=layout == "packs"), tuning=Tuning(commit_seconds=100))
    journaled = calls.index("journal")
    assert calls.index("data") < journaled
    synced = len(calls) - 1 - calls[::-1].index("journal synced")
    assert "fsync" in calls[synced : synced + 2]
    for index, call in enumerate(calls):
        # What brings names to the disk, and the numbers of a pack under way, asks the system to.
        if call == "names" or (call == "data" and layout == "packs"):
            assert calls[index + 1] == "fsync"
    if layout == "files":
        assert calls.index("data") < calls.index("name") < journaled < synced
        assert calls.count("name") == COUNT
        # On Linux one call brings a whole file system to the disk, names too.
        assert ("data" if sys.platform == "linux" else "names") in calls[journaled:synced]
    else:
        assert "fsync" in calls[: calls.index("name")]
        assert calls.index("data") < journaled < calls.index("name")
        assert "names" in calls[calls.index("name") :]


def test_run_that_cannot_begin_makes_nothing(pairs):
    with pytest.raises(FuseError):
        run_batch(options(weights="none.safetensors"))
    assert not Path("out").exists()
    os.mkdir("out")
    with pytest.raises(FuseError):
        run_batch(options(weights="none.safetensors"))
    assert os.listdir("out") == []


@pytest.mark.parametrize("pack", [(), ("--pack",)])
def test_shards_of_runs_with_other_options_copied_together_are_refused(cli, pairs, pack):
    """Such as two shards of two weights, computed apart: one index of both would be no result."""
    shared = ("batch", "images", "texts", "-q", *pack)
    assert cli(*shared, "-o", "whole", "--shard", "1/2").code == 0
    assert cli(*shared, "-o", "whole", "--shard", "2/2").code == 0
    expected = outputs(Path("whole"))
    assert cli(*shared, "-o", "out", "--shard", "1/2").code == 0
    assert cli(*shared, "-o", "other", "--shard", "2/2", "--seed", "5").code == 0
    for path in Path("other").rglob("*"):
        target = Path("out", path.relative_to("other"))
        if path.is_file() and not target.exists():
            target.parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(path, target)
    merged = cli("batch", "--merge", "-o", "out")
    said = "journal-2-of-2.jsonl: 3 lines of a run with other options than run.json says"
    assert said in merged.err
    assert "run fusecli batch with them again" in merged.err
    assert "this run" not in merged.err
    assert "0 done, 6 skipped" in merged.err
    if pack:
        assert len(json.loads(Path(INDEX).read_text())["weight_map"]) == 6
    again = cli(*[a for a in shared if a != "-q"], "-o", "out", "--shard", "2/2")
    assert again.code == 0
    assert said in again.err
    assert "this run fuses them again if they are its own" in again.err
    assert "3 done" in again.err
    if pack:
        assert len(json.loads(Path(INDEX).read_text())["weight_map"]) == 9
    else:
        assert outputs(Path("out")) == expected
    done = cli(*[a for a in shared if a != "-q"], "-o", "out")
    assert "0 done, 9 skipped" in done.err
    # What has been done again since is no reason to warn in every later run.
    assert "other options" not in done.err + cli("batch", "--merge", "-o", "out").err


def test_what_differs_from_an_earlier_run_is_named_by_options_that_there_are(cli):
    there = set(re.findall(r"--[a-z][a-z-]*", cli("batch", "--help").out))
    parts = get_type_hints(RunRecord)
    names = [
        f"{part}.{field.name}"
        for part, kind in parts.items()
        if is_dataclass(kind)
        for field in fields(kind)
    ]
    assert len(names) > 30
    said = {name: _option(name) for name in names}
    assert [o for o in said.values() if o.startswith("--") and o.split()[0] not in there] == []
    assert said["module.text_dim"] == "width of the text features"
    assert said["module.embed_dim"] == "--dim"


def test_shards_of_machines_with_other_core_counts_are_one_run(cli, pairs):
    shared = ("batch", "images", "texts", "-o", "out")
    assert cli(*shared).code == 0
    path = Path("out/run.json")
    record = json.loads(path.read_text())
    spec = spec_of(path.read_bytes())
    record["chosen_for"]["N"] -= 1
    record["computing"]["threads"] = 12345
    path.write_text(json.dumps(record))
    assert spec_of(path.read_bytes()) == spec
    done = cli("batch", "--merge", "-o", "out")
    assert "other options" not in done.err
    assert "0 done, 9 skipped" in done.err
    record["result"]["direction"] = "both"
    assert spec_of(json.dumps(record).encode()) != spec
