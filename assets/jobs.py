"""The jobs that keep everything fresh. Each is one op in one process: a process of its own costs a step 2 s."""

from dagster import Config, OpExecutionContext, RunConfig, in_process_executor, job, op
from pydantic import Field

from assets.aside import replay_quarantine_job
from assets.audit import AUDIT_JOBS, report_stored_files
from assets.limits import COMPUTE_FOR_S, DRAIN_FOR_S, LONG_LIMITS, QUIET, TICK_LIMITS
from assets.resources import PipelineResource
from assets.ticking import clear_failures, report_all, run_tick
from uniq_pipeline.maintain import collect_garbage

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


@op(description="Removes files that no longer count, once nobody can still be reading them.")
def collect_lake_garbage(context: OpExecutionContext, pipeline: PipelineResource) -> None:
    with clear_failures(), pipeline.workshop() as shop:
        report = collect_garbage(shop.settings, shop.ledger, shop.lake)
    context.log.info(f"{report.retired} retired files, {report.orphans} orphans, {report.freed_bytes:,} bytes freed")
    context.add_output_metadata(
        {"retired": report.retired, "orphans": report.orphans, "freed_bytes": report.freed_bytes}
    )


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
    description="Every hour: a tick that also gives closed hours, days and longer windows their exact counts.",
    executor_def=in_process_executor,
    tags=LONG_LIMITS,
    config=RunConfig(ops={"run_one_tick": TickConfig(close_windows=True, settle_s=CLOSE_SETTLE_S)}, loggers=QUIET),
)
def close_windows_job() -> None:
    run_one_tick()


@job(
    name="upkeep",
    description="Every day: removes files that no longer count.",
    executor_def=in_process_executor,
    tags=LONG_LIMITS,
    config=RunConfig(loggers=QUIET),
)
def upkeep_job() -> None:
    collect_lake_garbage()


JOBS = (tick_job, close_windows_job, upkeep_job, replay_quarantine_job, *AUDIT_JOBS)
