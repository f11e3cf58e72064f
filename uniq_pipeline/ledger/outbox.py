"""The outbox: windows whose current revision the results topic has not acknowledged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import bindparam, delete, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.store import Ledger, add_missing, in_chunks, upsert
from uniq_pipeline.windows import Window, bucket_of


@dataclass(frozen=True)
class OutboxEntry:
    """A window to publish, and the result file that holds its row now."""

    grain: str
    window_start_s: int
    bucket_start_s: int
    path: str


@dataclass(frozen=True)
class Sent:
    """What the topic has acknowledged of an entry."""

    entry: OutboxEntry
    revision: int


def next_entries(ledger: Ledger, limit: int, without: Collection[str] = ()) -> list[OutboxEntry]:
    """The oldest entries, with their files, in one snapshot; `without` those of a few files."""
    outbox, buckets = schema.outbox, schema.buckets
    with ledger.reading() as connection:
        return [
            OutboxEntry(*row)
            for row in connection.execute(
                select(outbox.c.grain, outbox.c.window_start_s, outbox.c.bucket_start_s, buckets.c.path)
                .join(
                    buckets,
                    (buckets.c.grain == outbox.c.grain) & (buckets.c.bucket_start_s == outbox.c.bucket_start_s),
                )
                .where(buckets.c.path.not_in(without))
                .order_by(outbox.c.since, outbox.c.window_start_s)
                .limit(limit)
            )
        ]


def put_again(ledger: Ledger, revisions: Sequence[tuple[Window, int]], zone: ZoneInfo) -> None:
    """Windows whose stored revision is to be sent, whether it was before or not."""
    now = ledger.now()
    rows = [
        {
            "grain": window.grain,
            "window_start_s": window.start_s,
            "bucket_start_s": bucket_of(window, zone).start_s,
            "revision": revision,
            "since": now,
        }
        for window, revision in revisions
    ]
    with ledger.writing() as connection:
        upsert(connection, schema.outbox, rows)


def clear_sent(ledger: Ledger, sent: Sequence[Sent]) -> None:
    """Removes entries that were acknowledged, unless a newer revision has come meanwhile.

    Where the result file was replaced since the entry was read, another run may have published the newer revision
    before our older one got there. A compacted topic would keep ours, the last: such windows are to be sent once more.
    """
    outbox, buckets, now = schema.outbox, schema.buckets, ledger.now()
    with ledger.writing() as connection:
        paths = {one.entry.path for one in sent}
        current = {
            path
            for some in in_chunks(sorted(paths))
            for path in connection.execute(select(buckets.c.path).where(buckets.c.path.in_(some))).scalars()
        }
        settled = [one for one in sent if one.entry.path in current]
        if settled:
            connection.execute(
                delete(outbox).where(
                    outbox.c.grain == bindparam("the_grain"),
                    outbox.c.window_start_s == bindparam("the_start"),
                    outbox.c.revision <= bindparam("the_revision"),
                ),
                [
                    {"the_grain": e.entry.grain, "the_start": e.entry.window_start_s, "the_revision": e.revision}
                    for e in settled
                ],
            )
        add_missing(
            connection,
            outbox,
            [
                {
                    "grain": one.entry.grain,
                    "window_start_s": one.entry.window_start_s,
                    "bucket_start_s": one.entry.bucket_start_s,
                    "revision": one.revision,
                    "since": now,
                }
                for one in sent
                if one.entry.path not in current
            ],
        )
