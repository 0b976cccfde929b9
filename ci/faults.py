"""Kill a worker, the scheduler or the client of a step at random moments, call it again, and compare what comes out.

python ci/faults.py [--steps fit assign dedup apply run] [--faults worker scheduler client] [--trials 20] [--seed 0]
                    [--rows 6000] [--seconds 30] [--out results.json]

Processes are real and end by SIGKILL, some time after the step has begun to write its output and before that is whole.
A step that loses a worker has to finish by itself. One that loses the scheduler has to say so; one whose client is
killed says nothing. After both the same command has to finish the job. All that is in the outputs (rows in their order,
centroids, decisions, summaries) has to be that of a run that nobody has disturbed.

Further faults, if asked for: a worker is `paused` (SIGSTOP) for some seconds; nothing passes through the `network` of a
worker for so long; its network is `cut` for good. A step has to finish by itself after each of them.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import distributed
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

STEPS = ("fit", "assign", "dedup", "apply", "run")
KILLED = ("worker", "scheduler", "client")
FAULTS = (*KILLED, "paused", "network", "cut")
# Of summaries and models: what differs from one undisturbed run to the next.
VOLATILE = {"seconds", "peak_bytes", "steps", "resumed", "iterations", "versions", "input_fingerprint", "pairs"}
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
    return [sys.executable, "-c", "from daskmeans.cli.main import main; main()", *map(str, words[step])]


class Wire:
    """A port that forwards to another one of this machine, and holds back what comes, or breaks off, as networks do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._flows = threading.Event()
        self._flows.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"

    def hold(self) -> None:
        """Let nothing pass for now; connections stay."""
        self._flows.clear()

    def release(self) -> None:
        """Let all pass again, also what was held back."""
        self._flows.set()

    def cut(self) -> None:
        """Break off for good."""
        _shut(self._server)
        self._threads[0].join()
        _shut(*self._ends)
        self._flows.set()
        for thread in self._threads[1:]:
            thread.join()
        for each in (self._server, *self._ends):
            each.close()

    def _serve(self) -> None:
        with suppress(OSError):  # it was cut
            while True:
                near, far = self._server.accept()[0], socket.socket()
                self._ends += [near, far]
                if far.connect_ex(("127.0.0.1", self._port)):
                    _shut(near)
                    continue
                for way in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._forward, args=way))
                    self._threads[-1].start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                self._flows.wait()
                other.sendall(data)
        _shut(one, other)


def _shut(*sockets: socket.socket) -> None:
    """Wake all who wait at `sockets`, which closing them would not."""
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextmanager
def outside(folder: Path, wired: bool = False) -> Iterator[tuple[subprocess.Popen, list[Wire], list[str]]]:
    """A scheduler in a process of its own with two workers, the wires of one of them, and the flags that name it all.

    There are wires if `wired`: one worker then reaches the scheduler through one, and is reached through the other.
    """
    file = folder / f"scheduler-{time.monotonic_ns()}.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)], **quiet
    )
    processes, wires = [scheduler], []
    try:
        port = _port(file)
        for way in ([f"tcp://127.0.0.1:{port}"], _wired(port, wires) if wired else [f"tcp://127.0.0.1:{port}"]):
            worker = [*dask, "worker", *way, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
            processes.append(subprocess.Popen(worker, **quiet))
        with distributed.Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(2)
        yield scheduler, wires, ["--scheduler-file", str(file)]
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
        for wire in wires:
            wire.cut()


def _port(file: Path) -> int:
    """The port of the scheduler that writes `file`."""
    while True:
        with suppress(FileNotFoundError, ValueError):  # it is not there yet, or half of it
            return int(json.loads(file.read_text())["address"].rpartition(":")[2])
        time.sleep(0.05)


def _wired(scheduler: int, wires: list[Wire]) -> list[str]:
    """The words by which a worker uses `wires`, which are made here."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    wires += [Wire(scheduler), Wire(port)]
    ways = ["--listen-address", f"tcp://127.0.0.1:{port}", "--contact-address", wires[1].address]
    return [wires[0].address, "--no-nanny", *ways]


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Processes that run tasks of a cluster which `process` has started."""
    return [p for p in process.children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def strike(
    running: subprocess.Popen, scheduler: subprocess.Popen | None, wires: list[Wire], fault: str, rng: random.Random
) -> Callable[[], object] | None:
    """Do harm; what ends it where it lasts, or None if there was nothing to harm."""
    if running.poll() is not None:
        return None
    if fault in ("worker", "paused"):
        while not (workers := workers_of(psutil.Process(running.pid))):
            if running.poll() is not None:
                return None
            time.sleep(0.05)
        victim = rng.choice(workers)
        victim.send_signal(signal.SIGKILL if fault == "worker" else signal.SIGSTOP)
        return partial(resume, victim)
    if fault == "network":
        for wire in wires:
            wire.hold()
    elif fault == "cut":
        for wire in wires:
            wire.cut()
    elif fault == "scheduler":
        scheduler.kill()
    else:
        running.kill()
    return lambda: [wire.release() for wire in wires]


def resume(victim: psutil.Process) -> None:
    """Let a process go on, if it is still there."""
    with suppress(psutil.NoSuchProcess):
        victim.resume()


def begun(running: subprocess.Popen, out: Path) -> None:
    """Wait until `running` has written a first manifest into `out`, or has ended."""
    while running.poll() is None and not any(out.rglob("_manifest.json")):
        time.sleep(0.02)


def finished(step: str, out: Path) -> bool:
    """Whether the manifest of the output of a step, or of the last one of a run, says that it is whole."""
    manifest = (out / "dedup" if step == "run" else out) / "_manifest.json"
    return manifest.exists() and json.loads(manifest.read_text())["finished"]


def content(out: Path) -> dict[str, object]:
    """All that an output says: rows in their order, however they are cut into files, arrays and facts, by their names.

    Of pairs of rows only which there are: the tasks that find them decide on their order.
    """
    found: dict[str, object] = {}
    tables: dict[str, list[pa.Table]] = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(file.relative_to(out))
        if file.read_bytes().startswith(b"PAR1"):  # what is no data is not called Parquet
            table = pq.ParquetFile(file).read()
            tables.setdefault(f"{file.parent.relative_to(out)}: {', '.join(table.column_names)}", []).append(table)
        elif file.suffix == ".npy":
            found[name] = np.load(file).tobytes()
        elif file.name == "_manifest.json":
            found[name] = json.loads(file.read_text())["finished"]
        elif file.suffix == ".json":
            facts = json.loads(file.read_text())
            found[name] = {key: facts[key] for key in sorted(set(facts) - VOLATILE)}
    for name, mine in tables.items():
        table = pa.concat_tables(mine)
        pairs = name.partition(":")[0].endswith("pairs")
        found[name] = table.sort_by([(column, "ascending") for column in table.column_names]) if pairs else table
    return found


def trial(
    step: str, fault: str, moment: float, folder: Path, expected: dict, rng: random.Random, seconds: float
) -> dict:
    """One fault: what the step then did, and whether its output is right after it, or after the next call."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = command(step, folder / "in", folder / "whole", out)
    elsewhere = fault in ("scheduler", "network", "cut")
    with outside(folder, fault != "scheduler") if elsewhere else _nothing() as (scheduler, wires, flags):
        running = subprocess.Popen([*words, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        begun(running, out)
        time.sleep(moment)
        end = None if finished(step, out) else strike(running, scheduler, wires, fault, rng)
        try:
            said = heard(running, end or (lambda: None), seconds)
        except subprocess.TimeoutExpired:
            running.kill()
            return {"step": step, "fault": fault, "moment": moment, "struck": True, "outcome": "hung", "equal": False}
    struck = end is not None
    if fault == "client":  # it may have ended by itself in the same moment
        struck = struck and running.returncode == -signal.SIGKILL and not finished(step, out)
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


def heard(running: subprocess.Popen, end: Callable[[], object], seconds: float) -> str:
    """What `running` has said when it has ended; after some `seconds`, or then, `end` ends harm that lasts."""
    try:
        return running.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        pass
    finally:
        end()
    return running.communicate(timeout=LIMIT)[1]


@contextmanager
def _nothing() -> Iterator[tuple[None, list[Wire], list[str]]]:
    yield None, [], []


def table(found: list[dict]) -> str:
    """What came of each fault in each step."""
    head = "| step | fault | trials | went on by itself | stopped, then finished | equal | hung, failed, traceback |"
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
    arguments.add_argument("--faults", nargs="+", choices=FAULTS, default=KILLED)
    arguments.add_argument("--trials", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--rows", type=int, default=6000)
    arguments.add_argument("--seconds", type=float, default=30, help="how long a worker, or its network, is away")
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
            words = command(step, folder / "in", folder / "whole", out)
            running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            begun(running, out)
            start = time.perf_counter()
            if running.wait():
                sys.exit(f"{step}: failed without a fault")
            whole = time.perf_counter() - start
            expected = content(out)
            for fault in args.faults:
                struck = 0
                while struck < args.trials:
                    one = trial(step, fault, rng.uniform(0.0, 1.0) * whole, folder, expected, rng, args.seconds)
                    struck += one["struck"]
                    if not one["struck"]:  # it had ended by then: alone, and for the first time, it took longer
                        whole = min(whole, one["moment"])
                    found.append(one)
                    print(json.dumps({key: one[key] for key in one if key != "said"}), file=sys.stderr, flush=True)
                    if args.out:
                        args.out.write_text(json.dumps(found, indent=1))
    print(table(found))
    if any(each["struck"] and not each["equal"] for each in found) or any("said" in each for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
