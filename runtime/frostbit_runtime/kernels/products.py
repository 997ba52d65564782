"""The loops over k: from inputs and weights to counts of differing bits, or to float sums.

Counting bits costs an XOR, a count and an addition per word, and a count is one instruction only on some machines.
Two forms of words do better where they can; `bits` writes the input in the form, `binary` the weights.

PAIRS, where one instruction computes any function of three bits: two words a and b of differences are added to the
running parity of all before them,

    parity' = parity + a + b (mod 2),  carry = (parity + a + b) / 2,

so that only the carries are counted, one per pair, and the last parity once: 5 instructions for two words in place
of 6 (10 in place of 16 where a count takes six). A pair is stored as (a, a XOR b): parity' is then one instruction
and b itself is never needed.

NIBBLES, where bytes are counted by looking up their halves: each word is stored as two, of its low and its high
nibbles, so that they need not be taken apart after the XOR: 6 instructions for a word in place of 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from frostbit_runtime.kernels.block import REGISTER, VECTORS, Block, Values, flat
from frostbit_runtime.kernels.simd import F32, I1, I8, I16, I32, NIBBLES, PAIRS, PANEL, TARGET
from llvmlite import ir
from numba.core import cgutils

BYTE_CHUNK = 63 if TARGET.form == NIBBLES else 31  # counts of at most 4 or 8 that fit in a byte together


def binary(block: Block) -> Values:
    """Count differing bits: pairs of words by their carries, single words as they are."""
    v, b, pairs = block.v, block.b, block.a["pairs"]
    totals = block.variables(v.constant(I32, 0))
    if TARGET.form == PAIRS:
        parities = block.variables(v.constant(I32, 0))

        def carries(k: ir.Value) -> Iterator[ir.Value]:
            tap, double = block.tap(k), v.offset(k, k)
            first, folded = block.weights(double, I32), block.weights(v.offset(double, 1), I32)
            for row, line in zip(block.rows, parities, strict=True):
                x, both = (v.splat(v.scalar(v.offset(b.add(row, tap), 4 * n), I32)) for n in (0, 1))
                for i, parity in enumerate(line):
                    before = b.load(parity)
                    after = v.parity(before, both, folded[i])
                    b.store(after, parity)
                    yield v.carry(before, b.xor(x, first[i]), after)

        _count(block, totals, v.index(0), pairs, carries)
        for total, parity in zip(flat(totals), flat(parities), strict=True):
            carried = b.shl(b.load(total), v.constant(I32, 1))
            b.store(b.add(carried, v.popcount(b.load(parity))), total)

    def words(k: ir.Value) -> Iterator[ir.Value]:
        tap, weights = block.tap(k), block.weights(v.offset(k, pairs), I32)
        for row in block.rows:
            x = v.splat(v.scalar(b.add(row, tap), I32))
            for weight in weights:
                yield b.xor(x, weight)

    _count(block, totals, pairs, block.a["count"], words)
    return block.read(totals)


def _count(
    block: Block, totals: Values, start: ir.Value, stop: ir.Value, words: Callable[[ir.Value], Iterator[ir.Value]]
) -> None:
    """Write the loop over k: add the bits of ``words(k)``, one vector per row and panel vector, to ``totals``."""
    v, b = block.v, block.b
    if TARGET.word_counts:
        with cgutils.for_range(b, stop, start=start) as loop:
            for total, word in zip(flat(totals), words(loop.index), strict=True):
                b.store(b.add(b.load(total), v.popcount(word)), total)
        return
    zero, count_bytes = v.constant(I8, 0, REGISTER), v.nibble_count if TARGET.form == NIBBLES else v.popcount
    counts = flat(block.variables(zero))
    with cgutils.for_range_slice(b, start, stop, v.index(BYTE_CHUNK)) as (chunk, _):
        end = v.offset(chunk, BYTE_CHUNK)
        for count in counts:
            b.store(zero, count)
        with cgutils.for_range(b, b.select(b.icmp_signed("<", end, stop), end, stop), start=chunk) as loop:
            for count, word in zip(counts, words(loop.index), strict=True):
                b.store(b.add(b.load(count), count_bytes(b.bitcast(word, zero.type))), count)
        for total, count in zip(flat(totals), counts, strict=True):
            b.store(b.add(b.load(total), _sum_of_bytes(block, b.load(count))), total)


def _sum_of_bytes(block: Block, bytes_: ir.Value) -> ir.Value:
    v, b = block.v, block.b
    low, half = v.constant(I32, 0x00FF00FF), v.constant(I32, 0xFFFF)
    fours = b.bitcast(bytes_, low.type)
    twos = b.add(b.and_(fours, low), b.and_(b.lshr(fours, v.constant(I32, 8)), low))
    return b.add(b.and_(twos, half), b.lshr(twos, v.constant(I32, 16)))


def binary_depthwise(block: Block) -> Values:
    """Count differing bits of 32 channels at once, in 16-bit lanes."""
    v, b = block.v, block.b
    bools, wide, lanes = ir.VectorType(I1, PANEL), ir.VectorType(I16, PANEL), TARGET.lanes
    counts = [v.variable(v.constant(I16, 0, PANEL)) for _ in block.rows]
    with cgutils.for_range(b, block.a["count"]) as loop:
        tap = block.tap(loop.index)
        weight = v.scalar(v.offset(block.a["panel"], loop.index, 4), I32)
        for row, count in zip(block.rows, counts, strict=True):
            differ = b.bitcast(b.xor(v.scalar(b.add(row, tap), I32), weight), bools)
            b.store(b.add(b.load(count), b.zext(differ, wide)), count)
    parts = [ir.Constant(ir.VectorType(I32, lanes), [*range(i, i + lanes)]) for i in range(0, PANEL, lanes)]
    return [
        [b.zext(b.shuffle_vector(b.load(count), v.constant(I16, 0, PANEL), part), part.type) for part in parts]
        for count in counts
    ]


def real(block: Block, lanewise: bool) -> Values:
    """Accumulate float32 products, one rounding each, k ascending; then add the bias.

    Inputs are broadcast or, ``lanewise``, one per output channel.
    """
    v, b = block.v, block.b
    sums = block.variables(v.constant(F32, 0.0))
    with cgutils.for_range(b, block.a["count"]) as loop:
        tap, weights = block.tap(loop.index), block.weights(loop.index, F32)
        for row, line in zip(block.rows, sums, strict=True):
            place = b.add(row, tap)
            x = block.line(place, F32) if lanewise else [v.splat(v.scalar(place, F32))] * VECTORS
            for i, total in enumerate(line):
                b.store(v.fma(x[i], weights[i], b.load(total)), total)
    return block.with_line(b.fadd, block.read(sums), "bias")
