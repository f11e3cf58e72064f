"""Runs one tick inside a Dagster run, and reports each partition it touched as a materialization.

The jobs and the assets share this. Reporting comes after the ledger's commits: a run killed in between has
done its work, and the next one that touches the partition reports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetExecutionContext,
    AssetMaterialization,
    Failure,
    OpExecutionContext,
    RetryRequested,
)

from assets import checks
from assets.cadence import settle_wait_s
from assets.metadata import Metadata, Touched, bucket_metadata, tick_metadata, touched_buckets
from assets.partitions import calendar_of
from assets.resources import PipelineResource
from uniq_pipeline.config import Settings
from uniq_pipeline.errors import LostRace, UniqError
from uniq_pipeline.results import Workshop
from uniq_pipeline.tick import TickReport, tick
from uniq_pipeline.windows import Grain

Context = OpExecutionContext | AssetExecutionContext

# A line of progress is an event in Dagster's database, so there is one this often at most.
PROGRESS_EVERY_S = 15.0

RACE_RETRIES = 3
RACE_RETRY_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """A tick's report, as Dagster is to be told of it."""

    settings: Settings
    report: TickReport
    touched: list[Touched]
    now_s: float

    @property
    def front_s(self) -> int | None:
        """Event time has come this far; the event watermark trails it by the expected delay."""
        watermark_s = self.report.watermark_s
        return None if watermark_s is None else watermark_s + self.settings.expected_delay_s

    @property
    def metadata(self) -> Metadata:
        """Of the frames asset."""
        return tick_metadata(self.report, self.front_s, self.now_s)

    def of_grain(self, grain: Grain) -> list[Touched]:
        return [touched for touched in self.touched if touched.grain is grain]

    def keyed(self) -> Iterator[tuple[Touched, str, Metadata]]:
        """Each touched bucket that is a partition, its key and metadata."""
        calendar = calendar_of(self.settings)
        for touched in self.touched:
            key = calendar.key_of(touched.grain, touched.bucket)
            if key is not None:
                yield touched, key, bucket_metadata(touched, self.front_s, self.now_s)

    def frames_checks(self) -> list[AssetCheckResult]:
        return [checks.conservation(self.report.drain)] if self.report.drain else []

    def counts_checks(self, grain: Grain) -> list[AssetCheckResult]:
        results = [checks.sketch_against_exact(grain, self.of_grain(grain), self.settings.lg_k)]
        if grain is Grain.MINUTE:
            results.append(checks.freshness(self.front_s, self.now_s))
        return results


def run_tick(
    context: Context,
    pipeline: PipelineResource,
    *,
    drain: bool = True,
    drain_for_s: float | None = None,
    compute_for_s: float | None = None,
    close_windows: bool = False,
    settle_s: Callable[[Settings], float] = lambda settings: 0.0,
    first: Callable[[Workshop], None] = lambda shop: None,
) -> Outcome:
    """Runs `first(shop)` and a tick. Waits until the newest minute ended `settle_s` seconds ago.

    Raises Failure with the error's own words; a lost race asks Dagster to try again a few times.
    """
    with clear_failures(), pipeline.workshop() as shop:
        settings = shop.settings
        # DuckDB and the ledger are open already: that was a part of the wait.
        wait_s = settle_wait_s(pipeline.now(), settle_s(settings))
        if wait_s:
            pipeline.sleep(wait_s)
        first(shop)
        report = tick(
            shop,
            pipeline.source(settings) if drain else None,
            lambda: pipeline.open_sink(settings),
            drain_for_s=drain_for_s,
            compute_for_s=compute_for_s,
            close_windows=close_windows,
            progress=Progress(context),
        )
    for problem in (report.lost_race, report.publish_error):
        if problem:
            context.log.warning(problem)
    return Outcome(settings, report, touched_buckets(report.refreshed), pipeline.now())


def report_all(context: Context, outcome: Outcome) -> None:
    """Reports frames, every touched partition, and the checks. For jobs, which own no asset.

    Raises Failure after that when Kafka did not answer, or a file is damaged: what was counted without it is counted
    all the same.
    """
    context.log_event(AssetMaterialization(checks.FRAMES, metadata=outcome.metadata))
    report_counts(context, outcome)
    results = outcome.frames_checks()
    for grain in Grain:
        if any(r.unique_users is not None for t in outcome.of_grain(grain) for r in t.changed.values()):
            results.append(checks.sketch_against_exact(grain, outcome.of_grain(grain), outcome.settings.lg_k))
    if outcome.report.drain:
        results.append(checks.freshness(outcome.front_s, outcome.now_s))
    for result in results:
        context.log_event(evaluation(result))
    raise_broker_error(outcome)


def raise_broker_error(outcome: Outcome) -> None:
    """Raises Failure when a file was damaged, or Kafka did not answer."""
    with clear_failures():
        for error in (outcome.report.file_error, outcome.report.broker_error):
            if error is not None:
                raise error


def report_counts(context: Context, outcome: Outcome, *, except_grain: Grain | None = None) -> None:
    """Reports every touched partition, but not those of the asset that reports its own."""
    for touched, key, metadata in outcome.keyed():
        if touched.grain is not except_grain:
            context.log_event(AssetMaterialization(checks.counts_name(touched.grain), partition=key, metadata=metadata))


@contextmanager
def clear_failures() -> Iterator[None]:
    """Shows an error of ours as its message, which names what to do, and not as a traceback."""
    try:
        yield
    except LostRace as lost:
        raise RetryRequested(RACE_RETRIES, RACE_RETRY_S) from lost
    except UniqError as error:
        raise Failure(str(error), metadata={"error": type(error).__name__}, allow_retries=False) from error


def evaluation(result: AssetCheckResult) -> AssetCheckEvaluation:
    assert result.asset_key is not None and result.check_name is not None  # all of ours name both
    return AssetCheckEvaluation(
        asset_key=result.asset_key,
        check_name=result.check_name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )


class Progress:
    """Logs how far a long tick is."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= PROGRESS_EVERY_S:
            self._last = time.monotonic()
            self._context.log.info(f"{stage}: {done:,} of {total:,}" if total else f"{stage}: {done:,}")
