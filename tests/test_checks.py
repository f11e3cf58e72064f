"""Checks: each can fail, says then what to do, and is kept to by a setting; a tick and a person get the same answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pytest
from dagster import AssetCheckKey, AssetCheckSeverity, AssetKey, AssetSelection, DagsterInstance, Definitions
from support.frames import MemoryTopic, frame
from support.ticks import run_tick

from assets.checks import FRAMES_SPECS, frames_results, freshness_result, sketch_result, specs_of
from assets.definitions import definitions_for
from assets.resources import PipelineResource
from uniq_pipeline import health
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.health import Compared
from uniq_pipeline.ledger.health import Contiguity, Recent, all_offsets, balance, newest_offsets, recent_batches
from uniq_pipeline.ledger.upkeep import skip_lost
from uniq_pipeline.offsets import Extent, TopicState
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.windows import GRAINS, Grain, Window

T0 = 1_704_067_200  # 2024-01-01T00:00:00Z
SPAN_S = 600


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
def topic(env: Settings) -> MemoryTopic:
    """Ten minutes of 2,000 frames; every hundredth comes half a minute late, every fiftieth cannot be read."""
    topic = MemoryTopic(env.topic)
    records = []
    for i in range(2000):
        late_by = 30 if i % 100 == 7 else 0
        records.append(frame(T0 + SPAN_S * i // 2000 - late_by, f"user-{i % 90}", arrival_s=T0 + SPAN_S * i // 2000))
    topic.send(records, Random(2))
    for log in topic.logs.values():
        log[::50] = [type(sent)(sent.kafka_time_ms, sent.truth, b"{") for sent in log[::50]]
    return topic


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def recent_of(settings: Settings) -> Recent:
    with open_workshop(settings) as shop:
        return recent_batches(shop.ledger, shop.ledger.now() - 3600)


def change(settings: Settings, statement: str) -> None:
    with open_workshop(settings) as shop, shop.ledger.writing() as connection:
        assert connection.exec_driver_sql(statement).rowcount > 0


def contiguity(settings: Settings) -> tuple[Contiguity, Contiguity]:
    """By what a tick looks at, and by everything."""
    with open_workshop(settings) as shop:
        return newest_offsets(shop.ledger, settings.topic, 50), all_offsets(shop.ledger)


# Conservation


def test_a_record_that_went_missing_fails_conservation_and_names_its_batch(env, topic):
    run_tick(env, topic)
    with open_workshop(env) as shop:
        assert health.conservation(recent_of(env)).passed
        assert health.conservation(balance(shop.ledger)).passed
        assert balance(shop.ledger).came == 2000
    change(env, "UPDATE batches SET frames = frames - 3")
    with open_workshop(env) as shop:
        for seen in (recent_of(env), balance(shop.ledger)):
            finding = health.conservation(seen)
            assert not finding.passed
            assert "(2,000 came, 1,997 kept)" in finding.said and "uniq-pipeline verify" in finding.said


# Offsets


def test_ranges_that_follow_each_other_pass(env, topic):
    for _ in range(3):
        run_tick(env, topic)
        topic.send([frame(T0 + SPAN_S + i, f"user-{i}") for i in range(50)])
    for seen in contiguity(env):
        assert seen.gaps == [] and seen.ranges >= 4
        assert health.contiguity(seen).passed


def test_a_topic_partition_without_a_record_has_no_gap(env, topic):
    topic.logs[2] = []
    run_tick(env, topic)
    for seen in contiguity(env):
        assert seen.gaps == [] and seen.ranges == 2


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE batch_ranges SET end_offset = end_offset - 5 WHERE kafka_partition = 1", "5) in no batch"),
        ("UPDATE batch_ranges SET end_offset = end_offset + 5 WHERE kafka_partition = 1", "5) twice"),
        ("UPDATE topic_partitions SET next_offset = next_offset + 7 WHERE kafka_partition = 0", "in no batch"),
        ("UPDATE topic_partitions SET next_offset = next_offset - 7 WHERE kafka_partition = 0", "twice"),
    ],
)
def test_a_gap_or_an_overlap_is_named_with_its_offsets(env, topic, statement, told):
    run_tick(env, topic)
    topic.send([frame(T0 + SPAN_S + i, f"user-{i}") for i in range(200)])
    run_tick(env, topic)
    # of two ranges in a topic partition the first one is changed, so that the gap is between them
    change(env, statement.replace("kafka_partition = 1", "kafka_partition = 1 AND start_offset = 0"))
    for seen in contiguity(env):
        finding = health.contiguity(seen)
        assert not finding.passed and len(seen.gaps) == 1
        assert told.split(") ")[-1] in finding.said and "uniq-pipeline repair" in finding.said
        size = seen.gaps[0].end_offset - seen.gaps[0].start_offset
        assert size == finding.facts["offsets_concerned"] == (5 if "batch_ranges" in statement else 7)


def test_a_gap_that_a_person_skipped_is_none(env, topic):
    run_tick(env, topic)
    ends = {p: len(log) for p, log in topic.logs.items()}
    extents = {p: Extent(end + 10, end + 20, end + 20) for p, end in ends.items()}
    with open_workshop(env) as shop:
        assert len(skip_lost(shop.ledger, env.topic, TopicState(env.topic, topic.topic_id, extents))) == 2
        further = {p: Extent(end + 15, end + 20, end + 20) for p, end in ends.items()}
        assert len(skip_lost(shop.ledger, env.topic, TopicState(env.topic, topic.topic_id, further))) == 2
    assert [seen.gaps for seen in contiguity(env)] == [[], []]
    change(env, "DELETE FROM skipped WHERE kafka_partition = 0 AND end_offset - start_offset = 5")
    for seen in contiguity(env):
        assert [(gap.kafka_partition, gap.end_offset) for gap in seen.gaps] == [(0, ends[0] + 15)]


# Ratios


@pytest.mark.parametrize(
    ("check", "setting", "share"),
    [
        (health.late_ratio, "check_late_ratio", 0.01),
        (health.rejected_ratio, "check_rejected_ratio", 0.02),
    ],
)
def test_a_ratio_passes_up_to_its_setting_and_fails_above(env, topic, check, setting, share):
    run_tick(env, topic)
    recent = recent_of(env)
    measured = check(env, recent).facts["ratio"]
    assert measured == pytest.approx(share, rel=0.15)
    assert check(env.model_copy(update={setting: measured + 0.001}), recent).passed
    failed = check(env.model_copy(update={setting: measured - 0.001}), recent)
    assert not failed.passed and "UNIQ_" in failed.said
    assert failed.facts["most_allowed"] == measured - 0.001


def test_held_records_have_a_ratio_of_their_own(env, topic):
    topic.send([frame(T0 - 5000 - i, f"user-{i}", arrival_s=T0 + SPAN_S) for i in range(100)])
    run_tick(env, topic)
    finding = health.held_ratio(env, recent_of(env))
    assert not finding.passed and "admitted_frames" in finding.said and "very_late" in finding.facts["most_frequent"]
    assert finding.facts["ratio"] == pytest.approx(100 / 2100, rel=0.05)


def test_a_handful_of_records_is_no_ratio(env, topic):
    run_tick(env, topic)
    few = env.model_copy(update={"check_min_records": 2001, "check_rejected_ratio": 0.0})
    finding = health.rejected_ratio(few, recent_of(env))
    assert finding.passed and "UNIQ_CHECK_MIN_RECORDS" in finding.said
    assert not health.rejected_ratio(few.model_copy(update={"check_min_records": 2000}), recent_of(env)).passed


def test_batches_from_before_the_span_do_not_count(env, topic):
    run_tick(env, topic)
    change(env, "UPDATE batches SET committed_at = committed_at - 4000")
    assert recent_of(env).delivered == 0


# Freshness and sketches


@pytest.mark.parametrize(("behind_s", "passes"), [(0, True), (180, True), (181, False)])
def test_freshness_is_kept_to_its_setting(behind_s, passes):
    end_s = T0 + 60
    result = freshness_result(Settings(check_freshness_s=180), end_s + 20, end_s + behind_s)
    assert result.passed is passes and result.severity is AssetCheckSeverity.WARN
    assert passes or "every_minute" in result.description
    assert result.metadata["most_seconds_allowed"].value == 180


def test_without_a_frame_nothing_is_fresh():
    assert not freshness_result(Settings(), None, T0).passed


@pytest.mark.parametrize(
    ("exact", "estimate", "passes"), [(10_000, 10_500.0, True), (10_000, 12_000.0, False), (3, 1.0, True)]
)
def test_the_sketch_check_fails_beyond_five_standard_errors_only(exact, estimate, passes):
    window = Compared(Window(Grain.MINUTE, T0, T0 + 60), exact, estimate)
    result = sketch_result(Settings(lg_k=12), Grain.MINUTE, [window])
    assert result.passed is passes and result.severity is AssetCheckSeverity.ERROR
    assert passes or "exact 10,000, estimate 12,000.0" in result.description
    wide = sketch_result(Settings(lg_k=12, check_standard_errors=50), Grain.MINUTE, [window])
    assert wide.passed


# In Dagster


def test_what_is_wrong_with_the_world_warns_and_what_is_wrong_with_us_is_an_error(env, topic):
    run_tick(env, topic)
    with open_workshop(env) as shop:
        results = frames_results(env, recent_of(env), balance(shop.ledger), all_offsets(shop.ledger))
    assert {r.check_name: r.severity.value for r in results} == {
        "conservation": "ERROR",
        "offsets_contiguous": "ERROR",
        "late_ratio": "WARN",
        "rejected_ratio": "WARN",
        "held_ratio": "WARN",
    }
    assert all(result.description and result.metadata for result in results)


def test_every_check_can_be_executed_by_itself(env, topic, instance):
    run_tick(env, topic, close_windows=True)
    defs = definitions_for(env, PipelineResource())
    wanted = {(spec.asset_key, spec.name) for spec in (*FRAMES_SPECS, *(s for g in GRAINS for s in specs_of(g)))}
    assert len(wanted) == 12
    answered = execute(defs, instance, AssetSelection.checks(*(AssetCheckKey(*key) for key in wanted)))
    assert set(answered) == wanted
    # Two hours ago, and two of a hundred records broken: these two fail, and only these.
    assert {name for (_, name), evaluation in answered.items() if not evaluation.passed} == {
        "freshness",
        "rejected_ratio",
    }
    one = AssetCheckKey(AssetKey("frames"), "late_ratio")
    assert set(execute(defs, instance, AssetSelection.checks(one))) == {(one.asset_key, one.name)}


def execute(defs: Definitions, instance: DagsterInstance, selection: AssetSelection) -> dict:
    """What the UI starts for a selection."""
    job = defs.resolve_implicit_global_asset_job_def()
    keys = selection.resolve_checks(defs.resolve_asset_graph())
    result = job.get_subset(asset_selection=set(), asset_check_selection=keys).execute_in_process(instance=instance)
    return {(e.asset_key, e.check_name): e for e in result.get_asset_check_evaluations()}
