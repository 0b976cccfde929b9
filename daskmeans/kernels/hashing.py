"""64-bit hashes of numbers, strings and vectors: the only source of randomness per row.

A hash depends only on the value and the seed, never on where the value lies. So a choice based on it is the same
however the input is partitioned.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from daskmeans.kernels.jit import as_readonly, kernel


@kernel
def _mix(z):  # type: ignore[no-untyped-def]
    """Finaliser of SplitMix64, a bijection (Steele, Lea & Flood, OOPSLA 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def hash_integers(values, seed):  # type: ignore[no-untyped-def]
    """Hash of each element of a uint64 array; different numbers never collide under one seed.

    Parameters
    ----------
    values : ndarray of uint64, shape (n,)
    seed : int

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    out = np.empty(values.shape[0], np.uint64)
    start = _mix(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15))
    for i in range(values.shape[0]):
        out[i] = _mix(values[i] + start)
    return out


@kernel
def _hash_slices(data, offsets, seed):  # type: ignore[no-untyped-def]
    out = np.empty(offsets.shape[0] - 1, np.uint64)
    start = _mix(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15))
    for i in range(out.shape[0]):
        begin, end = offsets[i], offsets[i + 1]
        h = _mix(start + np.uint64(end - begin))
        word = np.uint64(0)
        held = 0
        for j in range(begin, end):
            word |= np.uint64(data[j]) << np.uint64(8 * held)
            held += 1
            if held == 8:
                h = _mix(h ^ word) * np.uint64(0x9E3779B97F4A7C15)
                word, held = np.uint64(0), 0
        out[i] = _mix(h ^ word)
    return out


@kernel
def _hash_words(words, factors):  # type: ignore[no-untyped-def]
    """Mix sums of products. The products are independent; rows that differ collide for few choices of factors."""
    out = np.empty(words.shape[0], np.uint64)
    for i in range(words.shape[0]):
        h = np.uint64(0)
        for j in range(words.shape[1]):
            word = words[i, j] if words[i, j] != 0x80000000 else np.uint32(0)  # the bits of -0.0
            # Numbers that end in zeros, as halves do, would leave few bits of a factor.
            h += factors[j] * np.uint64(word ^ (word >> np.uint32(16)))
        out[i] = _mix(h)
    return out


def hash_column(column: pa.Array | pa.ChunkedArray, seed: int = 0) -> np.ndarray:
    """Hash of each value of a column of ids without nulls.

    Parameters
    ----------
    column : pyarrow.Array or pyarrow.ChunkedArray
        Integers of any width, strings, bytes (of one length or not), or decimals of 128 bits.
    seed : int, default 0

    Returns
    -------
    ndarray of uint64, shape (n,)

    Examples
    --------
    >>> a = hash_column(pa.array(["a", "b", "a"]))
    >>> bool(a[0] == a[2]), bool(a[0] == a[1])
    (True, False)
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # older pyarrow returns chunks for an empty column
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_integer(column.type):
        values = column.to_numpy(zero_copy_only=False)
        return hash_integers(values.astype(np.int64 if values.dtype.kind == "i" else np.uint64).view(np.uint64), seed)
    if pa.types.is_decimal(column.type):
        column = column.view(pa.binary(column.type.byte_width))
    column = column.cast(pa.large_binary())
    _, offsets, data = column.buffers()
    if len(column) == 0:
        return np.empty(0, np.uint64)
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    raw = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return _hash_slices(raw, ends, seed)


def hash_rows(X: np.ndarray, seed: int = 0) -> np.ndarray:
    """Hash of the bits of each row of a float32 matrix; negative zero counts as zero.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d), C-contiguous
    seed : int, default 0

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    factors = hash_integers(np.arange(X.shape[1], dtype=np.uint64), seed) | np.uint64(1)
    return _hash_words(as_readonly(X).view(np.uint32), as_readonly(factors))  # type: ignore[no-any-return]


def to_uniform(hashes: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from hashes, float64."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_limit(rows: int, wanted: int) -> int:
    """Hash below which a row may be among the `wanted` smallest hashes of `rows`.

    A little more than `wanted` rows lie below it, and fewer do with a probability of 10⁻⁹ (six standard deviations), so
    one pass finds the sample without knowing the hashes of all rows first.

    Examples
    --------
    >>> sample_limit(100, 100) == 2**64 - 1
    True
    """
    share = (wanted + 6 * math.sqrt(wanted)) / max(rows, 1)
    return min(2**64 - 1, int(share * 2**64))


def is_sampled(numbers: np.ndarray, share: float | np.ndarray, seed: int) -> np.ndarray:
    """Return which rows are sampled: those whose number has a hash below `share`, of all rows or of each."""
    return to_uniform(hash_integers(numbers.astype(np.uint64), seed)) < share


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a share (JASA 1927); (0, 1) without trials.

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    if trials == 0:
        return 0.0, 1.0
    p, spread = successes / trials, z * z / trials
    centre = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / trials + spread / (4 * trials)) / (1 + spread)
    # At the ends the bound is the share itself, which rounding may miss.
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half
