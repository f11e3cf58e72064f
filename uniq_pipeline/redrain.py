"""Redrain: reads a range of offsets that Kafka still holds once more, and replaces what the lake has of it.

A move like the others (see move): offsets stay where they are, and each record is in one place before and after.
Two parts, each committed in steps:

    restore  files that are missing or damaged: their rows are those places of the ranges their batches read that no
             other file has; these are read from Kafka and put back where they were
    renew    what is in the lake and comes out differently under the settings in force, or was altered, is replaced

A record that was counted stays counted, one that is held stays held unless the settings say otherwise now, and one
that could be read before is never given up because it cannot be read now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from uniq_pipeline.drain import Source
from uniq_pipeline.errors import InputError, LakeError, OffsetsLost, TopicRecreated
from uniq_pipeline.ledger.batches import Kind
from uniq_pipeline.ledger.logs import Positions, read_positions
from uniq_pipeline.ledger.places import ReadRange, StoredFile, files_over, ranges_over, ranges_read_by
from uniq_pipeline.offsets import OffsetRange, TopicState
from uniq_pipeline.renew import renew
from uniq_pipeline.restore import Gap, find_gaps, restore
from uniq_pipeline.results import Workshop

# Records read into memory for one commit; with payloads of 2 kB they take 100 MB.
RECORDS_AT_ONCE = 50_000


@dataclass(frozen=True)
class Restoring:
    """Files that are lost together, and what of Kafka has their rows."""

    files: tuple[StoredFile, ...]
    gaps: tuple[Gap, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def ranges(self) -> list[OffsetRange]:
        return [gap.offsets for gap in self.gaps]


@dataclass(frozen=True)
class Plan:
    """What a redrain is going to do."""

    topic: str
    renewed: tuple[OffsetRange, ...]
    restored: tuple[Restoring, ...]

    @property
    def records(self) -> int:
        """Offsets that are read."""
        return sum(r.size for r in (*self.renewed, *(r for one in self.restored for r in one.ranges)))

    def lines(self) -> Iterator[str]:
        """What a person is told first."""
        for one in self.restored:
            names = ", ".join(file.path for file in one.files)
            where = "; ".join(map(_shown, one.ranges))
            yield f"{names}: missing or damaged; its {one.rows:,} rows are read again from topic {self.topic}, {where}"
        for r in self.renewed:
            yield f"topic {self.topic}, {_shown(r)} is read again; what comes out differently is replaced"


@dataclass
class RedrainReport:
    """What was done. `kept`: rows that were left as they are, because Kafka has no such record any more, or it cannot
    be read under the settings in force."""

    topic: str
    read: int = 0
    files: int = 0  # replaced
    restored: int = 0  # rows of lost files that are there again
    replaced: int = 0  # rows that came out differently
    kept: int = 0
    batches: list[str] = field(default_factory=list)


Progress = Callable[[int, int], None]  # records done, in all


def plan_redrain(shop: Workshop, source: Source, offsets: Sequence[OffsetRange], lost: Collection[str] = ()) -> Plan:
    """Looks at the ledger, the topic and the files; changes nothing.

    offsets  what is to be read again; lost files that may hold some of it are restored whole
    lost     files known to be damaged, beyond those that are missing or have another size

    Raises InputError for offsets that were not drained yet, OffsetsLost for those Kafka no longer has, TopicRecreated
    when the topic is another by now, and LakeError when it cannot be told what was in a lost file.
    """
    positions, state = read_positions(shop.ledger, source.topic), source.describe()
    for r in offsets:
        _refuse_unread(shop, source.topic, positions, r)
        refuse_gone(state, positions, r)
    found = {
        file.path: file
        for r in offsets
        for file in files_over(shop.ledger, source.topic, r.kafka_partition, r.start_offset, r.end_offset)
        if file.path in lost or not shop.lake.is_whole(file.path, file.size_bytes)
    }
    restored = plan_restoring(shop, list(found.values()), lost)
    for one in restored:
        for gap in one.gaps:
            refuse_gone(state, positions, gap.offsets, gap.topic)
    return Plan(source.topic, tuple(offsets), tuple(restored))


def plan_restoring(shop: Workshop, files: Sequence[StoredFile], lost: Collection[str] = ()) -> list[Restoring]:
    """Which of these lost files, and others lost with them, are put back together: those of overlapping ranges.

    Raises LakeError when places and rows do not agree, or rows came from a file.
    """
    return [restoring(shop, together, ranges) for together, ranges in lost_together(shop, files, lost)]


def restoring(shop: Workshop, together: Sequence[StoredFile], ranges: Sequence[ReadRange]) -> Restoring:
    """Raises LakeError when places and rows do not agree, or rows came from a file."""
    one = Restoring(tuple(together), find_gaps(shop, together, ranges))
    for gap in one.gaps:
        if gap.kind == Kind.INGEST:
            raise LakeError(
                f"{', '.join(file.path for file in together)}: its rows came from the file {gap.topic}, lines "
                f"[{gap.offsets.start_offset}, {gap.offsets.end_offset}), which Kafka never had. Bring back the file."
            )
    return one


def lost_together(
    shop: Workshop, files: Sequence[StoredFile], lost: Collection[str]
) -> list[tuple[tuple[StoredFile, ...], list[ReadRange]]]:
    """Lost files in groups of overlapping ranges, with these; also such as were not asked for."""
    left = {file.path: file for file in files}
    groups = []
    while left:
        _, file = left.popitem()
        group, spans = {file.path: file}, set(ranges_read_by(shop.ledger, file.batch_id))
        seen: set[ReadRange] = set()
        while spans - seen:
            for span in sorted(spans - seen):
                seen.add(span)
                place = span.topic, span.kafka_partition, span.start_offset, span.end_offset
                for other in files_over(shop.ledger, *place):
                    is_lost = other.path in lost or not shop.lake.is_whole(other.path, other.size_bytes)
                    if is_lost and other.path not in group:
                        group[other.path] = other
                        spans |= set(ranges_read_by(shop.ledger, other.batch_id))
        for path in group:
            left.pop(path, None)
        groups.append((tuple(sorted(group.values(), key=lambda one: one.path)), sorted(spans)))
    return groups


def redrain(shop: Workshop, source: Source, plan: Plan, progress: Progress = lambda done, total: None) -> RedrainReport:
    """Does what is planned.

    Raises LostRace when another run moved the same rows first; what was committed before that stays.
    """
    report, done = RedrainReport(plan.topic), 0
    for one in plan.restored:
        report.batches.append(restore(shop, {source.topic: source}, one.files, one.gaps))
        done += sum(r.size for r in one.ranges)
        report.read += sum(r.size for r in one.ranges)
        report.files += len(one.files)
        report.restored += one.rows
        progress(done, plan.records)
    for r in plan.renewed:
        for start in range(r.start_offset, r.end_offset, RECORDS_AT_ONCE):
            some = OffsetRange(r.kafka_partition, start, min(r.end_offset, start + RECORDS_AT_ONCE))
            renewed = renew(shop, source, some)
            done += some.size
            report.read += renewed.read
            report.files += renewed.files
            report.replaced += renewed.replaced
            report.kept += renewed.kept
            report.batches += [renewed.batch_id] if renewed.batch_id else []
            progress(done, plan.records)
    return report


def _refuse_unread(shop: Workshop, topic: str, positions: Positions, r: OffsetRange) -> None:
    where = f"topic {topic}, {_shown(r)}"
    position = positions.by_partition.get(r.kafka_partition)
    if r.size <= 0 or r.start_offset < 0:
        raise InputError(f"{where}: a range is [start, end) with 0 <= start < end")
    if position is None:
        known = sorted(positions.by_partition)
        raise InputError(
            f"{where}: the ledger knows no such topic partition"
            + (f" of this topic, only {known}" if known else "; see `uniq-pipeline status`")
        )
    if r.end_offset > position.next_offset:
        raise InputError(
            f"{where}: offsets from {max(position.next_offset, r.start_offset)} on were not drained yet; "
            f"`uniq-pipeline drain` reads them"
        )
    at = r.start_offset
    for read in ranges_over(shop.ledger, topic, r.kafka_partition, r.start_offset, r.end_offset):
        if read.topic_id == positions.topic_id and read.start_offset <= at:
            at = max(at, read.end_offset)
    if at < r.end_offset:
        raise InputError(
            f"{where}: offset {at} was never drained: it was skipped, or had expired; choose another range"
        )


def refuse_gone(state: TopicState, positions: Positions, r: OffsetRange, topic: str | None = None) -> None:
    """Raises OffsetsLost when the topic does not have a range (any more), TopicRecreated when it is another."""
    where = f"topic {topic or state.topic}, {_shown(r)}"
    if topic is not None and topic != state.topic:
        raise LakeError(f"{where}: it holds rows of another topic than {state.topic}; run `uniq-pipeline repair`")
    if state.topic_id != positions.topic_id:
        raise TopicRecreated(
            f"{where}: the topic was recreated: the ledger knows id {positions.topic_id or 'none'}, the broker shows "
            f"{state.topic_id or 'none'}. What was drained is not there any more. Nothing was changed."
        )
    extent = state.extents.get(r.kafka_partition)
    if extent is None or r.start_offset < extent.low_watermark:
        low = "none" if extent is None else extent.low_watermark
        raise OffsetsLost(
            f"{where}: Kafka no longer has these offsets, its low watermark is {low}. Nothing was changed. From there "
            f"on they can be read again."
        )
    if r.end_offset > extent.stable_offset:
        raise OffsetsLost(f"{where}: the log ends at {extent.stable_offset}: it was truncated. Nothing was changed.")


def _shown(r: OffsetRange) -> str:
    return f"topic partition {r.kafka_partition} [{r.start_offset}, {r.end_offset})"
