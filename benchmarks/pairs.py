"""Near-duplicates of all rows: daskmeans' exact search beside brute force, and what each of them finds.

python benchmarks/pairs.py CLUSTERS [--thresholds 0.8 0.85 0.9 0.95 0.99] [--runs 5] [--peers-python PYTHON]
                           [--out results.json]

CLUSTERS is what `daskmeans assign` wrote. daskmeans reads it and writes its pairs and decisions; its peers are given
the vectors in memory and give back which rows have a twin, or which they keep. Brute force takes as long at any
threshold and runs at the first one only; --slower-runs says how often. The truth are all products in float64 (in
float32 first, and again wherever that might not tell them from a threshold): "missed" are rows that have a twin at the
threshold + 1e-5 and were not found, "invented" those that were found and have none at the threshold - 1e-5. "Left" are
kept rows that have a twin which is kept too, of tools that decide.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

import numpy as np
from common import THREAD_VARIABLES, new_record, parser, seconds, spread, stored, table, write

MARGIN, BATCH = 1e-5, 2048
# More than a product in float32 may be off for rows of unit length.
DOUBT = 1e-4
COUNTS = ("rows with a twin", "missed", "invented", "kept", "left")


def search_daskmeans(task: dict) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    import daskmeans as dkm

    result = dkm.dedup(task["clusters"], task["threshold"], search=task.get("search", "exact"), out=task["out"])
    found = {"keep": pq.read_table(str(result.path / "decisions"), columns=["keep"])["keep"].to_numpy()}
    if task.get("search") != "clusters":
        pairs = pq.read_table(sorted(map(str, (result.path / "_pairs").glob("part-*"))), columns=["row", "twin"])
        found["paired"] = np.zeros(len(found["keep"]), bool)
        found["paired"][np.concatenate([pairs["row"].to_numpy(), pairs["twin"].to_numpy()])] = True
    return found


def search_faiss(task: dict) -> dict[str, np.ndarray]:
    import faiss

    X = np.load(task["rows"])
    index = faiss.IndexFlatIP(X.shape[1])
    index.add(X)
    paired = np.zeros(len(X), bool)
    for start in range(0, len(X), BATCH):
        limits, _, _ = index.range_search(X[start : start + BATCH], task["threshold"])
        paired[start : start + BATCH] = np.diff(limits) > 1
    return {"paired": paired}


def search_torch(task: dict) -> dict[str, np.ndarray]:
    import torch

    X = torch.from_numpy(np.load(task["rows"]))
    paired = torch.zeros(len(X), dtype=torch.bool)
    for start in range(0, len(X), BATCH):  # each pair once
        rows = X[start : start + BATCH]
        near = rows @ X[start:].T >= task["threshold"]
        near[:, : len(rows)] &= torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
        i, j = near.nonzero(as_tuple=True)
        paired[start + i] = paired[start + j] = True
    return {"paired": paired.numpy()}


def search_semhash(task: dict) -> dict[str, np.ndarray]:
    from semhash import SemHash

    X = np.load(task["rows"])
    found = SemHash.from_embeddings(X, [str(i) for i in range(len(X))], None).self_deduplicate(task["threshold"])
    keep = np.zeros(len(X), bool)
    keep[[int(record) for record in found.selected]] = True
    return {"keep": keep}


PACKAGES = {"daskmeans": "daskmeans", "faiss": "faiss-cpu", "torch": "torch", "semhash": "semhash"}
SEARCHES = {"daskmeans": search_daskmeans, "faiss": search_faiss, "torch": search_torch, "semhash": search_semhash}


def contest(task: dict) -> None:
    """Run one search, in this process, and print what it took."""
    package = task["package"]
    if package == "daskmeans":  # its kernels are compiled, and are loaded now
        search_daskmeans(task | {"threshold": 0.999, "out": task["out"] + "-before"})
    start = time.perf_counter()
    found = SEARCHES[package](task)
    took = time.perf_counter() - start
    np.savez(task["save"], **found)
    print(json.dumps({"seconds": took, "version": version(PACKAGES[package])}))


def truth(X: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """The largest product of each row with any other, in float64 where float32 might not tell it from a threshold."""
    best = _largest(X, np.arange(len(X)))
    near = np.abs(best[:, None] - np.array(thresholds)).min(axis=1) < DOUBT
    best[near] = _largest(X.astype(np.float64), np.flatnonzero(near))
    return best


def _largest(X: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The largest product of each of `rows` of `X` with any other row."""
    best = np.empty(len(rows))
    for start in range(0, len(rows), BATCH):
        mine = rows[start : start + BATCH]
        products = X[mine] @ X.T
        products[np.arange(len(mine)), mine] = -1
        best[start : start + BATCH] = products.max(axis=1)
    return best


def left(X: np.ndarray, keep: np.ndarray, threshold: float) -> int:
    """How many of the rows that are kept have a twin that is kept."""
    kept, count = X[keep], 0
    for start in range(0, len(kept), BATCH):
        products = kept[start : start + BATCH] @ kept.T
        products[np.arange(len(products)), start + np.arange(len(products))] = -1
        count += int((products.max(axis=1) >= threshold + MARGIN).sum())
    return count


def measure(task: dict, args: argparse.Namespace, X: np.ndarray, best: np.ndarray, score: bool) -> dict:
    python = sys.executable if task["package"] == "daskmeans" else args.peers_python
    environment = os.environ | {name: str(args.threads) for name in THREAD_VARIABLES}
    with tempfile.TemporaryDirectory() as folder:
        task = task | {"out": f"{folder}/out", "save": f"{folder}/found.npz"}
        command = [*shlex.split(args.prefix), python, __file__, "--task", json.dumps(task)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found = dict(np.load(task["save"]))
    facts = json.loads(done.stdout.splitlines()[-1])
    if score and "paired" in found:
        twins = best >= task["threshold"] + MARGIN
        facts["rows with a twin"] = int(found["paired"].sum())
        facts["missed"] = int((twins & ~found["paired"]).sum())
        facts["invented"] = int((found["paired"] & (best < task["threshold"] - MARGIN)).sum())
    if score and "keep" in found:
        facts |= {"kept": int(found["keep"].sum()), "left": left(X, found["keep"], task["threshold"])}
    return facts


def main() -> None:
    if sys.argv[1:2] == ["--task"]:
        contest(json.loads(sys.argv[2]))
        return
    arguments = parser(__doc__)
    arguments.add_argument("clusters")
    arguments.add_argument("--thresholds", type=float, nargs="+", default=[0.9, 0.8, 0.85, 0.95, 0.99])
    arguments.add_argument("--slower-runs", type=int, default=1, help="of brute force and semhash (default: 1)")
    arguments.add_argument("--peers", nargs="*", default=["faiss", "torch", "semhash"], choices=list(SEARCHES))
    args = arguments.parse_args()
    from daskmeans.buckets.buckets import open_buckets
    from daskmeans.pairs.row_blocks import read_unit_vectors
    from daskmeans.vectors.files import open_path

    buckets = open_buckets(open_path(args.clusters))
    X = read_unit_vectors(buckets, [(cluster, 0, cluster.rows) for cluster in buckets.clusters()])[0]
    best = truth(X, args.thresholds)
    record = new_record("pairs", args, rows=X.shape[0], dimension=X.shape[1])
    lines = []
    with stored(X) as path:
        for threshold in args.thresholds:
            ways = [("daskmeans", {}), ("daskmeans", {"search": "clusters"})]
            ways += [(peer, {}) for peer in args.peers if threshold == args.thresholds[0] or peer == "semhash"]
            for package, how in ways:
                task = {"package": package, "rows": path, "clusters": args.clusters, "threshold": threshold} | how
                runs = args.runs if package == "daskmeans" else args.slower_runs
                found = [measure(task, args, X, best, score=not i) for i in range(runs)]
                for one in found:
                    record["versions"][PACKAGES[package]] = one.pop("version")
                name = ", ".join([package, *how.values()])
                print(name, threshold, found, file=sys.stderr, flush=True)
                record["runs"] += [{"name": name, "threshold": threshold} | one for one in found]
                write(args.out, record)
                facts = [found[0].get(key, "") for key in COUNTS]
                lines.append([threshold, name, seconds(spread(one["seconds"] for one in found)), *facts])
    print(table(["threshold", "search", "seconds", *COUNTS], lines))


if __name__ == "__main__":
    main()
