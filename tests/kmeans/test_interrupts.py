"""After Ctrl-C in a fit nothing stays on the workers, even if somebody keeps the traceback, as IPython does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import dask.array as da
import distributed
import pytest

from daskmeans import KMeans
from daskmeans.tuning import Tuning
from helpers import blobs

X = blobs(n=2000, d=8)


def left(client: distributed.Client) -> list[str]:
    """What is on the workers, once they have had a moment to release it."""
    found: list[str] = []
    for _ in range(100):
        held = client.run(lambda dask_worker: [*map(str, dask_worker.data)])
        found = [key for keys in held.values() for key in keys]
        if not found:
            break
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("moment", [0, 5, 40])
@pytest.mark.parametrize("lazy", [False, True])
def test_nothing_stays_on_the_workers(moment: int, lazy: bool, client: distributed.Client, monkeypatch) -> None:
    rows, waits = da.from_array(X, chunks=(500, 8)) if lazy else X, distributed.as_completed.__next__
    count: Iterator[int] = iter(range(1000))

    def interrupt(self: distributed.as_completed) -> Any:
        if next(count) == moment:
            raise KeyboardInterrupt
        return waits(self)

    monkeypatch.setattr(distributed.as_completed, "__next__", interrupt)
    with pytest.raises(KeyboardInterrupt) as kept:
        KMeans(4, init="auto", n_init=3)._fit(rows, tuning=Tuning(least_sample=0))
    monkeypatch.undo()
    assert left(client) == []
    assert kept.value.__traceback__


def test_a_score_that_fails_leaves_nothing(client: distributed.Client) -> None:
    km = KMeans(2).fit(X)
    with pytest.raises(ValueError, match="features") as kept:
        km.score(da.from_array(X[:, :5], chunks=(500, 5)))
    assert left(client) == []
    assert kept.value.__traceback__
