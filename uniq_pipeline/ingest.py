"""Ingest: loads files of frames as logs of their own, beside what is drained. For years of history, say.

A file is a log with one topic partition, whose offsets are its line numbers. What was loaded of it is known to the
ledger, so a second call goes on where the first was killed, a file that has grown is continued, and a file that was
loaded before, under whatever name, compressed or not, is not loaded twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uniq_pipeline.errors import InputError
from uniq_pipeline.files import STDIN, read_head, read_lines, size_of
from uniq_pipeline.frames import Reason, parse_frames
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.batches import Kind
from uniq_pipeline.ledger.logs import advance_watermark, read_positions, topic_with_id
from uniq_pipeline.loading import Loader, LoadReport, Log
from uniq_pipeline.records import Records
from uniq_pipeline.results import Workshop

PARTITION = 0

# A log is known by this much of its beginning. Frames of 2 kB: 32 of them.
HEAD_BYTES = 64 << 10

PREFIX = "file:"

# Stands where a file has its beginning: what comes from stdin cannot be looked at twice.
_STDIN_ID = "stdin"


@dataclass(frozen=True)
class FileLog:
    """A file to load. `name` is what `read_lines` opens, `log` what the ledger knows it by."""

    name: str
    log: Log

    @property
    def size_bytes(self) -> int | None:
        return size_of(self.name)


def file_logs(ledger: Ledger, names: Sequence[str], known_as: str | None = None) -> list[FileLog]:
    """Finds out which logs files are (see file_log); of each log once, in the order given.

    Raises InputError also when two of them begin with the same lines.
    """
    logs: dict[str, FileLog] = {}
    by_head: dict[str, FileLog] = {}
    for name in names:
        found = file_log(ledger, name, known_as)
        logs.setdefault(found.log.topic, found)
        other = by_head.setdefault(found.log.topic_id, found)
        if other.log.topic != found.log.topic and found.log.topic_id != _NO_HEAD:
            raise InputError(f"{name}: these lines are in {other.name}, too: give one of the two")
    return list(logs.values())


def file_log(ledger: Ledger, name: str, known_as: str | None = None) -> FileLog:
    """Finds out which log a file is.

    known_as  the log's name in place of the file's path: for stdin, or a file that has moved

    Raises InputError when the same lines were loaded under another name, or other lines under this one.
    """
    if name == STDIN:
        if not known_as:
            raise InputError("stdin: give the log a name with --as, so that a second run can go on with it")
        topic = PREFIX + known_as
        if read_positions(ledger, topic).topic_id not in (None, _STDIN_ID):
            raise InputError(f"stdin: {known_as} was loaded from a file before: go on with it from that file")
        return FileLog(name, Log(topic, _STDIN_ID, Kind.INGEST, is_finite=True))
    topic = PREFIX + (known_as or str(Path(name).resolve()))
    topic_id = read_positions(ledger, topic).topic_id
    if topic_id == _STDIN_ID:
        raise InputError(f"{name}: {topic.removeprefix(PREFIX)} was loaded from stdin before: go on with it from stdin")
    head = _head(name, HEAD_BYTES if topic_id is None else int(topic_id.partition(":")[0]))
    if topic_id is None:
        other = topic_with_id(ledger, head)
        if other is not None and other.startswith(PREFIX):
            raise InputError(
                f"{name}: these lines were loaded before, as {other.removeprefix(PREFIX)}; to go on with that log, "
                f"give its name with --as"
            )
    elif topic_id != head:
        raise InputError(
            f"{name}: another file was loaded under this name before; give this one a name of its own with --as"
        )
    return FileLog(name, Log(topic, head, Kind.INGEST, is_finite=True))


def _id_of(head: bytes) -> str:
    return f"{len(head)}:{hashlib.sha256(head).hexdigest()[:48]}"


def _head(name: str, size_bytes: int) -> str:
    """Of the lines themselves: a log stays the same one when its file is compressed."""
    return _id_of(read_head(name, size_bytes))


_NO_HEAD = _id_of(b"")


def load_file(
    shop: Workshop,
    file: FileLog,
    *,
    pause_after: int | None = None,
    read_bytes: Callable[[int], None] = lambda count: None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[LoadReport]:
    """Loads what the ledger does not have of a file yet, batch by batch.

    Yields the report so far after every `pause_after` records, and at the end. Raises LostRace when another run
    loads the same file.
    """
    started = monotonic()
    positions = read_positions(shop.ledger, file.log.topic)
    position = positions.by_partition.get(PARTITION)
    start = position.next_offset if position else 0
    loader = Loader(
        shop.settings,
        shop.ledger,
        shop.lake,
        file.log,
        starts={PARTITION: start},
        positions=positions.by_partition,
        failpoint=shop.failpoint,
        monotonic=monotonic,
    )
    paused_at = 0
    is_whole = _always if file.name == STDIN else _is_whole
    for records in read_lines(file.name, PARTITION, read_bytes=read_bytes, is_whole=is_whole):
        if records.next_offset <= start:
            continue
        loader.add(_from(records, start))
        if loader.is_full:
            loader.store({})
            if pause_after and loader.report.delivered - paused_at >= pause_after:
                paused_at = loader.report.delivered
                yield _noted(shop, loader, monotonic() - started)
    loader.store({}, at_end=True)
    yield _noted(shop, loader, monotonic() - started)


def _always(line: bytes) -> bool:
    return True


def _is_whole(line: bytes) -> bool:
    """A last line without a line end that breaks off is still being written: the next run takes all of it."""
    return all(
        reject.reason not in (Reason.INVALID_JSON, Reason.INVALID_UTF8) for reject in parse_frames([line]).rejects
    )


def _noted(shop: Workshop, loader: Loader, seconds: float) -> LoadReport:
    """The report, and the event watermark moved: a file holds nobody back, and does not wait for anybody."""
    report = loader.report
    report.watermark_s = advance_watermark(shop.ledger, loader.watermarks_s.get(PARTITION))
    report.next_offsets = dict(loader.starts)
    report.seconds = seconds
    return report


def _from(records: Records, start: int) -> Records:
    """Only the records from `start` on."""
    skip = next((i for i, offset in enumerate(records.offsets) if offset >= start), len(records.offsets))
    if skip == 0:
        return records
    return Records(
        records.kafka_partition,
        records.offsets[skip:],
        records.kafka_times_ms[skip:],
        records.payloads[skip:],
        records.next_offset,
    )
