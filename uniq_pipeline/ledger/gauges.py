"""What the metrics ask the ledger: everything in one snapshot, without a look at every batch there ever was.

Counters come from the totals. The rest are small tables and ends of indexes, and the tables of files, buckets, dirty
marks and of the outbox once from end to end: tens of thousands of rows in two years, more only where much waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from uniq_pipeline.errors import LedgerError
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.batches import Kind
from uniq_pipeline.ledger.store import Ledger
from uniq_pipeline.ledger.totals import LastTicks, last_ticks, read_totals
from uniq_pipeline.windows import Grain

# Result files that are looked at for the error of estimates, the newest of each grain: an hour of minutes is one, a day
# of hours, a month of days, else a window.
RECENT_BUCKETS = {Grain.MINUTE: 2, Grain.HOUR: 2, Grain.DAY: 2, Grain.WEEK: 6, Grain.MONTH: 6, Grain.YEAR: 2}


@dataclass(frozen=True)
class PartitionGauges:
    """One topic partition. `moved_at` is when its next offset moved last."""

    topic: str
    kafka_partition: int
    next_offset: int
    stable_offset: int
    high_watermark: int
    watermark_s: int | None
    moved_at: float
    skipped: int


@dataclass(frozen=True)
class Waiting:
    """How many there are, and since when the oldest waits; None where there is none."""

    number: int
    oldest: float | None


@dataclass(frozen=True)
class LastBatch:
    """The newest batch that was read from a topic or file."""

    committed_at: float
    seconds: float
    delivered: int


@dataclass(frozen=True)
class Gauges:
    """The ledger at one moment.

    totals       (kind, name, label) -> sum (see batches.insert_batch and totals.note_tick)
    partitions   those of topics; the logs of files are done when they were read
    dirty        (task, grain) -> windows
    files        (kind, whether they count) -> (files, bytes)
    windows      grain -> stored windows
    results      grain -> its newest result files that event time has reached, the newest first
    final_path   the newest result file with a final minute
    """

    schema: str
    lg_k: int
    timezone: str
    watermark_s: int | None
    totals: Mapping[tuple[str, str, str], int]
    ticks: LastTicks
    last_batch: LastBatch | None
    partitions: Sequence[PartitionGauges]
    dirty: Mapping[tuple[str, str], Waiting]
    outbox: Waiting
    files: Mapping[tuple[str, bool], tuple[int, int]]
    windows: Mapping[str, int]
    results: Mapping[Grain, Sequence[str]]
    final_path: str | None

    def total(self, kind: str, name: str, label: str = "") -> int:
        return self.totals.get((kind, name, label), 0)


def gauges(ledger: Ledger, without_topics: str) -> Gauges:
    """Everything, of one snapshot. Topics whose names begin with `without_topics` have no gauges of partitions.

    Raises LedgerError when the ledger cannot be read, is not there, or is of another version.
    """
    if ledger.is_absent:
        raise LedgerError(f"ledger {ledger.shown_url}: there is none; the first drain makes it")
    with ledger.reading() as connection:
        facts = dict(connection.execute(select(schema.meta.c.key, schema.meta.c.value)).all())
        if facts.get("schema") != schema.SCHEMA_VERSION:
            raise LedgerError(
                f"ledger {ledger.shown_url} is of version {facts.get('schema', 'none')}, not {schema.SCHEMA_VERSION}: "
                f"metrics and pipeline are of different versions; run the same one"
            )
        watermark_s = int(facts["watermark_s"]) if "watermark_s" in facts else None
        return Gauges(
            schema=facts["schema"],
            lg_k=int(facts["lg_k"]),
            timezone=facts["timezone"],
            watermark_s=watermark_s,
            totals=read_totals(connection),
            ticks=last_ticks(connection),
            last_batch=_last_batch(connection),
            partitions=_partitions(connection, without_topics),
            dirty=_dirty(connection),
            outbox=_outbox(connection),
            files=_files(connection),
            windows=_windows(connection),
            results={grain: _newest_results(connection, grain, watermark_s) for grain in Grain},
            final_path=_final_path(connection, watermark_s),
        )


def _last_batch(connection: Connection) -> LastBatch | None:
    t = schema.batches.c
    row = connection.execute(
        select(t.committed_at, t.seconds, t.delivered)
        .where(t.kind.in_([Kind.DRAIN, Kind.INGEST]))
        .order_by(t.committed_at.desc())
        .limit(1)
    ).first()
    return None if row is None else LastBatch(*row)


def _partitions(connection: Connection, without_topics: str) -> list[PartitionGauges]:
    t, s = schema.topic_partitions.c, schema.skipped.c
    skipped = {
        (topic, kafka_partition): int(offsets)
        for topic, kafka_partition, offsets in connection.execute(
            select(s.topic, s.kafka_partition, func.sum(s.end_offset - s.start_offset)).group_by(
                s.topic, s.kafka_partition
            )
        )
    }
    offsets = (t.next_offset, t.stable_offset, t.high_watermark)
    return [
        PartitionGauges(*row, skipped=skipped.get((row.topic, row.kafka_partition), 0))
        for row in connection.execute(
            select(t.topic, t.kafka_partition, *offsets, t.watermark_s, t.updated_at)
            .where(t.topic.not_like(f"{without_topics}%"))
            .order_by(t.topic, t.kafka_partition)
        )
    ]


def _dirty(connection: Connection) -> dict[tuple[str, str], Waiting]:
    t = schema.dirty.c
    return {
        (task, grain): Waiting(windows, oldest)
        for task, grain, windows, oldest in connection.execute(
            select(t.task, t.grain, func.count(), func.min(t.since)).group_by(t.task, t.grain)
        )
    }


def _outbox(connection: Connection) -> Waiting:
    t = schema.outbox
    # Two statements: the least of an index is at its end.
    windows = connection.execute(select(func.count()).select_from(t)).scalar_one()
    return Waiting(windows, connection.execute(select(func.min(t.c.since))).scalar_one())


def _files(connection: Connection) -> dict[tuple[str, bool], tuple[int, int]]:
    t = schema.files.c
    # Two statements, each of which an index answers alone; together they would read every row of a wide table.
    return {
        (kind, counts): (files, int(size_bytes))
        for counts, which in ((True, t.retired_at.is_(None)), (False, t.retired_at >= 0))
        for kind, files, size_bytes in connection.execute(
            select(t.kind, func.count(), func.sum(t.size_bytes)).where(which).group_by(t.kind)
        )
    }


def _windows(connection: Connection) -> dict[str, int]:
    t = schema.buckets.c
    return {
        grain: int(windows)
        for grain, windows in connection.execute(select(t.grain, func.sum(t.windows)).group_by(t.grain))
    }


def _newest_results(connection: Connection, grain: Grain, watermark_s: int | None) -> list[str]:
    t = schema.buckets.c
    reached = [] if watermark_s is None else [t.bucket_start_s <= watermark_s]
    return list(
        connection.execute(
            select(t.path)
            .where(t.grain == grain, *reached)
            .order_by(t.bucket_start_s.desc())
            .limit(RECENT_BUCKETS[grain])
        ).scalars()
    )


def _final_path(connection: Connection, watermark_s: int | None) -> str | None:
    t = schema.buckets.c
    if watermark_s is None:
        return None
    return connection.execute(
        select(t.path)
        .where(t.grain == Grain.MINUTE, t.bucket_start_s <= watermark_s, t.windows > t.provisional)
        .order_by(t.bucket_start_s.desc())
        .limit(1)
    ).scalar_one_or_none()
