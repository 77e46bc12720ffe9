"""What the command line does not import, because importing it would cost more than the job."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fusecli

HEAVY = {"torch", "matplotlib", "ray", "pyarrow", "pydantic", "sklearn", "scipy"}
PACKAGE = Path(fusecli.__file__).parent
SAMPLES = PACKAGE.parent / "sample_features"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Runs the command line, then says which modules that took; exit code first.
PROBE = """
import sys
from fusecli.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
print("LOADED", code, *sorted({name.split(".")[0] for name in sys.modules}))
"""


def loaded(*args, cwd):
    """Top-level modules in `sys.modules` after the command line has run."""
    command = [sys.executable, "-c", PROBE, *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert "LOADED" in done.stdout, done.stderr
    code, *names = done.stdout.rpartition("LOADED ")[2].split()
    assert code == "0", done.stderr
    assert {"fusecli", "typer"} <= set(names)
    return set(names)


def sample(name):
    return SAMPLES / name


LIGHT = {
    "help": ["--help"],
    "help of fuse": ["fuse", "--help"],
    "version": ["--version"],
    "fuse": ["fuse", sample("img.npy"), sample("txt.npy")],
    "fuse with a report": [
        "fuse", sample("img.npy"), sample("txt.npy"), "--json", "--report", "--residual",
    ],
    "fuse patches": ["fuse", sample("astronaut.image.npy"), sample("astronaut.text.npy")],
    "fuse with a null token": [
        "fuse", sample("cat.global.npy"), sample("cat.text.npy"), "--null-token", "--norm",
        "-o", "out.safetensors",
    ],
    "fuse by concat": [
        "fuse", sample("cat.image.npy"), sample("cat.text.npy"), "--method", "concat",
        "--pool", "mean", "--json",
    ],
    "fuse by a projected sum": [
        "fuse", sample("cat.image.npy"), sample("cat.text.npy"), "--method", "sum",
        "--direction", "both",
    ],
    "fuse with a gate": ["fuse", sample("cat.image.npy"), sample("cat.text.npy"), "--gate"],
    "init a transformer": [
        "init", "-o", "w.safetensors", "--dim", "16", "--method", "transformer",
    ],
    "methods": ["methods", sample("cat.image.npy"), sample("cat.text.npy")],
    "fuse with attention": [
        "fuse", sample("cat.image.npy"), sample("cat.text.npy"), "--attention", "m.npy", "--show",
        "--tokens", sample("tokens.json"),
    ],
    "init": ["init", "-o", "w.safetensors", "--dim", "64"],
    "inspect": ["inspect", sample("img.npy"), sample("astronaut.image.npy")],
    "inspect the numbers": ["inspect", "--stats", "--json", sample("img.npy")],
}  # fmt: skip


@pytest.mark.parametrize("arguments", LIGHT.values(), ids=LIGHT)
def test_small_jobs_import_nothing_heavy(arguments, tmp_path):
    assert not loaded(*arguments, cwd=tmp_path) & HEAVY


@pytest.mark.slow
def test_weights_and_masks_from_files_import_nothing_heavy(tmp_path):
    loaded("init", "-o", "w.safetensors", "--dim", "384", "--image-dim", "320", cwd=tmp_path)
    np.save(tmp_path / "mask.npy", np.arange(49) < 40)
    arguments = [sample("cat.image.npy"), sample("cat.text.npy"), "--image-mask", "mask.npy"]
    names = loaded("fuse", *arguments, "--weights", "w.safetensors", cwd=tmp_path)
    assert not names & HEAVY
    assert "safetensors" in names
    assert not loaded("inspect", "w.safetensors", cwd=tmp_path) & HEAVY


@pytest.mark.slow
def test_a_small_batch_imports_nothing_heavy(tmp_path):
    for name in ("cat", "coffee"):
        for side in ("image", "text"):
            (tmp_path / side).mkdir(exist_ok=True)
            np.save(tmp_path / side / f"{name}.npy", np.load(sample(f"{name}.{side}.npy")))
    for out, more in {"a": [], "b": ["--pack", "--json"], "c": ["--shard", "1/2"]}.items():
        names = loaded("batch", "image", "text", "-o", out, *more, cwd=tmp_path)
        assert not names & {*HEAVY, "rich"}
    assert not loaded("batch", "--merge", "-o", "b", cwd=tmp_path) & HEAVY


@pytest.mark.slow
def test_the_probe_sees_torch_where_it_is_imported(tmp_path):
    arguments = ["fuse", sample("img.npy"), sample("txt.npy"), "--engine", "torch"]
    assert "torch" in loaded(*arguments, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--json", sample("img.npy")]])
def test_rich_is_imported_only_for_tables(arguments, tmp_path):
    assert "rich" not in loaded(*arguments, cwd=tmp_path)
    assert "rich" in loaded("inspect", sample("img.npy"), cwd=tmp_path)


def test_importing_fusecli_imports_nothing_else():
    code = "import fusecli, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    assert "fusecli" in names
    assert not {"numpy", "typer", "rich", "safetensors", *HEAVY} & names


def imported_at_the_top(tree):
    """Modules that a file imports when it is imported itself, whole names."""
    found, left = set(), list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they go"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            left += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return found


def imported_anywhere(tree):
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def files_that_import(name, how):
    return {
        relative(path)
        for path in MODULES
        if any(module == name or module.startswith(f"{name}.") for module in how(parsed(path)))
    }


def test_the_finder_of_imports_finds_them():
    tree = ast.parse(
        "import a.b\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import hidden\nelse:\n    import shown\n"
        "try:\n    import tried\nexcept ImportError:\n    pass\n"
        "class C:\n    from c import d\n"
        "def late():\n    import later\n"
    )
    top = imported_at_the_top(tree)
    assert {"a.b", "shown", "tried", "c.d"} <= top
    assert not {"hidden", "later"} & top
    assert {"hidden", "later", "a.b", "c"} <= imported_anywhere(tree)


TRAINED_IN_TORCH = (
    "baselines", "fit", "fitted", "head", "inference", "loop", "loss", "model", "optimizer",
    "side_by_side", "stored",
)  # fmt: skip


@pytest.mark.slow
def test_only_the_module_imports_torch_at_the_top():
    assert files_that_import("torch", imported_at_the_top) == {
        "fusion/pair_module.py",
        "fusion/torch_modules.py",
        *(f"training/{name}.py" for name in TRAINED_IN_TORCH),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HEAVY - {"torch"}))
def test_nothing_imports_another_heavy_library_at_the_top(name):
    assert files_that_import(name, imported_at_the_top) == set()


@pytest.mark.slow
def test_only_console_tables_and_heatmap_import_rich():
    assert files_that_import("rich", imported_anywhere) == {
        "cli/console.py",
        "cli/tables.py",
        "cli/heatmap.py",
    }


@pytest.mark.slow
def test_no_room_imports_the_command_line():
    importers = files_that_import("fusecli.cli", imported_anywhere)
    assert {path for path in importers if not path.startswith("cli/")} == {"__main__.py"}


@pytest.mark.slow
def test_only_the_command_line_imports_typer():
    importers = files_that_import("typer", imported_anywhere)
    assert "cli/app.py" in importers
    assert all(path.startswith("cli/") for path in importers)


def test_plain_data_is_made_without_arrays_or_files():
    for name in (
        "features/axes.py",
        "fusion/methods/attention/plan.py",
        "fusion/config.py",
        "errors.py",
    ):
        outside = {
            module.split(".")[0]
            for module in imported_anywhere(parsed(PACKAGE / name))
            if not module.startswith("fusecli")
        }
        assert outside <= sys.stdlib_module_names, name


@pytest.mark.slow
def test_the_plot_imports_matplotlib_and_nothing_global_of_it(tmp_path):
    """What `LIGHT` would see if the map in the terminal needed it too."""
    arguments = ["fuse", sample("cat.image.npy"), sample("cat.text.npy"), "--plot", "p.png"]
    names = loaded(*arguments, cwd=tmp_path)
    assert "matplotlib" in names
    assert not names & (HEAVY - {"matplotlib"})
