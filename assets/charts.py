"""Which plots each asset shows, of what a run looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo

from dagster import MetadataValue

from assets.metadata import Metadata
from assets.plots import SHOWN_BELOW, Dot, bar_plot, line_plot, markdown
from uniq_pipeline.health import complete_until_s
from uniq_pipeline.intake import LATENESS_STEPS_S
from uniq_pipeline.ledger.health import Recent
from uniq_pipeline.trends import Point
from uniq_pipeline.windows import HOUR_S, MINUTE_S, Grain, from_epoch

# Bars of lateness: up to five minutes. A plot of more were too long.
LAST_STEP = LATENESS_STEPS_S.index(300) + 1

# Fewer are not worth the place.
FEWEST_DOTS = 8

# From one point to the next, at most; where there is none for longer, the line is broken.
_STEP_S: Mapping[Grain, float] = {
    Grain.MINUTE: MINUTE_S,
    Grain.HOUR: HOUR_S,
    Grain.DAY: 25 * HOUR_S,
    Grain.WEEK: 7 * 25 * HOUR_S,
    Grain.MONTH: 31 * 25 * HOUR_S,
    Grain.YEAR: 366 * 25 * HOUR_S,
}

_FORMAT: Mapping[Grain, str] = {
    Grain.MINUTE: "%H:%M UTC",
    Grain.HOUR: "%d %b %H:%M UTC",
    Grain.DAY: "%d %b %Y",
    Grain.WEEK: "%d %b %Y",
    Grain.MONTH: "%b %Y",
    Grain.YEAR: "%Y",
}


def frames_plots(recent: Recent) -> Metadata:
    """Records read, how far behind they were committed, and how late frames came; since a while ago."""
    if not recent.commits:
        return {}
    by_minute: dict[int, int] = {}
    for at, delivered, _ in recent.commits:
        minute = int(at) - int(at) % MINUTE_S
        by_minute[minute] = by_minute.get(minute, 0) + delivered
    counts = [Dot(minute, records) for minute, records in sorted(by_minute.items())]
    plots: Metadata = {"plot_records": _line("records read a minute", counts, Grain.MINUTE)}
    delays = [Dot(at, delay) for at, _, delay in recent.commits if delay is not None]
    if delays:
        plots["plot_delay"] = _line("age at commit of the oldest frames read, seconds", delays, Grain.MINUTE)
    late = {step: records for step, records in recent.lateness.items() if step != "0" and records > 0}
    if late:
        plots["plot_lateness"] = MetadataValue.md(
            markdown("late", bar_plot("late frames, by how many seconds at most", _bars(late)))
        )
    return plots


def counts_plots(grain: Grain, points: Sequence[Point], zone: tzinfo, front_s: int | None) -> Metadata:
    """Users of the newest windows. Minutes that have only begun are left out; a longer window counts to date."""
    if grain is Grain.MINUTE:
        end_s = complete_until_s(front_s) or 0
        points = [point for point in points if point.window.end_s <= end_s]
    if len(points) < 2:
        return {}
    exact = all(point.users is not None for point in points)
    dots = [
        # an exact count needs no bounds
        Dot(p.window.start_s, p.estimate, p.lower, p.upper) if p.users is None else Dot(p.window.start_s, p.users)
        for p in points
    ]
    return {"plot_users": _line(f"users a {grain}{'' if exact else ', to date in the last one'}", dots, grain, zone)}


def error_plot(grain: Grain, points: Sequence[Point], zone: tzinfo) -> Metadata:
    """The error of estimates where the exact count is known, with the bounds that were given with them."""
    dots = [
        Dot(
            point.window.start_s,
            point.error_percent,
            # the exact count may lie anywhere between the bounds, so the error as far from 0 as they are from it
            100 * (point.estimate - point.upper) / point.users,
            100 * (point.estimate - point.lower) / point.users,
        )
        for point in points
        if point.users
    ]
    if len(dots) < 2:
        return {}
    title = f"error of the estimate, % of the exact count, a {grain}; bounds shaded"
    return {"plot_error": _line(title, dots, grain, zone, from_zero=False)}


def _line(
    title: str, dots: Sequence[Dot], grain: Grain, zone: tzinfo | None = None, *, from_zero: bool = True
) -> MetadataValue:
    def shown(start_s: float) -> str:
        moment = from_epoch(int(start_s))
        # Calendar windows begin at a local midnight, which in UTC may be of another day.
        return f"{moment.astimezone(zone) if grain not in (Grain.MINUTE, Grain.HOUR) else moment:{_FORMAT[grain]}}"

    while True:
        image = markdown("plot", line_plot(title, dots, step=_STEP_S[grain], shown_x=shown, from_zero=from_zero))
        if len(image) < SHOWN_BELOW or len(dots) <= FEWEST_DOTS:
            return MetadataValue.md(image)
        dots = dots[len(dots) // 8 :]  # the newest are the ones that matter


def _bars(late: Mapping[str, int]) -> list[tuple[str, float]]:
    """A bar a step; what is later than the last of them is one more."""
    bars = [(str(step), float(late.get(str(step), 0))) for step in LATENESS_STEPS_S[1:LAST_STEP]]
    more = sum(late.values()) - sum(frames for _, frames in bars)
    return [*bars, ("more", more)] if more else bars
