"""Where and when binariness is enforced: StoMPP's masks, and annealed hardness."""

from frostbit.progression.anneal import Anneal
from frostbit.progression.base import Progression
from frostbit.progression.blockade import Blockade
from frostbit.progression.moments import ACTIONS, MOMENTS_AT, Moments, step_sizes
from frostbit.progression.ordering import ORDERINGS, order_by
from frostbit.progression.pace import PACES
from frostbit.progression.schedules import SCHEDULES
from frostbit.progression.stompp import StoMPP
from frostbit.progression.windows import ORDERS, Window

__all__ = [
    "ACTIONS",
    "MOMENTS_AT",
    "ORDERINGS",
    "ORDERS",
    "PACES",
    "SCHEDULES",
    "Anneal",
    "Blockade",
    "Moments",
    "Progression",
    "StoMPP",
    "Window",
    "order_by",
    "step_sizes",
]
