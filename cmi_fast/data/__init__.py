"""Logs of plays: read, split by day, counted."""

from cmi_fast.data.histories import Histories
from cmi_fast.data.interactions import Interactions
from cmi_fast.data.split import Split
from cmi_fast.data.statistics import Statistics, statistics

__all__ = ["Histories", "Interactions", "Split", "Statistics", "statistics"]
