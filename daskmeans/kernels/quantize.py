"""Codes of rows and centroids for the candidate filter: bytes with a known error, or the float32 numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from daskmeans.kernels.jit import as_readonly, kernel
from daskmeans.kernels.microkernel import BYTES, COLUMNS, byte_instructions, has_byte_instructions
from daskmeans.kernels.norms import rounding_bound, squared_norms64
from daskmeans.kernels.simd import dot64, largest64

# Dot products of more byte coordinates could overflow a 32-bit sum.
MOST_COORDINATES = 1 << 16


class Codes(NamedTuple):
    """Codes of rows for the candidate filter.

    A row less the `center` is ``scales * codes``, up to an error whose norm is at most ``errors``.
    """

    codes: np.ndarray
    """int8, shape (n, d rounded up to 4), or the rows themselves, float32, shape (n, d)."""
    scales: np.ndarray
    """float32, shape (n,)"""
    biases: np.ndarray
    """int32, shape (n,): the sum of a row's codes times the largest code, which is added to those of columns."""
    errors: np.ndarray
    """float32, shape (n,)"""
    squares: np.ndarray
    """float64, shape (n,): squared norms of the rows; with byte codes, of the rows less the center."""


def is_bytewise(n_features: int) -> bool:
    """Whether rows of this dimension are compared as bytes on this machine."""
    return has_byte_instructions() and n_features < MOST_COORDINATES


def codes_layout(n: int, d: int, bytewise: bool) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and type of the arrays of :class:`Codes` for `n` rows; no `codes` where they are the rows."""
    arrays: dict[str, tuple[tuple[int, ...], type]] = {"codes": ((n, -(-d // 4) * 4), np.int8)} if bytewise else {}
    for name, kind in {"scales": np.float32, "biases": np.int32, "errors": np.float32, "squares": np.float64}.items():
        arrays[name] = (n,), kind
    return arrays


def encode_rows(X: np.ndarray, center: np.ndarray, arrays: dict[str, np.ndarray] | None = None) -> Codes:
    """Encode the rows of `X`.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d), C-contiguous
    center : ndarray of float64, shape (d,)
        Subtracted from rows and centroids before they become bytes. This leaves distances unchanged and makes the bytes
        finer. Float32 codes need no center.
    arrays : dict of ndarray, optional
        Arrays to write to; shapes and types as in :func:`codes_layout`. Default: new arrays.
    """
    X, center = as_readonly(X), as_readonly(center)
    bytewise = is_bytewise(X.shape[1])
    if arrays is None:
        n, d = X.shape
        arrays = {name: np.zeros(shape, kind) for name, (shape, kind) in codes_layout(n, d, bytewise).items()}
    codes = Codes(**{"codes": X} | {name: arrays[name] for name in codes_layout(0, 0, bytewise)})
    if bytewise:
        _to_bytes(X, center, _largest_code(), *codes)
    else:
        codes.scales[:], codes.biases[:], codes.errors[:] = 1.0, 0, 0.0
        codes.squares[:] = squared_norms64(X)
    return codes


def _largest_code() -> int:
    """Return the largest code on this machine."""
    return BYTES[byte_instructions()]


@kernel
def squares_about(X, center):  # type: ignore[no-untyped-def]
    """Return the squared distance of each row to `center`, float64, as :func:`encode_rows` computes it for bytes."""
    out, x = np.empty(X.shape[0], np.float64), np.empty(X.shape[1], np.float64)
    for i in range(X.shape[0]):
        subtract_center(X[i], center, x)
        out[i] = dot64(x, x)
    return out


@kernel
def subtract_center(row, center, out):  # type: ignore[no-untyped-def]
    """Write a row less the center, subtracted in float64."""
    for j in range(row.shape[0]):
        out[j] = np.float64(row[j]) - center[j]


@kernel
def _byte_scale(largest, reach):  # type: ignore[no-untyped-def]
    """Return the size of one step of a byte, and its inverse; zeros where coordinates are too small for bytes."""
    scale = np.float32(largest / reach)
    if scale >= 2.0**-100:
        return scale, 1.0 / np.float64(scale)
    return np.float32(0.0), 0.0


@kernel
def _quantize(x, reach, code, lost):  # type: ignore[no-untyped-def]
    """Write `x` as bytes up to `reach`, and their error; return the scale and the squared norm of the error."""
    scale, inverse = _byte_scale(largest64(x), reach)
    step = np.float64(scale)
    for j in range(x.shape[0]):
        q = np.rint(x[j] * inverse)
        code[j] = np.int8(q)
        lost[j] = x[j] - q * step
    return scale, dot64(lost, lost)


@kernel
def _to_bytes(X, center, reach, codes, scales, biases, errors, squares):  # type: ignore[no-untyped-def]
    d = X.shape[1]
    x, lost = np.empty(d, np.float64), np.empty(d, np.float64)
    for i in range(X.shape[0]):
        subtract_center(X[i], center, x)
        code, total = codes[i], 0
        scales[i], error = _quantize(x, reach, code, lost)
        for j in range(d):
            total += code[j]
        biases[i] = reach * total
        errors[i] = np.float32(np.sqrt(error) * (1 + 2.0**-20))
        squares[i] = dot64(x, x)


class PackedCentroids(NamedTuple):
    """Centroids in groups of 48: packed for the candidate filter, and what exact re-ranking needs."""

    packed: np.ndarray
    """uint8, shape (groups, d / 4, 48, 4), or float32, shape (groups, d, 48)."""
    scales: np.ndarray
    """float32, shape (groups, 48)"""
    halves: np.ndarray
    """float32, shape (groups, 48): half the squared norm of a centroid less the center; infinite in empty places."""
    ids: np.ndarray
    """int32, shape (groups, 48): number of the centroid; -1 in empty places."""
    groups: np.ndarray
    """int32, shape (k,): the group of each centroid."""
    places: np.ndarray
    """int32, shape (k,): the place of each centroid in its group."""
    centroids: np.ndarray
    """float32, shape (k, d)"""
    longest: np.ndarray
    """float64, shape (groups,): norm of the longest centroid of each group, less the center."""
    error: np.ndarray
    """float64, shape (groups,): largest norm of the quantization error of a centroid of the group."""
    rounding: float
    """Rounding error of a score, relative to the product of the norms."""


def pack_centroids(centroids: np.ndarray, center: np.ndarray, order: np.ndarray | None = None) -> PackedCentroids:
    """Pack `centroids` for comparison with rows that are encoded with the same `center`.

    Parameters
    ----------
    centroids : ndarray of float32, shape (k, d), C-contiguous
    center : ndarray of float64, shape (d,)
    order : ndarray of int, shape (k,), optional
        The order in which centroids fill the groups; default: as given. It never changes a label.
    """
    centroids, center = as_readonly(centroids), as_readonly(center)
    k, d = centroids.shape
    groups = -(-k // COLUMNS)
    ids = np.full(groups * COLUMNS, -1, np.int32)
    ids[:k] = np.arange(k) if order is None else order
    bytewise = is_bytewise(d)
    scales, halves = np.ones((groups, COLUMNS), np.float32), np.full((groups, COLUMNS), np.inf, np.float32)
    lengths, errors = np.zeros((groups, COLUMNS)), np.zeros((groups, COLUMNS))
    if bytewise:
        width = -(-d // 4) * 4
        packed = np.empty((groups, width // 4, COLUMNS, 4), np.uint8)
        written = (each.ravel() for each in (scales, halves, lengths, errors))
        _pack_bytes(centroids, center, ids, _largest_code(), packed, *written)
    else:
        packed, scales, halves = pack_floats(centroids[ids[:k]])
        lengths.ravel()[:k] = np.sqrt(squared_norms64(centroids)[ids[:k]])
    where = np.empty(k, np.int32)
    where[ids[:k]] = np.arange(k)
    group, place = where // COLUMNS, where % COLUMNS
    rounding = 2.0**-20 if bytewise else rounding_bound(d)
    bounds = lengths.max(axis=1) * (1 + 2.0**-20), errors.max(axis=1) * (1 + 2.0**-20), rounding
    return PackedCentroids(packed, scales, halves, ids.reshape(-1, COLUMNS), group, place, centroids, *bounds)


def pack_floats(C: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pack the rows of `C` as float32 columns; return packed columns, scales, half the squared norms."""
    k, d = C.shape
    groups = -(-k // COLUMNS)
    packed, halves = np.zeros((groups, d, COLUMNS), np.float32), np.full((groups, COLUMNS), np.inf, np.float32)
    for g in range(groups):
        mine = C[g * COLUMNS : (g + 1) * COLUMNS]
        packed[g, :, : len(mine)] = mine.T
    halves.ravel()[:k] = 0.5 * squared_norms64(as_readonly(C))
    return packed, np.ones((groups, COLUMNS), np.float32), halves


@kernel
def _pack_bytes(centroids, center, ids, reach, packed, scales, halves, lengths, errors):  # type: ignore[no-untyped-def]
    d = centroids.shape[1]
    c, lost, code = np.empty(d, np.float64), np.empty(d, np.float64), np.empty(d, np.int8)
    packed[:] = reach  # zero, as an unsigned byte
    for p in range(ids.shape[0]):
        if ids[p] < 0:
            continue
        g, column = p // packed.shape[2], p % packed.shape[2]
        subtract_center(centroids[ids[p]], center, c)
        scales[p], error = _quantize(c, reach, code, lost)
        for j in range(d):
            packed[g, j // 4, column, j % 4] = np.uint8(code[j] + reach)
        square = dot64(c, c)
        halves[p] = np.float32(0.5 * square)
        lengths[p], errors[p] = np.sqrt(square), np.sqrt(error)
