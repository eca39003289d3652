"""How many GPUs? A discrete-event simulation of LLM serving, from measured step times.

```python
from simulator import load
from simulator.reporting.summary import summary
from simulator.simulate import simulate

config = load("conf/simulate.yaml", ["cluster.num_replicas=8"])
result = simulate(config.scenario())
print(summary(result, config.slo)["p99_tpot_ms"])
```

Three files to open first:

1. `scheduler.py`: vLLM's rules, who runs in the next step and who is preempted. The heart.
2. `replica.py`: one engine as a SimPy process, and why a thousand steps cost as much as one.
3. `features.py`: what a step is made of, one definition for the fit and for `cost.py`, which says what it takes.

Around them: `workload/` draws the traffic, `cluster.py` and `routers/` spread it, `metrics.py` says what clients saw, `plan.py` asks for
the smallest number of GPUs, `config.py` reads a YAML file into all of that. The folders say what else there is, and each of them which
file to open first: `step/` and `prefix/` are the engine's inner workings, `drafts/` and `policies/` what may be added to it, `clients/`
and `fleet/` what stands before and beneath it, `artifacts/` what was measured, `planning/`, `comparing/` and `reporting/` what is made
of runs.

Nouns are exported here; `simulate`, `plan` and `summary` are functions in the modules of their names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.artifacts.artifact import Artifact
    from simulator.artifacts.models import find
    from simulator.config import Config, load
    from simulator.cost import CostModel
    from simulator.engine import EngineConfig
    from simulator.errors import InvariantError, UserError
    from simulator.features import StepFeatures
    from simulator.metrics import judge, latencies, request_frame
    from simulator.planning.slo import Slo, Slos
    from simulator.request import RequestTable
    from simulator.simulate import Result, Scenario
    from simulator.workload import Barrier, ClosedLoop, OpenLoop, Workload, generate

_HOME = {
    "artifacts.artifact": ("Artifact",),
    "config": ("Config", "load"),
    "cost": ("CostModel",),
    "engine": ("EngineConfig",),
    "errors": ("InvariantError", "UserError"),
    "features": ("StepFeatures",),
    "metrics": ("judge", "latencies", "request_frame"),
    "artifacts.models": ("find",),
    "request": ("RequestTable",),
    "simulate": ("Result", "Scenario"),
    "planning.slo": ("Slo", "Slos"),
    "workload": ("Barrier", "ClosedLoop", "OpenLoop", "Workload", "generate"),
}

__all__ = [
    "Artifact",
    "Barrier",
    "ClosedLoop",
    "Config",
    "CostModel",
    "EngineConfig",
    "InvariantError",
    "OpenLoop",
    "RequestTable",
    "Result",
    "Scenario",
    "Slo",
    "Slos",
    "StepFeatures",
    "UserError",
    "Workload",
    "find",
    "generate",
    "judge",
    "latencies",
    "load",
    "request_frame",
]


def __getattr__(name: str) -> Any:
    # On demand: reading an artifact, as the profiler does, needs no simulator.
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"simulator.{module}"), name)
    raise AttributeError(f"module 'simulator' has no attribute {name!r}")
