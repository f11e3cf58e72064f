"""Dagster that fails: runs that are killed, given up, repeated, queued up, or raced by others; its database gone.

The numbers are the rows of the list of faults. Row 64, and what 57, 60 and 61 are without Dagster, is in
test_interleaving.py; that a backfill changes nothing that is right is in test_assets.py, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    ExecuteInProcessResult,
    RunRequest,
    RunsFilter,
    SkipReason,
    build_schedule_context,
    materialize,
)
from support.audit import audit, read_back
from support.dagster_run import definitions, no_failpoint
from support.frames import MemoryTopic, frame, send, small_traffic
from support.stories import T0, mended, minutes_and_hours_only, more
from support.ticks import OnceAt

from assets.recover import end_dead_runs
from assets.schedules import every_minute
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.demo.processes import Processes, tail
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.tick import open_workshop, tick

ROOT = Path(__file__).parents[1]

_minutes_and_hours_only = minutes_and_hours_only


@pytest.fixture
def env(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings, also as the environment that a run reads."""
    made = make_settings()
    for name in ("data_dir", "topic", "lg_k", "duckdb_threads", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(made, name)))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    monkeypatch.setenv("UNIQ_HISTORY_START", "2023-12-01")
    monkeypatch.setenv("UNIQ_VERY_LATE", "correct")
    return load_settings()


@pytest.fixture
def topic(env: Settings) -> MemoryTopic:
    return MemoryTopic(env.topic)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def home(env: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the shipped dagster.yaml and its database."""
    home = env.data_dir / "dagster"
    home.mkdir(parents=True)
    shutil.copy(ROOT / "dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with DagsterInstance.get() as instance:
        instance.get_runs(limit=1)
    return home


def run_job(
    name: str,
    instance: DagsterInstance,
    topic: MemoryTopic | None = None,
    failpoint: Callable[[str], None] = no_failpoint,
) -> ExecuteInProcessResult:
    return definitions(failpoint, topic).resolve_job_def(name).execute_in_process(instance=instance)


def backfill(
    asset: str, first: str, last: str, instance: DagsterInstance, failpoint: Callable[[str], None] = no_failpoint
) -> ExecuteInProcessResult:
    """What the backfill daemon starts for a range under a single-run policy."""
    return materialize(
        [definitions(failpoint).resolve_assets_def(asset)],
        instance=instance,
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
    )


def reported(result: ExecuteInProcessResult) -> set[tuple[str, str | None]]:
    """Assets and partitions that a run says it made."""
    return {
        (m.asset_key.to_user_string(), m.partition)
        for m in (
            event.step_materialization_data.materialization
            for event in result.all_events
            if event.event_type_value == "ASSET_MATERIALIZATION"
        )
    }


def files(settings: Settings) -> set[str]:
    lake = settings.data_dir / "lake"
    return {path.relative_to(lake).as_posix() for path in lake.rglob("*") if path.is_file()}


def ledger(settings: Settings, *tables: str) -> list[list[tuple]]:
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as connection:
        return [connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]


# 57: hours without a daemon


def test_fault_57_after_three_hours_without_a_daemon_one_run_fills_and_reports_every_minute(env, topic, instance):
    more(topic, 0, 60)
    run_job("tick", instance, topic)
    more(topic, 60, 3 * 3600, frames_per_s=0.3)
    result = run_job("tick", instance, topic)
    assert result.success
    hours = {f"{day}:00" for day in ("2023-12-31-23", "2024-01-01-00", "2024-01-01-01", "2024-01-01-02")}
    assert {key for asset, key in reported(result) if asset == "minute_counts"} >= hours
    stored = read_back(env, [])
    assert set(range(T0, T0 + 3 * 3600 - 60, 60)) <= set(stored.results["minute"])
    assert audit(env, topic.delivered, grains=("minute", "hour"), closed=False) == []
    again = run_job("tick", instance, topic)
    assert reported(again) == {("frames", None)}, "nothing is left for a second one"


# 58 and 59: runs that are killed, or live on after they were given up


def process(signal_name: str, *points: str) -> subprocess.Popen[str]:
    tests = ROOT / "tests"
    return subprocess.Popen(
        [sys.executable, "-m", "support.dagster_run", signal_name, *points],
        cwd=tests,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def on_kafka(broker, env, monkeypatch) -> Settings:
    monkeypatch.setenv("UNIQ_KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", f"{env.topic}-counts")
    return load_settings()


def sent(settings: Settings, start_s: int, end_s: int) -> dict:
    records = small_traffic(1, frames_per_s=8).records_between(T0 + start_s, T0 + end_s)
    return send(settings.kafka_bootstrap_servers, settings.topic, records, Random(1))


def test_fault_58_a_run_killed_in_its_step_is_failed_at_the_next_start_and_a_new_one_makes_it_good(on_kafka, home):
    delivered = sent(on_kafka, 0, 150)
    points = ("drain.before_commit", "drain.after_commit", "count.before_commit", "count.after_commit", "publish.sent")
    killed = process("SIGKILL", *points)
    assert killed.wait(200) == 0, killed.stdout.read()
    with DagsterInstance.get() as instance:
        statuses = [run.status for run in instance.get_runs()]
        assert statuses == [DagsterRunStatus.STARTED] * len(points), "nobody was left to say otherwise"
        assert isinstance(every_minute(build_schedule_context(instance=instance)), SkipReason)
        assert end_dead_runs(instance) == len(points)
        assert {run.status for run in instance.get_runs()} == {DagsterRunStatus.FAILURE}
        assert isinstance(every_minute(build_schedule_context(instance=instance)), RunRequest)
        assert run_job("tick", instance).success
    assert audit(on_kafka, delivered, grains=("minute", "hour", "day", "week", "month", "year"), closed=False) == []


def test_fault_59_a_run_marked_as_failed_that_still_lives_is_fenced_at_its_commit(on_kafka, home):
    delivered = sent(on_kafka, 0, 150)
    zombie = process("SIGSTOP", "drain.before_commit")
    os.waitid(os.P_PID, zombie.pid, os.WSTOPPED | os.WNOWAIT)
    with DagsterInstance.get() as instance:
        (run,) = instance.get_runs()
        instance.report_run_failed(run, "given up")
        assert run_job("tick", instance).success, "the next run does not wait for it"
        before = ledger(on_kafka, "batches", "batch_ranges", "topic_partitions")
        os.kill(zombie.pid, signal.SIGCONT)
        assert zombie.wait(100) == 0, zombie.stdout.read()
        assert ledger(on_kafka, "batches", "batch_ranges", "topic_partitions") == before
        said = " ".join(event.user_message for event in instance.all_logs(run.run_id))
        assert "lost race: topic" in said and "its records are in theirs" in said
    assert audit(on_kafka, delivered, closed=False) == []


# 9: a run that is gone with its code server


TICK_LIMIT_S = 20


@pytest.mark.slow
def test_fault_09_a_run_killed_with_its_code_server_is_failed_after_its_limit_and_the_next_one_proceeds(
    on_kafka, home, tmp_path
):
    """The shipped dagster.yaml and jobs, but for how often runs are looked at and how long a tick may take."""
    shipped = (home / "dagster.yaml").read_text()
    assert shipped.count("poll_interval_seconds: 20") == 1
    (home / "dagster.yaml").write_text(shipped.replace("poll_interval_seconds: 20", "poll_interval_seconds: 1"))
    delivered = sent(on_kafka, 0, 150)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workspace = home / "workspace.yaml"
    workspace.write_text(f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: uniq}}\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        "TEST_TICK_LIMIT_S": str(TICK_LIMIT_S),
    }
    dagster = [sys.executable, "-m", "dagster"]
    server = [*dagster, "api", "grpc", "-m", "support.stack_location", "-h", "127.0.0.1", "-p", str(port)]
    processes, stopped = Processes(tmp_path, environment), home / "stopped"
    (home / "fate").touch()
    try:
        first = processes.start("code-server", server)
        daemon = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)]
        processes.start("daemon", daemon)
        with DagsterInstance.get() as instance:
            wait_until(lambda: stopped.exists() and stopped.read_text(), 150, tmp_path)
            (zombie,) = instance.get_runs()
            os.kill(int(stopped.read_text()), signal.SIGKILL)
            os.killpg(first.process.pid, signal.SIGKILL)
            killed_at = time.monotonic()
            processes.start("code-server-again", server)

            def zombie_status() -> DagsterRunStatus:
                return instance.get_run_by_id(zombie.run_id).status

            assert zombie_status() == DagsterRunStatus.STARTED
            wait_until(lambda: zombie_status() == DagsterRunStatus.FAILURE, TICK_LIMIT_S + 30, tmp_path)
            print(f"marked as failed {time.monotonic() - killed_at:.0f} s after its end")
            said = " ".join(event.message for event in instance.all_logs(zombie.run_id))
            assert f"exceeding maximum runtime of {TICK_LIMIT_S} seconds" in said
            succeeded = RunsFilter(job_name="tick", statuses=[DagsterRunStatus.SUCCESS])
            wait_until(lambda: instance.get_runs(succeeded), 100, tmp_path)
    finally:
        processes.stop()
    assert audit(on_kafka, delivered, closed=False) == []


def wait_until(is_so: Callable[[], object], within_s: float, logs: Path) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "\n".join(tail(log, 40) for log in sorted(logs.glob("*.log")))
        time.sleep(0.25)


# 60: the same partition twice


def test_fault_60_a_partition_materialized_twice_is_the_same_file_byte_for_byte(env, topic, instance):
    more(topic, 0, 500)
    run_job("close_windows", instance, topic)
    before, written = ledger(env, "buckets", "uid_sets"), files(env)
    contents = {name: (env.data_dir / "lake" / name).read_bytes() for name in written}
    for asset, key in (("minute_counts", "2023-12-31-23:00"), ("hour_counts", "2023-12-31")):
        for _ in range(2):
            assert backfill(asset, key, key, instance).success
    assert ledger(env, "buckets", "uid_sets") == before, "no other file, no other version"
    assert {name: (env.data_dir / "lake" / name).read_bytes() for name in files(env)} == contents
    assert mended(env, topic, lambda: run_job("close_windows", instance, topic)) == []


# 61: a backfill beside the live run


@pytest.mark.parametrize("point", ["count.files_listed", "count.before_commit"])
@pytest.mark.parametrize("slow", ["the live run", "the backfill"])
def test_fault_61_a_backfill_that_races_the_live_run_ends_in_the_truth(slow, point, env, topic, instance):
    more(topic, 0, 400)
    run_job("close_windows", instance, topic)

    def live(failpoint: Callable[[str], None] = no_failpoint) -> None:
        # New minutes, and something new in an old one: both runs have to count it.
        start_s = 400 + 50 * len([one for one in topic.delivered.values() if one.truth.uid.startswith("late to")])
        more(topic, start_s, start_s + 50)
        topic.send([frame(T0 + 10, f"late to {start_s}", arrival_s=T0 + start_s + 50, kind=Kind.LATE)])
        assert run_job("tick", instance, topic, failpoint).success

    def back(failpoint: Callable[[str], None] = no_failpoint) -> None:
        assert backfill("minute_counts", "2023-12-31-23:00", "2024-01-01-00:00", instance, failpoint).success
        assert backfill("hour_counts", "2023-12-31", "2024-01-01", instance).success

    run, other = (live, back) if slow == "the live run" else (back, live)
    at = OnceAt(point, lambda: in_a_thread(other))
    run(at)
    assert at.happened
    live()
    assert mended(env, topic, lambda: run_job("close_windows", instance, topic)) == []


def in_a_thread(do: Callable[[], object]) -> None:
    """Dagster keeps the run it is in by thread."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            do()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


# 62: too many runs


def test_fault_62_of_many_runs_in_the_queue_all_but_the_first_find_nothing_to_do(env, topic, instance):
    """That the schedule adds none while one is active is in test_assets.py."""
    more(topic, 0, 400)
    run_job("tick", instance, topic)
    state = ("batches", "batch_ranges", "buckets", "files", "dirty", "outbox", "uid_sets", "sequences")
    before, written = ledger(env, *state), files(env)
    for _ in range(2):
        assert reported(run_job("tick", instance, topic)) == {("frames", None)}
    with open_workshop(env) as shop:
        for _ in range(10):
            report = tick(shop, topic, None)
            assert report.drain.delivered == 0
            assert [refreshed.computed for refreshed in report.refreshed] == [0] * len(report.refreshed)
    assert ledger(env, *state) == before
    assert files(env) == written
    left = [path.name for path in (env.data_dir / "spill").iterdir() if not path.name.endswith(".base")]
    assert left == [], "but for the base of the catalog, which is kept"


# 63: Dagster's own database


@pytest.mark.parametrize(("fate", "point"), [("locked", "count.before_commit"), ("gone", "drain.before_commit")])
def test_fault_63_without_dagsters_database_a_run_fails_and_the_next_goes_on(
    fate, point, env, topic, home, monkeypatch
):
    # Dagster waits half a minute for a lock, and three times: for the event, for the step's failure, for the run's.
    module = "dagster._core.storage.event_log.sqlite.sqlite_event_log"
    monkeypatch.setattr(f"{module}.SQLITE_BUSY_TIMEOUT_SECONDS", 0.1)
    more(topic, 0, 200)
    with DagsterInstance.get() as instance:
        run_job("tick", instance, topic)
    more(topic, 200, 400)
    locks: list[sqlite3.Connection] = []

    def break_it() -> None:
        if fate == "gone":
            shutil.rmtree(home / "history")
            return
        for database in home.rglob("*.db"):
            locks.append(sqlite3.connect(database, isolation_level=None))
            locks[-1].execute("BEGIN EXCLUSIVE")

    at = OnceAt(point, break_it)
    words = "database is locked" if fate == "locked" else "unable to open database file"
    with pytest.raises(Exception, match=words), DagsterInstance.get() as instance:
        run_job("tick", instance, topic, at)
    assert at.happened
    for lock in locks:
        lock.close()
    assert audit(env, topic.delivered, grains=("minute", "hour"), closed=False) == []
    more(topic, 400, 500)
    with DagsterInstance.get() as instance:
        end_dead_runs(instance)
        assert mended(env, topic, lambda: run_job("close_windows", instance, topic)) == []
