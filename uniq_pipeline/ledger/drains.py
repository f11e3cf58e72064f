"""Committing a drained batch: offsets, files and dirty minutes in one transaction, or nothing at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from uniq_pipeline.errors import LostRace
from uniq_pipeline.lateness import EventClock
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import Task, mark
from uniq_pipeline.ledger.files import DataFile, file_row
from uniq_pipeline.ledger.store import Ledger, add_missing, get_meta, set_meta
from uniq_pipeline.ledger.tallies import Tally, add_tallies
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.windows import MINUTE_S, Grain, Window

UTC_ZONE = ZoneInfo("UTC")  # minutes and their buckets, the hours, are cut in UTC whatever the setting


@dataclass(frozen=True)
class Position:
    """Where a topic partition's log goes on, and the event clock of what came before."""

    next_offset: int
    clock: EventClock


@dataclass(frozen=True)
class Positions:
    """All positions of a topic. `topic_id` is None while the ledger does not know the topic."""

    topic_id: str | None
    by_partition: dict[int, Position]


@dataclass(frozen=True)
class Delivery:
    """The records of one batch, by where they ended.

    delivered + admitted == frames + held + quarantined, where `admitted` were held by earlier batches and are
    in frames now. `reasons` counts records by event class and by reject reason.
    """

    delivered: int
    frames: int
    late: int
    held: int
    quarantined: int
    admitted: int
    reasons: Mapping[str, int]

    @property
    def is_conserved(self) -> bool:
        return self.delivered + self.admitted == self.frames + self.held + self.quarantined


@dataclass(frozen=True)
class BatchCommit:
    """Everything one batch changes."""

    batch_id: str
    topic: str
    topic_id: str
    ranges: Sequence[OffsetRange]
    records: Mapping[int, int]  # by topic partition
    clocks: Mapping[int, EventClock]
    watermarks_s: Mapping[int, int | None]
    stable_offsets: Mapping[int, int]
    files: Sequence[DataFile]
    minutes_s: Sequence[int]  # event minutes that gained frames
    held_minutes: Tally  # (event minute, event class) -> records, may be negative
    rejected_minutes: Tally  # (Kafka minute, reason) -> records
    admitted: Sequence[tuple[int, int]]  # (topic partition, offset)
    delivery: Delivery
    seconds: float


def read_positions(ledger: Ledger, topic: str) -> Positions:
    table = schema.topic_partitions
    with ledger.reading() as connection:
        rows = connection.execute(select(table).where(table.c.topic == topic)).all()
    return Positions(
        topic_id=rows[0].topic_id if rows else None,
        by_partition={
            row.kafka_partition: Position(row.next_offset, EventClock.from_dict(json.loads(row.clock))) for row in rows
        },
    )


def commit_batch(ledger: Ledger, batch: BatchCommit) -> None:
    """Moves the offsets and names the files, if nobody moved the offsets since they were read.

    Raises LostRace when somebody did: the transaction is rolled back, and the files stay unreferenced.
    """
    assert batch.delivery.is_conserved, f"batch {batch.batch_id}: records went missing: {batch.delivery}"
    now = ledger.now()
    with ledger.writing() as connection:
        for offsets in batch.ranges:
            _move_offset(connection, batch, offsets, now)
        ledger.failpoint("drain.in_commit")
        connection.execute(
            schema.batches.insert(),
            {
                "batch_id": batch.batch_id,
                "topic": batch.topic,
                "committed_at": now,
                "seconds": batch.seconds,
                "delivered": batch.delivery.delivered,
                "frames": batch.delivery.frames,
                "late": batch.delivery.late,
                "held": batch.delivery.held,
                "quarantined": batch.delivery.quarantined,
                "admitted": batch.delivery.admitted,
                "reasons": json.dumps(dict(batch.delivery.reasons)),
            },
        )
        if batch.files:
            connection.execute(schema.files.insert(), [file_row(data, batch.batch_id, now) for data in batch.files])
        if batch.admitted:
            connection.execute(
                schema.admissions.insert(),
                [
                    {
                        "topic": batch.topic,
                        "kafka_partition": kafka_partition,
                        "kafka_offset": kafka_offset,
                        "batch_id": batch.batch_id,
                    }
                    for kafka_partition, kafka_offset in batch.admitted
                ],
            )
        tallied = add_tallies(connection, batch.held_minutes, batch.rejected_minutes)
        minutes = [Window(Grain.MINUTE, start_s, start_s + MINUTE_S) for start_s in {*batch.minutes_s, *tallied}]
        mark(connection, Task.COUNT, minutes, "live", UTC_ZONE, now)


def _move_offset(connection: Connection, batch: BatchCommit, offsets: OffsetRange, now: float) -> None:
    table = schema.topic_partitions
    kafka_partition = offsets.kafka_partition
    changed = {
        "next_offset": offsets.end_offset,
        "stable_offset": batch.stable_offsets[kafka_partition],
        "clock": json.dumps(batch.clocks[kafka_partition].as_dict()),
        "watermark_s": batch.watermarks_s[kafka_partition],
        "updated_at": now,
    }
    lost = LostRace(
        f"lost race: topic {batch.topic}, topic partition {kafka_partition}: another drain moved the offset past "
        f"{offsets.start_offset} first; batch {batch.batch_id} was dropped, its records are in theirs"
    )
    moved = connection.execute(
        update(table)
        .where(
            table.c.topic == batch.topic,
            table.c.kafka_partition == kafka_partition,
            table.c.topic_id == batch.topic_id,
            table.c.next_offset == offsets.start_offset,
        )
        .values(**changed)
    )
    try:
        if moved.rowcount == 0:
            # A topic partition the ledger has not seen yet. If it has, the primary key says so.
            connection.execute(
                table.insert().values(
                    topic=batch.topic, kafka_partition=kafka_partition, topic_id=batch.topic_id, **changed
                )
            )
        connection.execute(
            schema.batch_ranges.insert().values(
                topic=batch.topic,
                topic_id=batch.topic_id,
                kafka_partition=kafka_partition,
                start_offset=offsets.start_offset,
                end_offset=offsets.end_offset,
                records=batch.records[kafka_partition],
                batch_id=batch.batch_id,
            )
        )
    except IntegrityError:
        raise lost from None


def note_new_partitions(ledger: Ledger, topic: str, topic_id: str, next_offsets: Mapping[int, int]) -> None:
    """Remembers where unknown topic partitions start, so that what expires from them before it is read is missed."""
    with ledger.writing() as connection:
        add_missing(
            connection,
            schema.topic_partitions,
            [
                {
                    "topic": topic,
                    "kafka_partition": kafka_partition,
                    "topic_id": topic_id,
                    "next_offset": offset,
                    "stable_offset": offset,
                    "clock": json.dumps(EventClock().as_dict()),
                    "watermark_s": None,
                    "updated_at": ledger.now(),
                }
                for kafka_partition, offset in next_offsets.items()
            ],
        )


def note_stable_offsets(ledger: Ledger, topic: str, stable_offsets: Mapping[int, int]) -> None:
    """Records how far the log reaches, for the lag. Not fenced: it is only shown."""
    table = schema.topic_partitions
    if not stable_offsets:
        return
    with ledger.writing() as connection:
        connection.execute(
            update(table)
            .where(
                table.c.topic == bindparam("the_topic"),
                table.c.kafka_partition == bindparam("the_partition"),
                table.c.next_offset <= bindparam("the_offset"),
            )
            .values(stable_offset=bindparam("the_offset")),
            [
                {"the_topic": topic, "the_partition": kafka_partition, "the_offset": offset}
                for kafka_partition, offset in stable_offsets.items()
            ],
        )


def known_watermark_s(ledger: Ledger) -> int | None:
    """Where the event watermark of the whole stands."""
    with ledger.reading() as connection:
        known = get_meta(connection, "watermark_s")
    return None if known is None else int(known)


def advance_watermark(ledger: Ledger, watermark_s: int | None) -> int | None:
    """Moves the event watermark of the whole forward, never back; returns where it stands."""
    with ledger.writing() as connection:
        known = get_meta(connection, "watermark_s")
        if watermark_s is None or (known is not None and int(known) >= watermark_s):
            return None if known is None else int(known)
        set_meta(connection, "watermark_s", str(watermark_s))
        return watermark_s
