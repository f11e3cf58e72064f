"""What an audit asks the ledger: is it right by itself, and what does it say of the lake?

Each function reads one snapshot, so that a pipeline at work beside it is never half seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, case, exists, func, or_, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.places import DATA_KINDS, LOG_KINDS
from uniq_pipeline.ledger.store import Ledger, in_chunks, sum_of
from uniq_pipeline.windows import Grain

PAGE = 2_000


@dataclass(frozen=True)
class RangeFault:
    """What is wrong with offsets of a topic partition: a gap, an overlap, or another end than the ledger stands at."""

    topic: str
    kafka_partition: int
    start_offset: int
    end_offset: int
    what: str


def range_faults(ledger: Ledger) -> tuple[int, list[RangeFault]]:
    """(ranges looked at, faults): ranges follow each other up to the next offset to drain, but for what was skipped."""
    ranges, parts, skipped = schema.batch_ranges, schema.topic_partitions, schema.skipped
    faults: list[RangeFault] = []
    looked_at = 0
    with ledger.reading() as connection:
        given_up: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for row in connection.execute(select(skipped).order_by(skipped.c.start_offset)):
            given_up.setdefault((row.topic, row.kafka_partition), []).append((row.start_offset, row.end_offset))
        stands = {
            (row.topic, row.topic_id, row.kafka_partition): row.next_offset for row in connection.execute(select(parts))
        }
        log: tuple[str, str, int] | None = None
        at = 0

        def end(log: tuple[str, str, int], at: int) -> None:
            next_offset = stands.get(log)
            if next_offset is None:
                return  # of a topic that was recreated: nothing goes on there
            if next_offset < at:
                faults.append(RangeFault(log[0], log[2], next_offset, at, "were read, and would be read again"))
            else:
                gap(log, at, next_offset)

        def gap(log: tuple[str, str, int], start: int, end: int) -> None:
            for first, after in given_up.get((log[0], log[2]), ()):
                if first <= start < after:
                    start = after
            if start < end:
                faults.append(RangeFault(log[0], log[2], start, end, "are in no batch and were not skipped"))

        rows = connection.execution_options(yield_per=PAGE).execute(
            select(
                ranges.c.topic, ranges.c.topic_id, ranges.c.kafka_partition, ranges.c.start_offset, ranges.c.end_offset
            ).order_by(ranges.c.topic, ranges.c.topic_id, ranges.c.kafka_partition, ranges.c.start_offset)
        )
        for row in rows:
            looked_at += 1
            this = row.topic, row.topic_id, row.kafka_partition
            if this != log:
                if log is not None:
                    end(log, at)
                log, at = this, row.start_offset
            if row.start_offset > at:
                gap(this, at, row.start_offset)
            elif row.start_offset < at:
                faults.append(
                    RangeFault(
                        row.topic, row.kafka_partition, row.start_offset, min(at, row.end_offset), "are in two batches"
                    )
                )
            at = max(at, row.end_offset)
        if log is not None:
            end(log, at)
    return looked_at, faults


@dataclass(frozen=True)
class Sums:
    """Records by kind: what all batches together say there must be (least, most), and rows of the files that count.

    A held frame that its log proved may still have its row in held/, or not any more.
    """

    kind: str
    least: int
    most: int
    rows: int


def conservation(ledger: Ledger) -> tuple[int, list[str], list[Sums]]:
    """(batches looked at, those that do not add up, sums by kind)."""
    batches, ranges, files = schema.batches, schema.batch_ranges, schema.files
    came = batches.c.delivered + batches.c.admitted + batches.c.withdrawn + batches.c.replayed
    kept = batches.c.frames + batches.c.held + batches.c.quarantined + batches.c.expired
    is_log = batches.c.kind.in_(LOG_KINDS)
    read = (select(sum_of(ranges.c.records)).where(ranges.c.batch_id == batches.c.batch_id)).scalar_subquery()
    names = ("frames", "held", "quarantined", "withdrawn", "admitted", "replayed")
    with ledger.reading() as connection:
        wrong = list(
            connection.execute(
                # of a topic that was forgotten, ranges may be gone
                select(batches.c.batch_id).where(
                    or_(came != kept, and_(is_log, batches.c.delivered != read, read != 0))
                )
            ).scalars()
        )
        total = connection.execute(
            select(
                func.count(),
                *(sum_of(batches.c[name]) for name in names),
                sum_of(case((is_log, batches.c.admitted), else_=0)),
            )
        ).one()
        rows = dict(
            connection.execute(
                select(files.c.kind, sum_of(files.c.rows)).where(files.c.retired_at.is_(None)).group_by(files.c.kind)
            ).all()
        )
    looked_at, frames, held, quarantined, withdrawn, admitted, replayed, proved = map(int, total)
    return (
        looked_at,
        wrong,
        [
            Sums("frames", frames - withdrawn, frames - withdrawn, int(rows.get("frames", 0))),
            Sums("held", held - admitted, held - admitted + proved, int(rows.get("held", 0))),
            Sums("quarantine", quarantined - replayed, quarantined - replayed, int(rows.get("quarantine", 0))),
        ],
    )


@dataclass(frozen=True)
class LiveFile:
    """A file that counts, as the ledger has it."""

    path: str
    kind: str
    rows: int
    size_bytes: int
    sha256: str
    hour_s: int | None
    min_event_s: int | None
    max_event_s: int | None


_LIVE = [schema.files.c[name] for name in LiveFile.__dataclass_fields__]


def pages_of_live_files(ledger: Ledger) -> Iterator[list[LiveFile]]:
    """All files that count, some at a time, each page as of its moment."""
    files, last = schema.files, ""
    while True:
        with ledger.reading() as connection:
            page = [
                LiveFile(*row)
                for row in connection.execute(
                    select(*_LIVE)
                    .where(files.c.retired_at.is_(None), files.c.path > last)
                    .order_by(files.c.path)
                    .limit(PAGE)
                )
            ]
        if not page:
            return
        yield page
        last = page[-1].path


def live_totals(ledger: Ledger) -> tuple[int, int, int]:
    """(files, bytes, rows of data files) that count."""
    files = schema.files
    is_data = case((files.c.kind.in_(DATA_KINDS), files.c.rows), else_=0)
    with ledger.reading() as connection:
        found = connection.execute(
            select(func.count(), sum_of(files.c.size_bytes), sum_of(is_data)).where(files.c.retired_at.is_(None))
        ).one()
    return int(found[0]), int(found[1]), int(found[2])


def still_live(ledger: Ledger, path: str) -> bool:
    """Whether a file counts at this moment."""
    files = schema.files
    with ledger.reading() as connection:
        found = select(files.c.path).where(files.c.path == path, files.c.retired_at.is_(None))
        return connection.execute(found).first() is not None


def unknown_among(ledger: Ledger, paths: Sequence[str]) -> list[str]:
    """Those that the ledger has no row of."""
    files = schema.files
    with ledger.reading() as connection:
        known = {
            path
            for chunk in in_chunks(paths)
            for path in connection.execute(select(files.c.path).where(files.c.path.in_(chunk))).scalars()
        }
    return [path for path in paths if path not in known]


def name_faults(ledger: Ledger) -> tuple[int, list[tuple[str, str]]]:
    """(names looked at, (file, what is wrong)): buckets and uid sets name live files, each once, of as many rows."""
    files, buckets, sets = schema.files, schema.buckets, schema.uid_sets
    faults: list[tuple[str, str]] = []
    with ledger.reading() as connection:
        looked_at = 0
        for table, what in ((buckets, "result"), (sets, "uid set")):
            named = table.c.path.is_not(None)  # a uid set that expired names no file
            looked_at += connection.execute(select(func.count()).select_from(table).where(named)).scalar_one()
            live = exists().where(files.c.path == table.c.path, files.c.retired_at.is_(None))
            for path in connection.execute(select(table.c.path).where(named, ~live)).scalars():
                faults.append((path, f"is named as a {what} but does not count"))
        for table, kind in ((buckets, "result"), (sets, "uid_set")):
            named = exists().where(table.c.path == files.c.path)
            unnamed = select(files.c.path).where(files.c.kind == kind, files.c.retired_at.is_(None), ~named)
            for path in connection.execute(unnamed).scalars():
                faults.append((path, "counts, but no window names it"))
        other_rows = select(buckets.c.path, buckets.c.windows, files.c.rows).join(files, files.c.path == buckets.c.path)
        for row in connection.execute(other_rows.where(buckets.c.windows != files.c.rows)):
            faults.append((row.path, f"has {row.rows} windows, its bucket says {row.windows}"))
    return looked_at, faults


def hours_not_counted(ledger: Ledger) -> list[int]:
    """Hours that have frames, but neither a minute result nor a mark that says one is due."""
    files, buckets, dirty = schema.files, schema.buckets, schema.dirty
    with ledger.reading() as connection:
        return list(
            connection.execute(
                select(files.c.hour_s)
                .where(
                    files.c.kind == "frames",
                    files.c.retired_at.is_(None),
                    files.c.rows > 0,
                    ~exists().where(buckets.c.grain == Grain.MINUTE, buckets.c.bucket_start_s == files.c.hour_s),
                    ~exists().where(
                        dirty.c.task == Task.COUNT,
                        dirty.c.grain == Grain.MINUTE,
                        dirty.c.bucket_start_s == files.c.hour_s,
                    ),
                )
                .distinct()
                .order_by(files.c.hour_s)
            ).scalars()
        )


def old_marks(ledger: Ledger, before: float) -> tuple[int, float | None]:
    """Windows marked to be computed since before this moment, and since when the oldest is."""
    dirty = schema.dirty
    with ledger.reading() as connection:
        count, since = connection.execute(
            select(func.count(), func.min(dirty.c.since)).where(dirty.c.task == Task.COUNT, dirty.c.since < before)
        ).one()
    return int(count), since
