"""The wheel in an environment that holds it and its core dependencies, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.documents import blocks, normal, steps

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive, built from a copy of what git would hold."""
    source = tmp_path_factory.mktemp("source") / "fusecli"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, source, ignore=ignored)
    out = tmp_path_factory.mktemp("dist")
    for kind in ("wheel", "sdist"):
        build = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def core_requirements() -> set[str]:
    """The distributions that `pip install .` brings, without any extra."""
    found: set[str] = set()
    todo = ["fusecli"]
    while todo:
        for requirement in distribution(todo.pop()).requires or ():
            name, _, condition = requirement.partition(";")
            if "extra" in condition or "win32" in condition or "Windows" in condition:
                continue
            name = re.match(r"[\w.-]+", name)[0]
            try:
                distribution(name)
            except ModuleNotFoundError:  # for other systems
                continue
            if name not in found:
                found.add(name)
                todo.append(name)
    return found


@pytest.fixture(scope="module")
def program(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`python` of an environment with the wheel and links to its core dependencies."""
    home = tmp_path_factory.mktemp("empty")
    venv.create(home, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    for name in core_requirements():
        there = distribution(name)
        tops = {path.parts[0] for path in there.files or () if path.parts[0] not in ("..", ".")}
        for top in tops - {"__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(there.locate_file(top))
    with zipfile.ZipFile(archives[0]) as wheel:
        wheel.extractall(packages)
    return home / "bin" / "python"


def run(program: Path, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = re.sub(r"^(fusecli|python) ", lambda m: PROGRAMS[m[1]].format(program), command)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env["OMP_NUM_THREADS"] = "1"
    return subprocess.run(
        line, shell=True, cwd=folder, stdout=-1, stderr=subprocess.STDOUT, text=True, env=env
    )


PROGRAMS = {"fusecli": '"{}" -m fusecli ', "python": '"{}" '}


def test_the_wheel_holds_the_program_alone_and_the_source_archive_all(archives):
    wheel, sdist = archives
    with zipfile.ZipFile(wheel) as file:
        rooms = {name.split("/")[0] for name in file.namelist()}
        assert "fusecli/py.typed" in file.namelist()
    assert sorted(re.sub(r"-.*", "", room) for room in rooms) == ["fusecli", "fusecli"]
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for name in ("tests/test_wheel.py", "sample_features/img.npy", "docs/training.md",
                 "sample_features/easy_vqa/pairs.csv", "constraints.txt", "Makefile"):  # fmt: skip
        assert name in names, name


def test_core_environment_has_no_extra(program, tmp_path):
    for module in ("matplotlib", "sklearn", "ray", "pyarrow", "pytest"):
        done = run(program, f"python -c 'import {module}'", tmp_path)
        assert "ModuleNotFoundError" in done.stdout, module
    done = run(program, "python -c 'import fusecli; print(fusecli.__file__)'", tmp_path)
    assert done.stdout.startswith(str(program.parent.parent))


def test_selftest_passes_in_the_core_environment(program, tmp_path):
    done = run(program, "fusecli selftest", tmp_path)
    assert done.returncode == 0, done.stdout


def test_core_blocks_of_the_readme_run_in_the_core_environment(program, tmp_path):
    shutil.copytree(ROOT / "sample_features", tmp_path / "sample_features")
    readme = ROOT / "README.md"
    done_steps = 0
    for command, shown in [step for block in blocks(readme, "console") for step in steps(block)]:
        if "fusecli train" in command or "fusecli evaluate" in command or "--plot" in command:
            continue  # these need an extra, as the README says
        done = run(program, command, tmp_path)
        assert done.returncode == 0, (command, done.stdout)
        assert normal(done.stdout) == normal(shown), command
        done_steps += 1
    assert done_steps
    for index, example in enumerate(blocks(readme, "python")):
        if not example.startswith("# not run here"):
            (tmp_path / f"{index}.py").write_text(example)
            done = run(program, f"python {index}.py", tmp_path)
            assert done.returncode == 0, done.stdout


def test_what_needs_an_extra_names_it(program, tmp_path):
    shutil.copytree(ROOT / "sample_features" / "easy_vqa", tmp_path / "easy_vqa")
    done = run(program, "fusecli train --manifest easy_vqa/pairs.csv -o run", tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "pip install '.[train]'" in done.stdout
