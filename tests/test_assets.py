"""Dagster: partitions are buckets, one run a tick reports all it touched, backfills converge, schedules skip."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from dagster import (
    AssetCheckKey,
    AssetKey,
    BackfillPolicy,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultScheduleStatus,
    Definitions,
    ExecuteInProcessResult,
    Failure,
    RetryRequested,
    RunRequest,
    SkipReason,
    TimeWindowPartitionMapping,
    build_schedule_context,
    materialize,
)
from dagster._core.utils import make_new_run_id

from assets import schedules
from assets.cadence import settle_wait_s
from assets.checks import counts_name
from assets.definitions import definitions_for
from assets.metadata import touched_buckets
from assets.partitions import calendar_of
from assets.resources import PipelineResource
from assets.schedules import ACTIVE, every_minute
from assets.ticking import Progress, clear_failures
from uniq_pipeline.backfill import mark_range
from uniq_pipeline.config import Settings, load_settings
from uniq_pipeline.demo.traffic import Traffic, TrafficProfile
from uniq_pipeline.drain import Source
from uniq_pipeline.errors import BrokerError, LostRace
from uniq_pipeline.kafka.embedded import EmbeddedBroker
from uniq_pipeline.kafka.sink import KafkaSink
from uniq_pipeline.kafka.source import KafkaSource
from uniq_pipeline.ledger.results import Revision
from uniq_pipeline.offsets import TopicState
from uniq_pipeline.results import RefreshReport
from uniq_pipeline.tick import open_workshop
from uniq_pipeline.windows import BUCKET, GRAINS, Grain, Window, bucket_of, to_epoch, windows_in

# What a tick reports; `admitted_frames` is for people.
TICKED = {"frames", *map(counts_name, GRAINS)}

# Ten minutes around the end of an hour, 14 November 2023, 21:55 to 22:05 UTC.
END_OF_HOUR_S = 1_699_999_200
START_S, END_S = END_OF_HOUR_S - 300, END_OF_HOUR_S + 300
NOW_S = float(END_S + 2)

slept: list[float] = []


class HeldClock(PipelineResource):
    """The pipeline two seconds after its last frame, for ever."""

    def now(self) -> float:
        return NOW_S

    def sleep(self, seconds: float) -> None:
        slept.append(seconds)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings by environment, as a run reads them, and a broker that holds ten minutes of traffic."""
    broker = EmbeddedBroker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIQ_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        patch.setenv("UNIQ_KAFKA_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        patch.setenv("UNIQ_TIMEZONE", "Europe/Zurich")
        patch.setenv("UNIQ_HISTORY_START", "2023-11-01")
        settings = load_settings()
        traffic = Traffic(TrafficProfile(frames_per_s=50, small=True, late_share=0.01, flip_share=0))
        KafkaSink(settings, settings.topic).send_frames(traffic.between(START_S, END_S))
        yield settings
    broker.close()


@pytest.fixture(scope="module")
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(scope="module")
def defs(env: Settings) -> Definitions:
    return definitions_for(env, HeldClock())


@pytest.fixture(scope="module")
def ticked(defs: Definitions, instance: DagsterInstance) -> ExecuteInProcessResult:
    return run_job(defs, "tick", instance)


@pytest.fixture(scope="module")
def closed(defs: Definitions, instance: DagsterInstance, ticked: ExecuteInProcessResult) -> ExecuteInProcessResult:
    return run_job(defs, "close_windows", instance)


def run_job(defs: Definitions, name: str, instance: DagsterInstance) -> ExecuteInProcessResult:
    job = defs.resolve_job_def(name)
    return job.execute_in_process(instance=instance)


def backfill(defs: Definitions, instance: DagsterInstance, grain: Grain, first: str, last: str):
    """What the backfill daemon starts for a range under a single-run policy."""
    asset = defs.resolve_assets_def(counts_name(grain))
    return materialize(
        [asset],
        instance=instance,
        tags={
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        },
    )


def materializations(result: ExecuteInProcessResult) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Metadata by asset and partition key."""
    found = {}
    for event in result.all_events:
        if event.event_type_value == "ASSET_MATERIALIZATION":
            said = event.step_materialization_data.materialization
            key = (said.asset_key.to_user_string(), said.partition)
            assert key not in found, "each partition is reported once a run"
            found[key] = {name: value.value for name, value in said.metadata.items()}
    return found


def checks(result: ExecuteInProcessResult) -> dict[str, bool]:
    return {
        f"{evaluation.asset_key.to_user_string()}.{evaluation.check_name}": evaluation.passed
        for evaluation in result.get_asset_check_evaluations()
    }


def rows(settings: Settings, grain: Grain, *, without: str = "computed_at") -> list[tuple[Any, ...]]:
    """What a person sees in the catalog."""
    with duckdb.connect(str(settings.catalog_path), read_only=True) as shell:
        shell.execute("SET TimeZone = 'UTC'")
        return shell.sql(f"SELECT * EXCLUDE ({without}) FROM {counts_name(grain)} ORDER BY window_start").fetchall()


def table(settings: Settings, grain: Grain) -> list[dict[str, Any]]:
    with duckdb.connect(str(settings.catalog_path), read_only=True) as shell:
        shell.execute("SET TimeZone = 'UTC'")
        return shell.sql(f"FROM {counts_name(grain)} ORDER BY window_start").to_arrow_table().to_pylist()


# Definitions


def test_definitions_are_loadable_and_hold_the_eight_assets(defs):
    Definitions.validate_loadable(defs)
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().materializable_asset_keys}
    assert keys == TICKED | {"admitted_frames"}


def test_every_schedule_runs_without_being_switched_on(defs):
    schedules = {schedule.name: schedule for schedule in defs.schedules}
    assert set(schedules) == {"every_minute", "hourly", "daily"}
    assert {s.default_status for s in schedules.values()} == {DefaultScheduleStatus.RUNNING}


def test_every_counts_asset_backfills_a_range_in_one_run_and_says_what_it_holds(defs):
    for grain in GRAINS:
        asset = defs.resolve_assets_def(counts_name(grain))
        assert asset.backfill_policy == BackfillPolicy.single_run()
        metadata = asset.metadata_by_key[AssetKey(counts_name(grain))]
        assert all(column.description for column in metadata["dagster/column_schema"].columns)
        assert metadata["sql_file"].value.startswith("sql/")


def test_a_backfill_of_years_has_time_to_be_planned_before_run_monitoring_ends_it():
    two_years_ago = datetime.now(UTC).date() - timedelta(days=731)
    hours = calendar_of(Settings(history_start=two_years_ago)).definitions[Grain.MINUTE].get_num_partitions()
    monitoring = yaml.safe_load((Path(__file__).parents[1] / "dagster.yaml").read_text())["run_monitoring"]
    # An event for each partition: up to 53 ms each were seen where others kept the machine busy.
    assert hours > 17_500
    assert monitoring["start_timeout_seconds"] > 2 * 0.053 * hours


def test_no_job_runs_without_a_limit(defs):
    for name in ("tick", "close_windows", "upkeep", "replay_quarantine"):
        assert int(defs.resolve_job_def(name).tags["dagster/max_runtime"]) <= 3600


# Partitions

# Both clock changes of a year; Kolkata's hours start at half past.
ZONES = ("UTC", "Europe/Zurich", "America/New_York", "Asia/Kolkata")
CHANGES = (
    (datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 4, 15, tzinfo=UTC)),
    (datetime(2024, 9, 25, tzinfo=UTC), datetime(2024, 11, 10, tzinfo=UTC)),
)


@pytest.mark.parametrize("name", ZONES)
@pytest.mark.parametrize(("start", "end"), CHANGES)
def test_partitions_are_the_bucket_windows_even_over_clock_changes(name, start, end):
    settings = Settings(timezone=name, history_start=start.date())
    calendar, zone = calendar_of(settings), ZoneInfo(name)
    for grain in GRAINS:
        definition = calendar.definitions[grain]
        seen = set()
        for bucket in windows_in(BUCKET[grain], to_epoch(start), to_epoch(end), zone):
            key = calendar.key_of(grain, bucket)
            if key is None:  # the first bucket of UTC may start before the zone's first day
                assert bucket.start_s < to_epoch(datetime.combine(start.date(), datetime.min.time(), zone))
                continue
            window = definition.time_window_for_partition_key(key)
            assert (window.start.timestamp(), window.end.timestamp()) == (bucket.start_s, bucket.end_s)
            assert key not in seen, "the hour that comes twice has two keys"
            seen.add(key)
        assert seen


def test_partitions_begin_with_the_window_that_holds_the_first_day():
    calendar = calendar_of(Settings(timezone="Europe/Zurich", history_start=date(2025, 5, 15)))
    firsts = {grain: definition.get_first_partition_key() for grain, definition in calendar.definitions.items()}
    assert firsts == {
        Grain.MINUTE: "2025-05-15-00:00",
        Grain.HOUR: "2025-05-15",
        Grain.DAY: "2025-05",
        Grain.WEEK: "2025-W20-1",
        Grain.MONTH: "2025-05",
        Grain.YEAR: "2025",
    }


def test_a_bucket_outside_the_partitions_shown_has_no_key():
    settings = Settings(timezone="UTC", history_start=date(2025, 5, 15))
    before, far_ahead = datetime(2025, 5, 14, tzinfo=UTC), datetime(2199, 1, 1, tzinfo=UTC)
    for moment in (before, far_ahead):
        bucket = windows_in(Grain.HOUR, to_epoch(moment), to_epoch(moment) + 1, ZoneInfo("UTC"))[0]
        assert calendar_of(settings).key_of(Grain.MINUTE, bucket) is None


def test_the_open_hour_is_a_partition_already():
    definition = calendar_of(Settings()).definitions[Grain.MINUTE]
    last = definition.time_window_for_partition_key(definition.get_last_partition_key())
    assert last.start.timestamp() <= datetime.now(UTC).timestamp() < last.end.timestamp()


@pytest.mark.parametrize(("day", "hours"), [("2025-03-30", 23), ("2025-10-26", 25), ("2025-07-01", 24)])
def test_a_day_of_hours_depends_on_exactly_its_hours_of_minutes(day, hours):
    calendar = calendar_of(Settings(timezone="Europe/Zurich", history_start=date(2025, 1, 1)))
    minute, hour = calendar.definitions[Grain.MINUTE], calendar.definitions[Grain.HOUR]
    mapping = TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)
    upstream = mapping.get_upstream_mapped_partitions_result_for_partitions(
        hour.subset_with_partition_keys([day]), hour, minute
    )
    assert len(list(upstream.partitions_subset.get_partition_keys())) == hours


# One run a tick


def test_one_tick_reports_frames_and_all_six_counts(ticked):
    assert ticked.success
    said = materializations(ticked)
    assert {asset for asset, _ in said} == TICKED
    # 21:55 to 22:05 UTC is 22:55 to 23:05 in Zurich
    assert {p for asset, p in said if asset == "minute_counts"} == {"2023-11-14-22:00", "2023-11-14-23:00"}
    assert ("hour_counts", "2023-11-14") in said
    assert ("day_counts", "2023-11") in said
    assert ("week_counts", "2023-W46-1") in said
    assert ("month_counts", "2023-11") in said
    assert ("year_counts", "2023") in said


def test_metadata_of_a_tick_equals_the_ledger_and_the_catalog(env, ticked):
    said = materializations(ticked)
    of_frames = said["frames", None]
    with open_workshop(env) as shop, shop.ledger.reading() as connection:
        columns = "sum(delivered), sum(frames), sum(late), sum(held), sum(quarantined)"
        totals = connection.exec_driver_sql(f"SELECT {columns} FROM batches").one()
    assert tuple(of_frames[n] for n in ("delivered", "frames", "late", "held", "quarantined")) == tuple(totals)
    assert of_frames["delivered"] == 600 * 50
    assert of_frames["seconds_behind"] == pytest.approx(NOW_S - of_frames["complete_until"])

    for (name, key), metadata in said.items():
        if name == "frames":
            continue
        grain = Grain(name.removesuffix("_counts"))
        stored = {f"{grain} {row['window_start']:%Y-%m-%dT%H:%M:%SZ}": row for row in table(env, grain)}
        row = stored[metadata["window"]]
        assert metadata["frames"] == row["frames"], (name, key)
        assert metadata["estimate"] == pytest.approx(row["estimate"], abs=0.05)
        assert metadata.get("unique_users") == row["unique_users"]
        assert metadata["revision"] == row["revision"]


def test_a_tick_reports_the_checks_it_knows_the_answers_to(ticked):
    assert checks(ticked) == {
        "frames.conservation": True,
        "frames.offsets_contiguous": True,
        "frames.late_ratio": True,
        "frames.rejected_ratio": True,
        "frames.held_ratio": True,
        "minute_counts.sketch_against_exact": True,
        "minute_counts.freshness": True,
    }


def test_a_tick_with_nothing_new_reports_no_counts(defs, instance, ticked):
    again = run_job(defs, "tick", instance)
    assert set(materializations(again)) == {("frames", None)}


def test_closing_windows_gives_the_hour_its_exact_count(env, closed):
    said = materializations(closed)["hour_counts", "2023-11-14"]
    hour = next(row for row in table(env, Grain.HOUR) if to_epoch(row["window_end"]) == END_OF_HOUR_S)
    assert said["unique_users"] == hour["unique_users"] > 0
    assert checks(closed)["hour_counts.sketch_against_exact"]


def test_upkeep_runs_and_leaves_what_counts(env, defs, instance, closed):
    before = rows(env, Grain.MINUTE)
    assert run_job(defs, "upkeep", instance).success
    assert rows(env, Grain.MINUTE) == before


# By hand and backfills


def test_materializing_frames_by_hand_is_a_tick(defs, instance, closed):
    result = materialize([defs.resolve_assets_def("frames")], instance=instance)
    assert ("frames", None) in materializations(result)


@pytest.mark.parametrize("grain", [Grain.MINUTE, Grain.HOUR, Grain.YEAR])
def test_a_backfill_changes_nothing_that_is_right(env, defs, instance, closed, grain):
    before = {g: rows(env, g) for g in GRAINS}
    key = _key_of_first_row(env, grain)
    result = backfill(defs, instance, grain, key, key)
    said = materializations(result)[counts_name(grain), key]
    assert said["windows_marked"] >= 1
    assert said["windows_changed"] == 0
    assert {g: rows(env, g) for g in GRAINS} == before


def _key_of_first_row(settings: Settings, grain: Grain) -> str:
    row = table(settings, grain)[0]
    window = Window(grain, to_epoch(row["window_start"]), to_epoch(row["window_end"]))
    key = calendar_of(settings).key_of(grain, bucket_of(window, settings.zone))
    assert key is not None
    return key


def test_a_backfill_of_a_range_mends_damaged_minutes_in_one_run(env, defs, instance, closed):
    answers_only = "computed_at, revision, reason, previous_unique_users, previous_estimate"
    before = {grain: rows(env, grain, without=answers_only) for grain in GRAINS}
    runs = instance.get_runs_count()
    _damage_minutes(env)
    assert rows(env, Grain.MINUTE, without=answers_only) != before[Grain.MINUTE]

    result = backfill(defs, instance, Grain.MINUTE, "2023-11-14-20:00", "2023-11-14-23:00")

    assert result.success
    assert instance.get_runs_count() == runs + 1
    reported = {key for name, key in materializations(result) if name == "minute_counts"}
    assert reported == {f"2023-11-14-{hour}:00" for hour in (20, 21, 22, 23)}
    # The hour's exact count came from minutes that were other ones then: it is made again when windows close.
    run_job(defs, "close_windows", instance)
    assert {grain: rows(env, grain, without=answers_only) for grain in GRAINS} == before


def _damage_minutes(settings: Settings) -> None:
    for path in _result_files(settings):
        stored = pq.read_table(path)
        zeros = stored["unique_users"].cast("int64").to_pylist()
        place = stored.schema.get_field_index("unique_users")
        broken = stored.set_column(place, stored.schema.field(place), [[0] * len(zeros)])
        pq.write_table(broken, path)


def _result_files(settings: Settings) -> list[Path]:
    with open_workshop(settings) as shop:
        with shop.ledger.reading() as connection:
            paths = connection.exec_driver_sql("SELECT path FROM buckets WHERE grain = 'minute'").scalars().all()
        return [shop.lake.absolute(path) for path in paths]


# Schedules


@pytest.mark.parametrize("status", ["STARTING", "STARTED", "CANCELING"])
def test_the_schedule_skips_while_a_tick_is_active(status, tmp_path):
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        _add_run(instance, "tick", status)
        answer = every_minute(build_schedule_context(instance=instance))
    assert isinstance(answer, SkipReason)
    assert status.lower() in (answer.skip_message or "")


def test_a_tick_that_died_while_starting_stops_the_schedule_for_a_while_only(tmp_path, monkeypatch):
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        _add_run(instance, "tick", "STARTING")
        assert isinstance(every_minute(build_schedule_context(instance=instance)), SkipReason)
        monkeypatch.setattr(schedules, "ACTIVE_FOR", timedelta(0))
        assert isinstance(every_minute(build_schedule_context(instance=instance)), RunRequest)


def test_a_queued_run_is_active_too():
    # Such a run can be stored only with the address of a code server.
    assert DagsterRunStatus.QUEUED in ACTIVE


@pytest.mark.parametrize(
    ("job", "status"),
    [("tick", "SUCCESS"), ("tick", "FAILURE"), ("tick", "NOT_STARTED"), ("close_windows", "STARTED")],
)
def test_the_schedule_asks_for_a_tick_when_none_is_active(job, status, tmp_path):
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        _add_run(instance, job, status)
        assert isinstance(every_minute(build_schedule_context(instance=instance)), RunRequest)


def _add_run(instance: DagsterInstance, job: str, status: str) -> None:
    run = DagsterRun(job_name=job, run_id=make_new_run_id(), status=DagsterRunStatus(status))
    instance.add_run(run)


# Waiting for a minute's last frames


@pytest.mark.parametrize(
    ("second", "settle_s", "wait_s"),
    [(0.0, 5.0, 5.0), (2.5, 5.0, 2.5), (5.0, 5.0, 0.0), (59.9, 5.0, 0.0), (0.0, 0.0, 0.0), (1.0, 25.0, 24.0)],
)
def test_a_tick_waits_until_the_minute_has_settled_and_no_longer(second, settle_s, wait_s):
    assert settle_wait_s(END_S + second, settle_s) == pytest.approx(wait_s)


def test_the_job_sleeps_what_is_left_before_it_drains(env, defs, instance, closed):
    slept.clear()
    run_job(defs, "tick", instance)
    assert slept == [pytest.approx(env.settle_s - 2)]


# Progress


def test_progress_tells_how_fast_it_is_and_how_long_it_will_take_and_not_too_often():
    said: list[str] = []
    clock = [0.0]
    context = SimpleNamespace(log=SimpleNamespace(info=said.append))
    progress = Progress(context, monotonic=lambda: clock[0])
    for moment, stage, done, total in [
        (10, "count", 1000, 100_000),
        (20, "count", 2000, 100_000),
        (25, "count", 2500, 100_000),
        (50, "count", 99_000, 100_000),
        (60, "count", 100_000, 100_000),
        (70, "rollup", 50, 60),
        (90, "drain", 10, 0),
    ]:
        clock[0] = moment
        progress(stage, done, total)
    assert said == [
        "count: 2,000 of 100,000, 100/s, 16 min left",
        "count: 99,000 of 100,000, 1,980/s, 1 s left",
        "rollup: 50 of 60, 5/s, 2 s left",
        "drain: 10, 0/s",
    ]


# Failures


def test_a_missing_topic_fails_the_run_with_words_that_help(defs, env, monkeypatch):
    monkeypatch.setenv("UNIQ_TOPIC", "nothing.here")
    with DagsterInstance.ephemeral() as instance:
        with pytest.raises(Failure, match="topic nothing.here .*UNIQ_TOPIC"):
            run_job(defs, "tick", instance)


def test_a_lost_race_is_tried_again_and_other_errors_are_not():
    with pytest.raises(RetryRequested):
        with clear_failures():
            raise LostRace("another run stored version 2 first")
    with pytest.raises(Failure) as failed:
        with clear_failures():
            raise BrokerError("down")
    assert failed.value.allow_retries is False


def test_a_run_that_fails_for_kafka_has_told_what_it_counted(env, closed, tmp_path, monkeypatch):
    """Dagster drops the events that an op logged when it raises: what was counted would look as if it were not."""

    class DownSource(KafkaSource):
        def describe(self) -> TopicState:
            raise BrokerError("no broker answers")

    class NoBroker(HeldClock):
        def source(self, settings: Settings) -> Source:
            return DownSource(settings)

    shutil.copytree(env.data_dir, tmp_path / "data")
    monkeypatch.setenv("UNIQ_DATA_DIR", str(tmp_path / "data"))
    settings = load_settings()
    with open_workshop(settings, now=lambda: NOW_S) as shop:
        mark_range(shop, Grain.MINUTE, START_S, END_S)
    with closing(sqlite3.connect(tmp_path / "data" / "ledger.db")) as ledger, ledger:
        ledger.execute("DELETE FROM buckets WHERE grain = 'minute'")  # so that its windows are new
    with DagsterInstance.ephemeral() as instance:
        job = definitions_for(settings, NoBroker()).resolve_job_def("tick")
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        assert not result.success
        assert len(instance.fetch_materializations(AssetKey("frames"), limit=9).records) == 1
        assert len(instance.fetch_materializations(AssetKey("minute_counts"), limit=9).records) == 2
        checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [AssetCheckKey(AssetKey("minute_counts"), "freshness")]
        )
        assert len(checks) == 1


# Reports


def revision(start_s: int, exact: int | None, estimate: float) -> Revision:
    window = Window(Grain.MINUTE, start_s, start_s + 60)
    return Revision(
        window=window,
        revision=1,
        frames=10,
        unique_users=exact,
        estimate=estimate,
        estimate_lower=estimate,
        estimate_upper=estimate,
        previous_unique_users=None,
        previous_estimate=None,
        status="final",
        reason="live",
        answer_changed=True,
    )


def test_a_window_computed_twice_in_a_tick_is_reported_once_with_its_last_state():
    hours = [Window(Grain.HOUR, start, start + 3600) for start in (0, 3600)]
    first = RefreshReport(Grain.MINUTE, changed=[revision(3600, 5, 5), revision(60, 1, 1)], buckets=set(hours))
    second = RefreshReport(Grain.MINUTE, changed=[revision(60, 2, 2)], buckets={hours[0]})
    touched = touched_buckets([first, second])
    assert [bucket.bucket for bucket in touched] == hours
    assert [r.unique_users for bucket in touched for r in bucket.newest_first] == [2, 5]
