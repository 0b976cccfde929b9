"""Commands in any order, repeated and killed: whatever was dropped has a twin among what is then kept.

The truth is a model in float64 that knows the vectors, and nothing of clusters, ranks or files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from daskmeans import KMeans, apply, dedup, open_buckets, run
from daskmeans.errors import DaskmeansError, DataError
from daskmeans.steps.assign import assign_files
from daskmeans.storage import manifest
from helpers import NIGHTLY, call_until_killed, decisions_of, write_embeddings

DIMENSION, ROWS = 6, 18
NAMES = ("base", "first", "second", "third")
NEAR = 1e-6  # scores are float32 numbers of float32 rows
THRESHOLDS = (0.9, 0.96)


def make_vectors(seed: int) -> dict[str, np.ndarray]:
    """Vectors by id: around few directions at all distances, so that chains of near-duplicates cross the batches."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((7, DIMENSION))
    n = ROWS * len(NAMES)
    X = centres[rng.integers(len(centres), size=n)] + rng.choice([0, 0.1, 0.25, 0.4], (n, 1)) * rng.standard_normal(
        (n, DIMENSION)
    )
    X = X.astype(np.float32)
    return {f"{name}-{i:02d}": x for name, part in zip(NAMES, np.split(X, len(NAMES)), strict=True)
            for i, x in enumerate(part)}  # fmt: skip


class Lineage(RuleBasedStateMachine):
    """A run on some rows, and batches that are held against it and against one another."""

    folder: Path
    count = 0
    context: Any
    made: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        type(self).count += 1
        self.root = self.folder / f"case-{self.count}"
        self.root.mkdir()

    @initialize(seed=st.integers(0, 999))
    def begin(self, seed):
        self.vectors = make_vectors(seed)
        self.units = {id_: x.astype(float) / np.linalg.norm(x.astype(float)) for id_, x in self.vectors.items()}
        for name in NAMES:
            ids = [id_ for id_ in self.vectors if id_.startswith(name)]
            write_embeddings(self.root / f"{name}.parquet", np.stack([self.vectors[id_] for id_ in ids]), ids)
        self.last: Callable[[], object] = lambda: None
        self.applied: set[tuple[Path, str, frozenset[str]]] = set()
        # Of finished decisions, by their directory: their identity, and the ids that they were held against.
        self.known: dict[Path, tuple[str, set[str]]] = {}
        run(self.root / "base.parquet", self.root / "work", KMeans(2, max_iter=2), threshold=0.9)
        self._see({})

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    # --- what is there ---

    def clusters_of(self, name: str) -> Path:
        return self.root / ("work/clusters" if name == "base" else f"{name}-clusters")

    def finished(self) -> dict[Path, dict[str, Any]]:
        """Manifests of all finished decisions."""
        found = {path.parent: json.loads(path.read_text()) for path in self.root.rglob("_manifest.json")}
        return {path: made for path, made in found.items() if made["step"] == "dedup" and made["finished"]}

    def kept(self) -> dict[Path, set[str]]:
        return {path: {row["id"] for row in decisions_of(path) if row["keep"]} for path in self.finished()}

    def counting(self, name: str, alone: Path | None = None) -> set[str]:
        """Ids in the clusters `name` that no decisions on them drop, or not those `alone`."""
        clusters = self.clusters_of(name)
        if not (manifest_of(clusters) or {"finished": False})["finished"]:
            return set()
        buckets = open_buckets(clusters)
        there = {id_ for cluster in buckets.clusters() for id_ in buckets.read(cluster, ["id"])["id"].to_pylist()}
        for path, made in self.finished().items():
            if Path(made["inputs"]["clusters"]) == clusters and alone in (None, path):
                there -= {row["id"] for row in decisions_of(path) if not row["keep"]}
        return there

    def there(self, made: dict[str, Any]) -> set[str]:
        """Ids in the clusters that decisions were held against; all that there are where these are not there."""
        found: set[str] = set()
        for other in made["inputs"].get("against", ()):
            if not (manifest_of(Path(other["clusters"])) or {"finished": False})["finished"]:
                return set(self.vectors)
            buckets = open_buckets(other["clusters"])
            found.update(*(buckets.read(cluster, ["id"])["id"].to_pylist() for cluster in buckets.clusters()))
        return found

    def score(self, one: str, other: str) -> float:
        return min(1.0, float(self.units[one] @ self.units[other]))

    # --- commands ---

    def do(self, name: str, call: Callable[[], object], against: dict[Path, set[str]] | None = None) -> bool:
        """Do what may be refused with one of our errors, and nothing else."""
        self.last = partial(self.do, name, call, against)
        try:
            call()
        except (DaskmeansError, FileNotFoundError) as error:
            assert isinstance(error, DaskmeansError), error
            self.made[f"{name}, refused"] = self.made.get(f"{name}, refused", 0) + 1
            return False
        finally:
            self._see(against or {})
        self.made[name] = self.made.get(name, 0) + 1
        return True

    def _see(self, against: dict[Path, set[str]]) -> None:
        """Note what new decisions were held against."""
        for path, made in self.finished().items():
            identity = manifest.identity_hash(made) + str(made["seconds"])
            if self.known.get(path, ("",))[0] != identity:
                self.known[path] = identity, against.get(path, set())

    @rule(threshold=st.sampled_from(THRESHOLDS), overwrite=st.booleans())
    def run_again(self, threshold, overwrite):
        appended = (manifest_of(self.root / "work/clusters") or {}).get("appended")
        before = self.kept().get(self.root / "work/dedup")
        call = partial(run, self.root / "base.parquet", self.root / "work", KMeans(2, max_iter=2), threshold=threshold)
        done = self.do("run", partial(call, overwrite=overwrite))
        if done and appended:
            assert self.kept()[self.root / "work/dedup"] == before

    @rule(name=st.sampled_from(NAMES[1:]), overwrite=st.booleans())
    def assign(self, name, overwrite):
        source, clusters = self.root / f"{name}.parquet", self.clusters_of(name)
        self.do("assign", partial(assign_files, source, self.root / "work/model", clusters, overwrite=overwrite))

    def assign_missing(self, *names):
        for name in names:
            if not self.clusters_of(name).exists():
                self.assign(name, False)

    @rule(overwrite=st.booleans())
    def assign_base(self, overwrite):
        source, clusters = self.root / "base.parquet", self.clusters_of("base")
        self.do("assign", partial(assign_files, source, self.root / "work/model", clusters, overwrite=overwrite))

    def held(self, name, others, threshold, by_decisions, **flags) -> tuple[partial, dict[Path, set[str]]]:
        """A call that holds a batch against others, and the ids that count."""
        out = self.root / f"{name}-dedup"
        against, counting = [], set[str]()
        for other in others:
            path = self.root / ("work/dedup" if other == "base" else f"{other}-dedup")
            alone = path if by_decisions and path in self.finished() else None
            against.append(alone or self.clusters_of(other))
            counting |= self.counting(other, alone)
        return partial(
            dedup, self.clusters_of(name), threshold, search="exact", against=against, out=out, **flags
        ), {out: counting}  # fmt: skip

    @rule(
        name=st.sampled_from(NAMES[1:]),
        others=st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=2),
        threshold=st.sampled_from(THRESHOLDS),
        by_decisions=st.booleans(),
        overwrite=st.booleans(),
    )
    def dedup_against(self, name, others, threshold, by_decisions, overwrite):
        others = [other for other in others if other != name]
        self.assign_missing(name, *others)
        call, held = self.held(name, others, threshold, by_decisions, overwrite=overwrite)
        self.do("dedup --against", call, held)

    @rule(name=st.sampled_from(NAMES[1:]), threshold=st.sampled_from(THRESHOLDS), by_decisions=st.booleans())
    def append(self, name, threshold, by_decisions):
        """The recipe of the README."""
        self.assign_missing(name)
        call, held = self.held(name, ["base"], threshold, by_decisions, append=True)
        self.do("dedup --append", call, held)

    @rule(threshold=st.sampled_from(THRESHOLDS))
    def look_at_another_threshold(self, threshold):
        out = self.root / f"other-{threshold}"
        self.do("dedup elsewhere", partial(dedup, self.clusters_of("base"), threshold, out=out))

    @rule()
    def repeat(self):
        self.last()

    @rule(
        name=st.sampled_from(NAMES[1:]),
        threshold=st.sampled_from(THRESHOLDS),
        writes=st.integers(0, 15),
        again=st.booleans(),
        command=st.sampled_from(["append", "assign", "run"]),
    )
    def kill(self, name, threshold, writes, again, command):
        """A command that is killed as it writes, and may then be given once more."""
        held: dict[Path, set[str]] = {}
        if command == "append":
            self.assign_missing(name)
            call, held = self.held(name, ["base"], threshold, False, append=True)
        elif command == "assign":
            call = partial(assign_files, self.root / f"{name}.parquet", self.root / "work/model",
                           self.clusters_of(name), overwrite=True)  # fmt: skip
        else:
            call = partial(run, self.root / "base.parquet", self.root / "work", KMeans(2, max_iter=2),
                           threshold=threshold, overwrite=True)  # fmt: skip
        given = (self.root, writes, call.func, call.args, call.keywords)
        process = self.context.Process(target=call_until_killed, args=given)
        process.start()
        process.join()
        assert process.exitcode in (0, -9)
        self.made[f"killed {process.exitcode}"] = self.made.get(f"killed {process.exitcode}", 0) + 1
        process.close()
        self._see(held)
        if again:
            self.do(f"{command} after a kill", call, held)

    # --- what must hold ---

    @invariant()
    def explanations_are_true(self):
        for path, made in self.finished().items():
            for row in decisions_of(path):
                if row["kept_id"] is not None:
                    score = self.score(row["id"], row["kept_id"])
                    assert row["kept_score"] == pytest.approx(score, abs=NEAR)
                    assert score >= made["settings"]["threshold"] - NEAR
                    assert (row["reason"] == "exact") <= (score >= 1 - NEAR)
                assert row["keep"] == (row["kept_id"] is None)

    @invariant()
    def nothing_is_missed(self):
        for path, made in self.finished().items():
            _, against = self.known[path]
            threshold = made["settings"]["threshold"] + NEAR
            kept = sorted(self.kept()[path])
            for i, one in enumerate(kept):
                assert all(self.score(one, other) < threshold for other in [*kept[:i], *against])

    @invariant()
    def what_was_dropped_has_a_living_twin(self):
        kept = self.kept()
        finished = self.finished()
        for path in kept:
            rows = decisions_of(path)
            names = [name for name in NAMES if Path(finished[path]["inputs"]["clusters"]) == self.clusters_of(name)]
            living = set(kept[path])
            for other in finished[path]["inputs"].get("against", ()):
                name = next(name for name in NAMES if self.clusters_of(name) == Path(other["clusters"]))
                alone = Path(other["decided"][0]["decisions"]) if other.get("alone") else None
                if (manifest_of(self.clusters_of(name)) or {"finished": False})["finished"]:
                    living |= self.counting(name, alone)
                else:  # being written anew: of what is not there nothing is known
                    living |= {id_ for id_ in self.vectors if id_.startswith(name)}
            dead = [row["kept_id"] for row in rows if not row["keep"] and row["kept_id"] not in living]
            lost = self.known[path][1] - self.there(finished[path])
            state = path, self.known[path][0], frozenset(living)
            if state in self.applied:
                continue
            self.applied.add(state)
            target = self.root / "applied"
            call = partial(apply, path, self.root / f"{names[0]}.parquet", target, overwrite=True)
            if dead or lost:
                with pytest.raises(DataError, match=r"dropped as duplicates of rows of|these clusters were made again"):
                    call()
                continue
            assert call()["kept"] == len(kept[path])
            written = ds.dataset(str(target / f"{names[0]}.parquet")).to_table()["id"].to_pylist()
            assert set(written) == kept[path]


def manifest_of(path: Path) -> dict[str, Any] | None:
    file = path / "_manifest.json"
    return json.loads(file.read_text()) if file.exists() else None


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    """Processes that begin with all modules loaded, for a call each."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["helpers", "daskmeans.steps.run", "daskmeans.steps.dedup"])
    made.Process(target=print).start()
    yield made


def test_any_order_of_commands(tmp_path, context):
    Lineage.folder, Lineage.context, Lineage.count, Lineage.made = tmp_path, context, 0, {}
    examples = int(os.environ.get("DASKMEANS_LINEAGE_EXAMPLES", 100 if NIGHTLY else 6))
    # A failure is told as it was found: making it smaller would take many times as long.
    phases = {"phases": [Phase.generate], "report_multiple_bugs": False}
    run_state_machine_as_test(Lineage, settings=settings(max_examples=examples, stateful_step_count=12, **phases))
    print(Lineage.made)  # pytest -s shows what was done, and how often
    done = ("run", "assign", "dedup --against", "dedup --append", "dedup elsewhere", "killed -9", "append after a kill")
    assert all(Lineage.made.get(name) for name in done)
