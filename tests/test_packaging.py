"""What an installed daskmeans promises: its commands, its extras, its public names, and what importing it costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import distribution, entry_points
from pathlib import Path

import click
import pytest

import daskmeans

PACKAGE = Path(daskmeans.__path__[0])
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_dask_finds_the_commands() -> None:
    (command,) = entry_points(group="dask_cli", name="kmeans")
    assert isinstance(command.load(), click.Group)


def test_the_console_script_can_be_loaded() -> None:
    (script,) = entry_points(group="console_scripts", name="daskmeans")
    assert callable(script.load())


def test_public_names_are_sorted_and_there() -> None:
    assert list(daskmeans.__all__) == sorted(daskmeans.__all__)
    assert len(daskmeans.__all__) <= 15
    for name in daskmeans.__all__:
        assert getattr(daskmeans, name).__doc__, name


def test_every_extra_that_an_error_names_exists() -> None:
    offered = set(distribution("daskmeans").metadata.get_all("Provides-Extra", []))
    pattern = re.compile(r'MissingExtraError\([^,()]+, "([\w-]+)"\)')
    named = {extra for module in MODULES for extra in pattern.findall(module.read_text())}
    assert named
    assert named <= offered


def test_importing_every_module_brings_in_no_library_of_an_extra() -> None:
    script = Path(__file__).parent.parent / "ci" / "imports.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("kernels", {"dask", "distributed", "daskmeans.vectors", "daskmeans.kmeans", "daskmeans.runtime"}),
        ("vectors", {"daskmeans.kmeans", "daskmeans.dedup", "daskmeans.assign", "daskmeans.cli"}),
        ("kmeans", {"daskmeans.dedup", "daskmeans.assign", "daskmeans.cli"}),
        ("dedup", {"daskmeans.cli", "daskmeans.workflow"}),
    ],
)
def test_imports_run_downwards(room: str, forbidden: set[str]) -> None:
    for module in (PACKAGE / room).rglob("*.py"):
        for name in imported(module):
            assert not any(name == bad or name.startswith(f"{bad}.") for bad in forbidden), f"{module} imports {name}"


def imported(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names
