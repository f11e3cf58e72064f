"""Publish: sends what the outbox names to the results topic, at least once.

Key: grain and window start. The value carries the revision, so a reader that keeps the highest revision of
each key is right whatever is sent twice or out of order; the topic can be compacted. The messages are described in
docs/results-topic.md.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import orjson

from uniq_pipeline.errors import FileDamaged
from uniq_pipeline.lake import Lake
from uniq_pipeline.ledger import Ledger
from uniq_pipeline.ledger.outbox import OutboxEntry, Sent, clear_sent, next_entries
from uniq_pipeline.schemas import ENTRY, RESULT_SCHEMA
from uniq_pipeline.windows import iso, to_epoch

# Rows of one transaction; at lg_k 12 about 5.6 kB each.
AT_ONCE = 2_000

# Result files that are left out because they cannot be read; more is no damaged file any more.
DAMAGED_AT_MOST = 100

# The version of the messages: raised when a reader of the one before could be misled.
MESSAGE_VERSION = 1

# What a message has of a result row: not its history, and the counts by dimension without their HLL states, which for
# 4 dimensions of 50 values would be 800 kB.
_SCALARS = [name for name in RESULT_SCHEMA.names if name not in ("history", "by_dimension")]
_ENTRY = [name for name in ENTRY.names if name != "hll"]
_COLUMNS = [*_SCALARS, *(f"by_dimension.list.element.{name}" for name in _ENTRY)]


class Sink(Protocol):
    """What publishing needs of a producer: returns once everything is acknowledged, raises otherwise."""

    def send(self, messages: Iterable[tuple[bytes | None, bytes]]) -> int: ...


def publish(
    ledger: Ledger,
    lake: Lake,
    sink: Sink,
    *,
    is_over: Callable[[], bool] = lambda: False,
    failpoint: Callable[[str], None] = lambda name: None,
) -> int:
    """Sends until the outbox is empty, or time `is_over`; returns the number of messages.

    Raises BrokerError when the topic does not take them: the outbox keeps what was not acknowledged. Raises FileDamaged
    when a result file cannot be read, but only after what is in the others was sent; also its windows wait.
    """
    total = 0
    damaged: dict[str, FileDamaged] = {}
    while entries := next_entries(ledger, AT_ONCE, damaged):
        found = list(_rows(lake, entries, damaged))
        total += sink.send((message_key(row), message_value(row)) for _, row in found)
        failpoint("publish.sent")
        clear_sent(ledger, [Sent(entry, row["revision"]) for entry, row in found])
        if is_over():
            break
    for error in damaged.values():
        raise error
    return total


def _rows(
    lake: Lake, entries: list[OutboxEntry], damaged: dict[str, FileDamaged]
) -> Iterator[tuple[OutboxEntry, dict[str, Any]]]:
    """The entries with their result rows; each file is read once. Adds what cannot be read to `damaged`."""
    wanted: dict[str, dict[int, OutboxEntry]] = {}
    for entry in entries:
        wanted.setdefault(entry.path, {})[entry.window_start_s] = entry
    for path, by_start in wanted.items():
        try:
            table = lake.read(path, _COLUMNS)
        except FileDamaged as error:
            if len(damaged) == DAMAGED_AT_MOST:
                raise
            damaged[path] = error
            continue
        for row in table.to_pylist():
            entry = by_start.get(to_epoch(row["window_start"]))
            if entry is not None:
                yield entry, row


def message_key(row: dict[str, Any]) -> bytes:
    """`minute/2026-11-23T04:15:00Z`"""
    return f"{row['grain']}/{iso(to_epoch(row['window_start']))}".encode()


def message_value(row: dict[str, Any]) -> bytes:
    """Every result column as JSON, but for the history; the HLL state in base64."""
    value = {"version": MESSAGE_VERSION, **{name: row[name] for name in _SCALARS}}
    for name in ("window_start", "window_end", "computed_at"):
        value[name] = iso(to_epoch(row[name]))
    value["exact"] = row["unique_users"] is not None
    value["hll"] = base64.b64encode(row["hll"]).decode()
    value["by_dimension"] = [{name: entry[name] for name in _ENTRY} for entry in row["by_dimension"] or ()]
    return orjson.dumps(value)
