"""The recorder: what happens inside each unit while a network trains, every few optimizer steps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from frostbit.errors import UsageError
from frostbit.signals import DeadChannels, GradientNorms, Scaler, SignFlips, gather, share_of, took_step, whole
from frostbit.units import units

if TYPE_CHECKING:
    import pandas

#: what is recorded of a unit, in the order of the columns
FIGURES = ("frozen", "flips", "gradient", "saturated", "positive", "dead")


class Recorder:
    """Records six figures of each unit every ``every`` optimizer steps that were really taken.

    ==============  ==================================================================================================
    ``frozen``      share of frozen entries after the step, as `frostbit.frozen_fraction` gives it
    ``flips``       share of the binary weights whose sign differs from the one at the last record, at first from the
                    one at construction (`frostbit.signals.SignFlips`)
    ``gradient``    norm of the loss gradient at the outputs of the unit's layers in this step, 0 where nothing
                    arrives (`frostbit.signals.GradientNorms`)
    ``saturated``   share of latent weights with |w| ≥ 1 after the step; NaN without latents (direct or real weights)
    ``positive``    share of binary weights of sign +1 after the step
    ``dead``        share of the binary input's channels that have one sign over all samples and positions of this
                    step (`frostbit.signals.DeadChannels`)
    ==============  ==================================================================================================

    A figure that a unit does not have is NaN. Nothing that is trained changes: weights are the same bit for bit with
    and without it. In a run over several processes it sees its own process's share of the batch.

    Args:
        model: a converted model.
        every: optimizer steps between two records, at least 1.

    Raises:
        UsageError: ``every`` is no whole number of at least 1.
    """

    def __init__(self, model: nn.Module, every: int = 10) -> None:
        if not isinstance(every, int) or every < 1:
            raise UsageError(f"every must be a whole number of steps of at least 1, found {every!r}")
        self.model = model
        self.every = every
        self.steps_taken = 0
        #: names of the units in order of depth
        self.units = [unit.name for unit in units(model)]
        self._flips = SignFlips(model)
        self._listeners: tuple[GradientNorms, DeadChannels] | None = None
        self._handle: RemovableHandle | None = None
        self._steps: list[int] = []
        self._rows: list[Tensor] = []  # one [units, figures] for each step

    def attach(self, optimizer: Optimizer, scaler: Scaler | None = None) -> Self:
        """Let the optimizer's steps drive the records; attach it after the progression, which it reads.

        Args:
            optimizer: any torch optimizer. A step that mixed precision skips does not count.
            scaler: the ``GradScaler``, if there is one: gradients are then those of the unscaled loss.

        Returns:
            The recorder itself.

        Raises:
            RuntimeError: it is attached already.
        """
        if self._handle is not None:
            raise RuntimeError("this recorder is attached to an optimizer already: detach() it first")
        self._listeners = GradientNorms(self.model, scaler), DeadChannels(self.model, scaler)
        self._handle = optimizer.register_step_post_hook(self._on_step)
        self._listen_if_due()
        return self

    def detach(self) -> None:
        """Undo `attach`; what was recorded stays."""
        if self._handle is not None:
            self._handle.remove()
        for listener in self._listeners or ():
            listener.close()
        self._handle = self._listeners = None

    def _on_step(self, optimizer: Optimizer, *_: Any) -> None:
        if took_step(optimizer):
            self.steps_taken += 1
            if self.steps_taken % self.every == 0:
                self._record()
            self._listen_if_due()

    def _listen_if_due(self) -> None:
        if (self.steps_taken + 1) % self.every == 0:
            for listener in self._listeners or ():
                listener.listen()

    @torch.no_grad()
    def _record(self) -> None:
        assert self._listeners is not None
        gradient, dead = (listener.take() for listener in self._listeners)
        frozen, saturated = [], []
        for unit in units(self.model):
            shares = [quantizer.frozen_share for quantizer in unit.quantizers()]
            frozen.append(sum(shares) / len(shares))
            latents = [whole(weight) for _, weight, quantizer in unit.weight_quantizers() if not quantizer.direct]
            saturated.append(share_of([weight.abs() >= 1 for weight in latents]))
        flips = self._flips.take()
        positive = gather([share_of(signs) for signs in self._flips.signs])
        columns = torch.tensor(frozen), flips, gradient, gather(saturated), positive, dead
        self._steps.append(self.steps_taken)
        self._rows.append(torch.stack(columns, 1))

    def __len__(self) -> int:
        return len(self._steps)

    def columns(self) -> dict[str, Any]:
        """Return the record in long form, a row for each (step, unit): ``step, depth, unit`` and the six figures.

        Returns:
            ``{column: values}``, the figures as float32 tensors, the others as lists; ``depth`` counts units from 0.
        """
        count = len(self.units)
        rows = torch.cat(self._rows) if self._rows else torch.empty(0, len(FIGURES))
        return {
            "step": [step for step in self._steps for _ in range(count)],
            "depth": list(range(count)) * len(self),
            "unit": self.units * len(self),
            **dict(zip(FIGURES, rows.unbind(1), strict=True)),
        }

    def to_pandas(self) -> pandas.DataFrame:
        """Return the record as a table of pandas; see `columns`."""
        import pandas

        return pandas.DataFrame({name: _plain(values) for name, values in self.columns().items()})

    def to_parquet(self) -> bytes:
        """Return the record as a parquet file; see `columns`."""
        import pyarrow
        from pyarrow import parquet

        kinds = {"step": pyarrow.int32(), "depth": pyarrow.int16(), "unit": pyarrow.string()}
        columns = {
            name: pyarrow.array(_plain(values), kinds.get(name, pyarrow.float32()))
            for name, values in self.columns().items()
        }
        columns["unit"] = columns["unit"].dictionary_encode()
        file = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), file, compression="zstd")
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the record as its ending says: ``.parquet``, for ``pandas.read_parquet(path)``, or ``.csv``.

        Raises:
            UsageError: another ending.
        """
        path = Path(path)
        if path.suffix not in (".parquet", ".csv"):
            raise UsageError(f"a record is saved as .parquet or .csv, found {path.name!r}")
        if path.suffix == ".csv":
            self.to_pandas().to_csv(path, index=False)
        else:
            path.write_bytes(self.to_parquet())

    def state_dict(self) -> dict[str, Any]:
        """Return the record and what a resumed run needs to end with the same one."""
        return {
            "every": self.every,
            "units": list(self.units),
            "steps_taken": self.steps_taken,
            "steps": list(self._steps),
            "rows": torch.stack(self._rows) if self._rows else None,
            **self._flips.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was saved.

        Raises:
            UsageError: ``state`` is of a network with other units, or of another interval.
        """
        for name, mine in (("units", self.units), ("every", self.every)):
            if state[name] != mine:
                raise UsageError(f"this recorder has {name}={mine!r}, the saved one {state[name]!r}")
        self.steps_taken = state["steps_taken"]
        self._steps = list(state["steps"])
        self._rows = [] if state["rows"] is None else list(state["rows"].unbind(0))
        self._flips.load_state_dict(state)
        for listener in self._listeners or ():
            listener.close()
        self._listen_if_due()


def _plain(values: Any) -> Any:
    return values.numpy() if isinstance(values, Tensor) else values
