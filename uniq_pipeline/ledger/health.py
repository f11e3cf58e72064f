"""What the checks and plots ask the ledger: recent batches, gaps between offsets, what waits too long, what is held."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, and_, func, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.batches import Kind
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.store import Ledger, sum_of
from uniq_pipeline.windows import HOUR_S, Grain

# Of how many batches the age of frames is looked up; more are only there after a backlog.
MOST_COMMITS = 120

# Named in a message; the rest is a number.
MOST_NAMED = 5


@dataclass(frozen=True)
class Recent:
    """Batches committed in `[since, now]`.

    commits   (committed at, records delivered, age of the oldest frames in seconds, where that is known)
    uneven    batches that hold more or fewer records than came, of whatever kind
    the sums  are of what was read from topics and files; came and kept of every kind
    """

    since: float
    commits: Sequence[tuple[float, int, float | None]] = ()
    batches: int = 0
    came: int = 0
    kept: int = 0
    delivered: int = 0
    frames: int = 0
    late: int = 0
    held: int = 0
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lateness: Counter[str] = field(default_factory=Counter)
    uneven: Sequence[str] = ()


@dataclass(frozen=True)
class Balance:
    """All batches ever: how many, what came and was kept or has expired, and those (at most five) where they differ."""

    batches: int
    came: int
    kept: int
    uneven: Sequence[str]


@dataclass(frozen=True)
class Gap:
    """Offsets [start_offset, end_offset) that no batch has, or that two have where `is_overlap`."""

    topic: str
    kafka_partition: int
    start_offset: int
    end_offset: int
    is_overlap: bool = False

    def __str__(self) -> str:
        what = "twice" if self.is_overlap else "in no batch"
        return (
            f"topic {self.topic}, topic partition {self.kafka_partition}: "
            f"offsets [{self.start_offset}, {self.end_offset}) {what}"
        )


@dataclass(frozen=True)
class Contiguity:
    """How many offset ranges were looked at, and where one does not begin at the end of the one before."""

    ranges: int
    gaps: Sequence[Gap]


def recent_batches(ledger: Ledger, since: float) -> Recent:
    """What was committed since then. Costs a row a batch."""
    batches = schema.batches
    with ledger.reading() as connection:
        rows = connection.execute(
            select(batches).where(batches.c.committed_at >= since).order_by(batches.c.committed_at)
        ).all()
        fronts = _front_before_s(connection, since, {row.batch_id for row in rows if row.kind == Kind.DRAIN})
    found = Counter[str]()
    reasons, lateness, uneven, commits = Counter[str](), Counter[str](), [], []
    for row in rows:
        came = row.delivered + row.admitted + row.withdrawn + row.replayed
        kept = row.frames + row.held + row.quarantined + row.expired
        found.update(came=came, kept=kept)
        if came != kept:
            uneven.append(f"{row.batch_id} ({came:,} came, {kept:,} kept)")
        if row.kind not in (Kind.DRAIN, Kind.INGEST):
            continue
        found.update({name: getattr(row, name) for name in ("delivered", "frames", "late", "held", "quarantined")})
        reasons.update(json.loads(row.reasons))
        lateness.update(json.loads(row.lateness))
        front_s = fronts.get(row.batch_id)
        commits.append((row.committed_at, row.delivered, None if front_s is None else row.committed_at - front_s))
    return Recent(
        since,
        commits,
        len(rows),
        **{name: found[name] for name in ("came", "kept", "delivered", "frames", "late", "held", "quarantined")},
        reasons=reasons,
        lateness=lateness,
        uneven=uneven[:MOST_NAMED],
    )


def _front_before_s(connection: Connection, since: float, batch_ids: set[str]) -> dict[str, int]:
    """Batch to the event front of its log before it, the furthest of its topic partitions."""
    parts, t = schema.topic_partitions, schema.batch_ranges
    fronts: dict[str, int] = {}
    for topic, topic_id, kafka_partition in connection.execute(
        select(parts.c.topic, parts.c.topic_id, parts.c.kafka_partition).where(parts.c.updated_at >= since)
    ).all():
        for batch_id, front_s in connection.execute(
            select(t.c.batch_id, t.c.front_s)
            .where(t.c.topic == topic, t.c.topic_id == topic_id, t.c.kafka_partition == kafka_partition)
            .order_by(t.c.start_offset.desc())
            .limit(min(len(batch_ids), MOST_COMMITS))
        ):
            if batch_id in batch_ids and front_s is not None:
                fronts[batch_id] = max(front_s, fronts.get(batch_id, front_s))
    return fronts


def balance(ledger: Ledger) -> Balance:
    """Reads every batch there ever was: a second a few million."""
    t = schema.batches.c
    came = t.delivered + t.admitted + t.withdrawn + t.replayed
    kept = t.frames + t.held + t.quarantined + t.expired
    with ledger.reading() as connection:
        batches, all_came, all_kept = connection.execute(select(func.count(), sum_of(came), sum_of(kept))).one()
        uneven = connection.execute(select(t.batch_id, came, kept).where(came != kept).limit(MOST_NAMED)).all()
    return Balance(batches, int(all_came), int(all_kept), [f"{name} ({c:,} came, {k:,} kept)" for name, c, k in uneven])


def newest_offsets(ledger: Ledger, topic: str, ranges: int) -> Contiguity:
    """Looks at the newest ranges of each topic partition of a topic, so many of each, and at where it goes on."""
    parts, t = schema.topic_partitions, schema.batch_ranges
    seen, gaps = 0, []
    with ledger.reading() as connection:
        for part in connection.execute(select(parts).where(parts.c.topic == topic)).all():
            newest = connection.execute(
                select(t.c.start_offset, t.c.end_offset)
                .where(
                    t.c.topic == topic,
                    t.c.topic_id == part.topic_id,
                    t.c.kafka_partition == part.kafka_partition,
                )
                .order_by(t.c.start_offset.desc())
                .limit(ranges)
            ).all()
            if not newest:
                continue  # nothing was read from it yet
            seen += len(newest)
            bounds = [(row.start_offset, row.end_offset) for row in reversed(newest)]
            for (_, end), start in zip(bounds, [*(start for start, _ in bounds[1:]), part.next_offset], strict=True):
                if start != end:
                    gaps.append(_gap(topic, part.kafka_partition, end, start))
        return Contiguity(seen, _not_skipped(connection, gaps))


def all_offsets(ledger: Ledger) -> Contiguity:
    """Looks at every range of every topic, in the database: a second a million."""
    t, parts = schema.batch_ranges, schema.topic_partitions
    log = (t.c.topic, t.c.topic_id, t.c.kafka_partition)
    before = func.lag(t.c.end_offset).over(partition_by=log, order_by=t.c.start_offset)
    ordered = select(t.c.topic, t.c.kafka_partition, t.c.start_offset, before.label("before")).subquery()
    ends = select(*log, func.max(t.c.end_offset).label("end")).group_by(*log).subquery()
    with ledger.reading() as connection:
        seen = connection.execute(select(func.count()).select_from(t)).scalar_one()
        gaps = [
            _gap(row.topic, row.kafka_partition, row.before, row.start_offset)
            for row in connection.execute(select(ordered).where(ordered.c.before != ordered.c.start_offset))
        ]
        gaps += [
            _gap(row.topic, row.kafka_partition, row.end, row.next_offset)
            for row in connection.execute(
                select(parts.c.topic, parts.c.kafka_partition, parts.c.next_offset, ends.c.end).join(
                    ends,
                    and_(
                        parts.c.topic == ends.c.topic,
                        parts.c.topic_id == ends.c.topic_id,
                        parts.c.kafka_partition == ends.c.kafka_partition,
                        parts.c.next_offset != ends.c.end,
                    ),
                )
            )
        ]
        return Contiguity(seen, _not_skipped(connection, gaps))


def _gap(topic: str, kafka_partition: int, end: int, start: int) -> Gap:
    return Gap(topic, kafka_partition, min(end, start), max(end, start), is_overlap=start < end)


def _not_skipped(connection: Connection, gaps: Sequence[Gap]) -> list[Gap]:
    """The gaps that nobody gave up; skipped ranges follow each other, so one gap may be several of them."""
    left = []
    for gap in gaps:
        t = schema.skipped
        at = gap.start_offset
        for start, end in connection.execute(
            select(t.c.start_offset, t.c.end_offset)
            .where(t.c.topic == gap.topic, t.c.kafka_partition == gap.kafka_partition, t.c.end_offset > at)
            .order_by(t.c.start_offset)
        ):
            at = max(at, end) if start <= at else at
        if gap.is_overlap or at < gap.end_offset:
            left.append(gap)
    return left


@dataclass(frozen=True)
class Waiting:
    """The bucket of some windows that have been waiting to be computed; `seq` is that of their newest mark."""

    grain: Grain
    bucket_start_s: int
    windows: int
    seq: int


def waiting_buckets(ledger: Ledger, marked_before: float, limit: int) -> list[Waiting]:
    """Buckets with windows marked before then, oldest first, of the finest grain that has any.

    Coarser windows are computed in the same run as what they are merged from, so they are not asked for beside it.
    """
    t = schema.dirty
    with ledger.reading() as connection:
        for grain in Grain:
            rows = connection.execute(
                select(t.c.bucket_start_s, func.count(), func.max(t.c.seq))
                .where(t.c.task == Task.COUNT, t.c.grain == grain, t.c.since < marked_before)
                .group_by(t.c.bucket_start_s)
                .order_by(t.c.bucket_start_s)
                .limit(limit)
            ).all()
            if rows:
                return [Waiting(grain, start_s, windows, seq) for start_s, windows, seq in rows]
    return []


def held_hours(ledger: Ledger, event_class: str, at_least: int, limit: int) -> list[tuple[int, int]]:
    """(hour, frames held for it) of one event class, oldest first."""
    t = schema.tallies
    # Minutes are whole and may lie before 1970, where SQL's % has another sign than Python's: summed here.
    hours: Counter[int] = Counter()
    with ledger.reading() as connection:
        for minute_s, records in connection.execute(
            select(t.c.minute_s, t.c.records).where(t.c.kind == "held", t.c.reason == event_class, t.c.records > 0)
        ):
            hours[minute_s - minute_s % HOUR_S] += records
    return sorted((hour, frames) for hour, frames in hours.items() if frames >= at_least)[:limit]


def newest_result_files(ledger: Ledger, grain: Grain, since_s: int, until_s: int) -> list[str]:
    """Result files of the buckets of a grain that overlap `[since_s, until_s)`, oldest first."""
    t = schema.buckets
    with ledger.reading() as connection:
        return list(
            connection.execute(
                select(t.c.path)
                .where(t.c.grain == grain, t.c.bucket_start_s < until_s, t.c.bucket_end_s > since_s)
                .order_by(t.c.bucket_start_s)
            ).scalars()
        )
