"""Offset ranges, and what to read next: the ledger's offsets against what the topic holds.

Every range is half-open, `[start_offset, end_offset)`.

A topic that was deleted and made again is another log, whose offsets begin anew: `frames`, then `frames~2`. So the name
of a log and an offset are of one record only. No topic can have such a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from uniq_pipeline.errors import OffsetsLost, TopicRecreated


@dataclass(frozen=True, order=True)
class OffsetRange:
    """`[start_offset, end_offset)` of one topic partition."""

    kafka_partition: int
    start_offset: int
    end_offset: int

    @property
    def size(self) -> int:
        return self.end_offset - self.start_offset


_LATER_LOG = re.compile(r"([A-Za-z0-9._-]+)~([0-9]+)")


def topic_of(log: str) -> str:
    """The Kafka topic of a log: `frames` of `frames~2`."""
    later = _LATER_LOG.fullmatch(log)
    return later[1] if later else log


def newest_log(topic: str, logs: Iterable[str]) -> str | None:
    """The newest of a topic's logs, None where none of these is one."""
    return max((log for log in logs if topic_of(log) == topic), key=life_of, default=None)


def log_after(log: str) -> str:
    """The log of a topic that was made again: `frames~3` after `frames~2`."""
    return f"{topic_of(log)}~{life_of(log) + 1}"


def life_of(log: str) -> int:
    """Which of its topic's lives a log is of: 2 of `frames~2`."""
    later = _LATER_LOG.fullmatch(log)
    return int(later[2]) if later else 1


@dataclass(frozen=True)
class Extent:
    """What a topic partition holds: `[low_watermark, stable_offset)` can be read.

    Records in `[stable_offset, high_watermark)` wait for a transaction that is still open.
    """

    low_watermark: int
    stable_offset: int
    high_watermark: int


@dataclass(frozen=True)
class TopicState:
    """A topic as the broker shows it now. `topic_id` is empty where the broker does not know ids."""

    topic: str
    topic_id: str
    extents: dict[int, Extent]

    @property
    def unstable(self) -> int:
        """Records that wait for open transactions."""
        return sum(extent.high_watermark - extent.stable_offset for extent in self.extents.values())


def plan_ranges(topic: TopicState, known_topic_id: str | None, next_offsets: dict[int, int]) -> list[OffsetRange]:
    """What to read, by topic partition. Partitions the ledger does not know start at their earliest offset.

    Raises TopicRecreated when the topic has another id than the ledger's, and OffsetsLost when a topic
    partition no longer holds the next offset, or does not reach it: both mean records were lost, or would be
    counted twice, if we simply went on.
    """
    if known_topic_id is not None and known_topic_id != topic.topic_id:
        raise TopicRecreated(
            f"topic {topic.topic} was recreated: the ledger knows id {known_topic_id or 'none'}, the broker "
            f"shows {topic.topic_id or 'none'}. Nothing was read. If the old records are gone for good, "
            f"name the new topic differently, or start it over with `uniq-pipeline forget-topic {topic.topic}`: "
            f"counts so far are kept."
        )
    ranges = []
    for kafka_partition, extent in sorted(topic.extents.items()):
        start = next_offsets.get(kafka_partition, extent.low_watermark)
        where = f"topic {topic.topic}, topic partition {kafka_partition}"
        if start < extent.low_watermark:
            raise OffsetsLost(
                f"{where}: offsets [{start}, {extent.low_watermark}) are no longer on the broker: its retention "
                f"passed the ledger's next offset. Nothing was read. To go on without these "
                f"{extent.low_watermark - start} records, and record that: "
                f"`uniq-pipeline skip-lost {topic.topic}`."
            )
        if start > extent.stable_offset:
            raise OffsetsLost(
                f"{where}: the ledger's next offset {start} is beyond the end of the log, "
                f"{extent.stable_offset}: the log was truncated, or the topic was recreated under the same name. "
                f"Nothing was read."
            )
        ranges.append(OffsetRange(kafka_partition, start, extent.stable_offset))
    missing = sorted(set(next_offsets) - set(topic.extents))
    if missing:
        raise TopicRecreated(
            f"topic {topic.topic} was recreated: topic partitions {missing} of the ledger do not exist any more."
        )
    return ranges
