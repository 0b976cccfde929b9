"""What the benchmarks share: rows, one scorer, races of contestants in processes of their own, records and tables.

Both environments import this module, the one of daskmeans and the one of its peers: numpy is all it needs at the top.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

CONTESTANTS = Path(__file__).with_name("contestants.py")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
PILOT = (101, 102, 103)  # seeds that no race uses
TOLERANCE = 0.0005  # an inertia this much above the target counts as the same


@dataclass(frozen=True)
class Entry:
    """A contestant with settings and a knob. Entries of a group are ways to use one thing: the best of them counts."""

    group: str
    contestant: str
    settings: dict[str, Any] = field(default_factory=dict)
    knob: dict[str, int] = field(default_factory=dict)
    runs: int | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join([self.group, *(f"{key} {value}" for key, value in self.knob.items())])


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of every script that runs contestants."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runs", type=int, default=5, help="of every entry (default: 5)")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every contestant")
    made.add_argument("--peers-python", default=sys.executable, help="python of the environment that has the peers")
    made.add_argument("--prefix", default="", help='command before each run, such as "taskset -c 0-1"')
    made.add_argument("--out", type=Path, help="JSON of all runs, written anew after each")
    return made


def read_rows(path: str, column: str | None = None) -> np.ndarray:
    """The vectors of Parquet files as float32 of unit length; `column` may be left out where only one holds lists."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    files = ds.dataset(path, format="parquet")
    lists = [f.name for f in files.schema if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)]
    if column is None and len(lists) != 1:
        sys.exit(f"{len(lists)} columns hold vectors {lists}; pass --column")
    vectors = files.to_table(columns=[column or lists[0]]).column(0).combine_chunks()
    X = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1).astype(np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


@contextmanager
def stored(X: np.ndarray) -> Iterator[str]:
    """Path of a file, while the block lasts, from which every run reads `X`."""
    with TemporaryDirectory() as folder:
        np.save(path := f"{folder}/rows.npy", X)
        yield path


def score(X: np.ndarray, centroids: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum over all rows of the squared distance to the nearest centroid, and these distances; all in float64."""
    C = np.asarray(centroids, np.float64)
    half = 0.5 * (C**2).sum(axis=1)
    distances = np.empty(len(X))
    for start in range(0, len(X), 4096):
        x = X[start : start + 4096].astype(np.float64)
        distances[start : start + 4096] = ((x - C[(x @ C.T - half).argmax(axis=1)]) ** 2).sum(axis=1)
    return float(distances.sum()), distances


def labels_not_nearest(X: np.ndarray, centroids: np.ndarray, labels: np.ndarray, distances: np.ndarray) -> int:
    """Rows whose label names a centroid farther away than the nearest one is."""
    C, wrong = np.asarray(centroids, np.float64), 0
    for start in range(0, len(X), 4096):
        to_label = ((X[start : start + 4096] - C[labels[start : start + 4096]]) ** 2).sum(axis=1)
        wrong += int((to_label > distances[start : start + 4096] + 1e-12).sum())
    return wrong


def measure(entry: Entry, args: argparse.Namespace, **task: Any) -> dict[str, Any]:
    """What one run of `entry` in a fresh process reports; the task is as in contestants.py."""
    python = sys.executable if entry.contestant == "daskmeans" else args.peers_python
    task = {"contestant": entry.contestant, "settings": entry.settings | entry.knob, "threads": args.threads, **task}
    environment = os.environ | {name: str(args.threads) for name in THREAD_VARIABLES} | entry.environment
    command = [*shlex.split(args.prefix), python, str(CONTESTANTS), json.dumps(task)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def run(entry: Entry, args: argparse.Namespace, record: dict[str, Any], seed: int, **task: Any) -> dict[str, Any]:
    """A run of `entry`, added to those of `record`, which is written at once."""
    result = measure(entry, args, seed=seed, **task)
    record["versions"] |= result.pop("versions")
    facts = {key: value for key, value in task.items() if key not in ("rows", "centroids")}
    made = {"name": entry.name, "group": entry.group, "settings": entry.settings, "seed": seed, **facts, **result}
    print(", ".join(f"{key} {value}" for key, value in made.items()), file=sys.stderr, flush=True)
    record["runs"].append(made)
    write(args.out, record)
    return made


def race(entries: list[Entry], args: argparse.Namespace, record: dict[str, Any], **task: Any) -> list[dict[str, Any]]:
    """Runs of all entries: one of each in every round, every other round backwards; a seed for each round."""
    runs = []
    for number in range(args.runs):
        todo = [entry for entry in entries if number < (entry.runs or args.runs)]
        runs += [run(entry, args, record, number + 1, **task) for entry in todo[:: -1 if number % 2 else 1]]
    return runs


def race_to_target(
    faiss: Entry, ladders: list[list[Entry]], args: argparse.Namespace, record: dict[str, Any], **task: Any
) -> list[dict[str, Any]]:
    """Each ladder's best entry in a race to the inertia of `faiss`, with the spread of its seconds.

    A ladder holds ways to use one thing, by rising number of iterations. A pilot run of each step finds the first that
    reaches the target; as another seed moves an inertia by a tenth of a percent, the two steps before it and the one
    after take part in the race too.
    """
    target = statistics.median(run(faiss, args, record, seed, **task)["inertia"] for seed in PILOT) * (1 + TOLERANCE)
    entries = [faiss]
    for ladder in ladders:
        lower = range(len(ladder) - 1)  # the last step is left if none of these reaches the target
        reached = (i for i in lower if run(ladder[i], args, record, PILOT[0], **task)["inertia"] <= target)
        found = next(reached, len(ladder) - 1)
        entries += ladder[max(0, found - 2) : found + 2]
    runs = race(entries, args, record, **task)
    return summarise(runs, statistics.median(run["inertia"] for run in runs if run["group"] == faiss.group))


def own_ladders() -> list[list[Entry]]:
    """daskmeans as it comes, and told after how many updates on all rows to stop, as its peers are."""
    updates = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25)
    stopped = [Entry("daskmeans, stopped", "daskmeans", knob={"max_iter": i}) for i in updates]
    return [[Entry("daskmeans, default", "daskmeans")], stopped]


def steps(n: int) -> list[int]:
    """Numbers of iterations around `n`, for a ladder."""
    shares = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
    return sorted({max(1, round(share * n)) for share in shares})


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and largest."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def summarise(runs: list[dict[str, Any]], target: float) -> list[dict[str, Any]]:
    """Each group's best entry: the fastest that reaches the target in the median, else the one that comes closest."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        inertia = spread(run["inertia"] for run in mine)
        above = inertia["median"] / target - 1
        facts = {
            "name": name,
            "group": mine[0]["group"],
            "seconds": spread(run["seconds"] for run in mine),
            "inertia": inertia,
        }
        facts |= {"above target": above, "reached": above <= TOLERANCE}
        groups.setdefault(mine[0]["group"], []).append(facts)
    return [
        min(found, key=lambda e: (not e["reached"], e["seconds"]["median"] if e["reached"] else e["above target"]))
        for found in groups.values()
    ]


def fit_table(best: list[dict[str, Any]]) -> str:
    """Markdown of what :func:`race_to_target` found; times also as multiples of those of daskmeans."""
    own = {entry["group"]: entry["seconds"]["median"] for entry in best if entry["group"].startswith("daskmeans")}
    lines = [
        [
            entry["name"],
            seconds(entry["seconds"]),
            *(f"{entry['seconds']['median'] / unit:.2f}" for unit in own.values()),
            f"{entry['inertia']['median']:,.0f}",
            f"{entry['above target']:+.2%}" + ("" if entry["reached"] else ", missed"),
            entry["seconds"]["runs"],
        ]
        for entry in best
    ]
    ratios = [f"÷ {group}" for group in own]
    return table(["", "seconds (min to max)", *ratios, "inertia", "against the target", "runs"], lines)


def seconds(found: dict[str, float]) -> str:
    """A spread of seconds in a cell."""
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"


def table(head: list[str], lines: list[list[Any]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] + ["---:"] * (len(head) - 1), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def new_record(script: str, args: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """What a results file says before the first run."""
    machine = {"cpu": cpu(), "cores": os.cpu_count(), "threads": args.threads, "system": platform.system()}
    today = datetime.date.today().isoformat()
    return {"script": script, "date": today, "machine": machine, **facts, "versions": {}, "runs": []}


def cpu() -> str:
    """The processor and those of its features that matter here."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    features = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm"}
    found = sorted(features & set(facts.get("flags", facts.get("Features", "")).split()))
    return f"{facts.get('model name', platform.machine())} ({', '.join(found)})"


def write(out: Path | None, record: dict[str, Any]) -> None:
    """The record as JSON, if there is a file to write it to."""
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
