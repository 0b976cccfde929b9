"""Bytes of a device that dense kernels take at once: bounds for what is known before they begin."""

from __future__ import annotations

from daskmeans.kernels.gpu import dense
from daskmeans.tuning import DEFAULT, Tuning

# Of a device's memory: what CUDA contexts and the gaps between allocations leave.
DEVICE_SHARE = 0.8
# Bytes of a coordinate while rows become float16, and while pairs of rows are re-ranked: float32, float16, float64, of
# which several are there at a time, and two buffers through which rows come.
ROWS, PAIRS = 64, 32
# What a row has beside its coordinates, counted in these: norms, bounds, labels, and what makes rows longer.
OTHERS = 8
# Bytes of each pair of a row and a centroid that may have to be re-ranked.
CLOSE = 64


def spare_bytes(memory: int, share: float, need: int) -> int:
    """Bytes of a device that rows may take which stay there: a `share` of its memory, as far as `need` leaves it.

    Examples
    --------
    >>> spare_bytes(1000, 0.6, 100), spare_bytes(1000, 0.6, 700), spare_bytes(1000, 0.6, 900)
    (600, 100, 0)
    """
    return max(0, int(min(share * memory, DEVICE_SHARE * memory - need)))


def nearest_bytes(rows: int, n_clusters: int, n_features: int, tuning: Tuning = DEFAULT) -> int:
    """What it takes to find the nearest of `n_clusters` centroids of each of `rows` rows, and to sum the rows.

    The rows are taken a tile at a time; more than this is needed where very many of them lie equally near to many
    centroids.

    Examples
    --------
    >>> nearest_bytes(1_000_000, 4096, 768) >> 20, nearest_bytes(5_000, 4096, 768) >> 20
    (5346, 1532)
    """
    tile = min(rows, dense.tile_rows(n_clusters, n_features, tuning))
    scores = tile * n_clusters
    return ROWS * (n_clusters + tile) * (n_features + OTHERS) + 4 * scores + CLOSE * min(scores, tuning.scores // 16)


def pairs_bytes(rows: int, n_features: int, tuning: Tuning = DEFAULT) -> int:
    """What it takes to compare two bands of `rows` rows; more where very many pairs reach the floor.

    Examples
    --------
    >>> pairs_bytes(20_000, 768) >> 20
    6067
    """
    scores = min(rows * rows, tuning.scores)
    pairs = min(rows * rows * n_features, tuning.coordinates)
    return ROWS * rows * (n_features + OTHERS) + 4 * scores + PAIRS * pairs
