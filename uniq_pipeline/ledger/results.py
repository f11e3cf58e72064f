"""Committing computed windows: the result files that replace others, and the marks of their parents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, update
from sqlalchemy.exc import IntegrityError

from uniq_pipeline.errors import LostRace
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import LIVE, BucketWork, Task, clear, mark
from uniq_pipeline.ledger.files import DataFile, file_row, retire
from uniq_pipeline.ledger.store import Ledger, upsert
from uniq_pipeline.windows import Grain, Window, ancestors_of, bucket_of, parents_of

# Reasons that a person caused: the coarser windows changed for the same one. What came late to a minute may be
# the ordinary growth of its day.
PASSED_ON = frozenset({"backfill", "admitted", "withdrawn", "replayed", "redrained", "rebuilt", "repaired"})


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
    """A bucket with its new file, and the windows whose rows changed; without a file, nothing changed.

    windows, provisional  rows of the file, and how many of them are not final
    """

    work: BucketWork
    grain: Grain
    file: DataFile | None = None
    windows: int = 0
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
        _mark_above(connection, changed, zone, now)
        if publish:
            _put_in_outbox(connection, changed, zone, now)


def _replace_bucket(connection: Connection, commit: BucketCommit, file: DataFile, now: float) -> None:
    table, work = schema.buckets, commit.work
    key = (table.c.grain == commit.grain) & (table.c.bucket_start_s == work.bucket.start_s)
    state = {"version": work.version + 1, "path": file.file.path}
    state |= {"windows": commit.windows, "provisional": commit.provisional}
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


def _mark_above(connection: Connection, changed: Sequence[Revision], zone: ZoneInfo, now: float) -> None:
    """Parents are to be merged again, for the same reason, and uid sets above a changed minute to be rebuilt."""
    by_reason: dict[str, set[Window]] = defaultdict(set)
    for revision in changed:
        by_reason[revision.reason if revision.reason in PASSED_ON else LIVE].update(parents_of(revision.window, zone))
    stale_sets = {
        coarser
        for revision in changed
        if revision.window.grain is Grain.MINUTE and revision.answer_changed
        for coarser in ancestors_of(revision.window, zone)
    }
    for reason, parents in by_reason.items():
        mark(connection, Task.COUNT, parents, reason, zone, now)
    mark(connection, Task.SET, stale_sets, LIVE, zone, now)


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
