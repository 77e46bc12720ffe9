"""The README's console blocks are what the commands print, one after the other."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fusecli.batch.summary import Summary

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def steps(block: str) -> list[tuple[str, str]]:
    """Each command of a block with the output shown under it."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def normal(output: str) -> str:
    """Without what differs between machines: trailing blanks, threads, versions."""
    output = re.sub(r"\d+ threads?", "N threads", output)
    output = re.sub(r"[\d,]+ pairs/s", "N pairs/s", output)
    output = re.sub(r"(fusecli|numpy|safetensors|torch) \d[\w.+]*", r"\1 V", output)
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


def test_console_blocks_in_their_order_print_what_the_readme_says(tmp_path):
    shutil.copytree(ROOT / "sample_features", tmp_path / "sample_features")
    for name in ("img.npy", "txt.npy"):
        shutil.copy(ROOT / "sample_features" / name, tmp_path)
    for side in ("image", "text"):
        (tmp_path / f"{side}s").mkdir()
        for path in (ROOT / "sample_features").glob(f"*.{side}.npy"):
            shutil.copy(path, tmp_path / f"{side}s" / path.name.replace(f".{side}", ""))
    ran = 0
    for command, shown in [step for block in BLOCKS for step in steps(block)]:
        if not command.startswith("fusecli") or command.startswith("fusecli bench"):
            continue  # installing is what CI has done; timings are never the same
        done = subprocess.run(
            f'"{sys.executable}" -m {command}',
            shell=True,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert done.returncode == 0, (command, done.stdout)
        assert normal(done.stdout) == normal(shown), command
        ran += 1
    assert ran >= len([block for block in BLOCKS if "bench" not in block])


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    exec(example, names)
    assert names["fused"].shape == (7, 384)
    assert (tmp_path / "trained.safetensors").exists()


def test_every_option_of_fuse_is_in_its_help_and_every_diagnosis_in_the_readme():
    text = (ROOT / "README.md").read_text()
    source = (ROOT / "fusecli" / "report" / "diagnoses.py").read_text()
    codes = re.findall(r'Diagnosis\(\s*f?"([\w{}.-]+)"', source)
    assert len(codes) >= 7
    for code in codes:
        side = code.replace("{side}", "image").replace("{axes.side}", "image")
        assert f"`{side}`" in text


def test_every_key_of_a_batch_s_summary_is_in_the_readme():
    (table,) = re.findall(r"`fusecli batch --json`.*?\n## ", (ROOT / "README.md").read_text(), re.S)
    for key in json.loads(Summary("out").to_json()):
        assert f"`{key}`" in table


def test_the_picture_s_module_can_be_trained(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import train_sample

    before, after = train_sample.train(0), train_sample.train(2)
    assert any(not a.equal(b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
