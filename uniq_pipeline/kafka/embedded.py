"""A Kafka-compatible broker inside this process: librdkafka's own mock cluster, which ships with the client.

It listens on loopback TCP, so other processes can use it. It keeps nothing on disk, at most 5 MiB a topic
partition, and creates topics (4 partitions) on first use. For the demo and for tests.
"""

from __future__ import annotations

from confluent_kafka import Producer

EMBEDDED_CLUSTER = "mockCluster"  # its cluster ids begin so


class EmbeddedBroker:
    """Runs from construction until `close()`, or until the process ends."""

    def __init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 2})
        brokers = self._producer.list_topics(timeout=10).brokers.values()
        self.bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def close(self) -> None:
        self._producer.flush(5)
        del self._producer  # the cluster lives as long as the client that started it
