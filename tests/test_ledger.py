"""The ledger's promises one by one: who may commit, what stays marked, and when a topic is refused.

The numbers are those of the fault list. What these promises are worth together is told by test_crash.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Timer
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select
from support.frames import MemoryTopic, frame
from support.ticks import run_tick

from uniq_pipeline.config import Settings
from uniq_pipeline.drain import drain
from uniq_pipeline.errors import InputError, LakeError, LedgerError, LostRace, OffsetsLost, SettingError, TopicRecreated
from uniq_pipeline.lake import LakeFile
from uniq_pipeline.lateness import EventClock
from uniq_pipeline.ledger import Ledger, schema
from uniq_pipeline.ledger.batches import Batch, Delivery, Kind
from uniq_pipeline.ledger.dirty import BucketWork, dirty_buckets, mark_for_count, newest_seq
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.logs import LogCommit, advance_watermark, commit_log, note_extents, read_positions
from uniq_pipeline.ledger.outbox import Sent, clear_sent, next_entries
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.ledger.results import BucketCommit, Revision, commit_buckets
from uniq_pipeline.ledger.sets import ExactUsers, SetWork, commit_set, exact_users, stale_sets
from uniq_pipeline.ledger.store import next_sequence
from uniq_pipeline.ledger.upkeep import forget_files, forget_topic, known_paths, skip_lost
from uniq_pipeline.loading import LoadReport
from uniq_pipeline.offsets import Extent, OffsetRange, TopicState, plan_ranges
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.windows import Grain, Window, window_at

UTC = ZoneInfo("UTC")
HOUR_S = 1_704_063_600
MINUTE = Window(Grain.MINUTE, HOUR_S, HOUR_S + 60)
HOUR = Window(Grain.HOUR, HOUR_S, HOUR_S + 3600)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url, now=lambda: 1000.0)
    ledger.prepare(timezone="UTC", lg_k="12")
    yield ledger
    ledger.close()


def contents(ledger: Ledger) -> dict[str, list[tuple]]:
    with ledger.reading() as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table))]
            for name, table in schema.metadata.tables.items()
        }


def data_file(name: str, kind: str = "frames") -> DataFile:
    return DataFile(kind, LakeFile(f"{kind}/{name}.parquet", 10, 100, "0" * 64), HOUR_S, HOUR_S, HOUR_S + 59)


def batch(name: str, *ranges: tuple[int, int, int], minutes_s: tuple[int, ...] = (HOUR_S,)) -> LogCommit:
    """A batch of frames only; ranges are (topic partition, start, end)."""
    records = {p: end - start for p, start, end in ranges}
    total = sum(records.values())
    delivery = Delivery(delivered=total, frames=total, reasons={"on_time": total})
    return LogCommit(
        batch=Batch(name, Kind.DRAIN, "frames", delivery, [data_file(name)], 0.1),
        topic_id="id-1",
        ranges=[OffsetRange(*r) for r in ranges],
        records=records,
        clocks_before={},
        clocks={p: EventClock(seen=end) for p, _, end in ranges},
        watermarks_s={p: None for p in records},
        stable_offsets={p: end for p, _, end in ranges},
        minutes_s=minutes_s,
        held_minutes={},
        rejected_minutes={},
        admitted=[],
    )


def next_offsets(ledger: Ledger) -> dict[int, int]:
    return {p: position.next_offset for p, position in read_positions(ledger, "frames").by_partition.items()}


# A batch commits with its offsets, or not at all.


def test_a_batch_moves_the_offsets_and_keeps_the_event_clock_of_that_place(ledger):
    commit_log(ledger, batch("a", (0, 0, 10), (1, 5, 9)))
    commit_log(ledger, batch("b", (0, 10, 30)))
    positions = read_positions(ledger, "frames")
    assert next_offsets(ledger) == {0: 30, 1: 9}
    assert positions.topic_id == "id-1"
    assert positions.by_partition[0].clock.seen == 30


@pytest.mark.parametrize(
    "late",
    [
        batch("late", (0, 0, 10)),
        batch("late", (0, 0, 25)),
        batch("late", (0, 5, 12)),
        batch("late", (0, 30, 40)),
        batch("late", (1, 0, 10), (0, 0, 10)),
        replace(batch("late", (0, 20, 30)), topic_id="id-2"),
    ],
    ids=["same range", "longer", "from within", "from beyond", "one of two partitions", "another topic id"],
)
def test_fault_51_a_batch_that_lost_the_race_leaves_nothing(ledger, late):
    commit_log(ledger, batch("first", (0, 0, 20)))
    before = contents(ledger)
    with pytest.raises(LostRace, match="frames, topic partition 0"):
        commit_log(ledger, late)
    assert contents(ledger) == before


def test_a_batch_whose_records_do_not_add_up_is_never_committed(ledger):
    before = contents(ledger)
    with pytest.raises(AssertionError, match="went missing"):
        whole = batch("a", (0, 0, 10))
        lost = replace(whole.batch, delivery=Delivery(delivered=10, frames=9))
        commit_log(ledger, replace(whole, batch=lost))
    assert contents(ledger) == before


def test_an_error_within_a_transaction_takes_all_of_it_back(ledger):
    before = contents(ledger)
    with pytest.raises(LedgerError), ledger.writing() as connection:
        next_sequence(connection, "dirty")
        connection.exec_driver_sql("no sql at all")
    assert contents(ledger) == before


def test_lag_is_shown_and_never_below_nothing(ledger):
    commit_log(ledger, batch("a", (0, 0, 10)))
    note_extents(ledger, "frames", state((0, 25, 27), (0, 7, 7)))
    assert overview(ledger).lag == 15
    assert [part.unstable for part in overview(ledger).partitions] == [2]
    note_extents(ledger, "frames", state((0, 4, 4)))  # somebody who looked before the batch was there
    assert overview(ledger).lag == 15


# Marks: what is dirty stays dirty until somebody who saw the newest mark has computed it.


def mark(ledger: Ledger) -> None:
    mark_for_count(ledger, [MINUTE], "live", UTC)


def dirty(ledger: Ledger, *, before_seq: int | None = None) -> list[BucketWork]:
    seq = newest_seq(ledger) if before_seq is None else before_seq
    return dirty_buckets(ledger, Grain.MINUTE, UTC, limit=24, before_seq=seq)


def result(work: BucketWork, name: str, status: str = "final", revision: int = 1) -> BucketCommit:
    changed = Revision(MINUTE, revision, 10, 5, 5.0, 5.0, 6.0, None, None, status, "live", answer_changed=True)
    return BucketCommit(work, Grain.MINUTE, data_file(name, "result"), 1, int(status == "provisional"), [changed])


def test_a_sequence_number_is_never_given_out_twice(ledger):
    seen = []
    for _ in range(3):
        mark(ledger)
        seen.append(newest_seq(ledger))
        (work,) = dirty(ledger)
        commit_buckets(ledger, [BucketCommit(work, Grain.MINUTE)], UTC, publish=False)
        assert dirty(ledger) == []
    ledger.close()  # nor after a restart
    mark(ledger)
    assert [*seen, newest_seq(ledger)] == [1, 2, 3, 4]


def test_fault_64_a_mark_that_is_set_again_while_its_window_is_computed_stays(ledger):
    mark(ledger)
    (work,) = dirty(ledger)
    mark(ledger)
    commit_buckets(ledger, [result(work, "v1")], UTC, publish=False)
    (again,) = dirty(ledger)
    assert again.marks[0].seq > work.marks[0].seq
    assert again.version == 1


def test_marks_that_are_newer_than_the_start_of_a_refresh_are_left_for_the_next(ledger):
    mark(ledger)
    seq = newest_seq(ledger)
    mark(ledger)
    assert dirty(ledger, before_seq=seq) == []


def test_a_result_that_replaces_another_than_it_saw_is_refused_and_leaves_nothing(ledger):
    mark(ledger)
    (work,) = dirty(ledger)
    commit_buckets(ledger, [result(work, "mine")], UTC, publish=True)
    before = contents(ledger)
    with pytest.raises(LostRace, match="minute results of hour 2023-12-31T23:00:00Z"):
        commit_buckets(ledger, [result(work, "theirs")], UTC, publish=True)
    assert contents(ledger) == before
    newer = replace(work, version=1, path="result/mine.parquet", marks=())
    commit_buckets(ledger, [result(newer, "newer", revision=2)], UTC, publish=True)
    with pytest.raises(LostRace):
        commit_buckets(ledger, [result(newer, "theirs", revision=2)], UTC, publish=True)


def test_a_replaced_file_no_longer_counts_but_stays_known_until_gc(ledger):
    mark(ledger)
    (work,) = dirty(ledger)
    commit_buckets(ledger, [result(work, "v1")], UTC, publish=False)
    newer = replace(work, version=1, path="result/v1.parquet", marks=())
    commit_buckets(ledger, [result(newer, "v2", revision=2)], UTC, publish=False)
    assert known_paths(ledger) == {"result/v1.parquet", "result/v2.parquet"}
    forget_files(ledger, ["result/v1.parquet", "result/v2.parquet"])
    assert known_paths(ledger) == {"result/v2.parquet"}, "a file that counts is not forgotten"


def test_a_changed_minute_marks_its_hour_and_the_sets_of_everything_above(ledger):
    mark(ledger)
    (work,) = dirty(ledger)
    commit_buckets(ledger, [result(work, "v1")], UTC, publish=False)
    with ledger.reading() as connection:
        marks = set(connection.execute(select(schema.dirty.c.task, schema.dirty.c.grain)).all())
    assert marks == {("count", "hour"), *(("set", grain) for grain in Grain if grain is not Grain.MINUTE)}


# Sets, watermark, outbox.


def test_an_exact_count_is_shown_only_while_its_set_is_up_to_date(ledger):
    mark(ledger)
    (work,) = dirty(ledger)
    commit_buckets(ledger, [result(work, "v1")], UTC, publish=False)
    (stale,) = stale_sets(ledger, Grain.HOUR, UTC, HOUR.end_s)
    exact = ExactUsers(10, {"country": {"DE": 7}})
    commit_set(ledger, stale, data_file("s1", "uid_set"), exact, UTC)
    assert exact_users(ledger, Grain.HOUR, HOUR_S, HOUR.end_s) == {HOUR_S: exact}
    newer = replace(work, version=1, path="result/v1.parquet")
    commit_buckets(ledger, [result(newer, "v2", revision=2)], UTC, publish=False)
    assert exact_users(ledger, Grain.HOUR, HOUR_S, HOUR.end_s) == {}


def test_a_set_that_was_stored_by_another_run_is_not_replaced(ledger):
    work = SetWork(HOUR, 0, None, 1)
    commit_set(ledger, work, data_file("s1", "uid_set"), ExactUsers(10), UTC)
    before = contents(ledger)
    with pytest.raises(LostRace, match="uid set of hour"):
        commit_set(ledger, work, data_file("s2", "uid_set"), ExactUsers(10), UTC)
    assert contents(ledger) == before


def test_a_window_that_is_not_over_has_no_set_yet(ledger):
    mark_for_count(ledger, [MINUTE], "live", UTC)
    (work,) = dirty(ledger)
    commit_buckets(ledger, [result(work, "v1")], UTC, publish=False)
    assert stale_sets(ledger, Grain.HOUR, UTC, HOUR.end_s - 1) == []
    assert stale_sets(ledger, Grain.YEAR, UTC, window_at(Grain.YEAR, HOUR_S, UTC).end_s - 1) == []


def test_the_watermark_of_the_whole_never_moves_back(ledger):
    assert advance_watermark(ledger, None) is None
    assert [advance_watermark(ledger, at) for at in (100, 90, None, 101)] == [100, 100, 100, 101]


def test_fault_08_what_was_sent_is_cleared_unless_a_newer_revision_came_meanwhile(ledger):
    mark(ledger)
    (work,) = dirty(ledger)
    commit_buckets(ledger, [result(work, "v1", revision=7)], UTC, publish=True)
    (entry,) = next_entries(ledger, 10)
    clear_sent(ledger, [Sent(entry, 6)])
    assert overview(ledger).outbox == 1
    clear_sent(ledger, [Sent(entry, 7)])
    assert overview(ledger).outbox == 0


def test_what_was_sent_of_a_file_that_was_replaced_meanwhile_is_to_be_sent_again(ledger):
    mark(ledger)
    (work,) = dirty(ledger)
    commit_buckets(ledger, [result(work, "v1", revision=7)], UTC, publish=True)
    (entry,) = next_entries(ledger, 10)
    mark(ledger)
    (work,) = dirty(ledger)
    commit_buckets(ledger, [result(work, "v2", revision=8)], UTC, publish=True)
    (newer,) = next_entries(ledger, 10)
    clear_sent(ledger, [Sent(newer, 8)])  # another run, which was quicker
    assert next_entries(ledger, 10) == []
    clear_sent(ledger, [Sent(entry, 7)])
    assert next_entries(ledger, 10) == [newer]


# How it begins, and what it refuses to begin with.


def test_a_run_that_opens_a_new_ledger_while_another_makes_it_waits_for_it(data_dir):
    # SQLite itself would refuse at once, whatever its timeout: the other run's lock is in the way of WAL.
    other = sqlite3.connect(data_dir / "ledger.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE half_way (x)")
    done = Timer(0.2, lambda: (other.execute("ROLLBACK"), other.close()))
    done.start()
    ledger = Ledger(f"sqlite:///{data_dir}/ledger.db")
    ledger.prepare(timezone="UTC")
    ledger.close()
    done.join()


def test_runs_that_open_a_new_ledger_at_once_find_it_made(ledger_url):
    def open_it(_number: int) -> str:
        ledger = Ledger(ledger_url)
        ledger.prepare(timezone="UTC")
        with ledger.writing() as connection:
            number = next_sequence(connection, "dirty")
        ledger.close()
        return str(number)

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(open_it, range(6))) == list("123456"), "each a number of its own"


def test_reads_in_one_block_see_one_moment(ledger, ledger_url):
    other = Ledger(ledger_url)
    with ledger.reading() as connection:
        before = connection.execute(select(schema.files)).all()
        commit_log(other, batch("a", (0, 0, 10)))
        assert connection.execute(select(schema.files)).all() == before
    with ledger.reading() as connection:
        assert len(connection.execute(select(schema.files)).all()) == 1
    other.close()


@pytest.mark.parametrize(
    ("setting", "value", "found"),
    [("timezone", "Europe/Zurich", "timezone=UTC, not Europe/Zurich"), ("lg_k", 14, "lg_k=8, not 14")],
)
def test_settings_other_than_the_ledger_was_made_with_are_refused_by_name(make_settings, setting, value, found):
    settings = make_settings(timezone="UTC", lg_k=8)
    with open_workshop(settings):
        pass
    other = settings.model_copy(update={setting: value})
    with pytest.raises(SettingError, match=f"{found}.*UNIQ_DATA_DIR"), open_workshop(other):
        pass


def test_fault_48_a_folder_that_cannot_be_written_fails_before_anything_is_fetched(make_settings, data_dir):
    (data_dir / "file").touch()

    class Untouched(MemoryTopic):
        def describe(self) -> TopicState:
            raise AssertionError("the topic was asked")

    with pytest.raises(LakeError, match="cannot be written.*UNIQ_DATA_DIR"):
        run_tick(make_settings(data_dir=data_dir / "file" / "below"), Untouched())


def test_fault_48_a_ledger_that_cannot_be_made_is_named(make_settings, data_dir):
    (data_dir / "file").touch()
    settings = make_settings(ledger_url=f"sqlite:///{data_dir}/file/ledger.db")
    with pytest.raises(LedgerError, match="file/ledger.db.*UNIQ_LEDGER_URL"), open_workshop(settings):
        pass


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg2://uniq:pw@db:s3/cret", "s3/cret", "s3cret://x"],
)
def test_fault_67_a_url_that_cannot_be_read_is_not_shown(url):
    with pytest.raises(SettingError, match="UNIQ_LEDGER_URL") as caught:
        Ledger(url)
    assert "s3" not in str(caught.value)


# The topic against the ledger. Nothing is mended silently.


def state(*extents: tuple[int, ...], topic_id: str = "id-1") -> TopicState:
    """Of a topic whose partitions have (low watermark, stable offset[, high watermark])."""
    return TopicState("frames", topic_id, {p: Extent(*extent[:2], extent[-1]) for p, extent in enumerate(extents)})


def test_what_is_planned_reaches_from_the_ledgers_offset_to_the_stable_end():
    assert plan_ranges(state((0, 50), (20, 20)), "id-1", {0: 30, 1: 20}) == [
        OffsetRange(0, 30, 50),
        OffsetRange(1, 20, 20),
    ]


def test_fault_13_offsets_that_retention_has_passed_fail_with_the_exact_lost_range():
    lost = r"topic partition 1: offsets \[10, 40\) .* 30 records.*skip-lost frames"
    with pytest.raises(OffsetsLost, match=lost):
        plan_ranges(state((0, 50), (40, 60)), "id-1", {0: 0, 1: 10})


def test_fault_14_an_offset_beyond_the_end_of_the_log_fails():
    with pytest.raises(OffsetsLost, match="next offset 51 is beyond the end of the log, 50"):
        plan_ranges(state((0, 50)), "id-1", {0: 51})


def test_fault_15_a_topic_with_another_id_fails_with_that_word():
    with pytest.raises(TopicRecreated, match="recreated.*forget-topic frames"):
        plan_ranges(state((0, 50), topic_id="id-2"), "id-1", {0: 10})


def test_fault_15_a_topic_with_fewer_partitions_was_recreated():
    with pytest.raises(TopicRecreated, match=r"topic partitions \[1\]"):
        plan_ranges(state((0, 50)), "id-1", {0: 10, 1: 5})


def test_fault_17_an_added_partition_is_read_from_its_earliest_offset():
    assert plan_ranges(state((0, 50), (7, 9)), "id-1", {0: 50})[1] == OffsetRange(1, 7, 9)


def test_a_topic_the_ledger_does_not_know_is_read_from_the_start_whatever_its_id():
    assert plan_ranges(state((5, 50)), None, {}) == [OffsetRange(0, 5, 50)]


def drained(settings: Settings, topic: MemoryTopic) -> LoadReport:
    with open_workshop(settings) as shop:
        return drain(settings, shop.ledger, shop.lake, topic)


def test_fault_13_skipping_lost_offsets_goes_on_from_there_and_is_recorded(make_settings):
    settings, topic = make_settings(), MemoryTopic(logs={0: []})
    topic.send([frame(HOUR_S + i, f"user-{i}") for i in range(20)])
    drained(settings, topic)
    topic.send([frame(HOUR_S + 20 + i, f"user-{i}") for i in range(20)])
    topic.low = {0: 30}
    with pytest.raises(OffsetsLost, match=r"\[20, 30\)"):
        drained(settings, topic)
    with open_workshop(settings) as shop:
        assert skip_lost(shop.ledger, topic.topic, topic.describe()) == [OffsetRange(0, 20, 30)]
        assert skip_lost(shop.ledger, topic.topic, topic.describe()) == [], "once"
        assert [row[:4] for row in contents(shop.ledger)["skipped"]] == [(topic.topic, 0, 20, 30)]
    assert drained(settings, topic).delivered == 10


def test_fault_15_a_forgotten_topic_starts_over_and_what_was_counted_stays(make_settings):
    settings, topic = make_settings(), MemoryTopic(logs={0: []})
    topic.send([frame(HOUR_S + i, f"user-{i}") for i in range(20)])
    drained(settings, topic)
    topic.topic_id = "id-2"
    with pytest.raises(TopicRecreated):
        drained(settings, topic)
    with open_workshop(settings) as shop:
        assert forget_topic(shop.ledger, topic.topic, topic.describe().topic_id) == 1
    drained(settings, topic)
    with open_workshop(settings) as shop:
        assert overview(shop.ledger).frames == 40


def test_a_topic_that_is_still_the_same_is_not_forgotten(make_settings):
    settings, topic = make_settings(), MemoryTopic(logs={0: []})
    topic.send([frame(HOUR_S + i, f"user-{i}") for i in range(20)])
    drained(settings, topic)
    with open_workshop(settings) as shop, pytest.raises(InputError, match="was not recreated"):
        forget_topic(shop.ledger, topic.topic, topic.describe().topic_id)
    drained(settings, topic)
    with open_workshop(settings) as shop:
        assert overview(shop.ledger).frames == 20
