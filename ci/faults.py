"""Kill a worker, the scheduler or the client of a step at random moments, call it again, and compare what comes out.

python ci/faults.py [--steps fit assign dedup apply run] [--faults worker scheduler client] [--trials 20] [--seed 0]
                    [--rows 6000] [--out results.json]

Processes are real and end by SIGKILL. A step that loses a worker has to finish by itself. One that loses the scheduler
has to say so; one whose client is killed says nothing. After both the same command has to finish the job. All that is
in the outputs (rows in their order, centroids, decisions, summaries) has to be that of a run that nobody has disturbed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

STEPS = ("fit", "assign", "dedup", "apply", "run")
FAULTS = ("worker", "scheduler", "client")
# Of summaries and models: what differs from one undisturbed run to the next.
VOLATILE = {"seconds", "peak_bytes", "resumed", "iterations", "versions"}
LIMIT = 120


def write_rows(folder: Path, rows: int) -> None:
    """Texts with vectors around a few hundred centres, a tenth of them near-copies, in four files."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 32))[rng.integers(0, 300, rows)] + 0.7 * rng.normal(size=(rows, 32))
    copies = rng.integers(0, rows, rows // 10)
    X[: len(copies)] = X[copies] + rng.choice([0, 0.05], (len(copies), 1)) * rng.normal(size=(len(copies), 32))
    folder.mkdir()
    for number, places in enumerate(np.array_split(np.arange(rows), 4)):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(X[places].astype(np.float32).ravel()), 32)
        table = pa.table({"id": places, "embedding": vectors, "text": [f"text {i}" for i in places]})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=300)


def command(step: str, rows: Path, whole: Path, out: Path) -> list[str]:
    """The command of a step that reads what an undisturbed run has left in `whole`."""
    words = {
        "fit": ["fit", rows, "--model", out, "--n-clusters", 200],
        "assign": ["assign", rows, "--model", whole / "model", "--out", out],
        "dedup": ["dedup", whole / "clusters", "--threshold", 0.9, "--out", out],
        "apply": ["apply", whole / "dedup", rows, "--out", out],
        "run": ["run", rows, "--n-clusters", 200, "--threshold", 0.9, "--out", out],
    }
    return [sys.executable, "-c", "from daskmeans.cli import main; main()", *map(str, words[step])]


@contextmanager
def outside(folder: Path) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """A scheduler in a process of its own with two workers, and the flags that name it."""
    file = folder / f"scheduler-{time.monotonic_ns()}.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)], **quiet
    )
    worker = [*dask, "worker", "--nthreads", "1", "--no-dashboard", "--scheduler-file", str(file)]
    workers = [subprocess.Popen([*worker, "--local-directory", str(folder)], **quiet) for _ in range(2)]
    try:
        while not file.exists():
            time.sleep(0.05)
        yield scheduler, ["--scheduler-file", str(file)]
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Processes that run tasks of a cluster which `process` has started."""
    return [p for p in process.children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def strike(running: subprocess.Popen, scheduler: subprocess.Popen | None, fault: str, rng: random.Random) -> bool:
    """Kill; whether there was something to kill."""
    if running.poll() is not None:
        return False
    if fault == "worker":
        workers = workers_of(psutil.Process(running.pid))
        if not workers:
            return False
        victim = rng.choice(workers)
        victim.send_signal(signal.SIGKILL)
    elif fault == "scheduler":
        scheduler.kill()
    else:
        running.kill()
    return True


def content(out: Path) -> dict[str, object]:
    """All that an output says, by file."""
    found: dict[str, object] = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(file.relative_to(out))
        if file.suffix == ".parquet":
            found[name] = pq.ParquetFile(file).read()
        elif file.suffix == ".npy":
            found[name] = np.load(file).tobytes()
        elif file.suffix == ".json" and file.name != "manifest.json":
            facts = json.loads(file.read_text())
            found[name] = {key: facts[key] for key in sorted(set(facts) - VOLATILE)}
        elif file.name == "manifest.json":
            found[name] = json.loads(file.read_text())["finished"]
    return found


def trial(step: str, fault: str, moment: float, folder: Path, expected: dict, rng: random.Random) -> dict:
    """One fault: what the step then did, and whether its output is right after it, or after the next call."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = command(step, folder / "in", folder / "whole", out)
    with outside(folder) if fault == "scheduler" else _nothing() as (scheduler, flags):
        running = subprocess.Popen([*words, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(moment)
        struck = strike(running, scheduler, fault, rng)
        try:
            said = running.communicate(timeout=LIMIT)[1]
        except subprocess.TimeoutExpired:
            running.kill()
            return {"step": step, "fault": fault, "moment": moment, "struck": struck, "outcome": "hung", "equal": False}
    if fault == "client":  # it may have ended by itself in the same moment
        struck = running.returncode == -signal.SIGKILL
    outcome = "finished" if running.returncode == 0 else "stopped"
    if "Traceback" in said:
        outcome = "traceback"
    if running.returncode:
        again = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
        said += again.stderr
        outcome += ", then finished" if again.returncode == 0 else ", then failed"
    equal = content(out) == expected if out.exists() else False
    made = {"step": step, "fault": fault, "moment": moment, "struck": struck, "outcome": outcome, "equal": equal}
    return made if equal and "traceback" not in outcome else made | {"said": said[-4000:]}


@contextmanager
def _nothing() -> Iterator[tuple[None, list[str]]]:
    yield None, []


def table(found: list[dict]) -> str:
    """What came of each fault in each step."""
    head = "| step | killed | trials | went on by itself | stopped, then finished | equal | hung, failed, traceback |"
    lines = [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for step, fault in sorted({(each["step"], each["fault"]) for each in found if each["struck"]}):
        mine = [each for each in found if (each["step"], each["fault"]) == (step, fault) and each["struck"]]
        counts = Counter(each["outcome"] for each in mine)
        good = counts["finished"], counts["stopped, then finished"]
        equal = sum(each["equal"] for each in mine)
        lines.append(f"| {step} | {fault} | {len(mine)} | {good[0]} | {good[1]} | {equal} | {len(mine) - sum(good)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    arguments.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    arguments.add_argument("--trials", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--rows", type=int, default=6000)
    arguments.add_argument("--out", type=Path)
    args = arguments.parse_args()
    os.environ["DASK_DASKMEANS__CHECKPOINT_SECONDS"] = "0"
    rng, found = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "in", args.rows)
        subprocess.run(command("run", folder / "in", folder, folder / "whole"), check=True, capture_output=True)
        for step in args.steps:
            out = folder / "alone"
            shutil.rmtree(out, ignore_errors=True)
            start = time.perf_counter()
            subprocess.run(command(step, folder / "in", folder / "whole", out), check=True, capture_output=True)
            whole = time.perf_counter() - start
            expected = content(out)
            for fault in args.faults:
                struck = 0
                while struck < args.trials:
                    one = trial(step, fault, rng.uniform(0.3, 1.0) * whole, folder, expected, rng)
                    struck += one["struck"]
                    found.append(one)
                    print(json.dumps({key: one[key] for key in one if key != "said"}), file=sys.stderr, flush=True)
                    if args.out:
                        args.out.write_text(json.dumps(found, indent=1))
    print(table(found))
    if any(each["struck"] and not each["equal"] for each in found) or any("said" in each for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
