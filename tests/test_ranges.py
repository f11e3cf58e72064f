"""The catalog's answers about ranges of time, against sets counted here: users, cover, overlap, retention.

A lake of fourteen months with frames in some fifty of its hours is asked as a person would, by a DuckDB of its own.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import warnings
from bisect import bisect_left
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import duckdb
import pytest

from uniq_pipeline.catalog import refresh_catalog
from uniq_pipeline.config import Settings
from uniq_pipeline.frames import LATEST_EVENT_S
from uniq_pipeline.ingest import file_logs, load_file
from uniq_pipeline.tick import open_workshop, tick

LG_K = 11
FIRST, LAST = date(2024, 12, 20), date(2026, 2, 10)
EVERYTHING = ("2024-12-01", "2026-03-01")
ALL = "exact_up_to := 1000000000"


@dataclass
class Lake:
    """A data folder and what was put into it: (event second, uid) in order of time."""

    settings: Settings
    zone: ZoneInfo
    truth: list[tuple[int, str]]

    def users(self, start_s, end_s):
        return {uid for _, uid in self.truth[bisect_left(self.truth, (start_s,)) : bisect_left(self.truth, (end_s,))]}

    def frames(self, start_s, end_s):
        return bisect_left(self.truth, (end_s,)) - bisect_left(self.truth, (start_s,))

    def local_s(self, *numbers):
        return int(datetime(*numbers, tzinfo=self.zone).timestamp())

    @cached_property
    def shell(self):
        connection = duckdb.connect(str(self.settings.catalog_path), read_only=True)
        connection.execute("SET TimeZone = 'America/St_Johns'")  # a person's own zone must not change an answer
        return connection

    def ask(self, sql):
        # sql() would plan twice, and planning is most of an answer: it picks the files.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)
            return self.shell.execute(sql).to_arrow_table().to_pylist()

    def one(self, sql):
        (row,) = self.ask(sql)
        return row


def load(folder, zone, frames):
    """A data folder with these (event second, uid), counted, and closed as far as they go."""
    # Between bursts of few frames the event watermark jumps by days; what it leaves behind is to be counted here.
    settings = Settings(
        data_dir=folder, timezone=str(zone), lg_k=LG_K, results_topic=None, duckdb_threads=1, very_late="correct"
    )
    path = folder / f"frames-{frames[0][0]}.jsonl"
    path.write_text("".join(json.dumps({"ts": ts, "uid": uid}) + "\n" for ts, uid in frames))
    with open_workshop(settings) as shop:
        for log in file_logs(shop.ledger, [str(path)]):
            for _ in load_file(shop, log):
                pass
        tick(shop, None, None, close_windows=True)
    return settings


def traffic(zone, seed):
    """Frames in bursts: around midnights, ends of months and years, clock changes, and anywhere."""
    rng = Random(seed)
    days = [FIRST + timedelta(days=rng.randrange((LAST - FIRST).days)) for _ in range(10)]
    days += [date(2024, 12, 31), date(2025, 1, 1), date(2025, 3, 30), date(2025, 6, 30), date(2025, 10, 26)]
    days += [date(2025, 12, 31), date(2026, 1, 1), LAST]
    frames = []
    for day in days:
        midnight = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
        for start in [midnight - 900, *(midnight + rng.randrange(86_400) for _ in range(2))]:
            crowd = rng.choice([3, 40, 400])
            frames += [
                (start + rng.randrange(1800), f"user-{rng.randrange(rng.choice([crowd, 900]))}") for _ in range(crowd)
            ]
    return sorted(frames)


@pytest.fixture(scope="module", params=["Europe/Zurich", "Asia/Kolkata"])
def lake(request, tmp_path_factory):
    zone = ZoneInfo(request.param)
    truth = traffic(zone, 5)
    return Lake(load(tmp_path_factory.mktemp("ranges"), zone, truth), zone, truth)


def random_ranges(lake, count, seed):
    """Ranges of minutes, hours to months long, that begin and end near frames, near midnights, and anywhere."""
    rng = Random(seed)
    first, last = lake.truth[0][0], lake.truth[-1][0]
    edges = [ts - ts % 60 for ts, _ in lake.truth]
    midnights = [lake.local_s(2025, month, day) for month in range(1, 13) for day in (1, 2, 15)]
    for _ in range(count):
        a = rng.choice([rng.choice(edges), rng.choice(midnights), rng.randrange(first, last) // 60 * 60])
        b = rng.choice([a + 60 * rng.randrange(1, 3000), rng.choice(edges), rng.choice(midnights)])
        yield min(a, b), max(a, b)


def instant(second):
    return f"'{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%SZ}'"


def test_any_range_is_answered_within_bounds_and_exactly_where_it_says_so(lake):
    within = exact = 0
    ranges = list(random_ranges(lake, 40, 1))
    for a, b in ranges:
        answer = lake.one(f"FROM unique_users({instant(a)}, {instant(b)}, exact_up_to := 300)")
        users = len(lake.users(a, b))
        assert (answer["range_start"].timestamp(), answer["range_end"].timestamp()) == (a, b)
        assert answer["frames"] == lake.frames(a, b)
        assert answer["is_exact"] == answer["how"].startswith("exact:")
        assert answer["users_lower"] <= answer["users"] <= answer["users_upper"]
        if answer["is_exact"]:
            exact += 1
            assert answer["users_lower"] == answer["users"] == answer["users_upper"] == users
        within += answer["users_lower"] <= users <= answer["users_upper"]
    assert within >= 0.9 * len(ranges)
    assert 0 < exact < len(ranges)


def test_any_range_can_be_counted_exactly_from_the_stored_uids(lake):
    for a, b in random_ranges(lake, 25, 2):
        answer = lake.one(f"FROM unique_users({instant(a)}, {instant(b)}, {ALL})")
        assert answer["is_exact"] and answer["users"] == len(lake.users(a, b)), (a, b, answer)
        found = [row["uid"] for row in lake.ask(f"FROM distinct_users({instant(a)}, {instant(b)})")]
        assert sorted(found) == sorted(lake.users(a, b))


def smallest_cover(lake, a, b):
    """Grains of the coarsest windows in [a, b) that have frames. An hour that a local midnight cuts is none of them."""

    def local(second):
        return datetime.fromtimestamp(second, lake.zone)

    def window(grain, second):
        if grain in ("minute", "hour"):
            size = 60 if grain == "minute" else 3600
            return second - second % size, second - second % size + size
        day = local(second).date()
        first = {"day": day, "month": day.replace(day=1), "year": day.replace(day=1, month=1)}[grain]
        after = {
            "day": first + timedelta(days=1),
            "month": (first + timedelta(days=31)).replace(day=1),
            "year": first.replace(year=first.year + 1),
        }[grain]
        return lake.local_s(first.year, first.month, first.day), lake.local_s(after.year, after.month, after.day)

    cover = Counter()
    seen = set()
    for second, _ in lake.truth[bisect_left(lake.truth, (a,)) : bisect_left(lake.truth, (b,))]:
        for grain in ("year", "month", "day", "hour", "minute"):
            start, end = window(grain, second)
            cut = grain == "hour" and local(start).date() != local(end - 1).date()
            if a <= start and end <= b and not cut:
                if (grain, start) not in seen:
                    seen.add((grain, start))
                    cover[grain] += 1
                break
    return ", ".join(
        f"{cover[grain]} {grain}{'' if cover[grain] == 1 else 's'}"
        for grain in ("year", "month", "day", "hour", "minute")
        if cover[grain]
    )


def test_the_cover_is_the_smallest(lake):
    ranges = [*random_ranges(lake, 25, 3), (lake.local_s(2024, 12, 1), lake.local_s(2026, 3, 1))]
    for a, b in ranges:
        answer = lake.one(f"SELECT cover FROM unique_users({instant(a)}, {instant(b)})")
        assert answer["cover"] == smallest_cover(lake, a, b), (a, b)


def test_a_stored_window_is_exact_and_no_frames_are_no_users(lake):
    day = lake.one("SELECT * FROM unique_users('2025-01-01', '2025-01-02', exact_up_to := 0)")
    assert day["how"] == "exact: the stored count of this window" and day["cover"] == "1 day"
    assert day["users"] == len(lake.users(lake.local_s(2025, 1, 1), lake.local_s(2025, 1, 2))) > 0
    nothing = lake.one("SELECT * FROM unique_users('2020-01-01', '2020-06-01')")
    assert (nothing["users"], nothing["is_exact"], nothing["frames"]) == (0, True, 0)
    empty = lake.one("SELECT * FROM unique_users('2025-01-01', '2025-01-01')")
    assert (empty["users"], empty["is_exact"]) == (0, True)


def test_a_range_may_be_wider_than_everything(lake):
    users = len({uid for _, uid in lake.truth})
    for span in ("'1970-01-01', '9999-12-31'", "'0001-01-01', '2100-01-01'"):
        answer = lake.one(f"FROM unique_users({span}, {ALL})")
        assert (answer["users"], answer["is_exact"], answer["frames"]) == (users, True, len(lake.truth)), span
        assert len(lake.ask(f"FROM distinct_users({span})")) == users
    rows = lake.ask("FROM retention('year', '1970-01-01', '2100-01-01')")
    assert sum(row["users"] for row in rows if row["age"] == 0) == users


def test_a_bound_without_a_zone_is_in_the_pipelines_own_or_the_one_given(lake):
    start = lake.local_s(2025, 1, 1)
    for bound in (
        "'2025-01-01'",
        "DATE '2025-01-01'",
        "'2025-01-01 00:00:00'",
        "TIMESTAMP '2025-01-01'",
        instant(start),
    ):
        assert lake.one(f"FROM unique_users({bound}, '2025-01-02')")["range_start"].timestamp() == start
    new_york = datetime(2025, 1, 1, tzinfo=ZoneInfo("America/New_York")).timestamp()
    answer = lake.one("FROM unique_users('2025-01-01', '2025-01-02', zone := 'America/New_York')")
    assert answer["range_start"].timestamp() == new_york
    offset = lake.one("FROM unique_users('2025-01-01T00:00:00+02:00', '2025-01-02')")
    assert offset["range_start"].timestamp() == datetime(2024, 12, 31, 22, tzinfo=UTC).timestamp()
    assert lake.one("FROM unique_users(now() - INTERVAL 9 HOUR, now())")["users"] == 0


def test_a_range_takes_the_minutes_it_touches_whole(lake):
    answer = lake.one("FROM unique_users('2025-01-01T10:20:30Z', '2025-01-01T10:22:01Z')")
    minutes = [answer[name].astimezone(UTC).strftime("%H:%M:%S") for name in ("range_start", "range_end")]
    assert minutes == ["10:20:00", "10:23:00"]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("FROM unique_users('2025-02-01', '2025-01-01')", "ends before it begins: 2025-02-01 to 2025-01-01"),
        ("FROM unique_users('soon', '2025-01-01')", "not a time: soon; give one like '2026-11-01'"),
        ("FROM unique_users(NULL, '2025-01-01')", "not a time: NULL"),
        ("FROM unique_users_by('fortnight', '2025-01-01', '2025-02-01')", "no such grain: fortnight; there are minute"),
        ("FROM retention('minute', '2025-01-01', '2025-02-01')", "no such grain: minute; there are hour, day"),
        ("FROM unique_users('2025-01-01', '2025-02-01', dimension := 'country')", "country needs a value: value := "),
        (
            "FROM retention('day', '2025-01-01', '2025-02-01', dimension := 'country')",
            "country needs a value: value := ",
        ),
        ("FROM new_and_returning('decade', '2025-01-01', '2025-02-01')", "no such grain: decade"),
    ],
)
def test_a_question_that_cannot_be_answered_says_what_can(lake, sql, said):
    with pytest.raises(duckdb.Error, match=said):
        lake.ask(sql)


@pytest.mark.parametrize("grain", ["minute", "hour", "day", "week", "month", "year"])
def test_a_series_is_the_stored_windows_that_begin_in_the_range(lake, grain):
    for a, b in [*random_ranges(lake, 3, 4), (lake.local_s(2024, 12, 1), lake.local_s(2026, 3, 1))]:
        series = lake.ask(f"FROM unique_users_by('{grain}', {instant(a)}, {instant(b)})")
        view = lake.ask(
            f"FROM {grain}_counts WHERE epoch(window_start) >= {a} AND epoch(window_start) < {b} ORDER BY window_start"
        )
        assert series == view


def test_overlap_counts_who_was_in_both_ranges(lake):
    for (a, b), (c, d) in zip(random_ranges(lake, 8, 6), random_ranges(lake, 8, 7), strict=True):
        rows = lake.ask(f"FROM overlap([{instant(a)}, {instant(b)}], [{instant(c)}, {instant(d)}])")
        x, y = lake.users(a, b), lake.users(c, d)
        assert {row["part"]: row["users"] for row in rows} == {
            "a": len(x),
            "b": len(y),
            "both": len(x & y),
            "either": len(x | y),
            "only a": len(x - y),
            "only b": len(y - x),
        }
        assert all(row["is_exact"] and row["users_lower"] == row["users_upper"] for row in rows)


def window_start(lake, grain, second):
    if grain == "hour":
        return second - second % 3600
    day = datetime.fromtimestamp(second, lake.zone).date()
    first = {"day": day, "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1)}.get(
        grain, day.replace(day=1, month=1)
    )
    return lake.local_s(first.year, first.month, first.day)


def visits(lake, grain, a, b):
    """uid -> starts of the windows it was seen in, of those that begin in [a, b)."""
    found = defaultdict(set)
    for second, uid in lake.truth:
        start = window_start(lake, grain, second)
        if a <= start < b:
            found[uid].add(start)
    return {uid: sorted(starts) for uid, starts in found.items()}


@pytest.mark.parametrize("grain", ["hour", "day", "week", "month", "year"])
def test_retention_follows_each_cohort(lake, grain):
    a, b = ("2025-12-31", "2026-01-02") if grain == "hour" else EVERYTHING
    rows = lake.ask(f"FROM retention('{grain}', '{a}', '{b}')")
    seen = visits(
        lake,
        grain,
        window_start(lake, grain, lake.local_s(*map(int, a.split("-")))),
        lake.local_s(*map(int, b.split("-"))),
    )
    expected = Counter((starts[0], start) for starts in seen.values() for start in starts)
    found = {(row["cohort_start"].timestamp(), row["window_start"].timestamp()): row["users"] for row in rows}
    assert found == dict(expected) and len(found) > 1
    for row in rows:
        cohort = expected[row["cohort_start"].timestamp(), row["cohort_start"].timestamp()]
        assert row["cohort_users"] == cohort and row["share"] == pytest.approx(row["users"] / cohort)
        assert (row["age"] == 0) == (row["cohort_start"] == row["window_start"])


def test_age_counts_windows_of_the_calendar(lake):
    ages = {
        (row["cohort_start"].astimezone(lake.zone).date(), row["window_start"].astimezone(lake.zone).date()): row["age"]
        for row in lake.ask("FROM retention('month', '2024-12-01', '2026-03-01')")
    }
    assert ages[date(2024, 12, 1), date(2025, 3, 1)] == 3
    assert ages[date(2024, 12, 1), date(2026, 1, 1)] == 13


@pytest.mark.parametrize("since", [None, "2025-01-01"])
def test_new_returning_retained_and_lost_users_by_month(lake, since):
    begin = "2025-06-01" if since else "2024-12-01"
    extra = f", since := '{since}'" if since else ""
    rows = lake.ask(f"FROM new_and_returning('month', '{begin}', '2026-03-01'{extra})")
    first = lake.local_s(2025, 1, 1) if since else lake.local_s(2024, 12, 1)
    seen = visits(lake, "month", first, lake.local_s(2026, 3, 1))
    by_window = defaultdict(set)
    for uid, starts in seen.items():
        for start in starts:
            by_window[start].add(uid)
    months = sorted(by_window)
    assert [row["window_start"].timestamp() for row in rows] == [
        month for month in months if month >= lake.local_s(*map(int, begin.split("-")))
    ]
    for row in rows:
        start = row["window_start"].timestamp()
        earlier = {uid for month in months if month < start for uid in by_window[month]}
        before = by_window.get(window_start(lake, "month", start - 1), set())
        users = by_window[start]
        assert (row["users"], row["new_users"], row["returning_users"]) == (
            len(users),
            len(users - earlier),
            len(users & earlier),
        )
        assert (row["retained_users"], row["lost_users"]) == (len(users & before), len(before - users))


@pytest.mark.slow
def test_frames_that_no_set_has_yet_are_counted_all_the_same(tmp_path):
    """The open hour, and an hour whose set is out of date."""
    zone = ZoneInfo("UTC")
    old = [(ts, uid) for ts, uid in traffic(zone, 8) if ts < 1_756_000_000]
    new = [(1_756_000_000 + i, f"new-{i % 40}") for i in range(3000)]
    settings = load(tmp_path, zone, old)
    load(tmp_path, zone, new)
    again = [(ts, f"again-{i % 9}") for i, (ts, _) in enumerate(old) if i % 5 == 0]
    path = tmp_path / "again.jsonl"
    path.write_text("".join(json.dumps({"ts": ts, "uid": uid}) + "\n" for ts, uid in again))
    with open_workshop(settings) as shop:
        for log in file_logs(shop.ledger, [str(path)]):
            for _ in load_file(shop, log):
                pass
        tick(shop, None, None, close_windows=False)
    lake = Lake(settings, zone, sorted(old + new + again))
    for a, b in random_ranges(lake, 25, 9):
        answer = lake.one(f"FROM unique_users({instant(a)}, {instant(b)}, {ALL})")
        assert answer["is_exact"] and answer["users"] == len(lake.users(a, b)), (a, b, answer)
    rows = lake.ask("FROM retention('month', '2024-12-01', '2025-09-01')")
    expected = Counter(
        (starts[0], start) for starts in visits(lake, "month", 0, lake.local_s(2025, 9, 1)).values() for start in starts
    )
    assert {(r["cohort_start"].timestamp(), r["window_start"].timestamp()): r["users"] for r in rows} == dict(expected)


@pytest.fixture
def forgetful(lake, tmp_path):
    """The same lake when the frames and the finer sets of its first months are not kept any more."""
    folder = tmp_path / "data"
    shutil.copytree(lake.settings.data_dir, folder)
    until = lake.local_s(2025, 3, 1)
    with closing(sqlite3.connect(folder / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE files SET retired_at = 1 WHERE kind = 'frames' AND hour_s < ?", (until,))
        ledger.execute("DELETE FROM uid_sets WHERE grain IN ('hour', 'day', 'week') AND window_start_s < ?", (until,))
    settings = lake.settings.model_copy(update={"data_dir": folder})
    with open_workshop(settings) as shop:
        refresh_catalog(settings, shop.ledger, shop.lake)
    return Lake(settings, lake.zone, lake.truth)


def test_what_is_not_kept_is_estimated_with_bounds_and_said(forgetful):
    lake = forgetful
    cut = lake.one(f"FROM unique_users('2024-12-25', '2025-02-15', {ALL})")
    assert cut["how"] == "estimate: the uids of some of its hours are not kept any more"
    assert (
        cut["users_lower"]
        <= len(lake.users(lake.local_s(2024, 12, 25), lake.local_s(2025, 2, 15)))
        <= cut["users_upper"]
    )
    whole = lake.one(f"FROM unique_users('2025-01-01', '2025-03-01', {ALL})")  # the sets of its months are there
    assert whole["is_exact"] and whole["users"] == len(lake.users(lake.local_s(2025, 1, 1), lake.local_s(2025, 3, 1)))
    with pytest.raises(duckdb.Error, match="hours of this range are not kept any more"):
        lake.ask("FROM distinct_users('2025-01-01', '2025-01-15')")


def test_an_overlap_that_cannot_be_counted_is_estimated_with_honest_bounds(forgetful):
    lake = forgetful
    rows = lake.ask("FROM overlap(['2024-12-25', '2025-02-15'], ['2025-01-10', '2025-06-10'])")
    x = lake.users(lake.local_s(2024, 12, 25), lake.local_s(2025, 2, 15))
    y = lake.users(lake.local_s(2025, 1, 10), lake.local_s(2025, 6, 10))
    truth = {"a": x, "b": y, "both": x & y, "either": x | y, "only a": x - y, "only b": y - x}
    for row in rows:
        assert not row["is_exact"] and row["how"].startswith("estimate:")
        assert row["users_lower"] <= len(truth[row["part"]]) <= row["users_upper"], row
        assert row["users_lower"] <= row["users"] <= row["users_upper"]


def test_retention_without_uids_gives_null_and_the_reason(forgetful):
    for call in (
        "retention('day', '2025-01-01', '2025-02-01')",
        "new_and_returning('week', '2025-01-01', '2025-02-01')",
    ):
        row = forgetful.one(f"FROM {call}")
        assert row.pop("how").startswith("no answer: the uids of ")
        assert set(row.values()) == {None}
    months = forgetful.ask("FROM retention('month', '2025-01-01', '2025-06-01')")
    assert months and all(row["users"] for row in months)


def test_the_last_frame_that_is_accepted_is_found(tmp_path):
    """The lists of files have ten digits for seconds."""
    frames = [(LATEST_EVENT_S - i, f"u{i % 7}") for i in reversed(range(100))]
    lake = Lake(load(tmp_path, ZoneInfo("UTC"), frames), ZoneInfo("UTC"), frames)
    for since, until in (("2285-01-01", "2286-01-01"), ("1970-01-01", "9999-12-31")):
        for exact_up_to in ("", f", {ALL}"):
            row = lake.one(f"FROM unique_users('{since}', '{until}'{exact_up_to})")
            assert (row["frames"], round(row["users"])) == (100, 7), (since, exact_up_to)
    assert lake.one("FROM unique_users('2026-01-01', '2026-02-01')")["frames"] == 0


def test_a_folder_with_a_quote_in_its_name_is_readable(tmp_path):
    folder = tmp_path / "it's data"
    folder.mkdir()
    settings = load(folder, ZoneInfo("UTC"), [(1_756_000_000 + i, "u") for i in range(60)])
    assert Lake(settings, ZoneInfo("UTC"), []).one("FROM unique_users('2025-08-01', '2025-09-01')")["users"] == 1
    assert Path(settings.catalog_path).is_relative_to(folder)


COUNTRIES = ["DE", "CH", "FR", "IT", "AT", "LI"]


@dataclass
class CountryLake(Lake):
    """A lake whose frames have a country. Before `set_s` the setting did not name it."""

    country: dict[tuple[int, str], str]
    set_s: int

    def users_in(self, country, start_s, end_s):
        return {uid for second, uid in self.truth if start_s <= second < end_s and self.country[second, uid] == country}


@pytest.fixture(scope="module")
def countries(tmp_path_factory):
    """Three countries a window have counts of their own; most users stay in one, some are seen in two."""
    folder, zone, rng = tmp_path_factory.mktemp("countries"), ZoneInfo("UTC"), Random(3)
    set_s = int(datetime(2025, 3, 1, tzinfo=UTC).timestamp())
    bursts = [(day, hour) for day in range(-40, 60, 8) for hour in (9, 10)]
    truth = sorted(
        {
            (set_s + day * 86_400 + hour * 3600 + rng.randrange(1200), f"user-{int(rng.expovariate(0.008))}")
            for day, hour in bursts
            for _ in range(120)
        }
    )
    country = {}
    for second, uid in truth:
        home = min(5, int(Random(uid).expovariate(0.7)))
        country[second, uid] = COUNTRIES[home if rng.random() < 0.9 else rng.randrange(6)]
    settings = Settings(data_dir=folder, lg_k=LG_K, results_topic=None, duckdb_threads=1)
    for name, overrides, wanted in [
        ("before", {}, lambda second: second < set_s),
        ("after", {"dimensions": "country", "dimension_values": 3}, lambda second: second >= set_s),
    ]:
        settings = settings.model_copy(update=overrides)
        path = folder / f"{name}.jsonl"
        path.write_text(
            "".join(
                json.dumps({"ts": ts, "uid": uid, "country": country[ts, uid]}) + "\n"
                for ts, uid in truth
                if wanted(ts)
            )
        )
        with open_workshop(settings) as shop:
            for log in file_logs(shop.ledger, [str(path)]):
                for _ in load_file(shop, log):
                    pass
            tick(shop, None, None, close_windows=True)
    return CountryLake(settings, zone, truth, country, set_s)


def test_users_of_a_value_are_within_bounds_though_some_hide_among_the_others(countries):
    lake, rng = countries, Random(4)
    asked = exact = 0
    for _ in range(30):
        second, _ = rng.choice(lake.truth)
        a, b = second // 3600 * 3600, second // 3600 * 3600 + 3600 * rng.choice([1, 24, 400])
        name = rng.choice([*COUNTRIES, "nowhere"])
        where = f"{instant(a)}, {instant(b)}, dimension := 'country', value := '{name}'"
        answer = lake.one(f"FROM unique_users({where}, exact_up_to := 150)")
        users = len(lake.users_in(name, a, b))
        if answer["is_exact"]:
            assert answer["users_lower"] == answer["users"] == answer["users_upper"]
        asked += 1
        exact += answer["is_exact"]
        assert answer["users_lower"] <= users <= answer["users_upper"], (name, answer, users)
        assert answer["users_lower"] <= answer["users"] <= answer["users_upper"]
        if a < lake.set_s:
            assert not answer["is_exact"] or users == answer["users"] == 0
    assert 0 < exact < asked


def test_users_of_a_value_are_counted_exactly_from_the_stored_uids(countries):
    lake, rng = countries, Random(5)
    for _ in range(20):
        day = rng.randrange(0, 50)
        a, b = lake.set_s + day * 86_400, lake.set_s + (day + rng.randrange(1, 40)) * 86_400 + 34_000
        name = rng.choice(COUNTRIES)
        where = f"{instant(a)}, {instant(b)}, dimension := 'country', value := '{name}'"
        answer = lake.one(f"FROM unique_users({where}, {ALL})")
        users = lake.users_in(name, a, b)
        assert answer["is_exact"] and answer["users"] == len(users)
        assert {row["uid"] for row in lake.ask(f"FROM distinct_users({where})")} == users


def test_a_range_from_before_the_dimension_was_set_says_so(countries):
    lake = countries
    answer = lake.one(f"FROM unique_users('2025-02-01', '2025-04-01', dimension := 'country', value := 'DE', {ALL})")
    assert answer["how"] == "estimate: 1 of its windows have frames from before country was set"
    everyone = lake.users(lake.local_s(2025, 2, 1), lake.local_s(2025, 3, 1))
    assert answer["users_upper"] >= 0.9 * len(everyone | lake.users_in("DE", lake.set_s, lake.local_s(2025, 4, 1)))


@pytest.mark.parametrize("grain", ["minute", "hour", "day", "week", "month"])
def test_a_series_by_value_is_the_view_by_value(countries, grain):
    lake = countries
    rows = lake.ask(f"FROM unique_users_by_value('{grain}', 'country', '2025-03-01', '2025-05-01')")
    view = lake.ask(
        f"FROM {grain}_counts_by_value WHERE window_start >= '2025-03-01T00:00:00Z' ORDER BY window_start, value"
    )
    assert rows == view and {row["dimension"] for row in rows} == {"country"}
    for row in rows:
        a, b = row["window_start"].timestamp(), row["window_end"].timestamp()
        if a < lake.set_s or row["value"] == "(other)":
            continue
        users = len(lake.users_in(row["value"], a, b))
        assert row["unique_users"] in (None, users)
        assert row["estimate_lower"] <= users <= row["estimate_upper"]
    assert len({row["value"] for row in rows}) > 3 and "(other)" in {row["value"] for row in rows}
    one = lake.ask(f"FROM unique_users_by_value('{grain}', 'country', '2025-03-01', '2025-05-01', value := 'DE')")
    assert one == [row for row in rows if row["value"] == "DE"]


def test_a_value_may_be_given_as_a_number(countries):
    answer = countries.one("FROM unique_users('2025-03-02', '2025-04-01', dimension := 'country', value := 7)")
    assert answer["users"] == 0


def test_overlap_and_retention_of_a_value(countries):
    lake = countries
    a, b, c = lake.set_s, lake.local_s(2025, 3, 20), lake.local_s(2025, 4, 25)
    only = "dimension := 'country', value := 'CH'"
    rows = lake.ask(f"FROM overlap([{instant(a)}, {instant(b)}], [{instant(b)}, {instant(c)}], {only})")
    x, y = lake.users_in("CH", a, b), lake.users_in("CH", b, c)
    assert {row["part"]: row["users"] for row in rows}["both"] == len(x & y) > 0
    rows = lake.ask(f"FROM retention('month', '2025-03-01', '2025-05-01', {only})")
    march, april = (
        lake.users_in("CH", a, lake.local_s(2025, 4, 1)),
        lake.users_in("CH", lake.local_s(2025, 4, 1), c * 2),
    )
    assert [row["users"] for row in rows] == [len(march), len(march & april), len(april - march)]
    rows = lake.ask(f"FROM new_and_returning('month', '2025-03-01', '2025-05-01', {only})")
    assert [row["returning_users"] for row in rows] == [0, len(march & april)]
