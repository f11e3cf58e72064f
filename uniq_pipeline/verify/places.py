"""Each record that was drained stands once: in frames, in held or in quarantine.

By groups of batches, so that memory does not grow with the lake: the places of a group are looked for in those files
whose footers say that they may have some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from uniq_pipeline.errors import FileDamaged
from uniq_pipeline.ledger.audited import LogRange, Snapshot, range_groups, snapshot
from uniq_pipeline.results import Workshop
from uniq_pipeline.schemas import ADMITTED_SCHEMA, FRAMES_SCHEMA, QUARANTINE_SCHEMA, RANGES_SCHEMA
from uniq_pipeline.verify.report import BY_HAND, Check, Fault, FaultKind, Progress

# Records looked for at once: a few hundred bytes each, in DuckDB, which spills what is beyond its memory.
RECORDS_AT_ONCE = 1_000_000

# Times that a group is looked at again when something seems wrong: the pipeline goes on beside us.
TRIES = 3

_SCHEMAS = {"frames": FRAMES_SCHEMA, "held": FRAMES_SCHEMA, "quarantine": QUARANTINE_SCHEMA}
_BOUNDS = ("kafka_partition", "kafka_offset")


@dataclass
class _Index:
    """Which offsets the data files may hold, by their footers; those of a file are read once."""

    shop: Workshop
    known: dict[str, tuple[int, int, int, int] | None] = field(default_factory=dict)

    def read(self, found: Snapshot, progress: Progress) -> None:
        self.snapshot = found
        rows = []
        for done, (_, path) in enumerate(found.files, 1):
            if path not in self.known:
                try:
                    spans = self.shop.lake.bounds(path, _BOUNDS)
                    self.known[path] = tuple(bound for name in _BOUNDS for bound in spans[name])  # type: ignore[assignment]
                except FileDamaged:
                    self.known[path] = None  # the audit of files says so
            rows.append(self.known[path] or (1, 0, 1, 0))
            progress("footers", done, len(found.files))
        self.spans = np.array(rows, np.int64).reshape(-1, 4)
        self.damaged = {path for _, path in found.files if self.known[path] is None}
        self.admitted = pa.table(
            [list(column) for column in zip(*found.admitted, strict=True)] or [[], [], []], schema=ADMITTED_SCHEMA
        )

    def files(self, group: Sequence[LogRange]) -> dict[str, list[str]]:
        """Paths that may hold rows of these ranges, by kind."""
        chosen = np.zeros(len(self.spans), bool)
        for p in {one.kafka_partition for one in group}:
            first = min(one.start_offset for one in group if one.kafka_partition == p)
            end = max(one.end_offset for one in group if one.kafka_partition == p)
            low_p, high_p, low, high = self.spans.T
            chosen |= (low_p <= p) & (high_p >= p) & (low < end) & (high >= first)
        paths: dict[str, list[str]] = {kind: [] for kind in _SCHEMAS}
        for i in np.flatnonzero(chosen):
            kind, path = self.snapshot.files[i]
            paths[kind].append(path)
        return paths


def check_places(shop: Workshop, lost: set[str], progress: Progress) -> Check:
    """lost: files that are known to be damaged; what they had is not missed a second time."""
    check = Check("each record stands once", "records")
    index = _Index(shop)
    index.read(snapshot(shop.ledger), progress)
    total = sum(end for end in index.snapshot.ends.values())
    missing: list[tuple[int, Fault]] = []
    done = 0
    for group in range_groups(shop.ledger, RECORDS_AT_ONCE):
        for left in reversed(range(TRIES)):
            ends = index.snapshot.ends
            known = [
                one for one in group if one.end_offset <= ends.get((one.topic, one.topic_id, one.kafka_partition), 0)
            ]
            try:
                rows = _look(shop, index, known, lost)
            except FileDamaged:
                rows = []  # gc removed a file that was replaced since
                if not left:
                    check.skipped += sum(one.records for one in known)
                    check.note = "files could not be read"
                    break
            else:
                if not left or all(_is_right(row) for row in rows):
                    break
            index.read(snapshot(shop.ledger), progress)
        for row in rows:
            check.looked_at += row["records"]
            where = f"topic {row['topic']}, topic partition {row['kafka_partition']}"
            if row["too_often"]:
                first, last = row["first_too_often"], row["last_too_often"]
                text = f"{where}: {row['too_often']:,} offsets in [{first}, {last + 1}) stand more than once; {BY_HAND}"
                check.faults.append(Fault(FaultKind.LEDGER, text))
            elif row["found"] < row["records"] and row["generations"] == 1:
                start, end, gone = row["start_offset"], row["end_offset"], row["records"] - row["found"]
                text = f"{where}: {gone:,} of {row['records']:,} records of [{start}, {end}) are in no file; {BY_HAND}"
                missing.append((gone, Fault(FaultKind.LEDGER, text)))
        done += sum(one.end_offset - one.start_offset for one in group)
        progress("records", done, max(total, done))
    # What was kept long enough is gone on purpose; what a damaged file had is told of already.
    gone = sum(records for records, _ in missing)
    if gone and not lost and not index.damaged and gone != index.snapshot.expired:
        check.faults += [fault for _, fault in missing]
    elif gone:
        check.note = f"{gone:,} records expired" if not lost else f"{gone:,} records are in damaged files"
    return check


def _is_right(row: dict[str, Any]) -> bool:
    return not row["too_often"] and row["found"] >= row["records"]


def _look(shop: Workshop, index: _Index, group: Sequence[LogRange], lost: set[str]) -> list[dict[str, Any]]:
    warehouse = shop.warehouse
    for kind, paths in index.files(group).items():
        readable = [shop.lake.absolute(path) for path in paths if path not in lost]
        warehouse.register_files(kind, readable, _SCHEMAS[kind])
    warehouse.register("admitted", index.admitted)
    names = ("topic", "kafka_partition", "start_offset", "end_offset", "records", "generations")
    columns = [[getattr(one, name) for one in group] for name in names]
    warehouse.register("ranges", pa.table(columns, schema=RANGES_SCHEMA))
    try:
        return warehouse.run("verify/places").to_pylist()
    finally:
        for kind in _SCHEMAS:
            warehouse.register(kind, _SCHEMAS[kind].empty_table())
