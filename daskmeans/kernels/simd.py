"""Products, distances and largest magnitudes of vectors, in float64 and one fixed order, on vector registers.

Sixteen sums run beside each other and are added in one order at the end, and nothing is fused, so the results are the
same on every machine. Each product of two float32 numbers is exact in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from daskmeans.kernels.jit import kernel

LANES, STREAMS = 8, 2

I32, I64, F64 = ir.IntType(32), ir.IntType(64), ir.DoubleType()
WIDE = ir.VectorType(F64, LANES)


def _square(b: ir.IRBuilder, left: Any, right: Any) -> Any:
    difference = b.fsub(left, right)
    return b.fmul(difference, difference)


def _larger(b: ir.IRBuilder, left: Any, right: Any) -> Any:
    return b.select(b.fcmp_ordered(">", left, right), left, right)


def _magnitude(b: ir.IRBuilder, value: Any) -> Any:
    return _larger(b, value, b.fneg(value))


def _sum_products(typing: Any, x: Any, y: Any) -> Any:
    return _signature(x, y), lambda *args: _reduce(*args, term=ir.IRBuilder.fmul, combine=ir.IRBuilder.fadd)


def _sum_squares(typing: Any, x: Any, y: Any) -> Any:
    return _signature(x, y), lambda *args: _reduce(*args, term=_square, combine=ir.IRBuilder.fadd)


def _largest(typing: Any, x: Any) -> Any:
    return _signature(x), lambda *args: _reduce(*args, term=_magnitude, combine=_larger)


_dot: Any = intrinsic(_sum_products)
_squared_distance: Any = intrinsic(_sum_squares)
_largest_magnitude: Any = intrinsic(_largest)


@kernel
def dot64(x, y):  # type: ignore[no-untyped-def]
    """Return the dot product of two contiguous floating-point vectors of the same length."""
    return _dot(x, y)


@kernel
def squared_distance64(x, y):  # type: ignore[no-untyped-def]
    """Return the squared distance of two such vectors; zero for equal ones."""
    return _squared_distance(x, y)


@kernel
def largest64(x):  # type: ignore[no-untyped-def]
    """Return the largest magnitude of the elements of such a vector, none of them NaN."""
    return _largest_magnitude(x)


def _signature(*vectors: Any) -> Any:
    for vector in vectors:
        if not (isinstance(vector, types.Array) and vector.ndim == 1 and vector.layout == "C"):
            return None
    return types.float64(*vectors)


def _reduce(
    context: Any, b: ir.IRBuilder, signature: Any, args: Any, *, term: Callable[..., Any], combine: Callable[..., Any]
) -> Any:
    """Reduce `term` of corresponding elements by `combine`, for which 0 must be neutral."""
    from numba.core import cgutils
    from numba.np.arrayobj import make_array

    vectors = [make_array(kind)(context, b, arg) for kind, arg in zip(signature.args, args, strict=True)]
    n = cgutils.unpack_tuple(b, vectors[0].shape, 1)[0]
    step = LANES * STREAMS
    whole = b.mul(b.udiv(n, I64(step)), I64(step))
    totals = [cgutils.alloca_once_value(b, ir.Constant(WIDE, [0.0] * LANES)) for _ in range(STREAMS)]
    tail = cgutils.alloca_once_value(b, F64(0.0))

    def add(total: Any, elements: list[Any]) -> None:
        b.store(combine(b, b.load(total), term(b, *elements)), total)

    def wide(value: Any, kind: Any) -> Any:
        return value if value.type == kind else b.fpext(value, kind)

    def load(data: Any, i: Any) -> Any:
        lanes = ir.VectorType(data.type.pointee, LANES)
        return wide(b.load(b.bitcast(b.gep(data, [i]), lanes.as_pointer()), align=4), WIDE)

    with cgutils.for_range_slice(b, I64(0), whole, I64(step)) as (i, _):
        for s, total in enumerate(totals):
            at = b.add(i, I64(s * LANES))
            add(total, [load(v.data, at) for v in vectors])
    with cgutils.for_range_slice(b, whole, n, I64(1)) as (i, _):
        add(tail, [wide(b.load(b.gep(v.data, [i])), F64) for v in vectors])
    lanes = b.load(totals[0])
    for total in totals[1:]:
        lanes = combine(b, lanes, b.load(total))
    parts = [b.extract_element(lanes, I32(i)) for i in range(LANES)]
    while len(parts) > 1:
        parts = [combine(b, parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
    return combine(b, parts[0], b.load(tail))
