"""Records as every source hands them over: Kafka, files, stdin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NO_TIME = -1


@dataclass(frozen=True)
class Records:
    """Consecutive records of one topic partition, in offset order.

    offsets         n record offsets; line numbers from 0 for a file
    kafka_times_ms  n Kafka timestamps in milliseconds since 1970, NO_TIME where the record has none
    payloads        n values, None for a tombstone
    next_offset     where the log goes on after them (past control records, too)
    """

    kafka_partition: int
    offsets: Sequence[int]
    kafka_times_ms: Sequence[int]
    payloads: Sequence[bytes | None]
    next_offset: int
