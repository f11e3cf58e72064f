"""Grains and calendar windows. Every window is half-open, `[start, end)`, and keyed by its start in UTC.

Minutes and hours are cut in UTC. Days, ISO weeks, months and years are calendar windows of the configured
time zone, so a day may have 23 or 25 hours. Instants are whole seconds since 1970-01-01T00:00:00Z.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo

MINUTE_S = 60
HOUR_S = 3600


class Grain(StrEnum):
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


GRAINS: tuple[Grain, ...] = tuple(Grain)

# What a coarser window is merged from. A day takes whole hours, and minutes at edges that cut an hour.
CHILD: dict[Grain, Grain] = {
    Grain.HOUR: Grain.MINUTE,
    Grain.DAY: Grain.HOUR,
    Grain.WEEK: Grain.DAY,
    Grain.MONTH: Grain.DAY,
    Grain.YEAR: Grain.MONTH,
}

# Finest first: every child stands before its parents.
ROLLUP_ORDER: tuple[Grain, ...] = (Grain.HOUR, Grain.DAY, Grain.WEEK, Grain.MONTH, Grain.YEAR)

# The window whose rows share one result file, and one partition key in Dagster.
BUCKET: dict[Grain, Grain] = {
    Grain.MINUTE: Grain.HOUR,
    Grain.HOUR: Grain.DAY,
    Grain.DAY: Grain.MONTH,
    Grain.WEEK: Grain.WEEK,
    Grain.MONTH: Grain.MONTH,
    Grain.YEAR: Grain.YEAR,
}


@dataclass(frozen=True, order=True)
class Window:
    """One window `[start_s, end_s)` of a grain."""

    grain: Grain
    start_s: int
    end_s: int

    def __str__(self) -> str:
        return f"{self.grain} {iso(self.start_s)}"


def iso(instant_s: int) -> str:
    """`YYYY-MM-DDTHH:MM:SSZ`"""
    return from_epoch(instant_s).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_epoch(instant_s: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(instant_s))


def to_epoch(instant: datetime) -> int:
    """Whole seconds of an aware datetime."""
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


def window_at(grain: Grain, instant_s: int, zone: ZoneInfo) -> Window:
    """The window of that grain that contains the instant."""
    if grain is Grain.MINUTE or grain is Grain.HOUR:
        size = MINUTE_S if grain is Grain.MINUTE else HOUR_S
        start_s = instant_s - instant_s % size
        return Window(grain, start_s, start_s + size)
    day = from_epoch(instant_s).astimezone(zone).date()
    window = _calendar_window(grain, day, zone)
    if instant_s >= window.end_s:
        # The clocks went back over midnight (St. John's did at 00:01): what comes after the first midnight
        # belongs to the new day, though the calendar shows the old one again.
        window = _calendar_window(grain, day + timedelta(days=1), zone)
    return window


@lru_cache(maxsize=4096)
def _calendar_window(grain: Grain, day: date, zone: ZoneInfo) -> Window:
    if grain is Grain.DAY:
        first, after = day, day + timedelta(days=1)
    elif grain is Grain.WEEK:
        first = day - timedelta(days=day.weekday())
        after = first + timedelta(days=7)
    elif grain is Grain.MONTH:
        first = day.replace(day=1)
        after = date(day.year + day.month // 12, day.month % 12 + 1, 1)
    else:
        first, after = date(day.year, 1, 1), date(day.year + 1, 1, 1)
    return Window(grain, _midnight_s(first, zone), _midnight_s(after, zone))


def _midnight_s(day: date, zone: ZoneInfo) -> int:
    """The first instant of a local day. Where a clock change skips midnight, it is the change itself."""
    return to_epoch(datetime.combine(day, time.min, tzinfo=zone))


def bucket_of(window: Window, zone: ZoneInfo) -> Window:
    """The window whose rows share one result file with this one."""
    return window_at(BUCKET[window.grain], window.start_s, zone)


def windows_in(grain: Grain, start_s: int, end_s: int, zone: ZoneInfo) -> list[Window]:
    """The windows of a grain that overlap `[start_s, end_s)`, in order."""
    windows = []
    at = start_s
    while at < end_s:
        window = window_at(grain, at, zone)
        windows.append(window)
        at = window.end_s
    return windows


def parents_of(window: Window, zone: ZoneInfo) -> list[Window]:
    """The windows merged directly from this one. An hour that a local midnight cuts has two days."""
    return [
        parent
        for grain, child in CHILD.items()
        if child is window.grain
        for parent in windows_in(grain, window.start_s, window.end_s, zone)
    ]


def ancestors_of(window: Window, zone: ZoneInfo) -> list[Window]:
    """All coarser windows that overlap this one."""
    finer = GRAINS.index(window.grain)
    return [
        coarser for grain in GRAINS[finer + 1 :] for coarser in windows_in(grain, window.start_s, window.end_s, zone)
    ]
