"""Counting files or stdin in one go: the parse, event-time and SQL code of the live path, and no state left.

Frames are kept as a few columns, 30 to 60 bytes each; past `SPILL_BYTES` they go to a temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from uniq_pipeline.config import Settings, VeryLate
from uniq_pipeline.count import count_targets
from uniq_pipeline.files import read_lines
from uniq_pipeline.intake import Intake, SortedBatch
from uniq_pipeline.lake import Lake
from uniq_pipeline.lateness import EventClass, EventClock
from uniq_pipeline.loading import lateness_policy, minutes_of
from uniq_pipeline.results import Target
from uniq_pipeline.schemas import FRAMES_SCHEMA
from uniq_pipeline.warehouse import Warehouse
from uniq_pipeline.windows import GRAINS, Grain, window_at

SPILL_BYTES = 1 << 30
BATCH_FRAMES = 200_000

_COLUMNS = ["event_time", "uid", "coupon", "late_by_s"]


@dataclass
class OnceReport:
    """What became of the lines. delivered == frames + held + rejected."""

    delivered: int = 0
    frames: int = 0
    held: int = 0
    rejected: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)  # by event class or reject reason


@dataclass(frozen=True)
class WindowCount:
    """One window's answer. `[window_start_s, window_end_s)`, in seconds since 1970."""

    grain: Grain
    window_start_s: int
    window_end_s: int
    frames: int
    unique_users: int
    estimate: float
    estimate_lower: float
    estimate_upper: float
    by_dimension: Sequence[EntryCount] = ()


@dataclass(frozen=True)
class EntryCount:
    """The answer of one value of a dimension in a window."""

    dimension: str
    value: str
    frames: int
    unique_users: int
    estimate: float
    estimate_lower: float
    estimate_upper: float


def count_files(
    settings: Settings,
    names: Sequence[str],
    grains: Iterable[Grain],
    *,
    report: OnceReport,
    progress: Callable[[int], None] = lambda read_bytes: None,
) -> Iterator[WindowCount]:
    """Counts the frames of files (`-` is stdin) per window, finest grain first, in window order.

    Each file is a log of its own: event times are judged within it. `report` is filled in before the first
    window is yielded.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uniq-count-") as folder:
        store = _Frames(Lake(Path(folder)), with_dimensions=bool(settings.dimension_keys))
        for number, name in enumerate(names):
            for batch in _batches(settings, name, number, progress):
                report.delivered += batch.delivered
                report.rejected += batch.quarantine.num_rows
                report.held += batch.held.num_rows
                report.reasons.update(batch.reasons)
                report.frames += batch.frames.num_rows
                _admit(report, len(batch.admitted))
                store.add(batch.frames)
        with Warehouse(threads=settings.duckdb_threads, memory_mb=settings.duckdb_memory_mb) as warehouse:
            store.register(warehouse)
            for grain in sorted(set(grains), key=GRAINS.index):
                windows = _count(warehouse, settings, grain, store.minutes_s)
                report.seconds = time.monotonic() - started
                yield from windows
    report.seconds = time.monotonic() - started


def _admit(report: OnceReport, frames: int) -> None:
    """Frames that an earlier batch held as future are counted after all."""
    report.held -= frames
    report.reasons[EventClass.FUTURE.label] -= frames
    report.reasons[EventClass.ON_TIME.label] += frames


def _batches(settings: Settings, name: str, number: int, progress: Callable[[int], None]) -> Iterator[SortedBatch]:
    clocks: dict[int, EventClock] = {}
    intake = _intake(settings, name)
    for records in read_lines(name, number, read_bytes=progress):
        intake.add(records)
        if intake.delivered >= BATCH_FRAMES:
            batch = intake.finish(clocks)
            clocks, intake = dict(batch.clocks), _intake(settings, name)
            yield batch
    yield intake.finish(clocks, at_end=True)


def _intake(settings: Settings, name: str) -> Intake:
    return Intake(
        name,
        lateness_policy(settings),
        ts_unit=settings.ts_unit,
        dimensions=settings.dimension_keys,
        very_late_counts=settings.very_late is VeryLate.CORRECT,
        lookahead=True,
    )


class _Frames:
    """The frames so far, in memory or, past a size, in files of a temporary lake."""

    def __init__(self, lake: Lake, *, with_dimensions: bool) -> None:
        self._lake = lake
        self._columns = [*_COLUMNS, *(["dimensions"] if with_dimensions else [])]
        self._tables: list[pa.Table] = []
        self._files: list[str] = []
        self._minutes: set[int] = set()

    @property
    def minutes_s(self) -> list[int]:
        return sorted(self._minutes)

    def add(self, frames: pa.Table) -> None:
        self._minutes |= set(minutes_of(frames))
        self._tables.append(frames.select(self._columns))
        if sum(table.nbytes for table in self._tables) > SPILL_BYTES:
            self._spill()

    def _spill(self) -> None:
        self._files.append(f"{len(self._files)}.parquet")
        self._lake.write(self._files[-1], pa.concat_tables(self._tables))
        self._tables.clear()

    def register(self, warehouse: Warehouse) -> None:
        schema = pa.schema([FRAMES_SCHEMA.field(name) for name in self._columns])
        if self._files:
            if self._tables:
                self._spill()
            warehouse.register_files("frames", [self._lake.absolute(path) for path in self._files], schema)
        else:
            warehouse.register("frames", pa.concat_tables(self._tables) if self._tables else schema.empty_table())


def _count(warehouse: Warehouse, settings: Settings, grain: Grain, minutes_s: Sequence[int]) -> Iterator[WindowCount]:
    by_minute = {minute_s: window_at(grain, minute_s, settings.zone) for minute_s in minutes_s}
    targets = [Target(window, "live") for window in sorted(set(by_minute.values()))]
    table = count_targets(
        warehouse,
        targets,
        settings,
        {minute_s: window.start_s for minute_s, window in by_minute.items()},
    )
    for row in table.drop_columns(["hll"]).to_pylist():
        entries = row.pop("by_dimension") or ()
        yield WindowCount(
            grain=grain,
            **{name: row[name] for name in WindowCount.__dataclass_fields__ if name in row},
            by_dimension=[
                EntryCount(**{name: entry[name] for name in EntryCount.__dataclass_fields__}) for entry in entries
            ],
        )
