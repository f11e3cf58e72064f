"""What expired: spans of event time whose files are gone because they were kept long enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.store import Ledger, add_missing


@dataclass(frozen=True)
class Expired:
    """Files of `what` with event times in `[start_s, end_s)`."""

    what: str
    start_s: int
    end_s: int


def insert_expired(connection: Connection, span: Expired) -> None:
    """Notes a span, within a transaction."""
    add_missing(connection, schema.expired, [vars(span)])


class Spans:
    """Stretches of time, joined where they touch."""

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self.joined: list[tuple[int, int]] = []
        for start_s, end_s in sorted(spans):
            if self.joined and start_s <= self.joined[-1][1]:
                self.joined[-1] = self.joined[-1][0], max(end_s, self.joined[-1][1])
            else:
                self.joined.append((start_s, end_s))

    def __bool__(self) -> bool:
        return bool(self.joined)

    def overlap(self, start_s: int, end_s: int) -> bool:
        """Whether any of `[start_s, end_s)` is in them."""
        return any(first < end_s and start_s < last for first, last in self.joined)

    def cover(self, start_s: int, end_s: int) -> bool:
        """Whether all of `[start_s, end_s)` is in them."""
        return any(first <= start_s and end_s <= last for first, last in self.joined)


def expired_spans(ledger: Ledger, *whats: str) -> Spans:
    """Where files of any of these are gone."""
    table = schema.expired
    with ledger.reading() as connection:
        rows = connection.execute(select(table.c.start_s, table.c.end_s).where(table.c.what.in_(whats)))
        return Spans(tuple(row) for row in rows)


def all_expired(ledger: Ledger) -> Sequence[Expired]:
    table = schema.expired
    with ledger.reading() as connection:
        return [Expired(*row) for row in connection.execute(select(table).order_by(table.c.what, table.c.start_s))]
