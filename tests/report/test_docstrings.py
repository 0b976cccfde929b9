"""The corpus of docstrings, read from packages that the test writes."""

from __future__ import annotations

import inspect
import json
import json.decoder
from pathlib import Path

import pytest

from daskmeans.errors import DataError
from daskmeans.report import docstrings

LONG = "A docstring that is long enough to be worth comparing."


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(docstrings, "_find_roots", lambda: [tmp_path])
    return tmp_path


def write(path: Path, source: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.encode() if isinstance(source, str) else source)


def test_modules_classes_and_functions_are_found(site: Path) -> None:
    source = f'''"""Module. {LONG}"""
import absent_package

class Outer:
    """Outer. {LONG}"""

    class Inner:
        """Inner. {LONG}"""

    def method(self):
        """
        Method.  {LONG}

            Indented.
        """
        def local():
            """Local. {LONG}"""

    @property
    def size(self):
        """Size. {LONG}"""

    @size.setter
    def size(self, value):
        """Set size. {LONG}"""

try:
    pass
except ImportError:
    async def fallback():
        """Fallback. {LONG}"""

def short():
    """Too short."""
'''
    write(site / "zoo" / "__init__.py", f'"""Zoo. {LONG}"""')
    write(site / "zoo" / "cats" / "big.py", source)
    write(site / "alone.py", f'"""Alone. {LONG}"""')
    table = docstrings.collect_docstrings().table
    assert table["id"].to_pylist() == [
        "alone",
        "zoo",
        "zoo.cats.big",
        "zoo.cats.big:Outer",
        "zoo.cats.big:Outer.Inner",
        "zoo.cats.big:Outer.method",
        "zoo.cats.big:Outer.size",
        "zoo.cats.big:Outer.size#2",
        "zoo.cats.big:fallback",
    ]
    assert table["package"].to_pylist() == ["alone"] + ["zoo"] * 8
    assert table["file"].to_pylist() == ["alone.py", "zoo/__init__.py"] + ["zoo/cats/big.py"] * 7
    lines = source.splitlines()
    method = table.slice(5, 1).to_pylist()[0]
    assert method["text"] == f"Method.  {LONG}\n\n    Indented."
    for row in table.slice(3).to_pylist():
        start = " ".join(lines[row["line"] - 1 : row["line"] + 1])
        assert '"""' in start and row["text"].split(".")[0] in start


def test_what_is_left_out(site: Path) -> None:
    for name in (
        "zoo/a.py",
        "zoo/tests/b.py",
        "zoo-1.0.dist-info/c.py",
        "test/d.py",
        "__pycache__/e.txt",
        "other/f.py",
    ):
        write(site / name, f'"""{name} {LONG}"""')
    assert docstrings.collect_docstrings({"zoo"}).table["file"].to_pylist() == ["zoo/a.py"]
    assert docstrings.collect_docstrings().table["file"].to_pylist() == ["other/f.py", "zoo/a.py"]
    with pytest.raises(DataError, match="no docstrings"):
        docstrings.collect_docstrings({"absent"})


def test_broken_files_are_counted(site: Path) -> None:
    write(site / "zoo" / "good.py", f'# -*- coding: latin-1 -*-\n"""é {LONG}"""'.encode("latin-1"))
    write(site / "zoo" / "old.py", f'"""{LONG}"""\nprint "old"\n')
    write(site / "zoo" / "bytes.py", f'"""{LONG}\xff"""'.encode("latin-1"))
    write(site / "zoo" / "null.py", f'"""{LONG}"""\0')
    write(site / "zoo" / "deep.py", f'"""{LONG}"""\nx = ' + "(" * 5000)
    corpus = docstrings.collect_docstrings()
    assert corpus.table["text"].to_pylist() == [f"é {LONG}"]
    assert corpus.files == 5
    assert corpus.broken == ("zoo/bytes.py", "zoo/deep.py", "zoo/null.py", "zoo/old.py")


def test_other_peoples_escapes_neither_warn_nor_break(site: Path) -> None:
    write(site / "zoo.py", f'"""A \\d and a lone surrogate \\ud800. {LONG}"""')
    assert docstrings.collect_docstrings().table["text"].to_pylist() == [f"A \\d and a lone surrogate ?. {LONG}"]


def test_chunks_do_not_change_the_result(site: Path, client: object) -> None:
    for number in range(20):
        write(site / "zoo" / f"m{number:02d}.py", f'"""{number} {LONG}"""\ndef f():\n    """{number}. {LONG}"""\n')
    whole = docstrings.collect_docstrings()
    assert docstrings.collect_docstrings(chunk_bytes=300).table.equals(whole.table)
    assert len(whole.table) == 40


def test_texts_are_those_that_python_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(json.__file__).parent.parent
    monkeypatch.setattr(docstrings, "_find_roots", lambda: [root])
    found = {row["id"]: row["text"] for row in docstrings.collect_docstrings({"json"}).table.to_pylist()}
    for name, thing in {
        "json": json,
        "json:loads": json.loads,
        "json.decoder:JSONDecoder": json.decoder.JSONDecoder,
    }.items():
        assert found[name] == inspect.getdoc(thing)
