"""Frostbit: train deep binary neural networks in PyTorch and ship them at one bit."""

from frostbit import data, keep, models, nn, optim, progression, quantizers
from frostbit.binarize import Report, binarize_
from frostbit.counting import Summary, summary
from frostbit.errors import RunError, UsageError
from frostbit.evaluation import clip_latents_, hardened, is_hard, recalibrate_
from frostbit.progression import Anneal, Progression, StoMPP
from frostbit.units import Unit, binary_parameters, frozen_fraction, units

__version__ = "0.1.0"

__all__ = [
    "Anneal",
    "Progression",
    "Report",
    "RunError",
    "StoMPP",
    "Summary",
    "Unit",
    "UsageError",
    "binarize_",
    "binary_parameters",
    "clip_latents_",
    "data",
    "frozen_fraction",
    "hardened",
    "is_hard",
    "keep",
    "models",
    "nn",
    "optim",
    "progression",
    "quantizers",
    "recalibrate_",
    "summary",
    "units",
]
