"""Rewriting files that rows are moved out of: what is left of each stands in a new one, under the old one's notes.

A file is never changed; see ledger.moves for how the old ones stop counting in one transaction.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from uniq_pipeline.errors import FileDamaged, LakeError
from uniq_pipeline.lake import Lake, LakeFile
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.batches import Delivery, Kind
from uniq_pipeline.ledger.files import DataFile, MergedFile, merged_files
from uniq_pipeline.ledger.moves import Place
from uniq_pipeline.ledger.places import BatchFacts, StoredFile, batch_facts, files_of_batch
from uniq_pipeline.loading import event_seconds
from uniq_pipeline.merging import Source, notes_of_merge, topic_of
from uniq_pipeline.names import mover_of, origin_of, rest_after
from uniq_pipeline.schemas import FRAMES_SCHEMA, HELD_SCHEMA, QUARANTINE_SCHEMA
from uniq_pipeline.windows import HOUR_S, MINUTE_S

DATA_SCHEMAS = {"frames": FRAMES_SCHEMA, "held": HELD_SCHEMA, "quarantine": QUARANTINE_SCHEMA}


@dataclass
class Take:
    """One file and the rows to move out of it."""

    path: str
    table: pa.Table
    moved: np.ndarray  # bool[rows]

    @property
    def rows(self) -> pa.Table:
        return self.table.filter(pa.array(self.moved)).replace_schema_metadata(None)

    @property
    def rest(self) -> pa.Table:
        return self.table.filter(pa.array(~self.moved))


def move_notes(batch_id: str, kind: Kind, topics: Sequence[str], delivery: Delivery, taken: Sequence[str]) -> dict:
    """What the footers of the files say that a move writes."""
    return {
        "uniq.topic": topics[0] if len(topics) == 1 else "",
        "uniq.topic_id": "",
        "uniq.batch_id": batch_id,
        "uniq.kind": str(kind),
        "uniq.ranges": "[]",
        "uniq.delivery": json.dumps(asdict(delivery)),
        "uniq.taken": json.dumps(list(taken)),
    }


def write_rest(lake: Lake, take: Take, batch_id: str) -> DataFile:
    """What stays of a file, in a new one beside it.

    It is written even when nothing stays: a lost ledger is rebuilt from what its footer says of the batch that wrote
    the file, and of how many rows that was.
    """
    rest, footer = take.rest, take.table.schema.metadata or {}
    written = footer.get(b"uniq.rows", str(take.table.num_rows).encode())
    notes = {**footer, b"uniq.rows": written, b"uniq.rest_of": take.path, b"uniq.move": batch_id}
    file: LakeFile = lake.write(rest_after(take.path, batch_id), rest.replace_schema_metadata(notes))
    kind = take.path.partition("/")[0]
    origin = footer[b"uniq.batch_id"].decode()
    if kind == "quarantine" or rest.num_rows == 0:
        return DataFile(kind, file, rest_of=take.path, batch_id=origin)
    seconds = event_seconds(rest)
    hour_s = int(seconds[0]) // HOUR_S * HOUR_S if kind == "frames" else None
    return DataFile(kind, file, hour_s, int(seconds.min()), int(seconds.max()), take.path, origin)


def places_of(table: pa.Table) -> list[Place]:
    columns = (table[name].to_pylist() for name in ("topic", "kafka_partition", "kafka_offset"))
    return list(zip(*columns, strict=True))


def late_frames(frames: pa.Table) -> int:
    return int((frames["late_by_s"].to_numpy() > 0).sum())


def rejected_minutes(moved: pa.Table) -> Counter[tuple[int, str]]:
    """(Kafka minute, reason) -> quarantined records."""
    counts: Counter[tuple[int, str]] = Counter()
    for time_us, reason in zip(
        moved["kafka_time"].cast(pa.int64()).to_pylist(), moved["reason"].to_pylist(), strict=True
    ):
        if time_us is not None:
            counts[time_us // 1_000_000 // MINUTE_S * MINUTE_S, reason] += 1
    return counts


def write_empty_rests(ledger: Ledger, lake: Lake, lost: Sequence[StoredFile], batch_id: str) -> list[DataFile]:
    """What is left of lost files: nothing, under the notes that a rebuild of the ledger needs of each."""
    written = []
    known: dict[str, int] = defaultdict(int)
    for file in lost:
        merged = merged_files(ledger, file.batch_id)
        if merged:
            written.append(_write_rest_of_merge(ledger, lake, file, merged, batch_id))
            continue
        notes, others = _notes(ledger, lake, file, {one.path for one in lost})
        delivered = json.loads(notes["uniq.delivery"])
        of_batch = delivered["quarantined" if file.kind == "quarantine" else file.kind]
        rows = of_batch - others - known[file.kind + file.batch_id]
        known[file.kind + file.batch_id] += rows
        notes = {**notes, "uniq.rows": str(rows), "uniq.rest_of": file.path, "uniq.move": batch_id}
        table = DATA_SCHEMAS[file.kind].empty_table().replace_schema_metadata(notes)
        rest = lake.write(rest_after(file.path, batch_id), table)
        written.append(DataFile(file.kind, rest, rest_of=file.path, batch_id=file.batch_id))
    return written


def _write_rest_of_merge(
    ledger: Ledger, lake: Lake, file: StoredFile, merged: Sequence[MergedFile], batch_id: str
) -> DataFile:
    """What is left of a lost file of a compaction: nothing, and what the ledger knows of the batches in it."""
    sources = []
    told: dict[str, Mapping[str, str]] = {}
    for one in merged:
        facts = batch_facts(ledger, one.batch_id)
        if facts is None:
            raise LakeError(f"{file.path}: nothing is known of batch {one.batch_id} in it. Nothing was changed.")
        notes = {**told.setdefault(one.batch_id, _told_by(facts, one.batch_id)), "uniq.rows": str(one.rows_written)}
        if one.rest_of is not None:
            notes |= {"uniq.rest_of": one.rest_of, "uniq.move": mover_of(one.path)}
        sources.append(Source(one.path, one.min_event_s, one.max_event_s, notes))
    paths = [one.path for one in merged]
    notes = notes_of_merge(Kind.COMPACT, file.batch_id, topic_of(sources), Delivery(), paths, sources)
    notes |= {"uniq.rows": str(file.rows), "uniq.rest_of": file.path, "uniq.move": batch_id}
    table = DATA_SCHEMAS[file.kind].empty_table().replace_schema_metadata(notes)
    rest = lake.write(rest_after(file.path, batch_id), table)
    return DataFile(file.kind, rest, rest_of=file.path, batch_id=file.batch_id)


def _told_by(facts: BatchFacts, batch_id: str) -> dict[str, str]:
    """The footer of a batch's first file, made from the ledger."""
    return {
        "uniq.topic": facts.topic,
        "uniq.topic_id": facts.topic_id,
        "uniq.batch_id": batch_id,
        "uniq.kind": str(facts.kind),
        "uniq.ranges": json.dumps(facts.ranges),
        "uniq.delivery": json.dumps(facts.delivery),
        "uniq.admitted": json.dumps(facts.admitted),
        "uniq.clocks": json.dumps({str(p): clock for p, clock in facts.clocks.items()}),
        "uniq.taken": json.dumps(facts.taken),
    }


def _notes(ledger: Ledger, lake: Lake, file: StoredFile, lost: set[str]) -> tuple[Mapping[str, str], int]:
    """The notes of a lost file's batch, and how many rows of its kind the batch wrote into other files.

    They are those of another file of the batch where one can be read, else made from the ledger.
    """
    found: dict[str, str] | None = None
    clocks: str | None = None
    written: dict[str, int] = {}
    for path, rows in files_of_batch(ledger, file.batch_id):
        origin = origin_of(path)
        if path not in lost:
            try:
                notes = lake.footer(path).notes
            except FileDamaged:
                continue
            found, clocks = notes, clocks or notes.get("uniq.clocks")
            rows = int(notes.get("uniq.rows", rows))
            if path.partition("/")[0] == file.kind:
                written[origin] = rows
    for path in lost:
        written.pop(origin_of(path), None)
    facts = batch_facts(ledger, file.batch_id)
    if facts is None:
        if found is None:
            raise LakeError(
                f"{file.path}: nothing is known of batch {file.batch_id} that wrote it. Nothing was changed."
            )
        return found, sum(written.values())
    made = _told_by(facts, file.batch_id)
    keep = {name: value for name, value in (found or made).items() if name.startswith("uniq.")}
    if clocks is None and facts.clocks:
        keep["uniq.clocks"] = made["uniq.clocks"]
    elif clocks is not None:
        keep.pop("uniq.clocks", None)
    for name in ("uniq.rest_of", "uniq.move", "uniq.rows"):
        keep.pop(name, None)
    return keep, sum(written.values())
