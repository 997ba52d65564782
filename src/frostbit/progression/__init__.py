"""Where and when binariness is enforced: StoMPP's masks, and annealed hardness."""

from frostbit.progression.anneal import Anneal
from frostbit.progression.base import Progression, Window
from frostbit.progression.schedules import SCHEDULES
from frostbit.progression.stompp import StoMPP

__all__ = ["SCHEDULES", "Anneal", "Progression", "StoMPP", "Window"]
