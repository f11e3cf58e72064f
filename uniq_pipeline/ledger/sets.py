"""Distinct-uid sets of closed windows: which are stale, and their exact counts."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import Exists, and_, delete, exists, select, update
from sqlalchemy.exc import IntegrityError

from uniq_pipeline.errors import LostRace
from uniq_pipeline.ledger import schema
from uniq_pipeline.ledger.dirty import LIVE, DirtyMark, Task, clear, mark
from uniq_pipeline.ledger.files import DataFile, file_row, retire
from uniq_pipeline.ledger.store import Ledger
from uniq_pipeline.windows import CHILD, Grain, Window, window_at


@dataclass(frozen=True)
class SetWork:
    """A closed window whose uid set is missing or out of date; version 0 and no path while it has none."""

    window: Window
    version: int
    path: str | None
    seq: int


@dataclass(frozen=True)
class ExactUsers:
    """Different users of a window; `by_value` of the most frequent values: dimension -> value -> users."""

    users: int
    by_value: Mapping[str, Mapping[str, int]] | None = None


def stale_sets(ledger: Ledger, grain: Grain, zone: ZoneInfo, closed_before_s: int) -> list[SetWork]:
    """Windows of a grain that ended at or before `closed_before_s` and whose sets are to be (re)built.

    Those with a stale set of the finer grain inside are left for later: put together from it they would look up to
    date, and nothing would say that they are not. A finer set that becomes stale from now on renews their marks.
    """
    dirty, sets, child = schema.dirty, schema.uid_sets, CHILD[grain]
    with ledger.reading() as connection:
        # versions are read before marks are (see ledger.results); one statement reads both at once
        rows = connection.execute(
            select(dirty.c.window_start_s, dirty.c.seq, sets.c.version, sets.c.path)
            .outerjoin_from(
                dirty,
                sets,
                and_(sets.c.grain == dirty.c.grain, sets.c.window_start_s == dirty.c.window_start_s),
            )
            .where(dirty.c.task == Task.SET, dirty.c.grain == grain, dirty.c.window_start_s < closed_before_s)
            .order_by(dirty.c.window_start_s)
        ).all()
        stale_children = connection.execute(
            select(dirty.c.window_start_s).where(
                dirty.c.task == Task.SET, dirty.c.grain == child, dirty.c.window_start_s < closed_before_s
            )
        ).scalars()
        stale = [window_at(child, start_s, zone) for start_s in sorted(stale_children)]
    works = [SetWork(window_at(grain, row.window_start_s, zone), row.version or 0, row.path, row.seq) for row in rows]
    return [work for work in works if work.window.end_s <= closed_before_s and not _lies_in(work.window, stale)]


def _lies_in(window: Window, finer: Sequence[Window]) -> bool:
    """Whether one of the finer windows, in order of their starts, lies in the window."""
    place = bisect_left(finer, window.start_s, key=lambda one: one.start_s)
    return place < len(finer) and finer[place].end_s <= window.end_s


def _is_stale() -> Exists:
    dirty, sets = schema.dirty, schema.uid_sets
    return exists().where(
        dirty.c.task == Task.SET, dirty.c.grain == sets.c.grain, dirty.c.window_start_s == sets.c.window_start_s
    )


def exact_users(ledger: Ledger, grain: Grain, start_s: int, end_s: int) -> dict[int, ExactUsers]:
    """Exact counts by window start, of the windows starting in `[start_s, end_s)` whose set is up to date."""
    sets = schema.uid_sets
    with ledger.reading() as connection:
        rows = connection.execute(
            select(sets.c.window_start_s, sets.c.users, sets.c.users_by).where(
                sets.c.grain == grain,
                sets.c.window_start_s >= start_s,
                sets.c.window_start_s < end_s,
                ~_is_stale(),
            )
        ).all()
    return {
        row.window_start_s: ExactUsers(row.users, None if row.users_by is None else json.loads(row.users_by))
        for row in rows
    }


def valid_sets(ledger: Ledger) -> list[tuple[Window, int, str]]:
    """(window, users, path) of every set that is up to date, by grain and start."""
    sets = schema.uid_sets
    with ledger.reading() as connection:
        rows = connection.execute(
            select(sets.c.grain, sets.c.window_start_s, sets.c.window_end_s, sets.c.users, sets.c.path)
            .where(~_is_stale(), sets.c.path.is_not(None))
            .order_by(sets.c.grain, sets.c.window_start_s)
        )
        return [(Window(Grain(row[0]), row[1], row[2]), row[3], row[4]) for row in rows]


def set_files(ledger: Ledger, grain: Grain, start_s: int, end_s: int) -> dict[int, str]:
    """Files of the sets whose windows lie within `[start_s, end_s)`, by window start."""
    sets = schema.uid_sets
    with ledger.reading() as connection:
        return dict(
            connection.execute(
                select(sets.c.window_start_s, sets.c.path).where(
                    sets.c.grain == grain,
                    sets.c.window_start_s >= start_s,
                    sets.c.window_end_s <= end_s,
                    sets.c.path.is_not(None),
                )
            ).all()
        )


def give_up_set(ledger: Ledger, work: SetWork, zone: ZoneInfo) -> None:
    """Drops a set that is out of date and can not be built again, and with it the exact count of its window."""
    table, window = schema.uid_sets, work.window
    with ledger.writing() as connection:
        mine = and_(table.c.grain == window.grain, table.c.window_start_s == window.start_s)
        dropped = connection.execute(delete(table).where(mine, table.c.version == work.version)).rowcount
        if work.path is not None:
            retire(connection, [work.path], ledger.now())
        clear(connection, Task.SET, window.grain, [DirtyMark(window.start_s, work.seq, "")])
        if dropped:
            mark(connection, Task.COUNT, [window], LIVE, zone, ledger.now())


def commit_set(ledger: Ledger, work: SetWork, file: DataFile, exact: ExactUsers, zone: ZoneInfo) -> None:
    """Stores a set, and marks its window to show the exact count. Raises LostRace when another did first."""
    table, now = schema.uid_sets, ledger.now()
    window = work.window
    state = {"version": work.version + 1, "path": file.file.path, "users": exact.users}
    state["users_by"] = None if exact.by_value is None else json.dumps(exact.by_value)
    lost = LostRace(f"lost race: the uid set of {window} was stored by another run first; ours was dropped")
    with ledger.writing() as connection:
        key = and_(table.c.grain == window.grain, table.c.window_start_s == window.start_s)
        try:
            if work.version == 0:
                connection.execute(
                    table.insert().values(
                        grain=window.grain, window_start_s=window.start_s, window_end_s=window.end_s, **state
                    )
                )
            elif (
                connection.execute(update(table).where(key, table.c.version == work.version).values(**state)).rowcount
                == 0
            ):
                raise lost
        except IntegrityError:
            raise lost from None
        connection.execute(schema.files.insert(), file_row(file, None, now))
        if work.path is not None:
            retire(connection, [work.path], now)
        clear(connection, Task.SET, window.grain, [DirtyMark(window.start_s, work.seq, "")])
        mark(connection, Task.COUNT, [window], LIVE, zone, now)
