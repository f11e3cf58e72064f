"""Dagster: the audit as a job and as a check, and reading a range of offsets once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from dagster import AssetCheckEvaluation, AssetCheckKey, AssetKey, DagsterInstance, RunConfig
from support.desks import delete, live, stands
from support.frames import MemoryTopic, frame
from support.ticks import run_tick

from assets.audit import RedrainConfig, VerifyConfig
from assets.definitions import definitions_for
from assets.resources import PipelineResource
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.windows import Grain

T0 = 1_704_067_200


@pytest.fixture
def env(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings, also as the environment that a run reads."""
    made = make_settings()
    for name in ("data_dir", "topic", "lg_k", "duckdb_threads", "kafka_bootstrap_servers"):
        monkeypatch.setenv(f"UNIQ_{name.upper()}", str(getattr(made, name)))
    monkeypatch.setenv("UNIQ_RESULTS_TOPIC", "")
    monkeypatch.setenv("UNIQ_HISTORY_START", "2024-01-01")
    monkeypatch.setattr("uniq_pipeline.rollup.ROLLUP_ORDER", (Grain.HOUR,))
    monkeypatch.setattr("uniq_pipeline.sets.ROLLUP_ORDER", (Grain.HOUR,))
    return load_settings()


@pytest.fixture
def topic(env: Settings, monkeypatch: pytest.MonkeyPatch) -> MemoryTopic:
    topic = MemoryTopic(env.topic, logs={0: []})
    topic.send([frame(T0 + i, f"user-{i % 40}") for i in range(300)])
    run_tick(env, topic)
    monkeypatch.setattr(PipelineResource, "source", lambda self, settings: topic)
    monkeypatch.setattr(PipelineResource, "sleep", lambda self, seconds: None)
    return topic


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def test_the_job_shows_its_checks_and_fails_naming_what_is_wrong(env, topic, instance):
    job = definitions_for(env).resolve_job_def("verify")
    result = job.execute_in_process(instance=instance)
    (said,) = [e.step_output_data.metadata for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    assert "| passed | each record stands once | 300 records |" in said["checks"].value
    assert said["records"].value == 300
    gone = live(env, "frames")[0]
    delete(stands(env, gone))
    config = RunConfig(ops={"audit_everything": VerifyConfig(quick=True)})
    failed = job.execute_in_process(instance=instance, raise_on_error=False, run_config=config)
    (failure,) = [e for e in failed.all_events if e.event_type_value == "STEP_FAILURE"]
    assert gone in failure.step_failure_data.error.message + str(failure.step_failure_data.user_failure_data)


def test_fault_50_the_hourly_job_raises_the_alarm_and_says_what_to_do(env, topic, instance):
    job = definitions_for(env).resolve_job_def("close_windows")

    def checked() -> AssetCheckEvaluation:
        job.execute_in_process(instance=instance, raise_on_error=False)
        key = AssetCheckKey(AssetKey("frames"), "stored_files_intact")
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        return record.event.dagster_event.asset_check_evaluation_data

    check = checked()
    assert check.passed and check.metadata["files"].value > 0
    gone = live(env, "frames")[0]
    delete(stands(env, gone))
    check = checked()
    assert not check.passed
    assert gone in check.description and "uniq-pipeline repair" in check.description


def test_the_redrain_job_puts_back_what_was_lost(env, topic, instance):
    delete(stands(env, live(env, "frames")[0]))
    job = definitions_for(env).resolve_job_def("redrain")
    config = RedrainConfig(topic=env.topic, kafka_partition=0, start_offset=0, end_offset=300)
    result = job.execute_in_process(instance=instance, run_config=RunConfig(ops={"redrain_offsets": config}))
    said = [e.step_output_data.metadata for e in result.all_events if e.event_type_value == "STEP_OUTPUT"]
    assert {name: value.value for name, value in said[0].items()} == {
        "read": 600,
        "replaced": 0,
        "put_back": 300,
        "left_as_they_were": 0,
        "files": 1,
    }
    too_far = RedrainConfig(topic=env.topic, kafka_partition=0, start_offset=0, end_offset=301)
    failed = job.execute_in_process(
        instance=instance, raise_on_error=False, run_config=RunConfig(ops={"redrain_offsets": too_far})
    )
    assert not failed.success


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"kafka_partition": -1}, "kafka_partition"),
        ({"start_offset": -1}, "start_offset"),
        ({"end_offset": 5}, "end_offset 5 must be greater than start_offset 5"),
        ({"topic": ""}, "topic"),
        ({"end_offset": "many"}, "end_offset"),
    ],
)
def test_the_config_of_a_redrain_is_checked_before_anything_runs(wrong, words):
    with pytest.raises(ValueError, match=words):
        RedrainConfig(**{"topic": "frames", "kafka_partition": 0, "start_offset": 5, "end_offset": 9, **wrong})
