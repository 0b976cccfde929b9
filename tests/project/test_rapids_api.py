"""The check of what we use of RAPIDS finds what is not there, in packages made here: unpacked, in wheels, in Cython."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers import ROOT

SCRIPT = ROOT / "ci" / "check-rapids-api.py"
THEIRS = {
    "cuml/__init__.py": "from cuml._version import __version__\nfrom .cluster import *\n",
    "cuml/_version.py": "try:\n    __version__ = '26.10'\nexcept OSError:\n    pass\n",
    "cuml/cluster/__init__.py": "from cuml.cluster.kmeans import KMeans\n",
    "cuml/cluster/kmeans.pyx": """
cimport cuml.cpp as lib
from cuml.base import (
    Base,
)

cdef _fit(lib.handle_t& handle, X):
    pointers = None

class KMeans(Base):
    labels_ = None

    def __init__(
        self,
        *,
        n_clusters=8,
        batch=1<<15,
    ):
        self.n_clusters = n_clusters

    def fit(self, X, y=None) -> "KMeans":
        cdef int64_t n = X.shape[0]
        if n:
            self.n_iter_ = 3
        return self
""",
    "cuml/base.py": "class Base:\n    def clone(self, deep): ...\n    @classmethod\n    def made(cls, of): ...\n",
    "cuml/dask/__init__.py": "",
    "cuml/dask/cluster/__init__.py": "from cuml.dask.cluster.kmeans import KMeans\n",
    "cuml/dask/cluster/kmeans.py": "class KMeans:\n    def __init__(self, *, client=None, **kwargs): ...\n"
    "    def fit(self, X): ...\n",
    "cuml/fast.abi3.so": "\x00\x00product(intptr_t handle, int algo=0)\x00SMALL\x00",
    "cuml-26.10.0.dist-info/METADATA": "Name: cuml\n",
    "dask_cuda/__init__.py": "from distributed import LocalCluster\n"
    "class LocalCUDACluster(LocalCluster):\n    def __init__(self, n_workers=None, **kwargs): ...\n",
}
RIGHT = """
def fit(rows, client):
    import cuml
    from cuml.dask.cluster import KMeans

    model = KMeans(client=client, n_clusters=3, batch=7)
    model.fit(rows)
    cuml.KMeans().fit(rows, y=None), cuml.KMeans.made(1)
    return model.n_iter_, model.labels_, model.clone(deep=True), cuml.__version__


def cluster():
    from dask_cuda import LocalCUDACluster

    with LocalCUDACluster(n_workers=2, dashboard_address=":0") as made:
        made.scale(1)
"""


def check(
    at: Path, code: str, *, wheel: bool = False, packages: dict[str, str] = THEIRS
) -> subprocess.CompletedProcess:
    ours, theirs = at / "ours", at / "wheels"
    for folder in (ours, theirs):
        folder.mkdir()
    (ours / "code.py").write_text(code)
    if wheel:
        with zipfile.ZipFile(theirs / "cuml-26.10.0-py3-none-any.whl", "w") as archive:
            for name, content in packages.items():
                archive.writestr(name, content)
    else:
        for name, content in packages.items():
            (theirs / name).parent.mkdir(parents=True, exist_ok=True)
            (theirs / name).write_text(content)
    words = [sys.executable, str(SCRIPT), str(theirs), "--source", str(ours)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("wheel", [False, True])
def test_what_is_there_is_right(tmp_path, wheel):
    done = check(tmp_path, RIGHT, wheel=wheel)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "against cuml-26.10.0" in done.stdout
    assert "KMeans(client, n_clusters, batch)" in done.stdout
    assert done.stdout.endswith("14 uses, 0 wrong\n")


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("batch=7", "batches=7", "no argument batches"),
        ("import KMeans", "import KMeanz as KMeans", "KMeanz"),
        ("cuml.dask.cluster import", "cuml.dask.clusters import", "no such name"),
        ("model.n_iter_", "model.n_iters_", "KMeans().n_iters_"),
        ("model.fit(rows)", "model.fit(rows, 1)", "takes 1 positional"),
        ("model.fit(rows)", "model.fit()", "needs X"),
        ("clone(deep=True)", "clone(deeper=True)", "no argument deeper"),
        ("dashboard_address", "dashboard_adress", "no argument dashboard_adress"),
        ("made.scale", "made.scales", "scales"),
        ("y=None", "z=None", "no argument z"),
    ],
)
def test_what_is_not_there_is_told_with_its_place(tmp_path, before, after, fault):
    assert before in RIGHT
    done = check(tmp_path, RIGHT.replace(before, after))
    wrong = done.stdout.partition("WRONG")[2]
    assert done.returncode == 1
    assert fault in wrong
    assert "code.py:" in wrong


def test_compiled_modules_are_told_as_not_checked(tmp_path):
    done = check(tmp_path, "import cuml.fast\n")
    assert done.returncode == 0
    assert "cuml.fast is compiled, not checked" in done.stdout


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("cuml.fast.product(1, algo=2), cuml.fast.SMALL, xp.inertia", ""),
        ("cuml.fast.produce(1)", "no such name in it"),
        ("cuml.fast.product(1, 2, 3)", "takes 2 positional"),
        ("cuml.fast.product(1, algos=2)", "no argument algos"),
        ("cuml.fast.LARGE", "no such name in it"),
        ("xp.inertias", "no such name"),
    ],
)
def test_compiled_modules_are_held_to_what_they_say_of_themselves(tmp_path, line, fault):
    packages = THEIRS | {"cupy/__init__.py": "inertia = 1\n"}
    done = check(tmp_path, f"import cuml.fast\n{line}\n", packages=packages)
    assert done.returncode == bool(fault)
    assert fault in done.stdout.partition("WRONG")[2]


def test_without_wheels_it_says_how_to_get_them(tmp_path):
    done = check(tmp_path, RIGHT, packages={})
    assert done.returncode == 2
    assert "pip download" in done.stderr
    assert "cuml-cu13==26.10.*" in done.stderr


def test_calls_that_hide_their_arguments_are_refused(tmp_path):
    done = check(tmp_path, "import cuml\ncuml.KMeans(**{})\n")
    assert done.returncode == 1
    assert "cannot be checked" in done.stderr


@pytest.mark.parametrize(("name", "right"), [("dashboard_address", True), ("dashboard_adress", False)])
def test_fields_that_are_handed_over_are_arguments(tmp_path, name, right):
    code = (
        f"class Settings:\n    n_workers: int = _of_gpus(1)\n    {name}: str = _of_gpus(':0')\n    other: int = 3\n\n\n"
    )
    code += 'from dask_cuda import LocalCUDACluster\nLocalCUDACluster(**_of(Settings(), "gpu"))\n'
    done = check(tmp_path, code)
    assert done.returncode == (0 if right else 1), done.stderr
    assert f"LocalCUDACluster(n_workers, {name})" in done.stdout
    assert (f"no argument {name}" in done.stdout) != right
