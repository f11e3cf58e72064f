"""Putting back what a lost file held: the records of its ranges that no other file has, read from Kafka again.

Where each goes is known from the file: frames back to frames, held to held, what cannot be read to quarantine. Of a
batch that lost frames and held at once, those go back to held that the log around them speaks against most.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from uniq_pipeline.drain import Source
from uniq_pipeline.errors import FileDamaged, LakeError
from uniq_pipeline.frames import parse_frames
from uniq_pipeline.intake import count_minutes, with_classes
from uniq_pipeline.lateness import EventClass
from uniq_pipeline.ledger.batches import Batch, Delivery, Kind
from uniq_pipeline.ledger.moves import MoveCommit, Place, commit_move
from uniq_pipeline.ledger.places import (
    ReadRange,
    StoredFile,
    admissions_over,
    files_over,
    held_tallies,
    proved_places,
)
from uniq_pipeline.loading import event_seconds, minutes_of, new_batch_id, write_aside, write_frames
from uniq_pipeline.offsets import OffsetRange
from uniq_pipeline.records import NO_TIME, Records
from uniq_pipeline.rejudge import judge_again
from uniq_pipeline.results import Workshop
from uniq_pipeline.rewrite import DATA_SCHEMAS, move_notes, write_empty_rests
from uniq_pipeline.schemas import FRAMES_SCHEMA, QUARANTINE_SCHEMA
from uniq_pipeline.windows import HOUR_S, MINUTE_S

REASON = "redrained"

_PLACE = ["topic", "kafka_partition", "kafka_offset"]
_HELD = (EventClass.VERY_LATE, EventClass.FUTURE)


@dataclass(frozen=True)
class Gap:
    """A range that a batch read and of which some records are in no file: offsets of those that are there.

    proved     held frames that count: they have a row in frames and one in held
    by_person  frames that a person admitted while they awaited proof
    standing   offsets that have a row of their own; shadows: proved ones whose row in held/ stands
    """

    topic: str
    offsets: OffsetRange
    kind: str
    records: int
    standing: np.ndarray
    shadows: np.ndarray
    proved: frozenset[Place]
    by_person: frozenset[Place]

    @property
    def missing(self) -> int:
        return self.records - len(self.standing)

    @property
    def missing_shadows(self) -> int:
        return len(self.proved) - len(self.shadows)


def find_gaps(shop: Workshop, lost: Sequence[StoredFile], ranges: Sequence[ReadRange]) -> tuple[Gap, ...]:
    """Where the rows of lost files were. Raises LakeError when there are not as many as the ledger says."""
    paths = {file.path for file in lost}
    gaps = []
    for log, group in _by_partition(ranges):
        found = _standing(shop, log, group, paths)
        for read, (standing, shadows) in zip(group, found, strict=True):
            proved, by_person = admissions_over(shop.ledger, *log, read.start_offset, read.end_offset)
            offsets = OffsetRange(read.kafka_partition, read.start_offset, read.end_offset)
            gap = Gap(
                *(read.topic, offsets, read.kind, read.records),
                *(standing, shadows, frozenset(proved), frozenset(by_person)),
            )
            if gap.missing < 0:
                raise LakeError(
                    f"{read}: {len(standing):,} rows are there, of {read.records:,} records: some stand twice"
                )
            if gap.missing or gap.missing_shadows:
                gaps.append(gap)
    rows, missing = sum(file.rows for file in lost), sum(gap.missing + gap.missing_shadows for gap in gaps)
    if rows != missing:
        raise LakeError(
            f"{', '.join(sorted(paths))}: the ledger says {rows:,} rows were lost, but {missing:,} records of their "
            f"ranges are in no other file: it cannot be told which they were. Nothing was changed."
        )
    return tuple(gaps)


def _by_partition(ranges: Iterable[ReadRange]) -> Iterator[tuple[tuple[str, int], list[ReadRange]]]:
    groups: dict[tuple[str, int], list[ReadRange]] = defaultdict(list)
    for read in sorted(ranges):
        groups[read.topic, read.kafka_partition].append(read)
    yield from groups.items()


def _standing(
    shop: Workshop, log: tuple[str, int], ranges: Sequence[ReadRange], lost: set[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each range: the offsets that have a row of their own, and those that only stand in held/ beside frames."""
    topic, kafka_partition = log
    starts = np.array([read.start_offset for read in ranges])
    ends = np.array([read.end_offset for read in ranges])
    own: list[list[np.ndarray]] = [[] for _ in ranges]
    shadows: list[list[np.ndarray]] = [[] for _ in ranges]
    first, end = int(starts.min()), int(ends.max())
    proved, _ = admissions_over(shop.ledger, topic, kafka_partition, first, end)
    in_both = np.array(sorted(offset for _, _, offset in proved), np.int64)
    bounds = {"kafka_partition": (kafka_partition, kafka_partition), "kafka_offset": (first, end - 1)}
    for file in files_over(shop.ledger, topic, kafka_partition, first, end):
        if file.path in lost or not file.rows or not shop.lake.may_overlap(file.path, bounds):
            continue
        table = shop.lake.read(file.path, _PLACE)
        offsets = offsets_of(table, topic, kafka_partition)
        place = np.searchsorted(starts, offsets, "right") - 1
        within = (place >= 0) & (offsets < ends[place])
        is_shadow = np.isin(offsets, in_both) if file.kind == "held" else np.zeros(len(offsets), bool)
        for i in np.unique(place[within]):
            mine = within & (place == i)
            own[i].append(offsets[mine & ~is_shadow])
            shadows[i].append(offsets[mine & is_shadow])
    return [(_joined(some), _joined(others)) for some, others in zip(own, shadows, strict=True)]


def offsets_of(table: pa.Table, topic: str, kafka_partition: int) -> np.ndarray:
    """int64[n]: offsets of the rows of one topic partition."""
    mine = (table["kafka_partition"].to_numpy() == kafka_partition) & (
        np.array(table["topic"].cast(pa.string()).to_pylist(), object) == topic
    )
    return table["kafka_offset"].to_numpy()[mine]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def as_rows(topic: str, records: Records, chosen: Sequence[int]) -> pa.Table:
    """Records in the columns of quarantine, without a reason."""
    times = [records.kafka_times_ms[i] for i in chosen]
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(chosen), np.int32)), pa.array([topic]))
    nothing = pa.nulls(len(chosen), pa.string())
    return pa.table(
        [
            names,
            pa.array([records.kafka_partition] * len(chosen), pa.int32()),
            pa.array([records.offsets[i] for i in chosen], pa.int64()),
            pa.array([None if t == NO_TIME else t * 1000 for t in times], QUARANTINE_SCHEMA.field("kafka_time").type),
            *(nothing, nothing),
            pa.array([records.payloads[i] for i in chosen], pa.binary()),
        ],
        schema=QUARANTINE_SCHEMA,
    )


def split_readable(shop: Workshop, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(readable, quarantined with their reasons) of records, under the settings in force."""
    parsed = parse_frames(rows["payload"].to_pylist(), shop.settings.ts_unit, shop.settings.dimension_keys)
    readable = np.zeros(rows.num_rows, bool)
    readable[parsed.index] = True
    rejected = rows.filter(pa.array(~readable)).drop_columns(["reason", "detail"])
    rejects = sorted(parsed.rejects, key=lambda reject: reject.index)
    rejected = rejected.append_column("reason", pa.array([str(reject.reason) for reject in rejects], pa.string()))
    rejected = rejected.append_column("detail", pa.array([reject.detail for reject in rejects], pa.string()))
    return rows.filter(pa.array(readable)), rejected.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)


def restore(shop: Workshop, sources: Mapping[str, Source], lost: Sequence[StoredFile], gaps: Sequence[Gap]) -> str:
    """Puts the rows of lost files back in one transaction; returns the batch. `sources` by topic.

    Raises LakeError when Kafka has other records than were lost, and LostRace when another run restored a file first.
    """
    started = time.monotonic()
    rows = _read_missing(sources, gaps)
    lost_rows = {kind: sum(file.rows for file in lost if file.kind == kind) for kind in DATA_SCHEMAS}
    shadows = sum(gap.missing_shadows for gap in gaps)
    names = ", ".join(file.path for file in lost)
    if (found := rows.num_rows + shadows) != (expected := sum(lost_rows.values())):
        raise LakeError(
            f"{names}: {expected:,} rows were lost, but Kafka has {found:,} of them still. Nothing was changed."
        )
    readable, quarantined = split_readable(shop, rows)
    if quarantined.num_rows != lost_rows["quarantine"]:
        raise LakeError(
            f"{names}: {lost_rows['quarantine']:,} of the lost records were quarantined, but {quarantined.num_rows:,} "
            f"cannot be read under the settings in force (UNIQ_TS_UNIT?): set them as they were. Nothing was changed."
        )
    frames, held = _sort(shop, readable, lost, gaps, lost_rows["held"] - shadows)
    if shadows:
        held = pa.concat_tables([held, _shadow_rows(shop, sources, gaps)])
    delivery = Delivery(
        withdrawn=lost_rows["frames"],
        admitted=lost_rows["held"],
        replayed=lost_rows["quarantine"],
        frames=frames.num_rows,
        held=held.num_rows,
        quarantined=quarantined.num_rows,
    )
    batch_id = new_batch_id(shop.ledger.now())
    topics = sorted({gap.topic for gap in gaps})
    footer = move_notes(batch_id, Kind.REDRAIN, topics, delivery, [file.path for file in lost])
    shop.failpoint("move.before_write")
    files = write_frames(shop.lake, frames, batch_id, footer)
    for kind, table in (("held", held), ("quarantine", quarantined)):
        if table.num_rows:
            files.append(write_aside(shop.lake, kind, table.unify_dictionaries(), batch_id, footer))
    files += write_empty_rests(shop.ledger, shop.lake, lost, batch_id)
    shop.failpoint("move.before_commit")
    commit_move(
        shop.ledger,
        MoveCommit(
            batch=Batch(batch_id, Kind.REDRAIN, footer["uniq.topic"], delivery, files, time.monotonic() - started),
            taken=[file.path for file in lost],
            minutes_s=minutes_of(frames),
            reason=REASON,
        ),
        refine=shop.settings.refined_topic is not None,
    )
    shop.failpoint("move.after_commit")
    return batch_id


def _read_missing(sources: Mapping[str, Source], gaps: Sequence[Gap]) -> pa.Table:
    """The records of the gaps that have no row, in the columns of quarantine."""
    parts = [QUARANTINE_SCHEMA.empty_table()]
    for gap in gaps:
        if gap.missing:
            for records in sources[gap.topic].read([gap.offsets]):
                is_missing = ~np.isin(np.asarray(records.offsets, np.int64), gap.standing)
                parts.append(as_rows(gap.topic, records, np.flatnonzero(is_missing).tolist()))
    return pa.concat_tables(parts).unify_dictionaries()


def _shadow_rows(shop: Workshop, sources: Mapping[str, Source], gaps: Sequence[Gap]) -> pa.Table:
    """Rows of held/ beside those in frames, of frames that their log proved: as they were held."""
    parts = [QUARANTINE_SCHEMA.empty_table()]
    for gap in gaps:
        wanted = sorted(set(offset for _, _, offset in gap.proved) - set(gap.shadows.tolist()))
        for offset in wanted:
            for records in sources[gap.topic].read([OffsetRange(gap.offsets.kafka_partition, offset, offset + 1)]):
                parts.append(as_rows(gap.topic, records, range(len(records.offsets))))
    rows = pa.concat_tables(parts).unify_dictionaries()
    table = _judged(shop, rows)
    return _classed(table, np.full(table.num_rows, EventClass.FUTURE), np.zeros(table.num_rows, np.int32))


def _judged(shop: Workshop, rows: pa.Table) -> pa.Table:
    """Readable records as frames, in order of their places, with the classes that the log around them gives."""
    parts = [part for pair in judge_again(shop, rows) for part in pair] or [FRAMES_SCHEMA.empty_table()]
    return (
        pa.concat_tables(parts)
        .unify_dictionaries()
        .sort_by([("kafka_partition", "ascending"), ("kafka_offset", "ascending")])
    )


def classes_of(table: pa.Table) -> np.ndarray:
    """uint8[n]: the event classes of a table of frames."""
    labels = {event_class.label: int(event_class) for event_class in EventClass}
    return np.array([labels[name] for name in table["event_class"].cast(pa.string()).to_pylist()], np.uint8)


def _classed(table: pa.Table, classes: np.ndarray, late_by_s: np.ndarray) -> pa.Table:
    return with_classes(table, classes.astype(np.uint8), late_by_s.astype(np.int32)).cast(FRAMES_SCHEMA)


def _sort(
    shop: Workshop, readable: pa.Table, lost: Sequence[StoredFile], gaps: Sequence[Gap], held_rows: int
) -> tuple[pa.Table, pa.Table]:
    """(frames, held): as many held as were lost, and everything else counted."""
    table = _judged(shop, readable)
    classes, late_by_s = classes_of(table), table["late_by_s"].to_numpy().copy()
    places = _places(table)
    proved = frozenset().union(*(gap.proved for gap in gaps))
    by_person = frozenset().union(*(gap.by_person for gap in gaps))
    is_proved = np.array([place in proved for place in places], bool)
    is_admitted = np.array([place in by_person for place in places], bool)
    counted = is_proved | is_admitted
    seconds = event_seconds(table)
    hours = {file.hour_s for file in lost if file.kind == "frames"}
    in_no_lost_hour = ~np.isin(seconds // HOUR_S * HOUR_S, sorted(hour for hour in hours if hour is not None))
    # Most likely held first; np.lexsort sorts by its last key first.
    order = np.lexsort((-late_by_s, ~np.isin(classes, _HELD), ~in_no_lost_hour, counted))
    is_held = np.zeros(table.num_rows, bool)
    tallied = _lost_tallies(shop, lost, seconds) if held_rows else Counter()
    for i in order:
        if is_held.sum() == held_rows:
            break
        of_minute = [key for key, left in tallied.items() if left and key[0] == seconds[i] // MINUTE_S * MINUTE_S]
        if of_minute and not counted[i]:
            key = max(of_minute, key=lambda key: key[1] == EventClass(classes[i]).label)
            tallied[key] -= 1
            is_held[i], classes[i] = True, EventClass[key[1].upper()]
    is_held[[i for i in order if not is_held[i]][: held_rows - is_held.sum()]] = True
    if held_rows < 0 or (is_held & counted).any():
        raise LakeError(
            f"{', '.join(file.path for file in lost)}: more rows of held/ were lost than there are records that were "
            f"not counted. Nothing was changed."
        )
    # What its log proved was on time; what a person admitted while it awaited proof came from the future.
    classes[is_proved], classes[is_admitted] = EventClass.ON_TIME, EventClass.FUTURE
    late_by_s[counted] = 0
    # The log around a record is more lenient than the log up to it: what was held then keeps a class that is held.
    lenient = is_held & ~np.isin(classes, _HELD)
    classes[lenient] = np.where(late_by_s[lenient] > 0, EventClass.VERY_LATE, EventClass.FUTURE)
    very_late = is_held & (classes == EventClass.VERY_LATE)
    late_by_s[very_late] = np.maximum(late_by_s[very_late], shop.settings.allowed_lateness_s + 1)
    table = _classed(table, classes, late_by_s)
    return table.filter(pa.array(~is_held)), table.filter(pa.array(is_held))


def _lost_tallies(shop: Workshop, lost: Sequence[StoredFile], seconds: np.ndarray) -> Counter[tuple[int, str]]:
    """(minute, event class) -> held frames that the ledger tells of, in these minutes, and no file has."""
    minutes = np.unique(seconds // MINUTE_S * MINUTE_S)
    tallied, paths = held_tallies(shop.ledger, int(minutes.min()), int(minutes.max()) + MINUTE_S)
    known = proved_places(shop.ledger)
    for path in set(paths) - {file.path for file in lost}:
        try:
            table = shop.lake.read(path, [*_PLACE, "event_time", "event_class"])
        except FileDamaged:
            continue  # it is lost too, and what it held is put back after this
        table = table.filter(pa.array([place not in known for place in _places(table)], pa.bool_()))
        tallied.subtract(count_minutes(table))
    chosen = set(minutes.tolist())
    return Counter({key: left for key, left in tallied.items() if left > 0 and key[0] in chosen})


def _places(table: pa.Table) -> list[Place]:
    return list(zip(*(table[name].to_pylist() for name in _PLACE), strict=True))
