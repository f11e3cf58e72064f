"""Where records of a stretch of a log may stand: the files to look into, and what the batches that read it said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Select, and_, or_, select, union

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.batches import Delivery, Kind
from uniq_pipeline.ledger.moves import Place
from uniq_pipeline.ledger.store import Ledger

DATA_KINDS = ("frames", "held", "quarantine")

# Batches that read a log; all others move what is in the lake already.
LOG_KINDS = (Kind.DRAIN, Kind.INGEST)


@dataclass(frozen=True)
class StoredFile:
    """A file that counts, as the ledger has it."""

    path: str
    kind: str
    rows: int
    size_bytes: int
    sha256: str
    batch_id: str
    hour_s: int | None
    rest_of: str | None


@dataclass(frozen=True, order=True)
class ReadRange:
    """`[start_offset, end_offset)` that a batch read of a topic partition, and how many records were in it."""

    topic: str
    kafka_partition: int
    start_offset: int
    end_offset: int
    topic_id: str
    records: int
    batch_id: str
    kind: str

    def __str__(self) -> str:
        return f"topic {self.topic}, topic partition {self.kafka_partition} [{self.start_offset}, {self.end_offset})"


_FILE_COLUMNS = [schema.files.c[name] for name in StoredFile.__dataclass_fields__]


def files_over(
    ledger: Ledger, topic: str, kafka_partition: int, start_offset: int, end_offset: int
) -> list[StoredFile]:
    """The data files that count and may hold records of `[start_offset, end_offset)`: of the batches that read them or
    proved them later, of compactions of those, and of every move."""
    ranges, admissions, batches = schema.batch_ranges, schema.admissions, schema.batches
    found = union(
        select(ranges.c.batch_id).where(
            ranges.c.topic == topic,
            ranges.c.kafka_partition == kafka_partition,
            ranges.c.start_offset < end_offset,
            ranges.c.end_offset > start_offset,
        ),
        select(admissions.c.batch_id).where(
            admissions.c.topic == topic,
            admissions.c.kafka_partition == kafka_partition,
            admissions.c.kafka_offset >= start_offset,
            admissions.c.kafka_offset < end_offset,
        ),
        select(batches.c.batch_id).where(batches.c.kind.not_in((*LOG_KINDS, Kind.COMPACT, Kind.EXPIRE))),
    )
    return _files_of(ledger, select(found.subquery().c.batch_id))


def _files_of(ledger: Ledger, batch_ids: Select) -> list[StoredFile]:
    files, merged = schema.files, schema.merged_files
    with ledger.reading() as connection:
        return [
            StoredFile(*row)
            for row in connection.execute(
                select(*_FILE_COLUMNS)
                .where(
                    files.c.retired_at.is_(None),
                    files.c.kind.in_(DATA_KINDS),
                    or_(
                        files.c.batch_id.in_(batch_ids),
                        files.c.batch_id.in_(select(merged.c.compaction_id).where(merged.c.batch_id.in_(batch_ids))),
                    ),
                )
                .order_by(files.c.path)
            )
        ]


def data_files(ledger: Ledger, paths: Sequence[str]) -> list[StoredFile]:
    """Those of these data files that count."""
    files = schema.files
    with ledger.reading() as connection:
        rows = (
            connection.execute(select(*_FILE_COLUMNS).where(files.c.path == path, files.c.retired_at.is_(None))).first()
            for path in paths
        )
        return [StoredFile(*row) for row in rows if row is not None and row.kind in DATA_KINDS]


def ranges_read_by(ledger: Ledger, batch_id: str) -> list[ReadRange]:
    """What the batches of a file read. Where one is a move, whose rows may be of any batch: all there is."""
    ranges, merged, batches = schema.batch_ranges, schema.merged_files, schema.batches
    with ledger.reading() as connection:
        ids = list(
            connection.execute(select(merged.c.batch_id).where(merged.c.compaction_id == batch_id)).scalars()
        ) or [batch_id]
        of_file: Select = select(merged.c.batch_id).where(merged.c.compaction_id == batch_id)
        if ids == [batch_id]:
            of_file = select(batches.c.batch_id).where(batches.c.batch_id == batch_id)
        has_moves = connection.execute(
            select(batches.c.batch_id).where(batches.c.batch_id.in_(of_file), batches.c.kind.not_in(LOG_KINDS)).limit(1)
        ).first()
        return _ranges(connection, [] if has_moves else [ranges.c.batch_id.in_(of_file)])


def ranges_over(
    ledger: Ledger, topic: str, kafka_partition: int, start_offset: int, end_offset: int
) -> list[ReadRange]:
    """What batches read that overlaps `[start_offset, end_offset)`, in order."""
    ranges = schema.batch_ranges
    with ledger.reading() as connection:
        return _ranges(
            connection,
            [
                ranges.c.topic == topic,
                ranges.c.kafka_partition == kafka_partition,
                ranges.c.start_offset < end_offset,
                ranges.c.end_offset > start_offset,
            ],
        )


def _ranges(connection: Connection, where: Sequence) -> list[ReadRange]:
    ranges, batches = schema.batch_ranges, schema.batches
    names = ("topic", "kafka_partition", "start_offset", "end_offset", "topic_id", "records", "batch_id")
    return [
        ReadRange(*row)
        for row in connection.execute(
            select(*(ranges.c[name] for name in names), batches.c.kind)
            .join(batches, batches.c.batch_id == ranges.c.batch_id)
            .where(*where)
            .order_by(ranges.c.topic, ranges.c.kafka_partition, ranges.c.start_offset)
        )
    ]


def admissions_over(
    ledger: Ledger, topic: str, kafka_partition: int, start_offset: int, end_offset: int
) -> tuple[set[Place], set[Place]]:
    """Frames of `[start_offset, end_offset)` that count though they were held: those that their log proved, whose rows
    still stand in held/ too, and those that a person admitted while they awaited proof."""
    table, batches = schema.admissions, schema.batches
    proved: set[Place] = set()
    by_person: set[Place] = set()
    with ledger.reading() as connection:
        for row in connection.execute(
            select(table.c.kafka_offset, batches.c.kind)
            .join(batches, batches.c.batch_id == table.c.batch_id)
            .where(
                table.c.topic == topic,
                table.c.kafka_partition == kafka_partition,
                table.c.kafka_offset >= start_offset,
                table.c.kafka_offset < end_offset,
            )
        ):
            (proved if row.kind in LOG_KINDS else by_person).add((topic, kafka_partition, row.kafka_offset))
    return proved, by_person


def proved_places(ledger: Ledger) -> set[Place]:
    """All frames that their logs proved: they have a row in frames, and one in held/ that does not count."""
    table, batches = schema.admissions, schema.batches
    with ledger.reading() as connection:
        return {
            (row.topic, row.kafka_partition, row.kafka_offset)
            for row in connection.execute(
                select(table.c.topic, table.c.kafka_partition, table.c.kafka_offset)
                .join(batches, batches.c.batch_id == table.c.batch_id)
                .where(batches.c.kind.in_(LOG_KINDS))
            )
        }


def held_tallies(ledger: Ledger, start_s: int, end_s: int) -> tuple[Counter[tuple[int, str]], list[str]]:
    """(minute, event class) -> held frames of `[start_s, end_s)`, and the files that have them, in one snapshot."""
    table, files = schema.tallies, schema.files
    with ledger.reading() as connection:
        tallied = Counter(
            {
                (row.minute_s, row.reason): row.records
                for row in connection.execute(
                    select(table).where(table.c.kind == "held", table.c.minute_s >= start_s, table.c.minute_s < end_s)
                )
            }
        )
        paths = connection.execute(
            select(files.c.path).where(
                files.c.kind == "held",
                files.c.retired_at.is_(None),
                files.c.rows > 0,
                files.c.min_event_s < end_s,
                files.c.max_event_s >= start_s,
            )
        ).scalars()
        return tallied, list(paths)


@dataclass(frozen=True)
class BatchFacts:
    """What the ledger has of what a batch wrote into the footers of its files.

    clocks   by topic partition: the event clock after the batch as a dictionary, whole only where it is the newest
    taken    of a move: the files it took rows out of, as far as they are known still
    """

    kind: Kind
    topic: str
    topic_id: str
    delivery: dict
    ranges: list[list[int]]
    admitted: list[list[int]]
    clocks: dict[int, dict]
    taken: list[str]


def batch_facts(ledger: Ledger, batch_id: str) -> BatchFacts | None:
    """None where there is no such batch."""
    batches, ranges, parts = schema.batches, schema.batch_ranges, schema.topic_partitions
    admissions, files, merged = schema.admissions, schema.files, schema.merged_files
    with ledger.reading() as connection:
        row = connection.execute(select(batches).where(batches.c.batch_id == batch_id)).first()
        if row is None:
            return None
        found = connection.execute(select(ranges).where(ranges.c.batch_id == batch_id)).all()
        clocks = {}
        for read in found:
            same_log = and_(
                ranges.c.topic == read.topic,
                ranges.c.topic_id == read.topic_id,
                ranges.c.kafka_partition == read.kafka_partition,
            )
            after = connection.execute(
                select(ranges.c.front_s)
                .where(same_log, ranges.c.start_offset >= read.end_offset)
                .order_by(ranges.c.start_offset)
                .limit(1)
            ).first()
            newest = connection.execute(
                select(parts.c.clock).where(
                    parts.c.topic == read.topic,
                    parts.c.topic_id == read.topic_id,
                    parts.c.kafka_partition == read.kafka_partition,
                )
            ).scalar_one_or_none()
            if after is None and newest is not None:
                clocks[read.kafka_partition] = json.loads(newest)
            else:
                nothing = {"seen": 0, "recent_s": [], "vouched_s": None, "pending": []}
                front_s = None if after is None else after.front_s
                clocks[read.kafka_partition] = {**nothing, "front_s": front_s, "bound_s": read.bound_s}
        known = {name: value for name, value in row._mapping.items() if name in Delivery.__dataclass_fields__}
        return BatchFacts(
            kind=Kind(row.kind),
            topic=row.topic,
            topic_id=found[0].topic_id if found else "",
            delivery={**known, "reasons": json.loads(row.reasons), "lateness": json.loads(row.lateness)},
            ranges=[[r.kafka_partition, r.start_offset, r.end_offset, r.records] for r in found],
            admitted=[
                list(one)
                for one in connection.execute(
                    select(admissions.c.kafka_partition, admissions.c.kafka_offset).where(
                        admissions.c.batch_id == batch_id
                    )
                )
            ],
            clocks=clocks,
            taken=sorted(
                {
                    path
                    for table in (files, merged)
                    for path in connection.execute(
                        select(table.c.rest_of).where(table.c.path.like(f"%.rest-{batch_id}.parquet"))
                    ).scalars()
                }
            ),
        )


def files_of_batch(ledger: Ledger, batch_id: str) -> list[tuple[str, int]]:
    """(path, rows) of every data file that names a batch, also of those that no longer count."""
    files = schema.files
    with ledger.reading() as connection:
        return [
            tuple(row)
            for row in connection.execute(
                select(files.c.path, files.c.rows).where(files.c.batch_id == batch_id).order_by(files.c.path)
            )
        ]
