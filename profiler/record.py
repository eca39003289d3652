"""Serves traffic with vLLM and records it as measured traces: what every request saw, and every engine step.

    python -m profiler.record model=qwq-32b opt=awq workload=math500 workload.arrivals.rate=5 duration_s=120 out=traces/NAME

Options are those of `python -m profiler`, with `workload=` (conf/workload), `duration_s` and `name`. Writes meta.json, requests.csv.gz and
steps.csv.gz (the measured-trace format). `num_gpu_blocks_override=2100` shrinks the pool, so that queueing and preemption come soon.

An engine takes a minute to start; it serves several traces one after the other, each written to OUT/NAME as it ends:

    python -m profiler.record … 'workloads=[{name: light, rate: 2}, {name: full, rate: 6, duration_s: 180, seed: 1}]' out=traces

A trace of them may differ in rate, cv, duration_s, seed and workload (a name of conf/workload, `{kind: replay, path: FOLDER}` to serve
what another trace served, or changes such as `{lengths: {max_tokens: 16000}}`). `shared_prefixes={num_prefixes: 8, prefix_tokens: 1024}`
with `opt=prefix_caching` shares heads of prompts; `num_replicas=2` starts two engines on GPUs of their own behind `router=`;
`client=http` goes through vLLM's OpenAI server, to see what that adds.

`budget_s=240` ends the run in time, engine start included; so do SIGINT and SIGTERM. Outstanding requests are aborted, and the trace is
written with what was seen of them; traces that have not begun are left out.

`python -m profiler.pack FOLDER` makes a trace less than half as large, for the repository.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from profiler.client import quiet_garbage_collector, serve, warm_up
from profiler.errors import EngineError
from profiler.nvml import Nvml
from profiler.options import Recording, load
from profiler.recorded import meta, tables, write
from profiler.replicas import EngineReplica, Replica, gpus_of_replicas
from profiler.server import ServerReplica, require_server
from profiler.start import check_device, failures, prepare_environment, require_vllm
from profiler.stop import Interruption, Stop, deadline_s
from profiler.traffic import Traffic, traffic
from simulator.errors import UserError
from simulator.routers import BY_COUNT, make_router

WATCH_S = 5.0


async def record(options: Recording, traffics: list[Traffic], raw: Path, begin_s: float, interruption: Interruption) -> bool:
    """Serves the traffics one after the other with the same engines; writes each trace when it ends, and says so on stdout.

    Returns whether it was told to stop, by a signal. `begin_s`: of the run whose `budget_s` this keeps (`perf_counter`).

    Raises:
        EngineError: vLLM failed; traces that ended before are kept.
        UserError: the budget went into the engine's start.
    """
    start_s = perf_counter()
    replicas: list[Replica] = []
    kind = ServerReplica if options.client == "http" else EngineReplica
    try:
        for index, gpus in enumerate(gpus_of_replicas(options)):
            (raw / str(index)).mkdir()
            replicas.append(kind(options, raw / str(index), gpus))
        with failures("vLLM died while serving"):
            for replica in replicas:
                await replica.install()
                await warm_up(replica, (await replica.facts())["max_num_seqs"])
            quiet_garbage_collector()
        engine_start_s = perf_counter() - start_s
        interruption.check()
        stop = Stop(deadline_s(begin_s, options.budget_s))
        if stop.is_due():
            raise UserError(f"budget_s={options.budget_s:g} went into the engine's start ({engine_start_s:.0f} s): give more")
        with failures("vLLM died while serving"):
            for each in traffics:
                if stop.is_due():
                    sys.stderr.write(f"{each.folder}: not recorded any more\n")
                else:
                    await _trace(options, each, replicas, stop, engine_start_s)
    finally:
        for replica in replicas:
            await replica.close()
    return stop.told


async def _trace(options: Recording, each: Traffic, replicas: list[Replica], stop: Stop, engine_start_s: float) -> None:
    for replica in replicas:
        await replica.forget_prefixes()
    host = await replicas[0].host_speed()
    states: list[dict[str, Any]] = []
    watch = asyncio.create_task(_watch(Nvml(), states))
    served = await serve(each, replicas, make_router(options.router, each.seed), stop)
    watch.cancel()
    requests, steps, overheads = await tables(served, replicas)
    about = meta(options, served, await replicas[0].facts(), steps)
    about |= {"client": replicas[0].client, "engine_start_s": engine_start_s, "overheads": overheads, "host": host}
    about |= {"gpu_state": Nvml.spread(states)}
    write(each.folder, about, requests, steps)
    unfinished = f" (cut there, {served.unfinished} requests unfinished)" if served.cut else ""
    sys.stdout.write(
        f"{len(requests)} requests, {len(steps)} steps in {about['duration_s']:.1f} s{unfinished};"
        f" preemptions {int(steps['preempted'].sum())}; ingress {1e3 * overheads['ingress_s']:.2f} ms,"
        f" egress {1e3 * overheads['egress_s']:.2f} ms (medians); {each.folder}\n"
    )
    sys.stdout.flush()


async def _watch(nvml: Nvml, states: list[dict[str, Any]]) -> None:
    """Reads clocks, power and temperature now and then, in a thread: the client must not wait for the driver."""
    while True:
        await asyncio.sleep(WATCH_S)
        if state := await asyncio.to_thread(nvml.state):
            states.append(state)


def _check_router(options: Recording) -> None:
    make_router(options.router, options.seed)
    if options.router not in BY_COUNT:
        raise UserError(f"router {options.router} looks at more than real engines tell; valid: {', '.join(sorted(BY_COUNT))}")


def main(arguments: list[str]) -> int:
    """Exit code as `python -m profiler`: 0, too, where the budget cut it; 130 where a signal did."""
    begin_s = perf_counter()
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        with Interruption() as interruption, tempfile.TemporaryDirectory() as raw:
            options = load(arguments, Recording)
            _check_router(options)
            traffics = traffic(options)
            require_vllm(options.gpu.name)
            if options.client == "http":
                require_server()
            prepare_environment(options, in_process=False)
            check_device(options, num_replicas=options.num_replicas)
            told = asyncio.run(record(options, traffics, Path(raw), begin_s, interruption))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before the engine served: nothing is written\n")
        return 130
    return 130 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
