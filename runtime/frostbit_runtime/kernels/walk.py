"""The walk over all blocks of one layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from frostbit_runtime.kernels.blocks import SIGNS, block
from frostbit_runtime.kernels.simd import LINE, TARGET, kernel

ROWS = TARGET.rows
_block = block(ROWS)
_single = block(1)
CHUNK = 36 * ROWS  # rows that reuse a panel while it is near; their inputs stay in the second-level cache


@kernel
def walk(
    kind: int,
    mode: int,
    relu: int,
    x: Any,
    rows: Any,
    taps: Any,
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
        kind: of product; mode: what is stored; relu: 0 or 1 (see `blocks`).
        x: input, flat; int32 stands for any four bytes, here and in ``panels`` and ``out``.
        rows: int64 [R], taps: int32 [K], classes: int32 [R], in bytes (see `blocks.FIELDS`).
        panels: int32 [P, ...].
        spans: int64 [P, 3]: bytes to the group's input, first output channel, number of channels.
        corrections: int32 [classes, P * 32].
        bias, scale, shift: float32 [P * 32]; at: int32 [P * 32]; flip: uint32 [P].
        residual: float32, flat, as large as out, or empty.
        out: int32, flat.
        pitch: elements of a row of ``out``.
    """
    origin = np.int64(x.ctypes.data)
    target = np.int64(out.ctypes.data)
    other = np.int64(residual.ctypes.data) if residual.size > 0 else np.int64(0)
    for chunk in range(first_row, last_row, CHUNK):
        stop = min(chunk + CHUNK, last_row)
        for panel in range(first_panel, last_panel):
            group, channel, width = spans[panel]
            row = chunk
            while row < stop:
                place = 4 * (row * pitch + (panel if mode == SIGNS else channel))
                arguments = (
                    kind,
                    origin + group,
                    np.int64(rows.ctypes.data) + 8 * row,
                    np.int64(taps.ctypes.data),
                    taps.size,
                    np.int64(panels.ctypes.data) + panel * panels.strides[0],
                    np.int64(classes.ctypes.data) + 4 * row,
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
                    mode,
                    relu,
                )
                if stop - row >= ROWS:
                    _block(arguments)
                    row += ROWS
                else:
                    _single(arguments)
                    row += 1
