"""The whole job on a Parquet file of embeddings, its steps measured; then k-means beside scikit-learn.

python benchmarks/main_job.py vectors.parquet [--n-clusters 500] [--threshold 0.9] [--runs 3] [--out results.json]

The comparison starts both from the same centroids and runs the same number of updates on the same normalised rows in
memory, with all cores for each, in turn; the ratio is that of the medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from dask.system import CPU_COUNT
from sklearn.cluster import KMeans as Reference

import daskmeans as dkm
from daskmeans.kernels.norms import normalize_rows
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.steps.run import run
from daskmeans.vectors.matrix import to_matrix


def job(path: str, n_clusters: int, threshold: float) -> dict:
    """Facts of one run over files on a cluster of this machine."""
    with tempfile.TemporaryDirectory() as folder, open_cluster(ClusterSettings(dashboard_address=":0")) as client:
        start = time.perf_counter()
        out = Path(folder) / "out"
        result = run(path, out, dkm.KMeans(n_clusters), threshold, client=client)
        seconds = time.perf_counter() - start
        manifests = [json.loads((out / name / "_manifest.json").read_text()) for name in ("model", "clusters", "dedup")]
        steps = {m["step"]: {"seconds": m["seconds"], "peak_bytes": m["peak_bytes"]} for m in manifests}
        model = json.loads((out / "model" / "model.json").read_text())
        facts = {key: model[key] for key in ("n_iter", "converged", "inertia")}
        return {**result.summary, **facts, "steps": steps, "seconds": seconds}


def beside_scikit_learn(path: str, n_clusters: int, runs: int, updates: int = 10) -> dict:
    """Seconds of `updates` updates from the same centroids, ours and scikit-learn's, in turn."""
    X = to_matrix(dkm.read_embeddings(path)["embedding"].compute()).copy()
    normalize_rows(X)
    start = X[:: len(X) // n_clusters][:n_clusters].copy()
    ours = dkm.KMeans(n_clusters, init=start, max_iter=updates, tol=0)
    theirs = Reference(n_clusters, init=start, max_iter=updates, tol=0, n_init=1, algorithm="lloyd")
    seconds: dict[str, list[float]] = {"daskmeans": [], "scikit-learn": []}
    for turn in range(runs + 1):  # the first turn compiles and warms up
        for name, estimator in (("daskmeans", ours), ("scikit-learn", theirs)):
            began = time.perf_counter()
            estimator.fit(X)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    exact = Reference(n_clusters, init=start.astype(float), max_iter=updates, tol=0, n_init=1, algorithm="lloyd")
    exact.fit(X.astype(float))
    return {
        "updates": updates,
        "seconds": seconds,
        "ratio_of_medians": statistics.median(seconds["scikit-learn"]) / statistics.median(seconds["daskmeans"]),
        "labels_that_differ_from_float64": int((ours.labels_ != exact.labels_).sum()),
        "inertia_relative_to_float64": ours.inertia_ / exact.inertia_ - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--n-clusters", type=int, default=500)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = ("daskmeans", "dask", "distributed", "numpy", "numba", "pyarrow", "scikit-learn")
    facts = {
        "cores": CPU_COUNT,
        "versions": {name: version(name) for name in names},
        "job": [job(args.path, args.n_clusters, args.threshold) for _ in range(args.runs)],
        "k-means": beside_scikit_learn(args.path, args.n_clusters, args.runs),
    }
    text = json.dumps(facts, indent=2, default=float)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
