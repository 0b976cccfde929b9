"""What a cluster costs and what it brings: one fit in few and in many partitions, and one on one and on two workers.

python benchmarks/scaling.py [--rows 1000000] [--dimension 64] [--n-clusters 1000] [--partitions 1000]
                             [--max-iter 100] [--wide-rows 2000000] [--wide-dimension 384] [--runs 5]
                             [--parts partitions workers] [--out results.json]

Each run has a cluster of its own of single-threaded workers, as the commands start one, which have compiled and run a
small fit before. The rows imitate embeddings (synthetic.py): for "partitions" a matrix in a file, read in slices, for
"workers" Parquet. The time is that of the whole fit, reading and seeds included. "Updates" are what the fit itself says
of each of them.
"""

import argparse
import tempfile
import time
from pathlib import Path

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import new_record, parser, seconds, spread, table, write
from synthetic import embeddings

import daskmeans as dkm
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.steps.fit import fit as fit_files
from daskmeans.storage import manifest
from daskmeans.vectors.matrix import to_column

ROWS_PER_FILE = 50_000


class Stored:
    """A matrix in a file, read in slices wherever they are needed."""

    ndim = 2

    def __init__(self, path: str) -> None:
        self.path = path
        self.shape, self.dtype = (X := np.load(path, mmap_mode="r")).shape, X.dtype

    def __getitem__(self, key: object) -> np.ndarray:
        return np.array(np.load(self.path, mmap_mode="r")[key])


def write_rows(folder: Path, X: np.ndarray) -> None:
    """The rows of `X` as a matrix in a file, and as Parquet."""
    np.save(folder / "rows.npy", X)
    (folder / "files").mkdir()
    for number, start in enumerate(range(0, len(X), ROWS_PER_FILE)):
        part = X[start : start + ROWS_PER_FILE]
        file = pa.table({"id": np.arange(start, start + len(part)), "embedding": pa.array(to_column(part))})
        pq.write_table(file, folder / f"files/part-{number:04d}.parquet", compression="none")


def fit(folder: Path, n_clusters: int, max_iter: int, workers: int, partitions: int | None = None) -> dict[str, float]:
    """Seconds of a fit, of its updates and of the rest; of the Parquet if no number of partitions is given."""
    settings = ClusterSettings(n_workers=workers, threads_per_worker=1, dashboard_address=":0")
    rows = Stored(str(folder / "rows.npy"))
    X = da.from_array(rows, chunks=(-(-rows.shape[0] // (partitions or 1)), -1), name=False)
    km = dkm.KMeans(n_clusters, max_iter=max_iter)
    with open_cluster(settings) as client:
        dkm.KMeans(8).fit(X[: 4000 * workers].rechunk((4000, -1)), client=client)
        began = time.perf_counter()
        if partitions:
            km.fit(X, client=client)
        else:
            fit_files(folder / "files", folder / "model", km, overwrite=True, client=client)
        whole = time.perf_counter() - began
    updates = sum(update["seconds"] for update in km.iterations_)
    made = {"seconds": whole, "updates": updates, "rest": whole - updates, "number of updates": len(km.iterations_)}
    return made | {"inertia": km.inertia_, "partitions": partitions, "workers": workers}


def compare(args: argparse.Namespace, record: dict, name: str, rows: tuple[int, int], cases: list[dict]) -> None:
    """Runs of all `cases`, in turn, and a table of them."""
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        write_rows(Path(folder), embeddings(*rows))
        for _ in range(args.runs):
            for case in cases:
                record["runs"].append({"name": name} | fit(Path(folder), args.n_clusters, args.max_iter, **case))
                write(args.out, record)
    lines, parts = [], ("seconds", "updates", "rest")
    for case in cases:
        mine = [run for run in record["runs"] if run["name"] == name and case.items() <= run.items()]
        found = {part: spread(run[part] for run in mine) for part in parts}
        record.setdefault(name, []).append(case | found)
        lines.append([*case.values(), *(seconds(found[part]) for part in parts)])
    first, last = record[name][0], record[name][-1]
    ratios = [f"{last[part]['median'] / first[part]['median']:.3f}" for part in parts]
    print(f"\n{name}: {rows[0]:,} rows of {rows[1]} dimensions, {args.n_clusters} clusters\n")
    print(table([*cases[0], *parts], [*lines, ["", "last ÷ first", *ratios]]), flush=True)
    write(args.out, record)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--dimension", type=int, default=64)
    arguments.add_argument("--partitions", type=int, default=1000)
    arguments.add_argument("--wide-rows", type=int, default=2_000_000)
    arguments.add_argument("--wide-dimension", type=int, default=384)
    arguments.add_argument("--n-clusters", type=int, default=1000)
    arguments.add_argument("--max-iter", type=int, default=100)
    arguments.add_argument("--parts", nargs="+", choices=["partitions", "workers"], default=["partitions", "workers"])
    arguments.add_argument("--directory", type=Path, help="for the rows")
    args = arguments.parse_args()
    record = new_record("scaling", args)
    record["versions"] = manifest.library_versions()
    if "partitions" in args.parts:
        many = [{"partitions": n, "workers": 2} for n in (2, args.partitions)]
        compare(args, record, "partitions", (args.rows, args.dimension), many)
    if "workers" in args.parts:
        more = [{"workers": n} for n in (2, 1)]
        compare(args, record, "workers", (args.wide_rows, args.wide_dimension), more)


if __name__ == "__main__":
    main()
