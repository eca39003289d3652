"""Reasoning traffic: who sends requests, when, and how long they are.

`validate` turns a config's mapping into a `WorkloadSpec`; `generate` turns that and a seed into a `Workload`. Read `spec.py`
for what can be described, `arrivals.py` and `lengths.py` for the laws behind it; `data/` has the catalogue of both.
"""

from simulator.workload.base import MeanTokens
from simulator.workload.build import Barrier, ClosedLoop, OpenLoop, Workload, generate
from simulator.workload.catalogue import length_names, preset_names
from simulator.workload.lengths import mean_tokens
from simulator.workload.sessions import Sessions, SessionsSpec
from simulator.workload.shared import SharedPrompts
from simulator.workload.spec import BarrierSpec, ClosedSpec, OpenSpec, ReplaySpec, WorkloadSpec, one_line, validate
from simulator.workload.traces import Trace, read_meta, read_trace

__all__ = [
    "Barrier",
    "BarrierSpec",
    "ClosedLoop",
    "ClosedSpec",
    "MeanTokens",
    "OpenLoop",
    "OpenSpec",
    "ReplaySpec",
    "Sessions",
    "SessionsSpec",
    "SharedPrompts",
    "Trace",
    "Workload",
    "WorkloadSpec",
    "generate",
    "length_names",
    "mean_tokens",
    "one_line",
    "preset_names",
    "read_meta",
    "read_trace",
    "validate",
]
