"""GPUs of this machine, and the packages without which they are of no use."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

# Where the driver lists them; to ask it, libraries would have to be loaded.
DRIVER = Path("/proc/driver/nvidia/gpus")
# What the extra `gpu` brings, as it is imported.
PACKAGES = ("cudf", "cuml", "cupy", "dask_cuda", "dask_cudf", "raft_dask")


def models() -> list[str]:
    """What the GPUs are called."""
    return [_model(file) for file in sorted(DRIVER.glob("*/information"))]


def count() -> int:
    """GPUs that CUDA_VISIBLE_DEVICES does not hide."""
    listed, chosen = [*DRIVER.glob("*")], os.environ.get("CUDA_VISIBLE_DEVICES")
    if not listed or chosen is None:
        return len(listed)
    return len([name for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])


def missing_packages() -> list[str]:
    """Packages of the extra `gpu` that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def _model(information: Path) -> str:
    lines = information.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")), information.parent.name)
