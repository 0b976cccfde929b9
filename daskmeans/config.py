"""Defaults from ``daskmeans.yaml``; the user's Dask configuration takes precedence."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes

_defaults = yaml.safe_load(files("daskmeans").joinpath("daskmeans.yaml").read_text())
dask.config.update_defaults(_defaults)


def get(key: str) -> Any:
    """Return the value of ``daskmeans.<key>``; ``DASK_DASKMEANS__<KEY>`` in the environment overrides the file."""
    # A `dask.config.set` block that is open during this import removes the defaults again when it ends.
    return dask.config.get(f"daskmeans.{key}", _defaults["daskmeans"][key])


def get_bytes(key: str) -> int:
    """Return the value of ``daskmeans.<key>`` as a number of bytes.

    Examples
    --------
    >>> get_bytes("tile-bytes")
    16777216
    """
    return int(parse_bytes(get(key)))
