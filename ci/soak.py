"""Fit and deduplicate again and again on one client, and see whether its memory and descriptors stay what they are.

python ci/soak.py [--minutes 60] [--seed 0] [--out soak.json] [--picture docs/internals/soak.svg]

Jobs differ in rows, dimensions, clusters, searches and layouts, and some fail, as those of people do. After each, the
memory, the open files and the threads of the client and of the workers are written down. The first third is a time in
which caches fill; after it, memory must not grow by more than a twentieth. There is an open file or a thread more
after some jobs than after others: in the last third there must not be more, as a rule, than there ever were before.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import dask
import distributed
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import daskmeans as dkm
from daskmeans.errors import DaskmeansError
from daskmeans.steps.fit import fit

WORKERS = 2
GROWTH = 0.05
COLUMNS = {"memory": "MiB", "files": "open files", "threads": "threads"}


def taken(dask_worker: object = None) -> dict[str, float]:
    """What this process takes, once garbage is collected."""
    gc.collect()
    process = psutil.Process()
    with process.oneshot():
        return {
            "memory": process.memory_info().rss / 2**20,
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }


def write_rows(path: Path, rng: np.random.Generator) -> None:
    """Rows around centres, with copies and near-copies; in one of ten jobs a row that cannot be worked with."""
    rows, dimension = int(rng.integers(2_000, 20_000)), int(rng.choice([32, 64, 128]))
    X = rng.normal(size=(50, dimension))[rng.integers(0, 50, rows)] + 0.5 * rng.normal(size=(rows, dimension))
    X[: rows // 10] = X[rows // 2 : rows // 2 + rows // 10] + 0.01
    if rng.random() < 0.1:
        X[rows // 3, 0] = np.nan
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.astype(np.float32).ravel()), dimension)
    text = [f"text {i}" for i in range(rows)]
    pq.write_table(pa.table({"id": np.arange(rows), "embedding": vectors, "text": text}), path, row_group_size=2000)


def job(folder: Path, rng: np.random.Generator) -> str:
    """One of the things that people do, and its name."""
    rows, out = folder / "rows.parquet", folder / "out"
    write_rows(rows, rng)
    km = dkm.KMeans(int(rng.integers(5, 200)), max_iter=20, random_state=int(rng.integers(1000)))
    what = str(rng.choice(["run exact", "run clusters", "run probes", "fit", "estimator", "apply", "step"]))
    try:
        if what == "fit":
            fit(rows, out, km)
        elif what == "estimator":
            frame = dkm.read_embeddings(rows)
            dkm.assign(frame, km.fit(frame)).compute()
        elif what == "step":
            km.fit(dkm.read_embeddings(rows)).save(out)
            dkm.SemanticDeduplicator(out, threshold=0.9)(dkm.read_embeddings(rows)).compute()
        else:
            probes = 3 if what == "run probes" else 1
            search = "exact" if what in ("run exact", "apply") else "clusters"
            layout = str(rng.choice(["bucketed", "hive"]))
            result = dkm.run(rows, out, km, 0.9, search=search, probes=probes, layout=layout)
            result.groups(5)
            if what == "apply":
                dkm.apply(result.path, rows, folder / "kept")
    except DaskmeansError:
        return f"{what}, refused"
    return what


def soak(seconds: float, seed: int) -> list[dict]:
    """What was taken after each job: by the client, and by the workers together."""
    rng, found, start = np.random.default_rng(seed), [], time.monotonic()
    with distributed.Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=":0") as client:
        while time.monotonic() - start < seconds:
            with tempfile.TemporaryDirectory(prefix="soak-") as name:
                what = job(Path(name), rng)
            workers = client.run(taken).values()
            told = {"minutes": (time.monotonic() - start) / 60, "job": what, "client": taken()}
            told["workers"] = {column: sum(worker[column] for worker in workers) for column in COLUMNS}
            found.append(told)
            print(json.dumps(told), file=sys.stderr, flush=True)
    return found


def faults(found: list[dict]) -> list[str]:
    """What has grown from the second third to the last."""
    third, told = len(found) // 3, []
    for who in ("client", "workers"):
        for column in COLUMNS:
            values = [each[who][column] for each in found]
            before, after = values[third : 2 * third], np.median(values[2 * third :])
            allowed = np.median(before) * (1 + GROWTH) if column == "memory" else max(before)
            if after > allowed:
                told.append(f"{who}: {COLUMNS[column]} grew from {np.median(before):,.0f} to {after:,.0f}")
    return told


def draw(found: list[dict], path: Path) -> None:
    """The curves, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(COLUMNS), sharex=True, figsize=(8, 6), layout="constrained")
    minutes = [each["minutes"] for each in found]
    for axis, (column, unit) in zip(axes, COLUMNS.items(), strict=True):
        for who in ("client", "workers"):
            axis.plot(minutes, [each[who][column] for each in found], label=who, linewidth=1)
        axis.set_ylabel(unit)
        axis.set_ylim(bottom=0)
    axes[0].legend(loc="upper left", ncols=2, frameon=False)
    axes[0].set_title(f"{len(found):,} fits and dedups on one client and {WORKERS} workers")
    axes[-1].set_xlabel("minutes")
    figure.savefig(path)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=60)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--picture", type=Path)
    args = arguments.parse_args()
    dask.config.set({"distributed.worker.profile.enabled": False})  # what it keeps grows for a quarter of an hour
    found = soak(60 * args.minutes, args.seed)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    if args.picture:
        draw(found, args.picture)
    told = faults(found)
    print("\n".join(told) or f"{len(found)} jobs, and nothing has grown")
    sys.exit(bool(told))


if __name__ == "__main__":
    main()
