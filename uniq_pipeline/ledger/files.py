"""The files that count: naming new ones, retiring replaced ones, and which hold a span of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from sqlalchemy import Connection, select, update

from uniq_pipeline.errors import LostRace
from uniq_pipeline.lake import LakeFile
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.store import Ledger, in_chunks
from uniq_pipeline.windows import MINUTE_S, Grain


@dataclass(frozen=True)
class DataFile:
    """A new file with what the ledger says of it.

    hour_s    set for frames: the one event hour inside
    min_event_s, max_event_s  set for frames and held, inclusive
    rest_of   the file whose other rows were moved elsewhere; `batch_id` is then that of the batch which wrote them
    """

    kind: str
    file: LakeFile
    hour_s: int | None = None
    min_event_s: int | None = None
    max_event_s: int | None = None
    rest_of: str | None = None
    batch_id: str | None = None


@dataclass(frozen=True)
class MergedFile:
    """A file that compaction merged with others. rows_written: by its batch, moves may have taken some out."""

    path: str
    batch_id: str
    rest_of: str | None
    rows_written: int
    min_event_s: int | None
    max_event_s: int | None


def insert_merged(connection: Connection, compaction_id: str, files: Sequence[MergedFile]) -> None:
    """Notes what a compaction merged, within a transaction."""
    if files:
        connection.execute(
            schema.merged_files.insert(), [{"compaction_id": compaction_id, **vars(file)} for file in files]
        )


def file_row(data: DataFile, batch_id: str | None, now: float) -> dict:
    """The ledger's row of a new file; `batch_id` is that of the batch that writes it."""
    return {
        "path": data.file.path,
        "kind": data.kind,
        "rows": data.file.rows,
        "size_bytes": data.file.size_bytes,
        "sha256": data.file.sha256,
        "batch_id": data.batch_id or batch_id,
        "rest_of": data.rest_of,
        "hour_s": data.hour_s,
        "min_event_s": data.min_event_s,
        "max_event_s": data.max_event_s,
        "created_at": now,
        "retired_at": None,
    }


def retire(connection: Connection, paths: Sequence[str], now: float) -> None:
    """From now on these files do not count; gc removes them later, for readers that still hold them open."""
    table = schema.files
    for chunk in in_chunks(list(paths)):
        connection.execute(
            update(table).where(table.c.path.in_(chunk), table.c.retired_at.is_(None)).values(retired_at=now)
        )


def take_files(connection: Connection, paths: Sequence[str], kind: str, batch_id: str, now: float) -> None:
    """Retires files that a batch of this kind stands for. Raises LostRace when one of them no longer counts."""
    table, taken = schema.files, 0
    for chunk in in_chunks(list(paths)):
        taken += connection.execute(
            update(table).where(table.c.path.in_(chunk), table.c.retired_at.is_(None)).values(retired_at=now)
        ).rowcount
    if taken != len(paths):
        raise LostRace(
            f"lost race: {kind}: another run moved rows of the same files first; batch {batch_id} was dropped, nothing "
            f"of it counts"
        )


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


def live_files(ledger: Ledger, kind: str) -> list[str]:
    """All files of a kind that count: frames, held or quarantine."""
    table = schema.files
    with ledger.reading() as connection:
        return list(
            connection.execute(
                select(table.c.path)
                .where(table.c.kind == kind, table.c.retired_at.is_(None))
                .order_by(table.c.hour_s, table.c.path)
            ).scalars()
        )


def result_buckets(ledger: Ledger, grain: Grain) -> list[tuple[int, int, str]]:
    """(start, end, path) of every result file of a grain that counts, oldest first."""
    table = schema.buckets
    with ledger.reading() as connection:
        rows = connection.execute(
            select(table.c.bucket_start_s, table.c.bucket_end_s, table.c.path)
            .where(table.c.grain == grain)
            .order_by(table.c.bucket_start_s)
        )
        return [tuple(row) for row in rows]


def frames_by_hour(ledger: Ledger) -> list[tuple[int, int, str]]:
    """(event hour, rows, path) of every frames file that counts and is not empty, oldest first."""
    table = schema.files
    with ledger.reading() as connection:
        rows = connection.execute(
            select(table.c.hour_s, table.c.rows, table.c.path)
            .where(table.c.kind == "frames", table.c.retired_at.is_(None), table.c.hour_s.is_not(None))
            .order_by(table.c.hour_s, table.c.path)
        )
        return [tuple(row) for row in rows]


def files_with_events(ledger: Ledger, kind: str, start_s: int, end_s: int) -> list[str]:
    """The files of a kind (frames or held) that may hold event times in `[start_s, end_s)`, oldest first."""
    table = schema.files
    with ledger.reading() as connection:
        return list(
            connection.execute(
                select(table.c.path)
                .where(
                    table.c.kind == kind,
                    table.c.retired_at.is_(None),
                    table.c.rows > 0,
                    table.c.min_event_s < end_s,
                    table.c.max_event_s >= start_s,
                )
                .order_by(table.c.min_event_s, table.c.path)
            ).scalars()
        )


def files_with_rows(ledger: Ledger, kind: str) -> list[str]:
    """The files of a kind that count and are not empty, in the order they were written."""
    table = schema.files
    with ledger.reading() as connection:
        return list(
            connection.execute(
                select(table.c.path)
                .where(table.c.kind == kind, table.c.retired_at.is_(None), table.c.rows > 0)
                .order_by(table.c.created_at, table.c.path)
            ).scalars()
        )


def batches_in(ledger: Ledger, batch_id: str) -> list[str]:
    """The batches whose records a file has that names `batch_id`: that one, or those that a compaction merged."""
    return sorted({file.batch_id for file in merged_files(ledger, batch_id)}) or [batch_id]


def merged_files(ledger: Ledger, compaction_id: str) -> list[MergedFile]:
    """What the file of a compaction was merged of; nothing where the batch is no compaction, or its file is gone."""
    table = schema.merged_files
    columns = [table.c[field.name] for field in fields(MergedFile)]
    with ledger.reading() as connection:
        rows = connection.execute(select(*columns).where(table.c.compaction_id == compaction_id).order_by(table.c.path))
        return [MergedFile(*row) for row in rows]


def live_sizes(ledger: Ledger) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every file that counts."""
    table = schema.files
    with ledger.reading() as connection:
        for row in connection.execute(select(table.c.path, table.c.size_bytes).where(table.c.retired_at.is_(None))):
            yield row.path, row.size_bytes
