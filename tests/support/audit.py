"""The audit: everything the pipeline stored, held against what was delivered.

Plain Python over the ledger's tables and the Parquet files; none of the product's SQL and none of its window
arithmetic. It returns what is wrong as sentences, so that a test can also ask that something *is* found.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import mmh3
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, TopicPartition

from support.frames import Delivered
from support.tables import all_tables
from uniq_pipeline.config import Settings
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.intake import Intake
from uniq_pipeline.lateness import LatenessPolicy
from uniq_pipeline.records import Records

GRAINS = ("minute", "hour", "day", "week", "month", "year")

Place = tuple[int, int]  # topic partition, offset


@dataclass(frozen=True)
class Frame:
    event_s: int
    uid: str
    is_late: bool


@dataclass
class Stored:
    """What the ledger names, read back."""

    tables: dict[str, list[dict[str, Any]]]
    files: dict[str, list[dict[str, Any]]]  # kind -> rows of all live files of that kind
    results: dict[str, dict[int, dict[str, Any]]]  # grain -> window start -> row
    sets: dict[tuple[str, int], list[str]]


def audit(
    settings: Settings,
    delivered: Delivered,
    *,
    closed: bool = True,
    grains: Sequence[str] = GRAINS,
    moved: Mapping[Place, str] | None = None,
) -> list[str]:
    """All that is wrong after everything was drained, counted and published; empty when nothing is.

    closed  windows that are over have been closed, too
    grains  those that were computed
    moved   where the records are that a person moved: frames, held or quarantine. The others are where the log
            alone puts them.
    """
    problems: list[str] = []
    stored = read_back(settings, problems)
    if problems:
        return problems  # a file is missing or damaged: the rest would only repeat it
    frames = _places(settings, stored, delivered, moved or {}, problems)
    _offsets(settings, stored, delivered, problems)
    _batches(stored, delivered, problems)
    _windows(settings, stored, frames, grains, problems)
    _sets(settings, stored, frames, closed, grains, problems)
    _revisions(stored, problems)
    _nothing_left(settings, stored, closed, grains, problems)
    if settings.results_topic is not None:
        _published(settings, stored, problems)
    return problems


def read_back(settings: Settings, problems: list[str]) -> Stored:
    """Reads the ledger and every file that counts; checks that each is there, whole and as long as it says."""
    lake = settings.data_dir / "lake"
    tables = all_tables(settings)
    contents: dict[str, list[dict[str, Any]]] = {}
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for file in tables["files"]:
        if file["retired_at"] is not None:
            continue
        rows = _read(lake / file["path"], file, problems)
        contents[file["path"]] = rows
        files[file["kind"]] += rows
        if file["kind"] == "frames" and rows:
            seconds = [_epoch(row["event_time"]) for row in rows]
            said = (file["hour_s"], file["hour_s"], file["min_event_s"], file["max_event_s"])
            found = (_floor(min(seconds), 3600), _floor(max(seconds), 3600), min(seconds), max(seconds))
            if said != found:
                problems.append(f"{file['path']}: the ledger says hour and bounds {said}, the file {found}")
    results: dict[str, dict[int, dict[str, Any]]] = {grain: {} for grain in GRAINS}
    for bucket in tables["buckets"]:
        for row in contents.get(bucket["path"], []):
            results[bucket["grain"]][_epoch(row["window_start"])] = row
        if bucket["path"] not in contents:
            problems.append(f"bucket {bucket['grain']} {bucket['bucket_start_s']}: {bucket['path']} does not count")
    sets = {}
    for one in tables["uid_sets"]:
        if one["path"] is None:
            continue  # expired
        if one["path"] not in contents:
            problems.append(f"uid set {one['grain']} {one['window_start_s']}: {one['path']} does not count")
        rows = contents.get(one["path"], [])
        sets[one["grain"], one["window_start_s"]] = [row["uid"] for row in rows]
        in_order = sorted({(row["uid"], tuple(row["dimensions"] or ())) for row in rows})
        if [(row["uid"], tuple(row["dimensions"] or ())) for row in rows] != in_order:
            problems.append(f"uid set {one['grain']} {one['window_start_s']}: a row twice, or out of order")
    named = Counter([row["path"] for row in tables["buckets"] + tables["uid_sets"]])
    for file in tables["files"]:
        kept = file["retired_at"] is None and file["kind"] in ("result", "uid_set")
        if named[file["path"]] != kept:
            problems.append(f"{file['path']}: {file['kind']} file named {named[file['path']]} times")
    return Stored(tables, dict(files), results, sets)


def _read(path: Path, file: dict[str, Any], problems: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        problems.append(f"{file['path']} is named by the ledger but is not there")
        return []
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != file["sha256"] or len(data) != file["size_bytes"]:
        problems.append(f"{file['path']} is not what was written")
        return []
    rows = [dict(row) for row in _rows_of(data)]
    if len(rows) != file["rows"]:
        problems.append(f"{file['path']} holds {len(rows)} rows, the ledger says {file['rows']}")
    return rows


@lru_cache(maxsize=2000)
def _rows_of(data: bytes) -> list[dict[str, Any]]:
    """Most files of one look are still there at the next, byte for byte."""
    return pq.ParquetFile(pa.BufferReader(data)).read().to_pylist()


def _places(
    settings: Settings, stored: Stored, delivered: Delivered, moved: Mapping[Place, str], problems: list[str]
) -> dict[Place, Frame]:
    """Every record ends in one place, as itself, and in the same place as when all is judged in one go."""
    frames = {}
    found: Counter[Place] = Counter()
    for row in stored.files.get("frames", []):
        place = row["kafka_partition"], row["kafka_offset"]
        found[place] += 1
        frames[place] = Frame(_epoch(row["event_time"]), row["uid"], row["late_by_s"] > 0)
    admitted = {(row["kafka_partition"], row["kafka_offset"]) for row in stored.tables["admissions"]}
    # The row of a frame that a person admitted has left held/; that of one which the log proved stays there.
    persons = {batch["batch_id"] for batch in stored.tables["batches"] if batch["kind"] == "admit"}
    by_person = {
        (row["kafka_partition"], row["kafka_offset"])
        for row in stored.tables["admissions"]
        if row["batch_id"] in persons
    }
    held = {(row["kafka_partition"], row["kafka_offset"]) for row in stored.files.get("held", [])}
    for row in stored.files.get("held", []):
        place = row["kafka_partition"], row["kafka_offset"]
        found[place] += place not in admitted
    _list(problems, "admitted, but never held or not in frames", admitted - by_person - (held & set(frames)))
    _list(problems, "admitted by a person, but held or not in frames", by_person - (set(frames) - held))
    quarantined = set()
    for row in stored.files.get("quarantine", []):
        place = row["kafka_partition"], row["kafka_offset"]
        found[place] += 1
        quarantined.add(place)
        if place in delivered and row["payload"] != delivered[place].payload:
            problems.append(f"quarantined payload of {place} is another")
    _list(problems, "delivered but nowhere", set(delivered) - set(found))
    _list(problems, "stored but never delivered", set(found) - set(delivered))
    _list(problems, "stored more than once", {place for place, times in found.items() if times > 1})

    for place, frame in frames.items():
        truth = delivered[place].truth if place in delivered else None
        if truth and (frame.event_s, frame.uid) != (truth.written_ts, truth.uid):
            problems.append(f"frame {place} is {frame}, was {truth}")
    now = {"frames": set(frames), "held": held - admitted, "quarantine": quarantined}
    strays = {place for place, kind in moved.items() if place not in now[kind]}
    _list(problems, "moved by a person, but not there", strays)
    bad = {place for place, sent in delivered.items() if sent.truth.kind is Kind.BAD}
    _list(problems, "quarantined though good, or not though bad", (quarantined ^ bad) - set(moved))
    ordinary = {place for place, sent in delivered.items() if sent.truth.kind is Kind.ORDINARY}
    _list(problems, "ordinary but not counted", ordinary - set(frames) - set(moved))

    expected = _judged_in_one_go(settings, delivered)
    _list(problems, "classed by batch boundaries, not by the log", (expected ^ set(frames)) - set(moved))
    return frames


def _judged_in_one_go(settings: Settings, delivered: Delivered) -> set[Place]:
    """The frames when the whole log is one batch: where batches ended must not matter."""
    policy = LatenessPolicy(settings.expected_delay_s, settings.allowed_lateness_s, settings.max_future_skew_s)
    intake = Intake(settings.topic, policy, very_late_counts=settings.very_late == "correct")
    for kafka_partition in sorted({place[0] for place in delivered}):
        log = sorted((offset, sent) for (p, offset), sent in delivered.items() if p == kafka_partition)
        intake.add(
            Records(
                kafka_partition,
                [offset for offset, _ in log],
                [sent.kafka_time_ms for _, sent in log],
                [sent.payload for _, sent in log],
                log[-1][0] + 1,
            )
        )
    frames = intake.finish({}).frames
    return set(zip(frames["kafka_partition"].to_pylist(), frames["kafka_offset"].to_pylist(), strict=True))


def _offsets(settings: Settings, stored: Stored, delivered: Delivered, problems: list[str]) -> None:
    """Ranges of batches follow each other without gap or overlap, from 0 to where the ledger stands."""
    ends = {p: 1 + max(offset for q, offset in delivered if q == p) for p in {place[0] for place in delivered}}
    known = {row["kafka_partition"]: row["next_offset"] for row in stored.tables["topic_partitions"]}
    if known != ends:
        problems.append(f"the ledger stands at {known}, the log ends at {ends}")
    by_partition = defaultdict(list)
    for row in stored.tables["batch_ranges"]:
        by_partition[row["kafka_partition"]].append((row["start_offset"], row["end_offset"], row["records"]))
        if row["records"] != row["end_offset"] - row["start_offset"]:
            problems.append(f"range {row}: records do not fill it, and this log has no gaps")
    for kafka_partition, ranges in by_partition.items():
        at = 0
        for start, end, _ in sorted(ranges):
            if start != at or end <= start:
                problems.append(f"topic partition {kafka_partition}: [{start}, {end}) follows {at}")
            at = end
        if at != known.get(kafka_partition):
            problems.append(f"topic partition {kafka_partition}: ranges end at {at}, the ledger stands elsewhere")
    _footers(settings, stored, problems)


def _footers(settings: Settings, stored: Stored, problems: list[str]) -> None:
    """What a lost ledger would be rebuilt from says the same as the ledger."""
    ranges = defaultdict(list)
    for row in stored.tables["batch_ranges"]:
        ranges[row["batch_id"]].append([row["kafka_partition"], row["start_offset"], row["end_offset"], row["records"]])
    for file in stored.tables["files"]:
        if file["batch_id"] and file["retired_at"] is None:
            footer = pq.read_metadata(settings.data_dir / "lake" / file["path"]).metadata
            said = [r for r in json.loads(footer[b"uniq.ranges"]) if r[1] < r[2]]
            if sorted(said) != sorted(ranges[file["batch_id"]]):
                problems.append(f"{file['path']}: its footer names other ranges than the ledger")


def _batches(stored: Stored, delivered: Delivered, problems: list[str]) -> None:
    """What came is what was kept, in every batch, and the files say so too."""
    rows = defaultdict(Counter)
    for file in stored.tables["files"]:
        if file["batch_id"] and file["rest_of"] is None:
            rows[file["batch_id"]][file["kind"]] += file["rows"]
    for batch in stored.tables["batches"]:
        if batch["kind"] == "compact":
            rows.pop(batch["batch_id"], None)  # what others brought
            continue
        in_files = rows.pop(batch["batch_id"], Counter())
        said = {"frames": batch["frames"], "held": batch["held"], "quarantine": batch["quarantined"]}
        if {kind: in_files[kind] for kind in said} != said:
            problems.append(f"batch {batch['batch_id']}: files hold {dict(in_files)}, the ledger says {said}")
        came = sum(batch[name] for name in ("delivered", "admitted", "withdrawn", "replayed"))
        if came != sum(said.values()):
            problems.append(f"batch {batch['batch_id']} is not conserved: {batch}")
    _list(problems, "files of batches nobody knows", set(rows))
    total = sum(batch["delivered"] for batch in stored.tables["batches"])
    if total != len(delivered):
        problems.append(f"{len(delivered)} records were delivered, batches say {total}")


def _windows(
    settings: Settings,
    stored: Stored,
    frames: Mapping[Place, Frame],
    grains: Sequence[str],
    problems: list[str],
) -> None:
    """Every window of every grain, counted again from the frames."""
    final_before_s = _final_before_s(settings, stored)
    held, rejected = _tallies(stored)
    minutes = {_floor(frame.event_s, 60) for frame in frames.values()} | _emptied(stored, "minute")
    for grain in grains:
        by_window: dict[tuple[int, int], list[Frame]] = defaultdict(list)
        for frame in frames.values():
            by_window[bounds_of(grain, frame.event_s, settings.timezone)].append(frame)
        rows = stored.results[grain]
        for start_s in _emptied(stored, grain):
            by_window.setdefault(bounds_of(grain, start_s, settings.timezone), [])
        starts = {start_s for start_s, _ in by_window}
        _list(problems, f"{grain} windows with frames and no row, or the other way round", starts ^ set(rows))
        for (start_s, end_s), inside in sorted(by_window.items()):
            row = rows.get(start_s)
            if row is None:
                continue
            shown = [minute for minute in minutes if start_s <= minute < end_s]
            users = {frame.uid for frame in inside}
            registers = _registers(users, settings.lg_k)
            exact = len(users)
            is_exact = grain == "minute" or (grain, start_s) in stored.sets
            expected = {
                "window_end": end_s,
                "frames": len(inside),
                "unique_users": exact if is_exact else None,
                "late_frames": sum(frame.is_late for frame in inside),
                "held_frames": sum(held[minute] for minute in shown),
                "rejected_frames": sum(rejected[minute] for minute in shown),
                "status": "final" if final_before_s is not None and end_s <= final_before_s else "provisional",
                "registers": registers,
                "lg_k": settings.lg_k,
            }
            found = {
                **{name: row[name] for name in expected if name in row},
                "window_end": _epoch(row["window_end"]),
                "registers": row["hll"][40:],
                "lg_k": row["hll"][3],
            }
            for name, value in expected.items():
                if found[name] != value:
                    shown_values = ("other registers",) if name == "registers" else (found[name], value)
                    problems.append(f"{grain} {_iso(start_s)}: {name} is, should be: {shown_values}")
            error = 1.04 / 2 ** (settings.lg_k / 2)
            if not row["estimate_lower"] <= row["estimate"] <= row["estimate_upper"]:
                problems.append(f"{grain} {_iso(start_s)}: the estimate is outside its bounds")
            if abs(row["estimate"] - exact) > 6 * error * exact + 1:
                problems.append(f"{grain} {_iso(start_s)}: estimate {row['estimate']} of {exact}")


def _emptied(stored: Stored, grain: str) -> set[int]:
    """Windows that stay though their last frame was withdrawn: a window is made by its first frame."""
    if all(batch["kind"] != "withdraw" for batch in stored.tables["batches"]):
        return set()
    return {start_s for start_s, row in stored.results[grain].items() if row["frames"] == 0 and row["revision"] > 1}


def _tallies(stored: Stored) -> tuple[Counter[int], Counter[int]]:
    """Held frames by event minute, rejected records by Kafka minute."""
    admitted = {(row["kafka_partition"], row["kafka_offset"]) for row in stored.tables["admissions"]}
    held = Counter(
        _floor(_epoch(row["event_time"]), 60)
        for row in stored.files.get("held", [])
        if (row["kafka_partition"], row["kafka_offset"]) not in admitted
    )
    return held, Counter(_floor(_epoch(row["kafka_time"]), 60) for row in stored.files.get("quarantine", []))


def _sets(
    settings: Settings,
    stored: Stored,
    frames: Mapping[Place, Frame],
    closed: bool,
    grains: Sequence[str],
    problems: list[str],
) -> None:
    """Every window that is over has its exact set of uids."""
    final_before_s = _final_before_s(settings, stored) if closed else None
    for grain in grains[1:]:
        users: dict[tuple[int, int], set[str]] = defaultdict(set)
        for frame in frames.values():
            users[bounds_of(grain, frame.event_s, settings.timezone)].add(frame.uid)
        for (start_s, end_s), uids in users.items():
            found = stored.sets.get((grain, start_s))
            if final_before_s is not None and end_s <= final_before_s and found is None:
                problems.append(f"{grain} {_iso(start_s)} is over and has no uid set")
            if found is not None and sorted(set(found)) != sorted(uids):
                problems.append(f"{grain} {_iso(start_s)}: its uid set is of {len(found)}, not {len(uids)} users")
        starts = {start_s for start_s, _ in users}
        for (set_grain, start_s), found in stored.sets.items():
            if set_grain == grain and start_s not in starts and found:
                problems.append(f"{grain} {_iso(start_s)} has no frames, and a uid set of {len(found)} users")
    for one in stored.tables["uid_sets"]:
        if len(set(stored.sets[one["grain"], one["window_start_s"]])) != one["users"]:
            problems.append(f"uid set {one} says another number of users than its file")


def _revisions(stored: Stored, problems: list[str]) -> None:
    """A row remembers older revisions than its own, in order; none that was provisional and only growing."""
    for grain in GRAINS:
        for start_s, row in stored.results[grain].items():
            numbers = [*(old["revision"] for old in row["history"]), row["revision"]]
            if numbers != sorted(set(numbers)):
                problems.append(f"{grain} {_iso(start_s)}: revisions are remembered as {numbers}")
            if any(old["status"] == "provisional" and old["reason"] == "live" for old in row["history"]):
                problems.append(f"{grain} {_iso(start_s)}: remembers that it was growing")
            if row["history"] and row["previous_unique_users"] is None and row["history"][-1]["unique_users"]:
                problems.append(f"{grain} {_iso(start_s)}: does not say what it was before")


def _nothing_left(settings: Settings, stored: Stored, closed: bool, grains: Sequence[str], problems: list[str]) -> None:
    final_before_s = (_final_before_s(settings, stored) or 0) if closed else 0
    for mark in stored.tables["dirty"]:
        _, end_s = bounds_of(mark["grain"], mark["window_start_s"], settings.timezone)
        if mark["grain"] in grains and (mark["task"] == "count" or end_s <= final_before_s):
            problems.append(f"still dirty: {mark}")
    if stored.tables["outbox"]:
        problems.append(f"{len(stored.tables['outbox'])} windows were not published")


def _published(settings: Settings, stored: Stored, problems: list[str]) -> None:
    """A reader that keeps the highest revision of each key has exactly the stored rows."""
    newest: dict[str, dict[str, Any]] = {}
    for key, value in read_topic(settings.kafka_bootstrap_servers, settings.results_topic):
        message = json.loads(value)
        known = newest.get(key)
        if known and known["revision"] == message["revision"] and known != message:
            problems.append(f"{key}: two different messages of revision {message['revision']}")
        if known is None or known["revision"] <= message["revision"]:
            newest[key] = message
    rows = {f"{grain}/{_iso(s)}": row for grain in GRAINS for s, row in stored.results[grain].items()}
    _list(problems, "published but not stored, or the other way round", set(newest) ^ set(rows))
    for key in set(newest) & set(rows):
        for name, value in rows[key].items():
            if name == "history":
                continue  # a message has its predecessor only
            if name == "by_dimension":  # without their states
                value = [{k: v for k, v in entry.items() if k != "hll"} for entry in value or ()]
            if isinstance(value, datetime):
                value = _iso(_epoch(value))
            elif isinstance(value, bytes):
                value = base64.b64encode(value).decode()
            if newest[key][name] != value:
                problems.append(f"{key}: published {name} is not what is stored")


def read_topic(bootstrap_servers: str, topic: str) -> Iterable[tuple[str, bytes]]:
    """(key, value) of everything a topic holds, in order within each topic partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "audit", "log_level": 2})
    try:
        parts = consumer.list_topics(timeout=10).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in parts}
        left = {p for p, end in ends.items() if end}
        consumer.assign([TopicPartition(topic, p, 0) for p in left])
        while left:
            message = consumer.poll(10)
            assert message is not None and not message.error(), f"topic {topic} cannot be read back"
            yield message.key().decode(), message.value()
            if message.offset() + 1 >= ends[message.partition()]:
                left.discard(message.partition())
    finally:
        consumer.close()


def _final_before_s(settings: Settings, stored: Stored) -> int | None:
    known = {row["key"]: row["value"] for row in stored.tables["meta"]}
    return int(known["watermark_s"]) - settings.allowed_lateness_s if "watermark_s" in known else None


@cache
def _slot_and_value(uid: str, lg_k: int) -> tuple[int, int]:
    """DataSketches' coupon: MurmurHash3 x64 128 with its seed; leading zeros of one half, slot from the other."""
    low, high = mmh3.mmh3_x64_128_utupledigest(uid.encode(), 9001)
    return low & ((1 << lg_k) - 1), min(64 - high.bit_length(), 62) + 1


def _registers(uids: Iterable[str], lg_k: int) -> bytes:
    registers = bytearray(1 << lg_k)
    for uid in uids:
        slot, value = _slot_and_value(uid, lg_k)
        registers[slot] = max(registers[slot], value)
    return bytes(registers)


@cache
def bounds_of(grain: str, instant_s: int, timezone: str) -> tuple[int, int]:
    """`[start, end)` of the window of a grain that holds the instant."""
    if grain in ("minute", "hour"):
        size = 60 if grain == "minute" else 3600
        return _floor(instant_s, size), _floor(instant_s, size) + size
    zone = ZoneInfo(timezone)
    day = datetime.fromtimestamp(instant_s, zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if grain == "day":
        first, after = day, day + timedelta(days=1)
    elif grain == "week":
        first = day - timedelta(days=day.isoweekday() - 1)
        after = first + timedelta(days=7)
    elif grain == "month":
        first = day.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    else:
        first = day.replace(month=1, day=1)
        after = first.replace(year=first.year + 1)
    return int(first.replace(tzinfo=zone).timestamp()), int(after.replace(tzinfo=zone).timestamp())


def _list(problems: list[str], what: str, things: set[Any]) -> None:
    if things:
        problems.append(f"{len(things)} {what}: {sorted(things)[:5]}")


def _floor(value: int, size: int) -> int:
    return value - value % size


def _epoch(instant: datetime) -> int:
    return int(instant.timestamp())


def _iso(instant_s: int) -> str:
    return datetime.fromtimestamp(instant_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
