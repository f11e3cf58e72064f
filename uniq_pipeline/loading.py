"""Loading: records of one log, a topic or a file, become batches, each committed with its offsets.

A batch is collected, sorted, written to files that nobody names yet, and then committed in one ledger transaction
that compares the offsets it started from with where the ledger stands. A crash before the commit leaves files
without a name; a crash after it leaves nothing to do. Of two loads at once one commits, the other loses.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from uniq_pipeline.config import Settings, VeryLate
from uniq_pipeline.errors import BrokerError, OffsetsLost
from uniq_pipeline.intake import Intake, SortedBatch
from uniq_pipeline.lake import Lake
from uniq_pipeline.lateness import STRIDE, EventClock, LatenessPolicy
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.batches import Batch, Delivery, Kind
from uniq_pipeline.ledger.expiry import CLOSES, expired_spans
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.logs import LogCommit, Position, commit_log
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.records import Records
from uniq_pipeline.windows import HOUR_S, MINUTE_S, from_epoch

# A batch ends early when this much is to be quarantined: raw payloads are kept there, 2 kB each.
QUARANTINE_BYTES = 64 << 20


@dataclass
class LoadReport:
    """What one drain or ingest did. delivered + admitted == frames + held + quarantined."""

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
    unstable: int = 0  # records beyond that end: they wait for a transaction that is open
    watermark_s: int | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    lateness: Counter[str] = field(default_factory=Counter)
    next_offsets: dict[int, int] = field(default_factory=dict)
    stopped: BrokerError | OffsetsLost | None = None  # why the log was not read to its end

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
        self.lateness.update(delivery.lateness)


def lateness_policy(settings: Settings) -> LatenessPolicy:
    return LatenessPolicy(settings.expected_delay_s, settings.allowed_lateness_s, settings.max_future_skew_s)


def new_batch_id(now: float) -> str:
    """Unique, and in order of time where it matters to a person."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}-{secrets.token_hex(6)}"


@dataclass(frozen=True)
class Log:
    """A log that is read by offsets: a topic, or a file.

    is_finite  the log has an end, and what it holds of a topic partition comes in one go (a file)
    """

    topic: str
    topic_id: str
    kind: Kind = Kind.DRAIN
    is_finite: bool = False


class Loader:
    """Collects the records of one log, and stores them batch by batch.

    starts     by topic partition: where the first batch starts
    positions  what the ledger knows of the topic partitions
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        lake: Lake,
        log: Log,
        *,
        starts: Mapping[int, int],
        positions: Mapping[int, Position],
        failpoint: Callable[[str], None] = lambda name: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._lake = lake
        self._log = log
        self._failpoint = failpoint
        self._monotonic = monotonic
        self._policy = lateness_policy(settings)
        self._closed = expired_spans(ledger, CLOSES)
        self.report = LoadReport(log.topic)
        self.clocks = {p: position.clock for p, position in positions.items()}
        self._counted = {p: position.counted for p, position in positions.items()}
        self.starts = dict(starts)
        self._begin()

    def _begin(self) -> None:
        self._ends = dict(self.starts)
        self._records: Counter[int] = Counter()
        self._started = self._monotonic()
        self._intake = Intake(
            self._log.topic,
            self._policy,
            ts_unit=self._settings.ts_unit,
            dimensions=self._settings.dimension_keys,
            very_late_counts=self._settings.very_late is VeryLate.CORRECT,
            closed=self._closed,
            lookahead=self._log.is_finite,
        )

    def add(self, records: Records) -> None:
        self._intake.add(records)
        self._records[records.kafka_partition] += len(records.offsets)
        self._ends[records.kafka_partition] = records.next_offset

    @property
    def is_full(self) -> bool:
        intake = self._intake
        if intake.quarantined_bytes >= QUARANTINE_BYTES:
            return True
        # The first look of a finite log serves its first frames, so they must be in one batch.
        return intake.delivered >= self._settings.batch_frames and (not self._log.is_finite or intake.parsed >= STRIDE)

    @property
    def has_moved(self) -> bool:
        return self._ends != self.starts

    @property
    def watermarks_s(self) -> dict[int, int | None]:
        return {p: clock.watermark_s(self._policy) for p, clock in self.clocks.items()}

    def store(self, stable_offsets: Mapping[int, int], *, at_end: bool = False) -> None:
        """Writes and commits what was collected; the next batch goes on where this one ended.

        stable_offsets  where each topic partition ended when last looked at
        at_end          of a finite log: nothing comes after this

        Raises LostRace when another run committed these offsets first: nothing of this batch is kept.
        """
        sorted_batch = self._intake.finish(self.clocks, counted=self._counted, at_end=at_end)
        if not self.has_moved and not sorted_batch.admitted:
            return
        ranges = [
            OffsetRange(p, start, self._ends[p])
            for p, start in self.starts.items()
            if self._ends[p] > start or any(partition == p for partition, _ in sorted_batch.admitted)
        ]
        delivery = Delivery(
            delivered=sorted_batch.delivered,
            frames=sorted_batch.frames.num_rows,
            late=sorted_batch.late,
            held=sorted_batch.held.num_rows,
            quarantined=sorted_batch.quarantine.num_rows,
            admitted=len(sorted_batch.admitted),
            reasons=sorted_batch.reasons,
            lateness=sorted_batch.lateness,
        )
        batch_id = new_batch_id(self._ledger.now())
        self._failpoint("drain.before_write")
        clocks = {r.kafka_partition: sorted_batch.clocks.get(r.kafka_partition, EventClock()) for r in ranges}
        footer = self._footer(batch_id, ranges, delivery, clocks, sorted_batch)
        files, minutes_s = _write_files(self._lake, sorted_batch, batch_id, footer)
        self._failpoint("drain.before_commit")
        self._lake.require(data.file for data in files)
        commit_log(
            self._ledger,
            LogCommit(
                batch=Batch(
                    batch_id, self._log.kind, self._log.topic, delivery, files, self._monotonic() - self._started
                ),
                topic_id=self._log.topic_id,
                ranges=ranges,
                records=self._records,
                clocks_before=self.clocks,
                clocks=clocks,
                watermarks_s={p: clock.watermark_s(self._policy) for p, clock in clocks.items()},
                stable_offsets={
                    r.kafka_partition: max(stable_offsets.get(r.kafka_partition, 0), r.end_offset) for r in ranges
                },
                minutes_s=minutes_s,
                held_minutes=sorted_batch.held_minutes,
                rejected_minutes=sorted_batch.rejected_minutes,
                admitted=sorted_batch.admitted,
            ),
        )
        self._failpoint("drain.after_commit")
        self.report.add(delivery)
        self.starts, self.clocks = dict(self._ends), dict(sorted_batch.clocks)
        self._begin()

    def _footer(
        self,
        batch_id: str,
        ranges: list[OffsetRange],
        delivery: Delivery,
        clocks: Mapping[int, EventClock],
        sorted_batch: SortedBatch,
    ) -> dict[str, str]:
        """Enough to rebuild a lost ledger from the files alone; the clocks only where the batch's first file is."""
        return {
            "uniq.topic": self._log.topic,
            "uniq.topic_id": self._log.topic_id,
            "uniq.batch_id": batch_id,
            "uniq.kind": str(self._log.kind),
            "uniq.ranges": json.dumps(
                [[r.kafka_partition, r.start_offset, r.end_offset, self._records[r.kafka_partition]] for r in ranges]
            ),
            "uniq.delivery": json.dumps(asdict(delivery)),
            "uniq.admitted": json.dumps(sorted_batch.admitted),
            "uniq.clocks": json.dumps({p: clock.as_dict() for p, clock in clocks.items()}),
        }


def _write_files(
    lake: Lake, sorted_batch: SortedBatch, batch_id: str, footer: dict[str, str]
) -> tuple[list[DataFile], list[int]]:
    """One frames file an event hour, one file for held and one for quarantine; and the minutes with frames."""
    files = write_frames(lake, sorted_batch.frames, batch_id, footer)
    for kind, table in (("held", sorted_batch.held), ("quarantine", sorted_batch.quarantine)):
        if table.num_rows:
            files.append(write_aside(lake, kind, table, batch_id, footer))
    if not files:
        # Offsets without records (aborted transactions): without a file a lost ledger could not know of them.
        files.append(write_aside(lake, "quarantine", sorted_batch.quarantine, batch_id, footer))
    return files, minutes_of(sorted_batch.frames)


def write_frames(lake: Lake, frames: pa.Table, batch_id: str, footer: Mapping[str, str]) -> list[DataFile]:
    """Writes frames, one file an event hour."""
    files = []
    for hour_s, table, event_s in _by_hour(frames):
        name = f"frames/hour={from_epoch(hour_s):%Y-%m-%dT%H}/{batch_id}.parquet"
        file = lake.write(name, table.replace_schema_metadata(dict(footer)))
        files.append(DataFile("frames", file, hour_s, int(event_s.min()), int(event_s.max())))
        footer = {name: value for name, value in footer.items() if name != "uniq.clocks"}
    return files


def write_aside(lake: Lake, kind: str, table: pa.Table, batch_id: str, footer: Mapping[str, str]) -> DataFile:
    """Writes held frames or quarantined records, one file a batch, by the day it was written."""
    name = f"{kind}/day={batch_id[:4]}-{batch_id[4:6]}-{batch_id[6:8]}/{batch_id}.parquet"
    file = lake.write(name, table.replace_schema_metadata(dict(footer)))
    if kind == "quarantine" or table.num_rows == 0:
        return DataFile(kind, file)
    seconds = event_seconds(table)
    return DataFile(kind, file, None, int(seconds.min()), int(seconds.max()))


def event_seconds(frames: pa.Table) -> np.ndarray:
    """int64[n] event times of a table of frames, whole seconds."""
    return frames["event_time"].cast(pa.int64()).to_numpy() // 1_000_000


def minutes_of(frames: pa.Table) -> list[int]:
    """Starts of the event minutes in a table of frames."""
    seconds = event_seconds(frames)
    return np.unique(seconds - seconds % MINUTE_S).tolist()


def _by_hour(frames: pa.Table) -> Iterator[tuple[int, pa.Table, np.ndarray]]:
    """(hour, its frames, their event seconds), oldest hour first; order within an hour is kept."""
    event_s = event_seconds(frames)
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
