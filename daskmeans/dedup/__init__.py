"""Near-duplicates: found inside clusters, ranked, decided, explained and applied to the original files."""

from daskmeans.dedup.apply import apply
from daskmeans.dedup.result import DedupResult, Duplicate, Group, open_decisions
from daskmeans.dedup.search import dedup

__all__ = ["DedupResult", "Duplicate", "Group", "apply", "dedup", "open_decisions"]
