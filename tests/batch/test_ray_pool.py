"""What of a batch on Ray needs no Ray: the order of results whoever is lost, and refusals."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecli import ImageTextFusion, __version__, save_module
from fusecli.batch import BatchOptions, RayOptions
from fusecli.batch.ray import actor
from fusecli.batch.ray import pool as on_ray
from fusecli.batch.ray.cluster import _WITNESS, worker_count
from fusecli.batch.resolve import resolve
from fusecli.batch.store.result import Result
from fusecli.batch.worker import Fuser
from fusecli.cli.main import _with_values
from fusecli.errors import FuseError, RayError, UsageError
from fusecli.pairs.open import Pair, PairOptions, Place, open_pairs
from tests.batches import write_pairs


def test_missing_ray_names_the_extra(folder: Path) -> None:
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


@pytest.mark.skipif(sys.platform != "linux", reason="open files are looked up in /proc")
def test_processes_that_write_rays_logs_are_ended_and_readers_are_not(folder: Path) -> None:
    os.mkdir("real")
    os.symlink("real", "link")  # as a TMPDIR may be
    logs = folder / "link" / "fray-1"
    logs.mkdir()
    code = "import sys, time; f = open(sys.argv[1], sys.argv[2]); print(flush=True); time.sleep(60)"
    log = str(logs / "raylet.out")
    opened = [
        subprocess.Popen([sys.executable, "-c", code, log, mode], stdout=subprocess.PIPE)
        for mode in ("a", "a+")
    ]
    for process in opened:
        assert process.stdout is not None
        process.stdout.readline()
    reader = subprocess.Popen([sys.executable, "-c", code, log, "r"], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    reader.stdout.readline()
    try:
        command = [sys.executable, "-IS", "-c", _WITNESS, str(logs), "NO_PROCESS_HAS=this"]
        subprocess.run(command, input=b"", stderr=subprocess.DEVNULL, check=True, timeout=50)
        assert [process.wait(5) for process in opened] == [-signal.SIGKILL] * 2
        assert reader.poll() is None
        assert not logs.exists()
    finally:
        for process in (*opened, reader):
            process.kill()
            process.communicate()


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


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 2000), seed=st.integers(0, 1000), losses=st.integers(0, 2))
def test_results_come_once_and_in_order_whoever_is_lost(count: int, seed: int, losses: int) -> None:
    ray, told = FakeRay(seed, losses), list[str]()
    results = [each for some in pool(ray, told).run(pairs(count)) for each in some]
    assert ids(results) == list(range(count))
    assert all(each.tensors and each.tensors["fused"][0] == int(each.pair.id) for each in results)
    assert ray.most_in_hand <= 2 * 3 + 3
    assert len(told) <= losses


@pytest.mark.slow
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
    spec, _ = resolve(options, source, None)
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
    spec, weights = resolve(options, source, None)
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
