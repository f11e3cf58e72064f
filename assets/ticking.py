"""Runs one tick inside a Dagster run, and reports each partition it touched as a materialization.

The jobs and the assets share this. Reporting comes after the ledger's commits: a run killed in between has
done its work, and the next one that touches the partition reports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
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

from assets import charts, checks
from assets.cadence import settle_wait_s
from assets.metadata import Metadata, Touched, bucket_metadata, tick_metadata, touched_buckets
from assets.partitions import calendar_of
from assets.resources import PipelineResource
from assets.vitals import EACH_TICK, SPAN_S, Vitals, look
from uniq_pipeline.config import Settings
from uniq_pipeline.errors import LostRace, UniqError
from uniq_pipeline.health import Compared
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
    vitals: Vitals
    now_s: float
    thorough: bool = False

    @property
    def error(self) -> UniqError | None:
        """What fails the run, after everything that could be done without it was done and told."""
        return self.report.file_error or self.report.drain_error

    @property
    def metadata(self) -> Metadata:
        """Of the frames asset."""
        metadata = tick_metadata(self.report, self.vitals.front_s, self.now_s, tables=self.thorough)
        return charts.frames_plots(self.vitals.recent) | metadata

    def of_grain(self, grain: Grain) -> list[Touched]:
        return [touched for touched in self.touched if touched.grain is grain]

    def keyed(self) -> Iterator[tuple[Touched, str, Metadata]]:
        """Each touched bucket that is a partition, its key and metadata. The newest of a grain has its plots."""
        calendar = calendar_of(self.settings)
        newest = {touched.grain: touched for touched in self.touched if self._has_begun(touched)}
        for touched in self.touched:
            key = calendar.key_of(touched.grain, touched.bucket)
            if key is not None:
                metadata = bucket_metadata(touched, self.vitals.front_s, self.now_s)
                plots = self._plots(touched.grain) if touched is newest.get(touched.grain) else {}
                yield touched, key, plots | metadata

    def metadata_of(self, grain: Grain, bucket_start_s: int) -> Metadata:
        """Of one bucket, where the tick wrote it anew; its plots all the same."""
        found = next((one for one in self.of_grain(grain) if one.bucket.start_s == bucket_start_s), None)
        said = bucket_metadata(found, self.vitals.front_s, self.now_s) if found is not None else {}
        return self._plots(grain) | said

    def _has_begun(self, touched: Touched) -> bool:
        """A flipped timestamp may have counted in a bucket of the future, which nobody looks at."""
        return self.vitals.front_s is None or touched.bucket.start_s <= self.vitals.front_s

    def _plots(self, grain: Grain) -> Metadata:
        points, zone = self.vitals.points.get(grain, []), self.settings.zone
        plots = charts.counts_plots(grain, points, zone, self.vitals.front_s)
        return plots | (charts.error_plot(grain, points, zone) if self.thorough else {})

    def frames_checks(self) -> list[AssetCheckResult]:
        vitals = self.vitals
        return checks.frames_results(self.settings, vitals.recent, vitals.balance, vitals.offsets)

    def counts_checks(self, grain: Grain) -> list[AssetCheckResult]:
        """Over the windows that changed and have an exact count."""
        changed = [
            Compared(revision.window, revision.unique_users, revision.estimate)
            for touched in self.of_grain(grain)
            for revision in touched.changed.values()
            if revision.unique_users is not None
        ]
        results = [checks.sketch_result(self.settings, grain, changed)]
        if grain is Grain.MINUTE:
            results.append(checks.freshness_result(self.settings, self.vitals.front_s, self.now_s))
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
    plots_of: Iterable[Grain] = (),
) -> Outcome:
    """Runs `first(shop)` and a tick. Waits until the newest minute ended `settle_s` seconds ago.

    plots_of  grains whose newest windows are looked at, beside those that a tick looks at anyway

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
        touched = touched_buckets(report.refreshed)
        grains = {one.grain for one in touched} & set(SPAN_S if close_windows else EACH_TICK)
        grains |= set(plots_of)
        batches = report.drain.batches if report.drain else 0
        vitals = look(shop, grains, batches=batches, thorough=close_windows)
    for problem in (report.lost_race, report.publish_error, vitals.problem):
        if problem:
            context.log.warning(problem)
    return Outcome(settings, report, touched, vitals, pipeline.now(), thorough=close_windows)


def report_all(context: Context, outcome: Outcome) -> None:
    """Reports frames, every touched partition, and the checks. For jobs, which own no asset.

    Raises Failure after that when Kafka did not answer, or a file is damaged: what was counted without it is counted
    all the same.
    """
    _tell(context, outcome, AssetMaterialization(checks.FRAMES, metadata=outcome.metadata))
    report_counts(context, outcome)
    results = outcome.frames_checks()
    for grain in Grain:
        told = outcome.counts_checks(grain)
        # Of a grain without anything to compare there is nothing new to be told.
        results += [r for r in told if r.metadata["windows_compared"].value] if grain is not Grain.MINUTE else told
    for result in results:
        _tell(context, outcome, evaluation(result))
    raise_error(outcome)


def raise_error(outcome: Outcome) -> None:
    """Raises Failure when a file was damaged, or Kafka did not answer."""
    with clear_failures():
        if outcome.error is not None:
            raise outcome.error


def report_counts(context: Context, outcome: Outcome, *, except_grain: Grain | None = None) -> None:
    """Reports every touched partition, but not those of the asset that reports its own."""
    for touched, key, metadata in outcome.keyed():
        if touched.grain is not except_grain:
            asset = checks.counts_name(touched.grain)
            _tell(context, outcome, AssetMaterialization(asset, partition=key, metadata=metadata))


def _tell(context: Context, outcome: Outcome, event: AssetMaterialization | AssetCheckEvaluation) -> None:
    """Reports with the run's own events. A run that fails drops those: of one that is going to, at once."""
    if outcome.error is None:
        context.log_event(event)
    else:
        context.instance.report_runless_asset_event(event)


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
    """Logs how far a long tick is, how fast, and when it may be done. The rate is that of the stage so far."""

    def __init__(self, context: Context, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._monotonic = monotonic
        self._last = self._started = self._called = monotonic()
        self._stage, self._done = "", 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._monotonic()
        if stage != self._stage or done < self._done:
            # What a stage tells first was done since the stage before told its last.
            self._stage, self._started = stage, self._called
        self._called, self._done = now, done
        if now - self._last >= PROGRESS_EVERY_S:
            self._last = now
            self._context.log.info(self._said(stage, done, total, now))

    def _said(self, stage: str, done: int, total: int, now: float) -> str:
        said = f"{stage}: {done:,} of {total:,}" if total else f"{stage}: {done:,}"
        if not done or now <= self._started:
            return said
        rate = done / (now - self._started)
        if not total:
            return f"{said}, {rate:,.0f}/s"
        left_s = max(0, total - done) / rate
        return f"{said}, {rate:,.0f}/s, " + (f"{left_s / 60:.0f} min left" if left_s >= 90 else f"{left_s:.0f} s left")
