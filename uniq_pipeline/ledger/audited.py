"""What an audit of records and windows asks the ledger: where each log stands, which files there are, what is stored.

Each function reads one snapshot, so that a pipeline at work beside it is never half seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import and_, exists, func, or_, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.places import DATA_KINDS
from uniq_pipeline.ledger.store import Ledger, in_chunks, sum_of
from uniq_pipeline.windows import Grain, Window

BATCHES_AT_ONCE = 500


@dataclass(frozen=True)
class Snapshot:
    """The data files that count, where each log stands, and the held frames that count: (topic, partition, offset)."""

    files: list[tuple[str, str]]  # kind, path
    ends: dict[tuple[str, str, int], int]  # topic, topic id, topic partition
    admitted: list[tuple[str, int, int]]
    expired: int


def snapshot(ledger: Ledger) -> Snapshot:
    files, ranges, admissions, batches = schema.files, schema.batch_ranges, schema.admissions, schema.batches
    log = (ranges.c.topic, ranges.c.topic_id, ranges.c.kafka_partition)
    with ledger.reading() as connection:
        return Snapshot(
            files=[
                tuple(row)
                for row in connection.execute(
                    select(files.c.kind, files.c.path).where(
                        files.c.retired_at.is_(None), files.c.kind.in_(DATA_KINDS), files.c.rows > 0
                    )
                )
            ],
            ends={
                (row[0], row[1], row[2]): row[3]
                for row in connection.execute(select(*log, func.max(ranges.c.end_offset)).group_by(*log))
            },
            admitted=[
                tuple(row)
                for row in connection.execute(
                    select(admissions.c.topic, admissions.c.kafka_partition, admissions.c.kafka_offset)
                )
            ],
            expired=int(connection.execute(select(sum_of(batches.c.expired))).scalar_one()),
        )


@dataclass(frozen=True)
class LogRange:
    """`[start_offset, end_offset)` that a batch read. generations: topics of this name that were drained."""

    topic: str
    topic_id: str
    kafka_partition: int
    start_offset: int
    end_offset: int
    records: int
    generations: int


def range_groups(ledger: Ledger, records: int) -> Iterator[list[LogRange]]:
    """All ranges, in groups of about so many records: batches of one log, in the order they were committed.

    Each group is read by itself, after the one before it: ranges are never changed.
    """
    ranges, batches = schema.batch_ranges, schema.batches
    names = ("topic", "topic_id", "kafka_partition", "start_offset", "end_offset", "records")
    with ledger.reading() as connection:
        logs = connection.execute(select(ranges.c.topic, ranges.c.topic_id).distinct().order_by(*names[:2])).all()
    generations = {topic: sum(other == topic for other, _ in logs) for topic, _ in logs}
    for topic, topic_id in logs:
        group: list[LogRange] = []
        last: tuple[float, str] = (-1.0, "")
        while True:
            after = or_(
                batches.c.committed_at > last[0],
                and_(batches.c.committed_at == last[0], batches.c.batch_id > last[1]),
            )
            of_log = and_(ranges.c.topic == topic, ranges.c.topic_id == topic_id)
            with ledger.reading() as connection:
                page = connection.execute(
                    select(batches.c.committed_at, batches.c.batch_id)
                    .where(after, exists().where(of_log, ranges.c.batch_id == batches.c.batch_id))
                    .order_by(batches.c.committed_at, batches.c.batch_id)
                    .limit(BATCHES_AT_ONCE)
                ).all()
                found: dict[str, list[LogRange]] = {row.batch_id: [] for row in page}
                for chunk in in_chunks(list(found)):
                    for row in connection.execute(
                        select(*(ranges.c[name] for name in names), ranges.c.batch_id).where(
                            of_log, ranges.c.batch_id.in_(chunk)
                        )
                    ):
                        found[row.batch_id].append(LogRange(*row[:-1], generations[topic]))
            if not page:
                break
            last = page[-1].committed_at, page[-1].batch_id
            for of_batch in found.values():
                group += of_batch
                if sum(one.records for one in group) >= records:
                    yield group
                    group = []
        if group:
            yield group


@dataclass(frozen=True)
class BucketState:
    """A bucket as the ledger has it, and the starts of its windows that are marked."""

    grain: Grain
    start_s: int
    end_s: int
    version: int
    path: str
    provisional: int
    dirty: frozenset[int]


def bucket_starts(ledger: Ledger, grain: Grain, limit: int | None) -> list[int]:
    """Starts of buckets of a grain: so many chosen at random, or all in order."""
    table = schema.buckets
    found = select(table.c.bucket_start_s).where(table.c.grain == grain)
    found = found.order_by(table.c.bucket_start_s) if limit is None else found.order_by(func.random()).limit(limit)
    with ledger.reading() as connection:
        return list(connection.execute(found).scalars())


def bucket_state(ledger: Ledger, grain: Grain, start_s: int) -> BucketState | None:
    table, dirty = schema.buckets, schema.dirty
    with ledger.reading() as connection:
        row = connection.execute(select(table).where(table.c.grain == grain, table.c.bucket_start_s == start_s)).first()
        if row is None:
            return None
        marked = connection.execute(
            select(dirty.c.window_start_s).where(
                dirty.c.task == Task.COUNT, dirty.c.grain == grain, dirty.c.bucket_start_s == start_s
            )
        ).scalars()
        return BucketState(grain, start_s, row.bucket_end_s, row.version, row.path, row.provisional, frozenset(marked))


@dataclass(frozen=True)
class SetState:
    """A uid set that is up to date."""

    start_s: int
    end_s: int
    version: int
    path: str
    users: int


def set_starts(ledger: Ledger, grain: Grain, limit: int | None) -> list[int]:
    """Starts of windows of a grain that have a uid set: so many chosen at random, or all in order."""
    table = schema.uid_sets
    found = select(table.c.window_start_s).where(table.c.grain == grain, table.c.path.is_not(None))
    found = found.order_by(table.c.window_start_s) if limit is None else found.order_by(func.random()).limit(limit)
    with ledger.reading() as connection:
        return list(connection.execute(found).scalars())


def set_state(ledger: Ledger, grain: Grain, start_s: int) -> SetState | None:
    """None where the set is not up to date any more."""
    table, dirty = schema.uid_sets, schema.dirty
    stale = exists().where(
        dirty.c.task == Task.SET, dirty.c.grain == table.c.grain, dirty.c.window_start_s == table.c.window_start_s
    )
    with ledger.reading() as connection:
        row = connection.execute(
            select(table).where(
                table.c.grain == grain, table.c.window_start_s == start_s, table.c.path.is_not(None), ~stale
            )
        ).first()
    return row and SetState(row.window_start_s, row.window_end_s, row.version, row.path, row.users)


def bucket_of_file(ledger: Ledger, path: str) -> tuple[Grain, int] | None:
    """(grain, start) of the bucket whose result file this is."""
    table = schema.buckets
    with ledger.reading() as connection:
        row = connection.execute(select(table.c.grain, table.c.bucket_start_s).where(table.c.path == path)).first()
    return row and (Grain(row[0]), row[1])


def set_of_file(ledger: Ledger, path: str) -> Window | None:
    """The window whose uid set this file is."""
    table = schema.uid_sets
    with ledger.reading() as connection:
        row = connection.execute(
            select(table.c.grain, table.c.window_start_s, table.c.window_end_s).where(table.c.path == path)
        ).first()
    return row and Window(Grain(row[0]), row[1], row[2])


def dirty_marks(ledger: Ledger, grain: Grain, bucket_start_s: int) -> dict[int, int]:
    """Window start -> sequence number of what is marked in a bucket."""
    dirty = schema.dirty
    with ledger.reading() as connection:
        return dict(
            connection.execute(
                select(dirty.c.window_start_s, dirty.c.seq).where(
                    dirty.c.task == Task.COUNT, dirty.c.grain == grain, dirty.c.bucket_start_s == bucket_start_s
                )
            ).all()
        )
