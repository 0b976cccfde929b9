"""What a GPU does, in one JSON file: assignment, updates beside flash-kmeans, fits beside cuML, rows in host memory,
files to decisions.

python benchmarks/gpu.py --out results.json [--rows 1000000 --dimension 768 --n-clusters 4096] [--processor]

Rows are made here (``synthetic.py``). The file is written anew after each part, so that a run that is stopped leaves
what it has found; a part that fails leaves its error. With --processor the parts run by numpy, to try the script.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import TOLERANCE
from synthetic import embeddings

import daskmeans as dkm
from daskmeans.kernels.gpu import dense
from daskmeans.kernels.gpu.device import Device
from daskmeans.runtime import gpus
from daskmeans.storage import manifest
from daskmeans.tuning import DEFAULT

# Different rows that are made; the others are near to these.
MADE = 100_000


def rows_like_embeddings(rows: int, dimension: int) -> np.ndarray:
    """Unit rows, float32: near ones of at most 100,000 that imitate embeddings, a tenth of them copies."""
    made = embeddings(min(rows, MADE), dimension, copies=0.1)
    rng, X = np.random.default_rng(0), np.empty((rows, dimension), np.float32)
    for start in range(0, rows, MADE):
        part = X[start : start + MADE]
        part[:] = made[: len(part)]
        if start:
            part += rng.standard_normal(part.shape, np.float32) * np.float32(0.7 / dimension**0.5)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return X


def seconds(function: Callable[[], Any], device: Device, runs: int = 5) -> float:
    """Of the fastest of some runs, once all is compiled and there."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        function()
        if device.xp is not np:
            device.xp.cuda.Device().synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def products(X: np.ndarray, k: int, device: Device) -> dict[str, Any]:
    """TFLOP/s of products of float16 as the assignment makes them, and of torch's of bfloat16, if it is there."""
    size = 8192 if device.xp is not np else 256
    A = device.xp.ones((size, size), np.float16)
    found: dict[str, Any] = {"float16": 2 * size**3 / seconds(lambda: device.product(A, A), device) / 1e12}
    try:
        import torch

        B = torch.randn(size, size, dtype=torch.bfloat16, device="cuda" if device.xp is not np else "cpu")
        found["bfloat16, torch"] = 2 * size**3 / seconds(lambda: B @ B, device) / 1e12
    except ImportError:
        pass
    return found


def assignment(X: np.ndarray, k: int, device: Device) -> dict[str, Any]:
    """Labels of rows that are on the device, and of rows that are sent there, with their distances."""
    C = X[np.random.default_rng(1).choice(len(X), k, replace=False)]
    to = dense.encode_centroids(device, C, C.mean(axis=0, dtype=np.float64))
    few = X[: min(len(X), dense.tile_rows(k, X.shape[1], device.tuning))]
    rows = dense.encode_rows(device, device.xp.asarray(few), to.center)
    there = seconds(lambda: dense.closest_labels(device, rows, to), device)
    sent = seconds(lambda: dense.nearest_centroids(device, X, C), device, runs=2)
    work = 2 * X.shape[1] * k / 1e12
    return {
        "TFLOP/s, rows on the device": len(few) * work / there,
        "rows a second, rows on the device": len(few) / there,
        "TFLOP/s, rows sent, distances too": len(X) * work / sent,
        "rows a second, rows sent, distances too": len(X) / sent,
    }


def updates(X: np.ndarray, k: int, device: Device) -> dict[str, Any]:
    """Seconds of an update on all rows, which lie on the device: ours, and flash-kmeans' where it is installed."""
    C = X[np.random.default_rng(1).choice(len(X), k, replace=False)]
    km = dkm.KMeans(k, init=C, max_iter=5, tol=0, normalize=False).fit(X)
    found: dict[str, Any] = {"daskmeans": min(each["seconds"] for each in km.iterations_[1:])}
    if device.xp is np:
        return found | {"flash-kmeans": "not compared: it needs a device"}
    try:
        import torch
        from flash_kmeans import batch_kmeans_Euclid
    except ImportError as error:
        return found | {"flash-kmeans": f"not compared: {error}"}
    for dtype in (torch.float16, torch.float32):
        rows, first = (torch.from_numpy(array).to("cuda", dtype)[None] for array in (X, C))

        def run(count: int, rows: Any = rows, first: Any = first) -> None:
            batch_kmeans_Euclid(rows, k, max_iters=count, tol=0.0, init_centroids=first.clone())

        # What a run does but once, such as the norms of the rows, is no part of an update.
        found[f"flash-kmeans, {dtype}"] = (seconds(lambda: run(9), device) - seconds(lambda: run(1), device)) / 8
    return found


def fits(X: np.ndarray, k: int, device: Device) -> dict[str, Any]:
    """Seconds and inertia of fits with more and more updates; cuML's 25 are the target."""
    runs = []
    for updates in (2, 4, 8):
        start = time.perf_counter()
        km = dkm.KMeans(k, max_iter=updates, normalize=False, random_state=1).fit(X)
        took = time.perf_counter() - start
        runs.append({"who": "daskmeans", "updates": updates, "seconds": took, "inertia": km.inertia_})
    try:
        import cupy
        from cuml.cluster import KMeans
    except ImportError as error:
        return {"runs": runs, "cuML": f"not compared: {error}"}
    for updates in (5, 10, 25):
        start = time.perf_counter()
        made = KMeans(n_clusters=k, max_iter=updates, init="k-means||", n_init=1, random_state=1, tol=1e-30)
        centroids = cupy.asnumpy(made.fit(cupy.asarray(X)).cluster_centers_)
        took = time.perf_counter() - start
        inertia = float(dense.nearest_centroids(device, X, np.ascontiguousarray(centroids, np.float32))[1].sum())
        runs.append({"who": "cuML", "updates": updates, "seconds": took, "inertia": inertia})
    target = (1 + TOLERANCE) * runs[-1]["inertia"]
    fastest = {
        who: min((run["seconds"] for run in runs if run["who"] == who and run["inertia"] <= target), default=None)
        for who in ("daskmeans", "cuML")
    }
    return {"runs": runs, "seconds to the inertia of 25 updates of cuML": fastest}


def larger_than_the_device(X: np.ndarray, k: int, device: Device) -> dict[str, Any]:
    """Seconds of four updates with rows that stay on the device, and with rows that are sent for each pass."""
    found = {}
    for name, tuning in (("rows stay", DEFAULT), ("rows are sent", replace(DEFAULT, rows_share=0.0))):
        device.tuning = tuning
        start = time.perf_counter()
        dkm.KMeans(k, max_iter=4, init="random", normalize=False, random_state=1).fit(X)
        found[name] = time.perf_counter() - start
    device.tuning = DEFAULT
    return found


def decisions(X: np.ndarray, k: int, device: Device) -> dict[str, Any]:
    """Rows a second from Parquet to decisions, all rows compared with all: fit, assign, dedup; by either backend."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        vectors, ids = pa.FixedSizeListArray.from_arrays(X.ravel(), X.shape[1]), pa.array(np.arange(len(X)))
        pq.write_table(pa.table({"id": ids, "embedding": vectors}), f"{folder}/rows.parquet", row_group_size=20_000)
        for backend in ("pandas", "cudf")[: 1 if device.xp is np or find_spec("cudf") is None else 2]:
            start, km = time.perf_counter(), dkm.KMeans(k, max_iter=4)
            with dask.config.set({"dataframe.backend": backend}):
                result = dkm.run(f"{folder}/rows.parquet", f"{folder}/{backend}", km, threshold=0.95)
            took = time.perf_counter() - start
            found[backend] = {"rows a second": len(X) / took, "seconds": took, "removed": result.summary["removed"]}
    return found


def versions() -> dict[str, str]:
    """Of daskmeans, what it computes with, and whom it is compared with."""
    there = {name: each.metadata["Version"] for each in distributions() for name in [each.metadata["Name"].lower()]}
    beside = ("cuda", "cudf", "cuml", "cupy", "dask-cu", "flash", "numba", "raft", "rmm", "torch", "triton")
    return manifest.library_versions() | {name: there[name] for name in sorted(there) if name.startswith(beside)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--dimension", type=int, default=768)
    arguments.add_argument("--n-clusters", type=int, default=4096)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--tests", help="how the tests went, to be told in the same file")
    arguments.add_argument("--processor", action="store_true")
    args = arguments.parse_args()
    if args.processor:
        gpus._open_cuda = Device  # type: ignore[assignment]
    with dask.config.set({"daskmeans.device": "gpu"}):
        device = gpus.require_device().device
        record: dict[str, Any] = {
            "arguments": {key: str(value) for key, value in vars(args).items()},
            "gpus": gpus.list_models(),
        }
        record["versions"], X = versions(), rows_like_embeddings(args.rows, args.dimension)
        for part in (products, assignment, updates, fits, larger_than_the_device, decisions):
            start = time.perf_counter()
            try:
                found = part(X, args.n_clusters, device)
            except Exception:
                found = {"error": traceback.format_exc()}
            record[part.__name__] = found | {"seconds in all": time.perf_counter() - start}
            args.out.write_text(json.dumps(record, indent=1))
            print(part.__name__, json.dumps(record[part.__name__], indent=1), flush=True)


if __name__ == "__main__":
    main()
