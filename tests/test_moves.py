"""Admit, withdraw, replay: records are moved between frames, held and quarantine, and every window follows.

Each story is held against the files, read back in plain Python (support.audit): a record is in one place, and every
window is what is in them. Most have minutes and hours only; coarser grains pass the same code as hours.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.audit import GRAINS, audit, bounds_of, read_back
from support.frames import Delivered, MemoryTopic, Sent, frame
from support.nursery import Nursery
from support.ticks import OnceAt

from uniq_pipeline import frames, intake, move
from uniq_pipeline.backfill import mark_range
from uniq_pipeline.cli.main import main
from uniq_pipeline.config import Settings, TsUnit, VeryLate
from uniq_pipeline.demo.traffic import Kind, Record, Traffic, TrafficProfile
from uniq_pipeline.drain import drain
from uniq_pipeline.errors import LostRace
from uniq_pipeline.frames import Reason
from uniq_pipeline.lateness import EventClass
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.move import HELD_CLASSES, MoveReport
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import open_workshop, tick
from uniq_pipeline.warehouse import Warehouse, ask_catalog
from uniq_pipeline.windows import Grain

T0 = 1_704_067_200 - 300  # five minutes before an hour, a day, a week, a month and a year end
ALWAYS = (0, 1 << 40)

Place = tuple[int, int]  # topic partition, offset
Found = dict[Place, tuple[str, dict[str, Any]]]  # where a record is, and as what

# What a window answers, and what is counted beside it.
ANSWER = ("frames", "unique_users", "estimate", "hll", "late_frames", "held_frames", "rejected_frames")


@pytest.fixture(autouse=True)
def _minutes_and_hours_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "every_grain" not in request.fixturenames:
        monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
        monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))


@pytest.fixture(autouse=True)
def _no_catalog(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the time of a small tick; the stories that look into the catalog ask for it."""
    if "with_catalog" not in request.fixturenames:
        monkeypatch.setattr("uniq_pipeline.tick.refresh_catalog", lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def _one_warehouse() -> Iterator[None]:
    """Opening DuckDB with its macros takes as long as a small move, and it remembers nothing between two counts."""
    made: list[Warehouse] = []

    @contextmanager
    def opened(**options: Any) -> Iterator[Warehouse]:
        if not made:
            made.append(Warehouse(**options).__enter__())
        yield made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uniq_pipeline.tick.Warehouse", opened)
        yield
    for warehouse in made:
        warehouse.__exit__()


@pytest.fixture
def every_grain() -> None: ...


@pytest.fixture
def with_catalog() -> None: ...


class Killed(BaseException):
    """The process is gone; what it would have done next does not happen."""


def where(settings: Settings) -> Found:
    """Every record the ledger names; it is an error for one to be in two places."""
    stored = read_back(settings, problems := [])
    assert problems == []
    proved = {(row["kafka_partition"], row["kafka_offset"]) for row in stored.tables["admissions"]}
    found: Found = {}
    for kind in ("frames", "held", "quarantine"):
        for row in stored.files.get(kind, []):
            place = row["kafka_partition"], row["kafka_offset"]
            if kind == "held" and place in proved:
                continue
            assert place not in found, f"{place} is in {kind} and in {found[place][0]}"
            found[place] = kind, row
    return found


def places(found: Found, *kinds: str) -> set[Place]:
    return {place for place, (kind, _) in found.items() if kind in kinds}


def minute_of(row: dict[str, Any], column: str = "event_time") -> int:
    seconds = int(row[column].timestamp())
    return seconds - seconds % 60


@dataclass
class Desk:
    """A data folder, its topic, and somebody who works on them; `moved` is where the records are that were moved."""

    settings: Settings
    topic: MemoryTopic
    shop: Workshop

    def __post_init__(self) -> None:
        self.moved: dict[Place, str] = {}

    def drain(self, failpoint: Callable[[str], None] = lambda name: None) -> None:
        drain(self.settings, self.shop.ledger, self.shop.lake, self.topic, failpoint=failpoint)

    def count(self, *, close: bool = False) -> None:
        tick(self.shop, None, None, close_windows=close)

    def tick(self, *, close: bool = False) -> None:
        assert tick(self.shop, self.topic, None, close_windows=close).lost_race is None

    def admit(self, start_s: int, end_s: int, classes: Collection[EventClass] = HELD_CLASSES) -> MoveReport:
        return self._noted(partial(move.admit, self.shop, start_s, end_s, classes))

    def withdraw(self, start_s: int, end_s: int, classes: Collection[EventClass] = HELD_CLASSES) -> MoveReport:
        return self._noted(partial(move.withdraw, self.shop, start_s, end_s, classes))

    def replay(self, reasons: Collection[Reason] = tuple(Reason), ts_unit: TsUnit = TsUnit.MILLISECONDS) -> MoveReport:
        settings = self.settings.model_copy(update={"ts_unit": ts_unit})
        return self._noted(partial(move.replay, replace(self.shop, settings=settings), reasons))

    def _noted(self, do: Callable[[], MoveReport]) -> MoveReport:
        """Does it, and checks that as much was moved as is said, and nothing of anything changed but its place."""
        before = where(self.settings)
        report = do()
        after = where(self.settings)
        assert set(after) == set(before)
        changed = {place for place in after if after[place] != before[place]}
        assert len(changed) == report.moved
        assert Counter(after[place][0] for place in changed) == +Counter(frames=report.frames, held=report.held)
        for place in changed:
            old, new = before[place][1], after[place][1]
            assert before[place][0] == "quarantine" or old == new
            self.moved[place] = after[place][0]
        return report

    def rows(self) -> dict[tuple[str, int], dict[str, Any]]:
        stored = read_back(self.settings, problems := [])
        assert problems == []
        return {(grain, start_s): row for grain in GRAINS for start_s, row in stored.results[grain].items()}

    def wrong(self, *, close: bool = False, grains: Collection[str] = ("minute", "hour")) -> list[str]:
        """What the audit finds once everything that is marked was counted."""
        self.count(close=close)
        assert overview(self.shop.ledger).is_conserved
        return audit(self.settings, self.topic.delivered, closed=close, grains=tuple(grains), moved=self.moved)


@pytest.fixture
def open_desk(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., Desk]]:
    with ExitStack() as stack:

        def open_(topic: MemoryTopic | None = None, **overrides: Any) -> Desk:
            values = {"batch_frames": 200, **overrides}
            topic = topic or MemoryTopic()
            settings = make_settings(**values).model_copy(update={"topic": topic.topic})
            return Desk(settings, topic, stack.enter_context(open_workshop(settings)))

        yield open_


def at(settings: Settings, failpoint: Callable[[str], None], do: Callable[[Workshop], object]) -> None:
    """Does something in a run of its own, which may be killed on the way."""
    with open_workshop(settings, failpoint=failpoint) as shop, suppress(Killed):
        do(shop)


def filled(end_s: int = 600, frames_per_s: float = 1, start_s: int = 0) -> MemoryTopic:
    """Traffic of which some is late, very late, flipped or broken."""
    topic = MemoryTopic()
    more(topic, start_s, end_s, frames_per_s)
    return topic


def more(topic: MemoryTopic, start_s: int, end_s: int, frames_per_s: float = 1) -> None:
    topic.send(records_between(start_s, end_s, frames_per_s), Random(start_s))


def records_between(start_s: int, end_s: int, frames_per_s: float = 1) -> list[Record]:
    """Few are flipped: each makes windows of its own when it is admitted, and a file a window costs time."""
    profile = TrafficProfile(
        frames_per_s=frames_per_s, users=150, late_share=0.05, flip_share=0.006, bad_share=0.02, small=True
    )
    return Traffic(profile).records_between(T0 + start_s, T0 + end_s)


def in_ms(record: Record) -> Record:
    """The record as a producer writes it that counts milliseconds; what is broken stays as it is."""
    if record.kind is Kind.BAD:
        return record
    return record._replace(payload=b'{"ts":%d,"uid":"%s"}' % (record.written_ts * 1000 + 7, record.uid.encode()))


def touched(found: Found, moved: Collection[Place], grains: Collection[str], timezone: str) -> Counter[tuple[str, int]]:
    """The windows of these records, and how many of them are in each."""
    return Counter(
        (grain, bounds_of(grain, minute_of(found[place][1]), timezone)[0]) for place in moved for grain in grains
    )


# Admit and withdraw.


def test_exactly_the_held_frames_of_the_range_and_class_count_and_exactly_their_windows_are_revised(
    open_desk, every_grain, with_catalog
):
    desk = open_desk(filled(600, 2), very_late=VeryLate.HOLD)
    desk.tick(close=True)
    desk.count()
    before, rows = where(desk.settings), desk.rows()
    very_late = {
        place: int(row["event_time"].timestamp())
        for place, (kind, row) in before.items()
        if kind == "held" and row["event_class"] == "very_late"
    }
    times = sorted(set(very_late.values()))
    start_s, end_s = times[1], times[-2]  # the first second is meant, the last is not
    meant = {place for place, second in very_late.items() if start_s <= second < end_s}
    assert 3 <= len(meant) < len(places(before, "held"))
    held_before = asked(desk, "SELECT count(*) FROM held_frames")

    report = desk.admit(start_s, end_s, [EventClass.VERY_LATE])
    assert (report.frames, report.held, report.classes) == (len(meant), 0, {"very_late": len(meant)})
    assert set(desk.moved) == meant
    desk.count()

    assert asked(desk, "SELECT count(*) FROM held_frames")[0][0] == held_before[0][0] - len(meant)
    frames_of = touched(before, meant, GRAINS, "UTC")
    assert {grain for grain, _ in frames_of} == set(GRAINS)
    # A coarser window shows what is held in its minutes that have a row.
    shown = {place for place in meant if ("minute", minute_of(before[place][1])) in rows}
    shown_of = touched(before, shown, GRAINS, "UTC")
    new = desk.rows()
    assert {key for key in new if new[key] != rows.get(key)} == set(frames_of), "to the time they were computed at"
    seen: dict[tuple[str, int], list[tuple]] = defaultdict(list)
    for grain, start, *revision in asked(
        desk,
        "SELECT grain, epoch(window_start)::BIGINT, revision, frames, unique_users, reason, is_current "
        "FROM revisions ORDER BY revision DESC",
    ):
        seen[grain, start].append(tuple(revision))
    for key, row in new.items():
        if key not in frames_of or key not in rows:
            continue
        old = rows[key]
        assert row["frames"] == old["frames"] + frames_of[key]
        assert row["held_frames"] == old["held_frames"] - shown_of[key]
        assert (row["revision"], row["reason"]) == (old["revision"] + 1, "admitted")
        assert (row["previous_unique_users"], row["previous_estimate"]) == (old["unique_users"], old["estimate"])
        assert seen[key][0] == (row["revision"], row["frames"], row["unique_users"], "admitted", True)
        earlier = (old["revision"], old["frames"], old["unique_users"], old["reason"], False)
        # Revisions of a window that was only growing are not kept.
        assert (earlier in seen[key]) is not (old["status"] == "provisional" and old["reason"] == "live")
    assert {key[0] for key in frames_of if key in rows and rows[key]["status"] == "final"} == set(GRAINS)
    assert desk.wrong(close=True, grains=GRAINS) == []
    hour = desk.rows()["hour", T0 - T0 % 3600]
    assert hour["unique_users"] is not None and hour["reason"] == "exact", "closed again, from a new set"


def asked(desk: Desk, sql: str) -> list[tuple]:
    return [tuple(row.values()) for row in ask_catalog(desk.settings.catalog_path, sql).to_pylist()]


def test_fault_45_a_frame_later_than_the_window_is_kept_counted_beside_shown_and_recountable(open_desk, with_catalog):
    desk = open_desk(batch_frames=500)
    profile = TrafficProfile(
        frames_per_s=2, users=150, late_share=0.3, late_by_max_s=600, flip_share=0, bad_share=0, small=True
    )
    desk.topic.send(Traffic(profile).records_between(T0, T0 + 900))
    truth: dict[int, list[str]] = defaultdict(list)
    for sent in desk.topic.delivered.values():
        truth[sent.truth.event_s - sent.truth.event_s % 60].append(sent.truth.uid)
    desk.tick()
    found = where(desk.settings)
    held = places(found, "held")
    assert len(held) > 100 and all(found[place][1]["late_by_s"] > 120 for place in held)
    assert places(found, "frames") | held == set(desk.topic.delivered)
    beside = Counter(minute_of(found[place][1]) for place in held)
    shown = {key[1]: row["held_frames"] for key, row in desk.rows().items() if key[0] == "minute"}
    assert shown == {minute: beside[minute] for minute in shown}
    counts = asked(desk, "SELECT epoch(minute)::BIGINT, frames FROM held_counts WHERE event_class = 'very_late'")
    assert counts == sorted(beside.items())

    def answered() -> dict[int, tuple[int, int]]:
        rows = desk.rows().items()
        return {key[1]: (row["frames"], row["unique_users"]) for key, row in rows if key[0] == "minute"}

    full = {minute: (len(uids), len(set(uids))) for minute, uids in truth.items()}
    middle = T0 + 180  # the edge of a minute
    before = answered()
    desk.admit(0, middle)
    desk.count()
    assert {m: answer for m, answer in answered().items() if m < middle} == {m: full[m] for m in full if m < middle}
    later = {m: answer for m, answer in before.items() if m >= middle}
    assert {m: answer for m, answer in answered().items() if m >= middle} == later != {}
    desk.admit(*ALWAYS)
    desk.count()
    assert answered() == full
    assert all(row["held_frames"] == 0 for row in desk.rows().values())
    assert desk.wrong() == []


def test_admitted_again_nothing_is_found_and_withdrawn_everything_is_as_it_was(open_desk):
    desk = open_desk(filled(500))
    desk.tick()
    desk.count()
    before, rows = where(desk.settings), desk.rows()

    assert desk.admit(*ALWAYS).frames == len(places(before, "held")) > 10
    admitted = where(desk.settings)
    assert not places(admitted, "held")
    desk.count()
    assert desk.wrong() == []
    rows_admitted = desk.rows()
    assert desk.admit(*ALWAYS) == MoveReport(move.Kind.ADMIT)
    desk.count()
    assert desk.rows() == rows_admitted

    assert desk.withdraw(*ALWAYS).held == len(places(before, "held"))
    assert where(desk.settings) == before, "every column of every record"
    desk.count()
    assert desk.wrong() == []
    withdrawn = desk.rows()
    for key, row in withdrawn.items():
        if key not in rows:
            assert (row["frames"], row["unique_users"] or 0, row["estimate"]) == (0, 0, 0)
            continue
        # An hour shows what is held beside its minutes that have a row: one more by now, where a minute was emptied.
        same = [name for name in ANSWER if name != "held_frames" or key[0] == "minute"]
        assert [row[name] for name in same] == [rows[key][name] for name in same]
        if rows_admitted[key] != rows[key]:
            assert (row["reason"], row["revision"]) == ("withdrawn", rows[key]["revision"] + 2)
            assert [old["reason"] for old in row["history"]][-1] == "admitted"
            if rows[key]["status"] == "final":
                assert [old["revision"] for old in row["history"]][-2:] == [row["revision"] - 2, row["revision"] - 1]
        else:
            assert row == rows[key]
    assert withdrawn.keys() > rows.keys()

    assert desk.withdraw(*ALWAYS) == MoveReport(move.Kind.WITHDRAW)
    desk.admit(*ALWAYS)
    assert where(desk.settings) == admitted
    assert desk.wrong() == []
    assert all(
        [row[name] for name in ANSWER] == [rows_admitted[key][name] for name in ANSWER]
        for key, row in desk.rows().items()
    )


@pytest.mark.parametrize("chosen", [EventClass.VERY_LATE, EventClass.FUTURE])
def test_only_the_chosen_class_is_moved_either_way(open_desk, chosen):
    desk = open_desk(filled(300))
    desk.drain()
    before = where(desk.settings)
    of_class = {place for place, (_, row) in before.items() if row.get("event_class") == chosen.label}
    assert 0 < len(of_class) < len(places(before, "held"))
    assert desk.admit(*ALWAYS, [chosen]).classes == {chosen.label: len(of_class)}
    assert set(desk.moved) == of_class
    desk.admit(*ALWAYS)
    desk.withdraw(*ALWAYS, [chosen])
    after = where(desk.settings)
    assert places(after, "held") == of_class
    assert places(after, "frames") == places(before, "frames", "held") - of_class


def test_what_a_drain_counted_although_it_was_very_late_can_be_withdrawn_and_admitted(open_desk):
    desk = open_desk(filled(600), very_late=VeryLate.CORRECT)
    desk.tick()
    before = where(desk.settings)
    late = {place for place, (kind, row) in before.items() if kind == "frames" and row["event_class"] == "very_late"}
    assert desk.withdraw(*ALWAYS).held == len(late) > 0
    assert desk.wrong() == []
    assert desk.admit(*ALWAYS, [EventClass.VERY_LATE]).frames == len(late)
    assert where(desk.settings) == before
    assert desk.wrong() == []


def test_a_window_emptied_and_closed_is_closed_with_nobody(open_desk):
    desk = open_desk(MemoryTopic(logs={0: []}))
    desk.topic.send([frame(T0 + i, f"user-{i % 7}") for i in range(600)])
    desk.topic.send([frame(T0 - 90_000, "alone", arrival_s=T0 + 600, kind=Kind.LATE)])
    desk.tick(close=True)
    desk.admit(*ALWAYS)
    assert desk.wrong(close=True) == []
    alone = "hour", T0 - 90_000 - (T0 - 90_000) % 3600
    assert (desk.rows()[alone]["frames"], desk.rows()[alone]["unique_users"]) == (1, 1)
    desk.withdraw(*ALWAYS)
    assert desk.wrong(close=True) == []
    assert (desk.rows()[alone]["frames"], desk.rows()[alone]["unique_users"]) == (0, 0)


# Replay.


def test_a_log_in_another_unit_is_quarantined_whole_and_replayed_it_is_as_if_read_right(
    open_desk, tmp_path, with_catalog
):
    records = records_between(0, 600, 2)
    # The first look judges the first frames a little differently when a whole log is at hand.
    records = [in_ms(record) for i, record in enumerate(records) if i > 150 or record.kind is Kind.ORDINARY]
    wrong, right = (
        open_desk(batch_frames=10_000),
        open_desk(batch_frames=10_000, ts_unit=TsUnit.MILLISECONDS, data_dir=tmp_path),
    )
    for desk in (wrong, right):
        desk.topic.send(records)
        desk.tick()
    found, meant = where(wrong.settings), where(right.settings)
    assert places(found, "quarantine") == set(found) and places(meant, "held")
    assert not wrong.rows()

    report = wrong.replay()
    assert report.classes == {"ts_out_of_range": len(places(meant, "frames", "held"))}
    assert where(wrong.settings) == meant, "each once, with its class"
    assert wrong.wrong() == []
    rows, expected = wrong.rows(), right.rows()
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert [row[name] for name in ANSWER] == [expected[key][name] for name in ANSWER]
        assert row["reason"] == "replayed"
    bad = sum(record.kind is Kind.BAD for record in records)
    assert asked(wrong, "SELECT count(*) FROM quarantine") == [(bad,)]
    assert wrong.replay() == MoveReport(move.Kind.REPLAY)


def test_windows_lose_the_rejected_records_that_were_replayed_and_say_so(open_desk, with_catalog):
    desk = open_desk(MemoryTopic(logs={0: []}))
    healthy = [frame(T0 + i, f"user-{i % 9}") for i in range(400)]
    desk.topic.send([in_ms(one)._replace(kind=Kind.LATE) if 100 <= i < 110 else one for i, one in enumerate(healthy)])
    desk.tick()
    desk.count()
    rows = desk.rows()
    (minute,) = {T0 + i - (T0 + i) % 60 for i in range(102, 112)}  # a second on their way, to Kafka
    assert rows["minute", minute]["rejected_frames"] == 10
    assert desk.replay().frames == 10
    desk.count()
    new = desk.rows()
    changed = {key for key in new if new[key] != rows[key]}
    assert changed == {("minute", minute), ("hour", minute - minute % 3600)}
    for key in changed:
        assert (new[key]["rejected_frames"], new[key]["reason"]) == (0, "replayed")
        assert new[key]["revision"] == rows[key]["revision"] + 1
    assert asked(desk, "SELECT count(*) FROM quarantine") == [(0,)]
    assert all(row["frames"] == 60 for key, row in new.items() if T0 <= key[1] < T0 + 360 and key[0] == "minute")
    desk.moved = dict.fromkeys(desk.moved, "frames")
    assert desk.wrong() == []


def test_what_still_cannot_be_read_stays_as_it_was_and_only_chosen_reasons_are_replayed(open_desk):
    desk = open_desk(filled(300, 2))
    milliseconds = [in_ms(one) for one in records_between(300, 330, 6)]
    desk.topic.send(milliseconds)
    desk.topic.logs[0].append(Sent((T0 + 330) * 1000, frame(T0, "", kind=Kind.BAD), None))  # type: ignore[arg-type]
    desk.drain()
    before = where(desk.settings)
    assert desk.replay([reason for reason in Reason if reason is not Reason.TS_OUT_OF_RANGE]).moved == 0
    assert where(desk.settings) == before
    meant = {p for p, (kind, row) in before.items() if row.get("reason") == "ts_out_of_range"}
    assert desk.replay([Reason.TS_OUT_OF_RANGE]).moved == len(meant) > 100
    after = where(desk.settings)
    assert {place: row for place, row in after.items() if place not in meant} == {
        place: row for place, row in before.items() if place not in meant
    }, "reason, detail and payload, also of those without one"
    assert {row["reason"] for kind, row in after.values() if kind == "quarantine"} >= {"tombstone", "invalid_utf8"}
    assert desk.wrong() == []


@pytest.fixture
def newer_version(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, the product takes the word true for a uid."""

    def parse(payloads, *how):
        mended = [payload and payload.replace(b'"uid":true', b'"uid":"true"') for payload in payloads]
        return frames.parse_frames(mended, *how)

    def upgrade() -> None:
        for module in (move, intake):
            monkeypatch.setattr(module, "parse_frames", parse)

    return upgrade


def odd(event_s: int, arrival_s: float, payload: bytes | None = None) -> Record:
    """What only a newer version can read."""
    payload = payload or b'{"ts":%d,"uid":true}' % event_s
    return Record(arrival_s, event_s, event_s, "true", Kind.BAD, None, payload)


@pytest.mark.parametrize("has_kafka_times", [True, False])
def test_a_record_that_a_newer_version_reads_is_judged_by_the_log_around_it(open_desk, newer_version, has_kafka_times):
    """Also in the first batch, which has no front before it."""
    log = [frame(T0 + i, f"user-{i % 9}") for i in range(400)]
    what: dict[int, str] = {}
    for place in (40, 300):  # the very first batch, and a later one
        for i, (event_s, label) in enumerate(
            [
                (T0 + place, "on_time"),
                (1_000_000_000, "very_late"),
                (3_000_000_000, "future"),
                (T0 + place - 140, "late"),
            ]
        ):
            log.insert(place + i, odd(event_s, T0 + place))
            what[place + i] = label
    desk = open_desk(MemoryTopic(logs={0: []}), batch_frames=128)
    desk.topic.send(log)
    if not has_kafka_times:
        desk.topic.logs[0] = [replace(sent, kafka_time_ms=-1) for sent in desk.topic.logs[0]]
    desk.tick()
    assert places(where(desk.settings), "quarantine") == {(0, offset) for offset in what}

    newer_version()
    assert desk.replay(ts_unit=TsUnit.SECONDS).moved == len(what)
    found = where(desk.settings)
    assert {offset: found[0, offset][1]["event_class"] for offset in what} == what
    assert {offset for _, offset in places(found, "held")} == {o for o in what if what[o] in ("very_late", "future")}
    assert all(found[0, offset][1]["uid"] == "true" for offset in what)
    assert desk.wrong() == []
    assert desk.rows()["minute", T0 + 300]["unique_users"] == 10


def test_where_the_log_said_nothing_records_are_judged_among_themselves_beside_those_where_it_did(
    open_desk, newer_version
):
    """The first batches are of another version throughout, and hold a flipped timestamp; one record comes later."""
    log = [odd(T0 + i, T0 + i) for i in range(256)]
    log[100] = odd(2_000_000_000, T0 + 100)
    log[101] = odd(1_000_000_000, T0 + 101)
    log += [frame(T0 + i, f"user-{i % 9}") for i in range(256, 600)]
    log[500] = odd(T0 + 500, T0 + 500)
    desk = open_desk(MemoryTopic(logs={0: []}), batch_frames=256)
    desk.topic.send(log)
    desk.topic.at_once = 64
    desk.tick()
    newer_version()
    desk.replay(ts_unit=TsUnit.SECONDS)
    found = where(desk.settings)
    held = {offset: found[0, offset][1]["event_class"] for _, offset in places(found, "held")}
    assert held == {100: "future", 101: "very_late"}
    assert not places(found, "quarantine")
    assert desk.wrong() == []


def test_replayed_records_that_are_held_are_moved_like_any_other(open_desk, newer_version):
    desk = open_desk(MemoryTopic(logs={0: []}))
    log = [frame(T0 + i, f"user-{i % 9}") for i in range(400)]
    log[300] = odd(T0 + 30, T0 + 300)
    desk.topic.send(log)
    desk.tick()
    newer_version()
    assert desk.replay(ts_unit=TsUnit.SECONDS).held == 1
    assert desk.wrong() == []
    assert desk.rows()["minute", T0]["held_frames"] == 1
    assert desk.admit(T0, T0 + 60).frames == 1
    assert desk.wrong() == []
    row = desk.rows()["minute", T0]
    assert (row["held_frames"], row["unique_users"], row["frames"], row["reason"]) == (0, 10, 61, "admitted")


# Killed on the way.


POINTS = [
    "move.before_write",
    "lake.before_fsync",
    "lake.file_stands",
    "move.before_commit",
    "move.in_commit",
    "ledger.before_commit",
    "ledger.after_commit",
    "move.after_commit",
]


class InTheSecondCommit:
    """A failpoint that kills where a name is reached for the first time after one commit was made."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_committed = False
        self.happened = False

    def __call__(self, name: str) -> None:
        if self._has_committed and name == self._name and not self.happened:
            self.happened = True
            raise Killed
        self._has_committed |= name == "move.after_commit"


MOVES: dict[str, Callable[[Workshop], MoveReport]] = {
    "admit": lambda shop: move.admit(shop, *ALWAYS),
    "withdraw": lambda shop: move.withdraw(shop, *ALWAYS),
    "replay": lambda shop: move.replay(shop),
}


@dataclass
class Template:
    """A data folder before a move, and what it is after it."""

    settings: Settings
    delivered: Delivered
    before: Any
    after: Any

    def copied(self, folder: Path) -> Settings:
        shutil.copytree(self.settings.data_dir, folder, dirs_exist_ok=True)
        return self.settings.model_copy(update={"data_dir": folder})


def state(settings: Settings) -> Any:
    """Everything but names and times."""
    stored = read_back(settings, problems := [])
    assert problems == []

    def timeless(row: dict[str, Any]) -> dict[str, Any]:
        history = [timeless(old) for old in row.get("history", [])]
        return {**{name: value for name, value in row.items() if name != "computed_at"}, "history": history}

    rows = {key: timeless(row) for grain in GRAINS for key, row in stored.results[grain].items()}
    tallies = {(t["minute_s"], t["kind"], t["reason"]): t["records"] for t in stored.tables["tallies"] if t["records"]}
    admissions = {(row["kafka_partition"], row["kafka_offset"]) for row in stored.tables["admissions"]}
    return where(settings), rows, tallies, admissions


@pytest.fixture(scope="module")
def templates() -> Iterator[Callable[[str], Template]]:
    """A folder a kind of move, made when it is first asked for."""
    made: dict[str, Template] = {}
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="uniq-test-", dir=memory if os.access(memory, os.W_OK) else None, ignore_cleanup_errors=True
    ) as folder:

        def make(kind: str) -> Template:
            settings = Settings(
                data_dir=Path(folder) / kind,
                topic="frames",
                results_topic=None,
                lg_k=8,
                duckdb_threads=1,
                batch_frames=100,
                kafka_bootstrap_servers="localhost:1",
            )
            topic = MemoryTopic()
            records = records_between(0, 600)
            if kind == "replay":  # a third of the producers changed their unit
                records = [in_ms(record) if i % 3 == 0 else record for i, record in enumerate(records)]
            topic.send(records)
            with open_workshop(settings) as shop:
                tick(shop, topic, None)
                if kind == "withdraw":
                    MOVES["admit"](shop)
                tick(shop, None, None)
            if kind == "replay":
                settings = settings.model_copy(update={"ts_unit": TsUnit.MILLISECONDS})
            template = Template(settings, topic.delivered, state(settings), None)
            clean = template.copied(Path(folder) / f"{kind}-clean")
            with open_workshop(clean) as shop:
                assert MOVES[kind](shop).files >= 4
                tick(shop, None, None)
            template.after = state(clean)
            return template

        def get(kind: str) -> Template:
            if kind not in made:
                made[kind] = make(kind)
            return made[kind]

        yield get


@pytest.fixture
def two_files_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move, "FILES_AT_ONCE", 2)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", MOVES)
def test_killed_anywhere_a_second_run_ends_where_one_would_have_that_was_not(
    templates, data_dir, two_files_at_once, kind, point
):
    template = templates(kind)
    settings = template.copied(data_dir)
    failpoint = InTheSecondCommit(point)
    at(settings, failpoint, MOVES[kind])
    assert failpoint.happened
    half_way = where(settings)
    assert set(half_way) == set(template.delivered), "each in one place"
    assert template.before[0] != half_way != template.after[0], "some commits were made, and some not"
    with open_workshop(settings) as shop:
        assert MOVES[kind](shop).files > 0
        tick(shop, None, None)
        assert overview(shop.ledger).is_conserved
        assert MOVES[kind](shop).moved == 0
    assert state(settings) == template.after


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.mark.parametrize("kind", MOVES)
def test_a_process_killed_within_its_second_commit_leaves_the_first_and_the_next_one_does_the_rest(
    templates, nursery, data_dir, kind
):
    template = templates(kind)
    settings = template.copied(data_dir)
    job = {"settings": settings.model_dump(mode="json", exclude_none=True), "do": kind, "at_once": 1}
    assert nursery.wait(nursery.start({**job, "at": "move.in_commit", "nth": 2})) == -signal.SIGKILL
    assert template.before[0] != where(settings) != template.after[0]
    assert nursery.wait(nursery.start({**job, "at": "lake.file_stands", "nth": 2})) == -signal.SIGKILL
    assert nursery.wait(nursery.start(job)) == 0
    with open_workshop(settings) as shop:
        tick(shop, None, None)
    assert state(settings) == template.after


# Two at once.


def test_of_two_admits_at_once_one_commits_and_the_other_leaves_nothing(templates, data_dir):
    template = templates("admit")
    settings = template.copied(data_dir)

    def first() -> None:
        at(settings, lambda name: None, MOVES["admit"])
        done.append(ledger_of(settings))

    done: list[Any] = []
    failpoint = OnceAt("move.before_commit", first)
    with pytest.raises(LostRace, match="admit"):
        at(settings, failpoint, MOVES["admit"])
    assert failpoint.happened
    assert [ledger_of(settings)] == done
    with open_workshop(settings) as shop:
        tick(shop, None, None)
    assert state(settings) == template.after


def test_an_admit_and_a_withdraw_at_once_do_not_undo_or_repeat_each_other(templates, data_dir):
    template = templates("withdraw")
    settings = template.copied(data_dir)
    failpoint = OnceAt("move.before_commit", lambda: at(settings, lambda name: None, MOVES["withdraw"]))
    with pytest.raises(LostRace):
        at(settings, failpoint, MOVES["withdraw"])
    failpoint = OnceAt("move.before_commit", lambda: at(settings, lambda name: None, MOVES["admit"]))
    with pytest.raises(LostRace):
        at(settings, failpoint, MOVES["admit"])
    assert where(settings) == template.before[0]


def test_of_two_replays_at_once_one_commits(templates, data_dir):
    template = templates("replay")
    settings = template.copied(data_dir)
    failpoint = OnceAt("move.before_commit", lambda: at(settings, lambda name: None, MOVES["replay"]))
    with pytest.raises(LostRace):
        at(settings, failpoint, MOVES["replay"])
    with open_workshop(settings) as shop:
        tick(shop, None, None)
    assert state(settings) == template.after


def ledger_of(settings: Settings) -> dict[str, list[tuple]]:
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(names)}


NIGHT_S = 7200


@pytest.fixture
def after_the_night(open_desk) -> Desk:
    """History, whose Kafka times vouch for nothing. Ten frames of the next morning are held, awaiting proof."""
    desk = open_desk(MemoryTopic(logs={0: []}))
    desk.topic.send([history(i) for i in range(64)])
    morning(desk, 10)
    desk.tick()
    assert places(where(desk.settings), "held") == {(0, offset) for offset in range(64, 74)}
    assert overview(desk.shop.ledger).partitions[0].pending_proof == 10
    return desk


def history(second: int) -> Record:
    return frame(T0 + second, f"user-{second % 9}", arrival_s=T0 + 10 * 86_400, kind=Kind.LATE)


def morning(desk: Desk, count: int) -> None:
    start = len(desk.topic.logs[0])
    desk.topic.send([history(NIGHT_S + start + i) for i in range(count)])


def counted_once(desk: Desk) -> None:
    """The ten, and all that came after."""
    found = where(desk.settings)
    assert places(found, "frames") == set(found) == set(desk.topic.delivered)
    assert desk.wrong() == []
    assert sum(row["frames"] for key, row in desk.rows().items() if key[0] == "minute") == len(found)


def test_a_frame_admitted_while_awaiting_proof_is_not_counted_again_when_its_log_proves_it(after_the_night):
    desk = after_the_night
    assert desk.admit(*ALWAYS).frames == 10
    assert desk.wrong() == []
    morning(desk, 60)
    desk.tick()
    counted_once(desk)
    assert desk.admit(*ALWAYS).moved == 0


def test_a_frame_that_its_log_proved_is_not_admitted_again_nor_withdrawn(after_the_night):
    desk = after_the_night
    morning(desk, 60)
    desk.tick()
    counted_once(desk)
    assert desk.admit(*ALWAYS).moved == 0
    assert desk.withdraw(*ALWAYS).moved == 0


def test_what_shares_its_file_with_a_proved_frame_is_admitted_without_it(after_the_night):
    desk = after_the_night
    desk.topic.send([frame(T0 - 9000, "very late", arrival_s=T0 + 10 * 86_400, kind=Kind.LATE)])
    morning(desk, 60)
    desk.drain()
    desk.topic.send([history(3 * NIGHT_S)])  # never proved
    desk.drain()
    assert desk.admit(*ALWAYS).classes == {"very_late": 1, "future": 1}
    counted_once(desk)


def test_a_drain_in_flight_that_proves_what_a_person_admits_loses_and_the_next_goes_on(after_the_night):
    desk = after_the_night
    morning(desk, 60)
    failpoint = OnceAt("drain.before_commit", lambda: desk.admit(*ALWAYS))
    with pytest.raises(LostRace):
        desk.drain(failpoint)
    assert failpoint.happened
    desk.tick()
    counted_once(desk)


def test_a_person_who_admits_what_a_drain_proves_meanwhile_loses_and_nothing_is_counted_twice(after_the_night):
    desk = after_the_night
    morning(desk, 60)
    failpoint = OnceAt("move.before_commit", desk.drain)
    with pytest.raises(LostRace):
        at(desk.settings, failpoint, MOVES["admit"])
    assert failpoint.happened
    counted_once(desk)
    assert desk.admit(*ALWAYS).moved == 0


def test_a_drain_in_flight_that_does_not_prove_them_yet_does_not_forget_that_they_were_admitted(after_the_night):
    desk = after_the_night
    morning(desk, 3)
    failpoint = OnceAt("drain.before_commit", lambda: desk.admit(*ALWAYS))
    desk.drain(failpoint)
    assert failpoint.happened
    assert places(where(desk.settings), "held") == {(0, offset) for offset in range(74, 77)}
    morning(desk, 60)
    desk.tick()
    counted_once(desk)


@pytest.mark.parametrize("frames_between", [0, 3])
def test_a_frame_admitted_and_withdrawn_and_then_proved_counts_once(after_the_night, frames_between):
    desk = after_the_night
    desk.admit(*ALWAYS)
    desk.count()
    morning(desk, frames_between)
    desk.drain()
    desk.withdraw(*ALWAYS)
    assert desk.wrong() == []
    morning(desk, 60)
    desk.tick()
    desk.moved.clear()
    counted_once(desk)


@pytest.mark.parametrize("point", ["count.files_listed", "count.before_commit", "count.after_commit"])
def test_a_move_between_the_points_of_a_count_is_counted_next(templates, data_dir, point):
    template = templates("admit")
    settings = template.copied(data_dir)
    for kind, expected in (("admit", template.after), ("withdraw", template.before)):
        with open_workshop(settings) as shop:
            mark_range(shop, Grain.MINUTE, T0 - 3600, T0 + 3600)
        failpoint = OnceAt(point, partial(at, settings, lambda name: None, MOVES[kind]))
        at(settings, failpoint, lambda shop: tick(shop, None, None))
        assert failpoint.happened
        with open_workshop(settings) as shop:
            tick(shop, None, None)
        found, rows, tallies, _ = state(settings)
        assert (found, tallies) == (expected[0], expected[2])
        for key, row in expected[1].items():
            assert [rows[key][name] for name in ANSWER] == [row[name] for name in ANSWER]
        assert all(rows[key]["frames"] == 0 for key in rows.keys() - expected[1].keys())


def test_gc_removes_the_files_that_were_taken_and_nothing_that_counts(open_desk):
    desk = open_desk(filled(600))
    desk.topic.send([in_ms(one) for one in records_between(600, 610, 6)])
    desk.tick()
    desk.admit(T0, T0 + 200)
    desk.withdraw(T0, T0 + 100)
    desk.replay()
    desk.admit(*ALWAYS, [EventClass.FUTURE])
    assert desk.wrong() == []
    before, rows = where(desk.settings), desk.rows()
    taken = set(paths_where(desk.settings, "retired_at IS NOT NULL"))
    kept = set(paths_where(desk.settings, "retired_at IS NULL"))
    assert {path.partition("/")[0] for path in taken} >= {"frames", "held", "quarantine", "results"}
    lake = desk.settings.data_dir / "lake"
    for path in lake.rglob("*.parquet"):
        os.utime(path, (0, 0))
    hasty = desk.settings.model_copy(update={"gc_grace_h": 0.0})
    assert collect_garbage(hasty, desk.shop.ledger, desk.shop.lake).retired == len(taken)
    left = {path.relative_to(lake).as_posix() for path in lake.rglob("*.parquet")}
    assert left - {path for path in left if path.startswith("empty/")} == kept
    assert where(desk.settings) == before
    mark_range(desk.shop, Grain.MINUTE, *ALWAYS)
    desk.count()
    assert desk.rows() == rows, "counted again from what is left"
    labels = {event_class.label for event_class in HELD_CLASSES}
    admitted = {place for place, (kind, row) in before.items() if kind == "frames" and row["event_class"] in labels}
    assert desk.withdraw(*ALWAYS).held == len(admitted) > 0


def paths_where(settings: Settings, condition: str) -> list[str]:
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
        return [row[0] for row in connection.execute(f"SELECT path FROM files WHERE {condition}")]


# Whatever the order.


@pytest.mark.parametrize("seed", range(10))
def test_after_any_sequence_every_record_is_in_one_place_and_every_window_is_what_is_in_it(open_desk, seed):
    rng = Random(seed)
    desk = open_desk(batch_frames=rng.choice([100, 150, 1000]), very_late=rng.choice(list(VeryLate)))
    sent_s = 0
    for _ in range(10):
        start_s = T0 + rng.randrange(-200, 700)
        span = rng.choice([ALWAYS, (start_s, start_s + rng.randrange(1, 400))])
        classes = rng.choice([list(HELD_CLASSES), [EventClass.VERY_LATE], [EventClass.FUTURE]])
        match rng.choice(["drain", "drain", "drain", "count", "admit", "admit", "withdraw", "replay", "unit"]):
            case "drain":
                more(desk.topic, sent_s, sent_s + 80)
                sent_s += 80
                desk.drain()
            case "unit":  # somebody's producers write milliseconds for a while
                desk.topic.send([in_ms(one) for one in records_between(sent_s, sent_s + 5, 4)], rng)
                desk.drain()
            case "count":
                desk.count()
            case "admit":
                desk.admit(*span, classes)
            case "withdraw":
                desk.withdraw(*span, classes)
            case "replay":
                desk.replay(rng.choice([list(Reason), [Reason.TS_OUT_OF_RANGE], [Reason.INVALID_JSON]]))
    # Until they are replayed, those in another unit are in quarantine.
    for place, (kind, row) in where(desk.settings).items():
        if row.get("reason") == "ts_out_of_range":
            desk.moved[place] = kind
        elif kind == "frames" and desk.moved.get(place) == "held":
            desk.moved[place] = kind  # withdrawn while it was awaiting proof, and proved since
    assert desk.wrong() == []


# Dry runs.


@pytest.mark.parametrize("kind", MOVES)
def test_a_dry_run_says_what_the_real_one_does_and_changes_nothing(templates, data_dir, two_files_at_once, kind):
    settings = templates(kind).copied(data_dir)
    whole = {
        "admit": partial(move.admit, start_s=T0, end_s=T0 + 400),
        "withdraw": partial(move.withdraw, start_s=T0, end_s=T0 + 400),
        "replay": partial(move.replay, reasons=[Reason.TS_OUT_OF_RANGE]),
    }[kind]

    def seen() -> Any:
        files = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (data_dir / "lake").rglob("*")}
        return ledger_of(settings), files

    with open_workshop(settings) as shop:
        before = seen()
        said = whole(shop, dry_run=True)
        assert seen() == before
        assert said.moved > 0 and said == whole(shop)
        assert seen() != before


# The commands.


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Any]:
    """Runs the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object, **variables: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uniq-pipeline", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            main()
            status = 0
        except SystemExit as left:
            status = int(left.code or 0)
        out, err = capsysbinary.readouterr()
        return status, out.decode(), err.decode()

    return run


@pytest.fixture
def at_command(templates, data_dir, monkeypatch) -> Callable[[str], Settings]:
    """A copy of a template, with the environment that names it."""

    def prepare(kind: str) -> Settings:
        settings = templates(kind).copied(data_dir)
        for name, value in {
            "DATA_DIR": str(data_dir),
            "LG_K": "8",
            "RESULTS_TOPIC": "",
            "TOPIC": "frames",
            "TS_UNIT": str(settings.ts_unit),
            "DUCKDB_THREADS": "1",
        }.items():
            monkeypatch.setenv(f"UNIQ_{name}", value)
        return settings

    return prepare


def test_the_commands_move_count_and_report(at_command, run, with_catalog, templates):
    settings = at_command("admit")
    held = Counter(row["event_class"] for kind, row in where(settings).values() if kind == "held")
    status, out, _ = run("admit", "--dry-run", "--json")
    dry = json.loads(out)
    assert (status, dry["dry_run"], dry["windows_changed"]) == (0, True, {})
    assert where(settings) == templates("admit").before[0]
    status, out, _ = run("admit", "--dry-run")
    shown = f"(future {held['future']}, very_late {held['very_late']})"
    assert (status, out) == (0, f"{held.total()} would be counted {shown}\n")

    status, out, _ = run("admit", "--json")
    real = json.loads(out)
    assert status == 0
    assert real == {**dry, "dry_run": False, "windows_changed": real["windows_changed"]}
    assert (real["moved"], real["counted"], real["held"], real["classes"]) == (held.total(), held.total(), 0, held)
    assert real["windows_changed"]["minute"] >= 3 and real["windows_changed"]["hour"] >= 2
    assert state(settings)[0] == templates("admit").after[0]
    assert run("admit")[:2] == (0, "nothing to move\nwindows changed: none; 0 published\n")

    status, out, _ = run("withdraw", "--class", "very_late")
    assert status == 0
    assert out.startswith(f"{held['very_late']} held (very_late {held['very_late']})\nwindows changed: ")
    status, out, _ = run("query", "--json", "SELECT count(*) AS n FROM held_frames")
    assert json.loads(out) == {"n": held["very_late"]}
    status, out, _ = run("withdraw", "--json")
    assert (json.loads(out)["held"], json.loads(out)["classes"]) == (held["future"], {"future": held["future"]})
    assert where(settings) == templates("admit").before[0]


def test_the_replay_command_moves_the_chosen_reasons(at_command, run, templates):
    settings = at_command("replay")
    status, out, _ = run("replay", "--reason", "tombstone", "--json")
    assert (status, json.loads(out)["moved"]) == (0, 0)
    status, out, _ = run("replay", "--reason", "ts_out_of_range", "--reason", "uid_missing", "--dry-run")
    assert status == 0 and " would be counted; " in out and " would be held (ts_out_of_range " in out
    status, out, _ = run("replay")
    assert status == 0 and " counted; " in out and "windows changed: " in out
    assert state(settings) == templates("replay").after
    status, _, err = run("replay", "--reason", "nonsense")
    assert status == 2 and "ts_out_of_range" in err


def test_times_without_an_offset_are_local_and_the_range_is_half_open(at_command, run):
    """New York's new year is five hours after Greenwich's, so a wrong reading finds nothing."""
    settings = at_command("admit")
    times = [row["event_time"].timestamp() for kind, row in where(settings).values() if kind == "held"]
    expected = sum(T0 - 120 <= instant < T0 + 120 for instant in times)
    assert 0 < expected < len(times)
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
        connection.execute("UPDATE meta SET value = 'America/New_York' WHERE key = 'timezone'")
        connection.commit()

    def moved(start: str, end: str) -> int:
        status, out, err = run(
            "admit", "--dry-run", "--json", "--from", start, "--to", end, UNIQ_TIMEZONE="America/New_York"
        )
        assert status == 0, err
        return json.loads(out)["moved"]

    assert moved("2023-12-31T23:53Z", "2023-12-31T23:57Z") == expected
    assert moved("2023-12-31T18:53", "2023-12-31T18:57:00") == expected
    assert moved("2024-01-01T05:23+05:30", "2024-01-01T05:27+05:30") == expected
    assert moved("2023-12-31T23:53", "2023-12-31T23:57") == 0


@pytest.mark.parametrize("command", ["admit", "withdraw"])
@pytest.mark.parametrize("wrong", ["yesterday", "2024-13-01", ""])
def test_a_wrong_date_is_refused_with_what_is_allowed(at_command, run, command, wrong):
    settings = at_command("admit")
    before = ledger_of(settings)
    for option in ("--from", "--to"):
        status, out, err = run(command, option, wrong)
        assert (status, out) == (2, "")
        assert option in err and "2026-03-01" in err and "2026-03-01T08:00Z" in err
    status, _, err = run(command, "--class", "late")
    assert status == 2 and "future" in err and "very_late" in err
    assert ledger_of(settings) == before
