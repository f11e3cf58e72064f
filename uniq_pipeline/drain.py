"""Drain: moves what a topic holds into the lake, in bounded batches, each committed with its offsets.

A batch is read, sorted, written to files that nobody names yet, and then committed in one ledger transaction
that compares the offsets it started from with where the ledger stands. A crash before the commit leaves files
without a name; a crash after it leaves nothing to do. Of two drains at once one commits, the other loses.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from uniq_pipeline.config import Settings, VeryLate
from uniq_pipeline.intake import Intake, SortedBatch
from uniq_pipeline.lake import Lake
from uniq_pipeline.lateness import EventClock, LatenessPolicy, combined_watermark_s
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.drains import (
    BatchCommit,
    Delivery,
    advance_watermark,
    commit_batch,
    note_new_partitions,
    note_stable_offsets,
    read_positions,
)
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.offsets import OffsetRange, TopicState, plan_ranges
from uniq_pipeline.records import Records
from uniq_pipeline.windows import HOUR_S, MINUTE_S, from_epoch

# A batch ends early when this much is to be quarantined: raw payloads are kept there, 2 kB each.
QUARANTINE_BYTES = 64 << 20


class Source(Protocol):
    """What a drain needs of a topic."""

    topic: str

    def describe(self) -> TopicState: ...

    def read(self, ranges: Sequence[OffsetRange]) -> Iterator[Records]: ...

    def commit_for_lag_tools(self, next_offsets: dict[int, int]) -> None: ...


@dataclass
class DrainReport:
    """What one drain did. delivered + admitted == frames + held + quarantined."""

    topic: str
    batches: int = 0
    delivered: int = 0
    frames: int = 0
    late: int = 0
    held: int = 0
    quarantined: int = 0
    admitted: int = 0
    seconds: float = 0.0
    lag: int = 0  # records between the ledger and the end of the log, as seen at the start, still unread
    watermark_s: int | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    hours_s: set[int] = field(default_factory=set)  # event hours that gained frames
    next_offsets: dict[int, int] = field(default_factory=dict)

    @property
    def frames_per_s(self) -> float:
        return self.delivered / self.seconds if self.seconds else 0.0

    def add(self, delivery: Delivery) -> None:
        self.batches += 1
        self.delivered += delivery.delivered
        self.frames += delivery.frames
        self.late += delivery.late
        self.held += delivery.held
        self.quarantined += delivery.quarantined
        self.admitted += delivery.admitted
        self.reasons.update(delivery.reasons)


def lateness_policy(settings: Settings) -> LatenessPolicy:
    return LatenessPolicy(settings.expected_delay_s, settings.allowed_lateness_s, settings.max_future_skew_s)


def drain(
    settings: Settings,
    ledger: Ledger,
    lake: Lake,
    source: Source,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    failpoint: Callable[[str], None] = lambda name: None,
    monotonic: Callable[[], float] = time.monotonic,
) -> DrainReport:
    """Reads from the ledger's offsets to the end of the log as it is now.

    progress(done, total) is told records read and planned. Raises LostRace when another drain commits first;
    what this one committed before that stays.
    """
    started = monotonic()
    lake.prepare()
    report = DrainReport(source.topic)
    failpoint("drain.before_fetch")
    # The ledger first: what another drain commits in between then lies within what the topic shows. The other
    # way round its offsets could lie beyond the end we saw, and would look like a truncated log.
    positions = read_positions(ledger, source.topic)
    state = source.describe()
    ranges = plan_ranges(
        state, positions.topic_id, {p: position.next_offset for p, position in positions.by_partition.items()}
    )
    starts = {r.kafka_partition: r.start_offset for r in ranges}
    unknown = {p: offset for p, offset in starts.items() if p not in positions.by_partition}
    if unknown:
        note_new_partitions(ledger, source.topic, state.topic_id, unknown)
    batch = _Batch(
        settings,
        state,
        starts=starts,
        clocks={p: position.clock for p, position in positions.by_partition.items()},
    )
    total, done = sum(r.size for r in ranges), 0
    for records in source.read(ranges):
        batch.add(records)
        done += len(records.offsets)
        if batch.is_full:
            batch = _store(batch, ledger, lake, report, failpoint, monotonic)
            progress(done, total)
    if batch.has_moved:
        batch = _store(batch, ledger, lake, report, failpoint, monotonic)
    progress(done, total)
    _note_how_far(settings, ledger, source, state, batch, report)
    report.seconds = monotonic() - started
    return report


def _note_how_far(
    settings: Settings, ledger: Ledger, source: Source, state: TopicState, batch: _Batch, report: DrainReport
) -> None:
    stable = {p: extent.stable_offset for p, extent in state.extents.items()}
    policy = lateness_policy(settings)
    report.lag = sum(max(0, offset - batch.starts[p]) for p, offset in stable.items())
    report.next_offsets = dict(batch.starts)
    note_stable_offsets(ledger, source.topic, stable)
    report.watermark_s = advance_watermark(
        ledger,
        combined_watermark_s(
            {p: batch.clocks.get(p, EventClock()).watermark_s(policy) for p in stable},
            {p: batch.starts[p] >= offset for p, offset in stable.items()},
            settings.allowed_lateness_s,
        ),
    )
    if report.batches:
        source.commit_for_lag_tools(report.next_offsets)


class _Batch:
    """Records collected from `starts`, not yet committed."""

    def __init__(
        self, settings: Settings, state: TopicState, starts: dict[int, int], clocks: dict[int, EventClock]
    ) -> None:
        self.settings = settings
        self.state = state
        self.starts = starts
        self.clocks = clocks
        self.ends = dict(starts)
        self.records: Counter[int] = Counter()
        self.started = time.monotonic()
        self.intake = Intake(
            state.topic,
            lateness_policy(settings),
            ts_unit=settings.ts_unit,
            very_late_counts=settings.very_late is VeryLate.CORRECT,
        )

    def add(self, records: Records) -> None:
        self.intake.add(records)
        self.records[records.kafka_partition] += len(records.offsets)
        self.ends[records.kafka_partition] = records.next_offset

    @property
    def is_full(self) -> bool:
        return self.intake.delivered >= self.settings.batch_frames or self.intake.quarantined_bytes >= QUARANTINE_BYTES

    @property
    def has_moved(self) -> bool:
        return self.ends != self.starts

    @property
    def ranges(self) -> list[OffsetRange]:
        return [OffsetRange(p, start, self.ends[p]) for p, start in self.starts.items() if self.ends[p] > start]


def _store(
    batch: _Batch,
    ledger: Ledger,
    lake: Lake,
    report: DrainReport,
    failpoint: Callable[[str], None],
    monotonic: Callable[[], float],
) -> _Batch:
    """Writes and commits a batch; returns the next one, which goes on where this one ended."""
    started = batch.started
    sorted_batch = batch.intake.finish(batch.clocks)
    batch_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(ledger.now()))}-{secrets.token_hex(6)}"
    failpoint("drain.before_write")
    files, minutes_s = _write_files(lake, batch, sorted_batch, batch_id)
    delivery = Delivery(
        delivered=sorted_batch.delivered,
        frames=sorted_batch.frames.num_rows,
        late=sorted_batch.late,
        held=sorted_batch.held.num_rows,
        quarantined=sorted_batch.quarantine.num_rows,
        admitted=len(sorted_batch.admitted),
        reasons=sorted_batch.reasons,
    )
    failpoint("drain.before_commit")
    policy = lateness_policy(batch.settings)
    ranges = batch.ranges
    clocks = {r.kafka_partition: sorted_batch.clocks.get(r.kafka_partition, EventClock()) for r in ranges}
    commit_batch(
        ledger,
        BatchCommit(
            batch_id=batch_id,
            topic=batch.state.topic,
            topic_id=batch.state.topic_id,
            ranges=ranges,
            records=batch.records,
            clocks=clocks,
            watermarks_s={p: clock.watermark_s(policy) for p, clock in clocks.items()},
            stable_offsets={
                r.kafka_partition: max(batch.state.extents[r.kafka_partition].stable_offset, r.end_offset)
                for r in ranges
            },
            files=files,
            minutes_s=minutes_s,
            held_minutes=sorted_batch.held_minutes,
            rejected_minutes=sorted_batch.rejected_minutes,
            admitted=sorted_batch.admitted,
            delivery=delivery,
            seconds=monotonic() - started,
        ),
    )
    failpoint("drain.after_commit")
    report.add(delivery)
    report.hours_s |= {minute - minute % HOUR_S for minute in minutes_s}
    return _Batch(batch.settings, batch.state, starts=dict(batch.ends), clocks=dict(sorted_batch.clocks))


def _write_files(
    lake: Lake, batch: _Batch, sorted_batch: SortedBatch, batch_id: str
) -> tuple[list[DataFile], list[int]]:
    """One frames file an event hour, one file for held and one for quarantine; and the minutes with frames."""
    topic = batch.state.topic
    # Enough to rebuild a lost ledger from the files alone.
    footer = {
        "uniq.topic": topic,
        "uniq.topic_id": batch.state.topic_id,
        "uniq.batch_id": batch_id,
        "uniq.ranges": json.dumps([[r.kafka_partition, r.start_offset, r.end_offset] for r in batch.ranges]),
    }
    files = []
    minutes_s: list[int] = []
    for hour_s, table, event_s in _by_hour(sorted_batch.frames):
        name = f"frames/hour={from_epoch(hour_s):%Y-%m-%dT%H}/{batch_id}.parquet"
        file = lake.write(name, table.replace_schema_metadata(footer))
        files.append(DataFile("frames", file, hour_s, int(event_s.min()), int(event_s.max())))
        minutes_s += np.unique(event_s - event_s % MINUTE_S).tolist()
    day = batch_id[:8]
    for kind, table in (("held", sorted_batch.held), ("quarantine", sorted_batch.quarantine)):
        if table.num_rows:
            name = f"{kind}/day={day[:4]}-{day[4:6]}-{day[6:8]}/{batch_id}.parquet"
            files.append(DataFile(kind, lake.write(name, table.replace_schema_metadata(footer))))
    return files, minutes_s


def _by_hour(frames: pa.Table) -> Iterator[tuple[int, pa.Table, np.ndarray]]:
    """(hour, its frames, their event seconds), oldest hour first; order within an hour is kept."""
    event_s = frames["event_time"].cast(pa.int64()).to_numpy() // 1_000_000
    hours = event_s // HOUR_S
    found, counts = np.unique(hours, return_counts=True)
    if len(found) == 1:
        yield int(found[0]) * HOUR_S, frames, event_s
    elif len(found) > 1:
        order = np.argsort(hours, kind="stable")
        frames, event_s = frames.take(pa.array(order)), event_s[order]
        start = 0
        for hour, count in zip(found, counts, strict=True):
            yield int(hour) * HOUR_S, frames.slice(start, count), event_s[start : start + count]
            start += count
