"""The assets. Materializing one by hand, or backfilling a range, runs a tick; the schedule does the rest."""

from collections.abc import Mapping

from dagster import (
    AssetDep,
    AssetExecutionContext,
    AssetsDefinition,
    BackfillPolicy,
    MaterializeResult,
    MetadataValue,
    TimeWindowPartitionMapping,
    asset,
)

from assets import columns
from assets.aside import admitted_frames
from assets.checks import ADMITTED, FRAMES, GROUP, OWNERS, counts_name
from assets.metadata import Metadata, run_metadata
from assets.partitions import Calendar, calendar_of
from assets.resources import PipelineResource
from assets.sources import references
from assets.ticking import raise_error, report_counts, run_tick
from uniq_pipeline.backfill import mark_range
from uniq_pipeline.config import Settings
from uniq_pipeline.queries import query
from uniq_pipeline.results import Workshop
from uniq_pipeline.schemas import FRAMES_SCHEMA, RESULT_SCHEMA
from uniq_pipeline.windows import CHILD, GRAINS, Grain, to_epoch

_SQL: Mapping[Grain, tuple[str, ...]] = {
    grain: (
        "count/window_counts" if grain is Grain.MINUTE else "rollup/merge_children",
        "count/merge_windows",
    )
    for grain in GRAINS
}

_COMMON = (
    "\n\n`unique_users` is exact (NULL where it is not known yet), `estimate` comes from the HLL state and has bounds. "
    "A row is `provisional` until late frames are no longer waited for, then `final`; a later change is a new "
    "`revision` with its reason. Materializing a partition computes its windows anew from what is in the lake, and "
    "everything above them; what comes out the same keeps its revision. Ask with `uniq-pipeline query` or any DuckDB "
    "client on `uniq.duckdb`: `FROM {view}`."
)

_DESCRIPTIONS: Mapping[Grain, str] = {
    Grain.MINUTE: "**How many different users there were in each minute**: counted exactly from `frames`, and as a "
    "mergeable HLL state, seconds after the minute's end. A partition is an hour of minutes.",
    Grain.HOUR: "**How many different users there were in each hour**: the states of its minutes, merged every "
    "minute; the exact count once the hour has closed. A partition is a day of hours.",
    Grain.DAY: "**How many different users there were on each local day**, to date for today: merged from hours. A "
    "partition is a month of days.",
    Grain.WEEK: "**How many different users there were in each ISO week**, Monday to Sunday: merged from days.",
    Grain.MONTH: "**How many different users there were in each calendar month**: merged from days.",
    Grain.YEAR: "**How many different users there were in each calendar year**, to date: merged from months.",
}


def all_assets(settings: Settings) -> list[AssetsDefinition]:
    calendar = calendar_of(settings)
    return [
        _frames(settings),
        admitted_frames(calendar, settings),
        *(_counts(grain, calendar, settings) for grain in GRAINS),
    ]


def _frames(settings: Settings) -> AssetsDefinition:
    @asset(
        name=FRAMES,
        description=f"**Frames of the Kafka topic `{settings.topic}`**, each once, as Parquet by event hour: who "
        "(`uid`) was there when (`event_time`). Its partitions are the topic's offsets, which the ledger keeps. "
        "Materializing it reads what is new and counts it, which the schedule `every_minute` does anyway. What is no "
        "frame is in quarantine, what is implausible or too late is held: `FROM quarantine`, `FROM held_frames`.",
        group_name=GROUP,
        owners=OWNERS,
        kinds={"kafka", "parquet"},
        metadata={
            "dagster/column_schema": columns.table_schema(FRAMES_SCHEMA, columns.FRAMES),
            "dagster/table_name": "uniq.frames",
            **references(settings, "uniq_pipeline/drain.py", "uniq_pipeline/extract.py"),
        },
    )
    def frames(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult:
        outcome = run_tick(context, pipeline)
        report_counts(context, outcome)
        raise_error(outcome)
        return MaterializeResult(metadata=outcome.metadata)

    return frames


def _counts(grain: Grain, calendar: Calendar, settings: Settings) -> AssetsDefinition:
    name, sql = counts_name(grain), _SQL[grain]

    @asset(
        name=name,
        description=_DESCRIPTIONS[grain] + _COMMON.format(view=name),
        group_name=GROUP,
        owners=OWNERS,
        kinds={"duckdb", "parquet"},
        partitions_def=calendar.definitions[grain],
        deps=_upstream(grain),
        # One run for a whole range: a run costs seconds, a partition in it 17 ms.
        backfill_policy=BackfillPolicy.single_run(),
        metadata={
            "dagster/column_schema": columns.table_schema(RESULT_SCHEMA, columns.RESULTS),
            "dagster/table_name": f"uniq.{name}",
            **references(settings, *(f"sql/{statement}.sql" for statement in sql)),
            "sql_file": MetadataValue.text(f"sql/{sql[0]}.sql"),
            "sql": MetadataValue.md(f"```sql\n{query(sql[0])}\n```"),
        },
    )
    def counts(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult:
        window = context.partition_time_window
        marked = 0

        def mark(shop: Workshop) -> None:
            nonlocal marked
            marked = mark_range(shop, grain, to_epoch(window.start), to_epoch(window.end))
            context.log.info(f"{marked:,} windows to compute, of {len(context.partition_keys):,} partitions")

        # Nothing is drained: a backfill computes anew what is in the lake, and leaves reading to the ticks.
        outcome = run_tick(context, pipeline, drain=False, first=mark, plots_of=(grain,))
        report_counts(context, outcome, except_grain=grain)
        raise_error(outcome)
        reports = [report for report in outcome.report.refreshed if report.grain is grain]
        context.log.info(f"{marked:,} windows marked, {sum(report.computed for report in reports):,} computed")
        # Of a range each partition is told the same; of one alone there is more to be told.
        own: Metadata = outcome.metadata_of(grain, to_epoch(window.start)) if len(context.partition_keys) == 1 else {}
        return MaterializeResult(metadata=run_metadata(reports, marked) | own)

    return counts


def _upstream(grain: Grain) -> list[AssetDep]:
    # A period that is open, or older than the first day shown, has inputs that are no partitions.
    mapping = TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)
    if grain is Grain.MINUTE:
        return [AssetDep(FRAMES), AssetDep(ADMITTED, partition_mapping=mapping)]
    return [AssetDep(counts_name(CHILD[grain]), partition_mapping=mapping)]
