"""The audit of ledger, lake and results, as a job and as a check; and reading a range of offsets once more."""

from dagster import (
    AssetCheckResult,
    Config,
    Failure,
    MetadataValue,
    OpExecutionContext,
    asset_check,
    in_process_executor,
    job,
    op,
)
from pydantic import Field, model_validator

from assets.checks import FRAMES
from assets.limits import LONG_LIMITS
from assets.metadata import Metadata
from assets.resources import PipelineResource
from assets.ticking import Progress, clear_failures, evaluation, report_all, run_tick
from uniq_pipeline.ledger.logs import current_log
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.redrain import RedrainReport, plan_redrain, redrain
from uniq_pipeline.results import Workshop
from uniq_pipeline.verify import SAMPLE, Report, verify

SHOWN = 20  # faults in the metadata of a run

NAME = "stored_files_intact"


@asset_check(
    asset=FRAMES,
    name=NAME,
    description="All files that count are there with their sizes, and the ledger agrees with itself. Hourly.",
)
def stored_files_intact(pipeline: PipelineResource) -> AssetCheckResult:
    with clear_failures(), pipeline.workshop() as shop:
        return look_at_files(shop)


def look_at_files(shop: Workshop) -> AssetCheckResult:
    """The quick audit: no file is opened. Each fault says what mends it."""
    report = verify(shop, quick=True)
    return AssetCheckResult(
        asset_key=FRAMES,
        check_name=NAME,
        passed=report.passed,
        description="; ".join(fault.text for fault in report.faults[:3]) or None,
        metadata={"files": report.files, "faults": len(report.faults)},
    )


def report_stored_files(context: OpExecutionContext, pipeline: PipelineResource) -> None:
    """Runs the check and reports it: for the hourly job.

    At once, not with the run's own events: those are dropped when the run fails, as it does with a damaged file.
    """
    with clear_failures(), pipeline.workshop() as shop:
        context.instance.report_runless_asset_event(evaluation(look_at_files(shop)))


class VerifyConfig(Config):
    """How much is looked at."""

    quick: bool = Field(default=False, description="Only the ledger, and whether files are there with their sizes.")
    sample: int = Field(default=SAMPLE, ge=0, description="Windows of each grain that are computed again.")
    every: bool = Field(default=False, description="Computes every window again.")


@op(description="Holds ledger, lake and results against each other; changes nothing. Fails when something is wrong.")
def audit_everything(context: OpExecutionContext, config: VerifyConfig, pipeline: PipelineResource) -> None:
    with clear_failures(), pipeline.workshop() as shop:
        report = verify(
            shop, quick=config.quick, sample=None if config.every else config.sample, progress=Progress(context)
        )
    for warning in report.warnings:
        context.log.warning(warning)
    context.add_output_metadata(_audited(report))
    if report.faults:
        raise Failure(
            f"{len(report.faults):,} faults: {report.faults[0].text}",
            metadata={"faults": MetadataValue.md(_faults(report))},
            allow_retries=False,
        )


def _audited(report: Report) -> Metadata:
    lines = ["| | check | looked at | |", "|---|---|---|---|"]
    for check in report.checks:
        skipped = f", {check.skipped:,} skipped" if check.skipped else ""
        state = "passed" if check.passed else "**failed**"
        lines.append(f"| {state} | {check.name} | {check.looked_at:,} {check.unit}{skipped} | {check.note} |")
    return {
        "checks": MetadataValue.md("\n".join(lines)),
        "faults": MetadataValue.md(_faults(report)),
        "files": report.files,
        "records": report.rows,
        "orphans": report.orphans,
        "seconds": round(report.seconds, 1),
    }


def _faults(report: Report) -> str:
    lines = [f"- {fault.text}" for fault in report.faults[:SHOWN]]
    more = len(report.faults) - SHOWN
    return "\n".join([*lines, *([f"- and {more:,} more"] if more > 0 else [])]) or "none"


@job(
    name="verify",
    description="The full audit: offsets, conservation, every file with its checksum, each record in one place, "
    "windows computed again. What it finds wrong, `uniq-pipeline repair` mends. Runs beside everything else.",
    executor_def=in_process_executor,
    tags=LONG_LIMITS,
)
def verify_job() -> None:
    audit_everything()


class RedrainConfig(Config):
    """Which offsets are read again."""

    topic: str = Field(min_length=1, description="Kafka topic.")
    kafka_partition: int = Field(ge=0, description="Topic partition.")
    start_offset: int = Field(ge=0, description="First offset.")
    end_offset: int = Field(ge=1, description="First offset after the range.")

    @model_validator(mode="after")
    def _is_a_range(self) -> "RedrainConfig":
        if self.end_offset <= self.start_offset:
            raise ValueError(f"end_offset {self.end_offset} must be greater than start_offset {self.start_offset}")
        return self


@op(description="Reads a range of offsets that Kafka still holds once more; replaces what comes out differently.")
def redrain_offsets(context: OpExecutionContext, config: RedrainConfig, pipeline: PipelineResource) -> None:
    done: RedrainReport | None = None

    def read_again(shop: Workshop) -> None:
        nonlocal done
        log = current_log(shop.ledger, config.topic)
        source = pipeline.source(shop.settings.model_copy(update={"topic": log}))
        plan = plan_redrain(shop, source, [OffsetRange(config.kafka_partition, config.start_offset, config.end_offset)])
        for line in plan.lines():
            context.log.info(line)
        progress = Progress(context)
        done = redrain(shop, source, plan, lambda read, total: progress("records", read, total))

    outcome = run_tick(context, pipeline, drain=False, first=read_again)
    report_all(context, outcome)
    assert done is not None
    context.add_output_metadata(
        {
            "read": done.read,
            "replaced": done.replaced,
            "put_back": done.restored,
            "left_as_they_were": done.kept,
            "files": done.files,
        }
    )


@job(
    name="redrain",
    description="For after a mended setting, and for files that are missing or damaged: a range of offsets is read "
    "once more. What was counted stays counted, and where the next drain goes on does not change.",
    executor_def=in_process_executor,
    tags=LONG_LIMITS,
)
def redrain_job() -> None:
    redrain_offsets()


AUDIT_JOBS = (verify_job, redrain_job)
AUDIT_CHECKS = (stored_files_intact,)
