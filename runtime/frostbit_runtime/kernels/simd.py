"""Vectors for the kernels: what the machine has, and the few operations on registers, written in LLVM's language.

Numba's own loops leave the choice of instructions to LLVM's vectorizer, which does not keep a block of sums in
registers. The kernels therefore write their innermost loops as vector code; LLVM still lowers every operation for
the machine at hand (one popcount instruction with AVX-512 VPOPCNTDQ or NEON, byte shuffles elsewhere).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

PANEL = 32  # output channels that one block of sums spans: one word of sign bits
LINE = 4 * PANEL  # bytes of one element per channel of a panel
I1, I8, I16, I32, I64, F32 = (
    ir.IntType(1),
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.FloatType(),
)
PLAIN, PAIRS, NIBBLES = range(3)  # forms of words, see `products`
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Target:
    """What the kernels need to know of the machine.

    Attributes:
        name: of the vector instructions.
        lanes: 32-bit lanes of one register.
        rows: output rows whose counts stay in registers together, as many as fit beside weights and inputs.
        real_rows: the same for float sums (7×2 of 32 registers, 2×4 of 16; one row more spills).
        word_counts: whether one instruction counts the bits of 32-bit lanes; else counts gather in bytes, and are
            added up before they overflow.
        form: in which words are best counted (see `products`): PAIRS where any function of three bits is one
            instruction, NIBBLES where a table of 16 bytes is the way to count, else PLAIN.
    """

    name: str
    lanes: int
    rows: int
    real_rows: int
    word_counts: bool
    form: int


def target_of(features: str) -> Target:
    """Return the target for LLVM's feature string (``"+avx2,-avx512f,..."``)."""
    has = {feature[1:] for feature in features.split(",") if feature.startswith("+")}
    if {"avx512f", "avx512vpopcntdq"} <= has:
        return Target("AVX-512 VPOPCNTDQ", 16, 4, 7, word_counts=True, form=PAIRS)
    if {"avx512f", "avx512bw"} <= has:
        return Target("AVX-512BW", 16, 4, 7, word_counts=False, form=PAIRS)
    if "avx2" in has:
        return Target("AVX2", 8, 2, 2, word_counts=False, form=NIBBLES)
    return Target("128 bits", 4, 2, 2, word_counts=False, form=PLAIN)


TARGET = target_of(cpu_target.target_context.codegen().magic_tuple()[2])

# Numba's disk cache looks at a kernel's own file only; vector code and constants that it uses lie in others.
_FILES = sorted(Path(__file__).parents[1].rglob("*.py"))
_SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()


def kernel(function: Function) -> Function:
    """Compile ``function`` on first use, without the interpreter's lock, and cache it on disk for this machine."""
    compiled: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    key = getattr(compiled._cache, "_index_key", None)
    if key is not None:  # else this numba keeps its keys elsewhere, and the cache looks at one file only
        compiled._cache._index_key = lambda signature, codegen: (*key(signature, codegen), _SOURCES)
    return cast(Function, compiled)


def emitted(function: Callable[..., Any]) -> Any:
    """Make a function for kernels from one that returns its signature and what writes its code."""
    return numba.extending.intrinsic(function)


class Vectors:
    """Operations on vectors of `TARGET`'s width while a kernel is being compiled.

    Addresses are int64 values; loads and stores need no alignment beyond the element's.
    """

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def index(self, value: int) -> ir.Constant:
        """Return an int64 constant."""
        return ir.Constant(I64, value)

    def constant(self, element: ir.Type, value: float, lanes: int = TARGET.lanes) -> ir.Constant:
        """Return a vector of one value."""
        return ir.Constant(ir.VectorType(element, lanes), [value] * lanes)

    def offset(self, address: ir.Value, count: ir.Value | int, size: int = 1) -> ir.Value:
        """Return address + count * size."""
        step = self.index(count * size) if isinstance(count, int) else self.builder.mul(count, self.index(size))
        return self.builder.add(address, step)

    def scalar(self, address: ir.Value, element: ir.Type) -> ir.Value:
        """Load one element."""
        return self.builder.load(self.builder.inttoptr(address, element.as_pointer()))

    def load(self, address: ir.Value, element: ir.Type, lanes: int = TARGET.lanes) -> ir.Value:
        """Load ``lanes`` elements."""
        pointer = self.builder.inttoptr(address, ir.VectorType(element, lanes).as_pointer())
        return self.builder.load(pointer, align=4)

    def store(self, value: ir.Value, address: ir.Value) -> None:
        """Store a vector or a scalar."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=4)

    def splat(self, scalar: ir.Value, lanes: int = TARGET.lanes) -> ir.Value:
        """Return a vector with ``scalar`` in every lane."""
        none = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
        first = self.builder.insert_element(none, scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def popcount(self, value: ir.Value) -> ir.Value:
        """Count the bits of every lane."""
        return self._call("ctpop", value)

    def nibble_count(self, value: ir.Value) -> ir.Value:
        """Count the bits of every byte below 16 (AVX2 only)."""
        table = ir.Constant(value.type, [i.bit_count() for i in range(16)] * 2)
        signature = ir.FunctionType(value.type, [value.type] * 2)
        function = cgutils.get_or_insert_function(self.builder.module, signature, "llvm.x86.avx2.pshuf.b")
        return self.builder.call(function, [table, value])

    def parity(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Return the sum bits of a + b + c (AVX-512 only)."""
        return self._three(0b10010110, a, b, c)

    def carry(self, a: ir.Value, b: ir.Value, parity: ir.Value) -> ir.Value:
        """Return the carry bits of a + b + c, given their sum bits instead of c (AVX-512 only)."""
        return self._three(0b11010100, a, b, parity)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """Return a*b + c, rounded once."""
        return self._call("fma", a, b, c)

    def bits(self, masks: list[ir.Value]) -> ir.Value:
        """Join vectors of booleans into one word, the first lane lowest."""
        while len(masks) > 1:
            both = ir.Constant(ir.VectorType(I32, 2 * masks[0].type.count), list(range(2 * masks[0].type.count)))
            masks = [self.builder.shuffle_vector(a, b, both) for a, b in zip(masks[::2], masks[1::2], strict=True)]
        return self.builder.bitcast(masks[0], ir.IntType(masks[0].type.count))

    def variable(self, initial: ir.Value) -> ir.Value:
        """Return a variable; LLVM turns it into a register."""
        place = cgutils.alloca_once(self.builder, initial.type)
        self.builder.store(initial, place)
        return place

    def _three(self, table: int, *values: ir.Value) -> ir.Value:
        """Look every bit up in a table of eight: bit 4a + 2b + c of ``table``."""
        kind = values[0].type
        signature = ir.FunctionType(kind, [kind, kind, kind, I32])
        function = cgutils.get_or_insert_function(self.builder.module, signature, "llvm.x86.avx512.pternlog.d.512")
        return self.builder.call(function, [*values, ir.Constant(I32, table)])

    def _call(self, name: str, *values: ir.Value) -> ir.Value:
        kind = values[0].type
        letter = "f" if kind.element == F32 else "i"
        width = 32 if kind.element == F32 else kind.element.width
        signature = ir.FunctionType(kind, [kind] * len(values))
        full = f"llvm.{name}.v{kind.count}{letter}{width}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, full), values)
