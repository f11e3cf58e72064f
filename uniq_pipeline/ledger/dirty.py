"""Dirty marks: which windows are to be computed, and which uid sets to be rebuilt.

The order of reading is what makes it safe: bucket versions first, then dirty marks, then the file list. What
is committed by others after that either bumps the bucket's version (our commit is refused) or leaves a newer
dirty mark (the window is computed again).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, bindparam, delete, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.store import Ledger, in_chunks, next_sequence, upsert
from uniq_pipeline.windows import BUCKET, Grain, Window, bucket_of, window_at


class Task(StrEnum):
    """What a mark asks for."""

    COUNT = "count"
    SET = "set"


@dataclass(frozen=True)
class DirtyMark:
    window_start_s: int
    seq: int
    reason: str


@dataclass(frozen=True)
class BucketWork:
    """A bucket that needs work, as the ledger showed it: version 0 and no path while it has no file."""

    bucket: Window
    version: int
    path: str | None
    marks: tuple[DirtyMark, ...] = ()


def mark(
    connection: Connection, task: Task, windows: Iterable[Window], reason: str, zone: ZoneInfo, now: float
) -> None:
    """Marks windows within a transaction. A mark set again gets a new, larger `seq`."""
    rows = [
        {
            "task": task,
            "grain": window.grain,
            "window_start_s": window.start_s,
            "bucket_start_s": bucket_of(window, zone).start_s,
            "reason": reason,
            "since": now,
        }
        for window in sorted(windows)
    ]
    if rows:
        seq = next_sequence(connection, "dirty")
        upsert(connection, schema.dirty, [{**row, "seq": seq} for row in rows])


def mark_for_count(ledger: Ledger, windows: Sequence[Window], reason: str, zone: ZoneInfo) -> None:
    """Marks windows to be computed again, in a transaction of its own."""
    if windows:
        with ledger.writing() as connection:
            mark(connection, Task.COUNT, windows, reason, zone, ledger.now())


def clear(connection: Connection, task: Task, grain: Grain, marks: Sequence[DirtyMark]) -> None:
    """Clears the marks that were seen, but none that was set again since."""
    if not marks:
        return
    table = schema.dirty
    connection.execute(
        delete(table).where(
            table.c.task == task,
            table.c.grain == grain,
            table.c.window_start_s == bindparam("the_start"),
            table.c.seq == bindparam("the_seq"),
        ),
        [{"the_start": seen.window_start_s, "the_seq": seen.seq} for seen in marks],
    )


def dirty_buckets(
    ledger: Ledger, grain: Grain, zone: ZoneInfo, *, limit: int, before_seq: int, with_provisional: bool
) -> list[BucketWork]:
    """The next buckets of a grain with windows to compute, oldest first.

    with_provisional  also those whose windows are not final yet (their status or to-date values may change)
    before_seq        ignores later marks, so that a busy drain cannot keep one count going for ever
    """
    dirty, buckets = schema.dirty, schema.buckets
    with ledger.reading() as connection:
        starts = set(
            connection.execute(
                select(dirty.c.bucket_start_s)
                .where(dirty.c.task == Task.COUNT, dirty.c.grain == grain, dirty.c.seq <= before_seq)
                .distinct()
                .order_by(dirty.c.bucket_start_s)
                .limit(limit)
            ).scalars()
        )
        if with_provisional:
            starts |= set(
                connection.execute(
                    select(buckets.c.bucket_start_s).where(buckets.c.grain == grain, buckets.c.provisional > 0)
                ).scalars()
            )
        work = []
        for chunk in in_chunks(sorted(starts)):
            versions = {
                row.bucket_start_s: row
                for row in connection.execute(
                    select(buckets).where(buckets.c.grain == grain, buckets.c.bucket_start_s.in_(chunk))
                )
            }
            marks: dict[int, list[DirtyMark]] = {start: [] for start in chunk}
            for row in connection.execute(
                select(dirty).where(
                    dirty.c.task == Task.COUNT, dirty.c.grain == grain, dirty.c.bucket_start_s.in_(chunk)
                )
            ):
                marks[row.bucket_start_s].append(DirtyMark(row.window_start_s, row.seq, row.reason))
            for start in chunk:
                known = versions.get(start)
                work.append(
                    BucketWork(
                        bucket=window_at(BUCKET[grain], start, zone),
                        version=known.version if known else 0,
                        path=known.path if known else None,
                        marks=tuple(marks[start]),
                    )
                )
    return work


def newest_seq(ledger: Ledger) -> int:
    table = schema.sequences
    with ledger.reading() as connection:
        value = connection.execute(select(table.c.value).where(table.c.name == "dirty")).scalar_one_or_none()
    return value or 0
