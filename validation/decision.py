"""The decision itself: the highest rate at which one replica keeps the SLOs, predicted, and found on the GPU at rates around it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.config import Config
from simulator.errors import UserError
from simulator.planning.sizing import Demand
from simulator.planning.slo import Slo
from simulator.workload import generate, read_meta
from simulator.workload.base import Spec
from validation.intervals import CONFIDENCE
from validation.protocol import Latencies, Protocol, measured

Float64 = NDArray[np.float64]

PLAN, TRACES, RESULT = "decision.json", "traces", "result.json"
AS_LONG_AS_IT_IS_S = 86400
"""Of a prepared run all requests are sent."""
FEWEST_REQUESTS = 40
"""Of a run: at lower rates there is no percentile to tell."""
HALVINGS = 7
"""Of the range in which the rate is looked for: to 1 % of it."""


class Options(Spec):
    """`decision` of conf/decision.yaml."""

    measure_s: float
    """Length of the window whose requests are judged."""
    warmup_s: float
    """Before it; the run begins with its load under way."""
    rates: list[float]
    """Those to record, as shares of the predicted one."""
    num_seeds: int
    """Traffics over which the prediction is averaged; the first is the one that is recorded."""


@dataclass(frozen=True)
class Edge:
    """The rate at which the worst SLO is just kept. `bound`: at most, or at least, the rates tried; empty: between them."""

    rate: float
    bound: str = ""


def edge(rates: Sequence[float], excess: Sequence[float]) -> Edge:
    """Where percentile / limit passes 1, with straight lines between the logarithms at the rates (ascending).

    Percentiles of runs wander, so the first rate above the limit that no later rate contradicts counts: the excess is made to rise
    by pooling neighbours that fall (isotonic regression).
    """
    from scipy.optimize import isotonic_regression

    level = np.asarray(isotonic_regression(np.log(excess)).x)
    if level[0] >= 0:
        return Edge(rates[0], "at most ")
    if level[-1] <= 0:
        return Edge(rates[-1], "at least ")
    above = int(np.argmax(level > 0))
    share = -level[above - 1] / (level[above] - level[above - 1])
    return Edge(float(rates[above - 1] + share * (rates[above] - rates[above - 1])))


def predict(config: Config, options: Options, out: Path) -> str:
    """Finds the rate, writes the runs around it for the recorder, and the predictions; returns what to say.

    Raises:
        UserError: no rate keeps the SLOs, or the folder cannot be written.
    """
    protocol = Protocol(config, options.measure_s, options.warmup_s)
    seeds = range(config.seed, config.seed + options.num_seeds)
    predicted = _highest_rate(protocol, seeds)
    # Recorded are the requests of one seed: the rates lie around where those pass the limit.
    center = predicted if options.num_seeds == 1 else _highest_rate(protocol, seeds[:1])
    rates = [float(f"{center * share:.3g}") for share in sorted(options.rates)]
    runs = [protocol.run(rate, config.seed) for rate in rates]
    simulated = [protocol.simulated(run) for run in runs]
    same_requests = edge(rates, [each.excess(protocol.slos) for each in simulated])
    by_seed = [_highest_rate(protocol, seeds[index : index + 1]) for index in range(len(seeds))]
    document = {
        "slos": {slo.name: slo.limit_s for slo in protocol.slos},
        "predicted_rate": predicted,
        "predicted_rate_of_these_requests": same_requests.rate,
        "predicted_rate_by_seed": by_seed,
        "config": config.model_dump(mode="json", exclude={"out", "plan", "run"}),
        "measure_s": options.measure_s,
        "warmup_s": options.warmup_s,
        "runs": [
            {"name": f"rate-{run.rate:g}", "rate": run.rate, "window_s": run.window_s, "predicted_s": each.percentiles(protocol.slos)}
            for run, each in zip(runs, simulated, strict=True)
        ],
    }
    try:
        for run in runs:
            run.write(out / "workloads" / f"rate-{run.rate:g}")
        (out / PLAN).write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from None
    return _predicted_text(document, config, out)


def _highest_rate(protocol: Protocol, seeds: range) -> float:
    """By halving the range up to what full batches can carry; the excess is the geometric mean over the seeds."""
    cost = protocol.config.load_cost()
    engine = protocol.config.engine_config(cost)
    requests = generate(protocol.config.workload, protocol.config.seed, max_model_len=engine.max_model_len, num_requests=2000).requests
    demand = Demand(requests, 1.0, engine, cost)
    carried = demand.most_running / demand.step_s(demand.most_running) / float(requests.output_tokens.mean())
    low, high = max(0.05 * carried, FEWEST_REQUESTS / protocol.measure_s), 1.2 * carried

    def kept(rate: float) -> bool:
        return bool(np.mean([np.log(protocol.simulated(protocol.run(rate, seed)).excess(protocol.slos)) for seed in seeds]) <= 0)

    if low >= high or not kept(low):
        raise UserError(f"no rate from {low:.2g} requests/s on keeps these SLOs on one replica: give others, or more decision.measure_s")
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if kept(middle) else (low, middle)
    return float(np.sqrt(low * high))


def judge(out: Path) -> str:
    """Holds the recorded traces of `out`/traces against the prediction; returns what to say, and writes it to `out`/result.json.

    Raises:
        UserError: there is no prediction, no recorded run, or the folder cannot be written.
    """
    document = read(out)
    result = judged(out, document)
    try:
        (out / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from None
    return _judged_text(result, slos_of(document))


def read(out: Path) -> dict[str, Any]:
    """The prediction that lies in the folder.

    Raises:
        UserError: there is none.
    """
    try:
        document: dict[str, Any] = json.loads((out / PLAN).read_text())
    except (OSError, ValueError):
        raise UserError(f"{out / PLAN} is missing or no JSON: `python -m validation decision out={out} …` writes it") from None
    return document


def judged(out: Path, document: dict[str, Any]) -> dict[str, Any]:
    """What result.json says. The runs may have been recorded by several engines: each is a folder of `out`/traces.

    Raises:
        UserError: fewer than two runs are recorded, one by another engine than was predicted, or one was cut too early.
    """
    slos = slos_of(document)
    runs = [run for run in document["runs"] if (out / TRACES / run["name"] / "requests.csv.gz").is_file()]
    if len(runs) < 2:
        raise UserError(f"{out / TRACES}: {len(runs)} of {len(document['runs'])} runs are recorded; two are needed at least")
    for run in runs:
        _check_engine(out / TRACES / run["name"], document["config"])
    rates = [run["rate"] for run in runs]
    found = [measured(out / TRACES / run["name"], tuple(run["window_s"])) for run in runs]
    if any(each.cut for each in found) and any(slo.metric == "e2e" for slo in slos):
        raise UserError(f"{out / TRACES}: requests had not ended when their run was cut, so a limit on the E2E latency cannot be judged")
    here = edge(rates, [each.excess(slos) for each in found])
    predicted = _predicted_edge(runs, slos)
    return {
        "measured_rate": here.rate,
        "bound": here.bound.strip(),
        "interval": _interval(rates, found, slos),
        "predicted_rate_of_these_requests": predicted.rate,
        "predicted_bound": predicted.bound.strip(),
        "error": predicted.rate / here.rate - 1,
        "runs": [
            run | {"measured_s": each.percentiles(slos), "unfinished": len(each.cut.request_ids) if each.cut else 0}
            for run, each in zip(runs, found, strict=True)
        ],
    }


def slos_of(document: dict[str, Any]) -> list[Slo]:
    """The limits of a prediction."""
    slo = config_of(document).slo
    assert slo is not None
    return slo.limits


def config_of(document: dict[str, Any]) -> Config:
    """What a prediction was made for."""
    return Config.model_validate({**document["config"], "command": "plan"})


def _check_engine(folder: Path, config: dict[str, Any]) -> None:
    """A run that was put here by hand may be of another engine."""
    if not (folder / "meta.json").is_file():
        return
    meta, opt = read_meta(folder), config["opt"]
    predicted = {
        "gpu": config["gpu"]["name"],
        "model": config["model"]["name"],
        "weights": opt["weights"],
        "kv_cache_dtype": opt["kv_cache_dtype"],
        "tensor_parallel_size": config["tensor_parallel_size"],
    }
    for name, value in predicted.items():
        if meta.get(name, value) != value:
            raise UserError(f"{folder / 'meta.json'}: {name} is {meta[name]}, but {value} was predicted")


def _predicted_edge(runs: list[dict[str, Any]], slos: Sequence[Slo]) -> Edge:
    """Of the rates that were recorded."""
    return edge([run["rate"] for run in runs], [max(run["predicted_s"][slo.name] / slo.limit_s for slo in slos) for run in runs])


def _interval(rates: list[float], found: list[Latencies], slos: Sequence[Slo]) -> tuple[float, float]:
    """Of the measured rate, over blocks of each run's requests drawn anew."""
    excess = np.column_stack([each.excess_resampled(list(slos)) for each in found])
    edges = [edge(rates, list(row)).rate for row in excess]
    low, high = np.quantile(edges, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _predicted_text(document: dict[str, Any], config: Config, out: Path) -> str:
    spread = document["predicted_rate_by_seed"]
    found = f"highest rate on one replica within {_limits(document)}: {document['predicted_rate']:.3g} requests/s"
    single = f"single runs of {document['measure_s']:g} s: {min(spread):.3g} to {max(spread):.3g}"
    lines = [
        f"{found} ({single}; that to be recorded: {document['predicted_rate_of_these_requests']:.3g})",
        "",
        *(f"  {run['rate']:>7.3g} requests/s: " + _percentiles(run["predicted_s"]) for run in document["runs"]),
        "",
        "to be recorded on the GPU, in one engine start:",
        "",
        _command(document, config, out),
        "",
        f"and then: python -m validation decision judge out={out}",
    ]
    return "\n".join(lines)


def _command(document: dict[str, Any], config: Config, out: Path) -> str:
    """As a shell takes it: the engine of the prediction, the prepared runs one after the other."""
    cost = config.load_cost()
    engine, memory = config.engine_config(cost), cost.artifact.memory
    options: dict[str, Any] = {f"opt.{name}": value for name, value in config.opt.model_dump(exclude_defaults=True).items()}
    options |= {"tensor_parallel_size": config.tensor_parallel_size, "gpu_memory_utilization": memory.gpu_memory_utilization}
    options |= {name: getattr(engine, name) for name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs")}
    if blocks := config.engine.get("num_gpu_blocks_override"):
        options["num_gpu_blocks_override"] = blocks
    options["workloads"] = [
        {
            "name": run["name"],
            "duration_s": AS_LONG_AS_IT_IS_S,
            "workload": {"kind": "replay", "path": str(out / "workloads" / run["name"])},
        }
        for run in document["runs"]
    ]
    options["out"] = str(out / TRACES)
    words = [f"{name}={_hydra(value)}" for name, value in options.items()]
    return " \\\n    ".join(
        [f"python -m profiler.record model={config.model.name} gpu={config.gpu.name}", *(shlex.quote(word) for word in words)]
    )


def _hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_hydra, value)) + "]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return '"' + value.replace('"', '\\"') + '"'
    return json.dumps(value).strip('"')


def _judged_text(result: dict[str, Any], slos: Sequence[Slo]) -> str:
    low, high = result["interval"]
    lines = []
    for run in result["runs"]:
        kept = "kept" if all(run["measured_s"][slo.name] <= slo.limit_s for slo in slos) else "broken"
        told = f"measured {_percentiles(run['measured_s'])} ({kept}); predicted {_percentiles(run['predicted_s'])}"
        lines.append(f"  {run['rate']:>7.3g} requests/s: {told}{unfinished([run])}")
    predicted = Edge(result["predicted_rate_of_these_requests"], bound(result["predicted_bound"]))
    here = Edge(result["measured_rate"], bound(result["bound"]))
    interval = f"95 % interval {low:.3g} to {high:.3g}"
    found = f"predicted {predicted.bound}{predicted.rate:.3g}, measured {here.bound}{here.rate:.3g} requests/s ({interval})"
    return "\n".join([*lines, "", f"highest rate: {found}; {error(predicted, here)}"])


def bound(told: str) -> str:
    """A result's bound before its number: the rates that were recorded need not lie on both sides of what is looked for."""
    return f"{told} " if told else ""


def error(predicted: Edge, measured: Edge) -> str:
    """In words; of rates that are bounds it is one, or none: two rates below all that were tried need not be the same."""
    opposite = {"": "", "at most ": "at least ", "at least ": "at most "}
    bounds = {predicted.bound, opposite[measured.bound]} - {""}
    if len(bounds) == 2:
        return f"both {measured.bound.strip()} a rate that was tried, so no error can be told"
    return f"error {''.join(bounds)}{predicted.rate / measured.rate - 1:+.1%}"


def unfinished(runs: Sequence[dict[str, Any]]) -> str:
    """What was done where runs of a result were cut; empty: all requests had ended."""
    count = sum(run["unfinished"] for run in runs)
    return f"; {count} requests had not ended when the run was cut: their TPOT until then" if count else ""


def _percentiles(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {1e3 * value:.4g} ms" for name, value in seconds.items())


def _limits(document: dict[str, Any]) -> str:
    return " and ".join(f"{name} ≤ {1e3 * limit:g} ms" for name, limit in document["slos"].items())
