"""The command line: `python -m simulator CONFIG [key=value …]`."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import NoReturn

from simulator.config import Config, load
from simulator.errors import UserError, nobody_reads

HELP = """\
How many GPUs do I need to serve this reasoning model, for this traffic, within these latencies?

CONFIG is a YAML file. Its `command` says what is done:
  plan        finds the smallest number of GPUs that meets the SLOs; plan.opts=all says with which optimization it is the smallest
  simulate    runs one service and says what its clients saw
  crossover   compares speculative decoding with none over the batch size
  compare     runs variants of a service under the same traffic, and says what was published about them and whether it agrees

Any key of it can be given anew:
  python -m simulator conf/capacity_planning.yaml
  python -m simulator conf/capacity_planning.yaml workload.arrivals.rate=40 slo.tpot_ms.p99=20
  python -m simulator conf/simulate.yaml workload=aime24 cluster.num_replicas=4 run.duration_s=600

`workload=aime24` chooses conf/workload/aime24.yaml; the other groups are conf/model, conf/gpu, conf/opt and conf/slo.
A file of your own, wherever it lies, can use them too:
  defaults: [{model: r1-distill-qwen-7b}, {gpu: h100-sxm}, {workload: math500}, {slo: interactive}, _self_]
  command: plan
  workload: {arrivals: {rate: 12}}

The answer is on stdout and its files are in results/; log and progress are on stderr.
Exit status: 0 answered, also if no number of GPUs will do; 2 a mistake in what was given, said in one line.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m simulator --help")


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    try:
        parser = _Parser(
            prog="python -m simulator", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        parser.add_argument("config", metavar="CONFIG", help="a configuration, such as conf/capacity_planning.yaml")
        parser.add_argument("overrides", metavar="key=value", nargs="*", help="overrides of its keys and groups")
        given = parser.parse_args(arguments)
        config = load(given.config, given.overrides)
        if config.command == "plan" and config.plan.opts is not None:
            _choose(given.config, given.overrides)
        elif config.command == "plan":
            _plan(config)
        elif config.command == "crossover":
            _crossover(config)
        elif config.command == "compare":
            _compare(given.config, given.overrides)
        else:
            _simulate(config)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        nobody_reads()
    return 0


def _simulate(config: Config) -> None:
    from tqdm import tqdm

    from simulator.artifacts.domain import outside_domain
    from simulator.comparing.variants import compared, per_group, serving_share
    from simulator.reporting.screen import run_text
    from simulator.reporting.summary import summary
    from simulator.results import write_run
    from simulator.simulate import simulate

    scenario = config.scenario()
    requests, replicas = len(scenario.workload.requests), sum(group.num_replicas for group in scenario.groups)
    print(f"simulating {requests:,} requests on {replicas} replica{'s' if replicas > 1 else ''}", file=sys.stderr)
    with tqdm(desc="simulating", total=requests, unit="request", leave=False, disable=None, file=sys.stderr, dynamic_ncols=True) as bar:

        def advance(finished: int, _: int) -> None:
            bar.update(finished - bar.n)

        result = simulate(scenario, advance)
    figures = {
        **summary(result, config.slo),
        "outside_domain": outside_domain(result),
        "groups": per_group(result),
        "serving_share": serving_share(result),
        "engine_start_s": max(spec.engine_start_s or 0.0 for spec in (scenario.outages, scenario.autoscaling) if spec is not None)
        if scenario.outages or scenario.autoscaling
        else None,
        "compared": compared(scenario, result, config.slo),
    }
    folder = write_run(config, result, figures)
    print(run_text(config, figures, textwrap.fill(scenario.workload.description, 120)))
    print(f"\nfiles: {folder}")


def _crossover(config: Config) -> None:
    from simulator.drafts.crossover import write_crossover

    print(write_crossover(config))


def _plan(config: Config) -> None:
    from simulator.plan import plan
    from simulator.report import show

    show(config, plan(config))


def _choose(path: str, overrides: list[str]) -> None:
    from simulator.planning.choice import choose
    from simulator.reporting.choice_report import show

    show(choose(path, overrides))


def _compare(path: str, overrides: list[str]) -> None:
    from simulator.comparing.compare import compare
    from simulator.comparing.report import show

    show(compare(path, overrides))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
