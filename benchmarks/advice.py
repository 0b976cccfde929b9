"""What `daskmeans info INPUT --advise` forecasts beside what the steps then take, for several sizes of input.

python benchmarks/advice.py vectors.parquet [--rows 5000 20000 100000] [--n-clusters 500] [--out results.json]
python benchmarks/advice.py --synthetic 64 [--rows 5000 20000 100000]

Each size is that many of the rows. The steps run on a cluster of this machine, as the commands start one, once for each
number of clusters that the advice shows. The ratios are forecast / measured.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from synthetic import embeddings

import daskmeans as dkm
from daskmeans.planner.advise import advise
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.steps.run import run
from daskmeans.vectors.matrix import to_column

STEPS = {"fit": "model", "assign": "clusters", "dedup": "dedup"}


def inputs(args: argparse.Namespace, folder: Path) -> Iterator[tuple[int, Path]]:
    """Files of so many rows each."""
    table = pq.read_table(args.path) if args.path else None
    for rows in args.rows:
        path = folder / f"{rows}.parquet"
        if table is None:
            X = embeddings(rows, args.synthetic)
            part = pa.table({"id": np.arange(rows), "embedding": pa.array(to_column(X))})
        else:
            if rows > len(table):
                continue
            part = table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:rows]))
        pq.write_table(part, path, row_group_size=10_000)
        yield rows, path


def measured(path: Path, out: Path, n_clusters: int) -> dict[str, dict[str, float]]:
    """Seconds and peak bytes of a worker, by step."""
    with open_cluster(ClusterSettings(dashboard_address=":0")) as client:
        run(path, out, dkm.KMeans(n_clusters), 0.9, search="clusters", client=client)
    made = {step: json.loads((out / name / "_manifest.json").read_text()) for step, name in STEPS.items()}
    return {step: {"seconds": m["seconds"], "worker_bytes": m["peak_bytes"]["worker"]} for step, m in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?")
    parser.add_argument("--synthetic", type=int, metavar="DIMENSION", help="make the rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000, 100_000])
    parser.add_argument("--n-clusters", type=int, nargs="*", default=[500], help="forecast for these too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if (args.path is None) == (args.synthetic is None):
        parser.error("give a Parquet file, or --synthetic DIMENSION")
    found = []
    print("| rows | k | step | forecast | measured | ratio | memory forecast | measured | ratio |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for rows, path in inputs(args, Path(folder)):
            with open_cluster(ClusterSettings(dashboard_address=":0")) as client:
                advice = advise(path, n_clusters=[k for k in args.n_clusters if k <= rows], client=client)
            for forecast in advice["forecasts"]:
                k = forecast["n_clusters"]
                truth = measured(path, Path(folder) / f"{rows}-{k}", k)
                found.append({"rows": rows, "proposed": advice["n_clusters"], "forecast": forecast, "measured": truth})
                for step, took in truth.items():
                    seconds, memory = forecast["seconds"][step], forecast["worker_bytes"][step]
                    print(
                        f"| {rows:,} | {k:,} | {step} | {seconds:.2f} s | {took['seconds']:.2f} s "
                        f"| {seconds / took['seconds']:.2f} | {format_bytes(memory)} "
                        f"| {format_bytes(took['worker_bytes'])} | {memory / took['worker_bytes']:.2f} |",
                        flush=True,
                    )
            with open_cluster(ClusterSettings(dashboard_address=":0")) as client:
                clusters = Path(folder) / f"{rows}-{k}" / "clusters"
                took = dkm.dedup(clusters, 0.9, search="exact", client=client).summary["seconds"]
            said = advice["exact"]["seconds"]
            found.append({"rows": rows, "forecast": advice["exact"], "measured": {"exact": {"seconds": took}}})
            print(
                f"| {rows:,} | any | dedup, exact | {said:.2f} s | {took:.2f} s | {said / took:.2f} | | | |", flush=True
            )
            print(f"\n{rows:,} rows: the trials took {advice['trial_seconds']} s\n", flush=True)
    if args.out:
        names = ("daskmeans", "dask", "distributed", "numpy", "numba", "pyarrow")
        facts = {"cores": CPU_COUNT, "versions": {name: version(name) for name in names}, "found": found}
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
