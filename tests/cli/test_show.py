"""`--show`: the heat map in the terminal, at 80 columns, in colour and without."""

import contextlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

SAMPLES = Path(__file__).parents[2] / "sample_features"
RAMP = " .:-=+*#@"


@pytest.fixture
def on_terminal(program):
    """Run the command line with stderr on a terminal; what it wrote there."""

    def run(*args, columns=80, **env):
        ours, theirs = os.openpty()
        settings = {"TERM": "xterm-256color", "COLUMNS": str(columns), "COLORTERM": "", **env}
        done = program(*args, capture_output=False, stdout=-3, stderr=theirs, env=settings)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says so when the other side has gone
            while piece := os.read(ours, 1 << 16):
                shown += piece
        os.close(ours)
        assert done.returncode == 0, shown
        return shown.decode().replace("\r\n", "\n")

    return run


def pair(name):
    return str(SAMPLES / f"{name}.image.npy"), str(SAMPLES / f"{name}.text.npy")


def show(*more):
    return ("fuse", *more, "-q", "-f", "-o", "out.npy", "--show")


def rows_of(shown):
    """The lines of the map itself."""
    return [line for line in shown.splitlines() if re.search(r"x at \d+$", line)]


def uncoloured(shown):
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def test_the_map_goes_to_stderr_and_the_path_to_stdout(folder, cli):
    words = str(SAMPLES / "tokens.json")
    done = cli(*show(*pair("cat")), "--tokens", words)
    assert (done.code, done.out) == (0, "out.npy\n")
    lines = done.err.splitlines()
    assert lines[0] == "attention: cat.text.npy to cat.image.npy"
    assert lines[1].startswith("Nearly uniform: every text token weighs all image tokens about")
    lines = rows_of(done.err)
    assert [line.split()[0] for line in lines] == [
        "[CLS]", "a", "tab", "##by", "cat", ".", "[SEP]",
    ]  # fmt: skip
    # Untrained attention is flat: all of it is the middle of the scale.
    assert all(line[5:105] == " " + "=" * 98 + " " for line in lines)  # two an image token
    assert rows_of(cli(*show(*pair("cat"))).err)[0].startswith("0 ===")


def test_each_character_is_an_image_token_s_weight(folder, cli):
    np.save("i.npy", np.eye(5, 8, dtype=np.float32) * 40)
    np.save("t.npy", np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32) * 9)
    done = cli(*show("i.npy", "t.npy"), "--attention", "m.npy", "--heads", "1")
    times = np.load("m.npy") * 5
    top = max(4, times.max())
    assert times.max() > 2
    for index, line in enumerate(rows_of(done.err)):
        cells = line[2 : 2 + 15]  # three characters a token where there is room
        wanted = "".join(RAMP[round(np.sqrt(t / top) * 8)] * 3 for t in times[index])
        assert cells == wanted
        peak = times[index].argmax()
        assert line.endswith(f"x at {peak}")


@pytest.mark.parametrize("columns", [80, 60, 40])
@pytest.mark.parametrize("P", [1, 49, 60, 577])
@pytest.mark.parametrize("colour", [True, False])
def test_no_line_is_wider_than_the_terminal(folder, on_terminal, columns, P, colour):
    rng = np.random.default_rng(0)
    np.save("i.npy", rng.standard_normal((P, 16), np.float32) * 3)
    np.save("t.npy", rng.standard_normal((4, 16), np.float32) * 3)
    words = "猫が好き猫が好き猫が好き\n\x1b[31mred\u202e\n[bold]x[/bold]\n" + "w" * 100 + "\n"
    Path("w.txt").write_text(words, encoding="utf-8")
    env = {} if colour else {"NO_COLOR": "1"}
    command = show("i.npy", "t.npy"), ("--tokens", "w.txt")
    shown = on_terminal(*command[0], *command[1], columns=columns, **env)
    assert ("\x1b[48;5;" in shown) is colour
    lines = uncoloured(shown).splitlines()
    assert all(cell_len(line) <= columns for line in lines)
    rows = rows_of(uncoloured(shown))
    assert len(rows) == 4
    assert "\\x1b[31mred" in rows[1] or "…" in rows[1]
    assert "[bold]x[/bold]" in rows[2]
    # The map begins in the same column whatever the width of the letters.
    starts = {cell_len(line[: line.rindex("x at ")]) for line in rows}
    assert max(starts) - min(starts) <= 3  # but for the digits of the number
    said = re.search(
        r"Each column is the mean of up to (\d+) image", " ".join(uncoloured(shown).split())
    )
    assert (said is None) is (P == 1 or (P < 61 and columns == 80 and P < 50))


@pytest.mark.slow
def test_a_terminal_without_colours_gets_none(folder, on_terminal):
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "linux"}):
        shown = on_terminal(*show(*pair("cat")), **env)
        assert "====" in shown
        assert "\x1b[48" not in shown


@pytest.mark.slow
def test_true_colour_is_used_where_there_is_any(folder, on_terminal):
    shown = on_terminal(*show(*pair("cat")), COLORTERM="truecolor")
    assert "\x1b[48;2;125;124;120m" in shown  # cividis half way


def test_padding_is_marked_and_left_out(folder, cli):
    np.save("m.npy", np.arange(49) < 40)
    done = cli(*show(*pair("cat")), "--image-mask", "m.npy")
    assert all(line[2:100] == "=" * 80 + "/" * 18 for line in rows_of(done.err))
    assert done.err.rstrip().endswith("/ is padding.")
    np.save("m.npy", np.zeros(49, bool))
    done = cli(*show(*pair("cat")), "--image-mask", "m.npy", "--allow-empty-image")
    assert "No real image token: there is nothing to attend to." in done.err
    assert "/" * 98 in done.err
    assert "uniform" not in done.err
    assert done.err.endswith("largest\n/ is padding.\n")


def test_what_occurs_is_said_of_image_tokens_where_columns_are_means_of_several(folder, cli):
    rng = np.random.default_rng(0)
    np.save("i.npy", rng.standard_normal((577, 16), np.float32) * 3)
    np.save("t.npy", rng.standard_normal((5, 16), np.float32) * 3)
    done = cli(*show("i.npy", "t.npy"))
    peaks = [float(line.split()[-3].rstrip("x")) for line in rows_of(done.err)]
    (here,) = re.findall(r"here [\d.]+x to ([\d.]+)x", done.err)
    (columns,) = re.findall(r"columns are [\d.]+x to ([\d.]+)x\.", " ".join(done.err.split()))
    assert float(here) == max(peaks)
    assert float(columns) < max(peaks)


def test_one_sample_of_a_stack_is_shown(folder, cli):
    rng = np.random.default_rng(0)
    np.save("i.npy", rng.standard_normal((3, 7, 8), np.float32) * 4)
    np.save("t.npy", rng.standard_normal((3, 2, 8), np.float32) * 4)
    shown = [cli(*show("i.npy", "t.npy"), "--sample", str(i)).err for i in range(3)]
    assert len(set(shown)) == 3
    assert "sample 2 of 3" in shown[2]
    assert "sample 0 of 3" in cli(*show("i.npy", "t.npy")).err


def test_one_image_token_is_said_to_mean_nothing(folder, cli):
    done = cli(*show(str(SAMPLES / "img.npy"), str(SAMPLES / "txt.npy")))
    assert "One image token: its weight is 1 whatever the text, so this map means nothing." in (
        done.err.replace("\n", " ")
    )
