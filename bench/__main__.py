"""How fast the simulator is, and how much memory it takes: `python -m bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median

from bench import peer
from bench.workloads import LOADS

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Figures = dict[str, float]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="W", help=f"some of {', '.join(LOADS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, every one in a process of its own (default: 5)")
    parser.add_argument("--cost", type=Path, help="a cost model's JSON; default: the peer's polynomial, so that both serve alike")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has ai-dynamo (default: DYNAMO_PYTHON, or this one)")
    parser.add_argument("--peer-repeats", type=int, help="at most so many runs of the peer (default: as --repeats); it takes minutes on W6")
    options = parser.parse_args(arguments)
    if unknown := set(options.workloads) - set(LOADS):
        parser.error(f"there is no workload {', '.join(sorted(unknown))}; choose from {', '.join(LOADS)}")
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1")
    return options


def run_once(name: str, cost: Path | None) -> Figures:
    """One run, in a process of its own."""
    command = [sys.executable, "-m", "bench.once", name, *([str(cost.resolve())] if cost else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **ONE_THREAD})  # noqa: S603
    if done.returncode:
        raise SystemExit(f"error: {name}: {done.stderr.strip().splitlines()[-1]}")
    figures: Figures = json.loads(done.stdout)
    return figures


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and the range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main(arguments: list[str]) -> None:
    """Measures and prints, a row a workload."""
    options = parse(arguments)
    python = peer.find_python(options.peer)
    names = options.workloads or list(LOADS)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {version('numpy')}; one core, {options.repeats} runs each")
    print(f"step times: {options.cost or 'the polynomial of ai-dynamo 1.4.1'}; median (range) of wall time; µs/event: CPU time\n")
    print(f"{'':4}{'seconds':>19}{'requests/s':>12}{'tokens/s':>11}{'events':>10}{'µs/event':>10}{'grows MiB':>11}{'peak MiB':>10}", end="")
    print(f"{'peer, seconds':>23}{'faster by':>20}" if python else "")
    us_per_event = {}
    for name in names:
        us_per_event[name] = row(name, options, python)
    print("\n" + "\n".join(f"{name}  {LOADS[name].describe()}" for name in names))
    if {"W2", "W6"} <= set(names):
        print(f"\ntime per event, W6 / W2: {us_per_event['W6'] / us_per_event['W2']:.2f}")
    if not python:
        print("\nai-dynamo is not installed: no comparison (--peer PYTHON names an interpreter that has it)")


def row(name: str, options: argparse.Namespace, python: str | None) -> float:
    """Measures and prints one workload; returns its median microseconds of CPU time an event, which neighbours disturb least."""
    ours: list[Figures] = []
    theirs: list[Figures] = []
    peer_repeats = options.peer_repeats or options.repeats
    for _ in range(options.repeats):
        # Turn by turn, so that both meet the same neighbours on the machine.
        ours.append(run_once(name, options.cost))
        if python and peer.can_run(name) and len(theirs) < peer_repeats:
            theirs.append(peer.measure(python, name))
    wall_s, first = median(run["wall_s"] for run in ours), ours[0]
    us_per_event = median(run["cpu_s"] for run in ours) / first["events"] * 1e6
    print(
        f"{name:4}{spread([run['wall_s'] for run in ours]):>19}{first['requests'] / wall_s:>12,.0f}"
        f"{first['output_tokens'] / wall_s / 1e6:>9.1f} M{first['events']:>10,.0f}{us_per_event:>10.1f}"
        f"{median(run['growth_mib'] for run in ours):>11.1f}{median(run['peak_mib'] for run in ours):>10.0f}",
        end="",
    )
    if theirs:
        ratios = [their["wall_s"] / our["wall_s"] for their, our in zip(theirs, ours, strict=False)]
        print(f"{spread([run['wall_s'] for run in theirs]):>23}{spread(ratios, 1):>20}", end="")
    print(flush=True)
    return us_per_event


if __name__ == "__main__":
    main(sys.argv[1:])
