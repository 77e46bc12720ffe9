"""README and docs: their console blocks print what they say, and their links lead somewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusecli.batch.summary import Summary
from tests.documents import blocks, normal, steps

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PAGES = [
    path for name in ("CONTRIBUTING.md", "CHANGELOG.md") if (path := ROOT / name).exists()
]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a reader's folder holds: the samples, and the same samples as two folders."""
    shutil.copytree(ROOT / "sample_features", tmp_path / "sample_features")
    for side in ("image", "text"):
        (tmp_path / f"{side}s").mkdir()
        for path in (ROOT / "sample_features").glob(f"*.{side}.npy"):
            shutil.copy(path, tmp_path / f"{side}s" / path.name.replace(f".{side}", ""))
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    python = f'"{sys.executable}"'
    line = re.sub(r"^python ", f"{python} ", command)
    line = re.sub(r"^fusecli ", f"{python} -m fusecli ", line)
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "console")], ids=lambda p: p.stem
)
def test_console_blocks_in_their_order_print_what_the_page_says(page, clone):
    for command, shown in [step for block in blocks(page, "console") for step in steps(block)]:
        done = run(command, clone)
        assert done.returncode == 0, (command, done.stdout)
        assert normal(done.stdout) == normal(shown), command


def test_a_block_that_shows_something_else_is_seen(clone):
    """The comparison above can fail."""
    done = run("fusecli fuse sample_features/img.npy sample_features/txt.npy -q", clone)
    assert normal(done.stdout) == "txt.fused.npy"
    assert normal(done.stdout) != normal("img.fused.npy")


NOT_RUN = "# not run here"  # needs encoders that are downloaded
PYTHON = [
    (page, index)
    for page in PAGES
    for index, example in enumerate(blocks(page, "python"))
    if not example.startswith(NOT_RUN)
]


@pytest.mark.parametrize(("page", "index"), PYTHON, ids=lambda value: getattr(value, "stem", value))
def test_python_examples_run(page, index, clone, monkeypatch):
    monkeypatch.chdir(clone)
    exec(compile(blocks(page, "python")[index], page.name, "exec"), {})


def test_links_lead_somewhere():
    seen = 0
    for page in [*PAGES, *OTHER_PAGES]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
                seen += 1
    assert seen > 10


def diagnosis_codes() -> set[str]:
    sources = sorted((ROOT / "fusecli" / "report").glob("*.py"))
    source = "\n".join(path.read_text() for path in sources)
    found = re.findall(r'Diagnosis\(\s*f?"([\w{}.-]+)"', source)
    sided = [
        (code, re.sub(r"{[\w.]*side}", side, code)) for code in found for side in ("image", "text")
    ]
    return {code for _, code in sided}


def test_every_diagnosis_is_in_the_readme():
    table = (ROOT / "README.md").read_text()
    codes = diagnosis_codes()
    assert len(codes) >= 10
    assert {code for code in codes if f"`{code}`" not in table} == set()


def test_every_key_of_a_batch_s_summary_is_in_its_page():
    table = (ROOT / "docs" / "batch.md").read_text()
    for key in json.loads(Summary("out").to_json()):
        assert f"`{key}`" in table


@pytest.mark.slow
def test_the_picture_s_module_can_be_trained(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import train_sample

    before, after = train_sample.train(0), train_sample.train(2)
    assert any(not a.equal(b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_the_readme_fits_on_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.slow
def test_the_indented_commands_of_the_readme_run_one_after_the_other(clone):
    """In the order in which a reader types them; training has tests of its own."""
    done = 0
    for line in re.findall(
        r"^(?:    |\$ )(fusecli fuse .*)$", (ROOT / "README.md").read_text(), re.M
    ):
        if line.endswith("\\"):
            continue
        ran = run(line, clone)
        assert ran.returncode == 0, (line, ran.stdout)
        done += 1
    assert done >= 2
