"""Rows on their way to a device, by a stand-in for cupy whose streams run as early or as late as they may.

What has to wait for something and does not, reads or writes memory too soon under one of the two.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from daskmeans.kernels.gpu.device import Cuda


class Stream:
    """Work in the order in which it was queued; with `late`, only once somebody waits for it."""

    def __init__(self, late):
        self.late, self.queue, self.done = late, [], 0

    def put(self, work):
        self.queue.append(work)
        if not self.late:
            self.run(len(self.queue))

    def run(self, until):
        while self.done < until:
            self.done += 1
            self.queue[self.done - 1]()

    def wait_event(self, event):
        stream, until = event.at
        self.put(lambda: stream and stream.run(until))

    def synchronize(self):
        self.run(len(self.queue))


class Event:
    """A place in a stream; until it is recorded nobody waits for it."""

    at = (None, 0)

    def record(self, stream):
        self.at = stream, len(stream.queue)

    def synchronize(self):
        stream, until = self.at
        if stream:
            stream.run(until)


class Array(np.ndarray):
    """Memory of the device."""

    def set(self, arr, stream):
        stream.put(lambda: np.copyto(self, arr))


def stand_in(copying, computing):
    """Modules cupy and cupyx, as far as streaming uses them."""
    cupy, cupyx, cuda = ModuleType("cupy"), ModuleType("cupyx"), ModuleType("cupy.cuda")
    cupy.ndarray = Array
    cupy.empty = lambda shape, dtype: np.full(shape, np.nan, dtype).view(Array)
    cupyx.empty_pinned = lambda shape, dtype: np.full(shape, np.nan, dtype)
    cuda.Stream, cuda.Event, cuda.get_current_stream = lambda non_blocking: copying, Event, lambda: computing
    cupy.cuda = cuda
    return {"cupy": cupy, "cupyx": cupyx, "cupy.cuda": cuda}


@pytest.mark.parametrize("late", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("n", [0, 1, 4, 5, 8, 13])
def test_rows_arrive_before_they_are_used_and_stay_until_they_were(n, late, monkeypatch):
    copying, computing = map(Stream, late)
    for name, module in stand_in(copying, computing).items():
        monkeypatch.setitem(sys.modules, name, module)
    X = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    seen = SimpleNamespace(parts=[], rows=[])
    for part, there in Cuda().tiles(X, 4):
        seen.parts.append(part)
        computing.put(lambda there=there: seen.rows.append(np.array(there)))
    computing.synchronize()
    assert [range(n)[part] for part in seen.parts] == [range(i, min(i + 4, n)) for i in range(0, n, 4)]
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 3)), *seen.rows]), X)


@pytest.mark.parametrize("forgotten", ["wait_event", "synchronize"])
def test_the_stand_in_notices_who_does_not_wait(forgotten, monkeypatch):
    """Of the schedules that the test above tries, one at least shows it."""
    monkeypatch.setattr(Event, "synchronize", lambda self: None) if forgotten == "synchronize" else None
    monkeypatch.setattr(Stream, "wait_event", lambda self, event: None) if forgotten == "wait_event" else None
    wrong = 0
    for late in (False, False), (True, False), (False, True), (True, True):
        try:
            test_rows_arrive_before_they_are_used_and_stay_until_they_were(13, late, monkeypatch)
        except AssertionError:
            wrong += 1
    assert wrong > 0
