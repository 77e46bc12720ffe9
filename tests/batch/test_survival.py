"""`fusecli batch` under everything that ends a run early, and what is there afterwards."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from fusecli.batch import BatchOptions, run_batch
from fusecli.batch.pair_inputs import PairReader
from fusecli.errors import OutputError
from fusecli.pairs.open import PairOptions
from tests.batches import DI, DT, journal, left_behind, make_pairs, outputs, start
from tests.conftest import without_privileges

COUNT = 240
LAYOUTS = {"files": [], "packs": ["--pack", "--shard-size", "20k"]}
# Every window takes this long, so that there is time to stop in the middle.
SLOW = """
import time
from fusecli.batch import worker as work
quick = work.Fuser.work
work.Fuser.work = lambda *given: time.sleep(0.03) or quick(*given)
"""


# No window is worked on before a file is there.
HELD = """
import time
from fusecli.batch import worker as work
quick = work.Fuser.work

def held(*given):
    while not os.path.exists("go"):
        time.sleep(0.01)
    return quick(*given)

work.Fuser.work = held
"""


@pytest.fixture
def pairs(folder: Path) -> Path:
    make_pairs(folder, COUNT)
    return folder


def arguments(layout: str, output: str = "out") -> list[str]:
    return ["images", "texts", "-o", output, *LAYOUTS[layout]]


def expected(layout: str) -> dict[str, bytes]:
    """What an uninterrupted run leaves."""
    done = start(arguments(layout, "whole"))
    _, said = done.communicate(timeout=50)
    assert done.returncode == 0, said
    return outputs(Path("whole"))


def complete(layout: str) -> bytes:
    """Run to the end; gives what was said."""
    done = start(arguments(layout))
    _, said = done.communicate(timeout=50)
    assert done.returncode == 0, said
    assert left_behind(Path("out")) == []
    return said


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_kills_at_random_moments_change_nothing(pairs, layout):
    whole = expected(layout)
    chance = random.Random(layout)
    out = Path("out")
    killed = most = 0
    for turn in range(20):
        before = size_of(out / "journal.jsonl")
        run = start(arguments(layout), "pause = 5e-4")
        # One in five at any moment from the first import on, the others while it works.
        while turn % 5 and run.poll() is None and size_of(out / "journal.jsonl") <= before:
            time.sleep(0.005)
        try:
            run.wait(chance.uniform(0, 0.4))
        except subprocess.TimeoutExpired:
            run.kill()
            killed += 1
        run.communicate()
        there = outputs(out) if out.exists() else {}
        for name, content in there.items():
            assert content == whole[name], name
        most = max(most, len(there))
        if len(there) == len(whole):
            shutil.rmtree(out)  # begin again, to be killed again
    assert killed >= 8
    assert most
    complete(layout)
    assert outputs(out) == whole


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_it_goes_on(pairs, layout, number):
    whole = expected(layout)
    run = start(arguments(layout), SLOW)
    until = time.monotonic() + 30
    while not (Path("out/journal.jsonl").exists() and journal_lines()):
        assert time.monotonic() < until
        time.sleep(0.01)
    run.send_signal(number)
    out, said = run.communicate(timeout=30)
    assert run.returncode == 128 + number
    assert out == b""
    assert b"Traceback" not in said
    assert b"error" not in said
    done = journal_lines()
    assert 0 < done < COUNT
    told = f"stopped after {done:,} of {COUNT:,} pairs; the same command goes on from there\n"
    assert said.decode().endswith(told)
    # A pack under way stays, to be gone on with.
    assert len(left_behind(Path("out"))) <= (2 if layout == "packs" else 0)
    assert f", {done:,} skipped".encode() in complete(layout)
    assert outputs(Path("out")) == whole


def journal_lines() -> int:
    return Path("out/journal.jsonl").read_bytes().count(b"\n")


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "limit"), [("files", 1300), ("files", 9000), ("packs", 9000)])
def test_a_limit_on_files_is_one_line_and_goes_away(pairs, layout, limit):
    """A result outgrows it, the journal does, or a pack."""
    whole = expected(layout)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = start(arguments(layout), preexec_fn=limited)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 1
    errors = [line for line in said.splitlines() if line.startswith(b"error: ")]
    assert len(errors) == 1
    assert b"cannot be written: File too large" in errors[0]
    assert b"Traceback" not in said
    assert all(whole[name] == content for name, content in outputs(Path("out")).items())
    complete(layout)
    assert outputs(Path("out")) == whole


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 400 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_is_one_line_and_leaves_nothing_partial(pairs, layout, small_disk):
    whole = expected(layout)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 250_000)
    os.symlink(small_disk, "out")
    options = [*arguments(layout), "--force"]
    run = start(options)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 1
    assert said.count(b"error: ") == 1
    assert b"No space left on device: free space and run the same command again\n" in said
    found = outputs(Path("out"))
    del found["filler"]
    assert all(whole[name] == content for name, content in found.items())
    filler.unlink()
    os.unlink("out")
    shutil.copytree(small_disk, "out")
    complete(layout)
    assert outputs(Path("out")) == whole


@pytest.mark.slow
def test_a_read_only_folder_is_one_line(pairs):
    os.mkdir("out")
    os.chmod("out", 0o555)
    run = start(arguments("files"), preexec_fn=without_privileges)
    out, said = run.communicate(timeout=30)
    os.chmod("out", 0o755)
    assert (run.returncode, out) == (1, b"")
    assert said == b"error: out/.fusecli: cannot be written: Permission denied\n"
    assert os.listdir("out") == []


@pytest.mark.slow
def test_a_folder_inside_that_cannot_be_written_is_one_line(pairs):
    os.makedirs("out/1")
    os.chmod("out/1", 0o555)
    run = start([*arguments("files"), "--force"], preexec_fn=without_privileges)
    _, said = run.communicate(timeout=30)
    os.chmod("out/1", 0o755)
    assert run.returncode == 1
    assert b"cannot be written: Permission denied" in said
    assert b"Traceback" not in said
    assert left_behind(Path("out")) == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_run_in_the_same_folder_is_refused(pairs, layout):
    first = start(arguments(layout), HELD)
    until = time.monotonic() + 30
    while not Path("out/journal.jsonl").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    second = start(arguments(layout))
    _, said = second.communicate(timeout=30)
    assert second.returncode == 1
    assert said == b"error: out: another run is working in this folder: wait for it\n"
    Path("go").touch()
    _, said = first.communicate(timeout=50)
    assert first.returncode == 0, said
    assert outputs(Path("out")) == expected(layout)


@pytest.mark.slow
def test_shards_run_at_once_and_the_same_one_only_once(pairs):
    first = start([*arguments("packs"), "--shard", "1/2"], HELD)
    until = time.monotonic() + 30
    while not Path("out/journal-1-of-2.jsonl").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    same = start([*arguments("packs"), "--shard", "1/2"])
    other = start([*arguments("packs"), "--shard", "2/2"], HELD)
    all_of_it = start(arguments("packs"))
    _, said = same.communicate(timeout=30)
    assert same.returncode == 1
    assert b"out/journal-1-of-2.jsonl: another run is writing it" in said
    _, said = all_of_it.communicate(timeout=30)
    assert all_of_it.returncode == 1
    assert b"another run is working in this folder" in said
    assert not Path("out/fused.safetensors.index.json").exists()
    Path("go").touch()
    for run in (first, other):
        _, said = run.communicate(timeout=50)
        assert run.returncode == 0, said
    assert Path("out/fused.safetensors.index.json").exists()
    done = [line["id"] for i in (1, 2) for line in journal(Path("out"), f"journal-{i}-of-2.jsonl")]
    assert len(done) == len(set(done)) == COUNT


@pytest.mark.slow
def test_many_shards_that_begin_at_the_same_moment_settle_on_one_run(pairs):
    runs = [start([*arguments("files"), "--shard", f"{i}/4"]) for i in (1, 2, 3, 4)]
    for run in runs:
        _, said = run.communicate(timeout=50)
        assert run.returncode == 0, said
    assert outputs(Path("out")) == expected("files")


def options() -> BatchOptions:
    return BatchOptions(PairOptions("images", "texts"), "out")


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_an_input_that_is_replaced_while_it_is_read_is_read_again(pairs, monkeypatch, times):
    new = np.full((7, DT), 0.5, np.float32)
    read = PairReader.read
    left = times

    def read_and_replace(self, pair):
        nonlocal left
        features = read(self, pair)
        if pair.id == "2/0011" and left:
            left -= 1
            np.save("new.npy", new + left)
            os.replace("new.npy", pair.text.file)
        return features

    with monkeypatch.context() as patched:
        patched.setattr(PairReader, "read", read_and_replace)
        summary = run_batch(options())
    if times == 2:
        assert summary.failures == [
            ("2/0011", "images/2/0011.npy or texts/2/0011.npy: changed while it was read")
        ]
        assert not Path("out/2/0011.npy").exists()
        return
    assert summary.failed == 0
    run_batch(BatchOptions(PairOptions("images", "texts"), "again"))
    assert outputs(Path("out")) == outputs(Path("again"))
    assert len(np.load("out/2/0011.npy")) == 7


@pytest.mark.slow
def test_an_input_that_is_replaced_after_it_was_read_is_noticed_by_the_next_run(pairs, monkeypatch):
    read = PairReader.read

    def replace_another(self, pair):
        if pair.id == "2/0200":
            np.save("images/0/0000.npy", np.full((3, DI), 0.5, np.float32))
        return read(self, pair)

    with monkeypatch.context() as patched:
        patched.setattr(PairReader, "read", replace_another)
        assert run_batch(options()).done == COUNT
    summary = run_batch(options())
    assert (summary.done, summary.changed, summary.skipped) == (1, 1, COUNT - 1)


@pytest.mark.slow
def test_one_corrupt_input_among_a_thousand(folder):
    make_pairs(folder, 1000)
    run_batch(options())
    clean = outputs(Path("out"))
    shutil.rmtree("out")
    bad = Path("texts/2/0500.npy")
    bad.write_bytes(bad.read_bytes()[:150])
    summary = run_batch(options())
    assert (summary.done, summary.failed) == (999, 1)
    assert summary.failures[0][0] == "2/0500"
    assert "texts/2/0500.npy: is cut short" in summary.failures[0][1]
    del clean["2/0500.npy"]
    assert outputs(Path("out")) == clean


@pytest.mark.slow
def test_an_error_of_the_disk_while_results_are_brought_to_it_stops_the_run(pairs, monkeypatch):
    from fusecli.batch.store import files

    def fail(folder, staged):
        raise OSError(5, "Input/output error", folder)

    monkeypatch.setattr(files, "bring_to_disk", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        run_batch(options())
    assert outputs(Path("out")) == {}
    assert journal(Path("out")) == []
    assert left_behind(Path("out")) == []
