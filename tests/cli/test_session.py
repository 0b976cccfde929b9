"""The workers of a command start when its step first asks for a client, once."""

from __future__ import annotations

import contextlib

import pytest
from click.testing import CliRunner

from daskmeans.cli import session
from daskmeans.cli.main import main
from daskmeans.cli.options import Output
from daskmeans.runtime.client import current_client, start_on_demand
from daskmeans.runtime.cluster import ClusterSettings
from helpers import blobs, write_embeddings


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, thread_client) -> list[object]:
    """Gathers the settings of clusters that are started; all of them are the client of the tests."""
    found: list[object] = []

    @contextlib.contextmanager
    def start(settings: ClusterSettings):
        found.append(settings)
        yield thread_client(2)
        found.append("ended")

    monkeypatch.setattr(session, "start_cluster", start)
    return found


def test_a_command_starts_its_workers_once(tmp_path, starts) -> None:
    path = write_embeddings(tmp_path / "in.parquet", blobs(200))
    done = CliRunner().invoke(main, ["run", str(path), "--out", str(tmp_path / "out"), "--n-workers", "3"])
    assert done.exit_code == 0, done.output
    assert starts == [ClusterSettings(n_workers=3), "ended"]
    assert "threads · dashboard" in done.stderr


def test_a_session_that_needs_no_workers_starts_none(starts) -> None:
    with session.open_session(ClusterSettings(), Output()):
        pass
    assert not starts
    with pytest.raises(ZeroDivisionError), session.open_session(ClusterSettings(), Output()):
        current_client()
        raise ZeroDivisionError
    assert starts == [ClusterSettings()]  # its context got the error


def test_a_client_that_is_given_starts_nothing(thread_client) -> None:
    def start():
        raise AssertionError

    client = thread_client(1)
    with start_on_demand(start):
        assert current_client(client) is client
    assert current_client() is client


def test_settings_of_the_cluster_are_checked_first(tmp_path, starts) -> None:
    done = CliRunner().invoke(main, ["fit", "none.parquet", "--model", str(tmp_path / "m"), "--memory-limit", "much"])
    assert done.exit_code == 2
    assert "--memory-limit" in done.stderr
    assert not starts
