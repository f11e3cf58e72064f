"""What does not count by itself: admitting held frames over a range of hours, reading quarantine again."""

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    BackfillPolicy,
    Config,
    MaterializeResult,
    MetadataValue,
    OpExecutionContext,
    asset,
    in_process_executor,
    job,
    op,
)
from pydantic import Field, field_validator

from assets import columns
from assets.checks import ADMITTED, GROUP, OWNERS
from assets.limits import LONG_LIMITS
from assets.metadata import Metadata
from assets.partitions import Calendar
from assets.resources import PipelineResource
from assets.sources import references
from assets.ticking import Progress, report_all, report_counts, run_tick
from uniq_pipeline.config import Settings
from uniq_pipeline.frames import Reason
from uniq_pipeline.lateness import EventClass
from uniq_pipeline.move import HELD_CLASSES, MoveReport, admit, replay, withdraw
from uniq_pipeline.results import Workshop
from uniq_pipeline.schemas import HELD_SCHEMA
from uniq_pipeline.windows import Grain, to_epoch

_CLASSES = sorted(event_class.label for event_class in HELD_CLASSES)


class AdmitConfig(Config):
    """Which held frames count from now on, or no longer."""

    classes: list[str] = Field(default=_CLASSES, description=f"Event classes to move: {', '.join(_CLASSES)}.")
    withdraw: bool = Field(default=False, description="The way back: hold again what was admitted.")

    @field_validator("classes")
    @classmethod
    def _known(cls, classes: list[str]) -> list[str]:
        unknown = sorted(set(classes) - set(_CLASSES))
        if unknown or not classes:
            raise ValueError(f"classes: found {unknown or 'none'}, allowed are {_CLASSES}")
        return classes


class ReplayConfig(Config):
    """Which quarantined records are read again."""

    reasons: list[str] = Field(
        default=[str(reason) for reason in Reason], description="Only records quarantined for these reasons."
    )

    @field_validator("reasons")
    @classmethod
    def _known(cls, reasons: list[str]) -> list[str]:
        unknown = sorted(set(reasons) - {str(reason) for reason in Reason})
        if unknown or not reasons:
            raise ValueError(f"reasons: found {unknown or 'none'}, allowed are {[str(reason) for reason in Reason]}")
        return reasons


def admitted_frames(calendar: Calendar, settings: Settings) -> AssetsDefinition:
    @asset(
        name=ADMITTED,
        description="Held frames (very late, or from the future) that a person lets count. Materializing hours admits "
        "what is held for them, and gives exactly the windows it touches a new revision, with the reason "
        "`admitted`. With `withdraw` in the launchpad it is taken back. Nothing is admitted together with other "
        "assets: materialize it alone.",
        # Without `frames` above it: what it moves is not in there yet.
        group_name=GROUP,
        owners=OWNERS,
        kinds={"parquet"},
        partitions_def=calendar.definitions[Grain.MINUTE],
        backfill_policy=BackfillPolicy.single_run(),
        metadata={
            "dagster/column_schema": columns.table_schema(HELD_SCHEMA, columns.FRAMES),
            "dagster/table_name": "uniq.held_frames",
            **references(settings, "uniq_pipeline/move.py"),
        },
    )
    def moved(context: AssetExecutionContext, config: AdmitConfig, pipeline: PipelineResource) -> MaterializeResult:
        if not _is_alone(context):
            said = "nothing was moved: other assets were materialized with it; materialize admitted_frames alone"
            context.log.warning(said)
            return MaterializeResult(metadata={"moved": 0, "why": said})
        window = context.partition_time_window
        classes = [EventClass[name.upper()] for name in config.classes]
        done: MoveReport | None = None

        def move(shop: Workshop) -> None:
            nonlocal done
            progress = Progress(context)
            done = (withdraw if config.withdraw else admit)(
                shop,
                to_epoch(window.start),
                to_epoch(window.end),
                classes,
                progress=lambda files, total: progress("files", files, total),
            )

        outcome = run_tick(context, pipeline, drain=False, first=move)
        report_counts(context, outcome)
        return MaterializeResult(metadata=_said(context, done))

    return moved


@op(description="Reads quarantined records again under the settings in force; moves those that are frames by now.")
def replay_records(context: OpExecutionContext, config: ReplayConfig, pipeline: PipelineResource) -> None:
    done: MoveReport | None = None

    def move(shop: Workshop) -> None:
        nonlocal done
        progress = Progress(context)
        done = replay(
            shop,
            [Reason(reason) for reason in config.reasons],
            progress=lambda files, total: progress("files", files, total),
        )

    outcome = run_tick(context, pipeline, drain=False, first=move)
    report_all(context, outcome)
    context.add_output_metadata(_said(context, done))


@job(
    name="replay_quarantine",
    description="For after a mended setting (ts_unit) or a newer version: quarantined records that can be read by now "
    "go into their windows, once; the others stay.",
    executor_def=in_process_executor,
    tags=LONG_LIMITS,
)
def replay_quarantine_job() -> None:
    replay_records()


def _is_alone(context: AssetExecutionContext) -> bool:
    """Whether a person chose this asset by itself: whoever materializes everything admits nothing by accident."""
    chosen = set(context.job_def.asset_layer.selected_asset_keys)
    backfill_id = context.run.tags.get("dagster/backfill")
    backfill = context.instance.get_backfill(backfill_id) if backfill_id else None
    if backfill is not None:
        chosen |= set(backfill.asset_selection or ())
    return chosen <= {context.asset_key}


def _said(context: OpExecutionContext | AssetExecutionContext, done: MoveReport | None) -> Metadata:
    assert done is not None
    context.log.info(f"{done.kind}: {done.frames:,} frames counted, {done.held:,} held, from {done.files:,} files")
    return {
        "moved": done.moved,
        "counted": done.frames,
        "held": done.held,
        "files": done.files,
        "classes": MetadataValue.json(dict(sorted(done.classes.items()))),
    }
