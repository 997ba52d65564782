"""A block: a few output rows times one panel of 32 output channels, from its products to its finished values.

One output row is one pixel of one image. Lanes are output channels, an input word (or float) is broadcast to all of
them, so nothing is ever summed across a register and K is padded to 32 bits only. A block's sums live in registers
through the loop over k, and are corrected, scaled, compared and stored from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frostbit_runtime.kernels.simd import F32, I8, I16, I32, I64, LINE, PANEL, TARGET, Vectors
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BINARY, BINARY_DEPTHWISE, REAL, REAL_DEPTHWISE = range(4)  # kinds of product
SUMS, REALS, SIGNS = range(3)  # what is stored: int32 sums, float32, words of signs

# A block's arguments, all int64; addresses unless said otherwise.
FIELDS = (
    "kind",  # of product
    "x",  # the input's first element, of this panel's group
    "rows",  # int64 per row: bytes from x to the row's first element
    "taps",  # int32 per k: bytes from a row's first element to its k-th
    "count",  # number of k
    "panel",  # weights, [count, 32] words or floats; depthwise binary: [count] words, one bit per channel
    "classes",  # int32 per row: bytes to the row's line of corrections
    "corrections",  # int32 [32], the sum if no bit differed; zero padding makes it depend on the row
    "bias",  # float32 [32], these three
    "scale",
    "shift",
    "at",  # int32 [32], thresholds
    "flip",  # a word, not an address: bits to invert
    "residual",  # float32, laid out as out; 0: none
    "out",
    "pitch",  # bytes from one row to the next in out
    "width",  # channels of this panel that exist
    "mode",  # what is stored
    "relu",  # 0 or 1
)
VECTORS = PANEL // TARGET.lanes

REGISTER = 4 * TARGET.lanes
BYTE_CHUNK = 31  # words whose counts of at most 8 bits per byte fit in a byte
Grid = list[list[ir.Value]]


class _Block:
    """Writes the code of one block."""

    def __init__(self, builder: ir.IRBuilder, arguments: list[ir.Value], rows: int) -> None:
        self.b, self.v, self.count = builder, Vectors(builder), rows
        self.a = dict(zip(FIELDS, arguments, strict=True))
        self.cells = [(p, i) for p in range(rows) for i in range(VECTORS)]
        self.sums = self._grid(I32)
        self.reals = self._grid(F32)
        x, table = self.a["x"], self.a["rows"]
        self.rows = [builder.add(x, self.v.scalar(self.v.offset(table, 8 * p), I64)) for p in range(rows)]

    def write(self) -> None:
        """Write products, then what follows them."""
        products = {
            BINARY: self._binary,
            BINARY_DEPTHWISE: self._binary_depthwise,
            REAL: lambda: self._real(self._broadcast(F32)),
            REAL_DEPTHWISE: lambda: self._real(self._lanewise),
        }
        self._switch("kind", products)
        self._switch("mode", {SUMS: lambda: self._store(self.sums), REALS: self._reals, SIGNS: self._signs})

    # Products

    def _binary(self) -> None:
        """Count differing bits; the sum is the correction minus twice that."""
        v, b = self.v, self.b
        element = I32 if TARGET.word_counts else I8
        counts = self._grid(element)

        def step(count: ir.Value, x: ir.Value, weight: ir.Value) -> ir.Value:
            differ = b.bitcast(b.xor(x, weight), count.type)
            return b.add(count, v.popcount(differ))

        if TARGET.word_counts:
            self._products(counts, I32, self._broadcast(I32), step, v.index(0), self.a["count"])
            self._correct(lambda p, i: b.load(counts[p][i]))
            return
        totals = self._grid(I32)
        low, byte, half = (v.constant(I32, value) for value in (0x00FF00FF, 8, 16))
        with cgutils.for_range_slice(b, v.index(0), self.a["count"], v.index(BYTE_CHUNK)) as (start, _):
            end = v.offset(start, BYTE_CHUNK)
            end = b.select(b.icmp_signed("<", end, self.a["count"]), end, self.a["count"])
            for p, i in self.cells:
                b.store(v.constant(I8, 0, 4 * TARGET.lanes), counts[p][i])
            self._products(counts, I32, self._broadcast(I32), step, start, end)
            for p, i in self.cells:
                four = b.bitcast(b.load(counts[p][i]), low.type)
                two = b.add(b.and_(four, low), b.and_(b.lshr(four, byte), low))
                one = b.add(b.and_(two, v.constant(I32, 0xFFFF)), b.lshr(two, half))
                b.store(b.add(b.load(totals[p][i]), one), totals[p][i])
        self._correct(lambda p, i: b.load(totals[p][i]))

    def _binary_depthwise(self) -> None:
        """Count differing bits of 32 channels at once, in 16-bit lanes."""
        v, b = self.v, self.b
        counts = [v.variable(v.constant(I16, 0, PANEL)) for _ in self.rows]
        with cgutils.for_range(b, self.a["count"]) as loop:
            tap = self._tap(loop.index)
            weight = v.scalar(v.offset(self.a["panel"], loop.index, 4), I32)
            for row, count in zip(self.rows, counts, strict=True):
                differ = b.bitcast(b.xor(v.scalar(b.add(row, tap), I32), weight), ir.VectorType(ir.IntType(1), PANEL))
                b.store(b.add(b.load(count), b.zext(differ, ir.VectorType(I16, PANEL))), count)

        def lanes(p: int, i: int) -> ir.Value:
            chosen = ir.Constant(ir.VectorType(I32, TARGET.lanes), [i * TARGET.lanes + j for j in range(TARGET.lanes)])
            part = b.shuffle_vector(b.load(counts[p]), v.constant(I16, 0, PANEL), chosen)
            return b.zext(part, ir.VectorType(I32, TARGET.lanes))

        self._correct(lanes)

    def _real(self, fetch: Callable[[ir.Value, int], ir.Value]) -> None:
        """Accumulate float32 products, one rounding each, k ascending; then add the bias."""
        v, b = self.v, self.b
        self._products(self.reals, F32, fetch, lambda sum_, x, w: v.fma(x, w, sum_), v.index(0), self.a["count"])
        for p, i in self.cells:
            b.store(b.fadd(b.load(self.reals[p][i]), self._line("bias", F32, i)), self.reals[p][i])

    def _products(
        self,
        sums: Grid,
        weight: ir.Type,
        fetch: Callable[[ir.Value, int], ir.Value],
        step: Callable[[ir.Value, ir.Value, ir.Value], ir.Value],
        start: ir.Value,
        stop: ir.Value,
    ) -> None:
        """Write the loop over k: ``sums = step(sums, inputs, weights)``."""
        v, b = self.v, self.b
        with cgutils.for_range(b, stop, start=start) as loop:
            tap = self._tap(loop.index)
            line = v.offset(self.a["panel"], loop.index, LINE)
            weights = [v.load(v.offset(line, REGISTER * i), weight) for i in range(VECTORS)]
            for p, row in enumerate(self.rows):
                address = b.add(row, tap)
                x = None
                for i in range(VECTORS):
                    x = fetch(address, i) if x is None or fetch == self._lanewise else x
                    b.store(step(b.load(sums[p][i]), x, weights[i]), sums[p][i])

    def _tap(self, k: ir.Value) -> ir.Value:
        return self.b.sext(self.v.scalar(self.v.offset(self.a["taps"], k, 4), I32), I64)

    def _broadcast(self, element: ir.Type) -> Callable[[ir.Value, int], ir.Value]:
        return lambda address, i: self.v.splat(self.v.scalar(address, element))

    def _lanewise(self, address: ir.Value, i: int) -> ir.Value:
        return self.v.load(self.v.offset(address, REGISTER * i), F32)

    def _correct(self, counts: Callable[[int, int], ir.Value]) -> None:
        v, b = self.v, self.b
        for p, i in self.cells:
            line = b.sext(v.scalar(v.offset(self.a["classes"], 4 * p), I32), I64)
            start = v.load(v.offset(b.add(self.a["corrections"], line), REGISTER * i), I32)
            twice = b.shl(counts(p, i), v.constant(I32, 1))
            b.store(b.sub(start, twice), self.sums[p][i])

    # What follows them

    def _reals(self) -> None:
        """Scale, shift, residual, ReLU: one rounding each. Absent ones are ×1 and + -0.0, which change no value."""
        v, b, a = self.v, self.b, self.a
        with b.if_then(b.icmp_signed("<=", a["kind"], v.index(BINARY_DEPTHWISE))):
            for p, i in self.cells:
                b.store(b.sitofp(b.load(self.sums[p][i]), ir.VectorType(F32, TARGET.lanes)), self.reals[p][i])
        for p, i in self.cells:
            scaled = b.fmul(b.load(self.reals[p][i]), self._line("scale", F32, i))
            b.store(b.fadd(scaled, self._line("shift", F32, i)), self.reals[p][i])
        with b.if_then(b.icmp_signed("!=", a["residual"], v.index(0))):
            for p in range(self.count):
                place = self._whole_line(v.offset(a["residual"], self._pitch(p)), read=True)
                for i in range(VECTORS):
                    other = v.load(v.offset(place, REGISTER * i), F32)
                    b.store(b.fadd(b.load(self.reals[p][i]), other), self.reals[p][i])
        with b.if_then(b.icmp_signed("!=", a["relu"], v.index(0))):
            zero = v.constant(F32, 0.0)
            for p, i in self.cells:
                y = b.load(self.reals[p][i])
                b.store(b.select(b.fcmp_ordered(">", y, zero), y, zero), self.reals[p][i])
        self._store(self.reals)

    def _signs(self) -> None:
        v, b = self.v, self.b
        for p in range(self.count):
            masks = [b.icmp_signed(">=", b.load(self.sums[p][i]), self._line("at", I32, i)) for i in range(VECTORS)]
            word = b.xor(v.bits(masks), b.trunc(self.a["flip"], I32))
            v.store(word, v.offset(self.a["out"], self._pitch(p)))

    def _store(self, grid: Grid) -> None:
        v = self.v
        for p in range(self.count):
            out = v.offset(self.a["out"], self._pitch(p))
            place = self._whole_line(out)
            for i in range(VECTORS):
                v.store(self.b.load(grid[p][i]), v.offset(place, REGISTER * i))
            with self.b.if_then(self._partial(), likely=False):
                self._copy(place, out)

    # Small parts

    def _partial(self) -> ir.Value:
        return self.b.icmp_signed("<", self.a["width"], self.v.index(PANEL))

    def _whole_line(self, address: ir.Value, read: bool = False) -> ir.Value:
        """Return where 32 lanes may be read or written: ``address``, or a scratch line where fewer channels exist."""
        b = self.b
        scratch = b.ptrtoint(cgutils.alloca_once(b, ir.ArrayType(F32, PANEL)), I64)
        if read:
            with b.if_then(self._partial(), likely=False):
                self._copy(address, scratch)
        return b.select(self._partial(), scratch, address)

    def _copy(self, source: ir.Value, target: ir.Value) -> None:
        with cgutils.for_range(self.b, self.a["width"]) as loop:
            step = self.b.mul(loop.index, self.v.index(4))
            self.v.store(self.v.scalar(self.b.add(source, step), I32), self.b.add(target, step))

    def _pitch(self, p: int) -> ir.Value:
        return self.b.mul(self.a["pitch"], self.v.index(p))

    def _line(self, name: str, element: ir.Type, i: int) -> ir.Value:
        return self.v.load(self.v.offset(self.a[name], REGISTER * i), element)

    def _grid(self, element: ir.Type) -> Grid:
        lanes = TARGET.lanes * 32 // element.width if element == I8 else TARGET.lanes
        zero = self.v.constant(element, 0, lanes)
        return [[self.v.variable(zero) for _ in range(VECTORS)] for _ in range(self.count)]

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


def block(rows: int) -> Any:
    """Return the function ``block(arguments)`` for kernels: ``rows`` rows, arguments a tuple in the order of FIELDS."""

    @intrinsic
    def compute(typing_context: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            _Block(builder, cgutils.unpack_tuple(builder, values[0]), rows).write()
            return context.get_dummy_value()

        return types.void(arguments), generate

    return compute
