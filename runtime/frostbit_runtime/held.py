"""A value while the network runs, in whichever layouts its readers ask for."""

from __future__ import annotations

import numpy as np

from frostbit_runtime import kernels
from frostbit_runtime.program import KINDS, Array, Shape


class Held:
    """One value in one or more layouts; a layout is made when it is first asked for, and kept.

    * ``plain``: logical order, the dtype of its kind; what `frostbit_runtime.reference` reads and writes.
    * ``last``: channels, axis 1, moved to the end; numbers of any dtype. The layout of the kernels.
    * ``words``: signs of ``last``, packed along the channels.
    * ``rows``: signs of ``plain``, packed along its last axis, as dense layers read them.

    Up to two axes ``last`` is ``plain`` and ``words`` is ``rows``.

    Args:
        kind: see :data:`frostbit_runtime.program.KINDS`.
        shape: logical shape.
        layout: name of the layout that is there.
        array: the value in it.
        source: for signs, instead of an array: what they are the signs of; let go when the first layout is made.
    """

    __slots__ = ("_layouts", "_source", "kind", "shape")

    def __init__(
        self, kind: str, shape: Shape, layout: str = "plain", array: Array | None = None, *, source: Held | None = None
    ) -> None:
        self.kind, self.shape, self._source = kind, shape, source
        self._layouts = {} if array is None else {layout: array}

    def has(self, layout: str) -> bool:
        """Whether a layout costs nothing."""
        return layout in self._layouts or (self._source is not None and self._source.has(layout))

    @property
    def unpacked(self) -> Held | None:
        """The numbers in logical order that these are the signs of, if nothing has asked for the signs yet."""
        source = self._source
        return source if source is not None and source.kind == "real" and source.has("plain") else None

    @property
    def flat(self) -> bool:
        """Whether there is nothing to move: at most two axes."""
        return len(self.shape) <= 2

    def _keep(self, layout: str, array: Array) -> Array:
        self._source = None
        self._layouts[layout] = array
        return array

    def plain(self) -> Array:
        """Return the value in logical order."""
        if "plain" in self._layouts:
            return self._layouts["plain"]
        if "rows" in self._layouts:
            array = kernels.unpack(self._layouts["rows"], self.shape[-1])
        elif self._source is not None and (self.flat or not self._source.has("last")):
            array = np.where(self._source.plain() >= 0, np.int8(1), np.int8(-1))
        else:
            last = self.last()
            array = last if self.flat else np.moveaxis(last, -1, 1)
        return self._keep("plain", np.ascontiguousarray(array, dtype=KINDS[self.kind]))

    def last(self) -> Array:
        """Return the value with its channels last."""
        if "last" in self._layouts:
            return self._layouts["last"]
        if self._source is not None and self._source.has("last"):
            return self._keep("last", np.where(self._source.last() >= 0, np.int8(1), np.int8(-1)))
        if "words" in self._layouts:
            return self._keep("last", kernels.unpack(self._layouts["words"], self.shape[1]))
        plain = self.plain()
        return plain if self.flat else self._keep("last", np.ascontiguousarray(np.moveaxis(plain, 1, -1)))

    def real(self) -> Array:
        """Return the value with its channels last, as float32."""
        last = self.last()
        return last if last.dtype == np.float32 else last.astype(np.float32)

    def words(self) -> Array:
        """Return signs packed along the channels."""
        if self.flat:
            return self.rows()
        if "words" not in self._layouts:
            source = self._source
            words = kernels.pack_bool(self.last() > 0) if source is None else kernels.pack(source.real())
            self._keep("words", words)
        return self._layouts["words"]

    def rows(self) -> Array:
        """Return signs packed along the last axis."""
        if "rows" not in self._layouts:
            source = self._source
            if source is not None and source.kind == "real":
                self._keep("rows", kernels.pack(source.plain()))
            else:
                self._keep("rows", kernels.pack_bool(self.plain() > 0))
        return self._layouts["rows"]

    def signs(self, last: bool = True) -> Array:
        """Return what a kernel of signs reads: words, or float32 that nothing packed yet, which it packs itself.

        Args:
            last: along the channels, as for :meth:`words`; else along the last axis, as for :meth:`rows`.
        """
        if self._source is not None and self._source.kind == "real":
            return self._source.last() if last else self._source.plain()
        return self.words() if last else self.rows()
