"""The jobs that keep everything fresh. Each is one op in one process: a process of its own costs a step 2 s."""

import time
from dataclasses import asdict

from dagster import Config, In, Nothing, OpExecutionContext, RunConfig, in_process_executor, job, op
from pydantic import Field

from assets.aside import replay_quarantine_job
from assets.audit import AUDIT_JOBS, report_stored_files
from assets.limits import COMPUTE_FOR_S, DRAIN_FOR_S, LONG_LIMITS, QUIET, TICK_LIMITS
from assets.resources import PipelineResource
from assets.ticking import Progress, clear_failures, report_all, run_tick
from uniq_pipeline.compact import compact
from uniq_pipeline.config import load_settings
from uniq_pipeline.expire import expire
from uniq_pipeline.maintain import collect_garbage
from uniq_pipeline.results import final_before_s

# Seconds that pruning may take of a daily run; the first one on an old installation goes on the next day.
PRUNE_FOR_S = 1200.0
# And compaction of an hourly one: years of loaded history are merged over some hours.
COMPACT_FOR_S = 1200.0

# Windows are closed between two ticks: at the same moment both would read the same offsets, and one in vain.
CLOSE_SETTLE_S = 25.0


class TickConfig(Config):
    """How one tick runs."""

    close_windows: bool = Field(
        default=False, description="Also build the uid sets of closed windows, for exact counts from the hour up."
    )
    settle_s: float | None = Field(
        default=None, ge=0, le=59, description="Seconds after the minute's end to wait for; default: the setting."
    )


@op(description="Drains, counts, rolls up, publishes; reports each partition it touched.")
def run_one_tick(context: OpExecutionContext, config: TickConfig, pipeline: PipelineResource) -> None:
    outcome = run_tick(
        context,
        pipeline,
        drain_for_s=DRAIN_FOR_S,
        compute_for_s=None if config.close_windows else COMPUTE_FOR_S,
        close_windows=config.close_windows,
        settle_s=lambda settings: settings.settle_s if config.settle_s is None else config.settle_s,
    )
    if config.close_windows:
        report_stored_files(context, pipeline)  # first: what follows fails when a file is damaged
    report_all(context, outcome)


@op(
    ins={"after": In(Nothing)},
    description="Merges the small files of closed hours into one each, and those of days set aside.",
)
def compact_files(context: OpExecutionContext, pipeline: PipelineResource) -> None:
    progress, until = Progress(context), time.monotonic() + COMPACT_FOR_S
    with clear_failures(), pipeline.workshop() as shop:
        report = compact(
            shop,
            closed_before_s=final_before_s(shop),
            progress=lambda done, total: progress("folders", done, total),
            is_over=lambda: time.monotonic() > until,
        )
    for error in report.failed:
        context.log.error(error)
    context.log.info(f"{report.files:,} files of {report.rows:,} rows merged into {report.merged_into:,}")
    context.add_output_metadata(asdict(report))


@op(description="Lets go what was kept for as many days as the setting UNIQ_RETENTION says; counts stay.")
def expire_files(context: OpExecutionContext, pipeline: PipelineResource) -> None:
    progress = Progress(context)
    with clear_failures(), pipeline.workshop() as shop:
        report = expire(shop, progress=lambda what, done, total: progress(f"days of {what}", done, total))
    for error in report.failed:
        context.log.error(error)
    for what, days in report.waiting.items():
        context.log.warning(f"{what}: {days:,} days wait for counts, they go the next time")
    context.add_output_metadata({"files": dict(report.files), "records": dict(report.records)})


@op(
    ins={"after": In(Nothing)},
    description="Removes files that no longer count, once nobody can still be reading them.",
)
def collect_lake_garbage(context: OpExecutionContext, pipeline: PipelineResource) -> None:
    with clear_failures(), pipeline.workshop() as shop:
        report = collect_garbage(shop.settings, shop.ledger, shop.lake)
    context.log.info(f"{report.retired} retired files, {report.orphans} orphans, {report.freed_bytes:,} bytes freed")
    context.add_output_metadata(
        {"retired": report.retired, "orphans": report.orphans, "freed_bytes": report.freed_bytes}
    )


@op(
    ins={"after": In(Nothing)},
    description="Removes old runs, events, schedule ticks and run logs of Dagster's own; what asset pages need stays.",
)
def prune_dagster(context: OpExecutionContext) -> None:
    from assets.pruning import prune  # knows Dagster's storage, which each tick's process would load as well

    with clear_failures():
        settings = load_settings()
        report = prune(
            context.instance,
            keep_days=settings.dagster_keep_days,
            keep_failed_days=settings.dagster_keep_failed_days,
            for_s=PRUNE_FOR_S,
            log=context.log,
        )
    context.add_output_metadata(asdict(report))


@job(
    name="tick",
    description="Every minute: reads what is new and refreshes what it changes, in one run.",
    executor_def=in_process_executor,
    tags=TICK_LIMITS,
    config=RunConfig(loggers=QUIET),
)
def tick_job() -> None:
    run_one_tick()


@job(
    name="close_windows",
    description="Every hour: a tick that also gives closed hours, days and longer windows their exact counts; then the "
    "files of closed hours are merged.",
    executor_def=in_process_executor,
    tags=LONG_LIMITS,
    config=RunConfig(ops={"run_one_tick": TickConfig(close_windows=True, settle_s=CLOSE_SETTLE_S)}, loggers=QUIET),
)
def close_windows_job() -> None:
    compact_files(after=run_one_tick())


@job(
    name="upkeep",
    description="Every day: lets go what was kept long enough, removes files that no longer count, and what Dagster "
    "itself need not keep.",
    executor_def=in_process_executor,
    tags=LONG_LIMITS,
    config=RunConfig(loggers=QUIET),
)
def upkeep_job() -> None:
    prune_dagster(after=collect_lake_garbage(after=expire_files()))


JOBS = (tick_job, close_windows_job, upkeep_job, replay_quarantine_job, *AUDIT_JOBS)
