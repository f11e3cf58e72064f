"""Small plots as SVG, for asset pages. Numbers in, Markdown out; no library, because one costs a tick half a second.

The Dagster UI shows data addresses of Markdown images, and nothing of SVG that stands in the text itself. Colours are
readable on white and on black, as an image cannot know the page's theme. Bytes count: a plot is stored each minute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from urllib.parse import quote

WIDTH, HEIGHT = 600, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 22, 18
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

LINE, BAND, BAR, TEXT = "steelblue", "steelblue", "darkorange", "gray"

# Characters that may stand in a Markdown address and an SVG data address as they are.
_PLAIN = "/:=',;+-*!$&@~_.?"


@dataclass(frozen=True)
class Dot:
    """A value at `x`; None is a gap. `low` and `high` are bounds around it, drawn as a band."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None


def number(value: float) -> str:
    """For people: 1,234 or 12.3 or 0.05."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def line_plot(
    title: str,
    dots: Sequence[Dot],
    *,
    step: float | None = None,
    shown_x: Callable[[float], str] = number,
    from_zero: bool = True,
) -> str:
    """SVG of a line over `x`, in order of `x`. `title` says what and in which unit.

    step       distance of two neighbours: where it is more than half again as much, the line is broken
    from_zero  the axis begins at 0, where no value is below
    """
    known = [dot for dot in dots if dot.y is not None and isfinite(dot.y)]
    if not known:
        return _picture(f"{title}: nothing yet", [])
    values = [v for dot in known for v in (dot.y, dot.low, dot.high) if v is not None and isfinite(v)]
    bottom, top = min(values), max(values)
    if from_zero and bottom >= 0:
        bottom = 0.0
    if top == bottom:
        top, bottom = (top + 1, bottom) if from_zero else (top + 1, bottom - 1)
    first, last = known[0].x, known[-1].x
    width = (last - first) or 1.0

    def place(dot: Dot, value: float) -> tuple[int, int]:
        return (
            LEFT + round(PLOT_WIDTH * (dot.x - first) / width),
            TOP + round(PLOT_HEIGHT * (top - value) / (top - bottom)),
        )

    parts = [*_frame(bottom, top), *_band(known, place)]
    pieces = _pieces(dots, step)
    path = "".join(_path([place(dot, dot.y) for dot in piece if dot.y is not None]) for piece in pieces)
    parts.append(f"<path d='{path}' fill='none' stroke='{LINE}' stroke-width='1.5' stroke-linecap='round'/>")
    ys = [dot.y for dot in known if dot.y is not None]
    parts.append(_text(LEFT, HEIGHT - 4, shown_x(first)))
    if last > first:
        parts.append(_text(WIDTH - RIGHT, HEIGHT - 4, shown_x(last), "end"))
    said = f"last {number(ys[-1])}, min {number(min(ys))}, max {number(max(ys))}"
    return _picture(title, parts, said)


def bar_plot(title: str, bars: Sequence[tuple[str, float]]) -> str:
    """SVG of bars with their labels below and their values above. `title` says what and in which unit.

    Heights are in proportion, but a bar that is not zero is seen.
    """
    if not any(value > 0 for _, value in bars):
        return _picture(f"{title}: nothing yet", [])
    top = max(value for _, value in bars)
    step = PLOT_WIDTH / len(bars)
    parts = [f"<path d='M{LEFT},{HEIGHT - BOTTOM}h{PLOT_WIDTH}' stroke='{TEXT}' stroke-width='.5'/>"]
    for place, (label, value) in enumerate(bars):
        height = max(1, round((PLOT_HEIGHT - 12) * value / top)) if value > 0 else 0
        x, middle = LEFT + place * step, LEFT + (place + 0.5) * step
        if height:
            parts.append(
                f"<rect x='{x + step * 0.15:.0f}' y='{HEIGHT - BOTTOM - height}' width='{step * 0.7:.0f}' "
                f"height='{height}' fill='{BAR}'/>"
            )
            parts.append(_text(middle, HEIGHT - BOTTOM - height - 3, number(value), "middle"))
        parts.append(_text(middle, HEIGHT - 4, label, "middle"))
    return _picture(title, parts)


def markdown(alt: str, svg: str) -> str:
    """A Markdown image that needs nothing else."""
    spoken = alt.replace("[", "(").replace("]", ")")
    return f"![{spoken}](data:image/svg+xml,{quote(svg, safe=_PLAIN)})"


def _pieces(dots: Sequence[Dot], step: float | None) -> list[list[Dot]]:
    """The dots without gaps between them."""
    pieces: list[list[Dot]] = []
    before: Dot | None = None
    for dot in dots:
        if dot.y is None or not isfinite(dot.y):
            before = None
            continue
        if before is None or (step is not None and dot.x - before.x > 1.5 * step):
            pieces.append([])
        pieces[-1].append(dot)
        before = dot
    return pieces


def _path(places: Sequence[tuple[int, int]]) -> str:
    """A line in relative steps, which are shorter; a single dot is a line of no length, which round ends show."""
    (x, y), text = places[0], f"M{places[0][0]},{places[0][1]}l0,0"
    for next_x, next_y in places[1:]:
        text += f",{next_x - x},{next_y - y}"
        x, y = next_x, next_y
    return text


def _band(known: Sequence[Dot], place: Callable[[Dot, float], tuple[int, int]]) -> list[str]:
    bounded = [(dot, dot.low, dot.high) for dot in known if dot.low is not None and dot.high is not None]
    if len(bounded) < 2:
        return []
    outline = [place(dot, high) for dot, _, high in bounded] + [place(dot, low) for dot, low, _ in reversed(bounded)]
    return [f"<path d='{_path(outline)}z' fill='{BAND}' fill-opacity='.25'/>"]


def _frame(bottom: float, top: float) -> list[str]:
    lines = f"M{LEFT},{TOP}h{PLOT_WIDTH}M{LEFT},{HEIGHT - BOTTOM}h{PLOT_WIDTH}"
    return [
        f"<path d='{lines}' stroke='{TEXT}' stroke-width='.5' stroke-opacity='.6'/>",
        _text(LEFT - 4, TOP + 4, number(top), "end"),
        _text(LEFT - 4, HEIGHT - BOTTOM + 4, number(bottom), "end"),
    ]


def _text(x: float, y: float, text: str, anchor: str = "") -> str:
    placed = f" text-anchor='{anchor}'" if anchor else ""
    return f"<text x='{x:.0f}' y='{y:.0f}'{placed}>{escape(text, quote=True)}</text>"


def _picture(title: str, parts: Sequence[str], said: str = "") -> str:
    height = HEIGHT if parts else 24
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' font-family='sans-serif' "
        f"font-size='11'><g fill='{TEXT}'>"
        + _text(0, 12, title)
        + (_text(WIDTH - RIGHT, 12, said, "end") if said else "")
        + "".join(parts)
        + "</g></svg>"
    )
