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
from assets.checks import ADMITTED, CONSERVATION, FRAMES, GROUP, OWNERS, counts_name, specs_of
from assets.metadata import run_metadata
from assets.partitions import Calendar
from assets.resources import PipelineResource
from assets.ticking import raise_broker_error, report_counts, run_tick
from uniq_pipeline.backfill import mark_range
from uniq_pipeline.queries import query
from uniq_pipeline.results import Workshop
from uniq_pipeline.schemas import FRAMES_SCHEMA, RESULT_SCHEMA
from uniq_pipeline.windows import CHILD, GRAINS, Grain, to_epoch

_SQL: Mapping[Grain, str] = {
    grain: "count/window_counts" if grain is Grain.MINUTE else "rollup/merge_children" for grain in GRAINS
}

_DESCRIPTIONS: Mapping[Grain, str] = {
    Grain.MINUTE: "Different users of each minute, exact and as a mergeable HLL state. A partition is an hour.",
    Grain.HOUR: "Different users of each hour, merged from minutes. A partition is a day.",
    Grain.DAY: "Different users of each local day, merged from hours. A partition is a month.",
    Grain.WEEK: "Different users of each ISO week, merged from days.",
    Grain.MONTH: "Different users of each month, merged from days.",
    Grain.YEAR: "Different users of each year, to date, merged from months.",
}


def all_assets(calendar: Calendar) -> list[AssetsDefinition]:
    return [frames, admitted_frames(calendar), *(_counts(grain, calendar) for grain in GRAINS)]


@asset(
    name=FRAMES,
    description="Frames of the Kafka topic, each once, as Parquet by event hour. Its partitions are offsets, "
    "which the ledger keeps. Materializing it reads what is new and counts it.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"kafka", "parquet"},
    metadata={"dagster/column_schema": columns.table_schema(FRAMES_SCHEMA, columns.FRAMES)},
    check_specs=[CONSERVATION],
)
def frames(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult:
    outcome = run_tick(context, pipeline)
    report_counts(context, outcome)
    raise_broker_error(outcome)
    return MaterializeResult(metadata=outcome.metadata, check_results=outcome.frames_checks())


def _counts(grain: Grain, calendar: Calendar) -> AssetsDefinition:
    sql = _SQL[grain]

    @asset(
        name=counts_name(grain),
        description=_DESCRIPTIONS[grain],
        group_name=GROUP,
        owners=OWNERS,
        kinds={"duckdb", "parquet"},
        partitions_def=calendar.definitions[grain],
        deps=_upstream(grain),
        # One run for a whole range: a run costs seconds, a partition in it 17 ms.
        backfill_policy=BackfillPolicy.single_run(),
        metadata={
            "dagster/column_schema": columns.table_schema(RESULT_SCHEMA, columns.RESULTS),
            "sql_file": MetadataValue.text(f"sql/{sql}.sql"),
            "sql": MetadataValue.md(f"```sql\n{query(sql)}\n```"),
        },
        check_specs=specs_of(grain),
    )
    def counts(context: AssetExecutionContext, pipeline: PipelineResource) -> MaterializeResult:
        window = context.partition_time_window
        marked = 0

        def mark(shop: Workshop) -> None:
            nonlocal marked
            marked = mark_range(shop, grain, to_epoch(window.start), to_epoch(window.end))

        # Nothing is drained: a backfill computes anew what is in the lake, and leaves reading to the ticks.
        outcome = run_tick(context, pipeline, drain=False, first=mark)
        report_counts(context, outcome, except_grain=grain)
        raise_broker_error(outcome)
        reports = [report for report in outcome.report.refreshed if report.grain is grain]
        context.log.info(f"{marked:,} windows marked, {sum(report.computed for report in reports):,} computed")
        return MaterializeResult(
            metadata=run_metadata(reports, marked),
            check_results=outcome.counts_checks(grain),
        )

    return counts


def _upstream(grain: Grain) -> list[AssetDep]:
    # A period that is open, or older than the first day shown, has inputs that are no partitions.
    mapping = TimeWindowPartitionMapping(allow_nonexistent_upstream_partitions=True)
    if grain is Grain.MINUTE:
        return [AssetDep(FRAMES), AssetDep(ADMITTED, partition_mapping=mapping)]
    return [AssetDep(counts_name(CHILD[grain]), partition_mapping=mapping)]
