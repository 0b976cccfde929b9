"""Rows a second that get the label of their nearest centroid: daskmeans, faiss's flat index, scikit-learn.

python benchmarks/predict.py INPUT [--n-clusters 1000 4096] [--runs 5] [--peers-python PYTHON] [--out results.json]

Centroids and index are in memory before the clock runs; the conversion and normalisation that daskmeans does counts.
A run is the best of five passes over all rows. The float32 kernels, which machines without int8 products use, are
measured too.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from common import Entry, measure, new_record, parser, race, read_rows, spread, stored, table, write

ENTRIES = [
    Entry("daskmeans", "daskmeans"),
    Entry("daskmeans, float32 kernels", "daskmeans", environment={"DASK_DASKMEANS__KERNELS": "float32"}),
    Entry("faiss, IndexFlatL2", "faiss"),
    Entry("scikit-learn", "scikit-learn"),
]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("input")
    arguments.add_argument("--column")
    arguments.add_argument("--n-clusters", type=int, nargs="+", default=[1000, 4096])
    args = arguments.parse_args()
    X = read_rows(args.input, args.column)
    record = new_record("predict", args, rows=X.shape[0], dimension=X.shape[1])
    lines = []
    with stored(X) as path, TemporaryDirectory() as folder:
        for k in args.n_clusters:
            centroids = str(Path(folder) / f"{k}.npy")
            measure(Entry("", "daskmeans", {"max_iter": 3}), args, rows=path, k=k, seed=0, save=centroids)
            runs = race(ENTRIES, args, record, rows=path, k=k, centroids=centroids)
            speeds = {e.group: spread(r["rows a second"] for r in runs if r["group"] == e.group) for e in ENTRIES}
            base = speeds["faiss, IndexFlatL2"]["median"]
            for name, found in speeds.items():
                cells = [f"{found[key]:,.0f}" for key in ("median", "min", "max")]
                lines.append([name, k, *cells, f"{found['median'] / base:.2f}", found["runs"]])
    record["best"] = lines
    write(args.out, record)
    print(table(["", "k", "rows a second", "min", "max", "÷ faiss", "runs"], lines))


if __name__ == "__main__":
    main()
