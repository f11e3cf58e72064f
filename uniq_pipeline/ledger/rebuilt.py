"""Writing a ledger that was lost, all of it in one transaction: a kill leaves an empty one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, inspect

from uniq_pipeline.errors import LedgerError
from uniq_pipeline.lateness import EventClock
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.batches import Batch, insert_batch
from uniq_pipeline.ledger.dirty import Task, mark
from uniq_pipeline.ledger.expiry import Expired, insert_expired
from uniq_pipeline.ledger.files import DataFile, MergedFile, file_row, insert_merged
from uniq_pipeline.ledger.store import Ledger, count_rows, set_meta
from uniq_pipeline.ledger.tallies import Tally, add_tallies
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.windows import Grain, Window, bucket_of

REASON = "rebuilt"

ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class PartitionState:
    """Where a topic partition goes on."""

    topic: str
    topic_id: str
    kafka_partition: int
    next_offset: int
    clock: EventClock
    watermark_s: int | None
    updated_at: float


@dataclass(frozen=True)
class BatchState:
    """A batch with its files, when it was written, and what it read: with the event front before each range."""

    batch: Batch
    written_at: float
    topic_id: str
    reads: Sequence[ReadState]


@dataclass(frozen=True)
class ReadState:
    """One range of a batch; `front_s` is the event front before it, `bound_s` the future bound after it."""

    offsets: OffsetRange
    records: int
    front_s: int | None
    bound_s: int | None


@dataclass(frozen=True)
class BucketState:
    """A bucket with its result file. revisions: of each window in it, the one that is stored."""

    grain: Grain
    bucket: Window
    version: int
    file: DataFile
    provisional: int
    revisions: Sequence[tuple[Window, int]]


@dataclass(frozen=True)
class Admission:
    """A held frame that counts."""

    topic: str
    kafka_partition: int
    kafka_offset: int
    batch_id: str


@dataclass(frozen=True)
class Rebuilt:
    """Everything a rebuilt ledger holds. What may be long is an iterable, and is asked for once.

    retired    files that moves took rows out of, and that no longer count
    windows    to be computed again
    sets       windows whose uid sets are to be built
    merged     (compaction, what its file was merged of)
    expired    spans of files that are gone because they were kept long enough
    skipped    (topic, offsets) given up
    published  whether the results topic is sent everything that is stored
    """

    batches: Iterable[BatchState]
    retired: Iterable[DataFile]
    partitions: Sequence[PartitionState]
    admissions: Sequence[Admission]
    held: Tally
    rejected: Tally
    buckets: Iterable[BucketState]
    windows: Iterable[Window]
    sets: Iterable[Window]
    skipped: Sequence[tuple[str, OffsetRange]]
    merged: Iterable[tuple[str, Sequence[MergedFile]]]
    expired: Iterable[Expired]
    watermark_s: int | None
    published: bool


def refuse_unless_empty(ledger: Ledger) -> None:
    """Raises LedgerError when something was committed to this ledger; makes none where there is none."""
    if ledger.is_absent:
        return
    with ledger.reading() as connection:
        known = set(inspect(connection).get_table_names())
        if {schema.batches.name, schema.topic_partitions.name} <= known:
            _refuse_unless_empty(ledger, connection)


def is_lost(ledger: Ledger) -> bool:
    """Whether nothing was ever committed to this ledger, as far as it knows."""
    try:
        refuse_unless_empty(ledger)
    except LedgerError:
        return False
    return True


def _refuse_unless_empty(ledger: Ledger, connection: Connection) -> None:
    batches, parts = count_rows(connection, schema.batches), count_rows(connection, schema.topic_partitions)
    if batches or parts:
        raise LedgerError(
            f"ledger {ledger.shown_url} is not lost: it has {batches:,} batches and the offsets of {parts:,} topic "
            f"partitions. Nothing was changed. If it is to be made anew from the lake, stop what uses it and move "
            f"it away first."
        )


def write_rebuilt(ledger: Ledger, rebuilt: Rebuilt, zone: ZoneInfo, facts: Mapping[str, str]) -> None:
    """Makes the ledger. Raises LedgerError when it is not empty, and SettingError when it has other facts."""
    ledger.prepare(**facts)
    with ledger.writing() as connection:
        _refuse_unless_empty(ledger, connection)
        now = ledger.now()
        for state in rebuilt.batches:
            _write_batch(connection, state)
        for files in _chunks(rebuilt.retired):
            rows = [{**file_row(file, None, now), "retired_at": now} for file in files]
            connection.execute(schema.files.insert(), rows)
        ledger.failpoint("rebuild.in_commit")
        _insert(connection, schema.topic_partitions, (_partition_row(state) for state in rebuilt.partitions))
        _insert(connection, schema.admissions, (vars(admission) for admission in rebuilt.admissions))
        _insert(connection, schema.skipped, (_skipped_row(topic, gap, now) for topic, gap in rebuilt.skipped))
        for compaction_id, files in rebuilt.merged:
            insert_merged(connection, compaction_id, files)
        for span in rebuilt.expired:
            insert_expired(connection, span)
        add_tallies(connection, rebuilt.held, rebuilt.rejected)
        for bucket in rebuilt.buckets:
            _write_bucket(connection, bucket, zone, now, rebuilt.published)
        for task, windows in ((Task.COUNT, rebuilt.windows), (Task.SET, rebuilt.sets)):
            for some in _chunks(windows):
                mark(connection, task, set(some), REASON, zone, now)
        if rebuilt.watermark_s is not None:
            set_meta(connection, "watermark_s", str(rebuilt.watermark_s))


def _write_batch(connection: Connection, state: BatchState) -> None:
    batch = state.batch
    insert_batch(connection, batch, state.written_at)
    _insert(
        connection,
        schema.batch_ranges,
        (
            {
                "topic": batch.topic,
                "topic_id": state.topic_id,
                "kafka_partition": read.offsets.kafka_partition,
                "start_offset": read.offsets.start_offset,
                "end_offset": read.offsets.end_offset,
                "records": read.records,
                "batch_id": batch.batch_id,
                "front_s": read.front_s,
                "bound_s": read.bound_s,
            }
            for read in state.reads
        ),
    )


def _write_bucket(connection: Connection, state: BucketState, zone: ZoneInfo, now: float, published: bool) -> None:
    connection.execute(schema.files.insert(), file_row(state.file, None, now))
    connection.execute(
        schema.buckets.insert().values(
            grain=state.grain,
            bucket_start_s=state.bucket.start_s,
            bucket_end_s=state.bucket.end_s,
            version=state.version,
            path=state.file.file.path,
            windows=len(state.revisions),
            provisional=state.provisional,
        )
    )
    if published:
        _insert(
            connection,
            schema.outbox,
            (
                {
                    "grain": state.grain,
                    "window_start_s": window.start_s,
                    "bucket_start_s": bucket_of(window, zone).start_s,
                    "revision": revision,
                    "since": now,
                }
                for window, revision in state.revisions
            ),
        )


def _partition_row(state: PartitionState) -> dict[str, Any]:
    return {
        "topic": state.topic,
        "kafka_partition": state.kafka_partition,
        "topic_id": state.topic_id,
        "next_offset": state.next_offset,
        "stable_offset": state.next_offset,
        "high_watermark": state.next_offset,
        "clock": json.dumps(state.clock.as_dict()),
        "watermark_s": state.watermark_s,
        "updated_at": state.updated_at,
    }


def _skipped_row(topic: str, gap: OffsetRange, now: float) -> dict[str, Any]:
    return {
        "topic": topic,
        "kafka_partition": gap.kafka_partition,
        "start_offset": gap.start_offset,
        "end_offset": gap.end_offset,
        "skipped_at": now,
    }


T = TypeVar("T")


def _chunks(things: Iterable[T]) -> Iterator[list[T]]:
    left = iter(things)
    while some := list(islice(left, ROWS_AT_ONCE)):
        yield some


def _insert(connection: Connection, table: Any, rows: Iterable[dict[str, Any]]) -> None:
    for some in _chunks(rows):
        connection.execute(table.insert(), some)
