"""An output folder with inputs, links, pipes and files of others in it, and its locks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusecli.batch import run_batch
from fusecli.batch.store import locks
from fusecli.errors import OutputError
from tests.batch.nine_pairs import COUNT, INDEX, RUN, names, options
from tests.batches import DI, DT, make_pairs, outputs, start


@pytest.fixture
def pairs(folder: Path) -> Path:
    make_pairs(folder, COUNT)
    return folder


def test_row_does_not_write_over_the_input_of_another(cli, pairs):
    os.mkdir("out")
    shutil.copy("texts/0/0003.npy", "out/b.npy")
    Path("m.csv").write_text(
        "image,text,output\nimages/0/0000.npy,texts/0/0000.npy,b.npy\n"
        "images/0/0003.npy,out/b.npy,c.npy\n"
    )
    before = Path("out/b.npy").read_bytes()
    done = cli("batch", "--manifest", "m.csv", "-o", "out", "--force")
    assert done.code == 3
    assert "b.npy: is an input of this run, and inputs are never changed" in done.err
    assert "1 done, 1 failed" in done.err
    assert Path("out/b.npy").read_bytes() == before


@pytest.mark.parametrize("link", [os.link, os.symlink, shutil.copy])
def test_input_is_known_by_any_name(cli, pairs, link):
    os.mkdir("out")
    shutil.move("texts/0/0003.npy", "out/b.npy")
    link(os.path.abspath("out/b.npy"), "texts/0/0003.npy")
    Path("m.csv").write_text(
        "image,text,output\nimages/0/0000.npy,texts/0/0000.npy,b.npy\n"
        "images/0/0003.npy,texts/0/0003.npy,c.npy\n"
    )
    done = cli("batch", "--manifest", "m.csv", "-o", "out", "--force")
    if link is shutil.copy:  # another file, which --force may replace
        assert done.code == 0, done.err
        return
    assert done.code == 3
    assert "b.npy: is an input of this run" in done.err
    assert np.load("texts/0/0003.npy").shape[1] == DT


def test_weights_in_the_output_folder_stay(cli, pairs):
    os.mkdir("out")
    widths = ["--dim", str(DT), "--image-dim", str(DI)]
    assert cli("init", "-o", "out/w.safetensors", *widths).code == 0
    before = Path("out/w.safetensors").read_bytes()
    Path("m.csv").write_text(
        "image,text,output\nimages/0/0000.npy,texts/0/0000.npy,w.safetensors\n"
        "images/0/0003.npy,texts/0/0003.npy,c.npy\n"
    )
    run = ["batch", "--manifest", "m.csv", "-o", "out", "--weights", "out/w.safetensors", "--force"]
    assert cli(*run).code == 3
    assert Path("out/w.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["journal.jsonl", "run.json", "fused.safetensors.index.json"])
@pytest.mark.parametrize("hard", [False, True])
def test_manifest_called_as_a_record_is_not_touched(cli, pairs, name, hard):
    os.mkdir("out")
    rows = [{"id": n, "image": f"../images/{n}.npy", "text": f"../texts/{n}.npy"} for n in names()]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    manifest = "out/m.jsonl" if hard or not name.endswith("l") else f"out/{name}"
    Path(manifest).write_text(text)
    if not Path("out", name).exists():
        os.link(manifest, f"out/{name}")
    done = cli("batch", "--manifest", manifest, "-o", "out", "--force", "--pack")
    assert done.code == 1
    assert f"out/{name}: is an input of this run" in done.err
    assert done.err.count("\n") == 1
    assert Path(manifest).read_text() == text


def test_force_removes_no_file_of_others(cli, pairs):
    assert cli(*RUN, "--pack").code == 0
    mine = ["journal-2024.jsonl", "fused-00009.safetensors", "fused-1.safetensors", "journal.txt"]
    for name in mine:
        Path("out", name).write_text("mine")
    assert cli(*RUN, "--pack", "--force").code == 0
    assert all(Path("out", name).read_text() == "mine" for name in mine)
    # Their names are not taken by this run's packs.
    index = json.loads(Path(INDEX).read_text())
    assert set(index["weight_map"].values()) == {"fused-00010.safetensors"}


@pytest.mark.parametrize("name", ["journal.jsonl", "run.json", "fused.safetensors.index.json"])
def test_file_of_others_with_a_name_of_ours_is_not_replaced(cli, pairs, name):
    os.mkdir("out")
    Path("out", name).write_text('{"mine": 1}\n')
    done = cli(*RUN, "--force", "--pack")
    assert done.code == 1
    assert f"out/{name}: was written by no run of `fusecli batch`" in done.err
    assert Path("out", name).read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("pack", [[], ["--pack"]])
@pytest.mark.parametrize(
    "planted",
    [".fusecli", ".fusecli/lock", ".fusecli/staging", "journal.jsonl", "run.json"],
)
def test_planted_link_is_refused_and_nothing_is_written_through_it(cli, pairs, planted, pack):
    assert cli(*RUN, *pack).code == 0
    os.makedirs("elsewhere/sub")
    Path("elsewhere/file").write_text("mine")
    Path("elsewhere/1").write_text("mine")
    here = Path("out", planted)
    if here.is_dir():
        shutil.rmtree(here)
    elif here.exists():
        here.unlink()
    folder = planted in (".fusecli", ".fusecli/staging")
    here.symlink_to(Path("elsewhere" if folder else "elsewhere/file").absolute())
    np.save("texts/0/0000.npy", np.ones((2, DT), np.float32))
    for more in ([], ["--force"]):
        done = cli(*RUN, *pack, *more)
        if planted in ("journal.jsonl", "run.json") and more and done.code == 0:
            assert not here.is_symlink()  # replaced itself, not what it leads to
        else:
            assert done.code == 1, done.err
            assert done.err.endswith((": remove it\n", ", or move it\n"))
            assert done.err.count("\n") == 1
        assert Path("elsewhere/file").read_text() == Path("elsewhere/1").read_text() == "mine"
        assert sorted(os.listdir("elsewhere")) == ["1", "file", "sub"]


def test_result_folder_that_is_a_link_fails_its_pairs_alone(cli, pairs):
    os.makedirs("elsewhere")
    os.mkdir("out")
    os.symlink("../elsewhere", "out/1")
    done = cli(*RUN, "--force")
    assert done.code == 3
    assert "out/1: is a link" in done.err
    assert "6 done, 3 failed" in done.err
    assert os.listdir("elsewhere") == []


def test_staged_pack_that_is_a_link_is_refused(cli, pairs):
    np.save("texts/2/0008.npy", np.zeros((1, 3)))
    assert cli(*RUN, "--pack", "--on-error", "stop").code == 1
    staged = Path("out/.fusecli/staging/fused-00001.safetensors")
    if not staged.exists():
        staged.parent.mkdir(exist_ok=True)
    else:
        staged.unlink()
    Path("victim").write_bytes(b"x" * 9000)
    staged.symlink_to(Path("victim").absolute())
    if Path("out/fused-00001.safetensors").exists():
        Path("out/fused-00001.safetensors").unlink()
    done = cli(*RUN, "--pack")
    assert done.code == 1
    assert "is a link" in done.err
    assert Path("victim").read_bytes() == b"x" * 9000


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl", "fused-00001.safetensors"])
def test_pipe_in_place_of_a_file_does_not_block(cli, pairs, name):
    assert cli(*RUN, "--pack").code == 0
    os.unlink(f"out/{name}")
    os.mkfifo(f"out/{name}")
    done = cli(*RUN, "--pack")  # the fixture ends what hangs
    if name.startswith("fused"):
        assert done.code == 0, done.err
        assert f"{COUNT} done" in done.err
    else:
        assert done.code == 1
        assert f"out/{name}: is no regular file" in done.err
        assert done.err.count("\n") == 1


def test_folder_in_place_of_a_result_fails_that_pair_alone(cli, pairs):
    os.makedirs("out/0/0003.npy")
    done = cli(*RUN, "--force")
    assert done.code == 3
    assert "out/0/0003.npy: is a folder; the result needs this name" in done.err
    assert f"{COUNT - 1} done, 1 failed" in done.err


@pytest.mark.slow
def test_refused_run_leaves_the_lock_to_its_holder(pairs):
    held = """
import time
from fusecli.batch import run
quick = run.resolve
def slow(*given):
    made = quick(*given)
    return made
run.resolve = slow
from fusecli.batch import worker as work
quick_work = work.Fuser.work
def waiting(*given):
    while not os.path.exists("go"):
        time.sleep(0.01)
    return quick_work(*given)
work.Fuser.work = waiting
"""
    first = start(["images", "texts", "-o", "out"], held)
    while not Path("out/journal.jsonl").exists():
        assert first.poll() is None
    inode = os.stat("out/.fusecli/lock").st_ino
    for more in ([], ["--force"]):
        second = start(["images", "texts", "-o", "out", *more])
        _, said = second.communicate(timeout=60)
        assert said == b"error: out: another run is working in this folder: wait for it\n"
        assert os.stat("out/.fusecli/lock").st_ino == inode
    Path("go").touch()
    _, said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert len(outputs(Path("out"))) == COUNT


def test_file_system_without_locks_is_one_line(pairs, monkeypatch):
    def no_locks(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.raises(OutputError, match="cannot be locked, its file system has no locks"):
        run_batch(options())


def test_system_without_flock_is_one_line_and_imports(pairs):
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from fusecli.cli.main import main\n"
        "main(['batch', 'images', 'texts', '-o', 'out'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: fusecli batch needs a POSIX system")
    assert done.stderr.count("\n") == 1
    assert not Path("out").exists()
