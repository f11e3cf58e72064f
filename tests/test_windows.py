"""Windows: calendars, clock changes, and that every instant lies in exactly one window of a grain."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uniq_pipeline.frames import LATEST_EVENT_S
from uniq_pipeline.windows import (
    BUCKET,
    CHILD,
    GRAINS,
    HOUR_S,
    ROLLUP_ORDER,
    Grain,
    Window,
    ancestors_of,
    bucket_of,
    from_epoch,
    iso,
    parents_of,
    to_epoch,
    window_at,
    windows_in,
)

ZONES = [
    "UTC",
    "Europe/Zurich",
    "America/Sao_Paulo",  # until 2019 the clocks changed at midnight
    "Asia/Beirut",  # they still do
    "America/Havana",  # midnight comes twice
    "America/St_Johns",  # until 2011 they went back from 00:01 to 23:01
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # changes by half an hour
    "Pacific/Apia",  # 2011-12-30 was left out
    "Pacific/Kiritimati",
    "America/Los_Angeles",
    "Antarctica/Casey",  # three hours back, over midnight
]


def at(text, zone="UTC"):
    return to_epoch(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)))


def bounds(grain, text, zone):
    """Bounds in UTC of the window at a local time."""
    window = window_at(grain, at(text, zone), ZoneInfo(zone))
    return iso(window.start_s), iso(window.end_s)


@pytest.mark.parametrize(
    "zone, day, hours",
    [
        ("Europe/Zurich", "2026-03-28", 24),
        ("Europe/Zurich", "2026-03-29", 23),
        ("Europe/Zurich", "2026-10-25", 25),
        ("America/Sao_Paulo", "2018-11-04", 23),
        ("America/Sao_Paulo", "2018-02-17", 25),
        ("Asia/Beirut", "2026-03-29", 23),
        ("Asia/Beirut", "2026-10-24", 25),
        ("Asia/Kolkata", "2026-03-29", 24),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("UTC", "2026-03-29", 24),
    ],
)
def test_54_a_day_has_as_many_hours_as_the_clocks_gave_it(zone, day, hours):
    window = window_at(Grain.DAY, at(f"{day}T12:00", zone), ZoneInfo(zone))
    assert (window.end_s - window.start_s) / HOUR_S == hours


def test_54_days_of_zurich_begin_at_its_midnight_before_and_after_the_change():
    assert bounds(Grain.DAY, "2026-03-29T12:00", "Europe/Zurich") == (
        "2026-03-28T23:00:00Z",
        "2026-03-29T22:00:00Z",
    )
    assert bounds(Grain.DAY, "2026-10-25T12:00", "Europe/Zurich") == (
        "2026-10-24T22:00:00Z",
        "2026-10-25T23:00:00Z",
    )


def test_54_a_day_whose_midnight_is_skipped_begins_with_the_change():
    assert bounds(Grain.DAY, "2026-03-29T12:00", "Asia/Beirut") == ("2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z")
    assert bounds(Grain.DAY, "2018-11-04T12:00", "America/Sao_Paulo")[0] == "2018-11-04T03:00:00Z"


def test_54_where_midnight_comes_twice_the_day_begins_with_the_first():
    assert bounds(Grain.DAY, "2026-11-01T12:00", "America/Havana") == (
        "2026-11-01T04:00:00Z",
        "2026-11-02T05:00:00Z",
    )


def test_54_where_the_clocks_go_back_over_midnight_no_minute_is_lost_or_counted_in_two_days():
    zone = ZoneInfo("America/St_Johns")
    first_midnight = to_epoch(datetime.fromisoformat("2010-11-07T02:30:00Z"))
    old_day_again = first_midnight + 10 * 60  # the clock shows 23:10 of the day before
    assert from_epoch(old_day_again).astimezone(zone).date() == date(2010, 11, 6)
    assert window_at(Grain.DAY, old_day_again, zone).start_s == first_midnight
    assert window_at(Grain.WEEK, old_day_again, zone).end_s > old_day_again
    days = windows_in(Grain.DAY, first_midnight - 60, old_day_again + 60, zone)
    assert [day.start_s for day in days[1:]] == [first_midnight]


def test_a_day_that_a_country_left_out_has_no_window():
    zone = ZoneInfo("Pacific/Apia")
    days = windows_in(Grain.DAY, at("2011-12-29T12:00", "Pacific/Apia"), at("2011-12-31T12:00", "Pacific/Apia"), zone)
    assert [from_epoch(day.start_s).astimezone(zone).date() for day in days] == [
        date(2011, 12, 29),
        date(2011, 12, 31),
    ]


def test_half_hour_zones_have_days_that_cut_an_hour():
    assert bounds(Grain.DAY, "2026-01-01T12:00", "Asia/Kolkata") == (
        "2025-12-31T18:30:00Z",
        "2026-01-01T18:30:00Z",
    )
    assert bounds(Grain.DAY, "2026-01-01T12:00", "Australia/Lord_Howe")[0] == "2025-12-31T13:00:00Z"  # +11 in summer
    assert bounds(Grain.DAY, "2026-07-01T12:00", "Australia/Lord_Howe")[0] == "2026-06-30T13:30:00Z"


def test_hours_and_minutes_are_those_of_utc_in_every_zone():
    assert bounds(Grain.HOUR, "2026-01-01T12:00", "Asia/Kolkata") == (
        "2026-01-01T06:00:00Z",
        "2026-01-01T07:00:00Z",
    )


@pytest.mark.parametrize(
    "day, monday, week",
    [
        ("2027-01-01", "2026-12-28", (2026, 53)),
        ("2027-01-04", "2027-01-04", (2027, 1)),
        ("2024-12-30", "2024-12-30", (2025, 1)),
        ("2024-12-29", "2024-12-23", (2024, 52)),
        ("2023-01-01", "2022-12-26", (2022, 52)),
        ("2020-12-31", "2020-12-28", (2020, 53)),
    ],
)
def test_55_the_first_days_of_january_belong_to_their_iso_week(day, monday, week):
    assert bounds(Grain.WEEK, f"{day}T10:00", "UTC")[0] == f"{monday}T00:00:00Z"
    assert date.fromisoformat(day).isocalendar()[:2] == week == date.fromisoformat(monday).isocalendar()[:2]


@pytest.mark.parametrize("year, days", [(2024, 29), (2026, 28), (2000, 29), (2100, 28)])
def test_55_february_has_its_leap_day(year, days):
    month = window_at(Grain.MONTH, at(f"{year}-02-10T00:00"), ZoneInfo("UTC"))
    assert month.end_s - month.start_s == days * 86_400
    whole_year = window_at(Grain.YEAR, at(f"{year}-02-10T00:00"), ZoneInfo("UTC"))
    assert whole_year.end_s - whole_year.start_s == (days + 337) * 86_400


def test_december_ends_with_the_year():
    assert bounds(Grain.MONTH, "2026-12-31T23:59:59", "UTC") == ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z")
    assert bounds(Grain.YEAR, "2026-12-31T23:59:59", "UTC") == ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z")


@pytest.mark.parametrize("grain", GRAINS)
def test_a_window_is_half_open(grain):
    zone = ZoneInfo("Europe/Zurich")
    window = window_at(grain, at("2026-05-05T10:20:30"), zone)
    assert window_at(grain, window.start_s, zone) == window == window_at(grain, window.end_s - 1, zone)
    if window.end_s <= LATEST_EVENT_S:  # beyond, the year after would end past Python's calendar
        assert window_at(grain, window.end_s, zone).start_s == window.end_s
    assert windows_in(grain, window.start_s, window.end_s, zone) == [window]
    assert windows_in(grain, window.start_s, window.start_s, zone) == []


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("instant_s", [0, LATEST_EVENT_S])
def test_the_first_and_the_last_event_time_have_windows_of_every_grain_in_every_zone(zone, instant_s):
    for grain in GRAINS:
        window = window_at(grain, instant_s, ZoneInfo(zone))
        assert window.start_s <= instant_s < window.end_s
        assert bucket_of(window, ZoneInfo(zone))


zones = st.sampled_from(ZONES).map(ZoneInfo)
instants = st.integers(0, 2**32) | st.integers(0, LATEST_EVENT_S)
CHANGES = [
    ("America/St_Johns", "2010-11-07T02:31:00Z"),
    ("Antarctica/Casey", "2010-03-04T15:00:00Z"),
    ("Asia/Beirut", "2026-03-28T22:00:00Z"),
    ("America/Havana", "2026-11-01T05:00:00Z"),
    ("Pacific/Apia", "2011-12-30T10:00:00Z"),
]


@given(st.sampled_from(GRAINS), instants, zones)
def test_every_instant_lies_in_its_window_and_windows_tile_the_line(grain, instant_s, zone):
    window = window_at(grain, instant_s, zone)
    assert window.start_s <= instant_s < window.end_s
    assert window_at(grain, window.end_s - 1, zone) == window == window_at(grain, window.start_s, zone)
    if window.end_s <= LATEST_EVENT_S:  # beyond, the year after would end past Python's calendar
        assert window_at(grain, window.end_s, zone).start_s == window.end_s
    assert window_at(grain, window.start_s - 1, zone).end_s == window.start_s


@pytest.mark.parametrize("zone, change", CHANGES)
@pytest.mark.parametrize("grain", ROLLUP_ORDER)
def test_windows_tile_the_line_around_a_clock_change_at_midnight(grain, zone, change):
    change_s = to_epoch(datetime.fromisoformat(change))
    windows = windows_in(grain, change_s - 3 * 86_400, change_s + 3 * 86_400, ZoneInfo(zone))
    assert all(a.end_s == b.start_s for a, b in zip(windows, windows[1:], strict=False))
    for minute_s in range(change_s - 5 * HOUR_S, change_s + 5 * HOUR_S, 60):
        window = window_at(grain, minute_s, ZoneInfo(zone))
        assert window in windows and window.start_s <= minute_s < window.end_s


@given(st.sampled_from(GRAINS), instants, st.integers(0, 40 * 86_400), zones)
def test_windows_in_a_span_cover_it_without_gap_or_overlap(grain, start_s, length_s, zone):
    if grain is Grain.MINUTE:
        length_s //= 500
    windows = windows_in(grain, start_s, min(start_s + length_s, LATEST_EVENT_S), zone)
    if length_s and windows:
        assert windows[0].start_s <= start_s and windows[-1].end_s >= min(start_s + length_s, LATEST_EVENT_S)
    assert all(a.end_s == b.start_s for a, b in zip(windows, windows[1:], strict=False))


@given(st.sampled_from(ROLLUP_ORDER), instants, zones)
def test_a_child_names_its_parent_and_children_cover_it(grain, instant_s, zone):
    parent = window_at(grain, instant_s, zone)
    children = windows_in(CHILD[grain], parent.start_s, parent.end_s, zone)
    assert all(parent in parents_of(child, zone) for child in children)
    if grain is not Grain.DAY:  # a day may cut an hour of UTC
        assert (children[0].start_s, children[-1].end_s) == (parent.start_s, parent.end_s)


@given(st.sampled_from(GRAINS), instants, zones)
@example(Grain.HOUR, 1767205800, ZoneInfo("Asia/Kolkata"))
def test_ancestors_are_all_coarser_windows_that_share_an_instant(grain, instant_s, zone):
    window = window_at(grain, instant_s, zone)
    ancestors = ancestors_of(window, zone)
    assert set(parents_of(window, zone)) <= set(ancestors)
    coarser = GRAINS[GRAINS.index(grain) + 1 :]
    overlapping = {window_at(g, s, zone) for g in coarser for s in (window.start_s, window.end_s - 1)}
    assert overlapping <= set(ancestors)
    assert all(a.start_s < window.end_s and window.start_s < a.end_s for a in ancestors)


def test_an_hour_that_a_local_midnight_cuts_has_two_days():
    zone = ZoneInfo("Asia/Kolkata")
    hour = window_at(Grain.HOUR, at("2026-01-31T18:00"), zone)
    assert [iso(day.start_s) for day in parents_of(hour, zone)] == ["2026-01-30T18:30:00Z", "2026-01-31T18:30:00Z"]
    assert len([a for a in ancestors_of(hour, zone) if a.grain is Grain.MONTH]) == 2


def test_a_year_has_no_parents_and_a_day_has_a_week_and_a_month():
    zone = ZoneInfo("UTC")
    assert parents_of(window_at(Grain.YEAR, 0, zone), zone) == []
    assert [p.grain for p in parents_of(window_at(Grain.DAY, 0, zone), zone)] == [Grain.WEEK, Grain.MONTH]


@given(st.sampled_from(GRAINS), instants, zones)
def test_a_bucket_holds_the_start_of_its_windows(grain, instant_s, zone):
    window = window_at(grain, instant_s, zone)
    bucket = bucket_of(window, zone)
    assert bucket.grain is BUCKET[grain] and bucket.start_s <= window.start_s < bucket.end_s


@given(instants)
def test_instants_are_written_as_iso_and_read_back(instant_s):
    assert to_epoch(datetime.fromisoformat(iso(instant_s))) == instant_s
    assert to_epoch(from_epoch(instant_s) + timedelta(microseconds=999_999)) == instant_s


def test_a_window_names_its_grain_and_start():
    assert str(Window(Grain.HOUR, 0, HOUR_S)) == "hour 1970-01-01T00:00:00Z"
