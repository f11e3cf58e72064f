"""What a rebuilt ledger holds, by a plan; and writing it."""

from __future__ import annotations

import calendar
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain

import pyarrow.compute as pc

from uniq_pipeline.config import SETS, Settings
from uniq_pipeline.intake import count_minutes
from uniq_pipeline.lake import Lake, LakeFile
from uniq_pipeline.lateness import EventClock, LatenessPolicy, combined_watermark_s
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.batches import Batch, Kind
from uniq_pipeline.ledger.expiry import Expired
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.rebuilt import (
    Admission,
    BatchState,
    BucketState,
    PartitionState,
    ReadState,
    Rebuilt,
    write_rebuilt,
)
from uniq_pipeline.loading import lateness_policy
from uniq_pipeline.names import batch_of
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.rebuild.committed import admitted_places, merged_places
from uniq_pipeline.rebuild.plan import Plan, refuse_losses
from uniq_pipeline.rebuild.remains import Found, Progress, Read, Remnant, clocks_of
from uniq_pipeline.rebuild.taken_over import ResultFile
from uniq_pipeline.windows import MINUTE_S, ROLLUP_ORDER, Grain, Window, windows_in


def carry_out(
    settings: Settings,
    ledger: Ledger,
    lake: Lake,
    plan: Plan,
    *,
    accept_gaps: bool = False,
    published: bool = True,
    progress: Progress = lambda done, total, unit: None,
) -> None:
    """Makes the ledger, in one transaction.

    published  the results topic is sent everything that is stored: what it was sent before is not known

    Raises OffsetsLost when something is lost and that is not accepted, LedgerError when the ledger is not empty any
    more, and FileDamaged when a file cannot be read.
    """
    if not accept_gaps:
        refuse_losses(plan)
    facts = {"timezone": settings.timezone, "lg_k": str(settings.lg_k)}
    write_rebuilt(
        ledger, _Writer(settings, lake, plan, ledger.now(), published, progress).contents(), settings.zone, facts
    )


class _Writer:
    """Turns a plan into the contents of a ledger; all that reads whole files is done at once, before it is written."""

    def __init__(
        self, settings: Settings, lake: Lake, plan: Plan, now: float, published: bool, progress: Progress
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._remains = plan.remains
        self._committed = plan.committed
        self._delivery = plan.delivery
        self._results = plan.results
        self._now = now
        self._published = published and settings.results_topic is not None
        self._policy = lateness_policy(settings)
        self._standing = self._read_all(progress)
        self._clocks = self._newest_clocks()
        self._admissions = list(self._find_admissions())

    def contents(self) -> Rebuilt:
        held, rejected = self._tallies()
        going_on = [log for log in self._committed.logs if log.goes_on]
        names = {(log.topic, log.topic_id) for log in going_on}
        return Rebuilt(
            batches=self._batches(),
            retired=(self._data_file(path) for path in self._committed.retired),
            partitions=[
                PartitionState(
                    log.topic,
                    log.topic_id,
                    p,
                    end,
                    self._clocks[log.topic][p],
                    self._clocks[log.topic][p].watermark_s(self._policy),
                    self._written_at(log.batch_ids[-1]),
                )
                for log in going_on
                for p, end in sorted(log.ends.items())
            ],
            admissions=self._admissions,
            merged=((found.batch_id, found.merge.files) for found in self._compactions() if found.merge is not None),
            expired=self._expired(),
            held=held,
            rejected=rejected,
            buckets=(self._bucket(result) for result in self._results),
            windows=self._windows(),
            sets=self._sets(),
            skipped=[
                (loss.topic, r)
                for loss in self._committed.losses
                if (loss.topic, loss.topic_id) in names
                for r in loss.offsets
            ],
            watermark_s=_watermark_s(self._settings, self._policy, self._clocks, self._results),
            published=self._published,
        )

    def _read_all(self, progress: Progress) -> dict[str, LakeFile]:
        """Every file that is going to be named, with its checksum."""
        rows = {path: self._remains.files[path].rows for path in (*self._committed.live, *self._committed.retired)}
        rows |= {result.path: len(result.revisions) for result in self._results}
        total = sum(self._lake.absolute(path).stat().st_size for path in rows)
        standing, done = {}, 0
        for path, count in rows.items():
            standing[path] = self._lake.standing(path, count)
            done += standing[path].size_bytes
            progress(done >> 20, total >> 20, "MB")
        return standing

    def _written_at(self, batch_id: str) -> float:
        """Of the batch's name; its commit came a moment later."""
        try:
            return float(calendar.timegm(time.strptime(batch_id.partition("-")[0], "%Y%m%dT%H%M%S")))
        except ValueError:
            return self._now

    def _batches(self) -> Iterator[BatchState]:
        live: dict[str, list[DataFile]] = defaultdict(list)
        for path in self._committed.live:
            live[batch_of(path)].append(self._data_file(path))
        first_events = self._first_events()
        for log in self._committed.logs:
            fronts: dict[int, int | None] = {}
            for batch_id in log.batch_ids:
                reads = self._remains.batches[batch_id].reads
                states = [
                    ReadState(
                        OffsetRange(read.kafka_partition, read.start_offset, read.end_offset),
                        read.records,
                        _front_s(fronts.get(read.kafka_partition), read, first_events.get(batch_id)),
                        read.bound_s,
                    )
                    for read in reads
                    if read.end_offset > read.start_offset and batch_id not in self._committed.partly
                ]
                fronts |= {read.kafka_partition: read.front_s for read in reads}
                if batch_id not in self._committed.without:
                    yield self._batch(batch_id, live[batch_id], states)
        for batch_id in self._committed.moves:
            yield self._batch(batch_id, live[batch_id], [])

    def _batch(self, batch_id: str, files: list[DataFile], reads: list[ReadState]) -> BatchState:
        found = self._remains.batches[batch_id]
        batch = Batch(batch_id, found.kind, found.topic, self._delivery(batch_id), files, seconds=0.0)
        return BatchState(batch, self._written_at(batch_id), found.topic_id, reads)

    def _compactions(self) -> Iterator[Found]:
        """Those whose file counts."""
        live = {batch_of(path) for path in self._committed.live}
        return (found for found in self._merges() if found.kind is Kind.COMPACT and found.batch_id in live)

    def _expired(self) -> Iterator[Expired]:
        """Spans of files that are gone. Sets are built anew from frames, so theirs are those of the frames."""
        for span in (found.merge.expired for found in self._merges() if found.merge is not None):
            if span is not None:
                whats = SETS if span.what == "frames" else ()
                yield from (Expired(what, span.start_s, span.end_s) for what in (span.what, *whats))

    def _merges(self) -> Iterator[Found]:
        return (self._remains.batches[batch_id] for batch_id in self._committed.moves)

    def _first_events(self) -> dict[str, int]:
        """Batch -> what it counted first, of batches whose files were merged with others (see moves.contexts)."""
        first: dict[str, int] = {}
        for merge in (found.merge for found in self._merges() if found.merge is not None):
            for one in merge.files:
                if one.path.startswith("frames/") and one.min_event_s is not None:
                    first[one.batch_id] = min(one.min_event_s, first.get(one.batch_id, one.min_event_s))
        for file in (self._remains.files[path] for path in self._committed.live):
            if file.batch_id in first and file.kind == "frames" and file.min_event_s is not None:
                first[file.batch_id] = min(file.min_event_s, first[file.batch_id])
        return first

    def _data_file(self, path: str) -> DataFile:
        file: Remnant = self._remains.files[path]
        return DataFile(
            file.kind,
            self._standing[path],
            file.hour_s,
            file.min_event_s,
            file.max_event_s,
            file.rest_of,
            file.batch_id,
        )

    def _newest_clocks(self) -> dict[str, dict[int, EventClock]]:
        """By topic and topic partition: the clock after the last batch that touched it."""
        clocks: dict[str, dict[int, EventClock]] = {}
        for log in self._committed.logs:
            if not log.goes_on:
                continue
            last = {read.kafka_partition: b for b in log.batch_ids for read in self._remains.batches[b].reads}
            found: dict[int, EventClock] = dict.fromkeys(log.ends, EventClock())
            for batch_id in sorted(set(last.values())):
                told = clocks_of(self._lake, self._remains.batches[batch_id])
                found |= {p: clock for p, clock in told.items() if last.get(p) == batch_id}
            clocks[log.topic] = found
        return clocks

    def _find_admissions(self) -> Iterator[Admission]:
        """Frames that were proved, and those admitted by a person that a log might still prove."""
        known = set()
        # newest first: where the broker gives no topic ids, a recreated topic has the same offsets again
        for log in sorted(self._committed.logs, key=lambda log: not log.goes_on):
            for batch_id in log.batch_ids:
                for p, offset in self._remains.batches[batch_id].admitted:
                    if batch_id not in self._committed.without and (log.topic, p, offset) not in known:
                        known.add((log.topic, p, offset))
                        yield Admission(log.topic, p, offset, batch_id)
        awaiting = {
            (topic, p, frame.kafka_offset)
            for topic, clocks in self._clocks.items()
            for p, clock in clocks.items()
            for frame in clock.pending
        }
        if awaiting:
            live, moves = self._committed.live, self._committed.moves
            of_moves = admitted_places(self._lake, self._remains, live, moves, (Kind.ADMIT, Kind.REDRAIN))
            for batch_id, places in chain(of_moves, merged_places(self._lake, self._remains, live)):
                for topic, p, offset in awaiting.intersection(places) - known:
                    yield Admission(topic, p, offset, batch_id)

    def _tallies(self) -> tuple[Counter[tuple[int, str]], Counter[tuple[int, str]]]:
        """Held frames by event minute and class, quarantined records by Kafka minute and reason; with those expired."""
        counting = {(one.topic, one.kafka_partition, one.kafka_offset) for one in self._admissions}
        held: Counter[tuple[int, str]] = Counter()
        rejected: Counter[tuple[int, str]] = Counter()
        for merge in (found.merge for found in self._merges() if found.merge is not None):
            held.update(merge.tallies.get("held", {}))
            rejected.update(merge.tallies.get("rejected", {}))
        place = ("topic", "kafka_partition", "kafka_offset")
        for path in self._committed.live:
            file = self._remains.files[path]
            if not file.rows or file.kind not in ("held", "quarantine"):
                continue
            if file.kind == "held":
                table = self._lake.read(path, [*place, "event_time", "event_class"])
                if counting:
                    places = zip(*(table[name].to_pylist() for name in place), strict=True)
                    table = table.filter([one not in counting for one in places])
                held.update(count_minutes(table))
            else:
                table = self._lake.read(path, ["kafka_time", "reason"])
                minutes = pc.divide(table["kafka_time"].cast("int64"), MINUTE_S * 1_000_000).to_pylist()
                for minute, reason in zip(minutes, table["reason"].to_pylist(), strict=True):
                    if minute is not None:
                        rejected[minute * MINUTE_S, reason] += 1
        return held, rejected

    def _bucket(self, result: ResultFile) -> BucketState:
        file = DataFile("result", self._standing[result.path])
        return BucketState(result.grain, result.bucket, result.version, file, result.provisional, result.revisions)

    def _spans(self) -> list[tuple[int, int]]:
        """`[start, end)` of the stretches of minutes between the first and the last frame of each file, joined."""
        files = (self._remains.files[path] for path in self._committed.live)
        found = sorted(
            {
                (file.min_event_s // MINUTE_S * MINUTE_S, file.max_event_s // MINUTE_S * MINUTE_S + MINUTE_S)
                for file in files
                if file.kind == "frames" and file.min_event_s is not None and file.max_event_s is not None
            }
        )
        joined: list[tuple[int, int]] = []
        for start_s, end_s in found:
            if joined and start_s <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end_s, joined[-1][1])
            else:
                joined.append((start_s, end_s))
        return joined

    def _windows(self) -> Iterator[Window]:
        """Minutes that may have frames (one that has none makes no row), and windows that have a result.

        But not closed ones: before its set is built again their exact count would be gone for a revision. Building
        it marks the window, and so does a finer one that comes out differently.
        """
        for start_s, end_s in self._spans():
            yield from windows_in(Grain.MINUTE, start_s, end_s, self._settings.zone)
        for result in self._results:
            yield from (window for window, _ in result.revisions if window not in result.closed)

    def _sets(self) -> Iterator[Window]:
        spans = self._spans()
        for grain in ROLLUP_ORDER:
            yield from sorted({w for span in spans for w in windows_in(grain, *span, self._settings.zone)})


def _front_s(front_s: int | None, read: Read, first_event_s: int | None) -> int | None:
    """The event front before a range; where the log had none yet, what is known of its batch's first frame."""
    return first_event_s if front_s is None and read.bound_s is not None else front_s


def _watermark_s(
    settings: Settings,
    policy: LatenessPolicy,
    clocks: dict[str, dict[int, EventClock]],
    results: Iterable[ResultFile],
) -> int | None:
    """The event watermark of the whole: as drains compute it, but not behind what it had passed before.

    It never moves back, and may have been further when a topic partition was idle that has traffic now.
    """
    watermarks_s = [{p: c.watermark_s(policy) for p, c in parts.items()} for parts in clocks.values()]
    combined = [
        found
        for parts in watermarks_s
        if (found := combined_watermark_s(parts, dict.fromkeys(parts, True), settings.allowed_lateness_s)) is not None
    ]
    if not combined:
        return None
    highest = max(w for parts in watermarks_s for w in parts.values() if w is not None)
    final_s = max((result.final_end_s for result in results if result.final_end_s is not None), default=None)
    passed = [] if final_s is None else [min(highest, final_s + settings.allowed_lateness_s)]
    return max(*combined, *passed) if len(combined) + len(passed) > 1 else combined[0]
