"""The walk over all blocks of one layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from frostbit_runtime.kernels import products, results
from frostbit_runtime.kernels.block import (
    BINARY,
    BINARY_DEPTHWISE,
    REAL,
    REAL_DEPTHWISE,
    REALS,
    SIGNS,
    SUMS,
    Block,
    Values,
)
from frostbit_runtime.kernels.simd import LINE, TARGET, emitted, kernel
from llvmlite import ir
from numba import types
from numba.core import cgutils

GRAIN = TARGET.rows * TARGET.real_rows  # whole blocks of either kind
CHUNK = -(-256 // GRAIN) * GRAIN  # rows that reuse a panel while it is near; their inputs fit the second-level cache


def _write(block: Block) -> None:
    """Write a loop for each kind of product and each form of result: within one, nothing is left to decide."""

    def binary(product: Callable[[Block], Values]) -> None:
        def body(store: Callable[[Block, Values], None]) -> None:
            store(block, results.sums(block, product(block)))

        stores = {SUMS: results.store, REALS: results.store_converted, SIGNS: results.store_signs}
        cases = {mode: partial(_blocks, block, TARGET.rows, partial(body, store)) for mode, store in stores.items()}
        block.switch("mode", cases)

    def real(lanewise: bool) -> None:
        _blocks(block, TARGET.real_rows, lambda: results.store_reals(block, products.real(block, lanewise)))

    cases = {
        BINARY: lambda: binary(products.binary),
        BINARY_DEPTHWISE: lambda: binary(products.binary_depthwise),
        REAL: lambda: real(lanewise=False),
        REAL_DEPTHWISE: lambda: real(lanewise=True),
    }
    block.switch("kind", cases)


def _blocks(block: Block, rows: int, write: Callable[[], None]) -> None:
    """Write loops over blocks of ``rows`` rows, and over the single ones that remain."""
    b, v, first, last = block.b, block.v, block.a["first"], block.a["last"]
    rest = b.sub(last, b.srem(b.sub(last, first), v.index(rows)))
    for start, stop, step in ((first, rest, rows), (rest, last, 1)):
        with cgutils.for_range_slice(b, start, stop, v.index(step)) as (row, _):
            block.begin(row, step)
            write()


@emitted
def _sweep(typing_context: Any, arguments: Any) -> Any:
    """Compute rows [first, last) of one panel; ``arguments`` is a tuple in the order of `block.FIELDS`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        _write(Block(builder, cgutils.unpack_tuple(builder, values[0])))
        return context.get_dummy_value()

    return types.void(arguments), generate


@kernel
def walk(
    kind: int,
    mode: int,
    relu: int,
    x: Any,
    rows: Any,
    taps: Any,
    pairs: int,
    panels: Any,
    spans: Any,
    classes: Any,
    corrections: Any,
    bias: Any,
    scale: Any,
    shift: Any,
    at: Any,
    flip: Any,
    residual: Any,
    out: Any,
    pitch: int,
    first_row: int,
    last_row: int,
    first_panel: int,
    last_panel: int,
) -> None:
    """Compute rows [first_row, last_row) of panels [first_panel, last_panel).

    Args:
        kind: of product (see `block`).
        mode: what is stored (see `block`).
        relu: 0 or 1.
        x: input, flat; int32 stands for any four bytes, here and in ``panels`` and ``out``.
        rows: int64 [R], bytes (see `block.FIELDS`, here and below).
        taps: int32 [taps], bytes.
        pairs: how many taps lead to two words.
        panels: int32 [P, ...].
        spans: int64 [P, 3]: bytes to the group's input, first output channel, number of channels.
        classes: int32 [R], bytes.
        corrections: int32 [classes, P * 32].
        bias: float32 [P * 32].
        scale: float32 [P * 32].
        shift: float32 [P * 32].
        at: int32 [P * 32].
        flip: uint32 [P].
        residual: float32, flat, as large as out, or empty.
        out: int32, flat.
        pitch: elements of a row of ``out``.
        first_row: output row to begin with.
        last_row: output row to end before.
        first_panel: panel to begin with.
        last_panel: panel to end before.
    """
    origin = np.int64(x.ctypes.data)
    target = np.int64(out.ctypes.data)
    other = np.int64(residual.ctypes.data) if residual.size > 0 else np.int64(0)
    for chunk in range(first_row, last_row, CHUNK):
        stop = min(chunk + CHUNK, last_row)
        for panel in range(first_panel, last_panel):
            group, channel, width = spans[panel]
            place = 4 * (panel if mode == SIGNS else channel)
            _sweep(
                (
                    kind,
                    mode,
                    chunk,
                    stop,
                    origin + group,
                    np.int64(rows.ctypes.data),
                    np.int64(taps.ctypes.data),
                    taps.size,
                    pairs,
                    np.int64(panels.ctypes.data) + panel * panels.strides[0],
                    np.int64(classes.ctypes.data),
                    np.int64(corrections.ctypes.data) + LINE * panel,
                    np.int64(bias.ctypes.data) + LINE * panel,
                    np.int64(scale.ctypes.data) + LINE * panel,
                    np.int64(shift.ctypes.data) + LINE * panel,
                    np.int64(at.ctypes.data) + LINE * panel,
                    np.int64(flip[panel]),
                    other + place if other != 0 else np.int64(0),
                    target + place,
                    4 * pitch,
                    width,
                    relu,
                )
            )
