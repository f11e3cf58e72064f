"""Intake: every record delivered ends in exactly one of frames, held and quarantine."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniq_pipeline.coupons import coupons
from uniq_pipeline.intake import Intake
from uniq_pipeline.lateness import EventClock, LatenessPolicy
from uniq_pipeline.records import NO_TIME, Records
from uniq_pipeline.schemas import FRAMES_SCHEMA, HELD_SCHEMA, QUARANTINE_SCHEMA

POLICY = LatenessPolicy()
START = 1_767_225_600


def payload(ts, uid="u"):
    return json.dumps({"ts": ts, "uid": uid}).encode()


def records(payloads, partition=0, first_offset=0, times_ms=None):
    n = len(payloads)
    offsets = list(range(first_offset, first_offset + n))
    return Records(partition, offsets, times_ms or [NO_TIME] * n, payloads, first_offset + n)


def intake(**options):
    return Intake("topic", POLICY, **options)


def places(table):
    return list(zip(table["kafka_partition"].to_pylist(), table["kafka_offset"].to_pylist(), strict=True))


@st.composite
def logs(draw):
    """(payload, Kafka time) of the records of one topic partition."""
    now, log = START, []
    for _ in range(draw(st.integers(0, 90))):
        now += draw(st.sampled_from([0, 1, 1, 1, 2, 30, 4000]))
        ts = now + draw(st.sampled_from([0] * 12 + [-100, -9000, 10**6]))
        kind = draw(st.sampled_from(["frame"] * 12 + ["junk", "tombstone", "no uid"]))
        bad = {"junk": b"\xff{", "tombstone": None, "no uid": b'{"ts":1}'}
        time_ms = draw(st.sampled_from([NO_TIME, now * 1000 + 999, now * 1000, START * 1000]))
        log.append((bad.get(kind, payload(ts, draw(st.sampled_from("abc")))), time_ms))
    return log


@settings(max_examples=80, deadline=None)
@given(st.lists(logs(), min_size=1, max_size=3), st.lists(st.integers(1, 60), min_size=1), st.booleans())
def test_delivered_and_admitted_are_frames_held_and_quarantine(partitions, sizes, very_late_counts):
    at = dict.fromkeys(range(len(partitions)), 0)
    clocks = {}
    in_frames, in_held, in_quarantine, admitted = [], [], [], []
    held_minutes, rejected_minutes = Counter(), Counter()
    turn = 0
    while any(at[p] < len(log) for p, log in enumerate(partitions)):
        batch = intake(very_late_counts=very_late_counts)
        for p, log in enumerate(partitions):
            size = sizes[turn % len(sizes)]
            piece, turn = log[at[p] : at[p] + size], turn + 1
            batch.add(records([r[0] for r in piece], p, at[p], [r[1] for r in piece]))
            at[p] += len(piece)
        done = batch.finish(clocks)
        assert (
            done.delivered + len(done.admitted) == done.frames.num_rows + done.held.num_rows + done.quarantine.num_rows
        )
        assert sum(done.reasons.values()) == done.delivered
        clocks = {p: EventClock.from_dict(json.loads(json.dumps(c.as_dict()))) for p, c in done.clocks.items()}
        in_frames += places(done.frames)
        in_held += places(done.held)
        in_quarantine += places(done.quarantine)
        admitted += done.admitted
        held_minutes.update(done.held_minutes)
        rejected_minutes.update(done.rejected_minutes)
    everywhere = [*in_frames, *in_quarantine, *(set(in_held) - set(admitted))]
    assert sorted(everywhere) == [(p, i) for p, log in enumerate(partitions) for i in range(len(log))]
    assert set(admitted) <= set(in_held) and len(set(admitted)) == len(admitted)
    assert sum(held_minutes.values()) == len(in_held) - len(admitted)
    assert all(count >= 0 for count in held_minutes.values())
    with_time = [p for p in in_quarantine if partitions[p[0]][p[1]][1] != NO_TIME]
    assert sum(rejected_minutes.values()) == len(with_time)


@settings(max_examples=60, deadline=None)
@given(logs(), st.lists(st.integers(0, 90), max_size=5))
def test_what_is_counted_in_the_end_does_not_depend_on_the_batches(log, cuts):
    def counted(cuts):
        clocks, found = {}, []
        ends = [*sorted(min(cut, len(log)) for cut in cuts), len(log)]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            batch = intake()
            piece = log[start:end]
            batch.add(records([r[0] for r in piece], 0, start, [r[1] for r in piece]))
            done = batch.finish(clocks)
            clocks = dict(done.clocks)
            found += zip(
                *(done.frames[c].to_pylist() for c in ("kafka_offset", "event_time", "uid", "coupon", "kafka_time")),
                strict=True,
            )
        return sorted(found, key=lambda frame: frame[0])

    assert counted(cuts) == counted([])


def test_tables_have_their_schemas_also_when_empty():
    done = intake().finish({})
    assert (done.frames.schema, done.held.schema, done.quarantine.schema) == (
        FRAMES_SCHEMA,
        HELD_SCHEMA,
        QUARANTINE_SCHEMA,
    )
    assert done.delivered == 0 and done.late == 0 and done.reasons == {}


def test_a_frame_carries_where_it_came_from_and_its_coupon():
    batch = intake()
    batch.add(records([payload(START, "anna")], partition=7, first_offset=42, times_ms=[START * 1000 + 250]))
    (row,) = batch.finish({}).frames.to_pylist()
    assert (row["topic"], row["kafka_partition"], row["kafka_offset"]) == ("topic", 7, 42)
    assert (row["kafka_time"] - row["event_time"]).total_seconds() == 0.25 and row["late_by_s"] == 0
    assert row["uid"] == "anna" and row["coupon"] == coupons(pa.array(["anna"]))[0].as_py()


def test_quarantine_keeps_the_raw_bytes_and_the_reason():
    batch = intake()
    batch.add(records([b"\xff\x00", None, b"[]"], first_offset=5, times_ms=[1000, NO_TIME, 61_000]))
    done = batch.finish({})
    rows = done.quarantine.to_pylist()
    assert [row["payload"] for row in rows] == [b"\xff\x00", None, b"[]"]
    assert [row["reason"] for row in rows] == ["invalid_utf8", "tombstone", "not_an_object"]
    assert [row["kafka_offset"] for row in rows] == [5, 6, 7] and rows[1]["kafka_time"] is None
    assert done.rejected_minutes == {(0, "invalid_utf8"): 1, (60, "not_an_object"): 1}
    assert batch.quarantined_bytes == 4


@pytest.mark.parametrize("counts", [False, True])
def test_very_late_frames_are_held_unless_the_setting_counts_them(counts):
    batch = intake(very_late_counts=counts)
    batch.add(records([payload(START + i) for i in range(100)] + [payload(START - 9000)]))
    done = batch.finish({})
    assert (done.frames.num_rows, done.held.num_rows) == ((101, 0) if counts else (100, 1))
    assert done.reasons["very_late"] == 1
    if not counts:
        assert done.held["event_class"].to_pylist() == ["very_late"]
        assert done.held_minutes == {(START - 9000, "very_late"): 1}


def test_a_frame_admitted_by_a_later_batch_keeps_everything_it_came_with():
    first, second = intake(), intake()
    long_after_ms = 9_000_000_000_000
    first.add(records([payload(START)] * 64 + [payload(START + 50_000, "early bird")], times_ms=[long_after_ms] * 65))
    done = first.finish({})
    (held,) = done.held.to_pylist()
    second.add(
        records([payload(START + 50_000 + i) for i in range(64)], first_offset=65, times_ms=[long_after_ms] * 64)
    )
    after = second.finish(done.clocks)
    assert after.admitted == [(0, 64)]
    (admitted,) = [row for row in after.frames.to_pylist() if row["kafka_offset"] == 64]
    assert admitted == {**held, "event_class": "on_time"}
    assert after.held_minutes == {} or all(count < 0 for count in after.held_minutes.values())


def test_one_record_without_a_kafka_time_changes_nothing_for_the_others():
    times = [START * 1000 + i * 1000 for i in range(40)] + [(START + 50_000) * 1000, NO_TIME]
    payloads = [payload(START + i) for i in range(40)] + [payload(START + 50_000), payload(START + 40)]
    batch = intake()
    batch.add(records(payloads, times_ms=times))
    assert batch.finish({}).held.num_rows == 0  # the jump agrees with its own Kafka time


@pytest.mark.parametrize("others", [NO_TIME, START * 1000])
def test_the_first_frames_need_no_kafka_time(others):
    batch = intake()
    batch.add(records([payload(START + i) for i in range(6)], times_ms=[NO_TIME, others] * 3))
    assert batch.finish({}).held.num_rows == 0


def test_topic_partitions_are_judged_apart():
    batch = intake()
    batch.add(records([payload(START + i) for i in range(100)], partition=0))
    batch.add(records([payload(START - 10**6 + i) for i in range(100)], partition=1))
    done = batch.finish({})
    assert done.held.num_rows == 0 and done.clocks[0].front_s - done.clocks[1].front_s == 10**6


def test_a_clock_of_a_topic_partition_that_had_no_records_stays():
    clock = EventClock(seen=3, recent_s=(1, 2, 3))
    assert intake().finish({5: clock}).clocks == {5: clock}
