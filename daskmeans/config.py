"""Defaults from ``daskmeans.yaml``, merged below whatever the user's dask configuration says."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes

_defaults = yaml.safe_load(files("daskmeans").joinpath("daskmeans.yaml").read_text())
dask.config.update_defaults(_defaults)


def get(key: str) -> Any:
    """Value of ``daskmeans.<key>``; ``DASK_DASKMEANS__<KEY>`` in the environment overrides the file."""
    # A `dask.config.set` that was open while this was imported takes all defaults with it when it ends.
    return dask.config.get(f"daskmeans.{key}", _defaults["daskmeans"][key])


def get_bytes(key: str) -> int:
    """Value of ``daskmeans.<key>`` as a number of bytes.

    Examples
    --------
    >>> get_bytes("tile-bytes")
    16777216
    """
    return int(parse_bytes(get(key)))
