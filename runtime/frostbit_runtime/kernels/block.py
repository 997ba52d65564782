"""A block: a few output rows times one panel of 32 output channels, whose sums all live in registers.

One output row is one pixel of one image. Lanes are output channels, an input word (or float) is broadcast to all of
them, so nothing is ever summed across a register and K is padded to 32 bits only. `products` writes the loop over k,
`results` what follows it, `walk` the loops over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from frostbit_runtime.kernels.simd import F32, I32, I64, LINE, PANEL, TARGET, Vectors
from llvmlite import ir
from numba.core import cgutils

BINARY, BINARY_DEPTHWISE, REAL, REAL_DEPTHWISE = range(4)  # kinds of product
SUMS, REALS, SIGNS = range(3)  # what is stored: int32 sums, float32, words of signs

# Arguments, all int64; addresses unless said otherwise.
FIELDS = (
    "kind",  # of product
    "mode",  # what is stored
    "first",  # output row to begin with
    "last",  # output row to end before
    "x",  # the input's first element, of this panel's group
    "rows",  # int64 per row: bytes from x to the row's first element
    "taps",  # int32 per tap: bytes from a row's first element to its k-th
    "count",  # number of taps
    "pairs",  # how many of them come first and lead to two words each (see `products`)
    "panel",  # weights, [words or floats, 32]; depthwise binary: [count] words, a bit per channel
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
Values = list[list[ir.Value]]  # one register per output row and vector of the panel


class Block:
    """What the code of one block is written with.

    Attributes:
        b: the builder; v: vector operations on it.
        a: the arguments by name.
        row: number of the first output row.
        rows: where each row's window begins.
    """

    def __init__(self, builder: ir.IRBuilder, arguments: list[ir.Value]) -> None:
        self.b, self.v = builder, Vectors(builder)
        self.a = dict(zip(FIELDS, arguments, strict=True))
        self.row: ir.Value = self.a["first"]
        self.rows: list[ir.Value] = []

    def begin(self, row: ir.Value, rows: int) -> None:
        """Move on to the block of ``rows`` rows from ``row``."""
        table = self.v.offset(self.a["rows"], row, 8)
        self.row = row
        self.rows = [self.b.add(self.a["x"], self.v.scalar(self.v.offset(table, 8 * p), I64)) for p in range(rows)]

    def tap(self, k: ir.Value) -> ir.Value:
        """Return the bytes to the k-th tap."""
        return self.b.sext(self.v.scalar(self.v.offset(self.a["taps"], k, 4), I32), I64)

    def line(self, address: ir.Value, element: ir.Type) -> list[ir.Value]:
        """Load 32 elements."""
        return [self.v.load(self.v.offset(address, REGISTER * i), element) for i in range(VECTORS)]

    def weights(self, k: ir.Value, element: ir.Type) -> list[ir.Value]:
        """Load the k-th line of the panel."""
        return self.line(self.v.offset(self.a["panel"], k, LINE), element)

    def with_line(self, operation: Callable[..., ir.Value], values: Values, name: str) -> Values:
        """Combine every row with an argument of one float per channel."""
        line = self.line(self.a[name], F32)
        return [[operation(each, other) for each, other in zip(row, line, strict=True)] for row in values]

    def place(self, name: str, p: int) -> ir.Value:
        """Return the address of the block's p-th row in ``out`` or ``residual``."""
        return self.b.add(self.a[name], self.b.mul(self.a["pitch"], self.v.offset(self.row, p)))

    def has(self, name: str) -> ir.Value:
        """Return whether an argument is not 0."""
        return self.b.icmp_signed("!=", self.a[name], self.v.index(0))

    def variables(self, initial: ir.Value) -> Values:
        """Return a variable for every register of sums."""
        return [[self.v.variable(initial) for _ in range(VECTORS)] for _ in self.rows]

    def read(self, variables: Values) -> Values:
        """Return their values."""
        return [[self.b.load(each) for each in line] for line in variables]

    def switch(self, name: str, cases: Mapping[int, Callable[[], None]]) -> None:
        """Write one case per value of an argument."""
        end = self.b.append_basic_block(f"{name}.end")
        switch = self.b.switch(self.a[name], end)
        for value, write in cases.items():
            start = self.b.append_basic_block(f"{name}.{value}")
            switch.add_case(self.v.index(value), start)
            self.b.position_at_end(start)
            write()
            self.b.branch(end)
        self.b.position_at_end(end)

    def partial(self) -> ir.Value:
        """Return whether fewer than 32 channels exist in this panel."""
        return self.b.icmp_signed("<", self.a["width"], self.v.index(PANEL))

    def scratch(self) -> ir.Value:
        """Return the address of 32 elements on the stack."""
        return self.b.ptrtoint(cgutils.alloca_once(self.b, ir.ArrayType(F32, PANEL)), I64)

    def copy(self, source: ir.Value, target: ir.Value) -> None:
        """Copy one element per channel that exists."""
        with cgutils.for_range(self.b, self.a["width"]) as loop:
            step = self.b.mul(loop.index, self.v.index(4))
            self.v.store(self.v.scalar(self.b.add(source, step), I32), self.b.add(target, step))


def flat(values: Values) -> list[ir.Value]:
    """Return all registers in one list."""
    return [each for line in values for each in line]
