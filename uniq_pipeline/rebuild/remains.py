"""What a lake tells of itself: the data files that can be read, and the batches their footers speak of.

Which of them counted is not here; a footer is written before its batch is committed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from uniq_pipeline.errors import FileDamaged
from uniq_pipeline.lake import Lake
from uniq_pipeline.lateness import EventClock
from uniq_pipeline.ledger.batches import Delivery, Kind
from uniq_pipeline.ledger.expiry import Expired
from uniq_pipeline.ledger.files import MergedFile
from uniq_pipeline.ledger.tallies import Tally
from uniq_pipeline.merging import MERGES, Source, expired_in, merged_in, tallies_in, unpack
from uniq_pipeline.names import batch_of, origin_of
from uniq_pipeline.windows import HOUR_S

DATA_FOLDERS = ("frames", "held", "quarantine", "expired")

Progress = Callable[[int, int, str], None]  # done, in all, of what


@dataclass(frozen=True, slots=True)
class Remnant:
    """A data file that can be read. `rest_of` is the file whose other rows were moved elsewhere."""

    path: str
    rows: int
    batch_id: str
    rest_of: str | None
    min_event_s: int | None
    max_event_s: int | None

    @property
    def kind(self) -> str:
        return self.path.partition("/")[0]

    @property
    def hour_s(self) -> int | None:
        """Of frames, the one event hour inside."""
        if self.kind != "frames" or self.min_event_s is None:
            return None
        return self.min_event_s - self.min_event_s % HOUR_S


@dataclass(frozen=True, slots=True)
class Read:
    """What a batch read of one topic partition, `[start_offset, end_offset)`, and the event clock after it."""

    kafka_partition: int
    start_offset: int
    end_offset: int
    records: int
    front_s: int | None
    bound_s: int | None


@dataclass(frozen=True, slots=True)
class Merge:
    """What a merge says beside its batch: its file, and the files of batches that it was merged of."""

    path: str
    files: tuple[MergedFile, ...]
    tallies: dict[str, Tally]
    expired: Expired | None


@dataclass(slots=True)
class Found:
    """A batch that some footers speak of.

    reads     ranges with their clocks; empty ones only renewed the clock
    admitted  (topic partition, offset) of frames held by earlier batches that it counted
    taken     of a move: the files it took rows out of
    written   the files it wrote, whether they still stand or only what moves left of them -> rows written
    told_by   a file whose footer has the clocks in full
    merge     of compaction and expiry: the file it wrote, in the place of those taken
    """

    batch_id: str
    kind: Kind
    topic: str
    topic_id: str
    reads: tuple[Read, ...]
    delivery: Delivery
    admitted: tuple[tuple[int, int], ...]
    taken: tuple[str, ...]
    written: dict[str, int] = field(default_factory=dict)
    told_by: str | None = None
    merge: Merge | None = None

    @property
    def is_move(self) -> bool:
        return self.kind not in (Kind.DRAIN, Kind.INGEST)

    def missing_rows(self) -> dict[str, tuple[int, int]]:
        """By kind of file, the rows there should be and those there were, where they differ."""
        if self.merge is not None:
            return {}
        delivery, there = self.delivery, self.rows_written()
        should = {"frames": delivery.frames, "held": delivery.held, "quarantine": delivery.quarantined}
        return {kind: (should[kind], there[kind]) for kind in should if should[kind] != there[kind]}

    def rows_written(self) -> dict[str, int]:
        """By kind of file, the rows of those that are known."""
        there = {"frames": 0, "held": 0, "quarantine": 0}
        for path, rows in self.written.items():
            there[path.partition("/")[0]] += rows
        return there


@dataclass
class Remains:
    """damaged: path -> why it cannot be read; strange: files that no batch of ours wrote; taken_by: move -> files."""

    files: dict[str, Remnant] = field(default_factory=dict)
    batches: dict[str, Found] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    taken_by: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def survey(lake: Lake, progress: Progress = lambda done, total, unit: None) -> Remains:
    """Reads the footer of every data file in the lake."""
    remains = Remains()
    names = [name for folder in DATA_FOLDERS for name in lake.listing(folder)]
    for done, path in enumerate(names, 1):
        if not path.endswith(".parquet"):
            remains.strange.append(path)
        else:
            _look_at(lake, path, remains)
        progress(done, len(names), "footers")
    for batch_id, paths in remains.taken_by.items():
        # Notes that were made from the ledger, for a file that was lost, may not know all that a move took.
        if (move := remains.batches.get(batch_id)) is not None:
            move.taken = tuple(sorted({*move.taken, *paths}))
    return remains


def _look_at(lake: Lake, path: str, remains: Remains) -> None:
    try:
        footer = lake.footer(path)
    except FileDamaged as error:
        remains.damaged[path] = str(error)
        return
    try:
        sources = unpack(footer.notes["uniq.merged"]) if "uniq.merged" in footer.notes else []
        itself = Source(path, footer.min_event_s, footer.max_event_s, footer.notes)
        told = [(source, _found(source.notes)) for source in (itself, *sources)]
    except (KeyError, ValueError, TypeError):
        remains.strange.append(path)
        return
    if any(found.batch_id != batch_of(source.path) or not found.delivery.is_conserved for source, found in told):
        remains.strange.append(path)  # renamed, or made by somebody else
        return
    for source, found in told:
        _note(remains, source, found, path, footer.rows)
    if sources:
        remains.batches[told[0][1].batch_id].merge = _merge(path, footer.notes, sources)
    remains.files[path] = Remnant(
        path,
        footer.rows,
        told[0][1].batch_id,
        footer.notes.get("uniq.rest_of"),
        footer.min_event_s,
        footer.max_event_s,
    )


def _note(remains: Remains, source: Source, found: Found, told_by: str, rows: int) -> None:
    notes = source.notes
    found = remains.batches.setdefault(found.batch_id, found)
    if "uniq.move" in notes:
        remains.taken_by[notes["uniq.move"]].add(notes["uniq.rest_of"])
    if found.kind in MERGES:
        # of one whose file is gone, because a later one took it, no more is known
        found.merge = found.merge or Merge(origin_of(source.path), (), {}, None)
    else:
        found.written[origin_of(source.path)] = int(notes.get("uniq.rows", rows))
    if "uniq.clocks" in notes:
        found.told_by = told_by
        if all(read.front_s is None for read in found.reads):
            found.reads = _reads(notes)


def _merge(path: str, notes: Mapping[str, str], sources: Sequence[Source]) -> Merge:
    return Merge(origin_of(path), tuple(merged_in(sources)), tallies_in(notes), expired_in(notes))


def _found(notes: Mapping[str, str]) -> Found:
    return Found(
        batch_id=notes["uniq.batch_id"],
        kind=Kind(notes["uniq.kind"]),
        topic=notes["uniq.topic"],
        topic_id=notes["uniq.topic_id"],
        reads=_reads(notes),
        delivery=Delivery(**json.loads(notes["uniq.delivery"])),
        admitted=tuple((p, offset) for p, offset in json.loads(notes.get("uniq.admitted", "[]"))),
        taken=tuple(json.loads(notes.get("uniq.taken", "[]"))),
    )


def _reads(notes: Mapping[str, str]) -> tuple[Read, ...]:
    clocks = json.loads(notes.get("uniq.clocks", "{}"))
    nothing: dict[str, int | None] = {}
    return tuple(
        Read(p, start, end, records, (clock := clocks.get(str(p), nothing)).get("front_s"), clock.get("bound_s"))
        for p, start, end, records in json.loads(notes["uniq.ranges"])
    )


def clocks_of(lake: Lake, found: Found) -> dict[int, EventClock]:
    """The event clocks after a batch by topic partition, from a footer that has them."""
    if found.told_by is None:
        return {}
    notes = lake.footer(found.told_by).notes
    sources = unpack(notes["uniq.merged"]) if "uniq.merged" in notes else []
    for told in (notes, *(source.notes for source in sources)):
        if told["uniq.batch_id"] == found.batch_id and "uniq.clocks" in told:
            return {int(p): EventClock.from_dict(clock) for p, clock in json.loads(told["uniq.clocks"]).items()}
    return {}
