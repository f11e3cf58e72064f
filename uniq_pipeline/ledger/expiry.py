"""What expired: spans of event time whose files are gone because they were kept long enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, or_, select, update

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.files import retire
from uniq_pipeline.ledger.store import Ledger, add_missing, count_rows
from uniq_pipeline.spans import Spans
from uniq_pipeline.windows import HOUR_S, Grain, Window

# What computing a window of a grain reads, by the names of config.KEPT.
READ_BY_COUNT: Mapping[Grain, tuple[str, ...]] = {
    Grain.MINUTE: ("frames",),
    Grain.HOUR: ("minute_counts",),
    Grain.DAY: ("hour_counts",),
}
READ_BY_SET: Mapping[Grain, tuple[str, ...]] = {
    Grain.HOUR: ("frames",),
    Grain.DAY: ("hour_sets",),
    Grain.WEEK: ("day_sets",),
    Grain.MONTH: ("day_sets",),
    Grain.YEAR: ("month_sets",),
}

# Of a time whose frames or results are gone nothing can be counted any more: a frame for it is held.
CLOSES = ("frames", "minute_counts", "hour_counts")

_WEEK_S = 7 * 86_400


@dataclass(frozen=True)
class Expired:
    """Files of `what` with event times in `[start_s, end_s)`."""

    what: str
    start_s: int
    end_s: int


def insert_expired(connection: Connection, span: Expired) -> None:
    """Notes a span, within a transaction."""
    add_missing(connection, schema.expired, [vars(span)])


def expired_spans(ledger: Ledger, whats: Sequence[str]) -> Spans:
    """Where files of any of these are gone."""
    table = schema.expired
    if not whats:
        return Spans()
    with ledger.reading() as connection:
        rows = connection.execute(select(table.c.start_s, table.c.end_s).where(table.c.what.in_(whats)))
        return Spans(tuple(row) for row in rows)


def all_expired(ledger: Ledger) -> list[Expired]:
    table = schema.expired
    with ledger.reading() as connection:
        rows = connection.execute(select(table.c.what, table.c.start_s, table.c.end_s).order_by(table.c.start_s))
        return [Expired(*row) for row in rows]


def uncomputable(ledger: Ledger, grain: Grain) -> Callable[[Window], bool]:
    """Says of a window of a grain whether some of what it is computed from has expired."""
    gone = expired_spans(ledger, READ_BY_COUNT.get(grain, ()))
    edges = expired_spans(ledger, ("minute_counts",) if grain is Grain.DAY else ())

    def is_gone(window: Window) -> bool:
        cut = [bound - bound % HOUR_S for bound in (window.start_s, window.end_s) if bound % HOUR_S]
        return gone.overlap(window.start_s, window.end_s) or any(edges.overlap(h, h + HOUR_S) for h in cut)

    return is_gone


def is_settled(connection: Connection, needs: Sequence[tuple[Task, Grain]], start_s: int, end_s: int) -> bool:
    """Whether no window of these that overlaps `[start_s, end_s)` waits to be computed or published.

    Within a transaction.
    """
    table, outbox = schema.dirty, schema.outbox
    waits = or_(
        *(
            and_(
                table.c.task == task,
                table.c.grain == grain,
                # windows that start in the span; a week may start before it
                table.c.window_start_s >= start_s - (_WEEK_S if grain is Grain.WEEK else 0),
                table.c.window_start_s < end_s,
            )
            for task, grain in needs
        )
    )
    unsent = and_(outbox.c.window_start_s >= start_s, outbox.c.window_start_s < end_s)
    return count_rows(connection, table, waits) == 0 and count_rows(connection, outbox, unsent) == 0


def bucket_starts(ledger: Ledger, grain: Grain, before_s: int) -> list[int]:
    """Starts of the result files of a grain that begin before an instant, oldest first."""
    table = schema.buckets
    with ledger.reading() as connection:
        found = select(table.c.bucket_start_s).where(table.c.grain == grain, table.c.bucket_start_s < before_s)
        return list(connection.execute(found.order_by(table.c.bucket_start_s)).scalars())


def stored_set_starts(ledger: Ledger, grain: Grain, before_s: int) -> list[int]:
    """Starts of the windows of a grain before an instant that have a set of uids, oldest first."""
    table = schema.uid_sets
    with ledger.reading() as connection:
        found = select(table.c.window_start_s).where(
            table.c.grain == grain, table.c.window_start_s < before_s, table.c.path.is_not(None)
        )
        return list(connection.execute(found.order_by(table.c.window_start_s)).scalars())


def drop_results(connection: Connection, grain: Grain, start_s: int, end_s: int, now: float) -> list[str]:
    """Forgets the result files of buckets that start in `[start_s, end_s)`, within a transaction; returns them."""
    table = schema.buckets
    mine = and_(table.c.grain == grain, table.c.bucket_start_s >= start_s, table.c.bucket_start_s < end_s)
    paths = list(connection.execute(select(table.c.path).where(mine)).scalars())
    connection.execute(delete(table).where(mine))
    retire(connection, paths, now)
    return paths


def drop_sets(ledger: Ledger, span: Expired, needs: Sequence[tuple[Task, Grain]], grain: Grain) -> list[str]:
    """Drops the sets of windows that start in a span, but not how many users they had; returns their files.

    Does nothing while one of the windows waits to be computed.
    """
    table, now = schema.uid_sets, ledger.now()
    mine = and_(
        table.c.grain == grain,
        table.c.window_start_s >= span.start_s,
        table.c.window_start_s < span.end_s,
        table.c.path.is_not(None),
    )
    with ledger.writing() as connection:
        if not is_settled(connection, needs, span.start_s, span.end_s):
            return []
        paths = list(connection.execute(select(table.c.path).where(mine)).scalars())
        connection.execute(update(table).where(mine).values(path=None))
        retire(connection, paths, now)
        insert_expired(connection, span)
        return paths
