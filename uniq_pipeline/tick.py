"""One tick: drain, count, roll up, publish, refresh the catalog. The same from Dagster, cron and tests.

A tick is only a wake-up: what to read is decided by the ledger's offsets, what to compute by its dirty marks.
After hours without one, a single tick does it all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from uniq_pipeline.catalog import refresh_catalog
from uniq_pipeline.config import Settings
from uniq_pipeline.count import count_minutes
from uniq_pipeline.drain import Source, drain
from uniq_pipeline.errors import BrokerError, FileDamaged, LostRace, OffsetsLost
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.logs import known_watermark_s
from uniq_pipeline.loading import LoadReport
from uniq_pipeline.maintain import spill_folder
from uniq_pipeline.publish import Sink, publish
from uniq_pipeline.results import RefreshReport, Workshop, final_before_s
from uniq_pipeline.rollup import roll_up
from uniq_pipeline.sets import SetsReport, build_sets
from uniq_pipeline.warehouse import Warehouse
from uniq_pipeline.windows import Window

SHOWN = 3  # damaged files, and windows that need them, that an error names


@dataclass
class TickReport:
    """What a tick did, and what it could not do but left for the next one."""

    drain: LoadReport | None = None
    refreshed: list[RefreshReport] = field(default_factory=list)
    sets: SetsReport = field(default_factory=SetsReport)
    published: int = 0
    lost_race: str | None = None
    drain_error: BrokerError | OffsetsLost | None = None
    publish_error: str | None = None
    file_error: FileDamaged | None = None
    watermark_s: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@contextmanager
def open_workshop(
    settings: Settings,
    *,
    failpoint: Callable[[str], None] = lambda name: None,
    now: Callable[[], float] = time.time,
) -> Iterator[Workshop]:
    """Ledger, lake and DuckDB of these settings, ready for use."""
    ledger = Ledger(settings.effective_ledger_url, failpoint=failpoint, now=now)
    lake = Lake(settings.data_dir / "lake", failpoint)
    try:
        lake.prepare()
        ledger.prepare(timezone=settings.timezone, lg_k=str(settings.lg_k))
        with Warehouse(
            threads=settings.duckdb_threads,
            memory_mb=settings.duckdb_memory_mb,
            spill_dir=spill_folder(settings),
        ) as warehouse:
            empty_hll = warehouse.run("count/empty_state", lg_k=settings.lg_k)["hll"][0].as_py()
            yield Workshop(settings, ledger, lake, warehouse, empty_hll, failpoint)
    finally:
        ledger.close()


def tick(
    shop: Workshop,
    source: Source | None,
    open_sink: Callable[[], Sink] | None,
    *,
    drain_for_s: float | None = None,
    compute_for_s: float | None = None,
    close_windows: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> TickReport:
    """Runs one tick. Without a source, only what is dirty is computed; without a sink, it waits in the outbox.

    drain_for_s    seconds after which a drain ends where it is, so that its frames are counted
    compute_for_s  seconds after which windows, and then messages, are left for the next tick
    close_windows  also builds the uid sets of closed windows, for exact counts from the hour up
    progress       is told (stage, done, total); a total of 0 is unknown

    What Kafka fails to do, or no longer has, is reported, not raised, because the rest goes on without it: what is
    in the lake is counted, and the outbox keeps what the results topic did not take. Nor is a damaged file, for the
    same reason: only what needs it is left undone. The caller decides what fails.
    """
    report = TickReport()
    stage = _Stages(report.seconds)
    # Opened now, used last: an idempotent producer needs half a second to be given its id.
    sink = open_sink() if open_sink is not None and shop.settings.results_topic is not None else None
    with stage("drain"):
        if source is not None:
            try:
                report.drain = drain(
                    shop.settings,
                    shop.ledger,
                    shop.lake,
                    source,
                    stop_after_s=drain_for_s,
                    progress=lambda done, total: progress("drain", done, total),
                    failpoint=shop.failpoint,
                )
                report.drain_error = report.drain.stopped
            except LostRace as lost:
                report.lost_race = str(lost)
            except (BrokerError, OffsetsLost) as error:
                report.drain_error = error
    _compute(shop, report, stage, progress, _over_after(compute_for_s))
    if close_windows:
        with stage("sets"):
            report.sets = build_sets(
                shop,
                closed_before_s=final_before_s(shop),
                progress=lambda done, total: progress("sets", done, total),
            )
        if report.sets.users:
            _compute(shop, report, stage, progress, _over_after(compute_for_s))
    with stage("publish"):
        if sink is not None:
            try:
                report.published = publish(
                    shop.ledger, shop.lake, sink, is_over=_over_after(compute_for_s), failpoint=shop.failpoint
                )
            except BrokerError as error:
                report.publish_error = str(error)
            except FileDamaged as error:
                report.file_error = error
    damaged = {window: why for part in (*report.refreshed, report.sets) for window, why in part.damaged.items()}
    if damaged:
        report.file_error = _left_undone(damaged)
    with stage("catalog"):
        try:
            refresh_catalog(shop.settings, shop.ledger, shop.lake, report.file_error.paths if report.file_error else ())
        except FileDamaged as error:
            report.file_error = report.file_error or error
    report.watermark_s = known_watermark_s(shop.ledger)
    return report


def _left_undone(damaged: dict[Window, FileDamaged]) -> FileDamaged:
    errors = {str(error): error for error in damaged.values()}
    windows = ", ".join(map(str, sorted(damaged)[:SHOWN])) + (", ..." if len(damaged) > SHOWN else "")
    return FileDamaged(
        f"{'; '.join(sorted(errors)[:SHOWN])}. What needs it was left as it is ({windows}), all the rest was computed. "
        f"`uniq-pipeline repair` mends it.",
        *(path for error in errors.values() for path in error.paths),
    )


def _over_after(seconds: float | None) -> Callable[[], bool]:
    """Says whether so many seconds from now are over."""
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    return lambda: time.monotonic() > deadline


def _compute(
    shop: Workshop,
    report: TickReport,
    stage: _Stages,
    progress: Callable[[str, int, int], None],
    is_over: Callable[[], bool],
) -> None:
    before_s = final_before_s(shop)
    with stage("count"):
        report.refreshed.append(
            count_minutes(
                shop,
                final_before_s=before_s,
                progress=lambda done, total: progress("count", done, total),
                is_over=is_over,
            )
        )
    with stage("rollup"):
        report.refreshed += roll_up(
            shop,
            final_before_s=before_s,
            progress=lambda done, total: progress("rollup", done, total),
            is_over=is_over,
        )


class _Stages:
    """Adds up the seconds of each stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - started
