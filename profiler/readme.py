"""`models/README.md`: what was measured, how well the cost models predict it, and how far measurements lie from their repeats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from profiler.distance import distance
from profiler.matrix import matrix
from profiler.raw import Raw
from simulator.artifacts.artifact import Artifact, ErrorRow
from simulator.artifacts.memory import accounted, num_gpu_blocks
from simulator.artifacts.models import artifacts

IN_TRAFFIC = ", by time in traffic"
"""Ends the names of error rows that are weighted by the time that traffic spends in such steps."""

Shipped = Mapping[str, Artifact]
"""Cost models by name: `h100-sxm/r1-distill-qwen-7b/bf16-kv_auto-tp1`."""


def readme(root: Path) -> str:
    """The page about the cost models below `root` (a `models/` folder).

    Raises:
        UserError: a measurement, or `wanted.csv`, is unreadable.
    """
    shipped = {
        path.relative_to(root).with_suffix("").as_posix(): Artifact.model_validate_json(path.read_text()) for path in artifacts(root)
    }
    sections = (_section(name, artifact) for name, artifact in shipped.items())
    return "\n".join([_INTRODUCTION, *filter(None, [matrix(root), _errors(shipped), _repeats(root, shipped)]), *sections])


_INTRODUCTION = """# Cost models

Generated with the artifacts; `schema.json` describes their form. Beside an artifact lie its measurements, `….steps.csv.gz` and
`….profile.json.gz`; `python -m profiler.fit_profile profile=<the artifact>` fits it to them again. `….points.jsonl.gz` is what a grid that
its budget cut continues from: put it as `points.jsonl.gz` into the profiler's `out=` folder. What the optimizations do to a step is drawn
in [docs/optimizations](../docs/optimizations/README.md).
"""

_ERRORS = """## Errors

Predicted / measured − 1: median and 90th percentile of the absolute error, and the mean of the signed one (of a trace: the error of the
summed times). *Left out* are whole rows of the grid: the fit that is judged saw no step with their batch (or chunk) size, or none with
their context; here, of both ways the worse. *In traffic*: of all steps, each row of the grid weighted with the time that the default
question's traffic spends nearest to it, on a replica at a quarter, a half and three quarters of what it carries. *KV blocks*: predicted
from where the memory went at another start, with another type of KV cache or on another GPU (in brackets: at the same start), and as vLLM
reported them.

| cost model | GPU minutes | decode | prefill | mixed | in traffic | KV blocks | vLLM's |
|---|--:|--:|--:|--:|--:|--:|--:|
"""

_REPEATS = """## Repeats

Further measurements that belong to no cost model, against the cost model's own: `another…` is a second profile of the same, on another
machine; `realistic` has random weights of a real model's scale; `second` is a start with other settings. Over the batches that both
measured: median / 90th percentile of the absolute / mean of the signed difference (`python -m profiler.distance`). No cost model comes
nearer to the next machine than these lie to each other. `python -m profiler.again profile=FOLDER as=NAME` puts a further one
here. KV blocks: as the cost model predicts them for that start, and as vLLM reported them.

| measurement | GPU minutes | decode | prefill | mixed | vocabulary and sampler of a decode | KV blocks | vLLM's |
|---|--:|--:|--:|--:|--:|--:|--:|
"""

_GIB = 2**30


def _errors(shipped: Shipped) -> str:
    rows = []
    for name, artifact in shipped.items():
        cells = [_minutes(artifact), *_worst(artifact), _predicted_blocks(name, shipped), f"{artifact.memory.num_gpu_blocks:,}"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return _ERRORS + "\n".join(rows) + "\n"


def _minutes(artifact: Artifact) -> str:
    return f"{artifact.measurement.gpu_minutes:.1f}" if artifact.measurement else "–"


def _worst(artifact: Artifact) -> list[str]:
    """Of each kind of step, its errors on left-out rows; then of all, by their time in traffic."""
    ends = [(kind, "left out") for kind in ("decode", "prefill", "mixed")] + [("all", IN_TRAFFIC)]
    found = ([row for row in artifact.error if row.judged_on.startswith(f"{kind} ") and row.judged_on.endswith(end)] for kind, end in ends)
    return [_cell(rows) for rows in found]


def _cell(rows: list[ErrorRow]) -> str:
    if not rows:
        return "–"
    median, p90 = max(row.median_abs for row in rows), max(row.p90_abs for row in rows)
    return f"{median:.1%} / {p90:.1%} / {max((row.signed_mean for row in rows), key=abs):+.1%}"


def _predicted_blocks(name: str, shipped: Shipped) -> str:
    """From the memory that another start with the same weights took; without such a one from the same start's, in brackets."""
    own = shipped[name]
    memory, parts = own.memory, own.memory.parts
    if parts is None:
        return "–"
    other = next((each.memory.parts for other, each in shipped.items() if other != name and _same_memory(own, each)), None)
    # What is known before a start: the GPU's memory, and the size of a block.
    known = {"total_bytes": parts.total_bytes, "bytes_per_block": parts.bytes_per_block}
    blocks = accounted(
        memory,
        other.model_copy(update=known) if other else parts,
        gpu_memory_utilization=memory.gpu_memory_utilization,
        max_num_batched_tokens=memory.max_num_batched_tokens,
        max_num_seqs=memory.max_num_seqs,
    )
    return f"{blocks:,}" if other else f"({blocks:,})"


def _same_memory(a: Artifact, b: Artifact) -> bool:
    """Whether all but the KV cache takes the same memory."""
    of = ("model", "weights", "tensor_parallel_size", "speculation")
    settings = ("max_num_batched_tokens", "max_num_seqs")
    alike = all(getattr(a, name) == getattr(b, name) for name in of)
    return alike and all(getattr(a.memory, name) == getattr(b.memory, name) for name in settings)


def _repeats(root: Path, shipped: Shipped) -> str:
    rows = [
        _repeat(path, root / f"{name}.json", artifact)
        for name, artifact in shipped.items()
        for path in _others(root / f"{name}.json", shipped)
    ]
    return _REPEATS + "\n".join(rows) + "\n" if rows else ""


def _others(artifact: Path, shipped: Shipped) -> Iterator[Path]:
    """Measurements beside an artifact that are named after it, and are no other artifact's."""
    end = ".profile.json.gz"
    for path in sorted(artifact.parent.glob(f"{artifact.stem}-*{end}")):
        other = path.with_name(path.name.removesuffix(end) + ".json")
        if "/".join(other.with_suffix("").parts[-3:]) not in shipped:
            yield other


def _repeat(path: Path, artifact: Path, cost: Artifact) -> str:
    raw = Raw.read(path)
    table = distance(Raw.read(artifact), raw)
    kinds = [f"{kind}, forward pass" for kind in ("decode", "prefill", "mixed")] + ["decode, vocabulary and sampler"]
    cells = ["–" if kind not in table.index else _distance(*table.loc[kind, ["median", "p90", "mean"]]) for kind in kinds]
    took_s = raw.meta["engine_start_s"] + sum(point["took_s"] for point in raw.meta["points"])
    minutes = took_s * raw.meta["num_gpus"] / 60
    return f"| {'/'.join(path.with_suffix('').parts[-3:])} | {minutes:.1f} | {' | '.join(cells)} | {_foreseen(raw, cost)} |"


def _distance(median: float, p90: float, mean: float) -> str:
    return f"{median:+.1%} / {p90:.1%} / {mean:+.1%}"


def _foreseen(raw: Raw, cost: Artifact) -> str:
    """The blocks that the cost model predicts for this start, and its own."""
    engine = raw.meta["engine"]
    settings = {name: engine[name] for name in ("gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs")}
    blocks = num_gpu_blocks(cost.memory, **settings)
    return f"{'–' if blocks is None else f'{blocks:,}'} | {engine['num_gpu_blocks']:,}"


def _section(name: str, artifact: Artifact) -> str:
    rows = "\n".join(_row(row) for row in artifact.error)
    memory, source, parts, measured = artifact.memory, artifact.provenance, artifact.memory.parts, artifact.measurement
    about = [f"{artifact.engine}, {memory.num_gpu_blocks:,} blocks of {memory.block_size} tokens."]
    about[0] += f" From {source.source} by {source.fitted_by}. {source.note}"
    if parts:
        gib = {name: getattr(parts, f"{name}_bytes") / _GIB for name in ("weights", "activation_peak", "non_torch", "graphs_estimate")}
        about.append(f"Memory of one GPU, {memory.gpu_memory_utilization:g} of {parts.total_bytes / _GIB:.1f} GiB: ")
        about[-1] += ", ".join(f"{name.replace('_', ' ')} {size:.2f} GiB" for name, size in gib.items())
        about[-1] += f"; a block {parts.bytes_per_block / 2**20:.3f} MiB."
    if measured:
        about.append(f"{measured.device}, driver {measured.driver}, {measured.power_limit_w:g} W: {measured.points} of ")
        about[-1] += f"{measured.points_in_grid} points in {measured.gpu_minutes:.1f} GPU minutes. Least / median / greatest reading: "
        about[-1] += f"{_spread(measured.sm_clock_mhz)} MHz, {_spread(measured.power_w)} W, {_spread(measured.temperature_c)} °C."
    table = f"| judged on | n | median | 90th percentile | mean |\n|---|--:|--:|--:|--:|\n{rows}\n"
    return "\n\n".join([f"## {name}", *about, table])


def _spread(values: tuple[float, float, float]) -> str:
    return " / ".join(f"{value:.0f}" for value in values)


def _row(row: ErrorRow) -> str:
    return f"| {row.judged_on} | {row.n:,} | {row.median_abs:.2%} | {row.p90_abs:.2%} | {row.signed_mean:+.2%} |"
