"""Committing computed windows: the result files that replace others, their revisions, the marks of their parents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, bindparam, delete, update
from sqlalchemy.exc import IntegrityError

from uniq_pipeline.errors import LostRace
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import BucketWork, Task, clear, mark
from uniq_pipeline.ledger.files import DataFile, file_row, retire
from uniq_pipeline.ledger.store import Ledger, upsert
from uniq_pipeline.windows import Grain, Window, ancestors_of, bucket_of, parents_of


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
    estimate_lower: float
    estimate_upper: float
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
            clear(connection, Task.COUNT, commit.grain, commit.work.marks)
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
    parents = {parent for revision in changed for parent in parents_of(revision.window, zone)}
    stale_sets = {
        coarser
        for revision in changed
        if revision.window.grain is Grain.MINUTE and revision.answer_changed
        for coarser in ancestors_of(revision.window, zone)
    }
    mark(connection, Task.COUNT, parents, "live", zone, now)
    mark(connection, Task.SET, stale_sets, "live", zone, now)


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
