"""A plan as one HTML file that needs nothing else: words, the sizes tried, and figures. Other reports are made of the same parts."""

from __future__ import annotations

from html import escape

from simulator.plan import Plan
from simulator.report import facts, headline, table
from simulator.reporting.charts import Chart, charts

CONFIG = {"responsive": True, "displayModeBar": False}
"""Hovering, dragging and double-clicking do it all; on touch screens the buttons would cover the legends."""

UNBROKEN = "\N{NON-BREAKING HYPHEN}"

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: #1c2733; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 48px; }
.eyebrow { margin: 0; color: #5b6875; font-size: 14px; }
h1 { margin: 4px 0 20px; font-size: clamp(22px, 3.2vw, 32px); line-height: 1.25; font-weight: 650; text-wrap: balance; }
h2 { margin: 0 0 2px; font-size: 17px; font-weight: 650; }
section, dl { background: #fff; border: 1px solid #e0e5ea; border-radius: 10px; }
dl { display: grid; grid-template-columns: max-content 1fr; margin: 0 0 16px; padding: 8px 20px; }
dt, dd { padding: 8px 0; margin: 0; border-top: 1px solid #eef1f4; }
dt { color: #5b6875; padding-right: 24px; white-space: nowrap; }
dl > :nth-child(-n+2) { border-top: 0; }
section { padding: 16px 20px; margin-bottom: 16px; min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 8px; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 10px; text-align: right; white-space: nowrap; border-top: 1px solid #eef1f4; }
th { border-top: 0; color: #5b6875; font-weight: 600; white-space: normal; vertical-align: bottom; }
tr.answer td { background: #eaf2fb; font-weight: 600; }
.prose td, .prose th { text-align: left; white-space: normal; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.figures section { margin: 0; }
.caption { margin: 0 0 6px; color: #5b6875; font-size: 14px; }
footer { margin-top: 20px; color: #5b6875; font-size: 13px; }
@media (max-width: 820px) {
  main { padding: 16px 10px 32px; }
  .figures { grid-template-columns: minmax(0, 1fr); }
  dl { display: block; padding: 8px 14px; }
  dt { border-top: 1px solid #eef1f4; padding-bottom: 0; font-size: 14px; }
  dd { border-top: 0; padding-top: 0; }
  section { padding: 12px 14px; }
}
"""


def head(title: str, style: str, script: str) -> str:
    """What every page begins with; `script`: an element, or nothing."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
{script}
</head>"""


def page(plan: Plan) -> str:
    """The HTML text."""
    artifact = plan.question.cost.artifact
    return document(
        title=f"How many GPUs? {plan.question.model or artifact.model} on {artifact.gpu}",
        eyebrow="How many GPUs?",
        headline=headline(plan),
        facts=facts(plan),
        table=_table(plan),
        drawn=charts(plan),
    )


def document(*, title: str, eyebrow: str, headline: str, facts: list[tuple[str, str]], table: str, drawn: list[Chart]) -> str:
    """A report's HTML text.

    Args:
        title: of the window.
        eyebrow: what kind of report it is.
        headline: the answer in a sentence.
        facts: what it rests on: (label, sentence).
        table: HTML, as `section` makes it.
        drawn: the figures.
    """
    from plotly.offline import get_plotlyjs

    library = f"<script>{get_plotlyjs()}</script>" if drawn else ""
    listed = "".join(f"<dt>{escape(label)}</dt><dd>{escape(sentence)}</dd>" for label, sentence in facts)
    return f"""{head(title, STYLE, library)}
<body>
<main>
<p class="eyebrow">{escape(eyebrow)}</p>
<h1>{escape(headline).replace("-", UNBROKEN)}</h1>
<dl>{listed}</dl>
{table}
<div class="figures">{"".join(_figure(chart) for chart in drawn)}</div>
<footer>Simulated by howmanygpus: vLLM's scheduling rules, step times measured on a GPU.</footer>
</main>
</body>
</html>
"""


def _table(plan: Plan) -> str:
    if not plan.candidates:
        return ""
    answer = [num == plan.num_replicas for num in plan.candidates]
    return section("Sizes tried", table(plan), answer)


def section(title: str, rows: list[list[str]], marked: list[bool]) -> str:
    """A table as HTML: its header, then rows, of which some are marked."""
    header, *rest = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = ""
    for mark, row in zip(marked, rest, strict=True):
        cls = ' class="answer"' if mark else ""
        body += f"<tr{cls}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
    rendered = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<section><h2>{escape(title)}</h2><div class="wide">{rendered}</div></section>'


def _figure(chart: Chart) -> str:
    drawing = chart.figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, default_width="100%", default_height="320px")
    return f'<section><h2>{escape(chart.title)}</h2><p class="caption">{escape(chart.caption)}</p>{drawing}</section>'
