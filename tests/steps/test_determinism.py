"""The whole job has the same outputs, bit for bit, however and wherever it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import daskmeans as dkm
from daskmeans.vectors.options import ReadOptions
from faults import content
from helpers import blobs, different, nightly, write_embeddings

SCRIPT = "from daskmeans.cli.main import main; main()"
# Cores that OpenBLAS has kernels for, which add in different orders, and what a processor must have for them: on one
# that lacks it, they would end the process.
CORES = {"Prescott": "pni", "Haswell": "avx2", "SkylakeX": "avx512f"}
SMALL = {"DASK_DASKMEANS__PARTITION_BYTES": "6000", "DASK_DASKMEANS__TILE_BYTES": "20000"}
# A way to run: variables, flags, and the core that OpenBLAS takes this one for; they differ in all that may not matter.
JOBS = {
    "two workers": ({"PYTHONHASHSEED": "1"} | SMALL, ["--n-workers", "2"], "Haswell"),
    "three threads": ({"PYTHONHASHSEED": "2"}, ["--n-workers", "1", "--threads-per-worker", "3"], "SkylakeX"),
    "one worker": ({"DASK_DASKMEANS__KERNELS": "float32"}, ["--n-workers", "1"], "Prescott"),
}
PRODUCT = """
import numpy as np, threadpoolctl
rng = np.random.default_rng(0)
X, Y = (rng.normal(size=shape).astype(np.float32) for shape in ((50, 300), (300, 50)))
print({found["internal_api"] for found in threadpoolctl.threadpool_info()}, (X @ Y).tobytes().hex())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("determinism")
    X = blobs(n=1500, d=24, k=20, copies=100)
    names = [f"row-{i:05d}" for i in range(len(X))]
    for number, places in enumerate(np.array_split(np.arange(len(X)), 3)):
        text = [f"text {i}" for i in places]
        write_embeddings(at / "in" / f"{number}.parquet", X[places], ids=[names[i] for i in places], text=text)
    return at


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, object]:
    """What a run in this process holds."""
    dkm.run(folder / "in", folder / "here", dkm.KMeans(30), 0.9, ReadOptions(metadata_fields=("text",)))
    return content(folder / "here")


def job(folder: Path, name: str) -> dict[str, object]:
    """What a run in processes of its own holds."""
    variables, flags, core = JOBS[name]
    out = folder / name.replace(" ", "-")
    words = ["run", folder / "in", "--out", out, "--n-clusters", 30, "--threshold", 0.9, "--metadata-field", "text"]
    words += ["--dashboard-address", "127.0.0.1:0", "--quiet", *flags]
    command = [sys.executable, "-c", SCRIPT, *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | variables | taken_for(core), timeout=280)
    return content(out)


def taken_for(core: str) -> dict[str, str]:
    """The variable by which OpenBLAS takes this processor for a `core`, if it can run the kernels for that."""
    file = Path("/proc/cpuinfo")
    runs = file.exists() and f" {CORES[core]} " in file.read_text()
    return {"OPENBLAS_CORETYPE": core} if runs else {}


def test_the_kernels_of_the_cores_multiply_to_other_bits():
    """Else the jobs would not tell what another BLAS does."""
    found = set()
    for core in (cores := [core for core in CORES if taken_for(core)]):
        command, env = [sys.executable, "-c", PRODUCT], os.environ | taken_for(core)
        told = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=280).stdout
        if "openblas" not in told:
            pytest.skip("numpy does not multiply by OpenBLAS here")
        found.add(told)
    assert len(found) > 1 or len(cores) < 2


@pytest.mark.parametrize("name", ["two workers", *map(nightly, ("one worker", "three threads"))])
def test_the_whole_job_has_equal_bits(folder, expected, name):
    found = job(folder, name)
    tables = [len(table) for table in expected.values() if isinstance(table, pa.Table)]
    assert tables.count(1500) == 2  # clusters and decisions
    assert 0 < expected["summary.json"]["kept"] < 1500
    assert different(found, expected) == set()
