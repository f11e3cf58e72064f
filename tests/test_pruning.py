"""Pruning Dagster's own storage: old runs go with all they left, what asset pages need stays, active runs too."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dagster import (
    AssetCheckKey,
    AssetCheckResult,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    DailyPartitionsDefinition,
    MaterializeResult,
    asset,
    asset_check,
    materialize,
)

from assets import pruning
from assets.pruning import PruneReport, prune

DAY_S = 86_400
LATER_S = 10 * DAY_S
KEYS = ("2024-01-01", "2024-01-02", "2024-01-03")


@asset(partitions_def=DailyPartitionsDefinition("2024-01-01"))
def counted() -> MaterializeResult:
    return MaterializeResult(metadata={"users": 7})


@asset
def plain() -> None:
    pass


@asset
def broken() -> None:
    raise ValueError("no broker")


@asset_check(asset=counted)
def is_fresh() -> AssetCheckResult:
    return AssetCheckResult(passed=True)


@pytest.fixture
def tmp_path(data_dir: Path) -> Path:
    """In memory: each run makes a database of its own, and waits for the disk at each commit."""
    return data_dir


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def run(instance: DagsterInstance, *what, key: str | None = None) -> str:
    done = materialize(list(what), instance=instance, partition_key=key, raise_on_error=False)
    return done.run_id


def prune_later(instance: DagsterInstance, days: float = 10, **more) -> PruneReport:
    """As if so many days had passed."""
    options = {"keep_days": 2, "keep_failed_days": 5, "now": lambda: time.time() + days * DAY_S, **more}
    return prune(instance, **options)


def shards(tmp_path: Path) -> set[str]:
    return {path.stem for path in (tmp_path / "history" / "runs").glob("*.db")} - {"index"}


def rows(tmp_path: Path, database: str, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(tmp_path / "history" / database)) as connection:
        return connection.execute(sql).fetchall()


def newest(instance: DagsterInstance) -> dict[str, int]:
    return dict(
        instance.event_log_storage.get_latest_storage_id_by_partition(
            AssetKey("counted"), DagsterEventType.ASSET_MATERIALIZATION
        )
    )


def test_each_partition_keeps_its_newest_materialization_and_the_run_it_links_to(instance, tmp_path):
    first = [run(instance, counted, key=key) for key in KEYS]
    again = [run(instance, counted, key=key) for key in KEYS[:2]]
    before = newest(instance)

    report = prune_later(instance)

    assert newest(instance) == before and set(before) == set(KEYS)
    assert set(instance.get_run_ids()) == {*again, first[2]}
    assert (report.deleted, report.stripped) == (2, 3)
    record = instance.fetch_materializations(AssetKey("counted"), limit=1).records[0]
    assert record.asset_materialization.metadata["users"].value == 7
    assert instance.get_materialized_partitions(AssetKey("counted")) == set(KEYS)


def test_what_is_pruned_leaves_no_file_row_or_tag(instance, tmp_path):
    for _ in range(2):
        run(instance, plain)
    (tmp_path / "storage" / instance.get_run_ids()[-1]).mkdir(parents=True, exist_ok=True)
    assert len(shards(tmp_path)) == 2
    report = prune_later(instance)
    assert shards(tmp_path) == set() and report.files >= 2 and report.freed_bytes > 100_000
    kept = instance.get_run_ids()[0]
    for database, table in (("runs/index.db", "event_logs"), ("runs.db", "runs"), ("runs.db", "run_tags")):
        assert {run_id for (run_id,) in rows(tmp_path, database, f"SELECT run_id FROM {table}")} <= {kept}
    assert rows(tmp_path, "runs/index.db", "SELECT dagster_event_type FROM event_logs") == [("ASSET_MATERIALIZATION",)]
    assert {path.name for path in (tmp_path / "storage").iterdir()} <= {kept}


def test_the_newest_answer_of_a_check_stays(instance, tmp_path):
    run_ids = [run(instance, counted, is_fresh, key=KEYS[0]) for _ in range(3)]
    prune_later(instance)
    assert set(rows(tmp_path, "runs/index.db", "SELECT run_id FROM asset_check_executions")) == {(run_ids[-1],)}
    key = AssetCheckKey(AssetKey("counted"), "is_fresh")
    assert instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key].status.value == "SUCCEEDED"


def test_young_runs_stay_whole_and_failed_ones_stay_longer(instance, tmp_path):
    good = [run(instance, plain) for _ in range(2)]
    bad = [run(instance, broken) for _ in range(2)]
    assert prune_later(instance, days=1).deleted == 0
    assert shards(tmp_path) == {*good, *bad}
    assert prune_later(instance, days=3).deleted == 1
    assert set(instance.get_run_ids()) == {good[1], *bad}
    assert instance.all_logs(bad[0])
    assert prune_later(instance, days=6).deleted == 2
    assert set(instance.get_run_ids()) == {good[1]}


def test_of_a_storm_of_failures_the_newest_stay(instance, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "MOST_FAILED", 2)
    bad = [run(instance, broken) for _ in range(4)]
    assert prune_later(instance, days=0).deleted == 2
    assert set(instance.get_run_ids()) == set(bad[2:])


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
def test_a_run_that_has_not_ended_is_never_touched(instance, tmp_path, status):
    run_id = run(instance, plain)
    run(instance, plain)
    with closing(sqlite3.connect(tmp_path / "history" / "runs.db")) as connection, connection:
        connection.execute("UPDATE runs SET status = ? WHERE run_id = ?", (status, run_id))
    assert prune_later(instance, days=1000).deleted == 0
    assert run_id in instance.get_run_ids() and run_id in shards(tmp_path)
    assert instance.get_run_by_id(run_id).status is DagsterRunStatus(status)


@pytest.mark.parametrize("place", ["prune.events_gone", "prune.rows_gone"])
def test_a_crash_half_way_is_finished_the_next_time(instance, tmp_path, place):
    for _ in range(3):
        run(instance, plain)

    def crash(name: str) -> None:
        if name == place:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_later(instance, failpoint=crash)
    assert len(shards(tmp_path)) == 3
    prune_later(instance)
    assert shards(tmp_path) == set() and len(instance.get_run_ids()) == 1
    assert instance.fetch_materializations(AssetKey("plain"), limit=5).records


def test_a_young_file_without_a_row_is_spared(instance, tmp_path):
    run(instance, plain)
    stray = tmp_path / "history" / "runs" / "00000000-0000-0000-0000-000000000000.db"
    stray.write_bytes(b"")
    prune_later(instance, days=0.5)
    assert stray.exists()
    prune_later(instance, days=1.5)
    assert not stray.exists()


def test_when_time_is_over_the_rest_waits_for_the_next_time(instance, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "AT_ONCE", 1)
    for _ in range(4):
        run(instance, plain)
    clock = iter(range(0, 1000, 10))
    report = prune_later(instance, for_s=15, monotonic=lambda: next(clock))
    assert not report.is_complete and report.deleted == 1
    assert prune_later(instance).is_complete
    assert len(instance.get_run_ids()) == 1


def test_a_database_of_mostly_free_pages_is_made_smaller(instance, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "VACUUM_FREE_BYTES", 4096)
    monkeypatch.setattr(pruning, "VACUUM_FREE_SHARE", 0.01)
    for _ in range(3):
        run(instance, plain)
    before = (tmp_path / "history" / "runs" / "index.db").stat().st_size
    assert prune_later(instance).vacuumed >= 1
    assert (tmp_path / "history" / "runs" / "index.db").stat().st_size < before
    run(instance, plain)  # it can still be written
