"""A block: a few output rows times one panel of 32 output channels, from its products to its finished values.

One output row is one pixel of one image. Lanes are output channels, an input word (or float) is broadcast to all of
them, so nothing is ever summed across a register and K is padded to 32 bits only. A block's sums live in registers
through the loop over k, and are corrected, scaled, compared and stored from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from frostbit_runtime.kernels.simd import F32, I1, I8, I16, I32, I64, LINE, NIBBLES, PAIRS, PANEL, TARGET, Vectors
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BINARY, BINARY_DEPTHWISE, REAL, REAL_DEPTHWISE = range(4)  # kinds of product
SUMS, REALS, SIGNS = range(3)  # what is stored: int32 sums, float32, words of signs

# A sweep's arguments, all int64; addresses unless said otherwise.
FIELDS = (
    "kind",  # of product
    "mode",  # what is stored
    "first",  # output row to begin with
    "last",  # output row to end before
    "x",  # the input's first element, of this panel's group
    "rows",  # int64 per row: bytes from x to the row's first element
    "taps",  # int32 per tap: bytes from a row's first element to its k-th
    "count",  # number of taps
    "pairs",  # how many of them come first and lead to two words each (PAIRS)
    "panel",  # weights, [count, 32] words or floats; depthwise binary: [count] words, a bit per channel
    "classes",  # int32 per row: bytes to the row's line of corrections
    "corrections",  # int32 [32], the sum if no bit differed; zero padding makes it depend on the row
    "bias",  # float32 [32], these three
    "scale",
    "shift",
    "at",  # int32 [32], thresholds
    "flip",  # a word, not an address: bits to invert
    "residual",  # float32, laid out as out; 0: none
    "out",  # this panel's place in row 0
    "pitch",  # bytes from one row to the next in out
    "width",  # channels of this panel that exist
    "relu",  # 0 or 1
)
VECTORS = PANEL // TARGET.lanes
REGISTER = 4 * TARGET.lanes
BYTE_CHUNK = 63 if TARGET.form == NIBBLES else 31  # counts of at most 4 or 8 that fit in a byte together
Values = list[list[ir.Value]]  # one register per output row and vector of the panel


class _Sweep:
    """Writes the code of all blocks of one panel."""

    def __init__(self, builder: ir.IRBuilder, arguments: list[ir.Value]) -> None:
        self.b, self.v = builder, Vectors(builder)
        self.a = dict(zip(FIELDS, arguments, strict=True))
        self.row = self.a["first"]  # first output row of the block that is being written
        self.rows: list[ir.Value] = []  # where each row's window begins

    def write(self) -> None:
        """Write a loop for each kind of product and each form of result: within one, nothing is left to decide."""
        forms: dict[int, Callable[[Values], None]] = {
            SUMS: self._store,
            REALS: lambda sums: self._finish(self._converted(sums)),
            SIGNS: self._threshold,
        }

        def binary(products: Callable[[], Values]) -> None:
            cases = {
                mode: partial(self._blocks, TARGET.rows, lambda form=form: form(self._sums(products())))
                for mode, form in forms.items()
            }
            self._switch("mode", cases)

        def real(lanewise: bool) -> None:
            self._blocks(TARGET.real_rows, lambda: self._finish(self._real(lanewise)))

        self._switch(
            "kind",
            {
                BINARY: lambda: binary(self._binary),
                BINARY_DEPTHWISE: lambda: binary(self._binary_depthwise),
                REAL: lambda: real(lanewise=False),
                REAL_DEPTHWISE: lambda: real(lanewise=True),
            },
        )

    def _blocks(self, rows: int, write: Callable[[], None]) -> None:
        """Write loops over blocks of ``rows`` rows, and over the single ones that remain."""
        v, b, first, last = self.v, self.b, self.a["first"], self.a["last"]
        rest = b.sub(last, b.srem(b.sub(last, first), v.index(rows)))
        for start, stop, step in ((first, rest, rows), (rest, last, 1)):
            with cgutils.for_range_slice(b, start, stop, v.index(step)) as (row, _):
                self.row, table = row, v.offset(self.a["rows"], row, 8)
                self.rows = [b.add(self.a["x"], v.scalar(v.offset(table, 8 * p), I64)) for p in range(step)]
                write()

    # Products

    def _binary(self) -> Values:
        """Count differing bits: pairs of words by their carries, single words as they are."""
        v, b, panel, pairs = self.v, self.b, self.a["panel"], self.a["pairs"]
        totals = self._variables(v.constant(I32, 0))
        if TARGET.form == PAIRS:
            parities = self._variables(v.constant(I32, 0))

            def carries(k: ir.Value) -> Iterator[ir.Value]:
                tap = self._tap(k)
                first, folded = (self._line(v.offset(panel, v.offset(v.offset(k, k), n), LINE), I32) for n in (0, 1))
                for row, line in zip(self.rows, parities, strict=True):
                    x, both = (v.splat(v.scalar(v.offset(b.add(row, tap), 4 * n), I32)) for n in (0, 1))
                    for i, parity in enumerate(line):
                        before = b.load(parity)
                        after = v.parity(before, both, folded[i])
                        b.store(after, parity)
                        yield v.carry(before, b.xor(x, first[i]), after)

            self._count(totals, v.index(0), pairs, carries)
            for total, parity in zip(self._flat(totals), self._flat(parities), strict=True):
                carried = b.shl(b.load(total), v.constant(I32, 1))
                b.store(b.add(carried, v.popcount(b.load(parity))), total)

        def words(k: ir.Value) -> Iterator[ir.Value]:
            tap = self._tap(k)
            weights = self._line(v.offset(panel, v.offset(k, pairs), LINE), I32)
            for row in self.rows:
                x = v.splat(v.scalar(b.add(row, tap), I32))
                for weight in weights:
                    yield b.xor(x, weight)

        self._count(totals, pairs, self.a["count"], words)
        return self._read(totals)

    def _count(
        self, totals: Values, start: ir.Value, stop: ir.Value, words: Callable[[ir.Value], Iterator[ir.Value]]
    ) -> None:
        """Write the loop over k: add the bits of ``words(k)``, one vector per row and panel vector, to ``totals``."""
        v, b = self.v, self.b
        if TARGET.word_counts:
            with cgutils.for_range(b, stop, start=start) as loop:
                for total, word in zip(self._flat(totals), words(loop.index), strict=True):
                    b.store(b.add(b.load(total), v.popcount(word)), total)
            return
        zero, count_bytes = v.constant(I8, 0, REGISTER), v.nibble_count if TARGET.form == NIBBLES else v.popcount
        counts = self._flat(self._variables(zero))
        with cgutils.for_range_slice(b, start, stop, v.index(BYTE_CHUNK)) as (chunk, _):
            end = v.offset(chunk, BYTE_CHUNK)
            for count in counts:
                b.store(zero, count)
            with cgutils.for_range(b, b.select(b.icmp_signed("<", end, stop), end, stop), start=chunk) as loop:
                for count, word in zip(counts, words(loop.index), strict=True):
                    b.store(b.add(b.load(count), count_bytes(b.bitcast(word, zero.type))), count)
            for total, count in zip(self._flat(totals), counts, strict=True):
                b.store(b.add(b.load(total), self._sum_of_bytes(b.load(count))), total)

    def _sum_of_bytes(self, bytes_: ir.Value) -> ir.Value:
        v, b = self.v, self.b
        low, half = v.constant(I32, 0x00FF00FF), v.constant(I32, 0xFFFF)
        fours = b.bitcast(bytes_, low.type)
        twos = b.add(b.and_(fours, low), b.and_(b.lshr(fours, v.constant(I32, 8)), low))
        return b.add(b.and_(twos, half), b.lshr(twos, v.constant(I32, 16)))

    def _binary_depthwise(self) -> Values:
        """Count differing bits of 32 channels at once, in 16-bit lanes."""
        v, b = self.v, self.b
        bools, wide, lanes = ir.VectorType(I1, PANEL), ir.VectorType(I16, PANEL), TARGET.lanes
        counts = [v.variable(v.constant(I16, 0, PANEL)) for _ in self.rows]
        with cgutils.for_range(b, self.a["count"]) as loop:
            tap = self._tap(loop.index)
            weight = v.scalar(v.offset(self.a["panel"], loop.index, 4), I32)
            for row, count in zip(self.rows, counts, strict=True):
                differ = b.bitcast(b.xor(v.scalar(b.add(row, tap), I32), weight), bools)
                b.store(b.add(b.load(count), b.zext(differ, wide)), count)
        parts = [ir.Constant(ir.VectorType(I32, lanes), [*range(i, i + lanes)]) for i in range(0, PANEL, lanes)]
        return [
            [b.zext(b.shuffle_vector(b.load(count), v.constant(I16, 0, PANEL), part), part.type) for part in parts]
            for count in counts
        ]

    def _real(self, lanewise: bool) -> Values:
        """Accumulate float32 products, one rounding each, k ascending; then add the bias.

        Inputs are broadcast or, ``lanewise``, one per output channel.
        """
        v, b = self.v, self.b
        sums = self._variables(v.constant(F32, 0.0))
        with cgutils.for_range(b, self.a["count"]) as loop:
            tap = self._tap(loop.index)
            weights = self._line(v.offset(self.a["panel"], loop.index, LINE), F32)
            for row, line in zip(self.rows, sums, strict=True):
                place = b.add(row, tap)
                x = self._line(place, F32) if lanewise else [v.splat(v.scalar(place, F32))] * VECTORS
                for i, total in enumerate(line):
                    b.store(v.fma(x[i], weights[i], b.load(total)), total)
        return self._with_line(b.fadd, self._read(sums), "bias")

    # What follows them

    def _sums(self, counts: Values) -> Values:
        """Turn counts into sums: the row's correction minus twice the count."""
        v, b = self.v, self.b
        one = v.constant(I32, 1)
        classes = v.offset(self.a["classes"], self.row, 4)
        sums = []
        for p, line in enumerate(counts):
            entry = b.sext(v.scalar(v.offset(classes, 4 * p), I32), I64)
            starts = self._line(b.add(self.a["corrections"], entry), I32)
            sums.append([b.sub(start, b.shl(count, one)) for start, count in zip(starts, line, strict=True)])
        return sums

    def _converted(self, sums: Values) -> Values:
        reals = ir.VectorType(F32, TARGET.lanes)
        return [[self.b.sitofp(each, reals) for each in line] for line in sums]

    def _finish(self, values: Values) -> None:
        """Scale, shift, residual, ReLU: one rounding each. Absent ones are ×1 and + -0.0, which change no value."""
        v, b = self.v, self.b
        values = self._with_line(b.fadd, self._with_line(b.fmul, values, "scale"), "shift")
        places = [[v.variable(each) for each in line] for line in values]
        with b.if_then(self._set("residual")):
            for p, line in enumerate(places):
                others = self._line(self._whole_line(self._row("residual", p)), F32)
                for place, other in zip(line, others, strict=True):
                    b.store(b.fadd(b.load(place), other), place)
        with b.if_then(self._set("relu")):
            zero = v.constant(F32, 0.0)
            for place in self._flat(places):
                value = b.load(place)
                b.store(b.select(b.fcmp_ordered(">", value, zero), value, zero), place)
        self._store(self._read(places))

    def _threshold(self, sums: Values) -> None:
        v, b = self.v, self.b
        at = self._line(self.a["at"], I32)
        for p, line in enumerate(sums):
            word = v.bits([b.icmp_signed(">=", each, least) for each, least in zip(line, at, strict=True)])
            v.store(b.xor(word, b.trunc(self.a["flip"], I32)), self._row("out", p))

    def _store(self, values: Values) -> None:
        with self.b.if_else(self._partial(), likely=False) as (few, whole):
            with whole:
                self._store_lines(values, [self._row("out", p) for p in range(len(values))])
            with few:
                for p, line in enumerate(values):
                    scratch = self._scratch()
                    self._store_lines([line], [scratch])
                    self._copy(scratch, self._row("out", p))

    # Small parts

    def _tap(self, k: ir.Value) -> ir.Value:
        return self.b.sext(self.v.scalar(self.v.offset(self.a["taps"], k, 4), I32), I64)

    def _line(self, address: ir.Value, element: ir.Type) -> list[ir.Value]:
        """Load 32 elements."""
        return [self.v.load(self.v.offset(address, REGISTER * i), element) for i in range(VECTORS)]

    def _store_lines(self, values: Values, addresses: list[ir.Value]) -> None:
        for line, address in zip(values, addresses, strict=True):
            for i, each in enumerate(line):
                self.v.store(each, self.v.offset(address, REGISTER * i))

    def _with_line(self, operation: Callable[..., ir.Value], values: Values, name: str) -> Values:
        """Combine every row with one value per channel."""
        line = self._line(self.a[name], F32)
        return [[operation(each, other) for each, other in zip(row, line, strict=True)] for row in values]

    def _row(self, name: str, p: int) -> ir.Value:
        row = self.v.offset(self.row, p)
        return self.b.add(self.a[name], self.b.mul(self.a["pitch"], row))

    def _set(self, name: str) -> ir.Value:
        return self.b.icmp_signed("!=", self.a[name], self.v.index(0))

    def _partial(self) -> ir.Value:
        return self.b.icmp_signed("<", self.a["width"], self.v.index(PANEL))

    def _scratch(self) -> ir.Value:
        return self.b.ptrtoint(cgutils.alloca_once(self.b, ir.ArrayType(F32, PANEL)), I64)

    def _whole_line(self, address: ir.Value) -> ir.Value:
        """Return where 32 elements may be read: ``address``, or a copy where fewer channels exist."""
        scratch = self._scratch()
        with self.b.if_then(self._partial(), likely=False):
            self._copy(address, scratch)
        return self.b.select(self._partial(), scratch, address)

    def _copy(self, source: ir.Value, target: ir.Value) -> None:
        with cgutils.for_range(self.b, self.a["width"]) as loop:
            step = self.b.mul(loop.index, self.v.index(4))
            self.v.store(self.v.scalar(self.b.add(source, step), I32), self.b.add(target, step))

    def _variables(self, initial: ir.Value) -> Values:
        return [[self.v.variable(initial) for _ in range(VECTORS)] for _ in self.rows]

    def _read(self, variables: Values) -> Values:
        return [[self.b.load(each) for each in line] for line in variables]

    def _flat(self, values: Values) -> list[ir.Value]:
        return [each for line in values for each in line]

    def _switch(self, field: str, cases: dict[int, Callable[[], None]]) -> None:
        end = self.b.append_basic_block(f"{field}.end")
        switch = self.b.switch(self.a[field], end)
        for value, write in cases.items():
            block = self.b.append_basic_block(f"{field}.{value}")
            switch.add_case(self.v.index(value), block)
            self.b.position_at_end(block)
            write()
            self.b.branch(end)
        self.b.position_at_end(end)


@intrinsic
def sweep(typing_context: Any, arguments: Any) -> Any:
    """Compute rows [first, last) of one panel; ``arguments`` is a tuple in the order of FIELDS."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        _Sweep(builder, cgutils.unpack_tuple(builder, values[0])).write()
        return context.get_dummy_value()

    return types.void(arguments), generate
