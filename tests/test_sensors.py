"""Sensors: what waits is asked for, exactly and once; held frames only where a person said so; failures are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DefaultSensorStatus,
    RunRequest,
    build_run_status_sensor_context,
    build_sensor_context,
    job,
    materialize,
    op,
)
from support.frames import MemoryTopic, frame
from support.ticks import run_tick

from assets import sensors
from assets.definitions import definitions_for
from assets.resources import PipelineResource
from assets.sensors import RANGE_END, RANGE_START, failure_of
from assets.ticking import clear_failures
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.errors import BrokerError
from uniq_pipeline.ledger.dirty import Task, count_dirty, mark_for_count
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.warehouse import ask_catalog
from uniq_pipeline.windows import Grain, Window

T0 = 1_704_067_200  # 2024-01-01T00:00:00Z
HOUR_S = 3600

now_s = [0.0]


class LaterClock(PipelineResource):
    def now(self) -> float:
        return now_s[0]


@pytest.fixture
def env(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = make_settings()
    for name in ("data_dir", "topic", "lg_k", "duckdb_threads", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(made, name)))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    monkeypatch.setenv("UNIQ_HISTORY_START", "2024-01-01")
    now_s[0] = T0 + 10 * HOUR_S
    return load_settings()


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def mark_hours(settings: Settings, *hours: int) -> None:
    """One minute of each of these hours after T0 waits from now on."""
    with open_workshop(settings, now=lambda: now_s[0]) as shop:
        minutes = [Window(Grain.MINUTE, T0 + h * HOUR_S, T0 + h * HOUR_S + 60) for h in hours]
        mark_for_count(shop.ledger, minutes, "backfill", settings.zone)


def ask(name: str, instance: DagsterInstance) -> tuple[list[RunRequest], str]:
    """Runs asked for, and why none."""
    defs = definitions_for(load_settings(), LaterClock())
    context = build_sensor_context(
        instance=instance, repository_def=defs.get_repository_def(), resources={"pipeline": LaterClock()}
    )
    tick = defs.resolve_sensor_def(name).evaluate_tick(context)
    return list(tick.run_requests or []), tick.skip_message or ""


def ranges(requests: list[RunRequest]) -> list[tuple[str, str]]:
    return [(request.tags[RANGE_START], request.tags[RANGE_END]) for request in requests]


def test_windows_that_wait_are_asked_for_as_ranges_of_exactly_their_partitions(env, instance):
    mark_hours(env, 1, 2, 3, 6)
    assert ask("dirty_windows", instance) == ([], "no window waits")
    now_s[0] += env.dirty_after_s + 1
    requests, _ = ask("dirty_windows", instance)
    assert ranges(requests) == [
        ("2024-01-01-01:00", "2024-01-01-03:00"),
        ("2024-01-01-06:00", "2024-01-01-06:00"),
    ]
    assert {tuple(request.asset_selection) for request in requests} == {(AssetKey("minute_counts"),)}


def test_a_range_has_the_same_run_key_until_it_is_marked_again_or_an_hour_has_passed(env, instance):
    mark_hours(env, 1)
    now_s[0] += env.dirty_after_s + 1
    keys = []
    for _ in range(2):
        keys.append(ask("dirty_windows", instance)[0][0].run_key)
    mark_hours(env, 1)
    now_s[0] += env.dirty_after_s + 1
    keys.append(ask("dirty_windows", instance)[0][0].run_key)
    now_s[0] += HOUR_S
    keys.append(ask("dirty_windows", instance)[0][0].run_key)
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_the_runs_of_one_look_are_few(env, instance):
    mark_hours(env, *range(0, 16, 2))
    now_s[0] += env.dirty_after_s + 1
    requests, _ = ask("dirty_windows", instance)
    assert len(requests) == sensors.MOST_RUNS
    assert ranges(requests)[0][0] == "2024-01-01-00:00"


def test_windows_before_the_first_partition_are_not_asked_for(env, instance):
    mark_hours(env, -5)
    now_s[0] += env.dirty_after_s + 1
    assert "UNIQ_HISTORY_START" in ask("dirty_windows", instance)[1]


def test_the_run_that_was_asked_for_computes_what_waited(env, instance):
    topic = MemoryTopic(env.topic)
    topic.send([frame(T0 + i, f"user-{i % 40}") for i in range(300)])
    run_tick(env, topic)
    mark_hours(env, 0)
    now_s[0] += env.dirty_after_s + 1
    ((request,), _) = ask("dirty_windows", instance)
    defs = definitions_for(env, LaterClock())
    done = materialize([defs.resolve_assets_def("minute_counts")], instance=instance, tags=request.tags)
    assert done.success
    with open_workshop(env) as shop:
        assert count_dirty(shop.ledger, Task.COUNT, Grain.MINUTE) == 0
    assert ask("dirty_windows", instance)[0] == []


def test_held_frames_are_let_in_by_themselves_only_where_a_person_said_so(env, instance, monkeypatch):
    topic = MemoryTopic(env.topic, logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 40}") for i in range(0, 7200, 2)])
    topic.send([frame(T0 + 60 + i, f"late-{i}", arrival_s=T0 + 7200, kind=Kind.LATE) for i in range(10)])
    run_tick(env, topic)
    assert "admit_held" not in {sensor.name for sensor in definitions_for(env).sensors}

    monkeypatch.setenv("UNIQ_ADMIT_HELD", "very_late")
    monkeypatch.setenv("UNIQ_ADMIT_HELD_FRAMES", "11")
    assert ask("admit_held", instance) == ([], "no hour holds 11 very_late frames")
    monkeypatch.setenv("UNIQ_ADMIT_HELD_FRAMES", "10")
    ((request,), _) = ask("admit_held", instance)
    assert ranges([request]) == [("2024-01-01-00:00", "2024-01-01-00:00")]

    defs = definitions_for(load_settings(), LaterClock())
    moved = materialize(
        [defs.resolve_assets_def("admitted_frames")],
        instance=instance,
        tags=request.tags,
        run_config=request.run_config,
    )
    assert moved.success
    assert ask_catalog(env.catalog_path, "SELECT count(*) AS n FROM held_frames").to_pylist() == [{"n": 0}]
    assert ask("admit_held", instance)[0] == []


def test_failures_are_watched_only_where_there_is_somebody_to_tell(env, monkeypatch):
    def status() -> DefaultSensorStatus:
        return definitions_for(load_settings()).resolve_sensor_def("failed_runs").default_status

    assert status() is DefaultSensorStatus.STOPPED
    monkeypatch.setenv("UNIQ_FAILURE_WEBHOOK_URL", "http://127.0.0.1:1/s3cret")
    assert status() is DefaultSensorStatus.RUNNING


def test_a_failure_is_told_in_our_own_words_and_a_webhook_that_is_down_breaks_nothing(env, instance, monkeypatch):
    @op
    def read():
        with clear_failures():
            raise BrokerError("broker kafka-1:9092 does not answer")

    @job(name="tick")
    def failing():
        read()

    result = failing.execute_in_process(instance=instance, raise_on_error=False)
    context = build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()
    told = failure_of(context)
    assert (told.job, told.run_id) == ("tick", result.run_id)
    assert "broker kafka-1:9092 does not answer" in told.error and "Traceback" not in told.error

    monkeypatch.setenv("UNIQ_FAILURE_WEBHOOK_URL", "http://127.0.0.1:1/s3cret")
    monkeypatch.setattr("uniq_pipeline.notify.FIRST_WAIT_S", 0.0)
    definitions_for(load_settings()).resolve_sensor_def("failed_runs")(context)
