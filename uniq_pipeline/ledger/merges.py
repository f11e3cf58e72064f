"""Committing merges: files that one new file replaces, in one transaction, or nothing at all.

Compaction merges what the files hold; expiry keeps only what their footers say, for the rebuild of a lost ledger.
Neither makes a window dirty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select, update

from uniq_pipeline.errors import LostRace
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.batches import Batch, Kind, insert_batch
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.expiry import Expired, drop_results, insert_expired, is_settled
from uniq_pipeline.ledger.files import MergedFile, insert_merged, take_files
from uniq_pipeline.ledger.refined import refuse_unsent
from uniq_pipeline.ledger.store import Ledger, in_chunks
from uniq_pipeline.windows import Grain, iso


@dataclass(frozen=True)
class MergeCommit:
    """Everything one merge changes.

    batch    of kind compact or expire, with its one file
    taken    the files it stands for; each must still count
    merged   files of batches whose records the new file has; empty where it has none
    expired  the span whose files are gone with it
    needs    tasks that must not wait within that span
    results  the grain whose result files of that span go
    """

    batch: Batch
    taken: Sequence[str]
    merged: Sequence[MergedFile] = ()
    expired: Expired | None = None
    needs: Sequence[tuple[Task, Grain]] = ()
    results: Grain | None = None


def commit_merge(ledger: Ledger, commit: MergeCommit) -> int:
    """Returns how many files do not count any more.

    Raises LostRace when one of the files no longer counts, or something is to be computed or sent from them.
    """
    batch, now = commit.batch, ledger.now()
    with ledger.writing() as connection:
        refuse_unsent(connection, commit.taken, batch.batch_id)
        retired = len(commit.taken)
        if commit.expired is not None:
            retired += _expire(connection, commit, commit.expired, now)
        _note_first_events(connection, commit.taken)
        _forget_merged(connection, commit.taken)
        take_files(connection, commit.taken, batch.kind, batch.batch_id, now)
        ledger.failpoint("merge.in_commit")
        insert_batch(connection, batch, now)
        insert_merged(connection, batch.batch_id, commit.merged)
    return retired


def _expire(connection: Connection, commit: MergeCommit, span: Expired, now: float) -> int:
    if not is_settled(connection, commit.needs, span.start_s, span.end_s):
        raise LostRace(
            f"lost race: {span.what} from {iso(span.start_s)} to {iso(span.end_s)} are needed again; nothing expired"
        )
    dropped: list[str] = []
    if commit.results is not None:
        dropped = drop_results(connection, commit.results, span.start_s, span.end_s, now)
    insert_expired(connection, span)
    return len(dropped)


def _note_first_events(connection: Connection, taken: Sequence[str]) -> None:
    """Where a log had no front before its first batch, what that batch counted first stands in (see moves.contexts)."""
    ranges, files = schema.batch_ranges, schema.files
    first = (
        select(func.min(files.c.min_event_s))
        .where(files.c.batch_id == ranges.c.batch_id, files.c.kind == "frames", files.c.retired_at.is_(None))
        .scalar_subquery()
    )
    for paths in in_chunks(list(taken)):
        connection.execute(
            update(ranges)
            .where(
                ranges.c.front_s.is_(None),
                ranges.c.bound_s.is_not(None),
                ranges.c.batch_id.in_(select(files.c.batch_id).where(files.c.path.in_(paths))),
            )
            .values(front_s=first)
        )


def _forget_merged(connection: Connection, taken: Sequence[str]) -> None:
    """Drops what the compacted files among those taken were merged of; a compaction has one file."""
    merged, files = schema.merged_files, schema.files
    for paths in in_chunks(list(taken)):
        connection.execute(
            delete(merged).where(
                merged.c.compaction_id.in_(select(files.c.batch_id).where(files.c.path.in_(paths))),
            )
        )


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A data file that counts. `is_merged` says that it stands for those of many batches."""

    path: str
    rows: int
    size_bytes: int
    batch_id: str
    hour_s: int | None
    min_event_s: int | None
    max_event_s: int | None
    created_at: float
    is_merged: bool


def live_data_files(ledger: Ledger, kinds: Sequence[str] = ("frames", "held", "quarantine")) -> list[LiveFile]:
    """All files of these kinds that count and were not emptied by expiry, in order of their names."""
    files, batches = schema.files, schema.batches
    columns = [files.c[name] for name in LiveFile.__slots__ if name != "is_merged"]
    with ledger.reading() as connection:
        return [
            LiveFile(*row[:-1], is_merged=row[-1] == Kind.COMPACT)
            for row in connection.execute(
                select(*columns, batches.c.kind)
                .join(batches, batches.c.batch_id == files.c.batch_id)
                .where(files.c.kind.in_(kinds), files.c.retired_at.is_(None), batches.c.kind != Kind.EXPIRE)
                .order_by(files.c.path)
            )
        ]
