"""Assign and dedup of embeddings that are four times as large as a worker may be; seconds and peak memory of each step.

python benchmarks/larger_than_memory.py [--memory-limit 1GiB] [--times 4] [--directory DIR] [--out results.json]

The rows are made: around 500 centres with a decaying spectrum, one in ten a near-copy of another. The fit, which holds
its rows in memory in this version, sees a sample of them.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask.utils import format_bytes, parse_bytes

import daskmeans as dkm
from daskmeans import workflow
from daskmeans.cluster import ClusterSettings, cluster
from daskmeans.vectors.matrix import to_column

DIMENSION, ROWS_PER_FILE = 384, 50_000


def write_rows(folder: Path, rows: int) -> int:
    """Parquet files of `rows` float32 vectors with ids; returns their bytes as float32."""
    rng = np.random.default_rng(0)
    spectrum = (1.0 / np.sqrt(1 + np.arange(DIMENSION))).astype(np.float32)
    centres = rng.normal(size=(500, DIMENSION)).astype(np.float32)
    for number, start in enumerate(range(0, rows, ROWS_PER_FILE)):
        n = min(ROWS_PER_FILE, rows - start)
        X = centres[rng.integers(0, 500, n)] + 1.5 * rng.normal(size=(n, DIMENSION)).astype(np.float32)
        X[-n // 10 :] = X[: len(X[-n // 10 :])] + 0.05 * rng.normal(size=(len(X[-n // 10 :]), DIMENSION))
        table = pa.table({"id": np.arange(start, start + n), "embedding": pa.array(to_column(X * spectrum))})
        pq.write_table(table, folder / f"part-{number:04d}.parquet", compression="none")
    return rows * DIMENSION * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-limit", default="1GiB")
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    limit = parse_bytes(args.memory_limit)
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        at = Path(folder)
        (at / "in").mkdir()
        size = write_rows(at / "in", int(args.times * limit / (4 * DIMENSION)))
        with cluster(ClusterSettings(memory_limit=args.memory_limit, dashboard_address=":0")) as client:
            model = dkm.KMeans(1000, sample_fraction=0.08, max_iter=5)
            workflow.fit(at / "in", at / "model", model, client=client)
            workflow.assign_files(at / "in", at / "model", at / "clusters", client=client)
            result = dkm.dedup(at / "clusters", threshold=0.95, out=at / "dedup", client=client)
        steps = {}
        for name in ("model", "clusters", "dedup"):
            made = json.loads((at / name / "manifest.json").read_text())
            steps[made["step"]] = {"seconds": made["seconds"], "peak of a worker": made["peak_bytes"]["worker"]}
    facts = {"memory limit of a worker": limit, "input": size, "times": size / limit, "steps": steps, **result.summary}
    print(f"input {format_bytes(size)} = {size / limit:.1f} x the limit of a worker")
    print(json.dumps(facts, indent=2))
    if args.out:
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
