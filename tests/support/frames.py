"""Frames with the truth about them, on a Kafka topic or in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from confluent_kafka import Producer

from uniq_pipeline.demo.traffic import Kind, Record, Traffic, TrafficProfile
from uniq_pipeline.offsets import Extent, OffsetRange, TopicState
from uniq_pipeline.records import Records

# Three topic partitions of unequal traffic, and one that is all but idle.
SHARES = (5, 3, 2, 0.05)


@dataclass(frozen=True)
class Sent:
    """A record as the broker has it, with the truth about it."""

    kafka_time_ms: int
    truth: Record
    payload: bytes


# (topic partition, offset) -> what is there
Delivered = dict[tuple[int, int], Sent]


def small_traffic(seed: int, *, frames_per_s: float = 6.0, users: int = 150) -> Traffic:
    """Small frames of which many are late, flipped or broken."""
    return Traffic(
        TrafficProfile(
            frames_per_s=frames_per_s,
            users=users,
            late_share=0.04,
            flip_share=0.03,
            bad_share=0.02,
            small=True,
            seed=seed,
        )
    )


def with_decoy(record: Record, rng: Random) -> bytes:
    """Every third good frame gets a nested ts and uid that must not be taken for its own."""
    if record.kind is Kind.BAD or rng.random() > 0.3:
        return record.payload
    return b'{"near":{"ts":1,"uid":"nobody"},' + record.payload[1:]


def send(bootstrap_servers: str, topic: str, records: Sequence[Record], rng: Random) -> Delivered:
    """Sends records with their arrival as Kafka time; returns them by the places the broker gave them.

    The topic partition is chosen here: without keys a producer would stay with one of them for a while.
    """
    delivered: Delivered = {}
    failed = []
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 1, "log_level": 2})
    for record in records:
        sent = Sent(int(record.arrival_s * 1000), record, with_decoy(record, rng))

        def on_delivery(error, message, sent=sent):
            if error is not None:
                failed.append(error)
            else:
                delivered[message.partition(), message.offset()] = sent

        producer.produce(
            topic,
            sent.payload,
            partition=rng.choices(range(len(SHARES)), SHARES)[0],
            timestamp=sent.kafka_time_ms,
            on_delivery=on_delivery,
        )
    assert producer.flush(20) == 0 and not failed, failed
    return delivered


@dataclass
class MemoryTopic:
    """A topic in memory, which a drain takes for a source."""

    topic: str = "frames"
    topic_id: str = "id-1"
    logs: dict[int, list[Sent]] = field(default_factory=lambda: {0: [], 1: []})
    low: dict[int, int] = field(default_factory=dict)
    at_once: int = 100
    after_describe: Callable[[], object] | None = None  # called once

    @property
    def delivered(self) -> Delivered:
        return {(p, offset): sent for p, log in self.logs.items() for offset, sent in enumerate(log)}

    def send(self, records: Sequence[Record], rng: Random | None = None) -> None:
        rng = rng or Random(1)
        for record in records:
            log = self.logs[rng.choice(sorted(self.logs))]
            log.append(Sent(int(record.arrival_s * 1000), record, with_decoy(record, rng)))

    def describe(self) -> TopicState:
        extents = {p: Extent(self.low.get(p, 0), len(log), len(log)) for p, log in self.logs.items()}
        state = TopicState(self.topic, self.topic_id, extents)
        if self.after_describe is not None:
            do, self.after_describe = self.after_describe, None
            do()
        return state

    def read(self, ranges: Sequence[OffsetRange]) -> Iterator[Records]:
        for r in ranges:
            for start in range(r.start_offset, r.end_offset, self.at_once):
                yield self._records(r.kafka_partition, start, min(start + self.at_once, r.end_offset))

    def _records(self, kafka_partition: int, start: int, end: int) -> Records:
        sent = self.logs[kafka_partition][start:end]
        return Records(
            kafka_partition,
            list(range(start, end)),
            [one.kafka_time_ms for one in sent],
            [one.payload for one in sent],
            end,
        )

    def commit_for_lag_tools(self, next_offsets: dict[int, int]) -> None:
        pass


def frame(event_s: int, uid: str, *, arrival_s: float | None = None, kind: Kind = Kind.ORDINARY) -> Record:
    """One frame, a second on its way unless said otherwise."""
    payload = b'{"ts":%d,"uid":"%s"}' % (event_s, uid.encode())
    return Record(event_s + 1.0 if arrival_s is None else arrival_s, event_s, event_s, uid, kind, None, payload)
