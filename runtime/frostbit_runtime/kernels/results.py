"""What follows the loop over k: counts become sums, sums become floats or signs, and all is stored."""

from __future__ import annotations

from frostbit_runtime.kernels.block import REGISTER, Block, Values, flat
from frostbit_runtime.kernels.simd import F32, I32, TARGET
from llvmlite import ir


def sums(block: Block, counts: Values) -> Values:
    """Return the row's correction minus twice the count."""
    v, b = block.v, block.b
    one = v.constant(I32, 1)
    classes = v.offset(block.a["classes"], block.row, 4)
    found = []
    for p, line in enumerate(counts):
        entry = b.sext(v.scalar(v.offset(classes, 4 * p), I32), ir.IntType(64))
        starts = block.line(b.add(block.a["corrections"], entry), I32)
        found.append([b.sub(start, b.shl(count, one)) for start, count in zip(starts, line, strict=True)])
    return found


def store(block: Block, values: Values) -> None:
    """Store 32 channels, or those that exist."""
    with block.b.if_else(block.partial(), likely=False) as (few, all_):
        with all_:
            for p, line in enumerate(values):
                _store_line(block, line, block.place("out", p))
        with few:
            for p, line in enumerate(values):
                scratch = block.scratch()
                _store_line(block, line, scratch)
                block.copy(scratch, block.place("out", p))


def store_signs(block: Block, values: Values) -> None:
    """Store the signs (value >= at) != flip, one word per row."""
    v, b = block.v, block.b
    at = block.line(block.a["at"], I32)
    for p, line in enumerate(values):
        word = v.bits([b.icmp_signed(">=", each, least) for each, least in zip(line, at, strict=True)])
        v.store(b.xor(word, b.trunc(block.a["flip"], I32)), block.place("out", p))


def store_converted(block: Block, values: Values) -> None:
    """Store int32 sums as `store_reals`."""
    reals = ir.VectorType(F32, TARGET.lanes)
    store_reals(block, [[block.b.sitofp(each, reals) for each in line] for line in values])


def store_reals(block: Block, values: Values) -> None:
    """Scale, shift, residual, ReLU, one rounding each; absent ones are ×1 and + -0.0, which change no value."""
    v, b = block.v, block.b
    values = block.with_line(b.fadd, block.with_line(b.fmul, values, "scale"), "shift")
    places = [[v.variable(each) for each in line] for line in values]
    with b.if_then(block.has("residual")):
        for p, line in enumerate(places):
            others = block.line(_readable(block, block.place("residual", p)), F32)
            for place, other in zip(line, others, strict=True):
                b.store(b.fadd(b.load(place), other), place)
    with b.if_then(block.has("relu")):
        zero = v.constant(F32, 0.0)
        for place in flat(places):
            value = b.load(place)
            b.store(b.select(b.fcmp_ordered(">", value, zero), value, zero), place)
    store(block, block.read(places))


def _store_line(block: Block, line: list[ir.Value], address: ir.Value) -> None:
    for i, each in enumerate(line):
        block.v.store(each, block.v.offset(address, REGISTER * i))


def _readable(block: Block, address: ir.Value) -> ir.Value:
    """Return where 32 elements may be read: ``address``, or a copy where fewer channels exist."""
    scratch = block.scratch()
    with block.b.if_then(block.partial(), likely=False):
        block.copy(address, scratch)
    return block.b.select(block.partial(), scratch, address)
