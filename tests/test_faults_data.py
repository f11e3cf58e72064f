"""Faults in the data, end to end: bytes on a topic, one tick, and what a person finds in the catalog.

The numbers are the rows of the list of faults. Rows 29 to 44 share one live topic and one tick: each has a
minute of its own, in which ten good users send before and after the odd records.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pytest
from support.frames import MemoryTopic, Sent, frame
from support.ticks import run_tick

from uniq_pipeline.config import Settings, TsUnit, VeryLate
from uniq_pipeline.demo.traffic import Kind, Record
from uniq_pipeline.frames import LATEST_EVENT_S, Reason
from uniq_pipeline.warehouse import ask_catalog

T0 = 1_767_225_600  # 2026-01-01T00:00:00Z
E_ACUTE = "caf\u00e9"

Verdict = tuple[str, str]  # view of the catalog, and what it says of the record


def counted(uid: str) -> Verdict:
    return "frames", uid


def held(event_class: str) -> Verdict:
    return "held_frames", event_class


def rejected(reason: Reason) -> Verdict:
    return "quarantine", str(reason)


# Row -> record -> payload and verdict. `@` in a payload is the second, within the row's minute, that it is sent.
ODD: dict[int, dict[str, tuple[bytes | None, Verdict]]] = {
    29: {
        "in uid": (b'{"ts":@,"uid":"\xff"}', rejected(Reason.INVALID_UTF8)),
        "in a field that is not read": (b'{"ts":@,"uid":"a","x":"\xc3("}', rejected(Reason.INVALID_UTF8)),
        "overlong": (b'{"ts":@,"uid":"\xc0\xaf"}', rejected(Reason.INVALID_UTF8)),
        "after the frame": (b'{"ts":@,"uid":"a"}\xff', rejected(Reason.INVALID_UTF8)),
        "UTF-8 is welcome": ('{"ts":@,"uid":"zo\u00eb"}'.encode(), counted("zo\u00eb")),
    },
    30: {
        "truncated": (b'{"ts":@,"uid":"a"', rejected(Reason.INVALID_JSON)),
        "trailing text": (b'{"ts":@,"uid":"a"} x', rejected(Reason.INVALID_JSON)),
        "two documents": (b'{"ts":@,"uid":"a"}{"ts":@,"uid":"b"}', rejected(Reason.INVALID_JSON)),
        "two lines": (b'{"ts":@,"uid":"a"}\n{"ts":@,"uid":"b"}', rejected(Reason.INVALID_JSON)),
        "empty": (b"", rejected(Reason.INVALID_JSON)),
        "only spaces": (b" \n", rejected(Reason.INVALID_JSON)),
        "no value": (None, rejected(Reason.TOMBSTONE)),
    },
    31: {
        "lists in a skipped value": (
            b'{"ts":@,"uid":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            rejected(Reason.INVALID_JSON),
        ),
        "objects in a skipped value": (
            b'{"ts":@,"uid":"a","x":' + b'{"x":' * 100_000 + b"1" + b"}" * 100_001,
            rejected(Reason.INVALID_JSON),
        ),
        "lists as root": (b"[" * 100_000 + b"]" * 100_000, rejected(Reason.INVALID_JSON)),
        "objects as root": (b'{"ts":' * 100_000 + b"@" + b"}" * 100_000, rejected(Reason.INVALID_JSON)),
        "lists that never close": (b"[" * 100_000, rejected(Reason.INVALID_JSON)),
    },
    32: {
        "NaN": (b'{"ts":NaN,"uid":"a"}', rejected(Reason.INVALID_JSON)),
        "NaN in a field that is not read": (b'{"ts":@,"uid":"a","x":NaN}', rejected(Reason.INVALID_JSON)),
        "Infinity": (b'{"ts":@,"uid":"a","x":-Infinity}', rejected(Reason.INVALID_JSON)),
        "trailing comma": (b'{"ts":@,"uid":"a",}', rejected(Reason.INVALID_JSON)),
        "comment": (b'{"ts":@,/* who? */"uid":"a"}', rejected(Reason.INVALID_JSON)),
    },
    33: {
        "1e400": (b'{"ts":1e400,"uid":"a"}', rejected(Reason.INVALID_JSON)),
        "1e400 as text": (b'{"ts":"1e400","uid":"a"}', rejected(Reason.TS_OUT_OF_RANGE)),
        "1e300": (b'{"ts":1e300,"uid":"a"}', rejected(Reason.TS_OUT_OF_RANGE)),
        "2 to the 63": (b'{"ts":9223372036854775808,"uid":"a"}', rejected(Reason.TS_OUT_OF_RANGE)),
        "2 to the 64": (b'{"ts":18446744073709551616,"uid":"a"}', rejected(Reason.TS_OUT_OF_RANGE)),
        "4,000 digits": (b'{"ts":' + b"9" * 4000 + b',"uid":"a"}', rejected(Reason.INVALID_JSON)),
        "4,000 digits as text": (b'{"ts":"' + b"9" * 4000 + b'","uid":"a"}', rejected(Reason.TS_INVALID)),
    },
    34: {
        "the last one counts": (b'{"ts":1,"uid":"first","ts":@,"uid":"last"}', counted("last")),
        "also when spelled otherwise": (rb'{"uid":"first","ts":@,"\u0075id":"escaped last"}', counted("escaped last")),
        "also when it is wrong": (b'{"ts":@,"uid":"first","uid":null}', rejected(Reason.UID_MISSING)),
        "also when only it is right": (b'{"ts":null,"uid":[],"uid":"only","ts":@}', counted("only")),
    },
    35: {
        "decoys before and after": (
            b'{"x":{"ts":7,"uid":"decoy"},"ts":@,"uid":"real","y":[{"ts":8,"uid":"decoy"}]}',
            counted("real"),
        ),
        "decoys in text": (rb'{"x":"\"ts\":7,\"uid\":\"decoy\"","ts":@,"uid":"real too"}', counted("real too")),
        "escaped keys": (rb'{"\u0074\u0073":@,"\u0075i\u0064":"escaped"}', counted("escaped")),
        "an escaped decoy": (rb'{"x":{"\u0075id":"decoy"},"uid":"plain","ts":@}', counted("plain")),
        "no ts but a decoy's": (b'{"x":{"ts":@},"uid":"a"}', rejected(Reason.TS_MISSING)),
        "no uid but a decoy's": (b'{"x":{"uid":"decoy"},"ts":@}', rejected(Reason.UID_MISSING)),
    },
    36: {
        "UTF-8": (b'\xef\xbb\xbf{"ts":@,"uid":"a"}', rejected(Reason.INVALID_JSON)),
        "UTF-16": (b'\xff\xfe{\x00"\x00t\x00s\x00"\x00', rejected(Reason.INVALID_UTF8)),
        "inside a uid it is a character": (b'{"ts":@,"uid":"\xef\xbb\xbfa"}', counted("\ufeffa")),
    },
    37: {
        "high": (rb'{"ts":@,"uid":"\ud800"}', rejected(Reason.INVALID_JSON)),
        "low": (rb'{"ts":@,"uid":"\udc00"}', rejected(Reason.INVALID_JSON)),
        "in a field that is not read": (rb'{"ts":@,"uid":"a","x":"\ud800"}', rejected(Reason.INVALID_JSON)),
        "encoded": (b'{"ts":@,"uid":"\xed\xa0\x80"}', rejected(Reason.INVALID_UTF8)),
        "a pair is a character": (rb'{"ts":@,"uid":"\ud83d\uded2"}', counted("\U0001f6d2")),
    },
    38: {
        "in the middle": (rb'{"ts":@,"uid":"a\u0000b"}', counted("a\0b")),
        "another end": (rb'{"ts":@,"uid":"a\u0000c"}', counted("a\0c")),
        "at the end": (rb'{"ts":@,"uid":"a\u0000"}', counted("a\0")),
        "none": (b'{"ts":@,"uid":"a"}', counted("a")),
        "nothing else": (rb'{"ts":@,"uid":"\u0000"}', counted("\0")),
    },
    39: {
        "integer": (b'{"ts":@,"uid":"integer"}', counted("integer")),
        "float": (b'{"ts":@.999,"uid":"float"}', counted("float")),
        "exponent": (b'{"ts":@0E-1,"uid":"exponent"}', counted("exponent")),
        "text": (b'{"ts":"@","uid":"text"}', counted("text")),
        "text with a fraction": (b'{"ts":"@.999","uid":"fraction"}', counted("fraction")),
        "text with leading zeros": (b'{"ts":"00@","uid":"zeros"}', counted("zeros")),
        "milliseconds": (b'{"ts":@000,"uid":"a"}', rejected(Reason.TS_OUT_OF_RANGE)),
        "milliseconds as text": (b'{"ts":"@000","uid":"a"}', rejected(Reason.TS_OUT_OF_RANGE)),
        "microseconds": (b'{"ts":@000000,"uid":"a"}', rejected(Reason.TS_OUT_OF_RANGE)),
        "nanoseconds": (b'{"ts":@000000000,"uid":"a"}', rejected(Reason.TS_OUT_OF_RANGE)),
        "a date": (b'{"ts":"2026-01-01T00:10:00Z","uid":"a"}', rejected(Reason.TS_INVALID)),
        "text with a space": (b'{"ts":" @","uid":"a"}', rejected(Reason.TS_INVALID)),
        "hexadecimal": (b'{"ts":"0x10","uid":"a"}', rejected(Reason.TS_INVALID)),
        "true": (b'{"ts":true,"uid":"a"}', rejected(Reason.TS_INVALID)),
        "a list": (b'{"ts":[@],"uid":"a"}', rejected(Reason.TS_INVALID)),
        "an object": (b'{"ts":{"ts":@},"uid":"a"}', rejected(Reason.TS_INVALID)),
        "null": (b'{"ts":null,"uid":"a"}', rejected(Reason.TS_MISSING)),
        "missing": (b'{"uid":"a"}', rejected(Reason.TS_MISSING)),
    },
    41: {
        "missing": (b'{"ts":@}', rejected(Reason.UID_MISSING)),
        "null": (b'{"ts":@,"uid":null}', rejected(Reason.UID_MISSING)),
        "empty": (b'{"ts":@,"uid":""}', rejected(Reason.UID_EMPTY)),
        "empty again": (b'{"uid":"","ts":@}', rejected(Reason.UID_EMPTY)),
    },
    42: {
        "integer": (b'{"ts":@,"uid":42}', counted("42")),
        "text": (b'{"ts":@,"uid":"42"}', counted("42")),
        "float": (b'{"ts":@,"uid":42.0}', rejected(Reason.UID_INVALID)),
        "true": (b'{"ts":@,"uid":true}', rejected(Reason.UID_INVALID)),
        "a list": (b'{"ts":@,"uid":["42"]}', rejected(Reason.UID_INVALID)),
    },
    43: {
        name: ('{"ts":@,"uid":"%s"}'.replace("%s", uid).encode(), counted(uid))
        for name, uid in {
            "lower case": "a",
            "upper case": "A",
            "a space before": " a",
            "a space after": "a ",
            "a space": " ",
            "NFC": E_ACUTE,
            "NFD": unicodedata.normalize("NFD", E_ACUTE),
            "Kelvin sign": "\u212a",
            "K": "K",
        }.items()
    },
    44: {
        "list": (b'[{"ts":@,"uid":"a"}]', rejected(Reason.NOT_AN_OBJECT)),
        "empty list": (b"[]", rejected(Reason.NOT_AN_OBJECT)),
        "number": (b"@", rejected(Reason.NOT_AN_OBJECT)),
        "text": (b'"ts uid"', rejected(Reason.NOT_AN_OBJECT)),
        "null": (b"null", rejected(Reason.NOT_AN_OBJECT)),
        "true": (b"true", rejected(Reason.NOT_AN_OBJECT)),
    },
}


class RawTopic(MemoryTopic):
    """A topic that takes any bytes."""

    def put(self, payload: bytes | None, at_s: float, kafka_partition: int = 0) -> int:
        """Appends a record that reaches the topic at `at_s`; returns its offset."""
        log = self.logs.setdefault(kafka_partition, [])
        log.append(Sent(int(at_s * 1000), Record(at_s, int(at_s), None, "", Kind.BAD, None, b""), payload))
        return len(log) - 1


@dataclass
class Seen:
    """A topic that was read, and its catalog."""

    settings: Settings
    topic: MemoryTopic
    watermark_s: int | None = None

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return rows_of(ask_catalog(self.settings.catalog_path, sql).to_pylist())

    def one(self, sql: str) -> tuple[Any, ...]:
        (row,) = self.ask(sql)
        return row

    def tick(self, **options: Any) -> None:
        self.watermark_s = run_tick(self.settings, self.topic, **options).watermark_s

    def verdicts(self) -> dict[tuple[int, int], Verdict]:
        """(topic partition, offset) -> the view it is in. Fails where a record is nowhere, or twice."""
        everything = self.ask("""
            SELECT kafka_partition, kafka_offset, 'frames', uid FROM frames
            UNION ALL SELECT kafka_partition, kafka_offset, 'held_frames', event_class FROM held_frames
            UNION ALL SELECT kafka_partition, kafka_offset, 'quarantine', reason FROM quarantine
        """)
        found = {(p, offset): (view, what) for p, offset, view, what in everything}
        assert len(found) == len(everything), "a record is in two places"
        assert set(found) == set(self.topic.delivered), "a record is lost"
        delivered, admitted, in_views = self.one("""
            SELECT sum(delivered)::BIGINT, sum(admitted)::BIGINT, sum(frames + held + quarantined)::BIGINT FROM batches
        """)
        assert delivered == len(found) and delivered + admitted == in_views
        return found


def rows_of(rows: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in rows]


@dataclass
class Zoo(Seen):
    """The topic with the odd records, read by one tick."""

    offsets: dict[tuple[int, str], int] | None = None

    def check(self, row: int) -> None:
        """All records of a row are where they belong, as themselves, and the row's minute says so."""
        found = self.verdicts()
        assert {name: found[0, self.offsets[row, name]] for name in ODD[row]} == {
            name: verdict for name, (_, verdict) in ODD[row].items()
        }
        in_quarantine = {o: rest for o, *rest in self.ask("SELECT kafka_offset, payload, detail FROM quarantine")}
        seconds = dict(self.ask("SELECT kafka_offset, epoch(event_time)::BIGINT FROM frames WHERE kafka_partition = 0"))
        users, rejects = {f"good-{i}" for i in range(10)}, 0
        for name, (_, (view, what)) in ODD[row].items():
            offset = self.offsets[row, name]
            if view == "quarantine":
                payload, detail = in_quarantine[offset]
                assert payload == self.topic.logs[0][offset].payload and detail, name
                rejects += 1
            else:
                assert seconds[offset] == minute_of(row) + 30, name
                users.add(what)
        frames = 20 + len(ODD[row]) - rejects
        assert self.minute(row) == (frames, len(users), 0, rejects)

    def minute(self, row: int) -> tuple[Any, ...]:
        return self.one(f"""
            SELECT frames, unique_users, held_frames, rejected_frames FROM minute_counts
            WHERE window_start = to_timestamp({minute_of(row)})
        """)

    def details(self, row: int) -> dict[str, str]:
        found = dict(self.ask("SELECT kafka_offset, detail FROM quarantine"))
        return {name: found[self.offsets[row, name]] for name in ODD[row] if self.offsets[row, name] in found}


def minute_of(row: int) -> int:
    return T0 + 60 * (row - 29)


@pytest.fixture(scope="module")
def make_module_settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    def make(**overrides: Any) -> Settings:
        values = {"data_dir": tmp_path_factory.mktemp("faults"), "topic": "frames", "results_topic": None}
        return Settings(**{**values, "lg_k": 8, "duckdb_threads": 1, **overrides})

    return make


@pytest.fixture(scope="module")
def zoo(make_module_settings: Callable[..., Settings]) -> Zoo:
    topic, offsets = RawTopic(), {}
    for row, records in ODD.items():
        start = minute_of(row)
        topic.send([frame(start + 2 * i, f"good-{i}") for i in range(10)])
        for name, (payload, _) in records.items():
            if payload is not None:
                payload = payload.replace(b"@", b"%d" % (start + 30))
            offsets[row, name] = topic.put(payload, start + 31)
        topic.send([frame(start + 40 + i, f"good-{i}") for i in range(10)])
    # Partition 0 has the odd records; the good ones are in both.
    zoo = Zoo(make_module_settings(), topic, offsets=offsets)
    zoo.tick()
    return zoo


def test_fault_29_invalid_utf8_is_in_quarantine_and_its_good_neighbours_are_counted(zoo):
    zoo.check(29)
    assert zoo.details(29)["in uid"].startswith("byte 24:")
    row = zoo.one(f"""
        SELECT topic, kafka_partition, kafka_time = to_timestamp({minute_of(29) + 31}), reason, payload
        FROM quarantine WHERE kafka_offset = {zoo.offsets[29, "in uid"]}
    """)
    assert row == ("frames", 0, True, "invalid_utf8", b'{"ts":1767225630,"uid":"\xff"}')


def test_fault_30_what_is_not_exactly_one_document_is_in_quarantine(zoo):
    zoo.check(30)


def test_fault_31_nesting_100000_deep_is_in_quarantine_and_crashes_nothing(zoo):
    zoo.check(31)


def test_fault_32_what_only_looks_like_json_is_in_quarantine(zoo):
    zoo.check(32)


def test_fault_33_a_ts_past_all_ranges_is_in_quarantine(zoo):
    zoo.check(33)
    assert max(len(detail) for detail in zoo.details(33).values()) < 200


def test_fault_34_of_a_repeated_root_key_the_last_one_counts(zoo):
    zoo.check(34)
    assert zoo.ask("SELECT uid FROM frames WHERE uid = 'first'") == []


def test_fault_35_nested_decoys_are_ignored_and_escaped_root_keys_honoured(zoo):
    zoo.check(35)
    assert zoo.ask("SELECT uid FROM frames WHERE uid LIKE '%decoy%'") == []


def test_fault_36_a_byte_order_mark_is_not_json(zoo):
    zoo.check(36)


def test_fault_37_a_lone_surrogate_is_in_quarantine(zoo):
    zoo.check(37)


def test_fault_38_a_nul_inside_a_uid_is_preserved(zoo):
    zoo.check(38)
    found = zoo.ask(f"SELECT hex(uid) FROM frames WHERE epoch(event_time) = {minute_of(38) + 30} ORDER BY 1")
    assert found == [("00",), ("61",), ("6100",), ("610062",), ("610063",)]


def test_fault_39_every_shape_of_ts_is_floored_and_its_unit_is_never_guessed(zoo):
    zoo.check(39)
    assert "2026-01-01" in zoo.details(39)["a date"]


@pytest.mark.parametrize("unit, digits", [(TsUnit.MILLISECONDS, 3), (TsUnit.MICROSECONDS, 6), (TsUnit.NANOSECONDS, 9)])
def test_fault_39_the_unit_of_ts_is_that_of_the_setting_and_of_nothing_else(make_settings, unit, digits):
    topic = RawTopic(logs={0: []})
    for i in range(64):
        topic.put(b'{"ts":%d%s,"uid":"good"}' % (T0 + i % 60, b"9" * digits), T0 + i % 60)
    sent = {
        "integer": (b'{"ts":%d%s,"uid":"integer"}' % (T0 + 59, b"9" * digits), counted("integer")),
        "float": (b'{"ts":%d%s.9,"uid":"float"}' % (T0 + 59, b"0" * digits), counted("float")),
        "text": (b'{"ts":"%d%s","uid":"text"}' % (T0 + 59, b"9" * digits), counted("text")),
        # Read in the unit that was said, seconds are of January 1970.
        "seconds": (b'{"ts":%d,"uid":"a"}' % (T0 + 59), held("very_late")),
        "a finer unit": (b'{"ts":%d%s000,"uid":"a"}' % (T0 + 59, b"0" * digits), rejected(Reason.TS_OUT_OF_RANGE)),
    }
    offsets = {name: topic.put(payload, T0 + 60) for name, (payload, _) in sent.items()}
    seen = Seen(make_settings(ts_unit=unit), topic)
    seen.tick()
    found = seen.verdicts()
    assert {name: found[0, offset] for name, offset in offsets.items()} == {
        n: verdict for n, (_, verdict) in sent.items()
    }
    assert seen.ask("SELECT epoch(window_start)::BIGINT, frames, unique_users FROM minute_counts") == [(T0, 67, 4)]


def test_fault_40_flipped_timestamps_are_set_aside_with_a_reason_and_the_watermark_does_not_move(
    make_settings, tmp_path
):
    # Ten frames a second for 15 minutes, and 64 in the last second. Damaged are all of the second 500, and three of
    # the last 64.
    wild = {
        5000: (-1, rejected(Reason.TS_OUT_OF_RANGE)),
        5001: (T0 ^ 1 << 63, rejected(Reason.TS_OUT_OF_RANGE)),
        5002: (-(T0 + 500), rejected(Reason.TS_OUT_OF_RANGE)),
        5003: (T0 + 500 ^ 1 << 31, held("future")),
        5004: (T0 + 500 ^ 1 << 29, held("very_late")),
        5005: (T0 + 500 ^ 1 << 25, held("future")),
        5006: (0, held("very_late")),
        5007: (2**32 - 1, held("future")),
        5008: (LATEST_EVENT_S, held("future")),
        5009: (LATEST_EVENT_S + 1, rejected(Reason.TS_OUT_OF_RANGE)),
        9020: (T0 + 900 ^ 1 << 31, held("future")),
        9021: (0, held("very_late")),
        9022: (T0 + 900 ^ 1 << 40, rejected(Reason.TS_OUT_OF_RANGE)),
    }

    def stream(damaged: dict[int, tuple[int, Verdict]], settings: Settings) -> Seen:
        topic = RawTopic(logs={0: []})
        for i in range(9064):
            sent_s = T0 + min(i // 10, 900)
            ts = damaged[i][0] if i in damaged else sent_s
            topic.put(b'{"ts":%d,"uid":"u%d"}' % (ts, i % 10), sent_s)
        seen = Seen(settings, topic)
        seen.tick()
        return seen

    clean, dirty = stream({}, make_settings()), stream(wild, make_settings(data_dir=tmp_path))
    found = dirty.verdicts()
    assert {i: found[0, i] for i in wild} == {i: verdict for i, (_, verdict) in wild.items()}
    assert {view for (_, i), (view, _) in found.items() if i not in wild} == {"frames"}
    assert clean.watermark_s == dirty.watermark_s == T0 + 900 - 5
    statuses = "SELECT window_start, status FROM minute_counts ORDER BY 1"
    assert clean.ask(statuses) == dirty.ask(statuses), "nor are there windows of years to come"
    on_time = "SELECT sum(frames)::BIGINT FROM late_histogram WHERE late_by_s = 0"
    assert (clean.one(on_time), dirty.one(on_time)) == ((9064,), (9064 - len(wild),)), "and nobody is late for it"


def test_fault_41_a_record_without_a_user_is_no_user_and_is_counted_by_reason(zoo):
    zoo.check(41)
    in_minute = f"kafka_time = to_timestamp({minute_of(41) + 31})"
    reasons = zoo.ask(f"SELECT reason, count(*) FROM quarantine WHERE {in_minute} GROUP BY 1 ORDER BY 1")
    assert reasons == [("uid_empty", 2), ("uid_missing", 2)]
    said = "SELECT sum((reasons->>'uid_empty')::BIGINT)::BIGINT FROM batches"
    assert zoo.one(said) == (2,), "so do the batches"


def test_fault_42_the_number_42_and_the_text_42_are_one_user(zoo):
    zoo.check(42)
    assert zoo.minute(42)[:2] == (22, 11)


def test_fault_43_case_unicode_form_and_spaces_tell_users_apart(zoo):
    zoo.check(43)
    assert zoo.minute(43)[:2] == (29, 19)


def test_fault_44_a_list_or_a_scalar_at_the_top_is_in_quarantine(zoo):
    zoo.check(44)


@pytest.mark.parametrize("very_late", VeryLate)
def test_fault_45_a_frame_later_than_the_window_is_kept_and_shown_or_corrects_its_minute(make_settings, very_late):
    topic = RawTopic(logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 7}") for i in range(600)])
    seen = Seen(make_settings(very_late=very_late), topic)
    seen.tick()
    row = f"""
        SELECT frames, unique_users, late_frames, held_frames, status, reason, revision FROM minute_counts
        WHERE window_start = to_timestamp({T0 + 60})
    """
    before = seen.one(row)
    assert before[:6] == (60, 7, 0, 0, "final", "live")
    others = f"SELECT * FROM minute_counts WHERE window_end <= to_timestamp({T0 + 60}) ORDER BY window_start"
    untouched = seen.ask(others)

    payload = b'{"ts":%d,"uid":"newcomer"}' % (T0 + 90)
    offset = topic.put(payload, T0 + 600)
    seen.tick()
    found = seen.verdicts()
    if very_late is VeryLate.HOLD:
        assert found[0, offset] == held("very_late")
        assert seen.one(row) == (60, 7, 0, 1, "final", "tally", before[6] + 1)
        kept = seen.one("SELECT topic, kafka_partition, kafka_offset, epoch_ms(kafka_time), uid FROM held_frames")
        assert kept == (topic.topic, 0, offset, (T0 + 600) * 1000, "newcomer")
        assert seen.one("SELECT epoch(event_time)::BIGINT, late_by_s > 120 FROM held_frames") == (T0 + 90, True)
    else:
        assert found[0, offset] == counted("newcomer")
        assert seen.one(row) == (61, 8, 1, 0, "final", "late", before[6] + 1)
        assert seen.ask("FROM held_frames") == []
    assert seen.ask(others) == untouched


def test_fault_46_an_idle_topic_partition_does_not_keep_minutes_from_being_final(make_settings):
    topic = RawTopic(logs={0: [], 1: [], 2: []})  # busy, silent since the first minute, never used
    for i in range(64):
        topic.put(b'{"ts":%d,"uid":"early"}' % (T0 + i // 2), T0 + i // 2, 1)
    for i in range(1200):
        topic.put(b'{"ts":%d,"uid":"u%d"}' % (T0 + i // 2, i % 5), T0 + i // 2, 0)
    seen = Seen(make_settings(), topic)
    seen.tick()
    seen.verdicts()
    statuses = seen.ask("SELECT (epoch(window_start)::BIGINT - 1767225600) // 60, status FROM minute_counts ORDER BY 1")
    # The watermark is 13 seconds behind the end (16 of 64 frames are 8 s, and 5 s of delay), then come two minutes.
    assert statuses == [
        (m, "final" if (m + 1) * 60 <= seen.watermark_s - 120 - T0 else "provisional") for m in range(10)
    ]
    assert seen.watermark_s >= T0 + 600 - 13 and statuses[6] == (6, "final")


def instant(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def read_calendar(settings: Settings, instants: Iterable[str], odd: Iterable[tuple[bytes, str]] = ()) -> Seen:
    """A topic where two users, one of them new, send at each of these instants (UTC), in order; all is closed."""
    topic = RawTopic(logs={0: []})
    for n, text in enumerate(instants):
        at_s = instant(text)
        for uid in ("regular", f"guest-{n}"):
            topic.put(b'{"ts":%d,"uid":"%s"}' % (at_s, uid.encode()), at_s)
    for payload, text in odd:
        topic.put(payload, instant(text))
    end_s = instant("2030-01-15T00:00:00")
    for _ in range(64):
        topic.put(b'{"ts":%d,"uid":"last"}' % end_s, end_s)
    seen = Seen(settings, topic)
    seen.tick(close_windows=True)
    seen.verdicts()
    return seen


def windows(seen: Seen, grain: str, from_text: str, to_text: str) -> list[tuple[str, str, int, int]]:
    """(start, end, frames, users) of the windows that start in [from, to), as UTC text."""
    bounds = "strftime(window_start, '%Y-%m-%dT%H:%M'), strftime(window_end, '%Y-%m-%dT%H:%M')"
    return seen.ask(f"""
        SELECT {bounds}, frames, unique_users FROM {grain}_counts
        WHERE epoch(window_start) >= {instant(from_text)} AND epoch(window_start) < {instant(to_text)}
        ORDER BY window_start
    """)


DST_INSTANTS = [
    "2026-03-28T22:59:59",  # the last second of a Saturday
    "2026-03-28T23:00:00",
    "2026-03-29T00:59:59",  # the clocks go forward
    "2026-03-29T01:00:00",
    "2026-03-29T21:59:59",
    "2026-03-29T22:00:00",  # midnight again, 23 hours later
    "2026-10-24T21:59:59",
    "2026-10-24T22:00:00",
    "2026-10-25T00:30:00",  # 02:30, twice
    "2026-10-25T01:30:00",
    "2026-10-25T22:59:59",
    "2026-10-25T23:00:00",  # midnight again, 25 hours later
]


@pytest.fixture(scope="module", params=["UTC", "Asia/Kolkata"])
def zurich(request, make_module_settings: Callable[..., Settings]) -> Iterator[Seen]:
    """Windows of Europe/Zurich, computed on a machine that is somewhere else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        seen = read_calendar(make_module_settings(timezone="Europe/Zurich"), DST_INSTANTS)
    time.tzset()
    yield seen


def test_fault_54_a_day_of_23_and_one_of_25_hours_have_the_right_bounds_and_counts(zurich):
    assert windows(zurich, "day", "2026-03-01T00:00", "2026-12-01T00:00") == [
        ("2026-03-27T23:00", "2026-03-28T23:00", 2, 2),
        ("2026-03-28T23:00", "2026-03-29T22:00", 8, 5),
        ("2026-03-29T22:00", "2026-03-30T22:00", 2, 2),
        ("2026-10-23T22:00", "2026-10-24T22:00", 2, 2),
        ("2026-10-24T22:00", "2026-10-25T23:00", 8, 5),
        ("2026-10-25T23:00", "2026-10-26T23:00", 2, 2),
    ]
    assert windows(zurich, "week", "2026-03-01T00:00", "2026-12-01T00:00") == [
        ("2026-03-22T23:00", "2026-03-29T22:00", 10, 6),
        ("2026-03-29T22:00", "2026-04-05T22:00", 2, 2),
        ("2026-10-18T22:00", "2026-10-25T23:00", 10, 6),
        ("2026-10-25T23:00", "2026-11-01T23:00", 2, 2),
    ]
    assert windows(zurich, "month", "2026-02-01T00:00", "2026-12-01T00:00") == [
        ("2026-02-28T23:00", "2026-03-31T22:00", 12, 7),
        ("2026-09-30T22:00", "2026-10-31T23:00", 12, 7),
    ]
    hours = windows(zurich, "hour", "2026-10-25T00:00", "2026-10-25T02:00")
    assert hours == [("2026-10-25T00:00", "2026-10-25T01:00", 2, 2), ("2026-10-25T01:00", "2026-10-25T02:00", 2, 2)]


def test_fault_54_a_session_in_another_time_zone_gets_the_same_answers(zurich):
    questions = [
        "SELECT epoch_us(window_start), epoch_us(window_end), frames, unique_users, estimate, hll, "
        f"epoch_us(computed_at) FROM {grain}_counts ORDER BY 1"
        for grain in ("minute", "hour", "day", "week", "month", "year")
    ]
    questions += [
        "SELECT frames, unique_users FROM day_counts WHERE window_start = TIMESTAMPTZ '2026-10-24 22:00:00+00'",
        "SELECT count(DISTINCT uid) FROM frames WHERE event_time >= TIMESTAMPTZ '2026-03-28 23:00:00+00' "
        "AND event_time < TIMESTAMPTZ '2026-03-29 22:00:00+00'",
        "SELECT kafka_offset, epoch_us(event_time), epoch_us(kafka_time), uid FROM frames ORDER BY 1",
        "SELECT epoch_us(committed_at), delivered FROM batches ORDER BY 1",
    ]
    with duckdb.connect(str(zurich.settings.catalog_path), read_only=True) as session:
        for zone in ("Asia/Kolkata", "America/St_Johns"):
            session.execute(f"SET TimeZone = '{zone}'")
            for question in questions:
                rows = session.execute(question).fetchall()
                assert rows and rows == zurich.ask(question), (zone, question)


@pytest.fixture(scope="module")
def calendar(make_module_settings: Callable[..., Settings]) -> Seen:
    instants = [
        "2016-12-31T23:59:59",
        "2017-01-01T00:00:00",
        "2024-02-29T12:00:00",
        "2024-03-01T00:00:00",
        "2026-12-27T23:59:59",  # the last second of week 52
        "2026-12-28T00:00:00",
        "2027-01-01T12:00:00",  # still week 53 of 2026
        "2027-01-03T23:59:59",
        "2027-01-04T00:00:00",
        "2028-02-28T23:59:59",
        "2028-02-29T00:00:00",
        "2028-02-29T23:59:59",
        "2028-03-01T00:00:00",
    ]
    odd = [
        (b'{"ts":"2016-12-31T23:59:60Z","uid":"leap"}', "2028-03-01T00:00:01"),
        (b'{"ts":"23:59:60","uid":"leap"}', "2028-03-01T00:00:02"),
    ]
    return read_calendar(make_module_settings(), instants, odd)


def test_fault_55_new_years_day_of_2027_is_in_the_week_that_starts_on_28_december(calendar):
    assert windows(calendar, "week", "2026-12-01T00:00", "2027-02-01T00:00") == [
        ("2026-12-21T00:00", "2026-12-28T00:00", 2, 2),
        ("2026-12-28T00:00", "2027-01-04T00:00", 6, 4),
        ("2027-01-04T00:00", "2027-01-11T00:00", 2, 2),
    ]
    assert windows(calendar, "year", "2026-01-01T00:00", "2028-01-01T00:00") == [
        ("2026-01-01T00:00", "2027-01-01T00:00", 4, 3),
        ("2027-01-01T00:00", "2028-01-01T00:00", 6, 4),
    ]


def test_fault_55_leap_days_are_days(calendar):
    assert windows(calendar, "day", "2028-02-01T00:00", "2028-04-01T00:00") == [
        ("2028-02-28T00:00", "2028-02-29T00:00", 2, 2),
        ("2028-02-29T00:00", "2028-03-01T00:00", 4, 3),
        ("2028-03-01T00:00", "2028-03-02T00:00", 2, 2),
    ]
    for year in (2024, 2028):
        (month,) = windows(calendar, "month", f"{year}-02-01T00:00", f"{year}-03-01T00:00")
        assert month[:2] == (f"{year}-02-01T00:00", f"{year}-03-01T00:00")
    days = calendar.ask("SELECT date_diff('day', window_start, window_end) FROM year_counts ORDER BY window_start")
    assert days == [(366,), (365,), (366,), (365,), (365,), (366,), (365,)]


def test_fault_55_a_leap_second_as_text_is_in_quarantine_and_its_neighbours_in_their_minutes(calendar):
    assert calendar.ask("SELECT reason, payload FROM quarantine ORDER BY kafka_offset") == [
        ("ts_invalid", b'{"ts":"2016-12-31T23:59:60Z","uid":"leap"}'),
        ("ts_invalid", b'{"ts":"23:59:60","uid":"leap"}'),
    ]
    assert windows(calendar, "minute", "2016-12-01T00:00", "2017-02-01T00:00") == [
        ("2016-12-31T23:59", "2017-01-01T00:00", 2, 2),
        ("2017-01-01T00:00", "2017-01-01T00:01", 2, 2),
    ]
