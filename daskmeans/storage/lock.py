"""Locks on outputs: a file in the directory names the one run that may write it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psutil
from upath import UPath

from daskmeans.errors import OutputError
from daskmeans.storage import objectstore

LOCK_NAME = "_lock.json"
# Seconds between heartbeats of the run that holds a lock, and without one after which it counts as dead, if it is on
# another machine, where its process cannot be checked.
HEARTBEAT_SECONDS, STALE_SECONDS = 30.0, 300.0
OWNER_KEYS = {"token", "pid", "started", "host", "place", "seen"}
# Tokens of the locks that this process holds. A lock file with its pid but another token was left when storage failed.
_held_tokens: set[str] = set()


class Lock:
    """The right to write an output, until another run takes over from a dead one."""

    def __init__(self, directory: UPath, every: float = HEARTBEAT_SECONDS) -> None:
        self._file, self._every = directory / LOCK_NAME, every
        self._ended = threading.Event()
        self.token = uuid4().hex
        self._owner = {"token": self.token, "pid": os.getpid(), "started": _start_time(os.getpid()), **_this_machine()}

    @property
    def held(self) -> bool:
        """Whether the lock file is still this run's: not taken over, and not removed."""
        return (_read_owner(self._file) or {}).get("token") == self.token

    def check(self) -> None:
        """Raise OutputError if another run may be writing the output."""
        if not self.held:
            raise OutputError(
                "another run has taken over the output that this one was writing",
                where=str(self._file),
                expected="one run at a time",
                remedy="run the command again when the other run has ended",
            )

    def _acquire(self) -> None:
        found = _read_owner(self._file)
        if found is not None and (sign := _sign_of_life(found)):
            raise OutputError(
                f"another run is writing this output (process {found['pid']} on {found['host']}, {sign})",
                where=str(self._file),
                expected="one run at a time",
                remedy="wait until it has ended, or choose another directory",
            )
        self._remove_stale(found)
        try:
            with self._file.fs.open(self._file.path, "xb") as file:
                file.write(self._to_json())
        except FileExistsError:
            if self.held:  # the response was lost, and the storage client retried
                return
            raise _race_error(self._file) from None

    def _remove_stale(self, dead: dict[str, Any] | None) -> None:
        """Remove the lock of a dead run and no other, as another run may take over at the same moment."""
        if objectstore.is_object_store(self._file):  # nothing can be renamed there
            if self._file.exists():
                self._file.unlink()
            return
        aside = self._file.with_name(f"{LOCK_NAME}.{self.token}")
        try:
            self._file.rename(aside)
        except FileNotFoundError:
            return
        moved = _read_owner(aside)
        if (moved or {}).get("token") != (dead or {}).get("token"):
            aside.rename(self._file)
            raise _race_error(self._file)
        aside.unlink()

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(self._every):
            with objectstore.suppress_storage_errors():  # if nothing can be written, the step reports it
                if self.held:
                    objectstore.replace_file(self._file, self._to_json(), self.token)

    def _to_json(self) -> bytes:
        return json.dumps(self._owner | {"seen": time.time()}).encode()

    def _release(self) -> None:
        _held_tokens.discard(self.token)
        with objectstore.suppress_storage_errors():  # then the file stays, and counts for no run
            if self.held:  # not if the directory is gone, or another run has taken over
                self._file.unlink()


def _race_error(file: UPath) -> OutputError:
    message = "another run has just begun to write this output"
    return OutputError(message, where=str(file), expected="one run at a time")


@contextlib.contextmanager
def hold_lock(directory: UPath, every: float = HEARTBEAT_SECONDS) -> Iterator[Lock]:
    """Keep other runs from writing the output `directory`, which exists, in the ``with`` block.

    The lock file gets a heartbeat every `every` seconds. A killed run is recognised at once on its own machine, and
    elsewhere after some minutes without a heartbeat.

    Raises
    ------
    OutputError
        Another run is writing it.
    """
    lock = Lock(directory, every)
    _held_tokens.add(lock.token)
    try:
        lock._acquire()
        beat = threading.Thread(target=lock._send_heartbeats, name="daskmeans-lock", daemon=True)
        beat.start()
        try:
            yield lock
        finally:
            lock._ended.set()
            beat.join()
    finally:
        lock._release()


def _read_owner(file: UPath) -> dict[str, Any] | None:
    """Return the owner of a lock; None if there is none, or a run that was killed before it wrote its name."""
    for wait in (0.1, 0.4, 0.0):  # a new lock file is empty for a moment
        try:
            found = json.loads(file.fs.cat_file(file.path))  # in one request, as the file may be replaced between two
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(wait)
        else:
            return found if isinstance(found, dict) and set(found) >= OWNER_KEYS else None
    return None


def _sign_of_life(found: dict[str, Any]) -> str:
    """Return evidence that the run that holds a lock is alive; empty if it is dead."""
    if found["place"] and found["place"] == _this_machine()["place"]:
        runs = (
            found["token"] in _held_tokens
            if found["pid"] == os.getpid()
            else _start_time(found["pid"]) == found["started"]
        )
        return "which is running" if runs else ""
    age = time.time() - found["seen"]
    return f"seen {max(0, age):.0f} s ago" if age < STALE_SECONDS else ""


def _this_machine() -> dict[str, str]:
    """Return the host, and the place within which a pid is unique: empty if that is unknown."""
    place = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        place = f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return {"host": socket.gethostname(), "place": place}


def _start_time(pid: int) -> float | None:
    """Return the start time of the process `pid` of this machine; None if there is no such process."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
