"""What would happen: the controller's own decisions under a load, on virtual time.

The step of the controller, the autoscaler's decision and policies are the real ones; processes,
requests and time are simulated. Half an hour takes a second.
"""

from remora.simulation.given import Service, Simulated
from remora.simulation.load import Load, Requests, read_load
from remora.simulation.result import Result, Sample
from remora.simulation.world import simulate

__all__ = [
    "Load",
    "Requests",
    "Result",
    "Sample",
    "Service",
    "Simulated",
    "read_load",
    "simulate",
]
