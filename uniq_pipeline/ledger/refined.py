"""What is still to be sent to the refined topic: files of frames, each with how far it was sent.

A file comes in with the transaction that commits it, so nothing is sent that was not accepted, and nothing is left out.
An entry names a file that counts: where a move takes rows out of one that waits, its entry passes to what is left of
it; compaction and expiry leave it alone until it was sent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update

from uniq_pipeline.errors import LostRace
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.batches import Batch, Kind
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.store import Ledger, count_rows, get_meta, in_chunks, set_meta, upsert


@dataclass(frozen=True)
class UnsentFile:
    """A file whose rows from `sent_rows` on are to be sent.

    revision   0 where its frames were read from their log for the first time; of two messages about one frame the one
               with the higher revision is the newer
    withdrawn  its rows are frames that do not count any more
    """

    path: str
    rows: int
    sent_rows: int
    revision: int
    withdrawn: bool


@dataclass(frozen=True)
class Backlog:
    """Frames that wait to be sent, and since when (wall-clock time)."""

    frames: int = 0
    files: int = 0
    since: float | None = None


def note_read(connection: Connection, batch: Batch, proved: bool, now: float) -> None:
    """Frames that a batch read from its log are to be sent, within its transaction.

    proved  some were held by earlier batches, so that something may have been said of them before
    """
    revision = _next_revision(connection, now) if proved else 0
    _insert(connection, [data for data in batch.files if data.kind == "frames"], revision, now)


def note_moved(connection: Connection, batch: Batch, taken: Sequence[str], is_on: bool, now: float) -> None:
    """What a move changed is to be sent, within its transaction; what waited is what is left of it.

    is_on  frames that are accepted from now on are to be sent; those of files that waited are in any case
    """
    table = schema.refined_outbox
    waited = {row.path: row for paths in in_chunks(list(taken)) for row in _rows(connection, table.c.path.in_(paths))}
    for paths in in_chunks(list(waited)):
        connection.execute(delete(table).where(table.c.path.in_(paths)))
    for data in batch.files:
        if data.rest_of in waited:
            before = waited[data.rest_of]
            _insert(connection, [data], before.revision, before.since)
    new = [data for data in batch.files if data.rest_of is None]
    wanted = ("frames", "held") if batch.kind is Kind.WITHDRAW else ("frames",)
    if is_on or waited:
        files = [data for data in new if data.kind in wanted]
        _insert(connection, files, _next_revision(connection, now) if files else 0, now)


def refuse_unsent(connection: Connection, paths: Sequence[str], batch_id: str) -> None:
    """Raises LostRace when one of these files waits to be sent, within a transaction."""
    table = schema.refined_outbox
    for some in in_chunks(list(paths)):
        if count_rows(connection, table, table.c.path.in_(some)):
            raise LostRace(
                f"lost race: frames wait to be sent to the refined topic; batch {batch_id} was dropped, nothing of it "
                f"counts. They are sent by the next tick with UNIQ_REFINED_TOPIC set; see `uniq-pipeline status`"
            )


def _next_revision(connection: Connection, now: float) -> int:
    """Higher than any before: milliseconds since 1970, so that it stays so when a lost ledger is made anew."""
    revision = max(int(get_meta(connection, "refined_revision") or 0) + 1, int(now * 1000))
    set_meta(connection, "refined_revision", str(revision))
    return revision


def _insert(connection: Connection, files: Sequence[DataFile], revision: int, since: float) -> None:
    upsert(
        connection,
        schema.refined_outbox,
        [
            {
                "path": data.file.path,
                "rows": data.file.rows,
                "sent_rows": 0,
                "revision": revision,
                "withdrawn": data.kind == "held",
                "since": since,
            }
            for data in files
            if data.file.rows
        ],
    )


def _rows(connection: Connection, *where: Any) -> Sequence[Any]:
    return connection.execute(select(schema.refined_outbox).where(*where)).all()


def unsent_files(ledger: Ledger, limit: int, without: Collection[str] = ()) -> list[UnsentFile]:
    """Those that have waited longest; `without` a few."""
    table = schema.refined_outbox
    columns = [table.c[name] for name in UnsentFile.__dataclass_fields__]
    with ledger.reading() as connection:
        return [
            UnsentFile(*row)
            for row in connection.execute(
                select(*columns).where(table.c.path.not_in(without)).order_by(table.c.since, table.c.path).limit(limit)
            )
        ]


def unsent_paths(ledger: Ledger) -> set[str]:
    with ledger.reading() as connection:
        return set(connection.execute(select(schema.refined_outbox.c.path)).scalars())


def note_sent(ledger: Ledger, sent_rows: Mapping[str, int]) -> None:
    """How many rows of each file the topic has acknowledged; a file that has no others is done with."""
    table = schema.refined_outbox
    with ledger.writing() as connection:
        connection.execute(
            update(table)
            .where(table.c.path == bindparam("the_path"), table.c.sent_rows < bindparam("the_rows"))
            .values(sent_rows=bindparam("the_rows")),
            [{"the_path": path, "the_rows": rows} for path, rows in sent_rows.items()],
        )
        for paths in in_chunks(list(sent_rows)):
            connection.execute(delete(table).where(table.c.path.in_(paths), table.c.sent_rows >= table.c.rows))


def forget_unsent(ledger: Ledger) -> Backlog:
    """Gives up what waits; returns what that was."""
    with ledger.writing() as connection:
        given_up = backlog(connection)
        connection.execute(delete(schema.refined_outbox))
    return given_up


def whole_backlog(ledger: Ledger) -> Backlog:
    with ledger.reading() as connection:
        return backlog(connection)


def backlog(connection: Connection) -> Backlog:
    """What waits, within a transaction."""
    table = schema.refined_outbox
    frames = func.coalesce(func.sum(table.c.rows - table.c.sent_rows), 0)
    found, files, since = connection.execute(select(frames, func.count(), func.min(table.c.since))).one()
    return Backlog(int(found), files, since)
