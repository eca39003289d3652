"""`python -m profiler.picture`: what each optimization does to a decode step, a prefill and the KV pool, a picture per model.

Usage: python -m profiler.picture [out=FOLDER] [models=FOLDER] [context=TOKENS] [pictures=true]

  out       where report.html is written: words and figures to hover over, in one file (default: results/optimizations)
  models    cost models with their measurements beside them (default: those that this project ships): all that are there are drawn
  context   of decoding sequences (default: 1024, at which the profiler measures every captured batch size)
  pictures  writes README.md with a picture per model, too, which needs kaleido (the `notebooks` extra) and a Chromium
            (default: false); this project's own: out=docs/optimizations pictures=true
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.effect import CONTEXT, Measured, measured
from profiler.effect_figure import HEIGHT, WIDTH, figure
from profiler.effect_words import ABOUT, words
from profiler.files import write_text
from simulator.artifacts.models import MODELS
from simulator.errors import UserError
from simulator.reporting.page import CONFIG, STYLE, head

if TYPE_CHECKING:
    import plotly.graph_objects as go

TITLE = "What each optimization does to a step"
OUT = Path("results") / "optimizations"


def write(models: list[Measured], out: Path, pictures: bool) -> list[Path]:
    """Writes `report.html` into the folder, or `README.md` with its pictures; returns what was written.

    Raises:
        UserError: the folder cannot be written, or pictures cannot be drawn here.
    """
    if not pictures:
        write_text(out / "report.html", page(models))
        return [out / "report.html"]
    write_text(out / "README.md", markdown(models))
    drawn = [out / _file(each) for each in models]
    for each, path in zip(models, drawn, strict=True):
        _draw(figure(each), path)
    return [out / "README.md", *drawn]


def markdown(models: list[Measured]) -> str:
    """`README.md`: for each model what was found, in words, above its picture."""
    sections = []
    for each in models:
        found = "\n".join(f"- {sentence}" for sentence in words(each))
        sections.append(f"## {_title(each)}\n\n{found}\n\n![{_title(each)}]({_file(each)})\n")
    return "\n".join([f"# {TITLE}\n\n{ABOUT}\n", *sections])


def page(models: list[Measured]) -> str:
    """The same as one HTML text that needs nothing else."""
    from plotly.offline import get_plotlyjs

    script = f"<script>{get_plotlyjs()}</script>"

    return f"""{head(TITLE, STYLE, script)}
<body>
<main>
<p class="eyebrow">Measured by howmanygpus</p>
<h1>{TITLE}</h1>
<section><p class="caption">{escape(ABOUT)}</p></section>
{"".join(map(_section, models))}
<footer>Step times measured on GPUs, and the cost models fitted to them. Nothing here is simulated.</footer>
</main>
</body>
</html>
"""


def _section(each: Measured) -> str:
    found = "".join(f"<li>{_bold(sentence)}</li>" for sentence in words(each))
    drawing = figure(each).to_html(
        full_html=False, include_plotlyjs=False, config=CONFIG, default_width="100%", default_height=f"{HEIGHT}px"
    )
    # Six panels are not for a telephone's width: there they scroll.
    scrolled = f'<div class="wide"><div style="min-width: 780px">{drawing}</div></div>'
    return f"<section><h2>{escape(_title(each))}</h2><ul>{found}</ul>{scrolled}</section>"


def _bold(sentence: str) -> str:
    """Markdown's emphasis of a setting's name as HTML."""
    _, name, rest = sentence.split("**", 2)
    return f"<b>{escape(name)}</b>{escape(rest)}"


def _title(each: Measured) -> str:
    return f"{each.model} on {each.gpu}"


def _file(each: Measured) -> str:
    return f"{each.gpu}-{each.model}.webp"


def _draw(drawn: go.Figure, path: Path) -> None:
    try:
        drawn.write_image(path, width=WIDTH, height=HEIGHT)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"pictures=true: {path.name} cannot be drawn here ({str(error).splitlines()[0]})") from None


def _found(root: Path, context: int) -> list[Measured]:
    """The models of which there is something to compare."""
    found = [each for each in measured(root, context) if each.effects]
    if not found:
        raise UserError(f"models={root}: no model there was measured with two settings")
    return found


def _options(argv: list[str]) -> tuple[Path, Path, int, bool]:
    """(out, models, context, pictures)."""
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(given) != len(argv) or set(given) - {"out", "models", "context", "pictures"}:
        raise UserError(f"arguments {' '.join(argv)}: expected out=FOLDER, models=FOLDER, context=TOKENS or pictures=true")
    context, pictures = given.get("context", str(CONTEXT)), given.get("pictures", "false")
    if not context.isdecimal() or int(context) < 1:
        raise UserError(f"context={context}: expected a number of tokens")
    if pictures not in ("true", "false"):
        raise UserError(f"pictures={pictures}: expected true or false")
    return Path(given.get("out", OUT)), Path(given.get("models", MODELS)), int(context), pictures == "true"


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    if argv in (["--help"], ["-h"]):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        out, folder, context, pictures = _options(argv)
        models = _found(folder, context)
        written = write(models, out, pictures)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for each in models:
        sys.stdout.write("\n".join([_title(each), *(f"  {sentence.replace('**', '')}" for sentence in words(each)), "", ""]))
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
