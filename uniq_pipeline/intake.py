"""Sorts records into frames, held and quarantine: every record ends in exactly one of them.

The same code for Kafka, files and stdin: parse, judge by event time, hash the uid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from uniq_pipeline.config import TsUnit
from uniq_pipeline.coupons import coupons
from uniq_pipeline.frames import Reject, parse_frames
from uniq_pipeline.lateness import (
    NO_KAFKA_TIME,
    EventClass,
    EventClock,
    LatenessPolicy,
    PendingFrame,
    judge,
    proved_at_end,
    with_pending,
)
from uniq_pipeline.records import NO_TIME, Records
from uniq_pipeline.schemas import DIMENSIONS, FRAMES_SCHEMA, HELD_SCHEMA, INSTANT, QUARANTINE_SCHEMA
from uniq_pipeline.spans import NOWHERE, Spans
from uniq_pipeline.windows import MINUTE_S

# Upper bounds, inclusive, of the lateness histogram; what is later than the last is under "inf".
LATENESS_STEPS_S = (0, 1, 2, 5, 10, 30, 60, 120, 300, 900, 3600, 86_400)

_LABELS = pa.array([EventClass(c).label for c in EventClass])


@dataclass(frozen=True)
class SortedBatch:
    """Where the records of a batch ended.

    frames, held, quarantine  tables of the schemas of the same names
    clocks                    event clock of each topic partition after the batch
    admitted                  (topic partition, offset) of frames held by earlier batches, in `frames` now
    held_minutes              (event minute, event class) -> records; negative for admitted ones
    rejected_minutes          (Kafka minute, reason) -> records, where the record has a Kafka time
    reasons                   event class or reject reason -> records of this batch
    lateness                  seconds behind the watermark, at most -> frames and held frames, without future ones
    late_by_s                 seconds behind the watermark of all of those, added up
    """

    frames: pa.Table
    held: pa.Table
    quarantine: pa.Table
    clocks: Mapping[int, EventClock]
    admitted: Sequence[tuple[int, int]]
    held_minutes: Mapping[tuple[int, str], int]
    rejected_minutes: Mapping[tuple[int, str], int]
    reasons: Mapping[str, int]
    lateness: Mapping[str, int]
    late_by_s: int
    delivered: int

    @property
    def late(self) -> int:
        return self.reasons.get(EventClass.LATE.label, 0)


class _Partition:
    """What has arrived of one topic partition, column by column."""

    def __init__(self) -> None:
        self.offsets: list[np.ndarray] = []
        self.times_ms: list[np.ndarray] = []
        self.event_s: list[np.ndarray] = []
        self.uids: list[str] = []
        self.values: list[tuple[str, ...]] = []  # of the dimensions; empty where there are none


class Intake:
    """Collects the records of one batch; `finish()` sorts them.

    dimensions        root keys whose values the frames carry, in order of name
    very_late_counts  very late frames are counted at once instead of held
    closed            event times whose windows can not be computed any more: such frames are very late, and held
    lookahead         the source is finite and its first batch holds its first frames (see lateness.judge)
    """

    def __init__(
        self,
        topic: str,
        policy: LatenessPolicy,
        *,
        ts_unit: TsUnit = TsUnit.SECONDS,
        dimensions: tuple[str, ...] = (),
        very_late_counts: bool = False,
        closed: Spans = NOWHERE,
        lookahead: bool = False,
    ) -> None:
        self._topic = topic
        self._policy = policy
        self._ts_unit = ts_unit
        self._dimensions = dimensions
        self._very_late_counts = very_late_counts
        self._closed = closed
        self._lookahead = lookahead
        self._partitions: dict[int, _Partition] = {}
        self._rejects: list[tuple[int, int, int, Reject, bytes | None]] = []
        self.delivered = 0
        self.parsed = 0
        self.quarantined_bytes = 0

    def add(self, records: Records) -> None:
        """Takes records of one topic partition; of each partition they come in offset order."""
        self.delivered += len(records.offsets)
        if not records.offsets:
            return
        parsed = parse_frames(records.payloads, self._ts_unit, self._dimensions)
        partition = self._partitions.setdefault(records.kafka_partition, _Partition())
        offsets = np.asarray(records.offsets, np.int64)
        times_ms = np.asarray(records.kafka_times_ms, np.int64)
        if parsed.rejects:
            for reject in parsed.rejects:
                payload = records.payloads[reject.index]
                self.quarantined_bytes += len(payload or b"")
                self._rejects.append(
                    (
                        records.kafka_partition,
                        int(offsets[reject.index]),
                        int(times_ms[reject.index]),
                        reject,
                        payload,
                    )
                )
            offsets, times_ms = offsets[parsed.index], times_ms[parsed.index]
        partition.offsets.append(offsets)
        partition.times_ms.append(times_ms)
        partition.event_s.append(parsed.event_s)
        partition.uids += parsed.uids
        partition.values += parsed.values
        self.parsed += len(parsed.uids)

    def finish(
        self,
        clocks: Mapping[int, EventClock],
        *,
        counted: Mapping[int, Collection[int]] = MappingProxyType({}),
        at_end: bool = False,
    ) -> SortedBatch:
        """Judges and sorts everything added. `clocks` are those after the previous batch.

        counted  by topic partition: offsets of pending frames that are in frames already, though nothing proved them
        at_end   the logs end here, as a file does: what no later frame can prove may be proved by what is there
        """
        frames, held = [], []
        new_clocks = dict(clocks)
        admitted: list[tuple[int, int]] = []
        held_minutes: Counter[tuple[int, str]] = Counter()
        reasons: Counter[str] = Counter()
        lateness: Counter[str] = Counter()
        late_by_s = 0
        for kafka_partition in sorted({*self._partitions, *(clocks if at_end else ())}):
            arrived = self._partitions.get(kafka_partition, _Partition())
            judged = self._judge(kafka_partition, arrived, clocks.get(kafka_partition, EventClock()), at_end)
            new_clocks[kafka_partition] = judged.clock
            classes = judged.classes
            is_held = classes == EventClass.FUTURE
            if not self._very_late_counts:
                is_held |= classes == EventClass.VERY_LATE
            is_held |= judged.is_closed
            if is_held.any():
                held.append(judged.table.filter(pa.array(is_held)))
                frames.append(judged.table.filter(pa.array(~is_held)))
                held_minutes.update(count_minutes(held[-1]))
            else:
                frames.append(judged.table)
            known = counted.get(kafka_partition, ())
            proved = [frame for frame in judged.proved if frame.kafka_offset not in known]
            if proved:
                frames.append(_pending_table(self._topic, kafka_partition, proved))
                admitted += [(kafka_partition, frame.kafka_offset) for frame in proved]
                for frame in proved:
                    held_minutes[frame.event_s - frame.event_s % MINUTE_S, EventClass.FUTURE.label] -= 1
            for event_class, records in zip(*np.unique(classes, return_counts=True), strict=True):
                reasons[EventClass(event_class).label] += int(records)
            late_by = judged.table["late_by_s"].to_numpy()[classes != EventClass.FUTURE]
            lateness.update(_lateness(late_by))
            late_by_s += int(late_by.sum(dtype=np.int64))
        rejected_minutes: Counter[tuple[int, str]] = Counter()
        for _partition, _offset, time_ms, reject, _payload in self._rejects:
            reasons[str(reject.reason)] += 1
            if time_ms != NO_TIME:
                minute_s = time_ms // 1000 // MINUTE_S * MINUTE_S
                rejected_minutes[minute_s, str(reject.reason)] += 1
        return SortedBatch(
            frames=_concat(frames, FRAMES_SCHEMA),
            held=_concat(held, HELD_SCHEMA),
            quarantine=self._quarantine_table(),
            clocks=new_clocks,
            admitted=admitted,
            held_minutes={key: records for key, records in held_minutes.items() if records},
            rejected_minutes=rejected_minutes,
            reasons=dict(reasons),
            lateness=dict(lateness),
            late_by_s=late_by_s,
            delivered=self.delivered,
        )

    def _judge(self, kafka_partition: int, arrived: _Partition, clock: EventClock, at_end: bool) -> _Judged:
        offsets = _joined(arrived.offsets)
        times_ms = _joined(arrived.times_ms)
        event_s = _joined(arrived.event_s)
        kafka_s = np.where(times_ms == NO_TIME, NO_KAFKA_TIME, times_ms // 1000)
        verdicts = judge(clock, event_s, kafka_s, self._policy, lookahead=self._lookahead)
        classes, proved = verdicts.classes, verdicts.proved
        uids = pa.array(arrived.uids, pa.string())
        hashes = coupons(uids)
        pending = [
            PendingFrame(
                place=clock.seen + int(i),
                event_s=int(event_s[i]),
                kafka_offset=int(offsets[i]),
                kafka_time_ms=None if times_ms[i] == NO_TIME else int(times_ms[i]),
                uid=arrived.uids[i],
                coupon=hashes[int(i)].as_py(),
                dimensions=dict(zip(self._dimensions, arrived.values[i], strict=True)) if self._dimensions else None,
            )
            for i in verdicts.still_pending
        ]
        new_clock = with_pending(verdicts.clock, pending)
        if at_end:
            last = proved_at_end(new_clock, self._policy)
            new_clock = new_clock.without_pending({frame.kafka_offset for frame in last})
            places = [frame.place - clock.seen for frame in last if frame.place >= clock.seen]
            classes[places] = EventClass.ON_TIME
            proved += tuple(frame for frame in last if frame.place < clock.seen)
        is_closed = self._closed.contain(event_s)
        classes[is_closed & (classes != EventClass.FUTURE)] = EventClass.VERY_LATE
        table = pa.table(
            [
                _repeated(self._topic, len(offsets)),
                pa.array(np.full(len(offsets), kafka_partition, np.int32)),
                pa.array(offsets),
                pa.array(times_ms * 1000, INSTANT, mask=times_ms == NO_TIME),
                pa.array(event_s * 1_000_000, INSTANT),
                uids,
                hashes,
                pa.array(verdicts.late_by_s),
                pa.DictionaryArray.from_arrays(pa.array(classes.astype(np.int32)), _LABELS),
                _maps(self._dimensions, arrived.values, len(offsets)),
            ],
            schema=FRAMES_SCHEMA,
        )
        return _Judged(table, classes, is_closed, proved, new_clock)

    def _quarantine_table(self) -> pa.Table:
        columns = list(zip(*self._rejects, strict=True)) if self._rejects else [[], [], [], [], []]
        partitions, offsets, times_ms, rejects, payloads = columns
        return pa.table(
            [
                _repeated(self._topic, len(rejects)),
                pa.array(partitions, pa.int32()),
                pa.array(offsets, pa.int64()),
                pa.array([None if t == NO_TIME else t * 1000 for t in times_ms], INSTANT),
                pa.array([str(reject.reason) for reject in rejects], pa.string()),
                pa.array([reject.detail for reject in rejects], pa.string()),
                pa.array(payloads, pa.binary()),
            ],
            schema=QUARANTINE_SCHEMA,
        )


@dataclass(frozen=True)
class _Judged:
    """The frames of one topic partition in the schema of frames, and earlier ones that were proved now."""

    table: pa.Table
    classes: np.ndarray
    is_closed: np.ndarray
    proved: tuple[PendingFrame, ...]
    clock: EventClock


def with_classes(table: pa.Table, classes: np.ndarray, late_by_s: np.ndarray) -> pa.Table:
    """The frames of a table with other event classes."""
    labels = pa.DictionaryArray.from_arrays(pa.array(classes.astype(np.int32)), _LABELS)
    table = table.set_column(table.schema.get_field_index("late_by_s"), "late_by_s", pa.array(late_by_s))
    return table.set_column(table.schema.get_field_index("event_class"), "event_class", labels)


def count_minutes(held: pa.Table) -> Counter[tuple[int, str]]:
    """(event minute, event class) -> rows of a table of held frames."""
    seconds = held["event_time"].cast(pa.int64()).to_numpy() // 1_000_000
    labels = held["event_class"].cast(pa.string()).to_pylist()
    return Counter(zip((seconds - seconds % MINUTE_S).tolist(), labels, strict=True))


def _lateness(late_by: np.ndarray) -> Counter[str]:
    steps = np.bincount(np.searchsorted(LATENESS_STEPS_S, late_by), minlength=len(LATENESS_STEPS_S) + 1)
    names = [*map(str, LATENESS_STEPS_S), "inf"]
    return Counter({name: int(records) for name, records in zip(names, steps, strict=True) if records})


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _repeated(text: str, times: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array([text]))


def _maps(names: tuple[str, ...], values: Sequence[tuple[str, ...]], rows: int) -> pa.Array:
    """The column of dimensions, whose keys always come in the same order: equal frames have equal maps."""
    if not names:
        return pa.nulls(rows, DIMENSIONS)
    width = len(names)
    ends = pa.array(np.arange(0, rows * width + 1, width, dtype=np.int32))
    keys = pa.array(names).take(pa.array(np.tile(np.arange(width), rows)))
    return pa.MapArray.from_arrays(ends, keys, pa.array(chain.from_iterable(values), pa.string()))


def _pending_table(topic: str, kafka_partition: int, frames: Sequence[PendingFrame]) -> pa.Table:
    times_ms = [frame.kafka_time_ms for frame in frames]
    return pa.table(
        [
            _repeated(topic, len(frames)),
            pa.array([kafka_partition] * len(frames), pa.int32()),
            pa.array([frame.kafka_offset for frame in frames], pa.int64()),
            pa.array([None if t is None else t * 1000 for t in times_ms], INSTANT),
            pa.array([frame.event_s * 1_000_000 for frame in frames], INSTANT),
            pa.array([frame.uid for frame in frames], pa.string()),
            pa.array([frame.coupon for frame in frames], pa.uint32()),
            pa.array([0] * len(frames), pa.int32()),
            _repeated(EventClass.ON_TIME.label, len(frames)),
            pa.array([frame.dimensions and list(frame.dimensions.items()) for frame in frames], DIMENSIONS),
        ],
        schema=FRAMES_SCHEMA,
    )


def _concat(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries() if tables else schema.empty_table()
