"""daskmeans: cluster embeddings and find their near-duplicates, from a laptop to many workers.

Public names are imported on first use: the imports take seconds, and the command must answer Ctrl-C meanwhile.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskmeans.buckets.buckets import open_buckets
    from daskmeans.buckets.external_sort import write_buckets
    from daskmeans.duplicates.deduplication import Deduplication
    from daskmeans.duplicates.deduplicator import SemanticDeduplicator
    from daskmeans.duplicates.result import DedupResult, open_decisions
    from daskmeans.errors import DaskmeansError
    from daskmeans.kmeans.estimator import KMeans
    from daskmeans.steps.append import append
    from daskmeans.steps.apply import apply
    from daskmeans.steps.dedup import dedup
    from daskmeans.steps.deduplicate import deduplicate
    from daskmeans.steps.dispatch import assign, fit
    from daskmeans.steps.embed import embed
    from daskmeans.steps.leak import leak
    from daskmeans.steps.run import run
    from daskmeans.storage.result import StepResult
    from daskmeans.vectors.embeddings import read_embeddings
    from daskmeans.vectors.options import ReadOptions

__version__ = version("daskmeans")

__all__ = [
    "DaskmeansError",
    "DedupResult",
    "Deduplication",
    "KMeans",
    "ReadOptions",
    "SemanticDeduplicator",
    "StepResult",
    "append",
    "apply",
    "assign",
    "dedup",
    "deduplicate",
    "embed",
    "fit",
    "leak",
    "open_buckets",
    "open_decisions",
    "read_embeddings",
    "run",
    "write_buckets",
]

_HOMES = {
    "buckets.buckets": ("open_buckets",),
    "buckets.external_sort": ("write_buckets",),
    "duplicates.deduplication": ("Deduplication",),
    "duplicates.deduplicator": ("SemanticDeduplicator",),
    "duplicates.result": (
        "DedupResult",
        "open_decisions",
    ),
    "errors": ("DaskmeansError",),
    "kmeans.estimator": ("KMeans",),
    "steps.append": ("append",),
    "steps.apply": ("apply",),
    "steps.dedup": ("dedup",),
    "steps.deduplicate": ("deduplicate",),
    "steps.dispatch": (
        "assign",
        "fit",
    ),
    "steps.embed": ("embed",),
    "steps.leak": ("leak",),
    "steps.run": ("run",),
    "storage.result": ("StepResult",),
    "vectors.embeddings": ("read_embeddings",),
    "vectors.options": ("ReadOptions",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return found
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
