"""What happens inside a run: a recorder, and figures, tables and pages that show it."""

from frostbit.analysis.page import Section, page
from frostbit.analysis.recorder import Recorder
from frostbit.analysis.tables import ArmSummary, differences_by_value, markdown, summarize

__all__ = ["ArmSummary", "Recorder", "Section", "differences_by_value", "markdown", "page", "summarize"]
