"""Dot products and squared distances of two vectors, in float64 and one fixed order, on vector registers.

Sixteen sums run beside each other and are added in one order at the end, and nothing is fused, so the results are the
same on every machine. Each product of two float32 numbers is exact in float64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from daskmeans.kernels.jit import kernel

LANES, STREAMS = 8, 2

I32, I64, F64 = ir.IntType(32), ir.IntType(64), ir.DoubleType()
WIDE = ir.VectorType(F64, LANES)


def _sum_products(typing: Any, x: Any, y: Any) -> Any:
    return _signature(x, y), lambda *args: _reduce(*args, subtract=False)


def _sum_squares(typing: Any, x: Any, y: Any) -> Any:
    return _signature(x, y), lambda *args: _reduce(*args, subtract=True)


_products: Any = intrinsic(_sum_products)
_squares: Any = intrinsic(_sum_squares)


@kernel
def dot64(x, y):  # type: ignore[no-untyped-def]
    """Dot product of two vectors of floating-point numbers, contiguous and of the same length."""
    return _products(x, y)


@kernel
def squared_distance64(x, y):  # type: ignore[no-untyped-def]
    """Squared distance of two such vectors; zero for equal ones."""
    return _squares(x, y)


def _signature(x: Any, y: Any) -> Any:
    for vector in (x, y):
        if not (isinstance(vector, types.Array) and vector.ndim == 1 and vector.layout == "C"):
            return None
    return types.float64(x, y)


def _reduce(context: Any, b: ir.IRBuilder, signature: Any, args: Any, *, subtract: bool) -> Any:
    from numba.core import cgutils
    from numba.np.arrayobj import make_array

    x, y = (make_array(kind)(context, b, arg) for kind, arg in zip(signature.args, args, strict=True))
    n = cgutils.unpack_tuple(b, x.shape, 1)[0]
    step = LANES * STREAMS
    whole = b.mul(b.udiv(n, I64(step)), I64(step))
    sums = [cgutils.alloca_once_value(b, ir.Constant(WIDE, [0.0] * LANES)) for _ in range(STREAMS)]
    tail = cgutils.alloca_once_value(b, F64(0.0))

    def add(total: Any, left: Any, right: Any) -> None:
        first, second = (b.fsub(left, right),) * 2 if subtract else (left, right)
        b.store(b.fadd(b.load(total), b.fmul(first, second)), total)

    def wide(value: Any, kind: Any) -> Any:
        return value if value.type == kind else b.fpext(value, kind)

    def load(data: Any, i: Any) -> Any:
        lanes = ir.VectorType(data.type.pointee, LANES)
        return wide(b.load(b.bitcast(b.gep(data, [i]), lanes.as_pointer()), align=4), WIDE)

    with cgutils.for_range_slice(b, I64(0), whole, I64(step)) as (i, _):
        for s, total in enumerate(sums):
            at = b.add(i, I64(s * LANES))
            add(total, load(x.data, at), load(y.data, at))
    with cgutils.for_range_slice(b, whole, n, I64(1)) as (i, _):
        add(tail, *(wide(b.load(b.gep(v.data, [i])), F64) for v in (x, y)))
    lanes = b.load(sums[0])
    for total in sums[1:]:
        lanes = b.fadd(lanes, b.load(total))
    parts = [b.extract_element(lanes, I32(i)) for i in range(LANES)]
    while len(parts) > 1:
        parts = [b.fadd(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
    return b.fadd(parts[0], b.load(tail))
