"""Drift: whether the images of a line are still like those that a detector knows as normal."""

from ensemblead.monitoring.monitor import DriftMonitor
from ensemblead.monitoring.state import AlarmRate, DriftState

__all__ = ["AlarmRate", "DriftMonitor", "DriftState"]
