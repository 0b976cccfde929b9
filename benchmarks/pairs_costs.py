"""What a search for near-duplicates costs: by its bounds, with more rows, for a batch, with one giant cluster.

python benchmarks/pairs_costs.py CLUSTERS [--parts bounds growth batch giant shared] [--runs 5] [--out results.json]
                                 [--thresholds 0.8 0.85 0.9 0.95 0.99] [--growth 50000 200000 800000] [--synthetic 384]

CLUSTERS is what `daskmeans assign` wrote. "bounds": the share of the pairs of a sample that each bound leaves to the
next step. "growth": so many made rows (see synthetic.py); of the most, 1 % held against the others too. "batch": that
1 % among the rows of CLUSTERS. "giant": half of all rows in one cluster, on a worker of 1 GiB; its peak memory beside
the forecast. "shared": these rows compared inside their clusters, by one worker and by two; all else are exact
searches. They run on a cluster of this machine.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
from common import new_record, parser, seconds, spread, table, write
from synthetic import embeddings

import daskmeans as dkm
from daskmeans.buckets.buckets import Buckets, open_buckets
from daskmeans.kernels.all_pairs import _least_scores, make_sketches, sketch_rows
from daskmeans.kernels.quantize import encode_rows
from daskmeans.pairs.plan import try_exact
from daskmeans.pairs.row_blocks import read_unit_vectors
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.vectors.files import open_path
from daskmeans.vectors.matrix import to_column

SAMPLE, BATCH = 8192, 1024
THRESHOLD = 0.9


def rows_of(buckets: Buckets) -> tuple[np.ndarray, np.ndarray]:
    """All unit vectors, and their clusters."""
    clusters = list(buckets.clusters())
    X = read_unit_vectors(buckets, [(cluster, 0, cluster.rows) for cluster in clusters])[0]
    return X, np.repeat([cluster.centroid for cluster in clusters], [cluster.rows for cluster in clusters])


def write_clusters(path: Path, X: np.ndarray, labels: np.ndarray, first: int = 0) -> Path:
    """Clusters of these rows, numbered from `first` on."""
    distances = np.zeros(len(X), np.float32)
    columns = {"id": np.arange(first, first + len(X)), "embedding": to_column(X), "centroid": labels.astype(np.int32)}
    frame = pd.DataFrame(columns | {"l2_dist_to_cent": distances, "cosine_dist_to_cent": distances})
    dkm.write_buckets(dd.from_pandas(frame, npartitions=max(1, len(X) // 10_000), sort=False), path)
    return path


def bounds(buckets: Buckets, thresholds: list[float]) -> Iterator[dict]:
    """Shares of the pairs of rows of a sample."""
    X, _ = rows_of(buckets)
    X = X[np.sort(np.random.default_rng(0).permutation(len(X))[:SAMPLE])]
    upper = np.triu(np.ones((SAMPLE, SAMPLE), bool), 1)[: len(X), : len(X)]
    true = X.astype(np.float64) @ X.T.astype(np.float64)
    for threshold in thresholds:
        P = try_exact([buckets], threshold, None).P
        F, loose = sketch_rows(X, P)
        rows = make_sketches(X, P)
        least = _least_scores(rows.codes, rows.columns, np.float64(threshold), 2 * rows.loose)
        codes = encode_rows(F, np.zeros(F.shape[1]))  # columns are written as bytes in the same way
        decoded = codes.codes[:, : F.shape[1]].astype(np.float32)
        decoded *= codes.scales[:, None] if codes.codes.dtype == np.int8 else 1
        wide = F.astype(np.float64)
        left = (wide @ wide.T + 2 * loose >= threshold) & upper
        screened = (decoded @ decoded.T >= least[:, None]) & upper
        total = upper.sum()
        yield {"threshold": threshold, "directions": P.shape[1], "sketch": left.sum() / total,
               "bytes": screened.sum() / total, "pairs": ((true >= threshold) & upper).sum() / total}  # fmt: skip


def searched(clusters: Path, runs: int, **how: object) -> dict:
    """Seconds of each run, and the peak memory of the process that took most."""
    with open_cluster(ClusterSettings(dashboard_address=":0")) as client:
        dkm.dedup(clusters, 0.999, client=client, **how)  # workers load what is compiled
        found = [dkm.dedup(clusters, THRESHOLD, client=client, **how).summary for _ in range(runs)]
    peak = max(max(each["peak_bytes"].values()) for each in found)
    return {"seconds": [each["seconds"] for each in found], "peak_bytes": peak, "kept": found[0]["kept"]}


def growth(folder: Path, sizes: list[int], dimension: int, runs: int) -> Iterator[dict]:
    """Searches of more and more rows."""
    for rows in sizes:
        X = embeddings(rows, dimension)
        path = write_clusters(folder / f"{rows}", X, dkm.KMeans(rows // 100, max_iter=5).fit_predict(X))
        for name, how in (("exact", {"search": "exact"}), ("5 probes", {"probes": 5}),
                          ("clusters", {"search": "clusters"})):  # fmt: skip
            yield {"rows": rows, "search": name} | searched(path, runs, **how)
    for one in batch(open_buckets(open_path(path)), folder, runs):
        yield {"rows": one["rows"]} | one


def batch(buckets: Buckets, folder: Path, runs: int) -> Iterator[dict]:
    """A search among all rows but the new ones, and one of these against the others."""
    X, labels = rows_of(buckets)
    order = np.random.default_rng(0).permutation(len(X))
    new, old = np.sort(order[: len(X) // 100]), np.sort(order[len(X) // 100 :])
    before = write_clusters(folder / "old", X[old], labels[old])
    batch = write_clusters(folder / "new", X[new], labels[new], first=len(X))
    yield {"search": "all old rows", "rows": len(old)} | searched(before, runs, search="exact")
    yield {"search": "new rows against them", "rows": len(new)} | searched(batch, runs, against=[before])


def giant(buckets: Buckets, folder: Path) -> Iterator[dict]:
    """Peak memory of a worker of 1 GiB beside the forecast, if half of the rows are in one cluster."""
    X, labels = rows_of(buckets)
    labels[: len(X) // 2] = 0
    path = write_clusters(folder / "giant", X, labels)
    with open_cluster(ClusterSettings(n_workers=1, memory_limit="1GiB", dashboard_address=":0")) as client:
        foreseen = try_exact([open_buckets(open_path(path))], THRESHOLD, client).nbytes
        client.restart()
        made = dkm.dedup(path, THRESHOLD, search="exact", client=client).summary
    yield {"rows": len(X), "largest cluster": int(np.bincount(labels).max()), "forecast": foreseen,
           "peak": made["peak_bytes"]["worker"], "seconds": [made["seconds"]], "kept": made["kept"]}  # fmt: skip


def shared(buckets: Buckets, folder: Path, runs: int) -> Iterator[dict]:
    """Seconds of a search inside clusters, one of which has half of the rows, with one worker and with two."""
    X, labels = rows_of(buckets)
    labels[: len(X) // 2] = 0
    path = write_clusters(folder / "shared", X, labels)
    for workers in (1, 2):
        with open_cluster(ClusterSettings(n_workers=workers, dashboard_address=":0")) as client:
            found = [dkm.dedup(path, THRESHOLD, search="clusters", client=client).summary for _ in range(runs + 1)][1:]
        yield {"rows": len(X), "largest cluster": int(np.bincount(labels).max()), "workers": workers,
               "seconds": [each["seconds"] for each in found], "kept": found[0]["kept"]}  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("clusters")
    arguments.add_argument("--parts", nargs="+", default=["bounds", "growth", "batch", "giant", "shared"])
    arguments.add_argument("--thresholds", type=float, nargs="+", default=[0.8, 0.85, 0.9, 0.95, 0.99])
    arguments.add_argument("--growth", type=int, nargs="+", default=[50_000, 200_000, 800_000])
    arguments.add_argument("--synthetic", type=int, default=384, metavar="DIMENSION", help="of the made rows")
    args = arguments.parse_args()
    buckets = open_buckets(open_path(args.clusters))
    record = new_record("pairs_costs", args, rows=buckets.rows, dimension=buckets.dimension)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            "bounds": lambda: bounds(buckets, args.thresholds),
            "growth": lambda: growth(folder, args.growth, args.synthetic, args.runs),
            "batch": lambda: batch(buckets, folder, args.runs),
            "giant": lambda: giant(buckets, folder),
            "shared": lambda: shared(buckets, folder, args.runs),
        }
        for part in args.parts:
            lines = []
            for one in parts[part]():
                print(part, one, file=sys.stderr, flush=True)
                record["runs"].append({"part": part} | one)
                write(args.out, record)
                shown = one | ({"seconds": seconds(spread(one["seconds"]))} if "seconds" in one else {})
                lines.append([f"{v:.3g}" if isinstance(v, float) else v for v in shown.values()])
            print(f"\n{part}\n\n{table(list(shown), lines)}\n", flush=True)


if __name__ == "__main__":
    main()
