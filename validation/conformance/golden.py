"""A sample of vLLM's decisions that is kept, so that they can be compared where vLLM is not installed."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from validation.conformance.cases import Case
from validation.conformance.decisions import Decision
from validation.conformance.run import Outcome, exact_version

LONGEST_STEPS = 400
"""Of a case in the sample."""


class Golden(NamedTuple):
    """What vLLM decided."""

    vllm: str
    """Its exact version."""
    seeds: list[int]
    cases: list[Case]
    decisions: list[list[Decision]]
    kinds: Counter[str]

    def write(self, path: Path) -> None:
        """Writes xz-compressed JSON; equal samples give equal bytes."""
        document = {
            "vllm": self.vllm,
            "kinds": dict(sorted(self.kinds.items())),
            "cases": [
                {"seed": seed, **case.as_json(), "decisions": decisions}
                for seed, case, decisions in zip(self.seeds, self.cases, self.decisions, strict=True)
            ],
        }
        path.write_bytes(lzma.compress(json.dumps(document, separators=(",", ":")).encode(), preset=9 | lzma.PRESET_EXTREME))

    @classmethod
    def read(cls, path: Path) -> Golden:
        """What `write` wrote."""
        document: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
        cases = document["cases"]
        return cls(
            document["vllm"],
            [case["seed"] for case in cases],
            [Case.from_json(case) for case in cases],
            [[Decision(*map(_frozen, decision)) for decision in case["decisions"]] for case in cases],
            Counter(document["kinds"]),
        )


def collect(outcomes: Iterator[Outcome], quotas: dict[str, int]) -> Golden:
    """The first short cases that together hold every kind of decision as often as `quotas` says."""
    golden = Golden(exact_version(), [], [], [], Counter())
    for outcome in outcomes:
        if all(golden.kinds[name] >= quota for name, quota in quotas.items()):
            break
        helps = any(outcome.kinds[name] and golden.kinds[name] < quota for name, quota in quotas.items())
        if helps and len(outcome.decisions) <= LONGEST_STEPS:
            golden.seeds.append(outcome.seed)
            golden.cases.append(outcome.case)
            golden.decisions.append(outcome.decisions)
            golden.kinds.update(outcome.kinds)
    return golden


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
