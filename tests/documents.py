"""The commands in the documentation, and their printed results."""

import re
from pathlib import Path


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


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
