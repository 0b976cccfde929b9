"""Settings that a YAML file gives, and the commands that the commands propose."""

from __future__ import annotations

import contextlib
import shlex
from collections import defaultdict

import pytest
from click.testing import CliRunner

from daskmeans.cli import commands
from daskmeans.cli.main import main


@pytest.mark.parametrize("second", ["metadata_field: b", "metadata-field: b", "metadata-fields: b"])
def test_both_names_of_a_key_are_one_key(tmp_path, second: str) -> None:
    (tmp_path / "job.yaml").write_text(f"input: a.npy\nn_clusters: 3\nmetadata_fields: a\n{second}\n")
    done = CliRunner().invoke(main, ["run", str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "the key 'metadata_fields' appears twice" in done.output


class Result:
    summary: dict = {}  # noqa: RUF012

    @staticmethod
    def figures() -> dict[str, str]:
        return defaultdict(str)


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        (["run", "my in/*.npy", "b.npy", "--out", "my out/", "--n-clusters", "3", "--threshold", "0.9"],
         ["my out/dedup", "my in/*.npy", "b.npy"]),
        (["dedup", "clusters", "--out", "my $out", "--threshold", "0.9"], ["my $out/dedup", "clusters"]),
    ],
)  # fmt: skip
def test_a_proposed_command_survives_a_shell(monkeypatch, words: list[str], proposed: list[str]) -> None:
    monkeypatch.setattr(commands, "open_session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("daskmeans.steps.run.run_steps", lambda *_, **__: Result)
    monkeypatch.setattr("daskmeans.steps.dedup.dedup_step", lambda *_, **__: Result)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    command = done.output.rpartition("apply: ")[2]
    assert shlex.split(command) == ["daskmeans", "apply", *proposed, "--out", "KEPT"]
