"""The dashboard has a page of the latest fit, wherever the scheduler runs, and does without where it cannot be."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any
from urllib.request import urlopen

import dask
import distributed
import pytest

import daskmeans as dkm
from daskmeans.runtime import dashboard
from daskmeans.runtime.cluster import ClusterSettings, open_cluster
from daskmeans.runtime.cluster import describe_dashboard as announced
from daskmeans.runtime.dashboard import (
    TOPIC,
    VALUES,
    add_page,
    format_heading,
    format_legend,
    latest_fit,
    line_columns,
    point_columns,
)
from helpers import blobs


def update(phase: int, iteration: int, inertia: float, **facts: object) -> dict:
    """An update of a fit on 1,000 rows, after a sample of 500 and one of 800."""
    rows = (500, 800, 1000)[phase]
    head = {"run": 0, "n_clusters": 7, "phase": phase, "phases": 3, "rows": rows, "iteration": iteration}
    return head | {"inertia": inertia, "shift": 0.1, "relabelled": rows // 10, "seconds": 0.5} | facts


SEED = {"run": 0, "n_clusters": 7, "phase": "seed", "rows": 200, "seconds": 0.1}
FIT = [SEED, update(0, 1, 100.0), update(0, 2, 80.0), update(1, 1, 144.0), update(2, 1, 200.0), update(2, 2, 190.0)]


def log(client: distributed.Client, fit: list[dict]) -> None:
    for message in fit:
        client.log_event(TOPIC, message)


def page_of(client: distributed.Client) -> str:
    return client.dashboard_link.replace("/status", "/kmeans")


def wait_for(client: distributed.Client, session: str, column: str, expected: list, patience: float = 30) -> Any:
    """The document of an open session in the scheduler's process, once its points have `expected` as `column`."""
    from bokeh.client import pull_session

    end = time.monotonic() + patience
    while True:
        # By a connection of its own: one that pulls a second time would send what it gets back, as changes.
        with pull_session(session_id=session, url=page_of(client)) as onlooker:
            page = onlooker.document
        found = list(page.get_model_by_name("points").data[column])
        if found == expected:
            return page
        assert time.monotonic() < end, found
        time.sleep(0.1)


@pytest.fixture
def fresh_client():
    """A client of a scheduler, in this process, that nothing else has logged to."""
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as local,
        distributed.Client(local) as client,
    ):
        yield client


def test_points_are_what_the_updates_say():
    found = point_columns(FIT)
    assert found["update"] == [1, 2, 3, 4, 5]
    assert found["spread"] == pytest.approx([100 / 500, 80 / 500, 144 / 800, 0.2, 0.19])
    assert found["gain"] == pytest.approx([math.nan, 0.2, math.nan, math.nan, 0.05], nan_ok=True)
    assert found["relabelled"] == pytest.approx([0.1] * 5)
    assert found["speed"] == [1000, 1000, 1600, 2000, 2000]
    assert found["phase"] == ["sample 1 of 2, 500 rows"] * 2 + ["sample 2 of 2, 800 rows"] + ["all 1,000 rows"] * 2


def test_a_line_for_each_phase():
    found = line_columns(point_columns(FIT))
    assert found["update"] == [[1, 2], [3], [4, 5]]
    assert found["phase"] == ["sample 1 of 2, 500 rows", "sample 2 of 2, 800 rows", "all 1,000 rows"]
    assert len(set(found["color"])) == 3
    assert all(told in format_legend(found) for told in found["color"] + found["phase"])
    assert line_columns(point_columns([])) == {name: [] for name in found}


def test_what_cannot_be_shown_is_not_a_number():
    worse = [update(2, 1, 0.0, relabelled=0, seconds=0.0), update(2, 2, 0.0), {"iteration": 3, "inertia": 5.0}]
    found = point_columns(worse)
    assert all(math.isnan(gain) for gain in found["gain"])
    assert math.isnan(found["relabelled"][0]) and math.isnan(found["speed"][0]) and math.isnan(found["spread"][2])


def test_the_latest_fit_is_shown_with_all_its_runs():
    second = [message | {"run": 1} for message in FIT]
    assert latest_fit(FIT + FIT) == FIT
    assert latest_fit(FIT + FIT + second) == FIT + second
    assert latest_fit([*FIT, *FIT[4:]]) == FIT[4:]  # taken up from a checkpoint before the last update
    assert latest_fit([]) == []
    phases = line_columns(point_columns(FIT + second))["phase"]
    assert len(phases) == 6
    assert phases[3] == "run 2, sample 1 of 2, 500 rows"


def test_the_heading_says_how_far_the_fit_is():
    assert format_heading([]) == "No fit has been logged since this scheduler started."
    assert format_heading(FIT[:1]) == "k = 7 · seed from 200 rows · 0.1 s"
    assert format_heading(FIT) == "k = 7 · all 1,000 rows · update 2 · inertia 190 (−5 %) · 10 % relabelled · 2k rows/s"


@pytest.mark.parametrize("there", [False, True], ids=["cluster of ours", "scheduler that was there"])
def test_the_page_is_served_and_follows_the_events(there, fresh_client):
    client_module = pytest.importorskip("bokeh.client", reason='no bokeh: pip install "daskmeans[dashboard]"')
    address = fresh_client.scheduler.address
    where = {"scheduler": address} if there else {"n_workers": 1, "dashboard_address": ":0"}
    with dask.config.set({"daskmeans.connect-timeout": 30}):
        if there:
            fresh_client.cluster.scale(1)
        with open_cluster(ClusterSettings(**where)) as client:
            assert announced(client) == f"{client.dashboard_link}, fits at /kmeans"
            for path in ("kmeans", "status"):
                with urlopen(client.dashboard_link.replace("status", path)) as response:
                    assert response.status == 200
                    assert '<a href="kmeans">' in response.read().decode()
            with client_module.pull_session(url=page_of(client)) as session:
                assert all(session.document.get_model_by_name(name) for name in VALUES)
                assert session.document.get_model_by_name("words").text.startswith("No fit")
                log(client, FIT[:3])
                wait_for(client, session.id, "update", [1, 2])
                log(client, FIT[3:])
                page = wait_for(client, session.id, "spread", point_columns(FIT)["spread"])
                assert list(page.get_model_by_name("lines").data["update"]) == [[1, 2], [3], [4, 5]]
                assert (
                    page.get_model_by_name("words").text
                    == f"{format_heading(FIT)}<br>{format_legend(line_columns(point_columns(FIT)))}"
                )


def test_the_page_is_added_once(fresh_client):
    pytest.importorskip("bokeh", reason='no bokeh: pip install "daskmeans[dashboard]"')
    assert add_page(fresh_client) and add_page(fresh_client)
    with urlopen(page_of(fresh_client)) as response:
        assert response.read().decode().count('<a href="kmeans">') == 1


def test_a_fit_brings_the_page_and_what_it_shows(thread_client):
    pytest.importorskip("bokeh", reason='no bokeh: pip install "daskmeans[dashboard]"')
    client = thread_client(1)
    km = dkm.KMeans(4, n_init=2, random_state=0).fit(blobs(800))
    with urlopen(page_of(client)) as response:
        assert response.status == 200
    fit = latest_fit(message for _, message in client.get_events(TOPIC))
    assert [message["phase"] for message in fit].count("seed") == 2
    found = point_columns(fit)
    updates = [message for message in fit if "inertia" in message]
    assert len(found["update"]) == len(updates) >= len(km.iterations_)
    assert found["spread"] == [message["inertia"] / message["rows"] for message in updates]
    assert all(0 <= share <= 1 or math.isnan(share) for share in found["relabelled"])
    assert format_heading(fit).startswith("k = 4 · run 2 · all 800 rows · update ")


def told(caplog, client) -> str:
    with caplog.at_level(logging.DEBUG, "daskmeans"):
        assert not add_page(client)
    return caplog.messages[-1]


def test_a_scheduler_without_daskmeans_has_no_page(fresh_client, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "daskmeans.runtime.dashboard", None)
    assert "ModuleNotFoundError" in told(caplog, fresh_client)


def test_a_scheduler_without_bokeh_has_no_page(fresh_client, monkeypatch, caplog):
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    assert "bokeh is not installed" in told(caplog, fresh_client)


def test_a_scheduler_without_a_dashboard_has_no_page(caplog):
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as local,
        distributed.Client(local) as client,
    ):
        assert "shows no dashboard" in told(caplog, client)
        assert "fits at" not in announced(client)


def test_a_scheduler_of_another_kind_has_no_page(fresh_client, monkeypatch, caplog):
    monkeypatch.delattr(fresh_client.cluster.scheduler, "http_application")
    assert "http_application" in told(caplog, fresh_client)
