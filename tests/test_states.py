"""The results of the pipeline, window by window: exact counts and HLL states against the truth.

Frames go through a real tick, from an embedded broker to the catalog; a person's DuckDB reads the answers.
The library `datasketches` is the oracle of the states.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import duckdb
import pytest
from datasketches import hll_sketch, hll_union, tgt_hll_type

from uniq_pipeline.config import Settings
from uniq_pipeline.demo.traffic import Kind, Traffic, TrafficProfile
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.tick import open_workshop, tick

LG_K = 12
GRAINS = ["minute", "hour", "day", "week", "month", "year"]
REGISTERS_AT = 40  # bytes before the registers in the library's layout


@dataclass
class Run:
    """A pipeline after its ticks. `truth` is what was sent: (event second, uid) of every countable frame."""

    zone: ZoneInfo
    truth: list[tuple[int, str]]
    watermark_s: int
    rows: dict[str, list[dict]]

    def users(self, row):
        """The frames and uids that a row's window holds, by the truth."""
        start, end = row["window_start"].timestamp(), row["window_end"].timestamp()
        inside = [uid for event_s, uid in self.truth if start <= event_s < end]
        return len(inside), set(inside)


def seconds(text):
    return int(datetime.fromisoformat(text).timestamp())


def local_start(grain, instant):
    """Start of a grain's window, by the calendar; written anew here, not the product's own."""
    day = instant.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": day.replace(day=1),
        "year": day.replace(day=1, month=1),
    }[grain]


def run_pipeline(broker, folder, name, zone, spans):
    """Sends traffic of each span in turn, with a tick after each, and reads the catalog."""
    name = f"{name}-{folder.name}"  # a fixture may be made twice in one process, where tests are stolen
    settings = Settings(
        data_dir=folder,
        topic=name,
        results_topic=None,
        timezone=zone,
        lg_k=LG_K,
        kafka_bootstrap_servers=broker.bootstrap_servers,
        batch_frames=5_000,  # several batches, so that windows are counted from several files
    )
    traffic = Traffic(
        TrafficProfile(frames_per_s=8, users=2_000, late_share=0.02, late_by_max_s=100, flip_share=0, small=True)
    )
    truth = []
    for start, length_s in spans:
        records = traffic.records_between(seconds(start), seconds(start) + length_s)
        # Keyed by uid, so that every topic partition sees the whole span and not a slice of it.
        KafkaSink(settings, name).send((record.uid.encode(), record.payload) for record in records)
        truth += [(record.event_s, record.uid) for record in records if record.kind is not Kind.BAD]
        with open_workshop(settings) as shop:
            report = tick(shop, KafkaSource(settings), lambda: None, close_windows=True)
    assert report.lost_race is None
    with duckdb.connect(str(settings.catalog_path), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        ((held,),) = connection.execute("SELECT count(*) FROM held_frames").fetchall()
        assert held == 0
        rows = {
            grain: connection.sql(f"FROM {grain}_counts ORDER BY window_start").to_arrow_table().to_pylist()
            for grain in GRAINS
        }
    return Run(ZoneInfo(zone), truth, report.drain.watermark_s, rows)


@pytest.fixture(scope="module")
def utc(broker, tmp_path_factory):
    """40 minutes across the end of an hour, a day, a month and a year; then a minute in the next but one year."""
    spans = [("2025-12-31T23:40:30+00:00", 2400), ("2027-01-05T10:00:00+00:00", 90)]
    return run_pipeline(broker, tmp_path_factory.mktemp("states"), "states-utc", "UTC", spans)


@pytest.fixture(scope="module")
def kolkata(broker, tmp_path_factory):
    """40 minutes across midnight in India, 18:30 UTC, where a Monday and a month begin; then one a year on."""
    spans = [("2026-05-31T18:10:30+00:00", 2400), ("2027-06-05T10:00:00+00:00", 90)]
    return run_pipeline(broker, tmp_path_factory.mktemp("states"), "states-kolkata", "Asia/Kolkata", spans)


@pytest.fixture(params=["utc", "kolkata"])
def run(request):
    return request.getfixturevalue(request.param)


def library_sketch(uids):
    sketch = hll_sketch(LG_K, tgt_hll_type.HLL_8, True)
    for uid in uids:
        sketch.update(uid)
    return sketch


def registers(state):
    return hll_sketch.deserialize(state).serialize_updatable()[REGISTERS_AT:]


@pytest.mark.parametrize("grain", GRAINS)
def test_every_window_with_frames_has_a_row_with_all_its_frames(run, grain):
    found = {row["window_start"]: row["frames"] for row in run.rows[grain] if row["frames"]}
    expected = defaultdict(int)
    for event_s, _ in run.truth:
        if grain in ("minute", "hour"):
            size = {"minute": 60, "hour": 3600}[grain]
            expected[datetime.fromtimestamp(event_s // size * size, UTC)] += 1
        else:
            instant = datetime.fromtimestamp(event_s, run.zone)
            expected[local_start(grain, instant).astimezone(UTC)] += 1
    assert found == expected


@pytest.mark.parametrize("grain", GRAINS)
def test_every_state_is_read_by_the_library_and_has_the_registers_of_its_own_sketch(run, grain):
    assert len(run.rows[grain]) >= (41 if grain == "minute" else 3 if grain in ("hour", "day") else 2)
    for row in run.rows[grain]:
        _, uids = run.users(row)
        assert registers(row["hll"]) == library_sketch(uids).serialize_updatable()[REGISTERS_AT:], row["window_start"]


@pytest.mark.parametrize("grain", GRAINS[1:])
def test_the_librarys_merge_of_the_minute_states_is_the_state_of_the_whole(run, grain):
    for row in run.rows[grain]:
        union = hll_union(LG_K)
        for minute in run.rows["minute"]:
            if row["window_start"] <= minute["window_start"] < row["window_end"]:
                union.update(hll_sketch.deserialize(minute["hll"]))
        merged = union.get_result(tgt_hll_type.HLL_8)
        assert merged.serialize_updatable()[REGISTERS_AT:] == registers(row["hll"])
        assert row["estimate"] == pytest.approx(merged.get_estimate(), rel=0.005)


@pytest.mark.parametrize("grain", GRAINS)
def test_the_truth_lies_within_the_bounds(run, grain):
    for row in run.rows[grain]:
        assert row["estimate_lower"] <= row["estimate"] <= row["estimate_upper"]
    within = [row["estimate_lower"] <= len(run.users(row)[1]) <= row["estimate_upper"] for row in run.rows[grain]]
    # Two standard deviations: one window in twenty may lie outside.
    assert sum(within) >= 0.95 * len(within) - 1


def test_minutes_are_counted_exactly_whether_closed_or_not(run):
    for row in run.rows["minute"]:
        frames, uids = run.users(row)
        assert (row["frames"], row["unique_users"]) == (frames, len(uids))


@pytest.mark.parametrize("grain", GRAINS[1:])
def test_closed_windows_are_exact_and_open_ones_do_not_guess(run, grain):
    closed = 0
    for row in run.rows[grain]:
        is_closed = row["window_end"].timestamp() <= run.watermark_s - 120
        assert row["status"] == ("final" if is_closed else "provisional")
        assert row["unique_users"] == (len(run.users(row)[1]) if is_closed else None)
        closed += is_closed
    assert 1 <= closed < len(run.rows[grain])


def test_a_day_of_kolkata_takes_half_an_hour_of_minutes_at_each_edge(kolkata):
    before, after = [row for row in kolkata.rows["day"] if row["window_start"].year == 2026]
    assert before["window_end"] == after["window_start"] == datetime(2026, 5, 31, 18, 30, tzinfo=UTC)
    (hour,) = [row for row in kolkata.rows["hour"] if row["window_start"] < before["window_end"]]
    assert hour["window_start"] < before["window_end"] < hour["window_end"]
    assert before["frames"] + after["frames"] == hour["frames"] and before["frames"] and after["frames"]


def test_minutes_late_frames_came_into_say_so(run):
    assert sum(row["late_frames"] for row in run.rows["minute"]) == sum(row["late_frames"] for row in run.rows["year"])
    assert any(row["late_frames"] for row in run.rows["minute"])
