"""Totals: running sums of what batches brought and of what ticks took, so that nobody adds up all there ever were.

They change in the transaction that commits what they count, and only grow as long as nothing leaves (`late` is taken
off again by a withdrawal).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.store import Ledger, get_meta, set_meta, upsert

TICK = "tick"

# (name, label) -> how much is added
Amounts = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class TickNote:
    """How a tick that drained ended. `seconds` by stage; `failed_by` says what failed, None where nothing did."""

    seconds: Mapping[str, float]
    failed_by: str | None = None


@dataclass(frozen=True)
class LastTicks:
    """The last tick that ended, and when the last one ended in which nothing failed. None: there was none."""

    ended_at: float | None = None
    seconds: Mapping[str, float] | None = None
    good_ended_at: float | None = None


def add_totals(connection: Connection, kind: str, amounts: Amounts) -> None:
    """Adds to the sums of one kind, within a transaction. In order, so that two writers never wait for each other."""
    rows = [
        {"kind": kind, "name": name, "label": label, "amount": amount}
        for (name, label), amount in sorted(amounts.items())
        if amount
    ]
    upsert(connection, schema.totals, rows, add=["amount"])


def read_totals(connection: Connection) -> dict[tuple[str, str, str], int]:
    """(kind, name, label) -> sum."""
    t = schema.totals.c
    return {tuple(row[:3]): row.amount for row in connection.execute(select(t.kind, t.name, t.label, t.amount))}


def note_tick(ledger: Ledger, tick: TickNote) -> None:
    """Remembers that a tick ended, so that others see whether there still are any."""
    now = ledger.now()
    amounts = {("ticks", ""): 1, **{("ms", stage): round(1000 * s) for stage, s in tick.seconds.items()}}
    if tick.failed_by is not None:
        amounts["failed", tick.failed_by] = 1
    with ledger.writing() as connection:
        add_totals(connection, TICK, amounts)
        set_meta(connection, "last_tick", json.dumps({"ended_at": now, "seconds": dict(tick.seconds)}))
        if tick.failed_by is None:
            set_meta(connection, "last_good_tick_at", repr(now))


def last_ticks(connection: Connection) -> LastTicks:
    last, good = get_meta(connection, "last_tick"), get_meta(connection, "last_good_tick_at")
    return LastTicks(
        **(json.loads(last) if last is not None else {}), good_ended_at=None if good is None else float(good)
    )
