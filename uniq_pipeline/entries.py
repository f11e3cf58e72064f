"""Entries: the lists of files as the catalog's SQL reads them (layout: sql/catalog/10_lists.sql).

Pure: what the ledger names goes in, text comes out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from zoneinfo import ZoneInfo

from uniq_pipeline.windows import HOUR_S, Grain, Window, window_at, windows_in

# A calendar day with a clock change is this long at most: a piece inside a set of a day begins within that of an end
# of every range that cuts the day.
_LONGEST_DAY_S = 25 * HOUR_S
_UTC_DAY_S = 24 * HOUR_S

# Later than any range reaches, in as many digits as an entry has for it.
_NEVER_S = 9_999_999_999

# From the finest to the coarsest, each inside the next. Weeks are not: they cut months.
_NESTED = (Grain.HOUR, Grain.DAY, Grain.MONTH, Grain.YEAR)


@dataclass(frozen=True)
class Pieces:
    """Lists of what exact counts of any range are read from.

    nested_*  stand inside a set of a day or less; any range needs only those near its ends
    hours_without_frames  hours that were counted, and cannot be counted again
    """

    nested_sets: str
    other_sets: str
    nested_frames: str
    other_frames: str
    hours_without_frames: str


def entry(
    span: tuple[int, int], path: str = "", *, rows: int = 0, superfluous_in: tuple[int, int] | None = None
) -> str:
    """One entry. `superfluous_in` is the span that something coarser answers for."""
    (start_s, end_s), (whole_start_s, whole_end_s) = span, superfluous_in or (_NEVER_S, _NEVER_S)
    return f"{max(0, start_s):010d}{end_s:010d}{max(0, whole_start_s):010d}{whole_end_s:010d}{rows:010d}{path}"


def result_entries(grain: Grain, buckets: Sequence[tuple[int, int, str]], zone: ZoneInfo) -> str:
    """The result files of a grain, from (start, end, path) of their buckets, in order.

    A whole bucket is never needed where its own window (an hour of minutes, a day of hours) is inside a range.
    """
    midnights = _midnights_within_hours([start_s for start_s, _, _ in buckets], zone) if grain is Grain.MINUTE else {}
    entries = [
        entry((start_s, end_s), path, superfluous_in=_answered_by(grain, start_s, end_s, midnights, zone))
        for start_s, end_s, path in buckets
    ]
    return _by_day(entries) if grain is Grain.MINUTE else all_days(entries)


def _answered_by(
    grain: Grain, start_s: int, end_s: int, midnights: Mapping[int, int], zone: ZoneInfo
) -> tuple[int, int] | None:
    if grain is Grain.MINUTE and start_s in midnights:
        # an hour that a local midnight cuts answers for none of its minutes, its two days do
        return window_at(Grain.DAY, start_s, zone).start_s, window_at(Grain.DAY, midnights[start_s], zone).end_s
    if grain in (Grain.MINUTE, Grain.HOUR, Grain.DAY):
        return start_s, end_s
    if grain is Grain.MONTH:
        year = window_at(Grain.YEAR, start_s, zone)
        return year.start_s, year.end_s
    return None


def _midnights_within_hours(hours: Sequence[int], zone: ZoneInfo) -> dict[int, int]:
    """Hour -> the local midnight that cuts it, from the first hour to the last. Most zones have none."""
    if not hours:
        return {}
    days = windows_in(Grain.DAY, hours[0], hours[-1] + HOUR_S, zone)
    return {day.start_s - day.start_s % HOUR_S: day.start_s for day in days if day.start_s % HOUR_S}


def pieces(
    sets: Sequence[tuple[Window, int, str]],
    frames: Sequence[tuple[int, int, str]],
    counted_hours: Sequence[int],
    zone: ZoneInfo,
) -> Pieces:
    """The lists from (window, users, path) of valid sets and (hour, rows, path) of frames files, oldest first.

    counted_hours  starts of the hours that have results, oldest first

    An hour that a local midnight cuts is in two days, so its set is part of neither: its frames stand for it, once for
    each side of the midnight.
    """
    known = _Sets([window for window, _, _ in sets])
    with_frames = {hour_s for hour_s, _, _ in frames}
    midnights = _midnights_within_hours(sorted({*counted_hours, *with_frames}), zone)
    lists: dict[str, list[str]] = {"nested_sets": [], "other_sets": [], "nested_frames": [], "other_frames": []}

    def add(kind: str, text: str, whole: tuple[int, int] | None) -> None:
        is_nested = whole is not None and whole[1] - whole[0] <= _LONGEST_DAY_S
        lists[f"{'nested' if is_nested else 'other'}_{kind}"].append(text)

    def parts(hour_s: int) -> Iterator[tuple[tuple[int, int], tuple[int, int] | None]]:
        span = hour_s, hour_s + HOUR_S
        if hour_s not in midnights:
            yield span, known.smallest_around(span, _NESTED)
            return
        for part in (hour_s, midnights[hour_s]), (midnights[hour_s], hour_s + HOUR_S):
            yield part, known.smallest_around(part, _NESTED[1:])

    for window, users, path in sorted(sets, key=lambda row: row[0].start_s):
        if window.grain in _NESTED and not (window.grain is Grain.HOUR and window.start_s in midnights):
            span = window.start_s, window.end_s
            whole = known.smallest_around(span, _NESTED[_NESTED.index(window.grain) + 1 :])
            add("sets", entry(span, path, rows=users, superfluous_in=whole), whole)
    for hour_s, rows, path in frames:
        for span, whole in parts(hour_s):
            add("frames", entry(span, path, rows=rows, superfluous_in=whole), whole)
    gaps = [
        entry(span, superfluous_in=whole)
        for hour_s in counted_hours
        if hour_s not in with_frames
        for span, whole in parts(hour_s)
    ]
    return Pieces(
        nested_sets=_by_day(lists["nested_sets"]),
        other_sets=all_days(lists["other_sets"]),
        nested_frames=_by_day(lists["nested_frames"]),
        other_frames=all_days(lists["other_frames"]),
        hours_without_frames=all_days(gaps),
    )


def _by_day(entries: Sequence[str]) -> str:
    """A line for the entries that start on one UTC day; they come in order."""
    days = groupby(entries, key=lambda text: int(text[:10]) // _UTC_DAY_S * _UTC_DAY_S)
    return "#".join(f"{_cut_between(day_s, day_s + _UTC_DAY_S)}{'|'.join(day)}" for day_s, day in days)


def _cut_between(start_s: int, end_s: int) -> str:
    """Two numbers: a range that ends between them may cut an hour that starts in `[start_s, end_s)`, or its day."""
    return f"{max(0, start_s - _LONGEST_DAY_S):010d}{end_s + HOUR_S + _LONGEST_DAY_S:010d}"


def expired_entries(results: Iterable[tuple[Grain, int, int]]) -> str:
    """Spans `[start, end)` whose results of a grain have expired, as the catalog has them (sql: uniq_needs_expired)."""
    return "|".join(f"{max(0, start_s):010d}{end_s:010d}{grain}" for grain, start_s, end_s in results)


def all_days(entries: Sequence[str]) -> str:
    """One line for all."""
    return f"{0:010d}{_NEVER_S:010d}{'|'.join(entries)}"


class _Sets:
    """Finds the smallest set around a span."""

    def __init__(self, windows: Iterable[Window]) -> None:
        self._spans: dict[Grain, list[tuple[int, int]]] = {grain: [] for grain in Grain}
        for window in windows:
            self._spans[window.grain].append((window.start_s, window.end_s))
        for spans in self._spans.values():
            spans.sort()

    def smallest_around(self, span: tuple[int, int], grains: Iterable[Grain]) -> tuple[int, int] | None:
        for grain in grains:
            spans = self._spans[grain]
            place = bisect_right(spans, (span[0], 1 << 62)) - 1
            if place >= 0 and spans[place][1] >= span[1]:
                return spans[place]
        return None
