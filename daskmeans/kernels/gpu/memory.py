"""Upper bounds on the device memory that dense kernels take, computed before they begin."""

from __future__ import annotations

from daskmeans.kernels.gpu import dense
from daskmeans.tuning import DEFAULT, Tuning

# Share of a device's memory that CUDA contexts and fragmentation leave.
DEVICE_SHARE = 0.8
# Bytes of a coordinate while rows become float16, and while pairs of rows are re-ranked: several copies in float32,
# float16 and float64, and two transfer buffers.
ROWS, PAIRS = 64, 32
# Norms, bounds, labels and padding of a row, counted in coordinates.
OTHERS = 8
# Bytes of each pair of a row and a centroid that may have to be re-ranked.
CLOSE = 64


def spare_bytes(memory: int, share: float, need: int) -> int:
    """Return the bytes that rows kept on a device may take: a `share` of its memory, less if `need` leaves less.

    Examples
    --------
    >>> spare_bytes(1000, 0.6, 100), spare_bytes(1000, 0.6, 700), spare_bytes(1000, 0.6, 900)
    (600, 100, 0)
    """
    return max(0, int(min(share * memory, DEVICE_SHARE * memory - need)))


def nearest_bytes(rows: int, n_clusters: int, n_features: int, tuning: Tuning = DEFAULT) -> int:
    """Return the bytes for finding the nearest of `n_clusters` centroids of `rows` rows, and for summing the rows.

    Rows are processed a tile at a time. More is needed where very many of them are equally near to many centroids.

    Examples
    --------
    >>> nearest_bytes(1_000_000, 4096, 768) >> 20, nearest_bytes(5_000, 4096, 768) >> 20
    (5346, 1532)
    """
    tile = min(rows, dense.tile_rows(n_clusters, n_features, tuning))
    scores = tile * n_clusters
    return ROWS * (n_clusters + tile) * (n_features + OTHERS) + 4 * scores + CLOSE * min(scores, tuning.scores // 16)


def pairs_bytes(rows: int, n_features: int, tuning: Tuning = DEFAULT) -> int:
    """Return the bytes for comparing two blocks of `rows` rows. More is needed where very many pairs reach the floor.

    Examples
    --------
    >>> pairs_bytes(20_000, 768) >> 20
    6067
    """
    scores = min(rows * rows, tuning.scores)
    pairs = min(rows * rows * n_features, tuning.coordinates)
    return ROWS * rows * (n_features + OTHERS) + 4 * scores + PAIRS * pairs
