"""`python -m validation`: how far the simulator is from what real engines did."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.compose import CONF, compose_file
from simulator.config import Config, load
from simulator.errors import NotMeasuredError, UserError, nobody_reads
from simulator.workload import one_line
from validation.compare import compare
from validation.decided import all_decided
from validation.judged import Judged, limits, overview
from validation.luck import luck
from validation.page import write_page
from validation.repeat import repeatability
from validation.replay import Recording, Replay, replay, write_prediction
from validation.speedup import find_twin, speed_up
from validation.split import split

TRACES = Path(__file__).resolve().parent / "traces"

USAGE = """\
usage: python -m validation [key=value …]                        replays measured traces, prints the errors, writes a report
       python -m validation predict trace=PATH out=DIR [key=value …]   predicts a trace without reading its latencies
       python -m validation decision [key=value …]              predicts the highest rate within the SLOs, says what to record
       python -m validation decision judge out=DIR              holds the recorded runs against it (conf/decision.yaml); those
                                                                shipped, in validation/decisions, are told below the table
       python -m validation import bench=RESULT.json out=DIR [key=value …]   makes a trace of what `vllm bench serve --save-result
                                                                --save-detailed` saw; keys are those of conf/replay.yaml: model, opt …

  trace=PATH         a folder in the measured-trace format, or [A,B]; default: all of validation/traces
  format=text|json   json: one object on stdout for one trace, a list for several
  cost_model=PATH    instead of the shipped one of the trace's GPU, model, weights, KV dtype and TP
  router=NAME        in front of a trace of several replicas (default: the trace's own, else round_robin)
  seed=N             of what the simulation draws: launch times, accepted drafts, router=random (default: the trace's own, else 0)
  replays=N          also with the N − 1 seeds that follow: how far chance moves the errors (default 1)
  out=DIR            where predictions (requests.parquet and summary.json) and report.html go (default: results/validation)

Errors are signed and relative: simulated / measured − 1. The defaults are in conf/validation.yaml."""


class Settings(BaseModel):
    """`conf/validation.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trace: Path | list[Path] | None
    cost_model: Path | None
    router: str | None
    seed: int | None
    replays: int = Field(ge=1)
    format: Literal["text", "json"]
    out: Path | None

    @property
    def folder(self) -> Path:
        """Where predictions and the report go."""
        return self.out or Path("results") / "validation"

    @property
    def traces(self) -> list[Path]:
        if self.trace is None:
            return sorted(path.parent for path in TRACES.glob("*/meta.json"))
        return self.trace if isinstance(self.trace, list) else [self.trace]

    @classmethod
    def load(cls, overrides: list[str]) -> Settings:
        """The shipped settings with `key=value` overrides.

        Raises:
            UserError: a key or a value makes no sense.
        """
        for override in overrides:
            key, equals, _ = override.partition("=")
            if not equals or key.lstrip("+~") not in cls.model_fields:
                raise UserError(f"{override!r}: expected key=value with key one of {', '.join(cls.model_fields)}")
        try:
            return cls.model_validate(compose_file(CONF / "validation.yaml", overrides))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{first['loc'][0]}: {first['msg']}") from None


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    predicting = arguments[:1] == ["predict"]
    try:
        if arguments[:1] in (["decision"], ["import"]):
            print(_decide(arguments[1:]) if arguments[0] == "decision" else _import(arguments[1:]))
        elif predicting:
            _predict(Settings.load(arguments[1:]))
        else:
            _compare(Settings.load(arguments))
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


def _decide(arguments: list[str]) -> str:
    from validation.decision import Options, judge, predict

    judging = arguments[:1] == ["judge"]
    composed = compose_file(CONF / "decision.yaml", arguments[1:] if judging else arguments)
    out, options = Path(composed["out"]), composed.pop("decision")
    if judging:
        return judge(out)
    composed |= {"command": "plan", "name": "decision"}
    try:
        return predict(Config.model_validate(composed), Options.model_validate(options), out)
    except ValidationError as error:
        wrong = options if error.title == Options.__name__ else composed
        raise UserError(one_line(error, wrong, "decision" if wrong is options else "conf/decision.yaml")) from None


def _import(arguments: list[str]) -> str:
    from validation.bench_serve import import_bench

    given = dict(argument.split("=", 1) for argument in arguments if argument.startswith(("bench=", "out=")))
    if len(given) < 2:
        raise UserError("import needs a result and a folder to write to: python -m validation import bench=RESULT.json out=DIR")
    others = [argument for argument in arguments if not argument.startswith(("bench=", "out="))]
    number = import_bench(Path(given["bench"]), load(CONF / "replay.yaml", others), Path(given["out"]))
    return f"{number} requests; {given['out']}"


def _replay(settings: Settings, folder: Path) -> Replay:
    return replay(Recording.read(folder), cost_model=settings.cost_model, router=settings.router, seed=settings.seed)


def _predict(settings: Settings) -> None:
    if not isinstance(settings.trace, Path) or settings.out is None:
        raise UserError("predict needs one trace and a folder to write to: python -m validation predict trace=PATH out=DIR")
    write_prediction(_replay(settings, settings.trace), settings.out)
    print(settings.out / "requests.parquet")
    print(settings.out / "summary.json")


def _compare(settings: Settings) -> None:
    judged, refused = _judge(settings)
    if settings.format == "json":
        objects: list[dict[str, Any]] = [each.json() for each in judged]
        print(json.dumps(objects[0] if len(settings.traces) == 1 else objects, indent=1, ensure_ascii=False))
        return
    print(judged[0].text() if len(settings.traces) == 1 else overview(judged, refused))
    print(f"\n{limits(judged)}")
    decisions = all_decided() if settings.trace is None else []
    if decisions:
        print("\nthe decision itself, one replica", *(f"{each.name}: {each.line()}" for each in decisions), sep="\n")
    print(f"\nreport: {write_page(judged, refused, decisions, settings.folder)}")


def _judge(settings: Settings) -> tuple[list[Judged], list[str]]:
    """Every prediction is written before any measured latency is read. Of several traces those that cannot be replayed are named."""
    replays, refused = [], []
    for folder in settings.traces:
        try:
            replays.append(_replay(settings, folder))
        except UserError as error:
            if len(settings.traces) == 1:
                raise
            refused.append(f"{folder.name}: {error}")
    if not replays:
        raise UserError(f"no trace could be replayed; the first: {refused[0]}" if refused else "there are no traces in validation/traces")
    twins = [_twin(each, replays) for each in replays]
    known = list(dict.fromkeys([*replays, *(twin for twin in twins if twin)]))
    called = Counter(each.recording.meta.name for each in known)
    for each in known:
        name = each.recording.meta.name
        # Recordings of one workload on two machines may be called alike.
        write_prediction(each, settings.folder / (name if called[name] == 1 else f"{name}-{each.recording.folder.name}"))
    compared = {each: compare(each) for each in known}
    comparisons = [compared[each] for each in replays]
    again = repeatability(comparisons)
    gains = [speed_up(compared[each], compared[twin]) if twin else None for each, twin in zip(replays, twins, strict=True)]
    parts = zip(comparisons, again, gains, strict=True)
    return [Judged(each, split(each), a, b, luck(each, settings.replays)) for each, a, b in parts], refused


def _twin(speculative: Replay, replays: list[Replay]) -> Replay | None:
    """The replay of the same requests without drafts: one of these, else of a trace beside it or a shipped one; None: there is none."""
    by_recording = {each.recording: each for each in replays}
    beside = sorted(path.parent for path in (*speculative.recording.folder.parent.glob("*/meta.json"), *TRACES.glob("*/meta.json")))
    twin = find_twin(speculative.recording, by_recording, beside)
    if twin is None or twin in by_recording:
        return None if twin is None else by_recording[twin]
    try:
        return replay(twin, cost_model=None, router=None, seed=None)
    except NotMeasuredError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
