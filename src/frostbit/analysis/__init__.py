"""What happened inside a run: figures, tables and a page that shows them."""

from frostbit.analysis.page import Section, page
from frostbit.analysis.tables import ArmSummary, differences_by_value, markdown, summarize

__all__ = ["ArmSummary", "Section", "differences_by_value", "markdown", "page", "summarize"]
