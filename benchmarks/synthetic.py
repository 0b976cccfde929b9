"""Rows of unit length that imitate embeddings: a power law of variances, clusters in clusters, copies.

| | 100,000 MiniLM embeddings of real texts | their imitation |
|---|---:|---:|
| squared length of the mean | 0.11 | 0.14 |
| variance in the first 8, 32, 64, 128 of 384 directions | 0.21, 0.43, 0.60, 0.79 | 0.20, 0.44, 0.61, 0.78 |
| squared length that k-means leaves with k = 10, 100, 1000 | 0.79, 0.68, 0.54 | 0.78, 0.68, 0.57 |
| rows of the largest, the median, the smallest of 1000 clusters | 500, 87, 3 | 404, 90, 1 |
| median difference of the distances to the nearest two of 1000 centroids | 0.058 | 0.069 |
"""

import math

import numpy as np

# Shares of the variance between the nodes of each level of a tree; the rest is within the leaves.
REAL = (0.04,) * 3 + (0.055,) * 6
CLUSTERED = (0.13,) * 6
CHILDREN = 3


def embeddings(
    rows: int, dimension: int, levels: tuple[float, ...] = REAL, copies: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Rows as float32, shape (rows, dimension).

    Parameters
    ----------
    rows, dimension : int
    levels : tuple of float
        Shares of the variance, from the root of the tree to its leaves.
    copies : float
        Share of the rows that are exact copies of others.
    seed : int
    """
    rng = np.random.default_rng(seed)
    i = np.arange(1, dimension + 1)
    spectrum = i**-0.5 * np.exp(-1.8 * i / dimension)
    deviations = np.sqrt(spectrum / spectrum.sum()).astype(np.float32)
    weights = 1 / np.arange(1, CHILDREN + 1)
    node = np.zeros(rows, np.int64)
    X = math.sqrt(1 - sum(levels)) * rng.standard_normal((rows, dimension), np.float32) * deviations
    for level, share in enumerate(levels, start=1):
        node = CHILDREN * node + rng.choice(CHILDREN, rows, p=weights / weights.sum())
        X += (math.sqrt(share) * rng.standard_normal((CHILDREN**level, dimension), np.float32) * deviations)[node]
    X[:, 0] += math.sqrt(0.12)
    X = X @ np.linalg.qr(rng.standard_normal((dimension, dimension)))[0].astype(np.float32)
    copied = rng.random(rows) < copies
    X[copied] = X[rng.integers(0, rows, int(copied.sum()))]
    return X / np.linalg.norm(X, axis=1, keepdims=True)
