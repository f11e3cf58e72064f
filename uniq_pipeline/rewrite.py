"""Rewriting files that rows are moved out of: what is left of each stands in a new one, under the old one's notes.

A file is never changed; see ledger.moves for how the old ones stop counting in one transaction.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from uniq_pipeline.lake import Lake, LakeFile
from uniq_pipeline.ledger.batches import Delivery, Kind
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.moves import Place
from uniq_pipeline.loading import event_seconds
from uniq_pipeline.windows import HOUR_S, MINUTE_S


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
    stem = take.path.removesuffix(".parquet").split(".rest-")[0]
    written = footer.get(b"uniq.rows", str(take.table.num_rows).encode())
    notes = {**footer, b"uniq.rows": written, b"uniq.rest_of": take.path, b"uniq.move": batch_id}
    file: LakeFile = lake.write(f"{stem}.rest-{batch_id}.parquet", rest.replace_schema_metadata(notes))
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
