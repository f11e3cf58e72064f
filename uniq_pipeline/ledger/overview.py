"""What people ask the ledger: lag, totals, the newest windows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.refined import Backlog, backlog
from uniq_pipeline.ledger.store import Ledger, count_rows, get_meta, sum_of
from uniq_pipeline.windows import Grain


@dataclass(frozen=True)
class PartitionStatus:
    topic: str
    kafka_partition: int
    next_offset: int
    lag: int
    unstable: int  # records that wait for a transaction that is open
    watermark_s: int | None
    pending_proof: int  # held future frames that may still be proved


@dataclass(frozen=True)
class Overview:
    """The state of everything, as of one snapshot."""

    partitions: list[PartitionStatus]
    watermark_s: int | None
    batches: int
    delivered: int
    frames: int
    late: int
    held: int
    quarantined: int
    expired: int
    windows: dict[str, int]
    dirty: dict[str, int]
    outbox: int
    refined: Backlog
    files: int
    files_bytes: int
    last_batch_at: float | None

    @property
    def lag(self) -> int:
        return sum(partition.lag for partition in self.partitions)

    @property
    def is_conserved(self) -> bool:
        return self.delivered == self.frames + self.held + self.quarantined + self.expired


def overview(ledger: Ledger, topic: str | None = None) -> Overview:
    """Lag is that of `topic`, or of every topic ever drained."""
    parts, batches, files = schema.topic_partitions, schema.batches, schema.files
    with ledger.reading() as connection:
        where = [] if topic is None else [parts.c.topic == topic]
        partitions = [
            PartitionStatus(
                topic=row.topic,
                kafka_partition=row.kafka_partition,
                next_offset=row.next_offset,
                lag=max(0, row.stable_offset - row.next_offset),
                unstable=row.high_watermark - row.stable_offset,
                watermark_s=row.watermark_s,
                pending_proof=row.clock.count('"place"'),
            )
            for row in connection.execute(select(parts).where(*where).order_by(parts.c.topic, parts.c.kafka_partition))
        ]
        totals = connection.execute(
            select(
                func.count(),
                *(
                    sum_of(batches.c[name])
                    for name in (
                        *("delivered", "frames", "late", "held", "quarantined"),
                        *("admitted", "withdrawn", "replayed", "expired"),
                    )
                ),
                func.max(batches.c.committed_at),
            )
        ).one()
        count, delivered, frames, late, held, quarantined, admitted, withdrawn, replayed, expired, last = totals
        live = files.c.retired_at.is_(None)
        watermark = get_meta(connection, "watermark_s")
        return Overview(
            partitions=partitions,
            watermark_s=None if watermark is None else int(watermark),
            batches=count,
            delivered=int(delivered),
            frames=int(frames) - int(withdrawn),
            late=int(late),
            held=int(held) - int(admitted),
            quarantined=int(quarantined) - int(replayed),
            expired=int(expired),
            windows={
                grain: int(windows)
                for grain, windows in connection.execute(
                    select(schema.buckets.c.grain, sum_of(schema.buckets.c.windows)).group_by(schema.buckets.c.grain)
                )
            },
            dirty=dict(
                connection.execute(
                    select(schema.dirty.c.grain, func.count())
                    .where(schema.dirty.c.task == Task.COUNT)
                    .group_by(schema.dirty.c.grain)
                ).all()
            ),
            outbox=count_rows(connection, schema.outbox),
            refined=backlog(connection),
            files=count_rows(connection, files, live),
            files_bytes=int(connection.execute(select(sum_of(files.c.size_bytes)).where(live)).scalar_one()),
            last_batch_at=last,
        )


def newest_topic(ledger: Ledger) -> str | None:
    """The topic that was drained last."""
    table = schema.topic_partitions
    with ledger.reading() as connection:
        return connection.execute(
            select(table.c.topic).order_by(table.c.updated_at.desc()).limit(1)
        ).scalar_one_or_none()


def newest_file(ledger: Ledger, grain: Grain, before_s: int | None) -> str | None:
    """The result file of the newest bucket of a grain that starts at or before `before_s`."""
    table = schema.buckets
    reached = [] if before_s is None else [table.c.bucket_start_s <= before_s]
    with ledger.reading() as connection:
        return connection.execute(
            select(table.c.path)
            .where(table.c.grain == grain, *reached)
            .order_by(table.c.bucket_start_s.desc())
            .limit(1)
        ).scalar_one_or_none()


def recent_batches(ledger: Ledger, since: float) -> list[dict[str, Any]]:
    table = schema.batches
    with ledger.reading() as connection:
        return [
            {**row._mapping, "committed_at": datetime.fromtimestamp(row.committed_at, UTC)}
            for row in connection.execute(
                select(table).where(table.c.committed_at >= since).order_by(table.c.committed_at)
            )
        ]


def admitted_offsets(ledger: Ledger) -> list[dict[str, Any]]:
    """Held frames that were counted after all."""
    table = schema.admissions
    with ledger.reading() as connection:
        return [
            dict(row._mapping)
            for row in connection.execute(select(table.c.topic, table.c.kafka_partition, table.c.kafka_offset))
        ]
