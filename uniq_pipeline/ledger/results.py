"""Committing computed windows: what is dirty, the result files that replace others, revisions, parents.

The order of reading is what makes it safe: bucket versions first, then dirty marks, then the file list. What
is committed by others after that either bumps the bucket's version (our commit is refused) or leaves a newer
dirty mark (the window is computed again).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError

from uniq_pipeline.errors import LostRace
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.drains import DataFile, file_row
from uniq_pipeline.ledger.store import Ledger, in_chunks, next_sequence, upsert
from uniq_pipeline.windows import (
    BUCKET,
    MINUTE_S,
    Grain,
    Window,
    ancestors_of,
    bucket_of,
    parents_of,
    window_at,
)


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


@dataclass(frozen=True)
class Revision:
    """The new state of one window whose row changed.

    `answer_changed` is false where only its status, or what is counted beside it (held, rejected), did.
    """

    window: Window
    revision: int
    frames: int
    unique_users: int | None
    estimate: float
    previous_unique_users: int | None
    previous_estimate: float | None
    status: str
    reason: str
    answer_changed: bool


@dataclass(frozen=True)
class BucketCommit:
    """A bucket with its new file, and the windows whose rows changed; without a file, nothing changed."""

    work: BucketWork
    grain: Grain
    file: DataFile | None = None
    provisional: int = 0
    revisions: Sequence[Revision] = ()


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
                .where(dirty.c.task == "count", dirty.c.grain == grain, dirty.c.seq <= before_seq)
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
                select(dirty).where(dirty.c.task == "count", dirty.c.grain == grain, dirty.c.bucket_start_s.in_(chunk))
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


def frame_files(ledger: Ledger, minutes_s: Sequence[int], hours_s: Sequence[int]) -> list[str]:
    """The frames files that may hold events of the minutes; `hours_s` are the hours of those minutes."""
    if not minutes_s:
        return []
    table = schema.files
    first, last = min(minutes_s), max(minutes_s) + MINUTE_S - 1
    paths: list[str] = []
    with ledger.reading() as connection:
        for chunk in in_chunks(sorted(hours_s)):
            paths += connection.execute(
                select(table.c.path).where(
                    table.c.kind == "frames",
                    table.c.retired_at.is_(None),
                    table.c.hour_s.in_(chunk),
                    table.c.min_event_s <= last,
                    table.c.max_event_s >= first,
                )
            ).scalars()
    return paths


def result_files(ledger: Ledger, grain: Grain, start_s: int, end_s: int) -> list[str]:
    """The result files of a grain whose buckets overlap `[start_s, end_s)`."""
    table = schema.buckets
    with ledger.reading() as connection:
        return list(
            connection.execute(
                select(table.c.path)
                .where(table.c.grain == grain, table.c.bucket_start_s < end_s, table.c.bucket_end_s > start_s)
                .order_by(table.c.bucket_start_s)
            ).scalars()
        )


def hours_with_data(ledger: Ledger, start_s: int, end_s: int) -> list[int]:
    """Starts of the hours in `[start_s, end_s)` that have frames, or minute results."""
    files, buckets = schema.files, schema.buckets
    with ledger.reading() as connection:
        hours = set(
            connection.execute(
                select(files.c.hour_s)
                .where(
                    files.c.kind == "frames",
                    files.c.retired_at.is_(None),
                    files.c.hour_s >= start_s,
                    files.c.hour_s < end_s,
                )
                .distinct()
            ).scalars()
        )
        hours |= set(
            connection.execute(
                select(buckets.c.bucket_start_s).where(
                    buckets.c.grain == Grain.MINUTE,
                    buckets.c.bucket_start_s >= start_s,
                    buckets.c.bucket_start_s < end_s,
                )
            ).scalars()
        )
    return sorted(hours)


def result_spans(ledger: Ledger, grain: Grain, start_s: int, end_s: int) -> list[tuple[int, int]]:
    """`[start, end)` of the buckets of a grain that overlap `[start_s, end_s)`."""
    table = schema.buckets
    with ledger.reading() as connection:
        return [
            tuple(row)
            for row in connection.execute(
                select(table.c.bucket_start_s, table.c.bucket_end_s)
                .where(table.c.grain == grain, table.c.bucket_start_s < end_s, table.c.bucket_end_s > start_s)
                .order_by(table.c.bucket_start_s)
            )
        ]


def mark_dirty(ledger: Ledger, windows: Sequence[Window], reason: str, zone: ZoneInfo) -> None:
    """Marks windows to be computed again."""
    if not windows:
        return
    now = ledger.now()
    with ledger.writing() as connection:
        seq = next_sequence(connection, "dirty")
        upsert(
            connection,
            schema.dirty,
            [
                {
                    "task": "count",
                    "grain": window.grain,
                    "window_start_s": window.start_s,
                    "bucket_start_s": bucket_of(window, zone).start_s,
                    "seq": seq,
                    "reason": reason,
                    "since": now,
                }
                for window in windows
            ],
        )


def tallies_between(ledger: Ledger, start_s: int, end_s: int) -> list[tuple[int, str, int]]:
    """(minute, held or rejected, records) of the minutes in `[start_s, end_s)`, one row a reason."""
    table = schema.tallies
    with ledger.reading() as connection:
        return [
            tuple(row)
            for row in connection.execute(
                select(table.c.minute_s, table.c.kind, table.c.records).where(
                    table.c.minute_s >= start_s, table.c.minute_s < end_s
                )
            )
        ]


def commit_buckets(ledger: Ledger, commits: Sequence[BucketCommit], zone: ZoneInfo, *, publish: bool) -> None:
    """Replaces result files, clears the marks that were seen, marks the parents: one transaction.

    With `publish` the changed windows go into the outbox in the same transaction.

    Raises LostRace when somebody else replaced one of the files meanwhile; nothing is kept then.
    """
    if not commits:
        return
    now = ledger.now()
    with ledger.writing() as connection:
        for commit in commits:
            if commit.file is not None:
                _replace_bucket(connection, commit, commit.file, now)
            _clear_marks(connection, commit)
        ledger.failpoint("count.in_commit")
        changed = [revision for commit in commits for revision in commit.revisions]
        _insert_revisions(connection, changed, now)
        _mark_above(connection, changed, zone, now)
        if publish:
            _put_in_outbox(connection, changed, zone, now)


def _replace_bucket(connection: Connection, commit: BucketCommit, file: DataFile, now: float) -> None:
    table, work = schema.buckets, commit.work
    key = (table.c.grain == commit.grain) & (table.c.bucket_start_s == work.bucket.start_s)
    state = {"version": work.version + 1, "path": file.file.path, "provisional": commit.provisional}
    try:
        if work.version == 0:
            connection.execute(
                table.insert().values(
                    grain=commit.grain,
                    bucket_start_s=work.bucket.start_s,
                    bucket_end_s=work.bucket.end_s,
                    **state,
                )
            )
            replaced = 1
        else:
            replaced = connection.execute(
                update(table).where(key, table.c.version == work.version).values(**state)
            ).rowcount
    except IntegrityError:
        replaced = 0
    if replaced == 0:
        raise LostRace(
            f"lost race: {commit.grain} results of {work.bucket}: another run stored version {work.version + 1} "
            f"first; ours was dropped, what is still dirty is computed again"
        )
    connection.execute(schema.files.insert(), file_row(file, None, now))
    if work.path is not None:
        retire(connection, [work.path], now)


def _clear_marks(connection: Connection, commit: BucketCommit) -> None:
    """Clears the marks that were seen, but none that was set again since."""
    if not commit.work.marks:
        return
    table = schema.dirty
    connection.execute(
        delete(table).where(
            table.c.task == "count",
            table.c.grain == commit.grain,
            table.c.window_start_s == bindparam("the_start"),
            table.c.seq == bindparam("the_seq"),
        ),
        [{"the_start": mark.window_start_s, "the_seq": mark.seq} for mark in commit.work.marks],
    )


def retire(connection: Connection, paths: Sequence[str], now: float) -> None:
    """From now on these files do not count; gc removes them later, for readers that still hold them open."""
    table = schema.files
    for chunk in in_chunks(list(paths)):
        connection.execute(
            update(table).where(table.c.path.in_(chunk), table.c.retired_at.is_(None)).values(retired_at=now)
        )


def _insert_revisions(connection: Connection, revisions: Sequence[Revision], now: float) -> None:
    if not revisions:
        return
    table = schema.revisions
    # While a window is provisional only its newest revision is worth keeping: a year has half a million.
    connection.execute(
        delete(table).where(
            table.c.grain == bindparam("the_grain"),
            table.c.window_start_s == bindparam("the_start"),
            table.c.status == "provisional",
        ),
        [{"the_grain": r.window.grain, "the_start": r.window.start_s} for r in revisions],
    )
    connection.execute(
        table.insert(),
        [
            {
                "grain": revision.window.grain,
                "window_start_s": revision.window.start_s,
                "revision": revision.revision,
                "frames": revision.frames,
                "unique_users": revision.unique_users,
                "estimate": revision.estimate,
                "previous_unique_users": revision.previous_unique_users,
                "previous_estimate": revision.previous_estimate,
                "status": revision.status,
                "reason": revision.reason,
                "computed_at": now,
            }
            for revision in revisions
        ],
    )


def _mark_above(connection: Connection, changed: Sequence[Revision], zone: ZoneInfo, now: float) -> None:
    """Parents are to be merged again, and uid sets above a changed minute to be rebuilt."""
    if not changed:
        return
    seq = next_sequence(connection, "dirty")
    parents = {parent for revision in changed for parent in parents_of(revision.window, zone)}
    stale_sets = {
        coarser
        for revision in changed
        if revision.window.grain is Grain.MINUTE and revision.answer_changed
        for coarser in ancestors_of(revision.window, zone)
    }
    rows = [
        {
            "task": task,
            "grain": window.grain,
            "window_start_s": window.start_s,
            "bucket_start_s": bucket_of(window, zone).start_s,
            "seq": seq,
            "reason": "live",
            "since": now,
        }
        for task, windows in (("count", parents), ("set", stale_sets))
        for window in sorted(windows)
    ]
    upsert(connection, schema.dirty, rows)


def _put_in_outbox(connection: Connection, revisions: Sequence[Revision], zone: ZoneInfo, now: float) -> None:
    upsert(
        connection,
        schema.outbox,
        [
            {
                "grain": revision.window.grain,
                "window_start_s": revision.window.start_s,
                "bucket_start_s": bucket_of(revision.window, zone).start_s,
                "revision": revision.revision,
                "since": now,
            }
            for revision in revisions
        ],
    )
