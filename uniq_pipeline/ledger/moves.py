"""Committing moves: rows taken out of some files and put into others, in one transaction, or nothing at all.

A file is never changed. Those that hold moved rows stop counting, and what is left of each stands in a new one. So
a move is done once, whoever else tries: the second finds that the files no longer count.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import Connection, and_, case, delete, func, select

from uniq_pipeline.errors import LostRace
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.batches import Batch, insert_batch
from uniq_pipeline.ledger.files import take_files
from uniq_pipeline.ledger.logs import insert_admissions, mark_minutes
from uniq_pipeline.ledger.refined import note_moved
from uniq_pipeline.ledger.store import Ledger, in_chunks
from uniq_pipeline.ledger.tallies import Tally, add_tallies

# (topic, topic partition, offset)
Place = tuple[str, int, int]


@dataclass(frozen=True)
class MoveCommit:
    """Everything one move changes.

    taken        the files that hold the moved rows; each must still count
    minutes_s    event minutes whose frames changed, and the reason of their next revision
    admitted     held frames that count from now on
    withdrawn    frames that are held from now on
    """

    batch: Batch
    taken: Sequence[str]
    minutes_s: Sequence[int]
    reason: str
    held_minutes: Tally = field(default_factory=dict)
    rejected_minutes: Tally = field(default_factory=dict)
    admitted: Collection[Place] = ()
    withdrawn: Collection[Place] = ()


@dataclass(frozen=True)
class Context:
    """The event clock around a range of offsets: its front before them, its future bound after them.

    Where the log had no front yet, `front_s` is the earliest event time that its batch counted.
    """

    start_offset: int
    end_offset: int
    front_s: int | None
    bound_s: int | None


def admitted_places(ledger: Ledger) -> set[Place]:
    """Frames that still stand in held/ though they count."""
    table = schema.admissions
    with ledger.reading() as connection:
        return {
            (row.topic, row.kafka_partition, row.kafka_offset)
            for row in connection.execute(select(table.c.topic, table.c.kafka_partition, table.c.kafka_offset))
        }


def pending_places(ledger: Ledger) -> set[Place]:
    """Held frames that their logs may still prove."""
    with ledger.reading() as connection:
        return {place for topic in _topics(connection) for place in _pending(connection, topic)}


def _topics(connection: Connection) -> list[str]:
    return list(connection.execute(select(schema.topic_partitions.c.topic).distinct()).scalars())


def _pending(connection: Connection, topic: str) -> set[Place]:
    parts = schema.topic_partitions
    return {
        (topic, row.kafka_partition, frame["kafka_offset"])
        for row in connection.execute(select(parts.c.kafka_partition, parts.c.clock).where(parts.c.topic == topic))
        for frame in json.loads(row.clock)["pending"]
    }


def contexts(ledger: Ledger, topic: str, kafka_partition: int, first: int, last: int) -> list[Context]:
    """What the log around the offsets first to last, inclusive, said of event time, in order of offsets."""
    table, files = schema.batch_ranges, schema.files
    # The first batch of a log has no front before it; what it counted starts somewhere, though.
    earliest = (
        select(func.min(files.c.min_event_s))
        .where(files.c.batch_id == table.c.batch_id, files.c.kind == "frames", files.c.retired_at.is_(None))
        .scalar_subquery()
    )
    has_no_front = and_(table.c.front_s.is_(None), table.c.bound_s.is_not(None))
    with ledger.reading() as connection:
        return [
            Context(*row)
            for row in connection.execute(
                select(
                    table.c.start_offset,
                    table.c.end_offset,
                    case((has_no_front, earliest), else_=table.c.front_s),
                    table.c.bound_s,
                )
                .where(
                    table.c.topic == topic,
                    table.c.kafka_partition == kafka_partition,
                    table.c.start_offset <= last,
                    table.c.end_offset > first,
                )
                .order_by(table.c.start_offset)
            )
        ]


def commit_move(ledger: Ledger, commit: MoveCommit, *, refine: bool = False) -> None:
    """With `refine` what it accepts and withdraws is to be sent to the refined topic.

    Raises LostRace when a file it takes from no longer counts, or a frame it admits counts already.
    """
    batch, now = commit.batch, ledger.now()
    with ledger.writing() as connection:
        take_files(connection, commit.taken, batch.kind, batch.batch_id, now)
        ledger.failpoint("move.in_commit")
        insert_batch(connection, batch, now)
        note_moved(connection, batch, commit.taken, refine, now)
        _admit(connection, batch.batch_id, commit.admitted)
        _withdraw(connection, commit.withdrawn)
        tallied = add_tallies(connection, commit.held_minutes, commit.rejected_minutes)
        mark_minutes(connection, {*commit.minutes_s, *tallied}, commit.reason, now)


def _admit(connection: Connection, batch_id: str, places: Collection[Place]) -> None:
    """Makes sure that no drain counts these frames too: neither did it already, nor will it when it proves them."""
    admissions = schema.admissions
    for topic in sorted({place[0] for place in places}):
        # Read before the admissions are: a drain that commits in between has its frame in one of the two.
        awaiting_proof = _pending(connection, topic)
        offsets = np.array([place[2] for place in places if place[0] == topic])
        known = {
            (topic, row.kafka_partition, row.kafka_offset)
            for row in connection.execute(
                select(admissions.c.kafka_partition, admissions.c.kafka_offset).where(
                    admissions.c.topic == topic,
                    admissions.c.kafka_offset >= int(offsets.min()),
                    admissions.c.kafka_offset <= int(offsets.max()),
                )
            )
        }
        if known & set(places):
            raise LostRace(
                f"lost race: a held frame of topic {topic} was proved by its log meanwhile; batch {batch_id} was "
                f"dropped"
            )
        insert_admissions(connection, batch_id, sorted(awaiting_proof & set(places)))


def _withdraw(connection: Connection, places: Collection[Place]) -> None:
    table = schema.admissions
    by_partition: dict[tuple[str, int], list[int]] = {}
    for topic, kafka_partition, offset in places:
        by_partition.setdefault((topic, kafka_partition), []).append(offset)
    for (topic, kafka_partition), offsets in by_partition.items():
        for chunk in in_chunks(offsets):
            connection.execute(
                delete(table).where(
                    table.c.topic == topic,
                    table.c.kafka_partition == kafka_partition,
                    table.c.kafka_offset.in_(chunk),
                )
            )
