"""A batch on Ray: the same bytes as the plain run, whatever happens to the workers."""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli import ImageTextFusion, __version__, save_module
from fusecli.batch import BatchOptions, RayOptions
from fusecli.batch.ray import actor
from fusecli.batch.ray import pool as on_ray
from fusecli.batch.ray.cluster import worker_count
from fusecli.batch.resolve import resolve
from fusecli.batch.worker import Fuser, Result
from fusecli.cli.main import _with_values
from fusecli.errors import FuseError, RayError, UsageError
from fusecli.pairs.open import Pair, PairOptions, Place, open_pairs

CLUSTER = Path(__file__).parents[1] / "ray_cluster.py"
UNTRAINED = "note: no --weights"


# ------------------------------------------------------------- real clusters, real processes


@dataclass
class Session:
    """Ray's processes of one test, known by a variable in their environment."""

    env: dict[str, str]
    process: subprocess.Popen[str] | None = None
    address: str = ""

    def processes(self, title: str = "") -> list[int]:
        """Those whose command line begins so."""
        mark = f"FUSECLI_TEST_SESSION={self.env['FUSECLI_TEST_SESSION']}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and (entry / "cmdline").read_bytes().startswith(title.encode())
                    and mark in (entry / "environ").read_bytes().split(b"\0")
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def start(self, *args: str) -> subprocess.Popen[str]:
        """The command line, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "fusecli", *args],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the command line."""
        with self.start(*args) as running:
            out, err = running.communicate(timeout=100)
        return running.returncode, out, err

    def remove_node(self) -> None:
        """Take the second node away, with all its processes."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "removed\n"

    def stopped_worker(self) -> int:
        """A worker that was stopped (not ended) with a chunk in its hands."""
        return until(self._stop_one, "no worker was seen at work")

    def _stop_one(self) -> int | None:
        for pid in self.processes("ray::Worker.work"):
            os.kill(pid, signal.SIGSTOP)
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker.work"):
                return pid
            os.kill(pid, signal.SIGCONT)
        return None


def until(happens: Callable[[], Any], otherwise: str, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := happens():
            return result
        time.sleep(0.005)
    return pytest.fail(otherwise)


@pytest.fixture
def session() -> Iterator[Session]:
    """An environment for Ray: on the loopback, reporting to nobody, with a folder that goes."""
    with tempfile.TemporaryDirectory(prefix="fray-", ignore_cleanup_errors=True) as folder:
        os.mkdir(f"{folder}/ray")
        here = Session(
            os.environ
            | {
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_TMPDIR": folder,
                "TMPDIR": folder,
                "HOME": f"{folder}/home",
                "FUSECLI_TEST_SESSION": os.path.basename(folder),
            }
        )
        os.mkdir(f"{folder}/home")
        yield here
        until(lambda: not here.processes(), "Ray's processes outlive the test")
        assert os.listdir(f"{folder}/home") == [], "something was written into the home folder"


@pytest.fixture
def cluster(session: Session) -> Iterator[Session]:
    """Two nodes with a CPU each."""
    with subprocess.Popen(
        [sys.executable, str(CLUSTER)],
        env=session.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        session.process, session.address = process, process.stdout.readline().strip()
        yield session
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def write_pairs(count: int, first: int = 0, P: int = 49, T: int = 12, D: int = 64) -> None:
    rng = np.random.default_rng(0)
    for side, tokens in (("images", P), ("texts", T)):
        os.makedirs(side, exist_ok=True)
        pool = rng.normal(size=(tokens + 40, D)).astype(np.float32)
        for n in range(first, count):
            np.save(f"{side}/{n:05}.npy", pool[n % 40 : n % 40 + tokens - n % 5])


def files_of(root: str) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in Path(root).rglob("*") if path.is_file()}


def assert_same(one: str, other: str) -> None:
    """Two folders hold the same files, byte for byte, the journal too."""
    left, right = files_of(one), files_of(other)
    assert set(left) == set(right)
    for name, path in left.items():
        assert filecmp.cmp(path, right[name], shallow=False), name


def plain(session: Session, output: str, *args: str) -> None:
    code, _, err = session.run("batch", "images", "texts", "-o", output, "--engine", "numpy", *args)
    assert code == 0, err


@pytest.mark.parametrize("end", ["worker", "node"])
def test_worker_or_node_that_ends_at_work_changes_nothing(
    folder: Path, cluster: Session, end: str
) -> None:
    write_pairs(3000)
    packed = ["--pack", "--shard-size", "1M"] if end == "node" else []
    plain(cluster, "plain", *packed)
    command = ["batch", "images", "texts", "-o", "ray", "--engine", "numpy", *packed]
    with cluster.start(*command, "--ray", cluster.address) as running:
        worker = cluster.stopped_worker()  # the run cannot end without its chunk
        if end == "worker":
            os.kill(worker, signal.SIGKILL)
        else:
            cluster.remove_node()
            with contextlib.suppress(ProcessLookupError):  # it was of that node
                os.kill(worker, signal.SIGCONT)
        out, err = running.communicate(timeout=100)
    assert (running.returncode, out) == (0, "ray\n"), err
    assert "3,000 done" in err
    if end == "worker":
        assert "warning: a Ray worker was lost, another does its pairs: " in err
    assert_same("plain", "ray")
    lines = Path("ray/journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"{n:05}" for n in range(3000)]


def test_workers_are_given_gpus_of_the_cluster(folder: Path, cluster: Session) -> None:
    write_pairs(30)
    plain(cluster, "plain")
    on = ["batch", "images", "texts", "--ray", cluster.address, "--gpus-per-worker"]
    code, _, err = cluster.run(*on, "1", "-o", "ray", "--device", "cpu")
    assert code == 0, err
    assert_same("plain", "ray")
    code, out, err = cluster.run(*on, "3", "-o", "ray3", "-q")
    assert (code, out) == (1, "")
    assert err == (
        "error: the Ray cluster has 2 CPUs and 2 GPUs, and a worker takes 1 CPU and 3 GPUs\n"
    )
    if not torch.cuda.is_available():
        code, out, err = cluster.run(*on, "0.5", "-o", "cuda", "-q")
        assert (code, out) == (1, "")
        assert err.startswith("error: --device cuda")
        assert err.count("\n") == 1


def test_plain_run_and_run_on_ray_go_on_with_each_other(folder: Path, session: Session) -> None:
    write_pairs(60)
    np.save("images/00007.npy", np.full((3, 64), np.nan, np.float32))
    Path("texts/00009.npy").write_bytes(b"damaged")
    args = ["images", "texts", "--engine", "numpy"]
    assert session.run("batch", *args, "-o", "plain")[0] == 3
    code, out, err = session.run("batch", *args, "-o", "ray", "--ray", "--workers", "2")
    assert (code, out) == (3, "ray\n")
    assert "58 done, 2 failed" in err
    assert "00009.npy: is not a .npy file" in err
    assert_same("plain", "ray")
    write_pairs(80, first=60)
    code, _, err = session.run("batch", *args, "-o", "ray")
    assert code == 3
    assert "20 done, 58 skipped, 2 failed before" in err
    write_pairs(10, first=7)
    code, _, err = session.run("batch", *args, "-o", "ray", "--ray", "--retry-failed")
    assert code == 0, err
    assert "2 done" in err
    assert session.run("batch", *args, "-o", "again", "--ray", "--workers", "1")[0] == 0
    for n in range(80):
        assert filecmp.cmp(f"ray/{n:05}.npy", f"again/{n:05}.npy", shallow=False)


def test_torch_keeps_the_number_of_threads_that_a_run_began_with(
    folder: Path, session: Session
) -> None:
    """How many there are shows in the last bits, and a Ray worker has one by default."""
    command = ["batch", "images", "texts", "--method", "transformer", "-o"]
    for count in (20, 40):
        write_pairs(count, D=256)
        session.env["OMP_NUM_THREADS"] = "2" if count == 20 else "1"
        code, _, err = session.run(*command, "later")
        assert code == 0, err
    code, _, err = session.run(*command, "one")
    assert code == 0, err
    session.env["OMP_NUM_THREADS"] = "2"
    for output, more in (("two", []), ("ray", ["--ray", "--workers", "2"])):
        code, _, err = session.run(*command, output, *more)
        assert code == 0, err
    assert_same("two", "ray")
    numbers = [f"{n:05}.npy" for n in range(40)]
    assert filecmp.cmpfiles("two", "later", numbers, shallow=False)[1:] == ([], [])
    assert filecmp.cmpfiles("two", "one", numbers, shallow=False)[1] != []
    recorded = [json.loads(Path(run, "run.json").read_text()) for run in ("later", "one")]
    assert [run["computing"]["threads"] for run in recorded] == [2, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_and_all_of_ray(
    folder: Path, session: Session, number: signal.Signals
) -> None:
    write_pairs(2000)
    command = ["batch", "images", "texts", "-o", "ray", "--ray", "--workers", "1"]
    with session.start(*command) as running:
        until(lambda: session.processes("ray::Worker.work"), "no worker was seen at work")
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (128 + number, "")
    assert "Traceback" not in err
    until(lambda: not session.processes(), "Ray's processes outlive the run")
    assert not [name for name in files_of("ray") if "staging" in name or name.endswith(".part")]
    assert not list(Path(session.env["TMPDIR"]).glob("fray-*")), "Ray's logs are left"


def test_run_that_is_killed_leaves_nothing_of_ray(folder: Path, session: Session) -> None:
    write_pairs(2000)
    command = ["batch", "images", "texts", "-o", "ray", "--ray", "--workers", "1", "-q"]
    with session.start(*command) as running:
        until(lambda: session.processes("ray::Worker.work"), "no worker was seen at work")
        running.kill()
        running.communicate(timeout=60)
    until(lambda: not session.processes(), "Ray's processes outlive the run")
    until(lambda: not list(Path(session.env["TMPDIR"]).glob("fray-*")), "Ray's logs are left")
    code, _, err = session.run("batch", "images", "texts", "-o", "ray")
    assert code == 0, err
    assert "done" in err


def test_ray_whose_own_processes_die_ends_in_one_error(folder: Path, session: Session) -> None:
    """Ray may end the process that it serves without a word, or give nothing any more."""
    write_pairs(3000)
    with session.start("batch", "images", "texts", "-o", "ray", "--ray", "-q") as running:
        session.stopped_worker()  # the run cannot end without its chunk
        (raylet,) = session.processes(f"{os.path.dirname(ray.__file__)}/core/src/ray/raylet/raylet")
        os.kill(raylet, signal.SIGKILL)
        out, err = running.communicate(timeout=60)
    for pid in session.processes("ray::Worker"):
        os.kill(pid, signal.SIGKILL)  # it stands still
    assert (running.returncode, out) == (1, "")
    assert err.startswith("error: --ray: ")
    assert err.count("\n") == 1
    until(lambda: not list(Path(session.env["TMPDIR"]).glob("fray-*")), "Ray's logs are left")
    code, _, err = session.run("batch", "images", "texts", "-o", "ray")
    assert code == 0, err


def test_what_cannot_be_is_refused_before_anything_is_written(
    folder: Path, session: Session
) -> None:
    write_pairs(2)
    base = ["batch", "images", "texts", "-o", "out"]
    refusals = {
        ("--ray", "127.0.0.1:1"): (1, "--ray 127.0.0.1:1: no Ray cluster answers there"),
        ("--ray=nowhere",): (2, "--ray nowhere: expected HOST:PORT of a cluster's head, auto"),
        ("--gpus-per-worker", "1"): (2, "--gpus-per-worker is about the workers of --ray"),
        ("--ray", "--gpus-per-worker", "-1"): (2, "--gpus-per-worker -1: expected 0 or more"),
        ("--ray", "--device", "cuda"): (2, "--device cuda with --ray needs --gpus-per-worker"),
        ("--ray", "--shard", "1/2"): (2, "--ray excludes --merge and --shard"),
    }
    for args, (code, message) in refusals.items():
        ended, out, err = session.run(*base, *args)
        assert (ended, out) == (code, ""), err
        assert err.startswith(f"error: {message}")
        assert err.count("\n") == 1
        assert not os.path.exists("out")


def test_missing_ray_names_the_extra(folder: Path, session: Session) -> None:
    write_pairs(1)
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from fusecli.cli.main import main\n"
        "main(['batch', '--ray', 'images', 'texts', '-o', 'out'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --ray needs Ray: pip install '.[ray]' in a clone of fusecli\n"
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        (["--ray", "images", "texts"], ["--ray=local", "images", "texts"]),
        (["images", "texts", "--ray"], ["images", "texts", "--ray=local"]),
        (["--ray", "-o", "out"], ["--ray=local", "-o", "out"]),
        (["--ray", "head:6379", "images"], ["--ray", "head:6379", "images"]),
        (["--ray", "auto", "images"], ["--ray", "auto", "images"]),
        (["--ray=head:1", "images"], ["--ray=head:1", "images"]),
        (["--ray", "a/b:1"], ["--ray=local", "a/b:1"]),
        ([], []),
    ],
)
def test_bare_ray_takes_no_folder_for_an_address(given: list[str], understood: list[str]) -> None:
    assert _with_values(given) == understood


# ---------------------------------------------------------------- every order of losses


class FakeRay:
    """Ray as the pool sees it, in this process, with workers that end as a test wants.

    Args:
        seed: of the order in which results come.
        losses: how often a worker ends at work, whatever it does.
        poison: pairs that end whoever works on them.
    """

    class exceptions:  # noqa: N801 - as Ray calls it
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            def __init__(self, cause: Exception) -> None:
                super().__init__("paragraphs")
                self.cause = cause

    def __init__(self, seed: int, losses: int = 0, poison: frozenset[int] = frozenset()) -> None:
        self._random, self._losses, self.poison = random.Random(seed), losses, poison
        self.worked: list[int] = []
        self.nodes: Callable[[], list[dict[str, bool]]] = list
        self.most_in_hand = 0

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}

    def available_resources(self) -> dict[str, float]:
        return {}

    def remote(self, **needs: float) -> Callable[[type], Any]:
        assert needs == {"num_cpus": 1, "num_gpus": 0.0}
        return lambda kind: _Kind(self)

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> Any:
        self.most_in_hand = max(self.most_in_hand, len(references))
        return [self._random.choice(references)], []

    def kill(self, actor: _Actor) -> None:
        actor.alive = False

    def get(self, reference: tuple[_Actor, int, list[Pair] | None]) -> Any:
        actor, _, pairs = reference
        ends = self._losses > 0 and self._random.random() < 0.2
        self._losses -= ends
        if ends or not actor.alive or self.poison & {int(pair.id) for pair in pairs or ()}:
            actor.alive = False
            raise self.exceptions.RayError("Worker exit type: SYSTEM_ERROR")
        if pairs is None:
            return None
        count = self._random.randint(1, len(pairs))
        self.worked += [int(pair.id) for pair in pairs[:count]]
        return [([], {"fused": np.full(3, int(pair.id))}, None, []) for pair in pairs[:count]]


class _Kind:
    def __init__(self, ray: FakeRay) -> None:
        self._ray = ray

    def remote(self, *args: object) -> _Actor:
        return _Actor()


class _Actor:
    def __init__(self) -> None:
        self.alive = True
        self._count = 0

    @property
    def begin(self) -> Any:
        return _Method(self)

    @property
    def work(self) -> Any:
        return _Method(self)


class _Method:
    def __init__(self, actor: _Actor) -> None:
        self._actor = actor

    def remote(self, pairs: list[Pair] | None = None, budget: int = 0) -> Any:
        return _Reference(self._actor, pairs)


class _Reference(tuple):  # type: ignore[type-arg]
    """Ray's references are told apart by what they are, not by what they hold."""

    def __new__(cls, actor: _Actor, pairs: list[Pair] | None) -> _Reference:
        return super().__new__(cls, (actor, 0, pairs))

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def pool(ray: FakeRay, told: list[str]) -> on_ray.Pool:
    options = BatchOptions(PairOptions("images", "texts"), "out", ray=RayOptions())
    return on_ray.Pool(ray, options, None, told.append)  # type: ignore[arg-type]


def pairs(count: int) -> Iterator[Pair]:
    place = Place("x.npy", None)
    return (Pair(str(n), place, place, None, None, None) for n in range(count))


def ids(results: list[Result]) -> list[int]:
    return [int(result.pair.id) for result in results]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 2000), seed=st.integers(0, 1000), losses=st.integers(0, 2))
def test_results_come_once_and_in_order_whoever_is_lost(count: int, seed: int, losses: int) -> None:
    ray, told = FakeRay(seed, losses), list[str]()
    results = [each for some in pool(ray, told).run(pairs(count)) for each in some]
    assert ids(results) == list(range(count))
    assert all(each.tensors and each.tensors["fused"][0] == int(each.pair.id) for each in results)
    assert ray.most_in_hand <= 2 * 3 + 3
    assert len(told) <= losses


@settings(max_examples=40, deadline=None)
@given(poison=st.frozensets(st.integers(0, 599), max_size=3), seed=st.integers(0, 1000))
def test_pair_that_ends_every_worker_fails_alone(poison: frozenset[int], seed: int) -> None:
    told: list[str] = []
    results = [
        each for some in pool(FakeRay(seed, 0, poison), told).run(pairs(600)) for each in some
    ]
    assert ids(results) == list(range(600))
    failed = {int(each.pair.id) for each in results if each.error is not None}
    assert failed == poison
    assert all("ended 3 Ray workers" in each.error for each in results if each.error is not None)


def test_cluster_without_a_machine_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, told = FakeRay(0), list[str]()
    monkeypatch.setattr(fake, "wait", lambda *args, **options: ([], []))
    fake.nodes = lambda: [{"Alive": True}, {"Alive": False}]
    waiting = pool(fake, told).run(pairs(10))
    assert [next(waiting), next(waiting)] == [[], []]
    fake.nodes = lambda: [{"Alive": False}]
    with pytest.raises(RayError, match=r"^--ray: Ray has ended, none of its machines is left"):
        next(waiting)
    assert len(told) == 1


def test_workers_that_always_end_end_the_run() -> None:
    told: list[str] = []
    endless = pool(FakeRay(0, 10**6, frozenset(range(1000))), told)
    with pytest.raises(RayError, match="Ray's workers ended 20 times one after the other"):
        for _ in endless.run(pairs(1000)):
            pass


@pytest.mark.parametrize(
    ("cause", "kind", "message"),
    [
        (UsageError("as it was"), UsageError, "as it was"),
        (KeyError("odd"), RayError, "a Ray worker failed: KeyError: 'odd'"),
    ],
)
def test_what_a_worker_raises_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, cause: Exception, kind: type[FuseError], message: str
) -> None:
    ray = FakeRay(0)

    def raising(reference: object) -> None:
        raise ray.exceptions.RayTaskError(cause)

    monkeypatch.setattr(ray, "get", raising)
    with pytest.raises(kind) as raised:
        list(pool(ray, []).run(pairs(10)))
    assert str(raised.value) == message


def test_worker_that_would_compute_something_else_refuses(folder: Path) -> None:
    write_pairs(1)
    save_module(ImageTextFusion(64, 8), "w.safetensors")
    options = BatchOptions(PairOptions("images", "texts"), "out", weights="w.safetensors")
    source = open_pairs(options.pairs)
    spec, _ = resolve(options, source, 1, None)
    actor.Worker(spec, os.getcwd(), __version__).begin()
    with pytest.raises(RayError, match=rf"^fusecli is {__version__} on .* and 0.0 here: install"):
        actor.Worker(spec, os.getcwd(), "0.0").begin()
    with pytest.raises(RayError, match=r"^/none/such: cannot be entered on .*: No such file"):
        actor.Worker(spec, "/none/such", __version__).begin()
    save_module(ImageTextFusion(64, 8), "other.safetensors")
    os.replace("other.safetensors", "w.safetensors")
    with pytest.raises(RayError, match=r"^w.safetensors: is another file on .* than here$"):
        actor.Worker(spec, os.getcwd(), __version__).begin()


def test_worker_gives_all_that_a_result_holds(folder: Path) -> None:
    """What is assumed of a pair is said, and stands in the journal, wherever it is fused."""
    write_pairs(2)
    for path in Path("images").iterdir():
        mask = np.arange(len(np.load(path))) < 9
        np.savez(path.with_suffix(".npz"), image=np.load(path), image_mask=mask)
        path.unlink()
    options = BatchOptions(PairOptions("images", "texts"), "out")
    source = open_pairs(options.pairs)
    spec, weights = resolve(options, source, 2, None)
    worker = actor.Worker(spec, os.getcwd(), __version__)
    worker.begin()
    two = list(source)
    expected = Fuser(spec, weights).work(two, 1 << 30)
    assert all(result.notes for result in expected)
    for result, made in zip(expected, worker.work(two, 1 << 30), strict=True):
        again = Result(result.pair, *made)
        for field in dataclasses.fields(Result):
            left, right = getattr(result, field.name), getattr(again, field.name)
            if field.name == "tensors":
                left, right = ({k: t.tobytes() for k, t in each.items()} for each in (left, right))
            assert left == right, field.name


@pytest.mark.parametrize(
    ("gpus", "workers", "resources", "count"),
    [
        (0.0, None, {"CPU": 7.5}, 7),
        (1.0, None, {"CPU": 64.0, "GPU": 8.0}, 8),
        (0.5, None, {"CPU": 3.0, "GPU": 8.0}, 3),
        (0.5, None, {"CPU": 30.0, "GPU": 1.0}, 2),
        (1.0, 40, {}, 40),
        (1.0, None, {"CPU": 4.0}, None),
        (0.0, None, {"CPU": 0.5}, None),
    ],
)
def test_as_many_workers_as_the_cluster_has_room_for(
    gpus: float, workers: int | None, resources: dict[str, float], count: int | None
) -> None:
    options = BatchOptions(PairOptions("i", "t"), "o", workers=workers, ray=RayOptions(None, gpus))
    if count is not None:
        assert worker_count(options, resources) == count
        return
    with pytest.raises(RayError, match=r"the Ray cluster has .* CPUs and .* GPUs, and a worker"):
        worker_count(options, resources)
