"""Change lines of the package, one at a time, and count how many of these mutants a test notices.

Needs cosmic-ray, which makes the mutants, and the coverage of a run of the tests, which says which tests reach a line:

    pip install cosmic-ray pytest-cov
    pytest -n 2 --cov=daskmeans --cov-branch --cov-context=test --cov-report= --junitxml=tests.xml
    python ci/mutants.py .coverage tests.xml --out mutants.jsonl

A mutant is killed if one of the cheapest tests that reach its line fails. Bodies of compiled kernels are traced by
nothing, so mutants of kernels meet all tests of kernels, those of the same module first. The checkout is copied, and
only the copy is changed. A run that was interrupted goes on from what `--out` holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import CoverageData

ROOT = Path(__file__).parent.parent
GROUPS = {
    "kernels": ["kernels/*.py"],
    "engine": ["kmeans/engine/*.py", "kmeans/rows/*.py"],
    "duplicates": ["duplicates/*.py", "pairs/*.py"],
    "storage": ["storage/*.py"],
}
# Operators that need settings, or that change no behaviour of a line.
LEFT_OUT = ("core/Decorator", "core/RemoveDecorator", "core/VariableInserter", "core/VariableReplacer")
MOST_TESTS = 150


@dataclass(frozen=True)
class Mutant:
    """One change of one line; `source` is the whole changed module."""

    group: str
    file: str
    line: int
    operator: str
    source: str

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.file}:{self.line} {self.operator}"


def sample_mutants(seed: int, each: int) -> list[Mutant]:
    """Draw `each` mutants of every group, on as many lines."""
    rng = random.Random(seed)
    return [mutant for group in GROUPS for mutant in _sample_group(group, each, rng)]


def _sample_group(group: str, count: int, rng: random.Random) -> list[Mutant]:
    spots: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for file in sorted(file for glob in GROUPS[group] for file in (ROOT / "daskmeans").glob(glob)):
        tree, name = get_ast(file.read_text()), str(file.relative_to(ROOT))
        for operator in sorted(each for each in operator_names() if not each.startswith(LEFT_OUT)):
            made = get_operator(operator)()
            places = [start for node in ast_nodes(tree) for start, _ in made.mutation_positions(node)]
            for occurrence, (line, _) in enumerate(places):
                spots.setdefault((name, line), []).append((operator, occurrence))
    lines, found = sorted(spots), []
    rng.shuffle(lines)
    for file_name, line in lines:
        operator, occurrence = rng.choice(spots[file_name, line])
        before = (ROOT / file_name).read_text()
        if before.splitlines()[line - 1].strip().startswith(("@", "def ", "import ", "from ")):
            continue
        source = mutate_code(before, get_operator(operator)(), occurrence)
        if source and source != before:
            found.append(Mutant(group, file_name, line, operator, source))
        if len(found) == count:
            break
    return found


class Plan:
    """Which tests a mutant meets."""

    def __init__(self, coverage: Path, junit: Path, seconds: float) -> None:
        self._data, self._seconds = CoverageData(str(coverage)), seconds
        self._data.read()
        self._files = {file.rpartition("/daskmeans/")[2]: file for file in self._data.measured_files()}
        cases = ET.parse(junit).iter("testcase")
        self._took = {
            f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}": float(case.get("time", 0))
            for case in cases
        }

    def tests(self, mutant: Mutant) -> list[str]:
        """The cheapest tests that reach the line, for at most so many seconds."""
        if mutant.group == "kernels":
            own = f"test_{Path(mutant.file).stem}"
            reach = [test for test in self._took if test.startswith("tests/kernels/test_")]
            reach.sort(key=lambda test: (own not in test, self._took[test]))
        else:
            file = self._files.get(mutant.file.removeprefix("daskmeans/"), "")
            contexts = self._data.contexts_by_lineno(file).get(mutant.line, []) if file else []
            reach = sorted(
                {each.partition("|")[0] for each in contexts} & self._took.keys(), key=self._took.__getitem__
            )
        chosen, left = [], self._seconds
        for test in reach[:MOST_TESTS]:
            if self._took[test] <= left or not chosen:
                chosen.append(test)
                left -= self._took[test]
        return chosen


def meet(mutant: Mutant, tests: list[str], tree: Path) -> str:
    """Run `tests` on `mutant` in the checkout `tree`; return what became of it."""
    if not tests:
        return "not covered"
    path = tree / mutant.file
    before = path.read_text()
    path.write_text(mutant.source)
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "600", *tests]
    env = os.environ | {
        "PYTHONPATH": str(tree),
        "NUMBA_CACHE_DIR": str(tree / ".numba"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, timeout=1200, check=False)
    except subprocess.TimeoutExpired:
        return "killed"  # such as a loop without an end
    finally:
        path.write_text(before)
    return "survived" if done.returncode == 0 else "killed"


def main() -> None:
    """Meet all mutants that `--out` does not hold yet, and print the share that was killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("coverage", type=Path)
    parser.add_argument("junit", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=40, help="mutants of every group")
    parser.add_argument("--seconds", type=float, default=60, help="of tests, as they took in the run that was traced")
    given = parser.parse_args()
    plan = Plan(given.coverage, given.junit, given.seconds)
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    known = {found["name"]: found for found in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", "_build"))
        for mutant in sample_mutants(given.seed, given.each):
            if mutant.name in known:
                continue
            start, tests = time.monotonic(), plan.tests(mutant)
            became = meet(mutant, tests, tree)
            found = {"name": mutant.name, "group": mutant.group, "became": became, "tests": len(tests)}
            known[mutant.name] = found | {"seconds": round(time.monotonic() - start)}
            with given.out.open("a") as file:
                file.write(json.dumps(known[mutant.name]) + "\n")
            print(f"{became:12} {mutant.name}", flush=True)
    for group in GROUPS:
        print(group, dict(Counter(found["became"] for found in known.values() if found["group"] == group)))


if __name__ == "__main__":
    main()
