"""What an installed daskmeans promises: its commands, its extras, its public names, and what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import distribution, entry_points
from pathlib import Path

import click
import pytest

import daskmeans
import oldest
from daskmeans.cli import commands
from helpers import ROOT

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
    assert len(daskmeans.__all__) <= 20
    for name in daskmeans.__all__:
        assert getattr(daskmeans, name).__doc__, name


def test_every_extra_that_an_error_names_exists() -> None:
    offered = set(distribution("daskmeans").metadata.get_all("Provides-Extra", []))
    pattern = re.compile(r'MissingExtraError\([^,()]+, "([\w-]+)"\)')
    named = {extra for module in MODULES for extra in pattern.findall(module.read_text())}
    assert named
    assert named <= offered


def test_importing_every_module_brings_in_no_library_of_an_extra() -> None:
    script = ROOT / "ci" / "imports.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_of_commands_takes_no_library() -> None:
    script = """
import sys
from daskmeans.cli.main import main
from daskmeans.cli.verbs import VERBS
main(["--help"], standalone_mode=False)
print(*{"dask", "distributed", "numba", "numpy", "pandas", "pyarrow"} & sys.modules.keys(), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "\n"
    listed = {line.split()[0] for line in done.stdout.split("Commands:\n")[1].splitlines()}
    assert listed == {name for name, each in vars(commands).items() if isinstance(each, click.Command)}


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_deprecations_are_errors_where_our_code_makes_the_call(kind: type[Warning]) -> None:
    """Warnings are attributed to the module that made the deprecated call; of two other packages, to one of them."""
    for module in ("daskmeans.vectors.files", "daskmeans", __name__, "helpers"):
        with pytest.raises(kind):
            warnings.warn_explicit("old", kind, "file.py", 1, module=module)
    with warnings.catch_warnings(record=True) as told:
        warnings.warn_explicit("old", kind, "file.py", 1, module="dask.dataframe.io.parquet.arrow")
    assert [each.category for each in told] == [kind]
    with pytest.raises(UserWarning):
        warnings.warn_explicit("odd", UserWarning, "file.py", 1, module="dask.dataframe.io.parquet.arrow")


def test_oldest_versions_are_the_lower_bounds() -> None:
    project = {
        "name": "ours",
        "dependencies": ["one>=1.2", "two[extra,more]>=3"],
        "optional-dependencies": {"test": ["ours[data]", "three>=0.1"], "data": ["four-x>=5.0.1"]},
    }
    pins = oldest.pins(project, [*project["dependencies"], "ours[test]"])
    assert list(pins) == ["one==1.2", "two==3", "four-x==5.0.1", "three==0.1"]
    with pytest.raises(SystemExit, match="one"):
        list(oldest.pins(project, ["one>=1,<2"]))
    with pytest.raises(SystemExit, match="one"):
        list(oldest.pins(project, ["one"]))


def test_every_requirement_has_an_oldest_version() -> None:
    project = tomllib.loads(oldest.PROJECT.read_text())["project"]
    assert len(list(oldest.pins(project, [*project["dependencies"], "daskmeans[test]"]))) > 20


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_defaults_outlive_a_setting_that_was_open_as_they_were_read():
    code = """
import dask, numpy as np, daskmeans
with dask.config.set({"daskmeans.tile-bytes": "1MiB"}):
    daskmeans.KMeans(2).fit(np.eye(3))
print(daskmeans.KMeans(2).fit(np.eye(3)).n_clusters)
"""
    assert run_python(code) == "2\n"


def test_what_is_public_is_there_and_modules_are_found():
    code = """
import daskmeans
print([name for name in daskmeans.__all__ if not hasattr(daskmeans, name)])
print(daskmeans.steps.fit.fit.__name__, daskmeans.errors.DataError.__name__, hasattr(daskmeans, "nothing"))
"""
    assert run_python(code) == "[]\nfit DataError False\n"
