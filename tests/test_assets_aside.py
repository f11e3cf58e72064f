"""Dagster: what was held is admitted and taken back over a range of hours, what was quarantined is read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, Definitions, RunConfig, materialize
from support.frames import MemoryTopic, Sent, frame
from support.ticks import run_tick

from assets.aside import AdmitConfig, ReplayConfig
from assets.definitions import definitions_for
from assets.metadata import lateness_table
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.demo.traffic import Kind
from uniq_pipeline.warehouse import ask_catalog

T0 = 1_704_067_200  # 2024-01-01T00:00:00Z
HOURS = ("2024-01-01-00:00", "2024-01-01-01:00")


@pytest.fixture
def env(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings, also as the environment that a run reads."""
    made = make_settings()
    for name in ("data_dir", "topic", "lg_k", "duckdb_threads", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(made, name)))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    monkeypatch.setenv("UNIQ_HISTORY_START", "2024-01-01")
    return load_settings()


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def topic(env: Settings) -> MemoryTopic:
    """An hour and a half; ten frames of the second minute come half an hour late."""
    topic = MemoryTopic(env.topic, logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 40}") for i in range(1800)])
    topic.send([frame(T0 + 60 + i, f"late-{i}", arrival_s=T0 + 1800, kind=Kind.LATE) for i in range(10)])
    topic.send([frame(T0 + 1800 + i, f"user-{i % 40}") for i in range(3600)])
    return topic


def answers(settings: Settings, sql: str) -> list[dict[str, Any]]:
    return ask_catalog(settings.catalog_path, sql).to_pylist()


def changed_by(settings: Settings, reason: str) -> set[tuple[str, str, int, int]]:
    """(grain, start, users before, users now) of windows whose current revision has this reason."""
    rows = answers(
        settings,
        f"""
        SELECT grain, strftime(window_start, '%d %H:%M') AS start, previous_unique_users AS before, unique_users AS now
        FROM (FROM minute_counts UNION ALL FROM hour_counts) WHERE reason = '{reason}'
        """,
    )
    return {(row["grain"], row["start"], row["before"], row["now"]) for row in rows}


def move(defs: Definitions, instance: DagsterInstance, **config: Any) -> dict[str, Any]:
    """What a backfill of both hours does and says."""
    result = materialize(
        [defs.resolve_assets_def("admitted_frames")],
        instance=instance,
        tags={"dagster/asset_partition_range_start": HOURS[0], "dagster/asset_partition_range_end": HOURS[1]},
        run_config=RunConfig(ops={"admitted_frames": AdmitConfig(**config)}),
    )
    assert result.success
    said = [
        event.step_materialization_data.materialization
        for event in result.all_events
        if event.event_type_value == "ASSET_MATERIALIZATION"
    ]
    assert {m.partition for m in said if m.asset_key.to_user_string() == "admitted_frames"} == set(HOURS)
    counts = {m.asset_key.to_user_string() for m in said} - {"admitted_frames"}
    own = next(m for m in said if m.asset_key.to_user_string() == "admitted_frames")
    return {"counts": counts, **{name: value.value for name, value in own.metadata.items()}}


def test_a_backfill_admits_what_is_held_for_its_hours_and_a_config_takes_it_back(env, instance, topic):
    run_tick(env, topic)
    defs = definitions_for(env)
    assert answers(env, "SELECT event_class, frames FROM held_counts") == [{"event_class": "very_late", "frames": 10}]

    said = move(defs, instance)
    assert (said["counted"], said["held"], said["classes"]) == (10, 0, {"very_late": 10})
    assert said["counts"] == {f"{grain}_counts" for grain in ("minute", "hour", "day", "week", "month", "year")}
    assert answers(env, "FROM held_frames") == []
    assert changed_by(env, "admitted") == {("minute", "01 00:01", 40, 50), ("hour", "01 00:00", None, None)}

    said = move(defs, instance, withdraw=True)
    assert (said["counted"], said["held"]) == (0, 10)
    assert changed_by(env, "withdrawn") == {("minute", "01 00:01", 50, 40), ("hour", "01 00:00", None, None)}

    assert move(defs, instance, classes=["future"])["moved"] == 0


def test_materializing_everything_admits_nothing(env, instance, topic):
    run_tick(env, topic)
    job = definitions_for(env).resolve_implicit_global_asset_job_def()
    chosen = {AssetKey("admitted_frames"), AssetKey("minute_counts")}
    done = job.get_subset(asset_selection=chosen).execute_in_process(instance=instance, partition_key=HOURS[0])
    assert done.success
    assert answers(env, "SELECT event_class, frames FROM held_counts") == [{"event_class": "very_late", "frames": 10}]


def test_the_config_of_an_admission_is_checked_before_anything_runs():
    with pytest.raises(ValueError, match="allowed are"):
        AdmitConfig(classes=["on_time"])
    with pytest.raises(ValueError, match="allowed are"):
        ReplayConfig(reasons=["bad mood"])


def test_the_replay_job_moves_what_a_mended_setting_can_read(env, instance, topic, monkeypatch):
    log = topic.logs[0]
    topic.logs[0] = [Sent(s.kafka_time_ms, s.truth, s.payload.replace(b',"uid"', b'000,"uid"')) for s in log]
    run_tick(env, topic)
    assert answers(env, "SELECT count(*) AS n FROM frames") == [{"n": 0}]
    monkeypatch.setenv("UNIQ_TS_UNIT", "ms")
    job = definitions_for(load_settings()).resolve_job_def("replay_quarantine")
    assert job.execute_in_process(instance=instance).success
    assert answers(env, "SELECT count(*) AS n FROM quarantine") == [{"n": 0}]
    assert answers(env, "SELECT reason, sum(unique_users)::INT AS users FROM minute_counts GROUP BY ALL") == [
        {"reason": "replayed", "users": 90 * 40}
    ]


def test_the_lateness_table_names_its_steps_and_draws_a_bar_for_each_but_the_first():
    shown = lateness_table({"0": 900, "1": 80, "120": 19, "inf": 1}).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in shown] == ["on time", "to 1 s", "to 120 s", "over 86400 s"]
    bars = [line.count("█") for line in shown]
    assert bars[0] == 0 and bars[1] > bars[2] > bars[3] == 1
