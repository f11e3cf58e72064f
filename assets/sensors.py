"""What happens outside the schedules: windows that wait too long, held frames that are let in, runs that failed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dagster import (
    AssetKey,
    AssetSelection,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunFailureSensorContext,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    run_failure_sensor,
    sensor,
)

from assets.checks import ADMITTED, counts_name
from assets.partitions import Calendar, calendar_of
from assets.resources import PipelineResource
from uniq_pipeline.config import AdmitHeld, Settings, load_settings
from uniq_pipeline.errors import UniqError
from uniq_pipeline.ledger.health import held_hours, waiting_buckets
from uniq_pipeline.notify import RunFailure, notify_failure
from uniq_pipeline.windows import BUCKET, GRAINS, HOUR_S, Grain, Window, window_at

# Each evaluation is a row in Dagster's database and a call to the code server.
LOOK_EVERY_S = 300
FAILURES_EVERY_S = 60

# Runs asked for at once, and partitions looked at for them. The next evaluation goes on.
MOST_RUNS = 4
MOST_PARTITIONS = 400

# The same range is asked for again after this long, if it is still there: its run may have failed.
AGAIN_S = 3600

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
SENSOR_TAG = "uniq/asked_for"

_UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class Wanted:
    """A partition to be asked for. `version` changes when there is a new reason to."""

    bucket: Window
    key: str
    version: int


def all_sensors(settings: Settings) -> list[SensorDefinition]:
    """`admit_held` is there only where a person set it: it changes counts."""
    found = [dirty_windows, _failed_runs(settings)]
    return [*found, admit_held] if settings.admit_held is not AdmitHeld.OFF else found


@sensor(
    name="dirty_windows",
    asset_selection=AssetSelection.assets(*map(counts_name, GRAINS)),
    minimum_interval_seconds=LOOK_EVERY_S,
    default_status=DefaultSensorStatus.RUNNING,
    description="Windows that wait to be computed for longer than UNIQ_DIRTY_AFTER_S (a load or a command left "
    "them, or the ticks do not keep up): asks for exactly the partitions they are in.",
)
def dirty_windows(context: SensorEvaluationContext, pipeline: PipelineResource) -> SensorResult | SkipReason:
    settings, now_s = load_settings(), pipeline.now()
    with pipeline.ledger() as ledger:
        waiting = waiting_buckets(ledger, now_s - settings.dirty_after_s, MOST_PARTITIONS)
    calendar = calendar_of(settings)
    wanted, hidden = [], 0
    for one in waiting:
        bucket = window_at(BUCKET[one.grain], one.bucket_start_s, settings.zone)
        key = calendar.key_of(one.grain, bucket)
        if key is None:
            hidden += one.windows
        else:
            wanted.append(Wanted(bucket, key, one.seq))
    if not wanted:
        return SkipReason(
            f"{hidden:,} windows wait in partitions that are not shown (UNIQ_HISTORY_START); a tick computes them"
            if hidden
            else "no window waits"
        )
    return _ask(context, counts_name(waiting[0].grain), wanted, now_s)


@sensor(
    name="admit_held",
    asset_selection=AssetSelection.assets(ADMITTED),
    minimum_interval_seconds=LOOK_EVERY_S,
    default_status=DefaultSensorStatus.RUNNING,
    description="Very late frames that are held, from UNIQ_ADMIT_HELD_FRAMES an hour on: asks for exactly those hours "
    "of admitted_frames, so that they count.",
)
def admit_held(context: SensorEvaluationContext, pipeline: PipelineResource) -> SensorResult | SkipReason:
    settings, now_s = load_settings(), pipeline.now()
    event_class = str(settings.admit_held)
    with pipeline.ledger() as ledger:
        hours = held_hours(ledger, event_class, settings.admit_held_frames, MOST_PARTITIONS)
    wanted = _shown_hours(calendar_of(settings), hours)
    if not wanted:
        return SkipReason(f"no hour holds {settings.admit_held_frames:,} {event_class} frames")
    config = {"ops": {ADMITTED: {"config": {"classes": [event_class]}}}}
    return _ask(context, ADMITTED, wanted, now_s, config)


def _shown_hours(calendar: Calendar, hours: Sequence[tuple[int, int]]) -> list[Wanted]:
    wanted = []
    for start_s, frames in hours:
        bucket = Window(Grain.HOUR, start_s, start_s + HOUR_S)
        key = calendar.key_of(Grain.MINUTE, bucket)
        if key is not None:
            wanted.append(Wanted(bucket, key, frames))
    return wanted


def _failed_runs(settings: Settings) -> SensorDefinition:
    watched = settings.failure_webhook_url is not None

    @run_failure_sensor(
        name="failed_runs",
        minimum_interval_seconds=FAILURES_EVERY_S,
        default_status=DefaultSensorStatus.RUNNING if watched else DefaultSensorStatus.STOPPED,
        description="Posts a failed run to the webhook UNIQ_FAILURE_WEBHOOK_URL: job, run, error, time. At most one "
        "message about the same job and error in UNIQ_FAILURE_WEBHOOK_EVERY_MIN minutes.",
    )
    def failed_runs(context: RunFailureSensorContext) -> None:
        try:
            said = notify_failure(load_settings(), failure_of(context))
        except UniqError as error:  # a wrong setting; the run that failed says so, too
            said = f"not sent: {error}"
        context.log.info(f"run {context.dagster_run.run_id}: {said}")

    return failed_runs


def failure_of(context: RunFailureSensorContext) -> RunFailure:
    """The run with the error of its step, in our own words where it is ours."""
    error = context.failure_event.message or "failed"
    for event in context.get_step_failure_events():
        if event.step_failure_data.error is not None:
            cause = event.step_failure_data.error
            error = (cause.cause or cause).message if cause.cls_name != "Failure" else cause.message
    failed_at = context.instance.get_run_record_by_id(context.dagster_run.run_id)
    return RunFailure(
        job=context.dagster_run.job_name,
        run_id=context.dagster_run.run_id,
        error=error.strip(),
        at=(failed_at.end_time if failed_at else None) or 0.0,
    )


def _ask(
    context: SensorEvaluationContext, asset: str, wanted: Sequence[Wanted], now_s: float, config: dict | None = None
) -> SensorResult | SkipReason:
    """A run a range of neighbouring partitions, at most so many. One that is under way is not asked for again."""
    requests, busy = [], 0
    for group in _neighbours(wanted):
        first, last = group[0].key, group[-1].key
        tags = {RANGE_START: first, RANGE_END: last, SENSOR_TAG: asset}
        if context.instance.get_runs(filters=RunsFilter(tags=tags, statuses=_UNFINISHED), limit=1):
            busy += 1
            continue
        version = max(one.version for one in group)
        requests.append(
            RunRequest(
                run_key=f"{asset} {first} to {last} as of {version}, {int(now_s) // AGAIN_S}",
                asset_selection=[AssetKey(asset)],
                run_config=config or {},
                tags=tags,
            )
        )
        if len(requests) == MOST_RUNS:
            break
    if not requests:
        return SkipReason(f"{busy} runs of {asset} that were asked for are not done")
    return SensorResult(run_requests=requests)


def _neighbours(wanted: Iterable[Wanted]) -> list[list[Wanted]]:
    """Ranges of partitions that follow each other, oldest first."""
    groups: list[list[Wanted]] = []
    for one in sorted(wanted, key=lambda one: one.bucket.start_s):
        if groups and groups[-1][-1].bucket.end_s == one.bucket.start_s:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups
