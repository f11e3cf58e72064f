"""Committing what was read from a log: offsets, files and dirty minutes in one transaction, or nothing at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from uniq_pipeline.errors import LostRace
from uniq_pipeline.lateness import EventClock
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.batches import Batch, insert_batch
from uniq_pipeline.ledger.dirty import LIVE, Task, mark
from uniq_pipeline.ledger.refined import note_read
from uniq_pipeline.ledger.store import Ledger, add_missing, get_meta, in_chunks, set_meta
from uniq_pipeline.ledger.tallies import Tally, add_tallies
from uniq_pipeline.offsets import OffsetRange, TopicState, log_after, newest_log
from uniq_pipeline.windows import MINUTE_S, Grain, Window

UTC_ZONE = ZoneInfo("UTC")  # minutes and their buckets, the hours, are cut in UTC whatever the setting


@dataclass(frozen=True)
class Position:
    """Where a topic partition's log goes on, and the event clock of what came before.

    counted  offsets of frames awaiting proof that a person admitted: when they are proved, they count already
    """

    next_offset: int
    clock: EventClock
    counted: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Positions:
    """All positions of a topic. `topic_id` is None while the ledger does not know the topic."""

    topic_id: str | None
    by_partition: dict[int, Position]


@dataclass(frozen=True)
class LogCommit:
    """Everything one batch of a log changes."""

    batch: Batch
    topic_id: str
    ranges: Sequence[OffsetRange]  # empty ones only renew the clock
    records: Mapping[int, int]  # by topic partition
    clocks_before: Mapping[int, EventClock]
    clocks: Mapping[int, EventClock]
    watermarks_s: Mapping[int, int | None]
    stable_offsets: Mapping[int, int]
    minutes_s: Sequence[int]  # event minutes that gained frames
    held_minutes: Tally  # (event minute, event class) -> records, may be negative
    rejected_minutes: Tally  # (Kafka minute, reason) -> records
    admitted: Sequence[tuple[int, int]]  # (topic partition, offset)


def read_positions(ledger: Ledger, topic: str) -> Positions:
    """Where each topic partition goes on."""
    table, admissions = schema.topic_partitions, schema.admissions
    with ledger.reading() as connection:
        rows = connection.execute(select(table).where(table.c.topic == topic)).all()
        clocks = {row.kafka_partition: EventClock.from_dict(json.loads(row.clock)) for row in rows}
        pending = [frame.kafka_offset for clock in clocks.values() for frame in clock.pending]
        admitted = {
            tuple(row)
            for offsets in in_chunks(pending)
            for row in connection.execute(
                select(admissions.c.kafka_partition, admissions.c.kafka_offset).where(
                    admissions.c.topic == topic, admissions.c.kafka_offset.in_(offsets)
                )
            )
        }
    return Positions(
        topic_id=rows[0].topic_id if rows else None,
        by_partition={
            row.kafka_partition: Position(
                row.next_offset,
                clocks[row.kafka_partition],
                frozenset(offset for p, offset in admitted if p == row.kafka_partition),
            )
            for row in rows
        },
    )


def current_log(ledger: Ledger, topic: str) -> str:
    """The name under which a topic is drained: its own, or with `~2` and so on when it was deleted and made again."""
    parts, ranges = schema.topic_partitions, schema.batch_ranges
    with ledger.reading() as connection:
        known = newest_log(topic, connection.execute(select(parts.c.topic).distinct()).scalars())
        if known is None:
            # forgotten, or never heard of
            read = newest_log(topic, connection.execute(select(ranges.c.topic).distinct()).scalars())
            known = topic if read is None else log_after(read)
    return known


def topic_with_id(ledger: Ledger, topic_id: str) -> str | None:
    """The topic that has this id, if one was read from."""
    table = schema.topic_partitions
    with ledger.reading() as connection:
        return connection.execute(
            select(table.c.topic).where(table.c.topic_id == topic_id).limit(1)
        ).scalar_one_or_none()


def commit_log(ledger: Ledger, commit: LogCommit, *, refine: bool = False) -> None:
    """Moves the offsets and names the files, if nobody moved the offsets since they were read.

    With `refine` the frames are to be sent to the refined topic, noted in the same transaction.

    Raises LostRace when somebody did: the transaction is rolled back, and the files stay unreferenced.
    """
    batch, now = commit.batch, ledger.now()
    with ledger.writing() as connection:
        for offsets in commit.ranges:
            _move_offset(connection, commit, offsets, now)
        ledger.failpoint("drain.in_commit")
        insert_batch(connection, batch, now)
        if refine:
            note_read(connection, batch, bool(commit.admitted), now)
        insert_admissions(
            connection, batch.batch_id, [(batch.topic, partition, offset) for partition, offset in commit.admitted]
        )
        tallied = add_tallies(connection, commit.held_minutes, commit.rejected_minutes)
        mark_minutes(connection, {*commit.minutes_s, *tallied}, LIVE, now)


def insert_admissions(connection: Connection, batch_id: str, frames: Sequence[tuple[str, int, int]]) -> None:
    """Notes held frames (topic, topic partition, offset) that count. Raises LostRace when one counts already."""
    if not frames:
        return
    try:
        connection.execute(
            schema.admissions.insert(),
            [
                {"topic": topic, "kafka_partition": partition, "kafka_offset": offset, "batch_id": batch_id}
                for topic, partition, offset in frames
            ],
        )
    except IntegrityError:
        raise LostRace(
            f"lost race: a held frame of topic {frames[0][0]} was admitted by another run first; batch {batch_id} was "
            f"dropped, the next run goes on without it"
        ) from None


def mark_minutes(connection: Connection, minutes_s: Iterable[int], reason: str, now: float) -> None:
    """Marks minutes to be counted, within a transaction."""
    minutes = [Window(Grain.MINUTE, start_s, start_s + MINUTE_S) for start_s in minutes_s]
    mark(connection, Task.COUNT, minutes, reason, UTC_ZONE, now)


def _move_offset(connection: Connection, commit: LogCommit, offsets: OffsetRange, now: float) -> None:
    table, batch = schema.topic_partitions, commit.batch
    kafka_partition = offsets.kafka_partition
    changed = {
        "next_offset": offsets.end_offset,
        "stable_offset": commit.stable_offsets[kafka_partition],
        "high_watermark": commit.stable_offsets[kafka_partition],
        "clock": json.dumps(commit.clocks[kafka_partition].as_dict()),
        "watermark_s": commit.watermarks_s[kafka_partition],
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
            table.c.topic_id == commit.topic_id,
            table.c.next_offset == offsets.start_offset,
        )
        .values(**changed)
    )
    try:
        if moved.rowcount == 0:
            # A topic partition the ledger has not seen yet. If it has, the primary key says so.
            connection.execute(
                table.insert().values(
                    topic=batch.topic, kafka_partition=kafka_partition, topic_id=commit.topic_id, **changed
                )
            )
        if offsets.size == 0:
            return
        before = commit.clocks_before.get(kafka_partition, EventClock())
        connection.execute(
            schema.batch_ranges.insert().values(
                topic=batch.topic,
                topic_id=commit.topic_id,
                kafka_partition=kafka_partition,
                start_offset=offsets.start_offset,
                end_offset=offsets.end_offset,
                records=commit.records[kafka_partition],
                batch_id=batch.batch_id,
                front_s=before.front_s,
                bound_s=commit.clocks[kafka_partition].bound_s,
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
                    "high_watermark": offset,
                    "clock": json.dumps(EventClock().as_dict()),
                    "watermark_s": None,
                    "updated_at": ledger.now(),
                }
                for kafka_partition, offset in next_offsets.items()
            ],
        )


def note_extents(ledger: Ledger, log: str, state: TopicState) -> None:
    """Records how far a log reaches, for the lag. Not fenced: it is only shown."""
    table = schema.topic_partitions
    if not state.extents:
        return
    with ledger.writing() as connection:
        connection.execute(
            update(table)
            .where(
                table.c.topic == bindparam("the_topic"),
                table.c.kafka_partition == bindparam("the_partition"),
                table.c.next_offset <= bindparam("the_offset"),
            )
            .values(stable_offset=bindparam("the_offset"), high_watermark=bindparam("the_end")),
            [
                {
                    "the_topic": log,
                    "the_partition": kafka_partition,
                    "the_offset": extent.stable_offset,
                    "the_end": extent.high_watermark,
                }
                for kafka_partition, extent in state.extents.items()
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
