"""All traces as one HTML file that needs nothing else: the table of errors, and a sheet for each trace."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from simulator.errors import UserError
from simulator.reporting.page import CONFIG, STYLE, head
from validation.decided import Decided
from validation.judged import Judged, cells, header, legend, limits_headline
from validation.limits import limits_cells, limits_header, limits_legend
from validation.sheet import sheet

WIDER = """
main { max-width: 1560px; }
pre { overflow-x: auto; font-size: 12.5px; line-height: 1.45; margin: 8px 0 0; }
.wide + .caption { margin-top: 12px; }
td:first-child, th:first-child { text-align: left; }
td.missed { color: #c2352b; font-weight: 600; }
.eyebrow + h1 { margin-bottom: 16px; }
th, td { padding: 6px 7px; font-size: 13px; }
"""


def write_page(judged: Sequence[Judged], refused: Sequence[str], decisions: Sequence[Decided], folder: Path) -> Path:
    """Writes `report.html` into the folder; returns its path.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(page(judged, refused, decisions), encoding="utf-8")
    except OSError as error:
        raise UserError(f"out={folder}: cannot be written ({error.strerror})") from None
    return path


def page(judged: Sequence[Judged], refused: Sequence[str], decisions: Sequence[Decided] = ()) -> str:
    """The HTML text."""
    from plotly.offline import get_plotlyjs

    script = f"<script>{get_plotlyjs()}</script>"

    notes = [*legend(judged), *(f"not replayed: {reason}" for reason in refused)]
    return f"""{head("Simulated against measured", STYLE + WIDER, script)}
<body>
<main>
<p class="eyebrow">Simulated against measured</p>
<h1>{escape(_headline(judged))}</h1>
<section><h2>Errors, simulated / measured − 1</h2><div class="wide">{_table(header(), [cells(each) for each in judged])}</div>
{"".join(f'<p class="caption">{escape(note)}</p>' for note in notes)}</section>
<section><h2>{escape(limits_headline(judged).capitalize())}</h2>
<div class="wide">{_table(limits_header(), [limits_cells(each.marked_name, each.verdict) for each in judged])}</div>
{"".join(f'<p class="caption">{escape(note)}</p>' for note in limits_legend())}</section>
{_decisions(decisions)}{"".join(_section(each) for each in judged)}
<footer>Replayed by howmanygpus: arrivals and lengths of the trace, vLLM's scheduling rules, step times of the cost model.
Predictions were written before any measured latency was read.</footer>
</main>
</body>
</html>
"""


def _headline(judged: Sequence[Judged]) -> str:
    """The errors of the traces that no fit has seen; those in sample are no evidence."""
    unseen = [each for each in judged if not each.comparison.replay.in_sample]
    if not unseen:
        return "Every trace here was seen by its fit: no evidence"
    average = np.mean([each.comparison.average_abs for each in unseen])
    traces = f"{len(unseen)} trace{'s' * (len(unseen) > 1)} that no fit has seen"
    return f"E2E and TPOT of {traces} are predicted within {average:.1%} on average"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells that say that a limit is missed stand out."""
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    missed = ' class="missed"' if text.startswith("missed") else ""
    return f"<td{missed}>{escape(text)}</td>"


def _decisions(decisions: Sequence[Decided]) -> str:
    if not decisions:
        return ""
    lines = "".join(f"<p><b>{escape(each.name)}</b>: {escape(each.line())}</p>" for each in decisions)
    return f"<section><h2>The decision itself, one replica</h2>{lines}</section>\n"


def _section(judged: Judged) -> str:
    size = {"default_width": "100%", "default_height": "560px"}
    drawing = sheet(judged.comparison).to_html(full_html=False, include_plotlyjs=False, config=CONFIG, **size)
    figures = f"<details open><summary>All figures</summary><pre>{escape(judged.text())}</pre></details>"
    return f"<section><h2>{escape(judged.name)}</h2>{drawing}{figures}</section>"
