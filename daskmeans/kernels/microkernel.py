"""Scores of eight rows with forty-eight centroids: the inner loop, written for the vector units of this machine.

numba's loops use no instructions that multiply bytes, and do not keep a tile of sums in registers. So this one loop is
written in LLVM IR: for codes of one byte where the CPU can multiply them (VNNI, AVX2), and for float32 everywhere. Each
score is summed in the order of the coordinates, with fused multiply-add for float32. So it is the same on every
machine, whatever the width of its registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

ROWS, COLUMNS = 8, 48

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()

# Instructions that multiply bytes, the fastest first, and their largest code. Adding it makes the codes of columns
# unsigned. AVX2 adds two products in 16 bits: 2 x 90 x 180 fits.
BYTES = {"avx512vnni": 127, "avxvnni": 127, "avx2": 90}


def n_groups(n_clusters: float) -> int:
    """Return how many groups of forty-eight `n_clusters` centroids fill."""
    return math.ceil(n_clusters / COLUMNS)


class Registers(NamedTuple):
    """Part of a tile whose sums stay in registers: `rows` x `vectors` registers of `lanes` numbers each."""

    lanes: int
    rows: int
    vectors: int


@cache
def cpu_features() -> frozenset[str]:
    """Return LLVM's names of the instruction sets that numba compiles for; default: those of this machine."""
    if numba.config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES, or NUMBA_CPU_NAME=generic
        return frozenset(name[1:] for name in numba.config.CPU_FEATURES.split(",") if name.startswith("+"))
    return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)


def registers() -> Registers:
    """Return the division for this machine's registers: 32 of 512 bits, 32 of 128 bits (ARM), or 16 of 256 bits."""
    if "avx512f" in cpu_features():
        return Registers(16, 8, 3)
    if "neon" in cpu_features():
        return Registers(4, 8, 3)
    return Registers(8, 4, 3)


def byte_instructions() -> str:
    """Return LLVM's name of the instructions with which this machine multiplies bytes; "" for none.

    AVX2 is not used where float32 has registers of 512 bits, as it would be no faster.
    """
    slower = {"avx2"} if "avx512f" in cpu_features() else set()
    return next((name for name in BYTES if name in cpu_features() - slower), "")


def ask(choice: Callable[[], str]) -> None:
    """Set the function that chooses the kernels at each comparison: "auto", or "float32" for no products of bytes.

    It is called each time because tests and benchmarks change the answer. This folder reads no settings itself.
    """
    global _choice
    _choice = choice


def _choice() -> str:
    return "auto"


def has_byte_instructions() -> bool:
    """Whether this machine has instructions that multiply bytes, and they are not switched off."""
    return _choice() != "float32" and byte_instructions() != ""


def capability() -> str:
    """Describe the instructions that the comparisons use.

    Examples
    --------
    >>> capability().split()[0] in ("int8", "float32")
    True
    """
    names = {"avx512vnni": "AVX-512 VNNI", "avxvnni": "AVX-VNNI", "avx512f": "AVX-512", "avx2": "AVX2", "neon": "NEON"}
    if has_byte_instructions():
        return f"int8 ({names[byte_instructions()]})"
    widest = next((name for name in ("avx512f", "avx2", "neon") if name in cpu_features()), None)
    return f"float32 ({names[widest]})" if widest else "float32"


def _type_score_tile(  # type: ignore[no-untyped-def]
    typing, codes, scales, biases, picked, start, packed, group, column_scales, halves, scores, tops
):
    """Score eight rows with the forty-eight centroids of one group.

    Parameters
    ----------
    codes : ndarray of int8 or float32, shape (n, width), C-contiguous
        Rows; `width` is a multiple of 4 for int8.
    scales : ndarray of float32, shape (n,)
    biases : ndarray of int32, shape (n,)
        Subtracted from the products of int8 codes: the sum of a row's codes times the largest code.
    picked : ndarray of int32
    start : int
        The rows are ``picked[start : start + 8]``.
    packed : ndarray of uint8, shape (groups, width / 4, 48, 4), or of float32, shape (groups, width, 48)
    group : int
    column_scales, halves : ndarray of float32, shape (groups, 48)
        A score is ``product * scale of the row * scale of the column - half``.
    scores : ndarray of float32, shape (8, 48)
        Written.
    tops : ndarray of float32, shape (8,) or (8, 2)
        Written: the largest or the two largest scores of each row.
    """
    arrays = (codes, scales, biases, picked, packed, column_scales, halves, scores, tops)
    if not all(isinstance(a, types.Array) and a.layout == "C" for a in arrays):
        return None
    signature = types.void(codes, scales, biases, picked, start, packed, group, column_scales, halves, scores, tops)
    return signature, _emit_score_tile


score_tile: Any = intrinsic(_type_score_tile)


def _emit_score_tile(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
    from numba.core import cgutils
    from numba.np.arrayobj import make_array

    def array(i: int) -> Any:
        return make_array(signature.args[i])(context, b, args[i])

    def pointer(i: int, kind: ir.Type) -> Any:
        return b.bitcast(array(i).data, kind.as_pointer())

    def integer(i: int) -> Any:
        return context.cast(b, args[i], signature.args[i], types.int64)

    bytewise = signature.args[0].dtype == types.int8
    cut = registers()
    number, step = (I32, 4) if bytewise else (F32, 1)
    vector = ir.VectorType(number, cut.lanes)
    floats = ir.VectorType(F32, cut.lanes)
    width = cgutils.unpack_tuple(b, array(0).shape, 2)[1]
    steps = b.sdiv(width, I64(step))
    picked = b.gep(pointer(3, I32), [integer(4)])
    rows = [b.sext(b.load(b.gep(picked, [I64(r)])), I64) for r in range(ROWS)]
    codes = pointer(0, number)
    bases = [b.gep(codes, [b.mul(row, steps)]) for row in rows]
    packed = b.gep(pointer(5, number), [b.mul(integer(6), b.mul(steps, I64(COLUMNS)))])
    columns = b.mul(integer(6), I64(COLUMNS))
    column_scales, halves = (b.gep(pointer(i, F32), [columns]) for i in (7, 8))
    scores, tops = pointer(9, F32), pointer(10, F32)
    row_scales = [b.load(b.gep(pointer(1, F32), [row])) for row in rows]
    row_biases = [b.load(b.gep(pointer(2, I32), [row])) for row in rows]

    for r0 in range(0, ROWS, cut.rows):
        for c0 in range(0, COLUMNS, cut.lanes * cut.vectors):
            sums = _emit_products(b, bytewise, cut, bases[r0 : r0 + cut.rows], packed, c0, steps, vector)
            for v in range(cut.vectors):
                at = I64(c0 + v * cut.lanes)
                column_scale, half = (
                    b.load(b.bitcast(b.gep(p, [at]), floats.as_pointer()), align=4) for p in (column_scales, halves)
                )
                for r in range(cut.rows):
                    total = sums[r][v]
                    if bytewise:
                        total = b.sitofp(b.sub(total, _broadcast(b, row_biases[r0 + r], vector)), floats)
                    scaled = b.fmul(b.fmul(total, _broadcast(b, row_scales[r0 + r], floats)), column_scale)
                    place = b.gep(scores, [b.add(I64((r0 + r) * COLUMNS), at)])
                    b.store(b.fsub(scaled, half), b.bitcast(place, floats.as_pointer()), align=4)
    wanted = signature.args[10].ndim
    for r in range(ROWS):
        largest = _emit_two_largest(b, b.gep(scores, [I64(r * COLUMNS)]), floats)
        for i in range(wanted):
            b.store(largest[i], b.gep(tops, [I64(wanted * r + i)]))
    return context.get_dummy_value()


def _emit_products(
    b: ir.IRBuilder, bytewise: bool, cut: Registers, bases: list[Any], packed: Any, c0: int, steps: Any, vector: Any
) -> list[list[Any]]:
    """Emit the loop over coordinates: sums of products of each row with each vector of columns, in registers."""
    entry, loop, done = b.block, b.append_basic_block("products"), b.append_basic_block("scores")
    zero = ir.Constant(vector, [0 if bytewise else 0.0] * cut.lanes)
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(I64)
    i.add_incoming(I64(0), entry)
    sums = [[b.phi(vector) for _ in range(cut.vectors)] for _ in bases]
    at = b.gep(packed, [b.add(b.mul(i, I64(COLUMNS)), I64(c0))])
    columns = [
        b.load(b.bitcast(b.gep(at, [I64(v * cut.lanes)]), vector.as_pointer()), align=4) for v in range(cut.vectors)
    ]
    added = []
    for base, totals in zip(bases, sums, strict=True):
        row = _broadcast(b, b.load(b.gep(base, [i]), align=4), vector)
        added.append([_multiply_add(b, t, c, row, bytewise) for t, c in zip(totals, columns, strict=True)])
    after = b.add(i, I64(1))
    i.add_incoming(after, loop)
    for totals, news in zip(sums, added, strict=True):
        for total, new in zip(totals, news, strict=True):
            total.add_incoming(zero, entry)
            total.add_incoming(new, loop)
    b.cbranch(b.icmp_signed("<", after, steps), loop, done)
    b.position_at_end(done)
    return added


def _multiply_add(b: ir.IRBuilder, total: Any, columns: Any, row: Any, bytewise: bool) -> Any:
    vector = total.type
    if not bytewise:
        return _call_llvm(b, f"llvm.fmuladd.v{vector.count}f32", vector, columns, row, total)
    # Unsigned bytes of the columns times signed bytes of the row, four products into each sum.
    if byte_instructions() != "avx2":
        return _call_llvm(b, f"llvm.x86.avx512.vpdpbusd.{32 * vector.count}", vector, total, columns, row)
    quarters, halves = ir.VectorType(I8, 4 * vector.count), ir.VectorType(I16, 2 * vector.count)
    pairs = _call_llvm(b, "llvm.x86.avx2.pmadd.ub.sw", halves, b.bitcast(columns, quarters), b.bitcast(row, quarters))
    ones = ir.Constant(halves, [1] * halves.count)
    return b.add(total, _call_llvm(b, "llvm.x86.avx2.pmadd.wd", vector, pairs, ones))


def _call_llvm(b: ir.IRBuilder, name: str, result: ir.VectorType, *args: Any) -> Any:
    """Emit a call of LLVM's intrinsic `name`."""
    function = b.module.globals.get(name)
    function = function or ir.Function(b.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return b.call(function, args)


def _broadcast(b: ir.IRBuilder, value: Any, vector: ir.VectorType) -> Any:
    """Emit `value` in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = b.insert_element(undefined, value, I32(0))
    return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def _emit_two_largest(b: ir.IRBuilder, scores: Any, floats: ir.VectorType) -> tuple[Any, Any]:
    """Emit the largest and the second largest of forty-eight numbers, none of them NaN."""
    parts = [
        b.load(b.bitcast(b.gep(scores, [I64(c)]), floats.as_pointer()), align=4)
        for c in range(0, COLUMNS, floats.count)
    ]
    top, second = parts[0], ir.Constant(floats, [-math.inf] * floats.count)
    for part in parts[1:]:
        top, second = _larger(b, top, part), _larger(b, second, _smaller(b, top, part))
    lanes = floats.count
    while lanes > 1:
        lanes //= 2
        a, c = (_slice_lanes(b, top, start, lanes) for start in (0, lanes))
        rest = _larger(b, *(_slice_lanes(b, second, start, lanes) for start in (0, lanes)))
        top, second = _larger(b, a, c), _larger(b, rest, _smaller(b, a, c))
    return b.extract_element(top, I32(0)), b.extract_element(second, I32(0))


def _larger(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _smaller(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, y), y, x)


def _slice_lanes(b: ir.IRBuilder, vector: Any, start: int, count: int) -> Any:
    mask = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)
