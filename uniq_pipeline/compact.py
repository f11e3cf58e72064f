"""Compaction: the many small files of a closed hour become one, sorted by event time.

A drain leaves a file a batch and hour; the fewer there are, the less a question has to open. What counts stays the
same row for row, so nothing is computed again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from uniq_pipeline.errors import FileDamaged, LostRace
from uniq_pipeline.ledger.batches import Batch, Delivery, Kind
from uniq_pipeline.ledger.files import DataFile
from uniq_pipeline.ledger.merges import LiveFile, MergeCommit, commit_merge, live_data_files
from uniq_pipeline.ledger.refined import unsent_paths
from uniq_pipeline.loading import new_batch_id
from uniq_pipeline.merging import merged_in, notes_of_merge, sources_of, topic_of
from uniq_pipeline.results import Workshop
from uniq_pipeline.schemas import FRAMES_SCHEMA, HELD_SCHEMA, QUARANTINE_SCHEMA
from uniq_pipeline.windows import HOUR_S

SCHEMAS = {"frames": FRAMES_SCHEMA, "held": HELD_SCHEMA, "quarantine": QUARANTINE_SCHEMA}
_STATEMENTS = {
    "frames": "compact/sorted_frames",
    "held": "compact/sorted_frames",
    "quarantine": "compact/sorted_quarantine",
}

# What came to a folder after it was compacted waits until there are so many files: each time all of it is rewritten.
AGAIN_AT = 8

# A row group of Parquet: a question about one minute reads those that may have it.
ROWS_AT_ONCE = 122_880


@dataclass
class CompactReport:
    """What was merged. `failed` names files that could not be read; what they were with stays as it was."""

    files: int = 0
    merged_into: int = 0
    rows: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    failed: list[str] = field(default_factory=list)


def compact(
    shop: Workshop,
    *,
    closed_before_s: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    is_over: Callable[[], bool] = lambda: False,
) -> CompactReport:
    """Merges the files of each hour of frames that ended at or before `closed_before_s`, and of each day set aside.

    Goes on with the next folder where another run moves rows of the same files, or one cannot be read. Interrupted at
    any point, every folder is as it was or merged.
    """
    report = CompactReport()
    folders = list(_folders_to_merge(shop, closed_before_s))
    for done, files in enumerate(folders, 1):
        if is_over():
            break
        try:
            _merge(shop, files, report)
        except LostRace:
            pass  # what is there now is looked at the next time
        except FileDamaged as error:
            report.failed.append(str(error))
        progress(done, len(folders))
    return report


def _folders_to_merge(shop: Workshop, closed_before_s: int | None) -> Iterator[list[LiveFile]]:
    today = time.strftime("%Y-%m-%d", time.gmtime(shop.ledger.now()))
    folders: dict[str, list[LiveFile]] = defaultdict(list)
    unsent = unsent_paths(shop.ledger)
    for file in live_data_files(shop.ledger):
        folders[file.path.rpartition("/")[0]].append(file)
    for folder, files in sorted(folders.items()):
        if any(file.path in unsent for file in files):
            continue  # the refined topic has not taken them yet
        if folder.startswith("frames/"):
            hours = [file.hour_s for file in files if file.hour_s is not None]
            is_closed = closed_before_s is not None and max(hours, default=-HOUR_S) + HOUR_S <= closed_before_s
            may_merge = is_closed
        else:
            is_closed, may_merge = folder.rpartition("=")[2] < today, True
        fresh = sum(not file.is_merged for file in files)
        is_first = is_closed and fresh == len(files)
        if len(files) > 1 and may_merge and (is_first or fresh >= AGAIN_AT):
            yield files


def _merge(shop: Workshop, files: Sequence[LiveFile], report: CompactReport) -> None:
    started = time.monotonic()
    paths = [file.path for file in files]
    folder = paths[0].rpartition("/")[0]
    kind = folder.partition("/")[0]
    batch_id = new_batch_id(shop.ledger.now())
    sources = sources_of(shop.lake, paths)
    delivery, topic = Delivery(), topic_of(sources)
    notes = notes_of_merge(Kind.COMPACT, batch_id, topic, delivery, paths, sources)
    rows = sum(file.rows for file in files)
    shop.warehouse.register_files("merging", [shop.lake.absolute(path) for path in paths], SCHEMAS[kind])
    shop.failpoint("compact.before_write")
    with shop.warehouse.stream(_STATEMENTS[kind], rows_at_once=ROWS_AT_ONCE) as reader:
        name = f"{folder}/{batch_id}.parquet"
        file = shop.lake.write_stream(name, SCHEMAS[kind].with_metadata(notes), _cast(reader, SCHEMAS[kind]))
    if file.rows != rows:
        shop.lake.absolute(name).unlink()
        raise FileDamaged(f"files of {folder} hold {file.rows:,} rows, the ledger says {rows:,}: not merged")
    seconds = [second for one in files for second in (one.min_event_s, one.max_event_s) if second is not None]
    hours = {one.hour_s for one in files if one.hour_s is not None}
    data = DataFile(kind, file, hours.pop() if hours else None, min(seconds, default=None), max(seconds, default=None))
    batch = Batch(batch_id, Kind.COMPACT, topic, delivery, [data], time.monotonic() - started)
    shop.failpoint("compact.before_commit")
    shop.lake.require([file])
    try:
        commit_merge(shop.ledger, MergeCommit(batch, paths, merged_in(sources)))
    except LostRace:
        shop.lake.absolute(name).unlink(missing_ok=True)
        raise
    shop.failpoint("compact.after_commit")
    report.files += len(files)
    report.merged_into += 1
    report.rows += rows
    report.bytes_before += sum(one.size_bytes for one in files)
    report.bytes_after += file.size_bytes


def _cast(reader: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        yield batch.cast(schema)
