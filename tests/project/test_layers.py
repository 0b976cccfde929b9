"""The house as docs/internals/design.md draws it: who may import whom, what knows of Dask, how long a module may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import daskmeans

PACKAGE = Path(daskmeans.__file__).parent
MODULES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}
# The lowest first. What is in no folder (errors, options, config, tuning) everyone may import.
LAYERS = [
    *("kernels", "runtime", "storage", "encoders", "vectors", "buckets"),
    *("kmeans", "pairs", "duplicates", "steps", "planner", "report", "cli"),
]
LONGEST = 350


def imports(file: Path) -> set[str]:
    """Modules of ours that a module imports, wherever in it, by their names below the package."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "daskmeans":
            folder = (node.module or "").removeprefix("daskmeans").removeprefix(".")
            for alias in node.names:
                full = f"{folder}.{alias.name}".removeprefix(".")
                found |= {full} if full in MODULES else {folder} if folder in MODULES else set()
    return found


IMPORTS = {name: imports(file) - {name} for name, file in MODULES.items() if name != "__init__"}


def test_every_folder_has_its_layer() -> None:
    assert {name.split(".")[0] for name in MODULES if "." in name} == set(LAYERS)


def test_few_files_are_at_the_top() -> None:
    at_the_top = {name for name in MODULES if "." not in name}
    assert at_the_top == {
        "__init__",
        "__main__",
        "config",
        "errors",
        "options",
        "tuning",
    }  # __main__ for `python -m daskmeans`


def test_no_import_goes_up() -> None:
    layer = {folder: i for i, folder in enumerate(LAYERS)}
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if "." in other and name != "__main__" and layer.get(name.split(".")[0], -1) < layer[other.split(".")[0]]
    ]
    assert not upward


def test_no_modules_import_each_other() -> None:
    list(TopologicalSorter(IMPORTS).static_order())  # CycleError names the circle


def test_nothing_below_runtime_knows_of_dask() -> None:
    names = ["daskmeans.errors", *(f"daskmeans.{name}" for name in MODULES if name.startswith("kernels."))]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith((".cuda", "gpu.scores"))]
    script = "\n".join(
        [
            "import importlib, sys",
            f"for name in {names!r}: importlib.import_module(name)",
            "print(sorted({'dask', 'distributed'} & sys.modules.keys()))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_is_long_without_a_reason(name: str) -> None:
    text = MODULES[name].read_text()
    if text.count("\n") > LONGEST:
        assert re.search(r"\bLonger than \d+ lines\b", ast.get_docstring(ast.parse(text)) or ""), "say why, or split it"


def test_no_module_uses_what_is_private_to_another() -> None:
    found = [
        f"{name}: {node.module}.{alias.name}"
        for name, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("daskmeans")
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not found
