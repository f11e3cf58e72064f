"""Dagster's storage on Postgres: the shipped dagster-postgres.yaml, ticks, pruning, and a stack of real processes.

The ledger on Postgres has no tests of its own: `make test-postgres` runs those of the ledger and of crashes on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import yaml
from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus
from support.frames import frame, send
from support.postgres import Postgres
from test_pruning import KEYS, broken, counted, is_fresh, newest, prune_later, run

from uniq_pipeline.config import Settings
from uniq_pipeline.demo.processes import Processes, tail
from uniq_pipeline.demo.services import free_port
from uniq_pipeline.errors import LedgerError
from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.ledger import Ledger, store
from uniq_pipeline.ledger.overview import overview
from uniq_pipeline.ledger.store import next_sequence

ROOT = Path(__file__).parents[1]
T0 = 1_704_067_200 - 300


def test_the_instance_on_postgres_is_the_other_one_but_for_its_storage():
    shipped, other = (yaml.safe_load((ROOT / name).read_text()) for name in ("dagster-postgres.yaml", "dagster.yaml"))
    assert shipped.pop("storage") == {"postgres": {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}}
    assert shipped == other


postgres_only = pytest.mark.postgres


@pytest.fixture
def home(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the shipped file, and an empty database."""
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster-postgres.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres.url(f"dagster-{tmp_path.name}"))
    return home


@pytest.fixture
def instance(home: Path) -> Iterator[DagsterInstance]:
    with DagsterInstance.get() as instance:
        yield instance


def rows(postgres: Postgres, tmp_path: Path, sql: str) -> list[str]:
    return postgres.sql(sql, f"dagster-{tmp_path.name}")


@postgres_only
def test_pruning_leaves_the_newest_of_each_partition_and_check_and_nothing_of_other_runs(instance, postgres, tmp_path):
    first = [run(instance, counted, is_fresh, key=key) for key in KEYS]
    again = [run(instance, counted, is_fresh, key=key) for key in KEYS[:2]]
    failed = run(instance, broken)
    before = newest(instance)

    assert prune_later(instance, days=1).deleted == 0
    report = prune_later(instance, days=4)

    assert set(instance.get_run_ids()) == {*again, first[2], failed} and newest(instance) == before
    assert (report.deleted, report.files, report.vacuumed) == (2, 0, 0) and report.is_complete
    left = {*again, first[2], failed}
    for table in ("runs", "run_tags", "event_logs", "asset_check_executions"):
        assert set(rows(postgres, tmp_path, f"SELECT run_id FROM {table}")) <= left, table
    kept = f"SELECT dagster_event_type FROM event_logs WHERE run_id <> '{failed}' ORDER BY 1"
    assert rows(postgres, tmp_path, kept) == ["ASSET_MATERIALIZATION"] * 3
    assert rows(postgres, tmp_path, "SELECT count(*) FROM asset_event_tags WHERE event_id NOT IN "
                                    "(SELECT id FROM event_logs)") == ["0"]  # fmt: skip
    assert len(instance.all_logs(failed)) > 3
    record = instance.fetch_materializations(counted.key, limit=1).records[0]
    assert record.asset_materialization.metadata["users"].value == 7
    assert prune_later(instance, days=10).deleted == 1, "the failed one"


@postgres_only
@pytest.mark.parametrize("place", ["prune.events_gone", "prune.rows_gone"])
def test_pruning_that_crashes_half_way_is_finished_the_next_time(instance, place):
    runs = [run(instance, counted, key=KEYS[0]) for _ in range(3)]

    def crash(name: str) -> None:
        if name == place:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_later(instance, failpoint=crash)
    prune_later(instance)
    assert instance.get_run_ids() == [runs[-1]] and set(newest(instance)) == {KEYS[0]}


@postgres_only
def test_a_transaction_that_hangs_is_given_up_and_others_say_what_they_wait_for(postgres, monkeypatch, tmp_path):
    """As when a run is stopped in the middle of a commit. A wait of seconds, not of minutes, for the test."""
    monkeypatch.setitem(store._SESSION, "lock_timeout", "'300ms'")
    url = postgres.url(f"ledger-{tmp_path.name}")
    other = Ledger(url)
    other.prepare()
    monkeypatch.setitem(store._SESSION, "idle_in_transaction_session_timeout", "'1500ms'")
    hanging = Ledger(url)
    given_up = "idle-in-transaction timeout|server closed the connection"
    with pytest.raises(LedgerError, match=given_up), hanging.writing() as connection:
        next_sequence(connection, "dirty")
        with pytest.raises(LedgerError, match="lock timeout"), other.writing():
            pass
        time.sleep(1.6)
        with other.writing() as theirs:
            assert next_sequence(theirs, "dirty") == 1, "what hung left nothing"
        next_sequence(connection, "dirty")
    for ledger in (hanging, other):
        ledger.close()


@postgres_only
def test_67_a_refused_login_of_the_ledger_shows_no_password(postgres, tmp_path):
    secret = "Wq7-not-the-password"
    ledger = Ledger(f"postgresql+psycopg2://uniq:{secret}@127.0.0.1:{postgres.port}/postgres")
    with pytest.raises(LedgerError, match="password authentication failed") as caught:
        ledger.prepare()
    assert secret not in str(caught.value) and "uniq:***@127.0.0.1" in str(caught.value)
    ledger.close()


@postgres_only
def test_a_stack_of_code_server_daemon_and_webserver_ticks_with_everything_on_postgres(
    home, postgres, broker: EmbeddedBroker, make_settings: Callable[..., Settings], tmp_path, monkeypatch
):
    """As in docker-compose.yml: a run that died is ended before the start, then the schedule makes its first tick."""
    ledger_url = postgres.url(f"ledger-{tmp_path.name}")
    settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers, ledger_url=ledger_url)
    for name in ("data_dir", "topic", "lg_k", "duckdb_threads", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(settings, name)))
    (tmp_path / "ledger-url").write_text(ledger_url + "\n")
    monkeypatch.setenv("UNIQ_LEDGER_URL_FILE", str(tmp_path / "ledger-url"))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    monkeypatch.setenv("UNIQ_SETTLE_S", "0")
    monkeypatch.setenv("UNIQ_HISTORY_START", "2023-12-01")
    sent = send(broker.bootstrap_servers, settings.topic, [frame(T0, f"user-{i}") for i in range(40)], Random(1))

    processes = Processes(tmp_path / "logs", os.environ)
    try:
        subprocess.run([sys.executable, "-m", "assets.recover"], check=True, cwd=ROOT)
        port, code_port = free_port(), free_port()
        workspace = home / "workspace.yaml"
        workspace.write_text(f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {code_port}}}\n")
        dagster = [sys.executable, "-m"]
        serve = ["dagster", "api", "grpc", "-m", "assets.definitions", "-h", "127.0.0.1", "-p", str(code_port)]
        processes.start("code-server", [*dagster, *serve])
        processes.start("daemon", [*dagster, "dagster._daemon", "run", "-w", str(workspace)])
        page = ["dagster_webserver", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)]
        processes.start("webserver", [*dagster, *page])
        with DagsterInstance.get() as instance:
            ended = _first_run_that_ends(instance, processes)
            assert ended.status is DagsterRunStatus.SUCCESS, [str(e) for e in instance.all_logs(ended.run_id)][-5:]
            assert ended.job_name == "tick"
            made = instance.get_materialized_partitions(AssetKey("minute_counts"))
            assert made == {"2023-12-31-23:00"}
        query = urllib.parse.quote("{runsOrError{...on Runs{results{id jobName status}}}}")
        ask = f"http://127.0.0.1:{port}/graphql?query={query}"
        with urllib.request.urlopen(ask, timeout=60) as answer:
            shown = json.load(answer)["data"]["runsOrError"]["results"]
        assert {"id": ended.run_id, "jobName": "tick", "status": "SUCCESS"} in shown
    finally:
        processes.stop()
    ledger = Ledger(ledger_url)
    seen = overview(ledger)
    ledger.close()
    assert (seen.frames, seen.lag, seen.windows["minute"]) == (len(sent), 0, 1)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert postgres.password.encode() not in kept, "neither in a log nor in Dagster's home"
    events = rows(postgres, tmp_path, f"SELECT id FROM event_logs WHERE event LIKE '%{postgres.password}%'")
    assert events == []


def _first_run_that_ends(instance: DagsterInstance, processes: Processes) -> DagsterRun:
    deadline = time.monotonic() + 240
    while True:
        assert (child := processes.ended()) is None, child and tail(child.log, 40)
        done = [run for run in instance.get_runs() if run.is_finished]
        if done:
            return done[0]
        assert time.monotonic() < deadline, "no run has ended"
        time.sleep(0.5)
