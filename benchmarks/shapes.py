"""Seconds of faiss, scikit-learn and daskmeans to one inertia, on made rows of many shapes.

python benchmarks/shapes.py [--rows 100000] [--budget-iterations 25] [--cases "d 64" ...] [--runs 5]
                            [--peers-python PYTHON] [--out results.json]

The rows imitate embeddings (synthetic.py). The target of each case is the median of faiss's inertia after the given
number of full iterations; everything is counted, as in fit.py, the conversion of float16 too.
"""

import numpy as np
from common import Entry, fit_table, new_record, own_ladders, parser, race_to_target, stored, write
from synthetic import CLUSTERED, REAL, embeddings

# Dimension, number of clusters, type, shares of variance, share of copies.
CASES = {
    "k 100": (384, 100, np.float32, REAL, 0.0),
    "d 64": (64, 1000, np.float32, REAL, 0.0),
    "d 64, k 100": (64, 100, np.float32, REAL, 0.0),
    "d 768": (768, 1000, np.float32, REAL, 0.0),
    "d 1536": (1536, 1000, np.float32, REAL, 0.0),
    "d 1536, k 100": (1536, 100, np.float32, REAL, 0.0),
    "float16": (384, 1000, np.float16, REAL, 0.0),
    "clustered": (384, 1000, np.float32, CLUSTERED, 0.0),
    "half of the rows copies": (384, 1000, np.float32, REAL, 0.5),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--budget-iterations", type=int, default=25)
    arguments.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = arguments.parse_args()
    n = args.budget_iterations
    random = {"init": "random", "algorithm": "lloyd", "tol": 0}
    faiss = Entry("faiss", "faiss", knob={"iterations": n})
    ladders = [
        [Entry("scikit-learn", "scikit-learn", random, {"max_iter": i}) for i in (round(0.8 * n), n)],
        *own_ladders(),
    ]
    record = new_record("shapes", args, rows=args.rows, budget_iterations=n) | {"best": {}}
    for case in args.cases:
        dimension, k, dtype, levels, copies = CASES[case]
        with stored(embeddings(args.rows, dimension, levels, copies).astype(dtype)) as path:
            record["best"][case] = race_to_target(faiss, ladders, args, record, rows=path, k=k, case=case)
        write(args.out, record)
        print(f"\n{case} (dimension {dimension}, {k} clusters, {np.dtype(dtype)})\n")
        print(fit_table(record["best"][case]), flush=True)


if __name__ == "__main__":
    main()
