"""How weights move: flip optimizers for ±1 weights, others for latent ones, and one optimizer made of several."""

from frostbit.optim.base import FlipOptimizer
from frostbit.optim.case import CaseOptimizer
from frostbit.optim.muon import Muon
from frostbit.optim.pairing import check_pairing
from frostbit.optim.prox_connect import ProxConnect
from frostbit.optim.rules import CEMA, SGDAT, Bop, Bop2ndOrder
from frostbit.optim.schedule import Curve, HyperSchedule, cosine, exponential, linear, staircase

__all__ = [
    "CEMA",
    "SGDAT",
    "Bop",
    "Bop2ndOrder",
    "CaseOptimizer",
    "Curve",
    "FlipOptimizer",
    "HyperSchedule",
    "Muon",
    "ProxConnect",
    "check_pairing",
    "cosine",
    "exponential",
    "linear",
    "staircase",
]
