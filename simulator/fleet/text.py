"""What a fleet did, in words: its groups, its outages, its growing and shrinking, and what that was worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simulator.reporting.wording import duration

if TYPE_CHECKING:
    from simulator.config import Config

LABELS = {
    "gpu_hours": "GPU-hours",
    "request_goodput": "good/s",
    "goodput_share": "good",
    "p99_ttft_ms": "TTFT p99",
    "p99_tpot_ms": "TPOT p99",
    "p99_e2el_ms": "E2E p99",
    "given_up_share": "given up",
    "lost_share": "lost",
}
"""Of `variants.COLUMNS`."""


def fleet_text(config: Config, figures: Mapping[str, Any]) -> list[str]:
    """Paragraphs; none for equal replicas that are all up.

    Args:
        config: the run's.
        figures: `summary.summary`'s, and `compared`, `groups`, `serving_share`, `engine_start_s`.
    """
    lines = []
    if config.autoscaling is not None:
        lines.append(f"autoscaling {config.autoscaling.describe()}")
    if config.outages is not None:
        lines.append(f"outages    {config.outages.describe()}; replicas serve {figures['serving_share']:.2%} of the time")
    if lines:
        lines.append(
            f"new engine {figures['engine_start_s']:.3g} s from its start to its first request, the time to get the weights not counted"
        )
    paragraphs = ["\n".join(lines)] if lines else []
    if len(figures["groups"]) > 1:
        rows = [_group(*item) for item in figures["groups"].items()]
        paragraphs.append(table(["pool", "replicas", "requests", "tokens/s", "GPU busy", "TTFT p99", "TPOT p99"], rows))
    if figures["compared"]:
        names = [name for name in LABELS if any(name in row for row in figures["compared"].values())]
        rows = [[service, *(_cell(name, row.get(name)) for name in names)] for service, row in figures["compared"].items()]
        paragraphs.append(table(["service", *(LABELS[name] for name in names)], rows))
    return paragraphs


def verdict(figures: Mapping[str, Any]) -> str:
    """The comparison in a sentence; empty where nothing is compared."""
    compared = figures["compared"]
    if not compared:
        return ""
    mine, *others = compared.items()
    parts = [_against(mine[1], name, row) for name, row in others]
    return f"Beside {'; beside '.join(parts)}."


def _against(mine: Mapping[str, float], name: str, other: Mapping[str, float]) -> str:
    hours = mine["gpu_hours"] / other["gpu_hours"] - 1 if other["gpu_hours"] else 0.0
    text = f"'{name}': {hours:+.0%} GPU-hours" if abs(hours) >= 0.005 else f"'{name}': as many GPU-hours"
    if "goodput_share" in mine:
        text += f", {mine['goodput_share']:.1%} of requests good against {other['goodput_share']:.1%}"
    return text


def _group(name: str, row: Mapping[str, float]) -> list[str]:
    return [
        name,
        f"{row['replicas']:.0f}",
        f"{row['requests_share']:.1%}",
        f"{row['output_tokens_per_s']:,.0f}",
        f"{row['gpu_utilization']:.0%}",
        duration(row["p99_ttft_ms"] / 1000),
        duration(row["p99_tpot_ms"] / 1000),
    ]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name.endswith("_share"):
        return f"{value:.1%}"
    return duration(value / 1000) if name.endswith("_ms") else f"{value:.3g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns side by side, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *others in (head, *rows):
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)
