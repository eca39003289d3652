"""`python -m validation.conformance`: the simulator's scheduler beside the vLLM that is installed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from simulator.errors import UserError
from validation.conformance.branches import Report, Watch
from validation.conformance.cases import Case, Version, random_case, speculative_case
from validation.conformance.draft_kinds import DRAFT_PREFIX_QUOTAS, DRAFT_QUOTAS
from validation.conformance.golden import collect
from validation.conformance.kinds import PREFIX_QUOTAS, QUOTAS
from validation.conformance.prefix_cases import random_prefix_case, speculative_prefix_case
from validation.conformance.run import Outcome, exact_version, installed, outcomes

USAGE = """\
usage: python -m validation.conformance [key=value …]    where vLLM 0.26 or 0.32 is installed; no GPU is needed

  steps=100000     at least so many steps, of random cases from seed on
  seed=0
  drafts=true      with speculative decoding: n-gram, draft models, EAGLE (vLLM 0.26)
  prefix_caching=true    with prefix caching; both may be given
  coverage=true    also which branches of vLLM's schedule() were taken (needs coverage.py; slower)
  golden=FILE      writes a sample of vLLM's decisions instead"""

NEEDED_SHARE = 0.95
"""Of the branches that apply."""


class Settings(BaseModel):
    """`key=value` arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(100_000, ge=1)
    seed: int = Field(0, ge=0)
    drafts: bool = False
    prefix_caching: bool = False
    coverage: bool = False
    golden: Path | None = None

    @property
    def kind(self) -> tuple[Callable[[int, Version], Case], dict[str, int]]:
        """What makes the cases, and how often every kind of decision must be seen."""
        return {
            (False, False): (random_case, QUOTAS),
            (False, True): (random_prefix_case, PREFIX_QUOTAS),
            (True, False): (speculative_case, DRAFT_QUOTAS),
            (True, True): (speculative_prefix_case, DRAFT_PREFIX_QUOTAS),
        }[self.drafts, self.prefix_caching]

    @classmethod
    def load(cls, arguments: list[str]) -> Settings:
        """Reads the command line.

        Raises:
            UserError: a key or a value makes no sense.
        """
        given = {}
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if not equals or key not in cls.model_fields:
                raise UserError(f"{argument!r}: expected key=value with key one of {', '.join(cls.model_fields)}")
            given[key] = value
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(": ".join([*map(str, first["loc"]), first["msg"]])) from None


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status: 1 if anything differs, or was not seen."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    try:
        settings = Settings.load(arguments)
        watch = Watch(settings.drafts) if settings.coverage else None
        make, quotas = settings.kind
        cases = outcomes(installed(), settings.seed, make)
        if settings.golden is not None:
            golden = collect(cases, quotas)
            golden.write(settings.golden)
            print(f"{settings.golden}: {sum(map(len, golden.decisions)):,} steps of {len(golden.cases)} cases")
            return 0
        return _compare(cases, settings.steps, watch, quotas)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _compare(cases: Iterator[Outcome], least_steps: int, watch: Watch | None, quotas: dict[str, int]) -> int:
    kinds: Counter[str] = Counter()
    steps = done = 0
    differences = []
    with tqdm(total=least_steps, unit="step", disable=None, leave=False) as bar:
        while steps < least_steps:
            outcome = next(cases)
            bar.update(len(outcome.decisions))
            steps, done = steps + len(outcome.decisions), done + 1
            kinds.update(outcome.kinds)
            if outcome.difference is not None:
                differences.append(f"seed {outcome.seed}, {outcome.difference}")
    print(f"{exact_version()}: {steps:,} steps of {done:,} cases, {len(differences)} cases differ")
    for difference in differences[:5]:
        print(f"  {difference}")
    print("\n".join(f"{kinds[name]:>10,}  {name}" for name in quotas))
    rare = [f"{name}: {kinds[name]}, expected {quota}" for name, quota in quotas.items() if kinds[name] < quota]
    print("\n".join(["too seldom:", *rare] if rare else ["every kind as often as it should be, or more often"]))
    covered = watch is None or _print_branches(watch.report())
    return int(bool(differences or rare or not covered))


def _print_branches(report: Report) -> bool:
    print(f"branches of schedule() taken: {len(report.taken)} of {len(report.taken) + len(report.missed)} that apply ({report.share:.1%})")
    for line, to, condition in report.missed:
        print(f"  not taken: line {line} to {to}, {' '.join(condition.split())}")
    print(f"left out, for what is not simulated: {sum(report.left_out.values())}")
    for reason, branches in report.left_out.items():
        print(f"{branches:>6}  {reason}")
    return report.share >= NEEDED_SHARE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
