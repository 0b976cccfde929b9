"""Seconds to reach the inertia that faiss reaches after a number of full iterations, for daskmeans and its peers.

python benchmarks/fit.py INPUT [--n-clusters 1000] [--budget-iterations 25] [--runs 5] [--peers-python PYTHON]
                         [--contestants faiss daskmeans ...] [--fewer dask-ml=1 ...] [--out results.json]

INPUT are Parquet files. Everything is counted: seeding, conversion, the final labels of all rows. Imports and
compilation are done before; what they cost with and without numba's cache is stated apart. The target is the median of
faiss's inertia; one float64 scorer judges all centroids on all rows. Who has iterations to choose from is raced with
the number that reached the target in a pilot run and numbers around it; the fastest that reach it in the median count.
"""

import argparse
from dataclasses import replace
from tempfile import TemporaryDirectory

from common import (
    Entry,
    fit_table,
    measure,
    new_record,
    own_ladders,
    parser,
    race_to_target,
    read_rows,
    steps,
    stored,
    write,
)


def ladders(n: int) -> list[list[Entry]]:
    """All but faiss; see :func:`common.race_to_target`. Those that run long have one step, of `n` iterations."""
    random = {"init": "random", "algorithm": "lloyd", "tol": 0}
    hierarchical = {"hierarchical": True, "iters_fineclustering": 10}
    chosen = {
        "scikit-learn, random rows": ("scikit-learn", random, "max_iter"),
        "superkmeans, flat": ("superkmeans", {"hierarchical": False}, "iters"),
        "superkmeans, hierarchical": ("superkmeans", hierarchical, "iters_refinement"),
        "fastkmeans": ("fastkmeans", {}, "iterations"),
    }
    return [
        *([Entry(name, who, fixed, {knob: i}) for i in steps(n)] for name, (who, fixed, knob) in chosen.items()),
        [Entry("scikit-learn, k-means++", "scikit-learn", {"algorithm": "lloyd", "tol": 0}, {"max_iter": n})],
        [Entry("MiniBatchKMeans", "MiniBatchKMeans")],
        [Entry("dask-ml", "dask-ml", {"tol": 0}, {"max_iter": n})],
        *own_ladders(),
    ]


def cold_start(args: argparse.Namespace, **task: object) -> dict[str, float]:
    """Seconds of import and warm-up of daskmeans, in an environment that has never run it and the next time."""
    with TemporaryDirectory() as cache:
        entry = Entry("daskmeans", "daskmeans", {"max_iter": 1}, environment={"NUMBA_CACHE_DIR": cache})
        cold, warm = (measure(entry, args, seed=0, **task)["import and warm-up"] for _ in range(2))
    return {"with an empty cache": cold, "with a filled cache": warm}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("input")
    arguments.add_argument("--column")
    arguments.add_argument("--n-clusters", type=int, default=1000)
    arguments.add_argument("--budget-iterations", type=int, default=25)
    arguments.add_argument("--contestants", nargs="+", help="default: all; faiss always takes part")
    arguments.add_argument("--fewer", nargs="+", default=[], metavar="GROUP=RUNS", help="long ones, run fewer times")
    args = arguments.parse_args()
    n, k = args.budget_iterations, args.n_clusters
    fewer = {name: int(runs) for name, runs in (pair.split("=") for pair in args.fewer)}
    wanted = [
        [replace(entry, runs=fewer.get(entry.group)) for entry in ladder]
        for ladder in ladders(n)
        if not args.contestants or ladder[0].contestant in args.contestants
    ]
    X = read_rows(args.input, args.column)
    record = new_record("fit", args, rows=X.shape[0], dimension=X.shape[1], n_clusters=k, budget_iterations=n)
    faiss = Entry("faiss", "faiss", knob={"iterations": n})
    with stored(X) as path:
        record["cold start"] = cold_start(args, rows=path, k=k)
        record["best"] = race_to_target(faiss, wanted, args, record, rows=path, k=k)
    write(args.out, record)
    print(fit_table(record["best"]))
    for state, took in record["cold start"].items():
        print(f"Import and warm-up of daskmeans {state}: {took:.1f} s.")


if __name__ == "__main__":
    main()
