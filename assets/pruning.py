"""Pruning Dagster's own storage: runs, events, check evaluations, schedule ticks, run logs. Ours is kept by `maintain`.

`DagsterInstance.delete_run` alone is not enough: it leaves the run's own SQLite file (some 200 kB, mostly empty
tables), its tags, its folder under `storage/` and its check evaluations; and with the run goes whatever its events
told of an asset, so that a partition last materialized by it shows as missing.

What is old goes in two ways. A run that is still the newest to have told of some partition, or of some check, is
stripped: those events stay, and the run's row, which the asset page links to; everything else goes. Any other run is
deleted. Rows go first, files after them, so a crash leaves files without a row, which the next time are removed.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, AssetEventTagsTable
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as EventsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

SUCCEEDED = (DagsterRunStatus.SUCCESS,)
FAILED = (DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)

# A broker that is down fails a run a minute; 200 kB each.
MOST_FAILED = 2000

# Runs whose rows go in one transaction: a live tick waits for it a few hundredths of a second.
AT_ONCE = 50

# Ends of schedule and sensor ticks; dagster.yaml says the same to the daemon, which looks when a schedule next ticks.
TICKS_KEEP_DAYS = {TickStatus.SKIPPED: 1, TickStatus.SUCCESS: 7, TickStatus.FAILURE: 30}

# A run's file without a row is that of a crash, or of a run that is being stored right now.
ORPHAN_AGE_S = 86_400

# SQLite gives free pages to new rows, so a database is made small only where much of it is free.
VACUUM_FREE_BYTES = 64 << 20
VACUUM_FREE_SHARE = 0.5

DAY_S = 86_400


@dataclass
class PruneReport:
    """What was done. `is_complete` is false where time was over; the next time goes on."""

    deleted: int = 0
    stripped: int = 0
    events: int = 0
    files: int = 0
    freed_bytes: int = 0
    vacuumed: int = 0
    is_complete: bool = True


@dataclass(frozen=True)
class Kept:
    """Rows of the newest materialization of each partition, and of the newest evaluation of each check."""

    events: frozenset[int]
    evaluations: frozenset[int]
    runs: frozenset[str]


def prune(
    instance: DagsterInstance,
    *,
    keep_days: float,
    keep_failed_days: float,
    for_s: float = 600.0,
    log: logging.Logger | None = None,
    now: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    failpoint: Callable[[str], None] = lambda name: None,
) -> PruneReport:
    """Prunes what is old, for at most about `for_s` seconds. Never touches a run that has not ended.

    keep_days, keep_failed_days  days after their end that runs stay whole, by how they ended

    Works on SQLite and on what else stores in SQL (Postgres), where there are no files to remove.
    """
    report, say = PruneReport(), log or logging.getLogger(__name__)
    storage, runs = instance.event_log_storage, instance.run_storage
    if not isinstance(storage, SqlEventLogStorage) or not isinstance(runs, SqlRunStorage):
        say.warning(f"{type(storage).__name__} is not stored in SQL: nothing is pruned")
        return report
    deadline = monotonic() + for_s
    kept = _kept(instance, storage)
    for statuses, before, most in (
        (SUCCEEDED, now() - keep_days * DAY_S, None),
        (FAILED, now() - keep_failed_days * DAY_S, MOST_FAILED),
    ):
        for chunk in _chunks(_old_runs(instance, statuses, before, most), AT_ONCE):
            if monotonic() > deadline:
                report.is_complete = False
                break
            _prune_runs(instance, storage, runs, chunk, kept, report, failpoint)
    say.info(f"{report.deleted:,} runs deleted, {report.stripped:,} stripped to their newest events")
    _purge_ticks(instance, now())
    if isinstance(storage, SqliteEventLogStorage):
        _remove_orphans(instance, storage, now() - ORPHAN_AGE_S, report)
        if monotonic() < deadline:
            _vacuum(storage, report, say)
    say.info(
        f"{report.events:,} events and {report.files:,} files removed, {report.freed_bytes:,} bytes freed, "
        f"{report.vacuumed} databases made smaller" + ("" if report.is_complete else "; time is over, the rest waits")
    )
    return report


def _kept(instance: DagsterInstance, storage: SqlEventLogStorage) -> Kept:
    events, evaluations, runs = set[int](), set[int](), set[str]()
    for key in instance.all_asset_keys():
        by_partition = storage.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION)
        events |= set(by_partition.values())
        # Of an asset without partitions, and of a partition that is none any more.
        newest = instance.fetch_materializations(key, limit=1).records
        events |= {record.storage_id for record in newest}
    table, checks = EventsTable, AssetCheckExecutionsTable
    with storage.index_connection() as connection:
        for ids in _chunks(sorted(events), 500):
            rows = connection.execute(table.select().with_only_columns(table.c.run_id).where(table.c.id.in_(ids)))
            runs |= {row[0] for row in rows}
        newest_of: dict[tuple[str, str, str | None], tuple[int, str]] = {}
        columns = (checks.c.id, checks.c.asset_key, checks.c.check_name, checks.c.partition, checks.c.run_id)
        for row in connection.execute(checks.select().with_only_columns(*columns).order_by(checks.c.id)):
            newest_of[row[1], row[2], row[3]] = (row[0], row[4])
    for check_id, run_id in newest_of.values():
        evaluations.add(check_id)
        runs.add(run_id)
    return Kept(frozenset(events), frozenset(evaluations), frozenset(runs))


def _old_runs(
    instance: DagsterInstance, statuses: Sequence[DagsterRunStatus], before: float, most: int | None
) -> Iterator[str]:
    """Runs that ended before then, oldest first; and those beyond the newest `most`, however young."""
    limit = datetime.fromtimestamp(before, UTC)
    old = instance.get_run_ids(RunsFilter(statuses=list(statuses), updated_before=limit))
    many = instance.get_run_ids(RunsFilter(statuses=list(statuses)))[most:] if most is not None else []
    yield from dict.fromkeys([*reversed(old), *reversed(many)])


def _prune_runs(
    instance: DagsterInstance,
    storage: SqlEventLogStorage,
    runs: SqlRunStorage,
    run_ids: Sequence[str],
    kept: Kept,
    report: PruneReport,
    failpoint: Callable[[str], None],
) -> None:
    stripped = [run_id for run_id in run_ids if run_id in kept.runs]
    deleted = [run_id for run_id in run_ids if run_id not in kept.runs]
    events, tags, checks = EventsTable, AssetEventTagsTable, AssetCheckExecutionsTable
    removed = 0
    with storage.index_connection() as connection:
        rows = connection.execute(
            events.select().with_only_columns(events.c.id, events.c.run_id).where(events.c.run_id.in_(run_ids))
        ).fetchall()
        gone = [row[0] for row in rows if row[0] not in kept.events]
        touched = {row[1] for row in rows if row[0] not in kept.events}
        for ids in _chunks(gone, 500):
            connection.execute(tags.delete().where(tags.c.event_id.in_(ids)))
            removed += connection.execute(events.delete().where(events.c.id.in_(ids))).rowcount
        rows = connection.execute(
            checks.select().with_only_columns(checks.c.id).where(checks.c.run_id.in_(run_ids))
        ).fetchall()
        for ids in _chunks([row[0] for row in rows if row[0] not in kept.evaluations], 500):
            connection.execute(checks.delete().where(checks.c.id.in_(ids)))
    failpoint("prune.events_gone")
    if deleted:
        with runs.connect() as connection:
            connection.execute(RunTagsTable.delete().where(RunTagsTable.c.run_id.in_(deleted)))
            connection.execute(RunsTable.delete().where(RunsTable.c.run_id.in_(deleted)))
    failpoint("prune.rows_gone")
    report.events += removed
    report.deleted += len(deleted)
    report.stripped += len(touched.intersection(stripped))
    if isinstance(storage, SqliteEventLogStorage):
        for run_id in run_ids:
            _remove_files(instance, storage, run_id, report)


def _remove_files(instance: DagsterInstance, storage: SqliteEventLogStorage, run_id: str, report: PruneReport) -> None:
    """The run's own database with its journal, and its folder."""
    database = Path(storage.path_for_shard(run_id))
    for path in (database, *(database.with_name(database.name + end) for end in ("-wal", "-shm", "-journal"))):
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        report.files += 1
        report.freed_bytes += size
    shutil.rmtree(Path(instance.storage_directory()) / run_id, ignore_errors=True)


def _remove_orphans(
    instance: DagsterInstance, storage: SqliteEventLogStorage, before: float, report: PruneReport
) -> None:
    """Databases of runs that have no row: left by a crash, or made anew when somebody opened the page of one."""
    folder = Path(storage.path_for_shard("index")).parent
    found = [path for path in folder.glob("*.db") if path.stem != "index" and path.stat().st_mtime < before]
    for chunk in _chunks([path.stem for path in found], 500):
        known = set(instance.get_run_ids(RunsFilter(run_ids=list(chunk))))
        for run_id in chunk:
            if run_id not in known:
                _remove_files(instance, storage, run_id, report)


def _purge_ticks(instance: DagsterInstance, now: float) -> None:
    if instance.schedule_storage is None:
        return
    for state in instance.all_instigator_state():
        for status, days in TICKS_KEEP_DAYS.items():
            instance.purge_ticks(state.instigator_origin_id, state.selector_id, now - days * DAY_S, [status])


def _vacuum(storage: SqliteEventLogStorage, report: PruneReport, say: logging.Logger) -> None:
    """Makes databases small that are mostly free pages: after the first pruning, or after a storm of failures."""
    history = Path(storage.path_for_shard("index")).parent.parent
    databases = [history / "runs" / "index.db", history / "runs.db", history.parent / "schedules" / "schedules.db"]
    for database in filter(Path.is_file, databases):
        with closing(sqlite3.connect(database, timeout=5, isolation_level=None)) as connection:
            page, pages, free = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
            if free * page < VACUUM_FREE_BYTES or free < VACUUM_FREE_SHARE * pages:
                continue
            try:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError as error:
                say.warning(f"{database.name} stays as large as it is this time: {error}")
                continue
        report.vacuumed += 1
        report.freed_bytes += free * page


def _chunks(values: Iterable, size: int) -> Iterator[list]:
    chunk = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
