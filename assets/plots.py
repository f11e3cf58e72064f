"""Small plots as SVG, for asset pages. Numbers in, Markdown out; no library, because one costs a tick half a second.

The Dagster UI (1.13) shows data addresses of Markdown images, and nothing of SVG that stands in the text itself.
Markdown of 1,000 characters or more it hides behind a link, so every character counts. Colours are readable on white
and on black, as an image cannot know the page's theme.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from urllib.parse import quote

# Markdown must be shorter to be shown at once.
SHOWN_BELOW = 1000

WIDTH, HEIGHT = 560, 140
LEFT, RIGHT, TOP, BOTTOM = 50, 6, 20, 18
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

LINE, BAR, TEXT = "steelblue", "peru", "gray"

# Characters that may stand in an address of the form <...> as they are; a browser takes spaces for what they are.
_PLAIN = " /:=',;+-*!$&@~_.?()|"


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
        return _nothing(title)
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

    path = "".join(_path([place(dot, dot.y) for dot in piece if dot.y is not None]) for piece in _pieces(dots, step))
    ys = [dot.y for dot in known if dot.y is not None]
    parts = [
        _text(0, 11, f"{title}: last {number(ys[-1])}, min {number(min(ys))}, max {number(max(ys))}"),
        _text(0, TOP + 9, number(top)),
        _text(0, HEIGHT - BOTTOM, number(bottom)),
        _text(LEFT, HEIGHT - 4, shown_x(first)),
        _text(WIDTH, HEIGHT - 4, shown_x(last), "end") if last > first else "",
        _axes(),
        _band(known, place),
        f"<path d='{path}' fill='none' stroke='{LINE}' stroke-width='2' stroke-linecap='round'/>",
    ]
    return _picture(parts)


def bar_plot(title: str, bars: Sequence[tuple[str, float]]) -> str:
    """SVG of bars with their labels below. `title` says what and in which unit; the sum and the largest are named.

    Heights are in proportion, but a bar that is not zero is seen.
    """
    if not any(value > 0 for _, value in bars):
        return _nothing(title)
    top = max(value for _, value in bars)
    step = PLOT_WIDTH / len(bars)
    path = "".join(
        f"M{LEFT + (place + 0.5) * step:.0f},{HEIGHT - BOTTOM}v-{max(1, round(PLOT_HEIGHT * value / top))}"
        for place, (_, value) in enumerate(bars)
        if value > 0
    )
    labels = "".join(
        f"<tspan x='{LEFT + (place + 0.5) * step:.0f}'>{_escaped(label)}</tspan>"
        for place, (label, _) in enumerate(bars)
    )
    total = sum(value for _, value in bars)
    parts = [
        _text(0, 11, f"{title}: {number(total)} in all, at most {number(top)}"),
        _text(0, TOP + 9, number(top)),
        _text(0, HEIGHT - BOTTOM, "0"),
        f"<text y='{HEIGHT - 4}' text-anchor='middle'>{labels}</text>",
        _axes(),
        f"<path d='{path}' stroke='{BAR}' stroke-width='{max(1, round(step * 0.7))}'/>",
    ]
    return _picture(parts)


def markdown(alt: str, svg: str) -> str:
    """A Markdown image that needs nothing else."""
    spoken = alt.replace("[", "(").replace("]", ")")
    return f"![{spoken}](<data:image/svg+xml,{quote(svg, safe=_PLAIN)}>)"


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
        step_y = next_y - y
        text += f",{next_x - x}{step_y}" if step_y < 0 else f",{next_x - x},{step_y}"
        x, y = next_x, next_y
    return text


def _band(known: Sequence[Dot], place: Callable[[Dot, float], tuple[int, int]]) -> str:
    bounded = [(dot, dot.low, dot.high) for dot in known if dot.low is not None and dot.high is not None]
    if len(bounded) < 2:
        return ""
    outline = [place(dot, high) for dot, _, high in bounded] + [place(dot, low) for dot, low, _ in reversed(bounded)]
    return f"<path d='{_path(outline)}z' fill='{LINE}' opacity='.3'/>"


def _axes() -> str:
    return f"<path d='M{LEFT},{TOP}h{PLOT_WIDTH}m0,{PLOT_HEIGHT}h-{PLOT_WIDTH}' stroke='{TEXT}' stroke-width='.3'/>"


def _text(x: float, y: float, text: str, anchor: str = "") -> str:
    placed = f" text-anchor='{anchor}'" if anchor else ""
    return f"<text x='{x:.0f}' y='{y:.0f}'{placed}>{_escaped(text)}</text>"


def _escaped(text: str) -> str:
    return escape(text, quote=False)


def _nothing(title: str) -> str:
    return _picture([_text(0, 11, f"{title}: nothing yet")], height=16)


def _picture(parts: Sequence[str], height: int = HEIGHT) -> str:
    start = f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' fill='{TEXT}'"
    return f"{start} font-family='sans-serif' font-size='11'>{''.join(parts)}</svg>"
