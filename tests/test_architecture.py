"""What each package may import, and that no modules import each other in a circle."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import fusecli

PACKAGE = Path(fusecli.__file__).parent

# What each package may import besides itself and the modules of ROOT. The packages stand in
# order from the top floor down; docs/architecture.md draws the same.
MAY_IMPORT: dict[str, set[str]] = {
    "cli": {"bench", "job", "batch", "training", "maps", "report", "fusion", "pairs", "features"},
    "bench": {"job", "batch", "training", "maps", "report", "fusion", "pairs", "features"},
    "job": {"maps", "report", "fusion", "pairs", "features"},
    "batch": {"report", "fusion", "pairs", "features"},
    "training": {"report", "fusion", "pairs", "features"},
    "maps": {"report", "fusion", "features"},
    "report": {"fusion", "pairs", "features"},
    "fusion": {"features"},
    "pairs": {"features"},
    "features": set(),
}
ROOT = {"fusecli.errors", "fusecli._version", "fusecli.records"}  # every package may import these
# The packages inside a package. Those beneath it may import, of what lies beside them, only the
# modules named here; those on top of it are imported by the modules named here and by no others.
# So each of them stands on one floor, and can be read without what lies above it.
BENEATH: dict[str, set[str]] = {
    "batch.store": {"tuning"},
    "features.formats": {"dtypes", "literals", "tensor"},
    "fusion.backend": {"literals"},
    "fusion.methods": {"backend", "base", "layers", "literals", "method", "pooling", "settings"},
    "fusion.methods.attention": set(),
}
ON_TOP: dict[str, set[str]] = {
    "batch.ray": {"run"},
    "cli.commands": set(),  # `app` imports the module of a command by its name
}
# The one exception: a method names its plain torch module, which users import and train. That
# module holds a config, and a config knows its method.
TORCH_MODULES = {"fusecli.fusion.pair_module", "fusecli.fusion.torch_modules"}
# `fusecli` imports from everywhere to give the public names, so nothing below may import it.
ENTRANCES = {"fusecli", "fusecli.__main__"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source: str, module: str) -> set[str]:
    """Modules of fusecli that a source text imports: at its top, in functions, or for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return {name for name in found if name in MODULES} - {module}


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports. Not at the module's top: collecting the tests would read it all."""
    return {
        module: imported(path.read_text(encoding="utf-8"), module)
        for module, path in MODULES.items()
    }


def package_of(module: str) -> str:
    return module.split(".")[1]


def circles(arrows: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules that reach each other: the strongly connected components."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for other in arrows[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reach = {module: reached(module) for module in arrows}
    return {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in arrows
        if module in reach[module]
    }


def test_every_module_lies_in_a_package_with_a_place():
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages == set(MAY_IMPORT)
    assert {module_name(path) for path in PACKAGE.glob("*.py")} == ROOT | ENTRANCES


def test_packages_import_only_what_lies_below_them():
    wrong = []
    for module in sorted(MODULES.keys() - ROOT - ENTRANCES):
        package = package_of(module)
        for other in sorted(imports()[module] - ROOT):
            if other in ENTRANCES or package_of(other) not in MAY_IMPORT[package] | {package}:
                wrong.append(f"{module} imports {other}")
    for module in sorted(ROOT):
        wrong += [f"{module} imports {other}" for other in sorted(imports()[module])]
    assert wrong == []


def inside(package: str) -> set[str]:
    """The modules of a package, by its name without `fusecli.`."""
    return {name for name in MODULES if f"{name}.".startswith(f"fusecli.{package}.")}


def arrows_between(sources: set[str], targets: set[str]) -> set[tuple[str, str]]:
    """Which of some modules import which of some others."""
    return {(a, b) for a in sources for b in imports()[a] & targets}


def beside(package: str, sub_package: str) -> set[str]:
    """The modules of a package that are not of one package in it, nor the package's own name."""
    return inside(package) - inside(sub_package) - {f"fusecli.{package}"}


def test_packages_in_a_package_are_all_beneath_it_or_on_top_of_it():
    found = {
        name.removeprefix("fusecli.")
        for name, path in MODULES.items()
        if path.name == "__init__.py" and name.count(".") > 1
    }
    assert found == BENEATH.keys() | ON_TOP.keys()


@pytest.mark.parametrize("name", BENEATH)
def test_a_package_beneath_imports_only_what_is_named(name):
    package = name.rpartition(".")[0]
    arrows = arrows_between(inside(name), beside(package, name) - TORCH_MODULES)
    start = f"fusecli.{package}."
    assert {other.removeprefix(start).split(".")[0] for _, other in arrows} == BENEATH[name]


@pytest.mark.parametrize("name", BENEATH)
def test_what_a_package_beneath_imports_does_not_import_it(name):
    package = name.rpartition(".")[0]
    todo, seen = [f"fusecli.{package}.{module}" for module in BENEATH[name]], set()
    while todo:
        module = todo.pop()
        for other in inside(module.removeprefix("fusecli.")) - seen:
            seen.add(other)
            todo += imports()[other] & inside(package)
    assert arrows_between(seen, inside(name)) == set()


@pytest.mark.parametrize("name", ON_TOP)
def test_a_package_on_top_is_imported_only_where_it_is_named(name):
    package = name.rpartition(".")[0]
    arrows = arrows_between(MODULES.keys() - inside(name), inside(name))
    assert {module for module, _ in arrows} == {f"fusecli.{package}.{m}" for m in ON_TOP[name]}


def test_no_module_with_tests_is_imported_by_another():
    tests = Path(__file__).parent
    wrong = [
        f"{path.relative_to(tests)}: {line}"
        for path in sorted(tests.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\W*(from|import) tests\.(\w+\.)*test_", line)
    ]
    assert wrong == []


def test_the_order_of_the_packages_has_no_circle():
    order = list(MAY_IMPORT)
    for package, below in MAY_IMPORT.items():
        assert all(order.index(other) > order.index(package) for other in below), package


def test_no_modules_import_each_other_in_a_circle():
    assert circles(imports()) == set()


def test_imports_in_functions_and_for_types_are_seen():
    source = """
from typing import TYPE_CHECKING
import fusecli.errors
from fusecli.features import axes
if TYPE_CHECKING:
    from fusecli.job.run import FuseOptions
def f():
    from fusecli.fusion.config import FusionConfig
"""
    assert imported(source, "fusecli.cli") == {
        "fusecli.errors",
        "fusecli.features.axes",
        "fusecli.job.run",
        "fusecli.fusion.config",
    }


def test_circles_of_any_length_are_found():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(arrows) == {frozenset("abc"), frozenset("de")}
    assert circles({"a": {"b"}, "b": set()}) == set()
