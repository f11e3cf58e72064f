"""What ordinary producers do with a topic of real Kafka."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Producer

from support.kafka.cluster import Cluster

# A minute of the past: what the frames of a test have in `ts` when it does not matter.
MINUTE_S = 1_790_000_040


def frames_of(users: Sequence[int] | range, at_s: int = MINUTE_S) -> list[bytes]:
    """A frame each, at one event time."""
    return [b'{"ts": %d, "uid": "u%d"}' % (at_s, user) for user in users]


def produce(
    cluster: Cluster, topic: str, values: Sequence[bytes | None], *, kafka_partition: int = -1, **options: Any
) -> list[tuple[int, int]]:
    """Sends values in one go; further options are the producer's, `linger_ms=0` is `linger.ms`.

    Returns (topic partition, offset) of each, once all are acknowledged.
    """
    producer = new_producer(cluster, **options)
    return send(producer, topic, values, kafka_partition=kafka_partition)


@contextmanager
def transaction(cluster: Cluster, name: str) -> Iterator[Producer]:
    """A producer within a transaction; the block commits it or aborts it, or leaves it open."""
    producer = new_producer(cluster, transactional_id=name)
    producer.init_transactions(30)
    producer.begin_transaction()
    yield producer


def new_producer(cluster: Cluster, **options: Any) -> Producer:
    named = {name.replace("_", "."): value for name, value in options.items()}
    return Producer({"bootstrap.servers": cluster.inside_servers, "linger.ms": 5, "log_level": 0, **named})


def send(
    producer: Producer, topic: str, values: Sequence[bytes | None], *, kafka_partition: int = -1, keys: bool = False
) -> list[tuple[int, int]]:
    """Sends values and waits for all acknowledgements; with `keys` each value is its own key, too."""
    sent: list[tuple[int, int]] = []

    def delivered(error: Any, message: Any) -> None:
        assert error is None, error
        sent.append((message.partition(), message.offset()))

    for value in values:
        while True:
            try:
                producer.produce(topic, value, value if keys else None, kafka_partition, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0
    return sent
