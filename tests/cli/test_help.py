"""Help texts, the manual page and completion: all options of all commands, at any width."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from fusecli.cli.app import COMMANDS, make_app

PROGRAM: Any = typer.main.get_command(make_app())


def parameters(command: str) -> list[Any]:
    """What typer knows of a command, `--help` included; without options that only refuse."""
    context = typer.Context(PROGRAM, info_name="fusecli")
    made = PROGRAM.get_command(context, command)
    found = made.get_params(typer.Context(made, info_name=command, parent=context))
    return [each for each in found if not getattr(each, "hidden", False)]


def closed_sets() -> list[tuple[str, str, list[str]]]:
    """Command, option and choices of every option that takes one of a few values."""
    return [
        (command, parameter.opts[0], list(parameter.type.choices))
        for command in COMMANDS
        for parameter in parameters(command)
        if hasattr(parameter.type, "choices")
    ]


def words(text: str) -> str:
    """Text on one line, whatever it was wrapped to."""
    return " ".join(text.split())


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, int], str]:
    """The help of each command at 40, 80 and 200 columns."""
    code = (
        "import os, sys\n"
        "from fusecli.cli.main import main\n"
        "for name in sys.argv[1:]:\n"
        "    for columns in ('40', '80', '200'):\n"
        "        os.environ['COLUMNS'] = columns\n"
        "        print('@@', name, columns)\n"
        "        try:\n"
        "            main([name, '--help'] if name != 'fusecli' else ['--help'])\n"
        "        except SystemExit as stopped:\n"
        "            assert stopped.code == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "fusecli", *COMMANDS],
        capture_output=True,
        text=True,
        check=True,
    )
    parts = re.split(r"^@@ (\S+) (\d+)\n", done.stdout, flags=re.M)[1:]
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {(name, int(columns)): text for name, columns, text in triples}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_in_its_help(
    helps: dict[tuple[str, int], str], command: str
) -> None:
    for columns in (40, 80, 200):
        shown = helps[command, columns]
        for parameter in parameters(command):
            for name in (*parameter.opts, *parameter.secondary_opts):
                if name.startswith("-"):
                    assert re.search(rf"(^|[ ,]){re.escape(name)}([ ,\n]|$)", shown), name
            if parameter.help:
                assert words(parameter.help) in words(shown)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_fits_the_terminal_and_is_not_too_wide(
    helps: dict[tuple[str, int], str], columns: int
) -> None:
    for name in ("fusecli", *COMMANDS):
        widest = max(helps[name, columns].splitlines(), key=len)
        assert len(widest) <= min(columns, 90), widest


def test_the_help_of_fuse_has_its_options_in_groups(helps: dict[tuple[str, int], str]) -> None:
    headings = re.findall(r"^(?!Usage)([A-Z][a-z ]+)$", helps["fuse", 80], flags=re.M)
    assert headings == [
        "Input", "Module", "Result", "Attention maps", "Computing", "Output of the program",
    ]  # fmt: skip
    groups = dict(
        zip(headings, re.split(r"\n\n[A-Z][a-z ]+\n", helps["fuse", 80])[1:], strict=True)
    )
    for heading, option in {
        "Input": "IMAGE", "Module": "--weights", "Result": "--output", "Attention maps": "--plot",
        "Computing": "--dtype", "Output of the program": "--help",
    }.items():  # fmt: skip
        assert option in groups[heading]


@pytest.mark.parametrize("columns", [40, 80])
def test_the_list_of_commands_has_their_whole_summaries(
    helps: dict[tuple[str, int], str], columns: int
) -> None:
    context = typer.Context(PROGRAM, info_name="fusecli")
    for name in COMMANDS:
        summary = PROGRAM.get_command(context, name).help.split("\n\n")[0]
        assert f"{name} {words(summary)}" in words(helps["fusecli", columns])


@pytest.mark.parametrize(("command", "option", "choices"), closed_sets())
def test_choices_are_in_the_help_and_another_value_is_refused_with_them(
    helps: dict[tuple[str, int], str],
    cli: Callable,
    command: str,
    option: str,
    choices: list[str],
) -> None:
    assert f"One of: {', '.join(choices)}." in words(helps[command, 40])
    done = cli(command, option, "nonsense")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert f"Invalid value for '{option}': 'nonsense' is not one of" in done.err
    assert all(f"'{choice}'" in done.err for choice in choices)


def test_options_with_a_few_possible_values_offer_them_as_choices() -> None:
    found = {option for _, option, _ in closed_sets()}
    assert {
        "--method", "--direction", "--pool", "--dtype", "--out-dtype", "--engine", "--format",
        "--on-error", "--plain-dtype",
    } <= found  # fmt: skip


def test_headings_are_bold_on_a_terminal_only_and_not_with_no_color() -> None:
    pty = pytest.importorskip("pty")
    for more, bold in (({}, True), ({"NO_COLOR": "1"}, False)):
        leader, follower = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", **more}
        if not more:
            environment.pop("NO_COLOR", None)
        subprocess.run(
            [sys.executable, "-m", "fusecli", "init", "--help"],
            stdout=follower,
            env=environment,
            check=True,
        )
        os.close(follower)
        shown = b""
        while not shown.endswith(b"exit.\r\n"):
            shown += os.read(leader, 4096)
        os.close(leader)
        assert (b"\x1b[1mModule\x1b[0m" in shown) is bold
        assert (b"\x1b" in shown) is bold


def test_fusecli_without_a_command_shows_an_example_of_three_commands(cli: Callable) -> None:
    done = cli()
    assert done.code == 2
    examples = re.findall(r"fusecli (\w+) \S+", done.out)
    assert len(examples) == 3
    assert set(examples) <= set(COMMANDS)
    assert "fusecli --help" in words(done.out)


# ---------------------------------------------------------------------------------- completion

ASK = {
    "bash": {"COMP_WORDS": "fusecli fuse --method at", "COMP_CWORD": "3"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "fusecli fuse --method at"},
    "fish": {
        "_TYPER_COMPLETE_ARGS": "fusecli fuse --method at",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    },
}


@pytest.mark.parametrize("shell", ASK)
def test_a_shell_completes_the_name_of_a_method(program: Callable, shell: str) -> None:
    done = program(env={"_FUSECLI_COMPLETE": f"complete_{shell}", **ASK[shell]})
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.findall(rb"\w+", done.stdout.replace(b"_arguments", b"")) == [b"attention"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ASK)
def test_the_script_of_a_shell_is_shown_and_installed(
    program: Callable, tmp_path: Path, shell: str
) -> None:
    shown = program("--show-completion", shell)
    assert shown.returncode == 0
    assert f"_FUSECLI_COMPLETE=complete_{shell}".encode() in shown.stdout or shell == "fish"
    assert b"fusecli" in shown.stdout
    done = program("--install-completion", shell, env={"HOME": str(tmp_path)})
    assert done.returncode == 0
    path = Path(os.fsdecode(done.stdout.strip()))
    assert path.is_relative_to(tmp_path)
    assert path.read_text().strip() == shown.stdout.decode().strip()


@pytest.mark.slow
def test_bash_completes_with_the_script_that_is_shown(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    (tmp_path / "fusecli").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fusecli "$@"\n')
    (tmp_path / "fusecli").chmod(0o755)
    script = (
        'eval "$(fusecli --show-completion bash)"\n'
        "COMP_WORDS=(fusecli batch --dtype bf); COMP_CWORD=3\n"
        '_fusecli_completion fusecli; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        [bash, "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "bfloat16\n"


def test_a_shell_that_is_not_known_is_refused_with_the_list(cli: Callable) -> None:
    done = cli("--show-completion", "tcsh")
    assert done.code == 2
    assert "--show-completion tcsh: expected one of bash, zsh, fish" in done.err


# --------------------------------------------------------------------------------- manual page


@pytest.mark.slow
def test_the_manual_page_has_every_option_and_no_mistake(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fusecli.cli.man"], capture_output=True, text=True, check=True
    )
    page = done.stdout
    plain = page.replace("\\-", "-")
    for command in COMMANDS:
        (part,) = re.findall(
            rf"^\.SH FUSECLI {command.upper()}\n(.*?)(?=^\.SH |\Z)", plain, flags=re.M | re.S
        )
        for parameter in parameters(command):
            assert all(name in part for name in parameter.opts if name.startswith("-"))
    groff = shutil.which("groff")
    if groff is not None:
        checked = subprocess.run(
            [groff, "-man", "-ww", "-Tascii"],
            input=page,
            capture_output=True,
            text=True,
            check=True,
        )
        assert checked.stderr == ""
        assert "--no-null-token" in re.sub(".\x08", "", checked.stdout)
