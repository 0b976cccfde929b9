"""The scripts of workflows/, run as their reader would run them; ci/notebook.sh runs the notebook."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster
from nbclient import NotebookClient

import daskmeans as dkm
from helpers import ROOT, write_embeddings

WORKFLOWS = ROOT / "workflows"
N_ROWS, N_COPIES, N_CLUSTERS = 300, 60, 5


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of which the last rows are copies of the first; all others are far apart."""
    rows = np.random.default_rng(0).normal(size=(N_ROWS, 32)).astype("float32")
    rows[-N_COPIES:] = rows[:N_COPIES]
    return write_embeddings(tmp_path_factory.mktemp("input") / "vectors.parquet", rows)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WORKFLOWS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def check_work(done: subprocess.CompletedProcess[str], out: Path) -> None:
    assert done.returncode == 0, done.stderr
    assert "dashboard: http" in done.stdout
    assert dkm.KMeans.load(out / "model").cluster_centers_.shape == (N_CLUSTERS, 32)
    buckets = [pq.read_table(file, columns=["id"]) for file in (out / "clusters").glob("bucket-*.parquet")]
    assert len(set(pa.concat_tables(buckets)["id"].to_pylist())) == N_ROWS
    summary = json.loads((out / "decisions" / "_summary.json").read_text())
    assert (summary["kept"], summary["removed"]["exact"]) == (N_ROWS - N_COPIES, N_COPIES)


def test_laptop(vectors: Path, tmp_path: Path) -> None:
    check_work(run("laptop.py", vectors, tmp_path, N_CLUSTERS), tmp_path)


def test_existing_scheduler(vectors: Path, tmp_path: Path, two_workers: LocalCluster) -> None:
    check_work(run("scheduler.py", two_workers.scheduler_address, vectors, tmp_path, N_CLUSTERS), tmp_path)


@pytest.mark.skipif(find_spec("dask_cuda") is not None, reason="dask_cuda is installed")
def test_the_notebook_for_gpus_says_so_in_one_line_and_does_nothing_more() -> None:
    book = nbformat.read(WORKFLOWS / "gpus.ipynb", as_version=4)
    NotebookClient(book, timeout=60).execute()
    told = [output["text"] for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert len(told) == 1
    assert told[0].count("\n") == 1
    assert 'pip install "daskmeans[gpu]"' in told[0]


@pytest.mark.skipif(find_spec("dask_cuda") is not None, reason="dask_cuda is installed")
def test_gpu_without_its_extra_says_so_in_one_line(vectors: Path, tmp_path: Path) -> None:
    done = run("cluster_gpu.py", vectors, tmp_path, N_CLUSTERS)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'pip install "daskmeans[gpu]"' in done.stderr
    assert not any(tmp_path.iterdir())
