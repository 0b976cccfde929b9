"""The spill file: bounded, zero where it must be, an error when the disk is full, and gone with its process."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from itertools import pairwise
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskmeans.errors import RunError
from daskmeans.kmeans.memory import note_bytes
from daskmeans.kmeans.rows.block import Block, MemoryBudget
from daskmeans.kmeans.rows.spill import PAGE, SpillFile
from daskmeans.runtime import resources

DISK = {"memory": 0}


def open_files(pid: int, folder: Path) -> list[os.stat_result]:
    """The files below `folder` that a process has open, also those without a name."""
    links = [Path(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return [link.stat() for link in links if link.exists() and os.readlink(link).startswith(str(folder))]


@given(st.lists(st.tuples(st.integers(1, 5 * PAGE), st.booleans()), min_size=1, max_size=40))
def test_extents_never_overlap_and_are_used_again(steps):
    cache, held = SpillFile(tempfile.gettempdir()), []
    for nbytes, release in steps:
        if release and held:
            held.pop(nbytes % len(held))
        held.append(cache.extent(nbytes))
        assert held[-1].size >= nbytes and held[-1].size % PAGE == held[-1].offset % PAGE == 0
        places = sorted((extent.offset, extent.offset + extent.size) for extent in held)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(places))
        assert places[-1][1] <= cache.size == os.fstat(cache.fileno).st_size
    total = cache.size
    held.clear()
    again = cache.extent(total)
    assert (again.offset, again.size, cache.size) == (0, total, total)


def test_an_array_in_used_pages_holds_zeros(tmp_path):
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        block = Block(np.ones((100, 8), np.float32), MemoryBudget("zeros", **DISK))
        for turn in range(3):
            block.allocate("a", (100, 300), np.int32)
            with block.open() as arrays:
                assert not arrays["a"].any(), turn
                arrays["a"][:] = -1
            block.drop("a")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_the_file_has_no_name_and_goes_with_the_last_block(tmp_path):
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        blocks = [Block(np.ones((100, 8), np.float32), MemoryBudget("gone", **DISK)) for _ in range(3)]
        assert list(tmp_path.iterdir()) == []
        (file,) = open_files(os.getpid(), tmp_path)
        assert file.st_blocks * 512 >= 3 * PAGE
        del blocks[:2]
        assert len(open_files(os.getpid(), tmp_path)) == 1
        blocks.clear()
        gc.collect()
        assert open_files(os.getpid(), tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_killed_process_leaves_nothing_behind(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        import numpy as np
        from daskmeans.kmeans.rows.block import Block, MemoryBudget
        blocks = [Block(np.ones((1 << 16, 64), np.float32), MemoryBudget("fit", memory=0)) for _ in range(4)]
        print("ready", flush=True)
        time.sleep(60)
    """)
    environment = os.environ | {"DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        (file,) = open_files(process.pid, tmp_path)
        assert file.st_blocks * 512 >= 64 << 20
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(tmp_path.iterdir()) == []
    holders = [p.pid for p in psutil.process_iter() if _holds(p, file.st_ino)]
    assert holders == []


def _holds(process: psutil.Process, inode: int) -> bool:
    try:
        return any(f.st_ino == inode for f in open_files(process.pid, Path("/")))
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False


@pytest.mark.parametrize("portable", [False, True])
def test_a_full_disk_is_an_error_that_says_what_to_do(tmp_path, monkeypatch, portable):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = SpillFile(str(tmp_path))
    first = cache.extent(PAGE)
    with monkeypatch.context() as patched:
        if portable:
            patched.delattr(os, "posix_fallocate", raising=False)
            patched.setattr(os, "pwrite", full)
        else:
            patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(RunError, match=rf"{tmp_path}(.|\n)*No space left(.|\n)*--local-directory"):
            cache.extent(10 * PAGE)
    assert cache.extent(10 * PAGE).offset == first.size


def test_space_is_reserved_where_the_system_has_no_call_for_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    cache = SpillFile(str(tmp_path))
    extent = cache.extent(3 * PAGE)
    assert os.fstat(cache.fileno).st_blocks * 512 >= extent.size
    assert bytes(extent.map(writable=False)) == bytes(extent.size)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_open_arrays_take_memory_only_while_they_are_open(tmp_path):
    def resident() -> int:
        return psutil.Process().memory_info().rss

    with dask.config.set({"temporary-directory": str(tmp_path)}):
        rows = np.ones((1 << 15, 256), np.float32)  # 32 MiB
        blocks = [Block(rows, MemoryBudget("resident", **DISK)) for _ in range(8)]
        for block in blocks:
            block.allocate("noted", rows.shape, np.float32)
        before, still = resident(), []
        for block in blocks:
            with block.open() as arrays:
                arrays["noted"][:] = arrays["rows"] + 1
                assert resident() > before + rows.nbytes
                still.append(arrays)  # somebody who does not let go
            assert resident() < before + rows.nbytes / 2
        assert all((arrays["noted"][::1000] == 2).all() for arrays in still)


def test_memory_is_used_up_to_the_quota_then_the_disk():
    rows = np.ones((1000, 250), np.float32)
    budget = MemoryBudget("mixed", memory=3 * (rows.nbytes + note_bytes(1000, 250, 1)))
    blocks = [Block(rows.copy(), budget) for _ in range(5)]
    assert [block.on_disk for block in blocks] == [False, False, False, True, True]
    assert sys.getsizeof(blocks[0]) > rows.nbytes > 1000 > sys.getsizeof(blocks[-1])
    del blocks[0]
    blocks.append(Block(rows.copy(), budget))
    assert not blocks[-1].on_disk
    assert Block(rows.copy(), MemoryBudget("another fit", memory=budget.memory)).on_disk


def test_files_lie_where_dask_is_told(tmp_path):
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        assert resources.local_directory() == str(tmp_path)
