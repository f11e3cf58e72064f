"""Replacing what the lake has of a range by what its records come out as now, read from Kafka again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from uniq_pipeline.config import VeryLate
from uniq_pipeline.drain import Source
from uniq_pipeline.intake import count_minutes
from uniq_pipeline.lateness import EventClass
from uniq_pipeline.ledger.batches import Batch, Delivery, Kind
from uniq_pipeline.ledger.expiry import CLOSES, expired_spans
from uniq_pipeline.ledger.moves import MoveCommit, commit_move
from uniq_pipeline.ledger.places import admissions_over, files_over
from uniq_pipeline.loading import minutes_of, new_batch_id, write_aside, write_frames
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.rejudge import judge_again
from uniq_pipeline.restore import REASON, as_rows, offsets_of, split_readable
from uniq_pipeline.results import Workshop
from uniq_pipeline.rewrite import DATA_SCHEMAS, Take, late_frames, move_notes, rejected_minutes, write_rest
from uniq_pipeline.spans import Spans
from uniq_pipeline.windows import to_epoch

_COUNTED_AS = {"frames": "withdrawn", "held": "admitted", "quarantine": "replayed"}

Row = dict[str, Any]


@dataclass
class Renewed:
    """What was done to one stretch; `batch_id` is None where nothing came out differently."""

    read: int = 0
    files: int = 0
    replaced: int = 0
    kept: int = 0
    batch_id: str | None = None


@dataclass
class _Stretch:
    """What the lake has of a stretch, by offset: the file, its kind, and the row."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    rows: dict[int, tuple[str, str, Row]] = field(default_factory=dict)


def renew(shop: Workshop, source: Source, offsets: OffsetRange) -> Renewed:
    """Replaces the rows of a stretch that come out differently, in one transaction; those that do not are left alone.

    Raises LostRace when another run moved the same rows first.
    """
    started = time.monotonic()
    stored = _read_stored(shop, source.topic, offsets)
    parts = [as_rows(source.topic, records, range(len(records.offsets))) for records in source.read([offsets])]
    report = Renewed(read=sum(part.num_rows for part in parts))
    if not parts:
        return report
    now = _as_of_now(shop, pa.concat_tables(parts).unify_dictionaries(), stored)
    report.kept = len(stored.rows) - len(now)
    changed = {offset: new for offset, new in now.items() if _differs(stored.rows[offset], new)}
    if not changed:
        return report
    report.batch_id = _store(shop, source.topic, offsets, stored, changed, started)
    report.files = len({stored.rows[offset][0] for offset in changed})
    report.replaced = len(changed)
    return report


def _read_stored(shop: Workshop, topic: str, offsets: OffsetRange) -> _Stretch:
    """Without the rows in held/ of frames that their log proved: those have another row, which counts."""
    p, first, end = offsets.kafka_partition, offsets.start_offset, offsets.end_offset
    proved, _ = admissions_over(shop.ledger, topic, p, first, end)
    in_both = np.array(sorted(offset for _, _, offset in proved), np.int64)
    bounds = {"kafka_partition": (p, p), "kafka_offset": (first, end - 1)}
    stored = _Stretch()
    for file in files_over(shop.ledger, topic, p, first, end):
        if not file.rows or not shop.lake.may_overlap(file.path, bounds):
            continue
        table = shop.lake.read(file.path)
        found = _within(table, topic, offsets)
        if file.kind == "held":
            found &= ~np.isin(table["kafka_offset"].to_numpy(), in_both)
        if found.any():
            stored.tables[file.path] = table
            for row in table.filter(pa.array(found)).to_pylist():
                stored.rows[row["kafka_offset"]] = (file.path, file.kind, row)
    return stored


def _within(table: pa.Table, topic: str, offsets: OffsetRange) -> np.ndarray:
    found = np.isin(table["kafka_offset"].to_numpy(), offsets_of(table, topic, offsets.kafka_partition))
    found &= table["kafka_partition"].to_numpy() == offsets.kafka_partition
    at = table["kafka_offset"].to_numpy()
    return found & (at >= offsets.start_offset) & (at < offsets.end_offset)


def _as_of_now(shop: Workshop, records: pa.Table, stored: _Stretch) -> dict[int, tuple[str, Row]]:
    """(kind, row) of every stored record that Kafka still has and that may be replaced, by offset."""
    readable, rejected = split_readable(shop, records)
    closed = expired_spans(shop.ledger, CLOSES)
    now: dict[int, tuple[str, Row]] = {}
    for row in rejected.to_pylist():
        known = stored.rows.get(row["kafka_offset"])
        if known is not None and known[1] == "quarantine":  # else it could be read once, and stays what it was
            now[row["kafka_offset"]] = ("quarantine", row)
    for frames, held in judge_again(shop, readable) if readable.num_rows else ():
        for kind, table in (("frames", frames), ("held", held)):
            for row in table.to_pylist():
                known = stored.rows.get(row["kafka_offset"])
                if known is not None:
                    now[row["kafka_offset"]] = _settled(shop, known, kind, row, closed)
    return now


def _settled(shop: Workshop, known: tuple[str, str, Row], kind: str, row: Row, closed: Spans) -> tuple[str, Row]:
    """Where a record goes that was somewhere before, and as what: (kind, row)."""
    _, before, old = known
    event_s = to_epoch(row["event_time"])
    if before == "held" and closed.overlap(event_s, event_s + 1):
        return before, old
    if before == "quarantine":
        return kind, row
    if row["event_time"] != old["event_time"]:
        # Another instant than before: judged anew, but what counted goes on counting.
        return ("frames" if before == "frames" else kind), row
    row = {**row, "event_class": old["event_class"], "late_by_s": old["late_by_s"]}
    if before == "held" and old["event_class"] == EventClass.VERY_LATE.label:
        is_late_only = old["late_by_s"] <= shop.settings.allowed_lateness_s
        if is_late_only:
            row["event_class"] = EventClass.LATE.label
        if is_late_only or shop.settings.very_late is VeryLate.CORRECT:
            return "frames", row
    return before, row


def _differs(known: tuple[str, str, Row], new: tuple[str, Row]) -> bool:
    return (known[1], known[2]) != new


def _store(
    shop: Workshop,
    topic: str,
    offsets: OffsetRange,
    stored: _Stretch,
    changed: dict[int, tuple[str, Row]],
    started: float,
) -> str:
    takes = []
    for path, table in stored.tables.items():
        mine = np.array([offset for offset in changed if stored.rows[offset][0] == path], np.int64)
        moved = _within(table, topic, offsets) & np.isin(table["kafka_offset"].to_numpy(), mine)
        if moved.any():
            takes.append(Take(path, table, moved))
    old = {
        kind: _table(kind, (stored.rows[o][2] for o in changed if stored.rows[o][1] == kind)) for kind in DATA_SCHEMAS
    }
    new = {kind: _table(kind, (row for where, row in changed.values() if where == kind)) for kind in DATA_SCHEMAS}
    delivery = Delivery(
        frames=new["frames"].num_rows,
        held=new["held"].num_rows,
        quarantined=new["quarantine"].num_rows,
        late=late_frames(new["frames"]) - late_frames(old["frames"]),
        **{_COUNTED_AS[kind]: table.num_rows for kind, table in old.items()},
    )
    batch_id = new_batch_id(shop.ledger.now())
    footer = move_notes(batch_id, Kind.REDRAIN, [topic], delivery, [take.path for take in takes])
    shop.failpoint("move.before_write")
    files = write_frames(shop.lake, new["frames"], batch_id, footer)
    for kind in ("held", "quarantine"):
        if new[kind].num_rows:
            files.append(write_aside(shop.lake, kind, new[kind], batch_id, footer))
    files += [write_rest(shop.lake, take, batch_id) for take in takes]
    shop.failpoint("move.before_commit")
    held_minutes = count_minutes(new["held"])
    held_minutes.subtract(count_minutes(old["held"]))
    rejected = rejected_minutes(new["quarantine"])
    rejected.subtract(rejected_minutes(old["quarantine"]))
    commit_move(
        shop.ledger,
        MoveCommit(
            batch=Batch(batch_id, Kind.REDRAIN, topic, delivery, files, time.monotonic() - started),
            taken=[take.path for take in takes],
            minutes_s=sorted({*minutes_of(old["frames"]), *minutes_of(new["frames"])}),
            reason=REASON,
            held_minutes=_nonzero(held_minutes),
            rejected_minutes=_nonzero(rejected),
            admitted={
                (topic, offsets.kafka_partition, offset)
                for offset, (kind, _) in changed.items()
                if kind == "frames" and stored.rows[offset][1] == "held"
            },
        ),
        refine=shop.settings.refined_topic is not None,
    )
    shop.failpoint("move.after_commit")
    return batch_id


def _table(kind: str, rows: Iterable[Row]) -> pa.Table:
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["kafka_offset"]), schema=DATA_SCHEMAS[kind])


def _nonzero(counts: Counter[tuple[int, str]]) -> dict[tuple[int, str], int]:
    return {key: records for key, records in counts.items() if records}
