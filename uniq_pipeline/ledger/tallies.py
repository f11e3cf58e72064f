"""Tallies: records that are in no window, by minute. Held ones by event minute, rejected ones by Kafka minute."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.store import Ledger, in_chunks, upsert
from uniq_pipeline.windows import HOUR_S, Grain

# (minute, event class or reject reason) -> records
Tally = Mapping[tuple[int, str], int]


def add_tallies(connection: Connection, held: Tally, rejected: Tally) -> list[int]:
    """Adds records to their minutes; returns the minutes that may have a window to show it."""
    rows = [
        {"minute_s": minute_s, "kind": kind, "reason": reason, "records": records}
        for kind, counts in (("held", held), ("rejected", rejected))
        for (minute_s, reason), records in counts.items()
    ]
    upsert(connection, schema.tallies, rows, add=["records"])
    minutes = sorted({row["minute_s"] for row in rows})
    buckets, dirty = schema.buckets, schema.dirty
    known_hours: set[int] = set()
    for hours in in_chunks(sorted({minute - minute % HOUR_S for minute in minutes})):
        # An hour without a result may be being counted right now: its marks tell.
        for has_window in (
            select(buckets.c.bucket_start_s).where(
                buckets.c.grain == Grain.MINUTE, buckets.c.bucket_start_s.in_(hours)
            ),
            select(dirty.c.bucket_start_s).where(
                dirty.c.task == Task.COUNT, dirty.c.grain == Grain.MINUTE, dirty.c.bucket_start_s.in_(hours)
            ),
        ):
            known_hours |= set(connection.execute(has_window).scalars())
    return [minute for minute in minutes if minute - minute % HOUR_S in known_hours]


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
