"""When the jobs run. Dagster does not make up for ticks it missed, and need not: a tick does all there is."""

from datetime import UTC, datetime, timedelta

from dagster import (
    DagsterRunStatus,
    DefaultScheduleStatus,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    schedule,
)

from assets.jobs import close_windows_job, tick_job, upkeep_job

# NOT_STARTED is left out: nothing ends a run whose request died between being stored and being queued, and
# one such would stop the schedule for ever.
ACTIVE = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]

# Longer than a tick may take. Run monitoring gives a run an hour to start, for the sake of large backfills: a tick that
# died while it was starting would stop the schedule that long.
ACTIVE_FOR = timedelta(minutes=15)


@schedule(
    name="every_minute",
    job=tick_job,
    cron_schedule="* * * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Starts a tick, unless one is queued or running: that one reads to the end of the log anyway.",
)
def every_minute(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
    since = datetime.now(UTC) - ACTIVE_FOR
    running = RunsFilter(job_name=tick_job.name, statuses=ACTIVE, created_after=since)
    active = context.instance.get_runs(filters=running, limit=1)
    if active:
        return SkipReason(f"run {active[0].run_id} of {tick_job.name} is {active[0].status.value.lower()}")
    return RunRequest()


# Four minutes past: the hour's last minute is final after the allowed lateness, two minutes by default.
hourly = ScheduleDefinition(
    name="hourly",
    job=close_windows_job,
    cron_schedule="4 * * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Closes hours, days and longer windows.",
)

daily = ScheduleDefinition(
    name="daily",
    job=upkeep_job,
    cron_schedule="17 3 * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Upkeep of the lake.",
)

SCHEDULES = (every_minute, hourly, daily)
