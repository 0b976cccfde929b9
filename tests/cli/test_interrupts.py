"""Ctrl-C ends a command whenever it comes and however often, with one message, and leaves nothing half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

import daskmeans as dkm
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from faults import content
from helpers import NIGHTLY, different, hears_interrupts, nightly

pytestmark = pytest.mark.usefixtures("spawned_workers")

SCRIPT = "from daskmeans.__main__ import main; main()"
SIGNALS = {"once": (os.killpg, 1), "to the command alone": (os.kill, 1), "five times": (os.killpg, 5)}


@pytest.fixture(autouse=True)
def heard():
    """Whoever runs the tests may ignore Ctrl-C, which processes inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(*words: object, script: str = SCRIPT) -> subprocess.Popen:
    """A command in a process group of its own, as a terminal starts it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], text=True, process_group=0, **pipes)


def members(group: int) -> list[psutil.Process]:
    """Processes of a group that have not ended."""
    found = [process for process in psutil.process_iter(["status"]) if process.info["status"] != psutil.STATUS_ZOMBIE]
    return [process for process in found if group_of(process.pid) == group]


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def nobody_is_left(group: int) -> bool:
    """Whether all processes of a group end soon; some may be about to notice that the command has."""
    return any(not members(group) or time.sleep(0.1) for _ in range(100))


def importing(process: subprocess.Popen) -> None:
    """Wait until the command imports its modules."""
    while not any("numpy" in opened.path for opened in psutil.Process(process.pid).memory_maps()):
        time.sleep(0.05)


def starting_workers(process: subprocess.Popen) -> None:
    """Wait until workers start; the first process that is started watches over what others share."""
    while len(members(process.pid)) < 3:
        time.sleep(0.05)


def says(words: str) -> Callable[[subprocess.Popen], None]:
    """Wait until the command has told `words` on stderr."""
    return lambda process: next(None for line in process.stderr if words in line)


MOMENTS = [
    (importing, "five times"),
    (starting_workers, "once"),
    (says("dashboard"), "to the command alone"),
    (says("load vectors"), "five times"),
]


def test_a_run_that_is_interrupted_at_any_moment_ends_and_goes_on(tmp_path, embeddings):
    words = ["run", embeddings, "--out", tmp_path / "out", "--n-clusters", 8, "--n-workers", 2, "--threshold", 0.9]
    for moment, how in MOMENTS if NIGHTLY else MOMENTS[3:]:
        running = started(*words)
        moment(running)
        send, times = SIGNALS[how]
        for _ in range(times):
            if running.poll() is None:
                send(running.pid, signal.SIGINT)
                time.sleep(0.05)
        told = running.communicate(timeout=60)[1]
        assert running.returncode == 130, (moment, how, told)
        assert told.count("error interrupted; run the same command again") == 1
        assert "Traceback" not in told and "Exception" not in told
        assert nobody_is_left(running.pid)
    last = started(*words)
    assert last.communicate(timeout=60)[0] and last.returncode == 0
    dkm.run(embeddings, tmp_path / "whole", dkm.KMeans(8), 0.9)
    assert not different(content(tmp_path / "out"), content(tmp_path / "whole"))


def test_an_interrupt_that_is_swallowed_ends_the_process_a_little_later():
    script = """
import contextlib, os, signal, time
from daskmeans.cli.interrupts import interrupt_once
with interrupt_once(grace=0.2):
    with contextlib.suppress(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    told = (stuck := started(script=script)).communicate(timeout=60)[1]
    assert stuck.returncode == 130
    assert told.strip().startswith("error interrupted")


def test_an_interrupt_is_as_before_once_a_command_has_ended(embeddings):
    script = f"""
import os, signal
from click.testing import CliRunner
from daskmeans.cli.main import main
assert CliRunner().invoke(main, ["leak", {str(embeddings)!r}, "/no", "--out", "/no/where"]).exit_code == 2
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    process = started(script=script)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize("again", [nightly(False), True])
def test_workers_do_not_hear_interrupts(again):
    with open_cluster(ClusterSettings(n_workers=1, dashboard_address=":0")) as client:
        if again:
            client.restart()
            client.wait_for_workers(1)
        assert set(client.run(hears_interrupts).values()) == {False}
    assert hears_interrupts()


@pytest.mark.nightly
def test_a_command_in_the_background_ignores_interrupts(embeddings, tmp_path):
    """As shells have it: what they start there, without job control, inherits that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = started("fit", embeddings, "--n-clusters", 3, "--model", tmp_path / "model", "--n-workers", 1)
    importing(process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    process.communicate()
