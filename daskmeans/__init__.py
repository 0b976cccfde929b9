"""daskmeans: cluster embeddings and find their near-duplicates, from a laptop to many workers."""

from importlib.metadata import version

from daskmeans.assignment import assign
from daskmeans.duplicates.apply import apply
from daskmeans.duplicates.deduplicator import SemanticDeduplicator
from daskmeans.duplicates.result import DedupResult, open_decisions
from daskmeans.duplicates.search import dedup
from daskmeans.embedding.step import embed
from daskmeans.errors import DaskmeansError
from daskmeans.kmeans.estimator import KMeans
from daskmeans.reading import Reading
from daskmeans.vectors.buckets import open_buckets
from daskmeans.vectors.regroup import write_buckets
from daskmeans.vectors.source import read_embeddings
from daskmeans.workflow import run

__version__ = version("daskmeans")

__all__ = [
    "DaskmeansError",
    "DedupResult",
    "KMeans",
    "Reading",
    "SemanticDeduplicator",
    "apply",
    "assign",
    "dedup",
    "embed",
    "open_buckets",
    "open_decisions",
    "read_embeddings",
    "run",
    "write_buckets",
]
