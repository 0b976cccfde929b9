"""Inertia and seconds of the default settings: daskmeans beside scikit-learn (k-means++, tol 1e-4), seed by seed.

python benchmarks/quality.py INPUT [--n-clusters 100 500 1000] [--runs 5] [--peers-python PYTHON] [--out results.json]
"""

from common import Entry, new_record, parser, race, read_rows, seconds, spread, stored, table, write

ENTRIES = [Entry("daskmeans", "daskmeans"), Entry("scikit-learn", "scikit-learn")]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("input")
    arguments.add_argument("--column")
    arguments.add_argument("--n-clusters", type=int, nargs="+", default=[100, 500, 1000])
    args = arguments.parse_args()
    X = read_rows(args.input, args.column)
    record = new_record("quality", args, rows=X.shape[0], dimension=X.shape[1])
    lines = []
    with stored(X) as path:
        for k in args.n_clusters:
            runs = race(ENTRIES, args, record, rows=path, k=k)
            ours, theirs = ([run for run in runs if run["group"] == entry.group] for entry in ENTRIES)
            inertia = [spread(run["inertia"] for run in group) for group in (ours, theirs)]
            lines.append(
                [
                    k,
                    *(f"{found['median']:,.1f} ({found['min']:,.1f} to {found['max']:,.1f})" for found in inertia),
                    f"{inertia[0]['median'] / inertia[1]['median'] - 1:+.3%}",
                    *(seconds(spread(run["seconds"] for run in group)) for group in (ours, theirs)),
                    args.runs,
                ]
            )
    record["best"] = lines
    write(args.out, record)
    names = [entry.group for entry in ENTRIES]
    inertias, times = [f"inertia of {n}" for n in names], [f"seconds of {n}" for n in names]
    print(table(["k", *inertias, "difference of the medians", *times, "seeds"], lines))


if __name__ == "__main__":
    main()
