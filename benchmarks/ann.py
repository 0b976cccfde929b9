"""Rows a second that get a label, and the share of exact ones: every centroid compared, or an index over them.

python benchmarks/ann.py INPUT [--n-clusters 4096 16384 65536] [--recall 0.99 0.95] [--runs 5] [--out results.json]

The centroids are those of a short fit; where the input has fewer than two rows for each, they are rows, which is harder
for an index. The index is tuned on rows of the input, and all of them get labels from both, in turn. The float32
kernels, which machines without int8 products use, are measured too.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
from common import new_record, parser, read_rows, spread, table, write

from daskmeans import KMeans
from daskmeans.errors import ConvergenceWarning
from daskmeans.kernels.microkernel import capability
from daskmeans.storage import manifest


def fitted(X: np.ndarray, k: int) -> KMeans:
    """A model of `k` clusters for the rows of `X`."""
    if len(X) >= 2 * k:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return KMeans(k, max_iter=3, normalize=False).fit(X)
    taken = np.sort(np.random.default_rng(0).choice(len(X), k, replace=False))
    return KMeans(k, max_iter=0, init=X[taken], normalize=False).fit(X[:k])


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(km: KMeans, X: np.ndarray, recall: float, runs: int) -> dict[str, Any]:
    """Speeds of both ways, in turn, and what the index finds."""
    tuning, index = timed(lambda: km.build_index(X, recall=recall))
    ways: dict[str, Any] = {"exact": "exact", "ann": index}
    for how in ways.values():
        km.predict(X[:1000], assign=how)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    labels = {}
    for turn in range(runs):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            seconds, labels[name] = timed(lambda name=name: km.predict(X, assign=ways[name]))  # type: ignore[misc]
            speeds[name].append(len(X) / seconds)
    share = float((labels["ann"] == labels["exact"]).mean())
    return {"seconds to tune": tuning, "index": index.facts, "exact labels": share} | {
        name: spread(found) for name, found in speeds.items()
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("input")
    arguments.add_argument("--column")
    arguments.add_argument("--n-clusters", type=int, nargs="+", default=[4096, 16384, 65536])
    arguments.add_argument("--recall", type=float, nargs="+", default=[0.99, 0.95])
    arguments.add_argument("--rows", type=int, default=50_000, help="that get labels (default: 50,000)")
    args = arguments.parse_args()
    X = read_rows(args.input, args.column)
    record = new_record("ann", args, rows=X.shape[0], dimension=X.shape[1])
    record["versions"] = manifest.library_versions()
    lines = []
    for k in args.n_clusters:
        km = fitted(X, k)
        for kernels in ("auto", "float32"):
            with dask.config.set({"daskmeans.kernels": kernels}):
                for recall in args.recall:
                    found = compare(km, X[: args.rows], recall, args.runs)
                    made = {
                        "k": k,
                        "kernels": capability(),
                        "centroids": "rows" if len(X) < 2 * k else "means",
                        **found,
                    }
                    record["runs"].append(made)
                    write(args.out, record)
                    gain = found["ann"]["median"] / found["exact"]["median"]
                    facts = found["index"]
                    lines.append(
                        [
                            f"{k:,} {made['centroids']}", capability(), recall, f"{found['exact labels']:.2%}",
                            f"{facts['nprobe']} of {facts['nlist']}, {facts['shortlist']}",
                            f"{found['exact']['median']:,.0f}", f"{found['ann']['median']:,.0f}", f"{gain:.2f}",
                            f"{found['seconds to tune']:.1f}",
                        ]
                    )  # fmt: skip
                    print(lines[-1], flush=True)
    head = ["centroids", "exact kernels", "target", "exact labels", "lists, shortlist"]
    print(table([*head, "exact, rows/s", "index, rows/s", "gain", "tuned in s"], lines))


if __name__ == "__main__":
    main()
