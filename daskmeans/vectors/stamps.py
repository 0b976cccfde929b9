"""Stamps of files: what shows that an input is the same as before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from upath import UPath

from daskmeans.vectors.files import bare_path, common_root, stat_file

# Number of files whose size and version are requested at once.
STAT_THREADS = 16

Stamp = tuple[str, int, str]


def stamp_files(files: Sequence[UPath]) -> tuple[Stamp, ...]:
    """Return the name below the common directory, the size and the version of each file."""
    with ThreadPoolExecutor(min(STAT_THREADS, len(files))) as pool:
        sizes = list(pool.map(stat_file, files))
    root = common_root(files)
    names = [bare_path(path).removeprefix(root) for path in files]
    return tuple((name, size, version) for name, (size, version) in zip(names, sizes, strict=True))


def hash_facts(facts: list[Any]) -> str:
    """Return a SHA-256 of `facts`, which are what JSON can hold."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
