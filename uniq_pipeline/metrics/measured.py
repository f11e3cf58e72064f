"""The values of all metrics at a moment. Nothing here fails: what cannot be read is said by `uniq_up` and left out."""

from __future__ import annotations

import math
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from uniq_pipeline import __version__
from uniq_pipeline.config import Settings
from uniq_pipeline.errors import LakeError, LedgerError, UniqError
from uniq_pipeline.frames import Reason
from uniq_pipeline.ingest import PREFIX
from uniq_pipeline.intake import LATENESS_STEPS_S
from uniq_pipeline.lake import Lake
from uniq_pipeline.lateness import EventClass
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.batches import Kind
from uniq_pipeline.ledger.dirty import Task
from uniq_pipeline.ledger.gauges import Gauges, Waiting, gauges
from uniq_pipeline.ledger.totals import TICK
from uniq_pipeline.metrics.accuracy import Results, accuracy
from uniq_pipeline.metrics.described import METRICS
from uniq_pipeline.tick import CAUSES, STAGES
from uniq_pipeline.trends import Point
from uniq_pipeline.windows import Grain

# Prometheus gives a scrape ten seconds by default; a ledger that is locked for longer than this is not up.
LEDGER_TIMEOUT_S = 3.0

_SOURCES = {"topic": Kind.DRAIN, "file": Kind.INGEST}
_PLACES = {"frames": "withdrawn", "held": "admitted", "quarantined": "replayed"}  # and what leaves them
_FILES = ("frames", "held", "quarantine", "result", "uid_set")
_NO_ONE = Waiting(0, None)


@dataclass(frozen=True)
class Distribution:
    """Value of a histogram: (upper bound, observations up to it) in order, the last bound being +Inf; and their sum."""

    steps: Sequence[tuple[str, int]]
    total: int


Value = float | Distribution

# metric -> values of its labels, in their order -> value
Measured = dict[str, dict[tuple[str, ...], Value]]


class Meter:
    """Measures for one data folder, again and again. Opens nothing until then; scrapes take turns.

    complain  is told why something cannot be read, and once it can be again; not at each scrape
    """

    def __init__(
        self,
        settings: Settings,
        *,
        complain: Callable[[str], None] = lambda text: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._complain = complain
        self._now = now
        self._ledger = Ledger(settings.effective_ledger_url, read_only=True, timeout_s=LEDGER_TIMEOUT_S)
        self._results = Results(Lake(settings.data_dir / "lake"))
        self._turn = threading.Lock()
        self.trouble: UniqError | None = None

    def measure(self) -> Measured:
        with self._turn:
            return self._measure()

    def _measure(self) -> Measured:
        started = time.monotonic()
        found: Measured = defaultdict(dict)
        trouble: UniqError | None = None
        seen: Gauges | None = None
        try:
            seen = gauges(self._ledger, PREFIX)
        except UniqError as error:
            trouble = error
        except OSError as error:  # its folder may not be looked into
            trouble = LedgerError(f"ledger {self._ledger.shown_url}: {error.strerror}")
        found["uniq_up"][()] = float(seen is not None)
        if seen is not None:
            _ledger_values(found, seen)
            try:
                _result_values(found, self._settings, seen, self._results)
                found["uniq_lake_up"][()] = 1
            except LakeError as error:
                trouble = error
                found["uniq_lake_up"][()] = 0
        _limits(found, self._settings)
        schema = seen.schema if seen is not None else ""
        found["uniq_build_info"][__version__, schema, platform.python_version()] = 1
        found["uniq_measured_timestamp_seconds"][()] = self._now()
        found["uniq_measuring_duration_seconds"][()] = time.monotonic() - started
        self._tell(trouble)
        assert set(found) <= set(METRICS)
        return dict(found)

    def _tell(self, trouble: UniqError | None) -> None:
        if str(trouble) != str(self.trouble):
            self._complain(str(trouble) if trouble is not None else "ledger and results can be read again")
        self.trouble = trouble


def _ledger_values(found: Measured, seen: Gauges) -> None:
    for source, kind in _SOURCES.items():
        _source_values(found, seen, source, kind)
    for kind in Kind:
        found["uniq_batches_total"][kind,] = seen.total(kind, "batches")
    for move in ("admitted", "withdrawn", "replayed", "expired"):
        found["uniq_moved_records_total"][move,] = _of_all_kinds(seen, move)
    for place, leaving in _PLACES.items():
        label = "quarantine" if place == "quarantined" else place
        found["uniq_stored_records"][label,] = _of_all_kinds(seen, place) - _of_all_kinds(seen, leaving)
    if seen.last_batch is not None:
        found["uniq_last_batch_timestamp_seconds"][()] = seen.last_batch.committed_at
        found["uniq_last_batch_duration_seconds"][()] = seen.last_batch.seconds
        found["uniq_last_batch_records"][()] = seen.last_batch.delivered
    for part in seen.partitions:
        place = (part.topic, str(part.kafka_partition))
        found["uniq_next_offset"][place] = part.next_offset
        found["uniq_stable_offset"][place] = part.stable_offset
        found["uniq_lag_records"][place] = max(0, part.stable_offset - part.next_offset)
        found["uniq_unstable_records"][place] = part.high_watermark - part.stable_offset
        found["uniq_offset_moved_timestamp_seconds"][place] = part.moved_at
        found["uniq_skipped_offsets_total"][place] = part.skipped
        _instant(found, "uniq_partition_watermark_timestamp_seconds", part.watermark_s, place)
    _instant(found, "uniq_watermark_timestamp_seconds", seen.watermark_s)
    _tick_values(found, seen)
    for grain in Grain:
        found["uniq_windows"][grain,] = seen.windows.get(grain, 0)
        for task in Task:
            if task is Task.SET and grain is Grain.MINUTE:
                continue  # minutes have no sets
            waiting = seen.dirty.get((task, grain), _NO_ONE)
            found["uniq_dirty_windows"][task, grain] = waiting.number
            _instant(found, "uniq_dirty_oldest_timestamp_seconds", waiting.oldest, (task, grain))
    found["uniq_outbox_windows"][()] = seen.outbox.number
    _instant(found, "uniq_outbox_oldest_timestamp_seconds", seen.outbox.oldest)
    for kind in _FILES:
        files, size_bytes = seen.files.get((kind, True), (0, 0))
        found["uniq_stored_files"][kind,] = files
        found["uniq_stored_bytes"][kind,] = size_bytes
        found["uniq_retired_bytes"][kind,] = seen.files.get((kind, False), (0, 0))[1]
    found["uniq_estimate_standard_error_ratio"][()] = 1.04 / math.sqrt(2**seen.lg_k)


def _source_values(found: Measured, seen: Gauges, source: str, kind: Kind) -> None:
    future = seen.total(kind, "reasons", EventClass.FUTURE.label)
    found["uniq_records_read_total"][source,] = seen.total(kind, "delivered")
    found["uniq_frames_total"][source,] = seen.total(kind, "frames")
    found["uniq_late_frames_total"][source,] = seen.total(kind, "late")
    # Future frames are always held. Very late ones are not where UNIQ_VERY_LATE=correct: those held are the rest.
    found["uniq_held_frames_total"][source, EventClass.FUTURE.label] = future
    found["uniq_held_frames_total"][source, EventClass.VERY_LATE.label] = seen.total(kind, "held") - future
    for reason in Reason:
        found["uniq_rejected_records_total"][source, reason] = seen.total(kind, "reasons", reason)
    steps, up_to = [], 0
    for step in (*map(str, LATENESS_STEPS_S), "inf"):
        up_to += seen.total(kind, "lateness", step)
        steps.append(("+Inf" if step == "inf" else str(float(step)), up_to))
    found["uniq_lateness_seconds"][source,] = Distribution(steps, seen.total(kind, "late_by_s"))


def _tick_values(found: Measured, seen: Gauges) -> None:
    found["uniq_ticks_total"][()] = seen.total(TICK, "ticks")
    for cause in CAUSES:
        found["uniq_failed_ticks_total"][cause,] = seen.total(TICK, "failed", cause)
    for stage in STAGES:
        found["uniq_tick_seconds_total"][stage,] = seen.total(TICK, "ms", stage) / 1000
        if seen.ticks.seconds is not None:
            found["uniq_last_tick_duration_seconds"][stage,] = seen.ticks.seconds.get(stage, 0.0)
    _instant(found, "uniq_last_tick_timestamp_seconds", seen.ticks.ended_at)
    _instant(found, "uniq_last_good_tick_timestamp_seconds", seen.ticks.good_ended_at)


def _result_values(found: Measured, settings: Settings, seen: Gauges, results: Results) -> None:
    """Raises LakeError when a result file cannot be read; what was found before that stays."""
    paths = {grain: [*some] for grain, some in seen.results.items()}
    if seen.final_path is not None:
        paths[Grain.MINUTE].append(seen.final_path)
    points = results.read(paths)
    reached = [point for point in points[Grain.MINUTE] if point.window.start_s <= (seen.watermark_s or math.inf)]
    final = [point for point in reached if point.is_final]
    if reached:
        found["uniq_newest_minute_timestamp_seconds"][()] = reached[-1].window.end_s
    if final:
        found["uniq_newest_final_minute_timestamp_seconds"][()] = final[-1].window.end_s
        found["uniq_newest_final_minute_users"][()] = final[-1].users or 0
        found["uniq_newest_final_minute_frames"][()] = final[-1].frames
    stored = settings.model_copy(update={"lg_k": seen.lg_k})
    for grain in Grain:
        _accuracy_values(found, stored, grain, points[grain])


def _accuracy_values(found: Measured, settings: Settings, grain: Grain, points: Sequence[Point]) -> None:
    known = accuracy(settings, points)
    found["uniq_estimate_windows"][grain,] = 0 if known is None else known.windows
    if known is not None:
        found["uniq_estimate_error_ratio"][grain,] = known.error_ratio
        found["uniq_estimate_worst_error_ratio"][grain,] = known.worst_error_ratio
        found["uniq_estimate_worst_standard_errors"][grain,] = known.worst_standard_errors


def _limits(found: Measured, settings: Settings) -> None:
    final_s = settings.check_freshness_s + settings.expected_delay_s + settings.allowed_lateness_s
    limits: Mapping[str, float] = {
        "final_minute_seconds": final_s,
        "late_ratio": settings.check_late_ratio,
        "rejected_ratio": settings.check_rejected_ratio,
        "held_ratio": settings.check_held_ratio,
        "min_records": settings.check_min_records,
        "standard_errors": settings.check_standard_errors,
        "dirty_seconds": settings.dirty_after_s,
        "future_skew_seconds": settings.max_future_skew_s,
    }
    for name, value in limits.items():
        found["uniq_limit"][name,] = value


def _of_all_kinds(seen: Gauges, name: str) -> int:
    return sum(seen.total(kind, name) for kind in Kind)


def _instant(found: Measured, name: str, value: float | None, labels: tuple[str, ...] = ()) -> None:
    if value is not None:
        found[name][labels] = value
