"""The command line: what it refuses, in which words, with which exit code; and what it says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import fusecli
from fusecli.fusion.config import FusionConfig
from fusecli.fusion.initial_weights import initial_weights
from fusecli.fusion.weights import write_weights

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(3, 8)).astype(np.float32)
TEXT = RNG.normal(size=(5, 8)).astype(np.float32)
PAIR = ("fuse", "image.npy", "text.npy")


@pytest.fixture
def inputs(folder: Path) -> Path:
    """A working directory with an image, a text and weights."""
    np.save("image.npy", IMAGE)
    np.save("text.npy", TEXT)
    config = FusionConfig(8, 2)
    write_weights("weights.safetensors", config, initial_weights(config, 0))
    return folder


def npy_bytes(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


# ------------------------------------------------------------------------------ usage errors


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("fuse",), "Missing argument 'IMAGE'"),
        (("fuse", "image.npy"), "Missing argument 'TEXT'"),
        ((*PAIR, "more.npy"), "unexpected extra argument"),
        ((*PAIR, "--hedas", "2"), "No such option: --hedas"),
        ((*PAIR, "--heads"), "requires an argument"),
        ((*PAIR, "--heads", "many"), "'many' is not a valid int"),
        ((*PAIR, "--heads", "2.5"), "'2.5' is not a valid int"),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("--frobnicate",), "No such option: --frobnicate"),
        (("init",), "Missing option '--output'"),
        (("inspect",), "Missing argument 'FILES...'"),
        ((*PAIR, "--heads", "0"), "--heads must be at least 1, found 0"),
        ((*PAIR, "--heads", "-1"), "--heads must be at least 1, found -1"),
        ((*PAIR, "--heads", "3"), "1, 2, 4, 8"),
        ((*PAIR, "--dim", "0"), "--dim must be at least 1, found 0"),
        ((*PAIR, "--dim", "-8"), "--dim must be at least 1, found -8"),
        ((*PAIR, "--dim", "9" * 30), "--dim must be from 1 to"),
        ((*PAIR, "--heads", "2000000"), "--heads must be from 1 to 1,048,576"),
        ((*PAIR, "--method", "transformer", "--ffn-dim", "0"), "--ffn-dim must be at least 1"),
        ((*PAIR, "--method", "transformer", "--layers", "0"), "--layers must be at least 1"),
        ((*PAIR, "--method", "concat", "--heads", "8"), "--heads belongs to --method attention"),
        (("methods", "--ffn-dim", "0"), "--ffn-dim must be at least 1"),
        (("methods", "--heads", "0"), "--heads must be at least 1"),
        ((*PAIR, "--seed", "-1"), "--seed must be from 0 to 4,294,967,295"),
        ((*PAIR, "--seed", str(1 << 32)), "--seed must be from 0 to 4,294,967,295"),
        ((*PAIR, "--dtype", "int8"), "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (
            (*PAIR, "--out-dtype", "float64"),
            "'float64' is not one of 'float32', 'float16', 'bfloat16'",
        ),
        ((*PAIR, "--engine", "jax"), "'jax' is not one of 'auto', 'numpy', 'torch'"),
        ((*PAIR, "--engine", "numpy", "--dtype", "float16"), "float32 on the CPU only"),
        ((*PAIR, "--engine", "numpy", "--device", "cuda"), "float32 on the CPU only"),
        ((*PAIR, "--device", "tpu"), "expected auto, cpu, cuda, cuda:0"),
        ((*PAIR, "--device", "cuda:x"), "expected auto, cpu, cuda, cuda:0"),
        ((*PAIR, "--image-axes", "XYZ"), "letter 'X' is not one of"),
        ((*PAIR, "--image-axes", "PP"), "a letter stands twice"),
        ((*PAIR, "--image-axes", "NP"), "the feature axis D is missing"),
        ((*PAIR, "--text-axes", "PD"), "letter 'P' is not one of"),
        ((*PAIR, "--image-axes", ""), "the feature axis D is missing"),
        ((*PAIR, "--max-memory", "lots"), "expected a size such as 500M or 2G"),
        ((*PAIR, "--max-memory", "0"), "expected a size such as 500M or 2G"),
        ((*PAIR, "--max-memory", "-1G"), "expected a size such as 500M or 2G"),
        ((*PAIR, "-o", "out.txt"), "ends in .npy or .npz or .safetensors, found .txt"),
        ((*PAIR, "-o", "out"), "found no ending"),
        ((*PAIR, "-o", ""), "a file's name is empty (an unset shell variable?)"),
        ((*PAIR, "--attention", ""), "a file's name is empty"),
        ((*PAIR, "--plot", ""), "a file's name is empty"),
        ((*PAIR, "--show", "--tokens", ""), "a file's name is empty"),
        ((*PAIR, "--weights", ""), "a file's name is empty"),
        ((*PAIR, "--text-mask", ""), "a file's name is empty"),
        (("fuse", "", "text.npy"), "a file's name is empty"),
        (("init", "-o", ""), "a file's name is empty"),
        ((*PAIR, "--plot", "a.png", "--grid", "0x3"), "--grid 0x3: rows and columns must be"),
        ((*PAIR, "--plot", "a.png", "--grid", "3x0+3"), "rows and columns must be at least 1"),
        ((*PAIR, "-o", "out.pt"), "ends in .npy or .npz or .safetensors, found .pt"),
        ((*PAIR, "-o", "out.npy", "--out-dtype", "bfloat16"), "needs -o FILE.safetensors"),
        ((*PAIR, "-o", "-", "--out-dtype", "bfloat16"), "needs -o FILE.safetensors"),
        ((*PAIR, "-o", "-", "--json"), "both want stdout"),
        ((*PAIR, "--report=report.txt"), "expected a name ending in .json"),
        ((*PAIR, "--weights", "weights.safetensors", "--seed", "1"), "exclude each other"),
        ((*PAIR, "--weights", "-"), "cannot be read from stdin"),
        ((*PAIR, "--weights", "weights.safetensors", "--heads", "4"), "which has 2"),
        ((*PAIR, "--weights", "weights.safetensors", "--dim", "16"), "which has 8"),
        (("fuse", "-", "-", "-o", "out.npy"), "only one of image, text and their masks can come"),
        (("fuse", "-", "text.npy", "--image-mask", "-"), "only one of image, text and their masks"),
        ((*PAIR, "--image-mask", "-", "--text-mask", "-"), "only one of image, text and their m"),
        (("fuse", "image.npy", "-"), "say where the result goes"),
        (("init", "-o", "w.npy"), "found .npy"),
        (("init", "-o", "-"), "-: only fused rows go to stdout, this goes to a file: say a name"),
        (("init", "-o", "w.safetensors", "--ffn-dim", "0"), "--ffn-dim must be at least 1"),
        (("init", "-o", "w.safetensors", "--heads", "7"), "1, 2, 3, 4, 6, 8, 12, 16"),
        (("init", "-o", "w.safetensors", "--image-dim", "0"), "--image-dim must be at least 1"),
        (("init", "-o", "w.safetensors", "--text-dim", "-5"), "--text-dim must be at least 1"),
        (("init", "-o", "w.safetensors", "--seed", "-1"), "--seed must be from 0"),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, tuple) else "",
)
def test_usage_error_is_one_line_and_exits_2(
    inputs: Path, cli: Callable, args: tuple[str, ...], says: str
) -> None:
    before = sorted(os.listdir("."))
    done = cli(*args)
    assert says in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert (done.code, done.out) == (2, "")
    assert sorted(os.listdir(".")) == before


def test_usage_error_names_the_help_to_read(inputs: Path, cli: Callable) -> None:
    assert cli(*PAIR, "--hedas", "2").err.endswith("(see fusecli fuse --help)\n")
    assert cli("frobnicate").err.endswith("(see fusecli --help)\n")


def test_misspelt_option_is_answered_with_the_right_one(inputs: Path, cli: Callable) -> None:
    assert "--heads" in cli(*PAIR, "--hedas", "2").err


def test_no_command_shows_the_help_and_exits_2(cli: Callable) -> None:
    done = cli()
    assert done.code == 2
    for command in ("fuse", "init", "inspect", "selftest"):
        assert command in done.out + done.err


@pytest.mark.parametrize("args", [("--help",), ("-h",), ("fuse", "--help"), ("init", "-h")])
def test_help_goes_to_stdout_and_exits_0(cli: Callable, args: tuple[str, ...]) -> None:
    done = cli(*args)
    assert (done.code, done.err) == (0, "")
    assert "Usage: " in done.out


def test_version_is_printed(cli: Callable) -> None:
    done = cli("--version")
    assert (done.code, done.out) == (0, f"fusecli {fusecli.__version__}\n")


def test_heads_that_do_not_divide_are_answered_with_those_that_do(
    folder: Path, cli: Callable
) -> None:
    np.save("image.npy", np.ones((1, 768), np.float32))
    np.save("text.npy", np.ones((4, 768), np.float32))
    done = cli(*PAIR, "--heads", "7", "--dim", "768")
    assert done.code == 2
    assert done.err.startswith("error: --heads 7 does not divide the width D, 768")
    assert "1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 768" in done.err
    assert done.err.count("\n") == 1


def test_width_that_eight_heads_do_not_divide_asks_for_heads(folder: Path, cli: Callable) -> None:
    np.save("image.npy", np.ones((1, 50), np.float32))
    np.save("text.npy", np.ones((4, 50), np.float32))
    done = cli(*PAIR)
    assert done.code == 1
    assert "--heads" in done.err
    assert "1, 2, 5, 10, 25, 50" in done.err


@pytest.mark.parametrize("device", ["cuda:99", "mps", "cuda"])
def test_absent_device_is_answered_with_those_there_are(
    inputs: Path, cli: Callable, device: str
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    done = cli(*PAIR, "--device", device)
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there += ["mps"] if torch.backends.mps.is_available() else []
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: --device {device}: ")
    assert done.err.endswith(f"this machine has {', '.join([*there, 'cpu'])}\n")
    assert done.err.count("\n") == 1
    assert not os.path.exists("text.fused.npy")


def test_wrong_widths_name_both_files_their_shapes_and_the_way_out(
    inputs: Path, cli: Callable
) -> None:
    np.save("wide.npy", np.ones((3, 12), np.float32))
    done = cli("fuse", "wide.npy", "text.npy", "--weights", "weights.safetensors")
    assert (done.code, done.out) == (1, "")
    for part in ("wide.npy", "[3, 12]", "text.npy", "[5, 8]", "weights.safetensors", "--weights"):
        assert part in done.err
    assert done.err.count("\n") == 1


def test_swapped_axes_are_answered_with_the_option_that_mends_them(
    inputs: Path, cli: Callable
) -> None:
    np.save("image.npy", np.ascontiguousarray(np.tile(IMAGE, (3, 1)).T))  # [8, 9]
    done = cli(*PAIR, "--weights", "weights.safetensors")
    assert done.code == 1
    assert "--image-axes DP" in done.err
    assert cli(*PAIR, "--weights", "weights.safetensors", "--image-axes", "DP").code == 0


# --------------------------------------------------------------------------------- the report


@pytest.mark.parametrize(
    "args",
    [
        ("fuse", "--report", "image.npy", "text.npy"),
        ("fuse", "image.npy", "--report", "text.npy"),
        ("fuse", "image.npy", "text.npy", "--report"),
        ("fuse", "--report", "-o", "text.fused.npy", "image.npy", "text.npy"),
    ],
)
def test_report_without_a_file_leaves_the_next_argument_alone(
    inputs: Path, cli: Callable, args: tuple[str, ...]
) -> None:
    done = cli(*args)
    assert (done.code, done.out) == (0, "text.fused.npy\n")
    assert "[5, 8]" in done.err
    assert np.load("text.fused.npy").shape == (5, 8)


@pytest.mark.parametrize(
    "args",
    [
        ("fuse", "--report", "r.json", "image.npy", "text.npy"),
        ("fuse", "image.npy", "--report", "r.json", "text.npy"),
        ("fuse", "image.npy", "text.npy", "--report=r.json"),
        ("fuse", "image.npy", "text.npy", "--report", "--report", "r.json"),
    ],
)
def test_report_goes_into_the_json_file_that_follows(
    inputs: Path, cli: Callable, args: tuple[str, ...]
) -> None:
    done = cli(*args)
    assert (done.code, done.out) == (0, "text.fused.npy\n")
    assert json.loads(Path("r.json").read_text())["output"]["shape"] == [5, 8]


def test_json_puts_the_report_on_stdout_and_nothing_else(inputs: Path, cli: Callable) -> None:
    done = cli(*PAIR, "--json")
    report = json.loads(done.out)
    assert report["output"]["file"] == "text.fused.npy"
    assert report["inputs"]["image"]["shape"] == [3, 8]
    cli(*PAIR, "--force", "--report", "r.json")
    assert json.loads(Path("r.json").read_text()) == report


# -------------------------------------------------------------------------- stdin and stdout


@pytest.mark.slow
def test_stdin_and_stdout_carry_npy(inputs: Path, program: Callable, cli: Callable) -> None:
    cli(*PAIR, "-o", "file.npy")
    expected = Path("file.npy").read_bytes()
    given = Path("image.npy").read_bytes()
    done = program("fuse", "-", "text.npy", "-o", "-", input=given)
    assert (done.returncode, done.stdout) == (0, expected)
    given = Path("text.npy").read_bytes()
    done = program("fuse", "image.npy", "-", "-o", "-", input=given)
    assert (done.returncode, done.stdout) == (0, expected)
    done = program("fuse", "image.npy", "-", "-o", "out.npy", "--quiet", input=given)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out.npy\n", b"")
    assert Path("out.npy").read_bytes() == expected


def test_stdin_that_arrives_in_pieces_through_a_pipe_is_whole(
    inputs: Path, program: Callable, cli: Callable
) -> None:
    np.save("image.npy", RNG.normal(size=(5000, 8)).astype(np.float32))
    cli(*PAIR, "-o", "file.npy")
    with subprocess.Popen(["cat", "image.npy"], stdout=subprocess.PIPE) as source:
        done = program("fuse", "-", "text.npy", "-o", "-", "--quiet", stdin=source.stdout)
    assert done.stdout == Path("file.npy").read_bytes()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"", "is empty"),
        (b"hello", "is not a .npy file"),
        (npy_bytes(IMAGE)[:-1], "is cut short"),
        (npy_bytes(IMAGE) + b"!", "is followed by something else"),
        (npy_bytes(np.array([{}], object)), "holds Python objects"),
        (npy_bytes(IMAGE[:0]), "the image [0, 8] has no tokens"),
    ],
    ids=["empty", "text", "cut short", "too long", "pickle", "no tokens"],
)
def test_bad_stdin_is_refused_in_one_line(
    inputs: Path, program: Callable, given: bytes, says: str
) -> None:
    done = program("fuse", "-", "text.npy", "-o", "-", input=given)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: stdin: ")
    assert says in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_closed_stdin_is_refused_in_one_line(inputs: Path, program: Callable) -> None:
    done = program("fuse", "-", "text.npy", "-o", "-", preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: stdin: ")
    assert done.stderr.count(b"\n") == 1


def test_path_that_begins_with_a_dash_can_be_given(inputs: Path, cli: Callable) -> None:
    os.rename("image.npy", "-image.npy")
    assert cli("fuse", "-o", "out.npy", "--", "-image.npy", "text.npy").code == 0
    assert cli("fuse", "-o", "two.npy", "./-image.npy", "text.npy").code == 0


# ------------------------------------------------------------------------- quiet, strict, debug


def test_quiet_silences_stderr(inputs: Path, cli: Callable) -> None:
    done = cli(*PAIR, "--quiet")
    assert (done.code, done.out, done.err) == (0, "text.fused.npy\n", "")
    loud = cli(*PAIR, "--force")
    assert "no --weights: initial weights, seed 0" in loud.err


def test_quiet_does_not_silence_errors(inputs: Path, cli: Callable) -> None:
    done = cli("fuse", "gone.npy", "text.npy", "--quiet")
    assert (done.code, done.err) == (1, "error: gone.npy: no such file\n")


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (IMAGE[0], "one image token"),
        (IMAGE[:1], "one image token"),
        (np.concatenate([IMAGE, 0 * IMAGE]), "zero or nearly so"),
        (np.ones((5, 8), np.float32), "both files have 5 rows"),
        (np.ones((4, 8), np.float32), "close to uniform"),
    ],
    ids=["vector", "one row", "zero rows", "same rows", "uniform"],
)
def test_strict_fails_on_a_diagnosis_and_writes_nothing(
    inputs: Path, cli: Callable, image: np.ndarray, says: str
) -> None:
    np.save("image.npy", image)
    loose = cli(*PAIR)
    assert loose.code == 0
    assert f"{says}" in loose.err
    assert any(line.startswith("warning: ") for line in loose.err.splitlines())
    os.unlink("text.fused.npy")
    before = sorted(os.listdir("."))
    done = cli(*PAIR, "--strict", "--quiet", "--report", "report.json")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: --strict: ")
    assert says in done.err
    assert done.err.count("\n") == 1
    assert sorted(os.listdir(".")) == before


def test_strict_passes_where_there_is_nothing_to_say(inputs: Path, cli: Callable) -> None:
    config = FusionConfig(8, 2)
    arrays = initial_weights(config, 0)
    arrays["attention.in_proj_weight"] *= 20  # attention that chooses
    write_weights("weights.safetensors", config, arrays, force=True)
    done = cli(*PAIR, "--weights", "weights.safetensors", "--strict")
    assert (done.code, done.out, done.err) == (0, "text.fused.npy\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code"),
    [(("fuse", "gone.npy", "text.npy"), 1), ((*PAIR, "--dtype", "int8"), 2)],
)
def test_debug_shows_the_traceback_and_keeps_the_exit_code(
    inputs: Path, program: Callable, args: tuple[str, ...], code: int
) -> None:
    done = program(*args, "--debug")
    assert b"Traceback (most recent call last)" in done.stderr
    assert done.returncode == code
    assert b"Traceback" not in program(*args).stderr


def test_debug_changes_nothing_when_all_is_well(inputs: Path, cli: Callable) -> None:
    assert cli(*PAIR, "--debug", "--quiet").out == "text.fused.npy\n"


# ------------------------------------------------------------------------------------- colours


def test_output_that_is_no_terminal_has_no_colours(inputs: Path, program: Callable) -> None:
    done = program(*PAIR, "--report", env={"TERM": "xterm-256color"})
    assert done.returncode == 0
    assert b"\x1b" not in done.stderr + done.stdout


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_terminal_that_wants_no_colours_gets_none(
    inputs: Path, program: Callable, env: dict[str, str]
) -> None:
    ours, theirs = os.openpty()
    settings = {"TERM": "xterm-256color", "COLUMNS": "200", **env}
    done = program(
        *(*PAIR, "--report"), capture_output=False, stdout=theirs, stderr=theirs, env=settings
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so when the other side has gone
        while piece := os.read(ours, 1 << 16):
            shown += piece
    os.close(ours)
    assert done.returncode == 0
    assert b"[5, 8]" in shown
    assert re.search(rb"\x1b\[(\d+;)*[349][0-8]", shown) is None


@pytest.mark.parametrize("command", ["-m fusecli", "the script"])
def test_program_starts_both_ways(inputs: Path, command: str) -> None:
    script = Path(sys.executable).with_name("fusecli")
    start = [sys.executable, "-m", "fusecli"] if command == "-m fusecli" else [str(script)]
    done = subprocess.run([*start, "--version"], capture_output=True, text=True)
    assert done.stdout == f"fusecli {fusecli.__version__}\n"


def test_a_batch_and_a_training_refuse_an_attention_mask(cli, folder):
    for command in (["batch", "a", "b", "-o", "out"], ["train", "a", "b", "-o", "run"]):
        done = cli(*command, "--attention-mask", "am.npy")
        assert (done.code, done.err) == (
            2,
            "error: --attention-mask am.npy: only `fusecli fuse` takes this option, and `fusecli "
            "batch` a column attention_mask in --manifest; training takes no attention mask\n",
        )
        assert "--attention-mask" not in cli(command[0], "--help").out
