"""One run at a time writes an output; what a killed run has left is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from upath import UPath

from daskmeans.errors import OutputError
from daskmeans.storage import lock, manifest
from daskmeans.storage.step import open_step

PROGRAM = """
import sys, time
from upath import UPath
from daskmeans.storage.step import open_step
with open_step(UPath(sys.argv[1]), "fit", {}, {}) as step:
    (step.path / "half.txt").write_text("half")
    time.sleep(60)
"""


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return UPath(tmp_path / "out")


def make(out, text="whole"):
    with open_step(out, "fit", {}, {}) as step:
        (step.path / "file.txt").write_text(text)


def leave(out, **facts):
    """The lock of a run on another machine, which was seen a moment ago."""
    told = {"token": "t", "pid": 1, "started": 0.0, "host": "elsewhere", "place": "", "seen": time.time()} | facts
    (out / lock.LOCK_NAME).write_text(json.dumps(told))


def names(out):
    return sorted(child.name for child in out.iterdir())


def test_a_second_run_is_refused_until_the_first_is_killed(out):
    running = subprocess.Popen([sys.executable, "-c", PROGRAM, str(out)])
    while not (out / "half.txt").exists():
        assert running.poll() is None
        time.sleep(0.02)
    with pytest.raises(
        OutputError, match=rf"another run is writing this output \(process {running.pid} on .*which is running"
    ):
        make(out)
    assert (out / "half.txt").read_text() == "half"
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    make(out)
    assert names(out) == [manifest.MANIFEST_NAME, "file.txt"]


def test_a_run_on_another_machine_counts_as_long_as_it_is_seen(out):
    leave(out, seen=time.time() - 100)
    with pytest.raises(OutputError, match=r"process 1 on elsewhere, seen 1\d\d s ago"):
        make(out)
    assert names(out) == [lock.LOCK_NAME]
    leave(out, seen=time.time() - lock.STALE_SECONDS - 1)
    make(out)
    assert names(out) == [manifest.MANIFEST_NAME, "file.txt"]


def test_the_number_of_a_dead_process_may_be_anothers_by_now(out):
    leave(out, **lock._this_machine(), pid=os.getpid(), started=1.5)
    make(out)


def test_a_lock_is_taken_over_once(out):
    """Of two runs that find the lock of a dead one, the second does not take that of the first for it."""
    leave(out, seen=0)
    dead = lock._read_owner(out / lock.LOCK_NAME)
    with lock.hold_lock(out) as first:
        with pytest.raises(OutputError, match="has just begun"):
            lock.Lock(out)._remove_stale(dead)
        assert first.held
        assert names(out) == [lock.LOCK_NAME]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_lock_that_says_nothing_is_of_a_killed_run(out, text):
    (out / lock.LOCK_NAME).write_text(text)
    make(out)


def test_a_run_that_was_taken_for_dead_neither_finishes_nor_removes(out):
    with pytest.raises(OutputError, match="another run has taken"), open_step(out, "fit", {}, {}) as step:
        leave(out)
        (step.path / "file.txt").write_text("of the other run")
    assert names(out) == [lock.LOCK_NAME, manifest.MANIFEST_NAME, "file.txt"]
    assert not (manifest.peek_manifest(out) or {})["finished"]


def test_a_run_that_fails_after_that_removes_nothing_either(out):
    with pytest.raises(ZeroDivisionError), open_step(out, "fit", {}, {}):
        leave(out)
        (out / "file.txt").write_text("of the other run")
        raise ZeroDivisionError
    assert names(out) == [lock.LOCK_NAME, manifest.MANIFEST_NAME, "file.txt"]


def test_a_run_gives_signs_of_life(out):
    with lock.hold_lock(out, every=0.01):
        first = lock._read_owner(out / lock.LOCK_NAME)["seen"]
        while lock._read_owner(out / lock.LOCK_NAME)["seen"] == first:
            time.sleep(0.01)
    assert names(out) == []


def test_one_thread_at_a_time_too(out):
    with lock.hold_lock(out), pytest.raises(OutputError, match="another run"):
        make(out)
    make(out)


def test_object_stores():
    out = UPath("memory://test-lock/out")
    out.mkdir(parents=True)
    with lock.hold_lock(out), pytest.raises(OutputError, match="another run"), lock.hold_lock(out):
        pass
    leave(out)
    with pytest.raises(OutputError, match="elsewhere"):
        make(out)
    (out / lock.LOCK_NAME).unlink()
    make(out)
    assert names(out) == [manifest.MANIFEST_NAME, "file.txt"]
