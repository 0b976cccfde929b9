"""What `info --system` says of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

import daskmeans
from daskmeans.cli.main import main
from daskmeans.planner import system
from daskmeans.runtime import gpus


def shown(*words: str) -> dict:
    done = CliRunner().invoke(main, ["info", *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_machine_in_json_and_in_words():
    facts = shown("--system")
    assert set(facts) == {"processor", "memory", "kernels", "kernel_cache", "local_disk", "gpu", "versions", "extras"}
    assert 1 <= facts["processor"]["cores_used"] <= facts["processor"]["cores_allowed"] <= facts["processor"]["cores"]
    assert facts["processor"]["cores_allowed"] <= len(os.sched_getaffinity(0))
    assert 0 < facts["memory"]["worker_bytes"] <= facts["memory"]["limit_bytes"] <= facts["memory"]["total_bytes"]
    assert facts["versions"]["numpy"] == version("numpy")
    words = CliRunner().invoke(main, ["info", "--system"])
    assert facts["kernels"] in words.stdout
    assert "GiB" in words.stdout


def test_threads_that_the_environment_allows():
    script = (
        "import json; from daskmeans.planner.system import describe_system as f; print(json.dumps(f()['processor']))"
    )
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    processor = json.loads(done.stdout)
    assert (processor["OMP_NUM_THREADS"], processor["cores_used"]) == ("1", 1)


def test_kernels_that_the_configuration_asks_for(monkeypatch):
    import dask

    with dask.config.set({"daskmeans.kernels": "float32"}):
        assert system.describe_system()["kernels"].startswith("float32")


def test_a_kernel_is_compiled_again_when_one_that_it_calls_has_changed(tmp_path):
    shutil.copytree(Path(daskmeans.__file__).parent, tmp_path / "daskmeans", ignore=lambda *_: ["__pycache__"])
    script = "import numpy as np; from daskmeans.kernels.norms import squared_norms64 as f; print(f(np.float32([[3]])))"

    def norm() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    assert [norm(), norm()] == ["[9.]\n"] * 2
    lanes = tmp_path / "daskmeans" / "kernels" / "simd.py"
    lanes.write_text(lanes.read_text().replace("return _dot(x, y)", "return 1.0 + _dot(x, y)"))
    assert norm() == "[10.]\n"


CLOCK = """
import sys, time
from numba.core import event

class Compiled(event.Listener):
    count = 0
    def on_start(self, event): Compiled.count += 1
    def on_end(self, event): Compiled.count += 1

event.register("numba:compile", Compiled())
time.perf_counter = lambda: Compiled.count  # a clock that goes on only while kernels are compiled
from upath import UPath
from daskmeans.pairs import plan
from daskmeans.kernels.all_pairs import find_directions
from daskmeans.buckets.buckets import open_buckets
from daskmeans.tuning import DEFAULT

buckets = open_buckets(UPath(sys.argv[1]))
(band, *_), _ = plan._cut_row_blocks([buckets], None, DEFAULT)
sample = plan._sample_sources([buckets])
print(plan._time_sample(plan._make_readers([buckets])[0], band, find_directions(sample, 0.9), 0.9, sample))
print(Compiled.count > 0)
"""


@pytest.mark.nightly
def test_nothing_is_compiled_while_a_forecast_takes_the_time(tmp_path, embeddings):
    daskmeans.run(embeddings, tmp_path / "out", daskmeans.KMeans(4), 0.9)
    done = subprocess.run(
        [sys.executable, "-c", CLOCK, str(tmp_path / "out" / "clusters")],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.splitlines() == ["(0.0, 0.0)", "True"], done.stderr


def test_what_will_compile_kernels_is_known(tmp_path):
    script = (
        "from daskmeans.planner.system import uncompiled_work as found; from daskmeans.kernels import hashing, jit;"
        "import numpy as np; print(sorted(found()), jit.is_compiled('hashing.hash_integers'));"
        "hashing.hash_integers(np.zeros(1, np.uint64), 0); print(jit.is_compiled('hashing.hash_integers'))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['assign', 'compare', 'dedup', 'k-means'] False", "True"]


def test_a_kernel_cache_that_cannot_be_written(tmp_path):
    package = shutil.copytree(
        Path(daskmeans.__file__).parent, tmp_path / "daskmeans", ignore=lambda *_: ["__pycache__"]
    )
    (package / "kernels" / "__pycache__").touch()  # a file where numba would make a directory
    script = (
        "import json; from daskmeans.planner.system import describe_system as f; print(json.dumps(f()['kernel_cache']))"
    )
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), "/dev/null")
    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        cwd=tmp_path,  # where Python looks first
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["directory"], facts["writable"]) == ("none", False)
    assert "NUMBA_CACHE_DIR" in facts["remedy"]


def test_extras_and_what_they_lack(monkeypatch):
    monkeypatch.setattr(system, "_is_installed", lambda package: package != "scipy")
    extras = system.describe_system()["extras"]
    assert extras["demo"] == "missing: scipy"
    assert extras["dashboard"] == "installed"
    assert "test" not in extras


def test_gpus_that_the_driver_lists(tmp_path, monkeypatch):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(gpus, "listed", lambda: [tmp_path / "0000:01:00.0"])
    assert system.describe_system()["gpu"]["found"] == "NVIDIA H200"
    monkeypatch.setattr(gpus, "listed", list)
    assert system.describe_system()["gpu"] == {"found": "none", "used": "none"}


@pytest.mark.parametrize("words", [["info"], ["info", "--advise"]])
def test_info_needs_something_to_look_at(words):
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "--system" in done.stderr
