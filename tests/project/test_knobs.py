"""Tests hand sizes to what they call; none of them changes a constant of a module behind its back."""

import ast

import pytest

from helpers import TESTS

FILES = sorted(TESTS.rglob("*.py"))


def patched_constants(source: str) -> list[str]:
    """Constants of our modules that calls of ``setattr`` or ``patch.object`` in `source` change."""
    tree, ours, found = ast.parse(source), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for each in node.names:
                if (getattr(node, "module", None) or each.name).split(".")[0] == "daskmeans":
                    ours.add((each.asname or each.name).split(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "patch.object", "patch")):
            words = [each.value if isinstance(each, ast.Constant) else ast.unparse(each) for each in node.args[:2]]
            path = ".".join(map(str, words[: 1 if str(words[:1]).startswith("['daskmeans.") else 2]))
            if path.split(".")[0] in {*ours, "daskmeans"} and path.rpartition(".")[2].isupper():
                found.append(path)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_constant_is_patched(file):
    assert patched_constants(file.read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('from daskmeans.kmeans import native\npatch.setattr(native, "LEAST", 0)', ["native.LEAST"]),
        ('import daskmeans.storage.lock as lock\nmonkeypatch.setattr(lock, "BEAT", 0)', ["lock.BEAT"]),
        ('from daskmeans import a\nmonkeypatch.setattr(a.b, "ROWS_EACH", 0)', ["a.b.ROWS_EACH"]),
        (
            'monkeypatch.setattr("daskmeans.storage.lock.HEARTBEAT_SECONDS", 0)',
            ["daskmeans.storage.lock.HEARTBEAT_SECONDS"],
        ),
        ('from daskmeans import plan\nmock.patch.object(plan, "ROWS", 1)', ["plan.ROWS"]),
        ('from daskmeans import plan\nmonkeypatch.setattr(plan, "tasks_of", None)', []),
        ('import fake_cudf\nmonkeypatch.setattr(fake_cudf, "READ", [])', []),
    ],
)
def test_what_is_found(source, found):
    assert patched_constants(source) == found
