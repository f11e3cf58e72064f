"""Dirty marks: which windows are to be computed, and which uid sets to be rebuilt.

The order of reading is what makes it safe: bucket versions first, then dirty marks, then the file list. What
is committed by others after that either bumps the bucket's version (our commit is refused) or leaves a newer
dirty mark (the window is computed again).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, and_, bindparam, delete, or_, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.store import Ledger, count_rows, in_chunks, next_sequence, upsert
from uniq_pipeline.windows import BUCKET, Grain, Window, bucket_of, window_at

# The reason of marks that arriving frames set.
LIVE = "live"


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
class ProvisionalSpan:
    """Which provisional windows are computed again at every tick, marked or not.

    final_before_s  those that end at or before it: they are final now. None: none is
    recent_from_s, recent_until_s  those that start in this span, half-open: the newest
    """

    final_before_s: int | None
    recent_from_s: int = 0
    recent_until_s: int = 0


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
    """Marks windows within a transaction. A mark set again gets a new, larger `seq`.

    A reason that a person caused is kept until the window was computed, whatever arrives live meanwhile.
    """
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
        keep = {"reason"} if reason == LIVE else set()
        upsert(connection, schema.dirty, [{**row, "seq": seq} for row in rows], keep=keep)


def mark_for_count(ledger: Ledger, windows: Sequence[Window], reason: str, zone: ZoneInfo) -> None:
    """Marks windows to be computed again, in a transaction of its own."""
    if windows:
        with ledger.writing() as connection:
            mark(connection, Task.COUNT, windows, reason, zone, ledger.now())


def mark_for_sets(ledger: Ledger, windows: Sequence[Window], reason: str, zone: ZoneInfo) -> None:
    """Marks the uid sets of windows to be built again, in a transaction of its own."""
    if windows:
        with ledger.writing() as connection:
            mark(connection, Task.SET, windows, reason, zone, ledger.now())


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
    ledger: Ledger,
    grain: Grain,
    zone: ZoneInfo,
    *,
    limit: int,
    before_seq: int,
    provisional: ProvisionalSpan | None = None,
    without: Collection[int] = (),
) -> list[BucketWork]:
    """The next buckets of a grain with windows to compute: the newest, so that history does not hold back what is live.

    provisional  also those that may hold windows of this span that are not final yet
    before_seq   ignores later marks, so that a busy drain cannot keep one count going for ever
    without      starts of buckets that are left out: a few
    """
    dirty, buckets = schema.dirty, schema.buckets
    with ledger.reading() as connection:
        starts = set(
            connection.execute(
                select(dirty.c.bucket_start_s)
                .where(
                    dirty.c.task == Task.COUNT,
                    dirty.c.grain == grain,
                    dirty.c.seq <= before_seq,
                    dirty.c.bucket_start_s.not_in(without),
                )
                .distinct()
                .order_by(dirty.c.bucket_start_s.desc())
                .limit(limit)
            ).scalars()
        )
        if provisional is not None:
            starts |= set(
                connection.execute(
                    select(buckets.c.bucket_start_s).where(
                        buckets.c.grain == grain,
                        buckets.c.provisional > 0,
                        or_(
                            buckets.c.bucket_start_s < (provisional.final_before_s or 0),
                            and_(
                                buckets.c.bucket_start_s < provisional.recent_until_s,
                                buckets.c.bucket_end_s > provisional.recent_from_s,
                            ),
                        ),
                    )
                ).scalars()
            )
        work = []
        for chunk in in_chunks(sorted(starts.difference(without))):
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


def count_dirty(ledger: Ledger, task: Task, grain: Grain) -> int:
    """Windows of a grain that wait for a task."""
    table = schema.dirty
    with ledger.reading() as connection:
        return count_rows(connection, table, table.c.task == task, table.c.grain == grain)
