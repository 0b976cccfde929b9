"""A fit on embeddings that are four times as large as the memory of all workers.

python benchmarks/larger_than_memory.py [--memory-limit 1GiB] [--n-workers 2] [--times 4] [--n-clusters 1000]
                                        [--runs 5] [--directory DIR] [--out results.json]

The rows are made: around 500 centres with a decaying spectrum, one in ten a near-copy of another. All of them are
fitted, by workers that cannot hold them and by as many that can, in turn: the centroids must be the same bits.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import new_record, seconds, spread, table, write
from dask.utils import format_bytes, parse_bytes

import daskmeans as dkm
from daskmeans.kmeans.memory import forecast_fit
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.steps.fit import fit as fit_files
from daskmeans.storage import manifest
from daskmeans.vectors.matrix import to_column

DIMENSION, ROWS_PER_FILE = 384, 50_000


def write_rows(folder: Path, rows: int) -> None:
    """Parquet files of `rows` float32 vectors with ids."""
    rng = np.random.default_rng(0)
    spectrum = (1.0 / np.sqrt(1 + np.arange(DIMENSION))).astype(np.float32)
    centres = rng.normal(size=(500, DIMENSION)).astype(np.float32)
    for number, start in enumerate(range(0, rows, ROWS_PER_FILE)):
        n = min(ROWS_PER_FILE, rows - start)
        X = centres[rng.integers(0, 500, n)] + 1.5 * rng.standard_normal((n, DIMENSION), np.float32)
        copies = X[: n // 10] + 0.05 * rng.standard_normal((n // 10, DIMENSION), np.float32)
        X[n - len(copies) :] = copies
        file = pa.table({"id": np.arange(start, start + n), "embedding": pa.array(to_column(X * spectrum))})
        pq.write_table(file, folder / f"part-{number:04d}.parquet", compression="none")


def fit(at: Path, rows: int, limit: int, args: argparse.Namespace) -> dict:
    """Facts of one fit on workers of this memory limit."""
    settings = ClusterSettings(n_workers=args.n_workers, memory_limit=str(limit), dashboard_address=":0")
    with open_cluster(settings) as client:
        foreseen = forecast_fit(rows, DIMENSION, args.n_clusters, client)
        model = dkm.KMeans(args.n_clusters, max_iter=args.max_iter)
        fit_files(at / "in", at / "model", model, overwrite=True, client=client)
    made = json.loads((at / "model" / "_manifest.json").read_text())
    return {
        "limit of a worker": limit,
        "seconds": made["seconds"],
        "peak of a worker": made["peak_bytes"]["worker"],
        "forecast of a worker": foreseen.worker,
        "on disk, forecast": foreseen.cached,
        "number of updates": len(model.iterations_),
        "inertia": model.inertia_,
        "centroids": hashlib.sha256(model.cluster_centers_.tobytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-limit", default="1GiB")
    parser.add_argument("--n-workers", type=int, default=2)
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("--n-clusters", type=int, default=1000)
    parser.add_argument("--max-iter", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.threads = args.n_workers
    small = parse_bytes(args.memory_limit)
    rows = int(args.times * args.n_workers * small / (4 * DIMENSION))
    record = new_record("larger_than_memory", args, rows=rows, input=4 * rows * DIMENSION, times=args.times)
    record["versions"] = manifest.library_versions()
    limits = {"disk": small, "memory": int(2.6 * args.times * small)}
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        at = Path(folder)
        (at / "in").mkdir()
        write_rows(at / "in", rows)
        first = ""
        for _ in range(args.runs):
            for place, limit in limits.items():
                made = {"place": place} | fit(at, rows, limit, args)
                first = first or made["centroids"]
                if made["centroids"] != first:
                    sys.exit("the centroids differ")
                record["runs"].append(made)
                write(args.out, record)
    lines = []
    for place in limits:
        mine = [run for run in record["runs"] if run["place"] == place]
        record[place] = {name: spread(run[name] for run in mine) for name in ("seconds", "peak of a worker")}
        peak, foreseen = record[place]["peak of a worker"]["max"], mine[0]["forecast of a worker"]
        lines.append([place, *map(format_bytes, (limits[place], peak, foreseen)), seconds(record[place]["seconds"])])
    record["ratio"] = record["disk"]["seconds"]["median"] / record["memory"]["seconds"]["median"]
    write(args.out, record)
    print(f"\n{rows:,} rows, {format_bytes(record['input'])}: {args.times} times the limit of the small workers\n")
    print(table(["rows in", "limit of a worker", "peak", "forecast", "seconds (min to max)"], lines))
    print(f"\nthe same centroids; {record['ratio']:.2f} times the time")


if __name__ == "__main__":
    main()
