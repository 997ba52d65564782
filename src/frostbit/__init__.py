"""Frostbit: train deep binary neural networks in PyTorch and ship them at one bit."""

from importlib import import_module
from types import ModuleType

from frostbit import analysis, data, keep, models, nn, optim, progression, quantizers
from frostbit.binarize import binarize_
from frostbit.conversion import Report
from frostbit.errors import RunError, UsageError
from frostbit.evaluation import clip_latents_, hardened, hardening_distance, is_hard, recalibrate_
from frostbit.progression import Anneal, Blockade, Moments, Progression, StoMPP, order_by
from frostbit.summarize import Summary, summary
from frostbit.units import Unit, binary_parameters, frozen_fraction, units

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    if name == "deploy":  # it brings custom operators and torch.export: only for those who ask
        return import_module("frostbit.deploy")
    raise AttributeError(f"module 'frostbit' has no attribute {name!r}")


__all__ = [
    "Anneal",
    "Blockade",
    "Moments",
    "Progression",
    "Report",
    "RunError",
    "StoMPP",
    "Summary",
    "Unit",
    "UsageError",
    "analysis",
    "binarize_",
    "binary_parameters",
    "clip_latents_",
    "data",
    "deploy",
    "frozen_fraction",
    "hardened",
    "hardening_distance",
    "is_hard",
    "keep",
    "models",
    "nn",
    "optim",
    "order_by",
    "progression",
    "quantizers",
    "recalibrate_",
    "summary",
    "units",
]
