"""Options of the steps `assign` and `run`; those of a run are the options of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daskmeans.buckets.external_sort import LAYOUTS
from daskmeans.duplicates.settings import Deciding
from daskmeans.kmeans.centroid_index import TARGET_RECALL, check_assign
from daskmeans.kmeans.estimator import KMeans
from daskmeans.options import Need, option
from daskmeans.vectors.numbering import id_settings
from daskmeans.vectors.options import DEFAULTS, ReadOptions


@dataclass(frozen=True)
class Storing:
    """How rows are assigned and their clusters stored; the fields are flags of the command line."""

    layout: str = option(
        "bucketed",
        "bucketed: few files that hold many clusters each; hive: one directory for each cluster.",
        choices=LAYOUTS,
    )
    embedding_dtype: str = option(
        "float32", "How the numbers of vectors are stored in the output.", choices=("float32", "float16")
    )
    assign: str = option(
        "exact",
        "ann: by an index over the centroids, for very many; what share of the labels is exact is measured.",
        choices=("exact", "ann"),
    )
    assign_recall: float = option(
        TARGET_RECALL,
        "Share of exact labels that --assign ann aims at.",
        need=Need({"assign": ("ann",)}, "--assign ann"),
    )

    def settings(self, reading: ReadOptions) -> dict[str, Any]:
        """Everything that determines the clusters, besides the input and the model.

        Raises
        ------
        UsageError
            Rows cannot be assigned in this way; MissingExtraError if a package is missing for it.
        """
        check_assign(self.assign, self.assign_recall)
        return {
            "assign": self.assign,
            "assign_recall": self.assign_recall if self.assign == "ann" else None,
            "layout": self.layout,
            "embedding_dtype": self.embedding_dtype,
            "id_field": reading.id_field,
            "embedding_field": reading.embedding_field,
            "metadata_fields": list(reading.metadata_fields),
            "on_bad_row": reading.on_bad_row,
        } | id_settings(reading.id_from)


STORING = Storing()


@dataclass(frozen=True)
class RunSettings:
    """Options of a run; the seed is that of the model."""

    model: KMeans
    deciding: Deciding
    storing: Storing = STORING
    reading: ReadOptions = DEFAULTS
