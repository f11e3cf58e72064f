"""Rebuild: makes the ledger anew from the lake when it was lost.

What was committed is chosen from the footers (see committed), what counts beside frames is read from the few rows
there are of it, result files are taken over with their revisions, and every window is computed again by the next
tick: one that comes out the same keeps its revision.

Not in the lake, and so not in the new ledger: how long batches took, offsets that were skipped on a person's word
before (they show as a gap), and what was published already (it is sent again).
"""

from __future__ import annotations

import calendar
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow.compute as pc

from uniq_pipeline.config import Settings
from uniq_pipeline.errors import InputError, OffsetsLost
from uniq_pipeline.intake import count_minutes
from uniq_pipeline.lake import Lake, LakeFile
from uniq_pipeline.lateness import EventClock, LatenessPolicy, combined_watermark_s
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.batches import Batch, Kind
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.rebuilt import (
    Admission,
    BatchState,
    BucketState,
    PartitionState,
    ReadState,
    Rebuilt,
    refuse_unless_empty,
    write_rebuilt,
)
from uniq_pipeline.loading import lateness_policy
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.rebuild.committed import Committed, Loss, admitted_places, choose, shown
from uniq_pipeline.rebuild.remains import Progress, Remains, Remnant, batch_of, clocks_in, survey
from uniq_pipeline.rebuild.taken_over import ResultFile, newest_results
from uniq_pipeline.windows import (
    MINUTE_S,
    ROLLUP_ORDER,
    Grain,
    Window,
    windows_in,
)

SHOWN = 5  # names of files that do not count; --json has them all


@dataclass
class Plan:
    """What a rebuild is going to do, and what it cannot."""

    remains: Remains
    committed: Committed
    results: list[ResultFile]
    orphans: list[str]
    rows: dict[str, int] = field(default_factory=dict)  # that count, by kind of file

    @property
    def losses(self) -> list[Loss]:
        return self.committed.losses

    @property
    def batches(self) -> int:
        logs = sum(len(set(log.batch_ids) - self.committed.without) for log in self.committed.logs)
        return logs + len(self.committed.moves)

    @property
    def windows(self) -> int:
        return sum(len(result.revisions) for result in self.results)

    def lines(self) -> Iterator[str]:
        """What a person is told first."""
        for log in self.committed.logs:
            ends = ", ".join(
                f"topic partition {p} {shown(OffsetRange(p, log.starts[p], end))}"
                for p, end in sorted(log.ends.items())
            )
            older = "" if log.goes_on else " (an older topic of this name)"
            yield f"topic {log.topic}{older}: {len(log.batch_ids):,} batches; {ends}"
        counts = ", ".join(f"{self.rows[kind]:,} {word}" for kind, word in _WORDS.items())
        yield f"{self.batches:,} batches ({len(self.committed.moves):,} of them moves) with {counts}"
        yield f"{len(self.results):,} result files with {self.windows:,} windows are taken over; all are computed again"
        names = ", ".join([*self.orphans[:SHOWN], *(["..."] if len(self.orphans) > SHOWN else [])])
        which = f": {names}" if names else ""
        yield f"{len(self.orphans):,} files do not count and are left alone, gc removes them later{which}"
        for notice in self.committed.notices:
            yield f"note: {notice}"
        for loss in self.losses:
            yield f"lost: {loss}"


_WORDS = {"frames": "frames", "held": "held", "quarantine": "quarantined"}


def plan_rebuild(
    settings: Settings, ledger: Ledger, lake: Lake, progress: Progress = lambda done, total, unit: None
) -> Plan:
    """Reads what the lake tells; changes nothing.

    Raises LedgerError when the ledger is not empty, LakeError when batches overlap, SettingError when the lake was
    made under other settings, and InputError when there is nothing to make a ledger from.
    """
    refuse_unless_empty(ledger)
    remains = survey(lake, progress)
    if not remains.batches:
        raise InputError(f"lake folder {lake.root} has no file of a batch to make a ledger from; see UNIQ_DATA_DIR")
    committed = choose(lake, remains)
    results, other_results = newest_results(settings, lake, committed.notices, progress)
    known = {*committed.live, *committed.retired}
    orphans = [path for path in (*remains.files, *remains.damaged, *remains.strange) if path not in known]
    plan = Plan(remains, committed, results, sorted([*orphans, *other_results]))
    proved = sum(len(remains.batches[b].admitted) for log in committed.logs for b in log.batch_ids)
    plan.rows = dict.fromkeys(_WORDS, 0)
    for path in committed.live:
        plan.rows[remains.files[path].kind] += remains.files[path].rows
    plan.rows["held"] -= proved
    return plan


def refuse_losses(plan: Plan) -> None:
    """Raises OffsetsLost when something is lost."""
    if plan.losses:
        raise OffsetsLost(
            f"{'; '.join(map(str, plan.losses))}. Nothing was changed. Bring back what is missing, or go on without "
            f"it, and record that: `uniq-pipeline rebuild --accept-gaps`."
        )


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
        for log in self._committed.logs:
            fronts: dict[int, int | None] = {}
            for batch_id in log.batch_ids:
                reads = self._remains.batches[batch_id].reads
                states = [
                    ReadState(
                        OffsetRange(read.kafka_partition, read.start_offset, read.end_offset),
                        read.records,
                        fronts.get(read.kafka_partition),
                        read.bound_s,
                    )
                    for read in reads
                    if read.end_offset > read.start_offset
                ]
                fronts |= {read.kafka_partition: read.front_s for read in reads}
                if batch_id not in self._committed.without:
                    yield self._batch(batch_id, live[batch_id], states)
        for batch_id in self._committed.moves:
            yield self._batch(batch_id, live[batch_id], [])

    def _batch(self, batch_id: str, files: list[DataFile], reads: list[ReadState]) -> BatchState:
        found = self._remains.batches[batch_id]
        batch = Batch(batch_id, found.kind, found.topic, found.delivery, files, seconds=0.0)
        return BatchState(batch, self._written_at(batch_id), found.topic_id, reads)

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
                told_by = self._remains.batches[batch_id].told_by
                told = clocks_in(self._lake, told_by) if told_by else {}
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
            for batch_id, places in admitted_places(
                self._lake,
                self._remains,
                self._committed.live,
                self._committed.moves,
                (Kind.ADMIT, Kind.REDRAIN),
            ):
                for topic, p, offset in awaiting.intersection(places) - known:
                    yield Admission(topic, p, offset, batch_id)

    def _tallies(self) -> tuple[Counter[tuple[int, str]], Counter[tuple[int, str]]]:
        """Held frames by event minute and class, quarantined records by Kafka minute and reason."""
        counting = {(one.topic, one.kafka_partition, one.kafka_offset) for one in self._admissions}
        held: Counter[tuple[int, str]] = Counter()
        rejected: Counter[tuple[int, str]] = Counter()
        place = ("topic", "kafka_partition", "kafka_offset")
        for path in self._committed.live:
            file = self._remains.files[path]
            if not file.rows or file.kind == "frames":
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
