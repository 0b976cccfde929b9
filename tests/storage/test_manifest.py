"""A directory is an output when its manifest says that it is finished, and only then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from upath import UPath

from daskmeans.errors import NotFoundError, OutputError
from daskmeans.storage import lock, manifest
from daskmeans.storage.step import open_step


def make(path: UPath, name: str = "fit", **kwargs) -> None:
    with open_step(path, name, {"k": 3}, {"rows": 7}, **kwargs) as step:
        (step.path / "result.txt").write_text("whole")
        step.facts["note"] = "done"


@pytest.fixture(params=["local", "memory"])
def out(request, tmp_path) -> UPath:
    return UPath(tmp_path / "out") if request.param == "local" else UPath(f"memory://{tmp_path.name}/out")


def test_a_finished_step_tells_what_it_was_made_from(out):
    make(out)
    found = manifest.read_manifest(out, "fit")
    assert (found["settings"], found["inputs"], found["note"]) == ({"k": 3}, {"rows": 7}, "done")
    assert found["peak_bytes"]["client"] > 1e6
    assert found["seconds"] >= 0
    assert manifest.identity_hash(found) == manifest.identity_hash(found | {"seconds": 99})
    assert manifest.identity_hash(found) != manifest.identity_hash(found | {"inputs": {"rows": 8}})


def test_a_failed_step_leaves_nothing(out):
    out = out / "a" / "b"
    with pytest.raises(ZeroDivisionError), open_step(out, "fit", {}, {}) as step:
        (step.path / "half.txt").write_text("half")
        1 / 0  # noqa: B018
    assert not out.parent.parent.exists()


def test_an_output_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"is a file|cannot be created"):
            make(UPath(out), overwrite=True)


def test_an_unfinished_step_is_not_read_and_is_replaced_by_the_same_step_only(out):
    out.mkdir(parents=True)
    manifest.write_json(out / manifest.MANIFEST_NAME, {"step": "fit", "finished": False, "settings": {}, "inputs": {}})
    (out / "leftover.txt").write_text("half")
    with pytest.raises(OutputError, match="unfinished"):
        manifest.read_manifest(out, "fit")
    with pytest.raises(OutputError, match="another step"):
        make(out, "dedup")
    make(out)
    assert not (out / "leftover.txt").exists()
    assert manifest.read_manifest(out, "fit")["finished"]


def test_all_is_on_the_disk_before_the_manifest_says_that_it_is_whole(tmp_path, monkeypatch):
    out, flushed = UPath(tmp_path / "out"), []

    def fsync(number):
        flushed.append(os.readlink(f"/proc/self/fd/{number}"))
        real(number)

    real = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    with open_step(out, "fit", {}, {}) as step:
        (step.path / "deep" / "er").mkdir(parents=True)
        (step.path / "deep" / "er" / "file.txt").write_text("text")
        flushed.clear()
    *before, aside, folder = flushed
    assert (aside, folder) == (f"{out / manifest.MANIFEST_NAME}.tmp", str(out))
    assert {str(out / "deep" / "er" / "file.txt"), f"{out / 'deep' / 'er'}", f"{out / 'deep'}", str(out)} <= set(before)


def test_a_finished_output_is_replaced_only_when_asked(out):
    make(out)
    with pytest.raises(OutputError, match="--overwrite"):
        make(out)
    make(out, overwrite=True)


def test_what_daskmeans_did_not_write_is_never_touched(out):
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="did not write"):
            make(out, overwrite=overwrite)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_reading_something_else(out):
    with pytest.raises(NotFoundError, match="no such path"):
        manifest.read_manifest(out, "fit")
    make(out, "dedup")
    with pytest.raises(NotFoundError, match=r"output of `daskmeans dedup`\n.*`daskmeans fit`"):
        manifest.read_manifest(out, "fit")
    for damaged in ("{", json.dumps([1]), json.dumps({"finished": 1})):
        (out / manifest.MANIFEST_NAME).write_text(damaged)
        with pytest.raises(NotFoundError, match="no output of daskmeans"):
            manifest.read_manifest(out, "dedup")
        with pytest.raises(OutputError, match="did not write"):
            make(out, overwrite=True)


@pytest.mark.parametrize("format", [None, 0, 2])
def test_an_output_in_another_format_says_which_and_is_replaced(out, format):
    make(out)
    found = manifest.read_manifest(out, "fit") | {"format": format, "versions": {"daskmeans": "0.0.9"}}
    manifest.write_json(
        out / manifest.MANIFEST_NAME, found if format is not None else {k: found[k] for k in found if k != "format"}
    )
    with pytest.raises(OutputError, match=rf"has format {format or 0}, from daskmeans 0\.0\.9(.|\n)*--overwrite"):
        manifest.read_manifest(out, "fit")
    make(out, overwrite=True)
    assert manifest.read_manifest(out, "fit")["finished"]


def test_a_killed_step_is_recognised_and_done_again(tmp_path):
    out = tmp_path / "out"
    script = (
        "import time; from upath import UPath; from daskmeans.storage.step import open_step\n"
        f"with open_step(UPath({str(out)!r}), 'fit', {{}}, {{}}) as step:\n"
        "    (step.path / 'half.txt').write_text('half'); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while not (out / "half.txt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(OutputError, match="unfinished"):
        manifest.read_manifest(UPath(out), "fit")
    make(UPath(out))
    assert sorted(p.name for p in out.iterdir()) == ["_manifest.json", "result.txt"]


def begin(out: UPath, settings: dict, inputs: dict, *, fail: bool = True, **kwargs) -> list[str]:
    """Make step `fit` in `out`, which goes on from ``parts``; returns the parts that it found there."""
    with (
        contextlib.suppress(ZeroDivisionError),
        open_step(out, "fit", settings, inputs, resume="parts", **kwargs) as step,
    ):
        parts = step.path / "parts"
        found = sorted(path.name for path in parts.iterdir()) if parts.exists() else []
        assert sorted(path.name for path in out.iterdir()) == [
            lock.LOCK_NAME,
            manifest.MANIFEST_NAME,
            *(["parts"] if found else []),
        ]
        parts.mkdir(exist_ok=True)
        (parts / f"{len(found)}.txt").write_text("done")
        (step.path / "half.txt").write_text("half")
        1 / (not fail)
    return found


def test_a_step_goes_on_from_what_it_has_left(out):
    assert [begin(out, {"k": 3}, {"rows": 7}) for _ in range(3)] == [[], ["0.txt"], ["0.txt", "1.txt"]]
    with pytest.raises(OutputError, match="unfinished"):
        manifest.read_manifest(out, "fit")
    assert begin(out, {"k": 3}, {"rows": 7}, fail=False, overwrite=True) == ["0.txt", "1.txt", "2.txt"]
    assert manifest.read_manifest(out, "fit")["finished"]
    assert sorted(path.name for path in out.iterdir()) == ["_manifest.json", "half.txt"]
    assert begin(out, {"k": 3}, {"rows": 7}, overwrite=True) == []


def test_a_step_with_other_settings_neither_goes_on_nor_replaces_unasked(out):
    begin(out, {"k": 3}, {"rows": 7})
    for settings, inputs, words in (
        ({"k": 4}, {"rows": 7}, "k was 3, now 4"),
        ({"k": 3, "new": True}, {"rows": 8}, "new was None, now True; rows was 7, now 8"),
    ):
        with pytest.raises(OutputError, match=words):
            begin(out, settings, inputs)
    assert begin(out, {"k": 3}, {"rows": 7}) == ["0.txt"]
    assert begin(out, {"k": 4}, {"rows": 7}, overwrite=True) == []
    manifest.remove_tree(out / "parts")  # nothing is lost
    assert begin(out, {"k": 5}, {"rows": 7}) == []


VERSIONS = {"daskmeans": manifest.library_versions()["daskmeans"], "numpy": "0.9"}  # any numpy computes the same
FIT = {"step": "fit", "finished": True, "settings": {"k": 3}, "inputs": {"rows": 7}, "versions": VERSIONS}


@pytest.mark.parametrize(
    ("found", "state", "changed"),
    [
        (None, "free", []),
        (FIT, "done", []),
        (FIT | {"finished": False}, "resumable", []),
        (FIT | {"settings": {"k": 4}}, "another's", ["k was 4, now 3"]),
        (FIT | {"inputs": {"rows": 8}, "finished": False}, "another's", ["rows was 8, now 7"]),
        (FIT | {"step": "embed"}, "another's", ["the step was 'embed', now 'fit'"]),
        (FIT | {"versions": VERSIONS | {"daskmeans": "0.0.9"}}, "another's", ["daskmeans was 0.0.9, now "]),
        (FIT | {"versions": {}, "finished": False}, "another's", ["daskmeans was None, now "]),
    ],
)
def test_what_was_made_otherwise_or_by_another_version_is_not_taken_for_ours(found, state, changed):
    status = manifest.status(found, "fit", {"k": 3}, {"rows": 7})
    assert status.state.value == state
    assert [told[: len(words)] for told, words in zip(status.changed, changed, strict=True)] == changed


def test_changed_files_stand_for_what_follows_from_them():
    def inputs(files: dict, fingerprint: str, rows: int) -> dict:
        return {"files": files, "fingerprint": fingerprint, "rows": rows}

    before = {"settings": {"k": 3}, "inputs": inputs({"a": "1 byte", "b": "2 bytes"}, "5e1f", 3)}
    told = manifest.describe_changes(before, {"k": 3}, inputs({"b": "3 bytes", "c": "1 byte"}, "90c2", 4))
    assert told == ["the file a is gone", "the file b was 2 bytes, now 3 bytes", "the file c is new"]
    reordered = manifest.describe_changes(before, {"k": 3}, inputs({"b": "2 bytes", "a": "1 byte"}, "90c2", 3))
    assert reordered == ["the files are in another order, or other columns are read"]
    unnamed = {"fingerprint": "90c2", "rows": 3}
    assert manifest.describe_changes(before, {"k": 3}, unnamed) == ["fingerprint was '5e1f', now '90c2'"]
    many = {"settings": {}, "inputs": inputs({f"{i}": "1 byte" for i in range(9)}, "5e1f", 9)}
    gone = [f"the file {i} is gone" for i in range(3)]
    assert manifest.describe_changes(many, {}, inputs({}, "90c2", 0)) == [*gone, "6 more files have changed"]
